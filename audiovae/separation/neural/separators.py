"""Neural FCA: one encoder infers the latents of all sources of a mixture, and the ELBO of the mixture trains it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

from audiovae import saved
from audiovae.errors import AudiovaeError, ModelError, TrainingError
from audiovae.level import spectrogram_level
from audiovae.models import ContextVAE, DynamicVAE, FrameVAE
from audiovae.models.latents import normal, normal_from_outputs
from audiovae.objectives import ELBO, Objective
from audiovae.prior import AudioVAE
from audiovae.separation.inference.energy import clamped_variance
from audiovae.separation.iva import image_start, iva
from audiovae.separation.mixture import Mixture
from audiovae.separation.neural.network import MixtureNetwork
from audiovae.separation.sources.deep import check_prior
from audiovae.separation.sources.floor import Floor
from audiovae.separation.spatial.covariances import Covariances, masked_covariances
from audiovae.separation.spatial.full_rank import FullRank
from audiovae.separation.spatial.joint_diagonal import JointDiagonal
from audiovae.separation.spatial.spatial import Spatial, total
from audiovae.separation.starts import Beginning, Start
from audiovae.settings import NeuralSettings, TrainingSettings
from audiovae.stft import STFT, Front, power
from audiovae.trainable import Equaliser, Illustration, Trainable, check_sizes

_START_SECONDS = 0.512  # window of independent vector analysis, as of `separator`
_FARTHEST, _WIDEST = 8.0, 3.0  # of a latent's mean, in deviations of its prior; of what is added to a log deviation
_COLLAPSED_DB, _ALIKE = -15.0, 0.95  # of a source's image below the loudest; correlation of two sources' log PSDs


@dataclass(frozen=True)
class Encoded:
    """What the encoder says of a mixture.

    Attributes:
        posterior: q(z_n | x), batch `[source, recording, frame]`.
        latents: one path of each source, or the means.
        psds: lambda of each source and of the noise, `[1, recording, frame, freq]`.
        space: the spatial model, fitted to them.
    """

    posterior: Independent
    latents: Float[Tensor, "source recording frame latent"]
    psds: list[Tensor]
    space: Spatial


class NeuralSeparator(Trainable, ABC):
    """x_ft ~ N_C(0, sum_n lambda_nft H_nf) with lambda_n = v(z_n), v a prior's decoder, and q(z_1, ..., z_N | x).

    The encoder works in stages. In each it sees the microphones, and of each source what is known so far; its latents
    give PSDs, some updates of the spatial model follow, and what the filter then leaves of each source is what the next
    stage knows. It sees any number of microphones in any order, and of sources too where they do not begin alike
    (`NeuralSettings.start`). The last source is the noise: as
    strong at every microphone, see `Floor`. What trains it is the ELBO of mixtures, in which H is fitted: gradients
    pass through the updates.

    Args:
        prior: of clean sound: its decoder, its p(z) and, as `settings` say, its encoder.
        settings: sizes.

    Raises:
        AudiovaeError: a prior that cannot be used so, with the reason.

    Reference: Y. Bando, K. Sekiguchi, Y. Masuyama, A. Nugraha, M. Fontaine, K. Yoshii, "Neural full-rank spatial
        covariance analysis for blind source separation", IEEE SPL 28, 2021.
    """

    n_channels = None
    purpose = "separator"

    def __init__(self, prior: AudioVAE, settings: NeuralSettings = NeuralSettings()) -> None:
        super().__init__()
        check_prior(prior)
        if prior.labels:
            raise AudiovaeError("a prior that is conditioned on labels cannot be learnt from mixtures; use one without")
        if prior.level_rule != "active":
            raise AudiovaeError("a source in a mixture has no peak to divide by; use a prior of --level active")
        whole = isinstance(prior.vae, FrameVAE | ContextVAE | DynamicVAE)  # its encoder is all that it infers with
        if settings.encoder == "own" and settings.train_prior and not whole:
            raise AudiovaeError(f"the encoder of {prior.kind} cannot be left out of training; use that of the prior")
        self.prior, self.settings = prior, settings
        self.sample_rate, self.level_rule = prior.sample_rate, prior.level_rule
        self.network = MixtureNetwork(
            prior.stft.n_freqs,
            2 * prior.vae.latent_dim,
            0 if settings.start == "iva" else settings.n_sources,
            settings.width,
            settings.kernel_size,
            settings.dilations,
            settings.stages,
        )
        if settings.encoder == "prior":
            self.network.add_nothing()
        self.lookahead = self.network.lookahead + prior.vae.lookahead
        self.require_gradients()

    def require_gradients(self) -> None:
        self.network.requires_grad_()
        self.prior.requires_grad_(self.settings.train_prior)
        if self.settings.encoder == "own":  # that of the prior has no part
            for name, weight in self.prior.vae.named_parameters():
                weight.requires_grad_(weight.requires_grad and not name.startswith("encoder"))

    @abstractmethod
    def space(self, mixture: Mixture, covariances: Covariances | None, n_sources: int) -> Spatial:
        """The spatial model of so many sources, the last of which is the noise."""

    @abstractmethod
    def update(self, space: Spatial, psds: list[Tensor]) -> None:
        """One update of it, through which gradients pass."""

    @abstractmethod
    def through(self, space: Spatial, what: Callable[[Sequence[Tensor]], Tensor], psds: list[Tensor]) -> Tensor:
        """What space, as it is, says of PSDs; a gradient passes."""

    @abstractmethod
    def state(self, space: Spatial) -> Any:
        """With which another one begins."""

    # Inference

    def start(self, mixture: Mixture, n_sources: int) -> Float[Tensor, "source recording frame freq"]:
        """The power of each source at first, at the mixture's level.

        Raises:
            ValueError: a single microphone.
            AudiovaeError: see `check_sources`.
        """
        self.check_sources(n_sources)
        if mixture.common_channels() < 2:
            raise ValueError("pairs need two microphones or more, got one")
        if self.settings.start == "none":
            return mixture.power.expand(n_sources, *mixture.power.shape)
        n_fft = 4 * round(_START_SECONDS * self.sample_rate / 4)
        found = iva(Front(STFT(n_fft, n_fft // 4, "hann"), self.sample_rate), n_sources)
        beginning = image_start(self.front, found)(mixture)
        assert beginning.levels is not None
        return torch.stack(list(beginning.psds)) * beginning.levels.square()[..., None, None]

    def infer(
        self, mixture: Mixture, start: Float[Tensor, "source recording frame freq"], mean: bool = False
    ) -> Encoded:
        """The latents of all sources, and space.

        Args:
            start: see `start`.
            mean: follow the means of the posteriors instead of a sample in the last stage.
        """
        n_sources, network = len(start), self.network
        floor = Floor(mixture).psd()
        levels = self._levels(start)
        hidden = network.begin(network.of_microphones(mixture.outer, mixture.power), n_sources)
        powers = start / levels.square()[..., None, None]
        first = (
            self.prior.vae.infer(powers, mean=True).factors[0].posterior if self.settings.encoder == "prior" else None
        )
        changes: list[Tensor] = []
        space: Spatial | None = None
        for stage in range(self.settings.stages):
            hidden, outputs = network(stage, hidden, powers)
            changes.append(outputs)
            posterior = _posterior(first, changes)
            is_last = stage == self.settings.stages - 1
            z = posterior.mean if mean or not is_last else posterior.rsample()
            psds = [psd.unsqueeze(0) for psd in clamped_variance(self.prior.vae.likelihood(z))] + [floor]
            if space is None:
                space = self._begun(mixture, psds, levels)
            for _ in range(self.settings.updates):
                self.update(space, psds)
            if not is_last:
                images = self.through(space, partial(space.images, chosen=range(len(mixture.power))), psds)[:n_sources]
                powers = power(images).mean(-1) / levels.square()[..., None, None]
        assert space is not None
        return Encoded(posterior, z, psds, space)

    @torch.no_grad()
    def _levels(self, start: Float[Tensor, "source recording frame freq"]) -> Float[Tensor, "source recording"]:
        """Of each source: what its power is divided by before the prior's encoder sees it."""
        if self.settings.start == "none":
            return start.new_ones(start.shape[:2])
        window = self.prior.stft.window
        levels = [torch.stack([spectrogram_level(p, window, self.sample_rate) for p in of_one]) for of_one in start]
        return torch.stack(levels).clamp(min=1e-6)

    @torch.no_grad()
    def _begun(self, mixture: Mixture, psds: list[Tensor], levels: Tensor) -> Spatial:
        """Space as masks by the first PSDs tell it."""
        of_all = torch.cat([levels, levels.new_ones(1, levels.shape[1])])
        return self.space(mixture, masked_covariances(mixture, [psd[0] for psd in psds], of_all), len(psds))

    def check_sources(self, n_sources: int) -> None:
        """Raises AudiovaeError for more sources than the network tells apart, where they begin alike."""
        if self.settings.start == "none" and n_sources > self.settings.n_sources:
            raise AudiovaeError(
                f"this separator tells at most {self.settings.n_sources} sources apart, and {n_sources} are asked for"
            )

    def beginning(self, n_sources: int) -> Start:
        """Where expectation maximisation goes on from what the encoder says: see `separator`."""

        def start(mixture: Mixture) -> Beginning:
            known = self.start(mixture, n_sources)
            found = self.infer(mixture, known, mean=True)
            psds = [psd[0] for psd in found.psds]
            return Beginning(psds, self.state(found.space), latents=list(found.latents))

        return start

    # Training, see `Trainable`

    @property
    def front(self) -> Front:
        """The STFT, rate and level of its mixtures."""
        return self.prior.front

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        return {}

    @property
    def kind(self) -> str:
        return type(self).__name__

    @property
    def unit(self) -> str:
        return "nats per frame"

    def segment_samples(self, n_frames: int) -> int:
        return (n_frames - 1) * self.prior.stft.hop_length

    @torch.no_grad()
    def observe(
        self, waves: Float[Tensor, "segment channel sample"], equaliser: Equaliser | None = None
    ) -> Complex[Tensor, "segment frame freq both"]:
        """The spectrogram of the microphones at unit level, and beyond these the amplitude of each source at first."""
        stft = self.prior.stft
        waves = waves.to(next(self.parameters()).dtype)
        x = stft(waves).movedim(1, -1)
        window = stft.window
        levels = torch.stack([spectrogram_level(power(one).mean(-1), window, self.sample_rate) for one in x])
        mixture = Mixture.of(list(x), levels, [0] * len(x), waves=list(waves))
        if self.settings.start == "none":
            return mixture.spectrogram
        start = self.start(mixture, self.settings.n_sources)
        return torch.cat([mixture.spectrogram, start.sqrt().movedim(0, -1).to(mixture.spectrogram.dtype)], -1)

    def _read(self, observed: Complex[Tensor, "segment frame freq both"]) -> tuple[Mixture, Tensor]:
        """What `observe` put together."""
        n = self.settings.n_sources if self.settings.start == "iva" else 0
        x = observed[..., : observed.shape[-1] - n]
        ones = x.real.new_ones(len(x))
        mixture = Mixture.of(list(x), ones, [0] * len(x))
        if n:
            return mixture, observed[..., -n:].real.square().movedim(-1, 0)
        return mixture, self.start(mixture, self.settings.n_sources)

    def calibrate(self, observed: Tensor) -> None:
        if self.settings.train_prior and self.prior.origin is None:
            mixture, _ = self._read(observed)
            self.prior.vae.calibrate(mixture.power.flatten(0, 1))

    def _terms(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(x_t | z) and the KL, `[segment, frame]`."""
        mixture, start = self._read(observed)
        found = self.infer(mixture, start)
        nll = (
            self.through(found.space, found.space.nll, found.psds)
            + math.log(math.pi) * mixture.spectrogram[0, 0].numel()
        )
        return nll, kl_divergence(found.posterior, self.prior.vae.prior(found.latents)).sum(0)

    def loss(self, observed: Tensor, condition: Tensor | None, objective: Objective) -> Float[Tensor, 2]:
        nll, kl = self._terms(observed)
        return torch.stack([(nll + objective.beta * kl).mean(), kl.mean()])

    def elbo(self, observed: Tensor, condition: Tensor | None) -> ELBO:
        nll, kl = self._terms(observed)
        return ELBO(-nll.flatten(), kl.flatten())

    def check(self, settings: TrainingSettings) -> None:
        if settings.precision.endswith("-mixed"):
            raise TrainingError(f"precision {settings.precision} is not for a separator, whose space needs 32-true")
        for name, plain in (
            ("free_bits", 0.0),
            ("importance_samples", 1),
            ("reduction", "sum"),
            ("scheduled_sampling", ()),
            ("equaliser_db", 0.0),
        ):
            if getattr(settings, name) != plain:
                raise TrainingError(f"{name} is not for a separator that is learnt from mixtures: leave it out")

    def warning(self, observed: Tensor, condition: Tensor | None) -> str | None:
        mixture, start = self._read(observed)
        found = self.infer(mixture, start, mean=True)
        powers = found.space.powers(found.psds, range(len(observed)))[:-1]
        if len(powers) < 2:
            return None
        energy = powers.sum((-2, -1)).clamp(min=1e-30)  # [source, segment]
        faint = 10 * (energy.amin(0) / energy.amax(0)).log10() < _COLLAPSED_DB
        logs = torch.stack([psd[0] for psd in found.psds[:-1]]).log()
        unit = (logs - logs.mean(2, keepdim=True)).flatten(2)  # less what is the same in all frames
        unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        alike = torch.einsum("irk,jrk->rij", unit, unit)
        i, j = torch.triu_indices(len(powers), len(powers), 1)
        same = (alike[:, i, j] > _ALIKE).any(-1)
        if float((faint | same).double().mean()) <= 0.5:
            return None
        return (
            f"in {int((faint | same).sum())} of {len(energy)} mixtures a source has next to nothing, or the same as "
            "another one: sources have collapsed into one; train for longer, with more training.beta_cycles, or from "
            "another seed"
        )

    def config(self) -> dict[str, Any]:
        sizes = asdict(self.settings)
        origin = self.prior.origin
        begun = {} if origin is None else {"prior_origin": {"name": origin.name, "sha256": origin.sha256}}
        return {"separator": {**sizes, "dilations": list(sizes["dilations"])}, "prior": self.prior.config(), **begun}

    @torch.no_grad()
    def illustrate(self, wave: Float[Tensor, "channel sample"], condition: Tensor | None) -> Illustration:
        observed = self.observe(wave.unsqueeze(0))
        mixture, start = self._read(observed)
        found = self.infer(mixture, start, mean=True)
        images = found.space.images(found.psds, [0])[:, 0]
        names = [*(f"source {n + 1}" for n in range(len(images) - 1)), "noise"]
        waves = self.prior.stft.inverse(images[..., 0], wave.shape[-1])
        q, p = found.posterior, self.prior.vae.prior(found.latents)
        kl = kl_divergence(Normal(q.mean, q.stddev), Normal(p.mean, p.stddev))[0]
        return Illustration(
            {"mixture": mixture.power[0], **{n: power(x).mean(-1) for n, x in zip(names, images, strict=True)}},
            {"mixture": wave[0], **dict(zip(names, waves, strict=True))},
            kl.mean((0, 1)),
        )

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        if card is None and self.origin is not None:
            card = self.origin.card
        short = f"# An audiovae separator\n\n{self.sample_rate} Hz, {self.kind}. Nothing else was recorded.\n"
        saved.write(folder, self.config(), self.state_dict(), short if card is None else card)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "rooms-16k-neural", device: str | torch.device | None = None
    ) -> NeuralSeparator:
        """Load a shipped separator by name, or a saved one from its folder, ready for inference.

        Raises:
            ModelError: no such model, or its files are damaged, incomplete or from a newer version.
        """
        folder = saved.find(name_or_path, shelf="separators")
        config, tensors = saved.read(folder)
        if "separator" not in config:
            raise ModelError(folder, "is a prior, and no separator that is learnt from mixtures")
        try:
            check_sizes([config["separator"], config["prior"]["vae"], config["prior"]["stft"]], tensors)
            sizes = dict(config["separator"])
            settings = NeuralSettings(**{**sizes, "dilations": tuple(sizes["dilations"])})
            prior = AudioVAE.from_config(config["prior"])
            if "prior_origin" in config:
                prior.origin = saved.Origin(**config["prior_origin"], card=None)
            model = build_separator(prior, settings)
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, AudiovaeError) as error:
            raise saved.misfit(folder, error) from error
        if not isinstance(model, cls):
            raise ModelError(folder, f"is a {model.kind}, and no {cls.__name__}")
        model.origin = saved.Origin(folder.resolve().name, config["config_sha256"], saved.read_card(folder))
        return model.to(device or "cpu").eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class NeuralFastFCA(NeuralSeparator):
    """Covariances that one matrix diagonalises, see `JointDiagonal`, which iterative source steering fits.

    Reference: Y. Bando, Y. Masuyama, A. Nugraha, K. Yoshii, "Neural fast full-rank spatial covariance analysis for
        blind source separation", EUSIPCO 2023.
    """

    def space(self, mixture: Mixture, covariances: Any, n_sources: int) -> JointDiagonal:
        return JointDiagonal(mixture, covariances, n_sources, per_frequency=True, white=(n_sources - 1,), update="iss")

    def update(self, space: Spatial, psds: list[Tensor]) -> None:
        space.update(psds)

    def through(self, space: Spatial, what: Callable[[Sequence[Tensor]], Tensor], psds: list[Tensor]) -> Tensor:
        return what(psds)

    def state(self, space: Spatial) -> Any:
        assert isinstance(space, JointDiagonal)
        return space.q, space.gains


class NeuralFCA(NeuralSeparator):
    """Any covariances, see `FullRank`, by expectation maximisation; in training all that has matrices of every bin is
    done again for its gradient, update by update, instead of keeping what that needs.
    """

    def space(self, mixture: Mixture, covariances: Covariances | None, n_sources: int) -> FullRank:
        return FullRank(mixture, covariances, n_sources, white=(n_sources - 1,))

    def update(self, space: Spatial, psds: list[Tensor]) -> None:
        assert isinstance(space, FullRank)

        def updated(psds: Sequence[Tensor]) -> Tensor:
            space.update(psds)
            return space.h

        space.h = self.through(space, updated, psds)

    def through(self, space: Spatial, what: Callable[[Sequence[Tensor]], Tensor], psds: list[Tensor]) -> Tensor:
        assert isinstance(space, FullRank)
        if not any(psd.requires_grad for psd in psds):
            return what(psds)

        def again(h: Tensor, *psds: Tensor) -> Tensor:
            space.h = h
            return what(psds)

        found: Tensor = checkpoint(again, space.h, *psds, use_reentrant=False)
        return found

    def state(self, space: Spatial) -> Any:
        assert isinstance(space, FullRank)
        return space.h


def _posterior(first: Distribution | None, changes: Sequence[Tensor]) -> Independent:
    """q(z_n | x) of all sources side by side.

    Args:
        first: what the prior's encoder says; None: the network says all.
        changes: what each stage adds to that.
    """
    together = total(changes)
    if first is None:
        found = normal_from_outputs(together)
        return normal(found.mean.clamp(-_FARTHEST, _FARTHEST), found.stddev)
    change, spread = together.chunk(2, dim=-1)
    mean = (first.mean + change).clamp(-_FARTHEST, _FARTHEST)
    return normal(mean, first.stddev * spread.clamp(-_WIDEST, _WIDEST).exp())


def build_separator(prior: AudioVAE, settings: NeuralSettings) -> NeuralSeparator:
    """The separator of some type, untrained."""
    return {"NeuralFastFCA": NeuralFastFCA, "NeuralFCA": NeuralFCA}[settings.type](prior, settings)
