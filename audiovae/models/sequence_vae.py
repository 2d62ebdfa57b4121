"""One latent vector for a whole sequence, such as a word, decoded along its time."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from audiovae.errors import LatentError
from audiovae.models.latents import latent_family, standard_normal
from audiovae.models.sound_vae import SoundVAE
from audiovae.models.vae import EVERYTHING, Factor, Inference, in_every_frame
from audiovae.networks.bins import ToBins
from audiovae.networks.mlp import start_small
from audiovae.networks.temporal import TemporalBlock
from audiovae.settings import SequenceVAESettings

_RESOLUTIONS = 4  # of time, each half of the one before


class SequenceVAE(SoundVAE):
    """p(x, v | y) = p(v) prod_t p(x_t | v, y, t) and q(v | x_{1:T}, y): what is generated has an order in time.

    All frames are decoded at once, from an eighth of their number upwards, by temporal convolutions that know y and, at
    the last resolution, their place in time. A sequence shorter than `settings.n_frames` is seen as followed by mean
    spectra.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.
    """

    def __init__(self, n_freqs: int, settings: SequenceVAESettings = SequenceVAESettings()) -> None:
        super().__init__(n_freqs, settings, latent_family(settings), settings.labels)
        coarse, rest = divmod(settings.n_frames, 2 ** (_RESOLUTIONS - 1))
        if rest or coarse < 1 or settings.blocks < 1 or settings.hidden < 1:
            raise ValueError(
                f"n_frames must be a positive multiple of {2 ** (_RESOLUTIONS - 1)}, blocks and hidden positive, got "
                f"{settings.n_frames}, {settings.blocks} and {settings.hidden}"
            )
        self.longest: int = settings.n_frames
        self.context = self.lookahead = EVERYTHING
        width, y = settings.width, self.conditions.size
        self._map = (coarse, width)

        def stages() -> nn.ModuleList:
            blocks = [
                [TemporalBlock(width, settings.kernel_size, n_labels=y) for _ in range(settings.blocks)]
                for _ in range(_RESOLUTIONS)
            ]
            return nn.ModuleList(nn.ModuleList(stage) for stage in blocks)

        self.to_features = nn.Linear(n_freqs, width)
        self.encoder = stages()
        self.to_latents = nn.Sequential(
            nn.Linear(coarse * width, settings.hidden), nn.SiLU(), nn.Linear(settings.hidden, self.latents.n_outputs)
        )
        self.from_latents = nn.Sequential(
            nn.Linear(self.latent_dim + y, settings.hidden), nn.SiLU(), nn.Linear(settings.hidden, coarse * width)
        )
        self.decoder = stages()
        self.place = nn.Parameter(torch.zeros(settings.n_frames, width))
        self.to_spectrum = ToBins(width, self.observation.n_outputs)
        start_small(cast(nn.Linear, self.to_latents[-1]), self.to_spectrum)

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        *batch, n_frames, _ = power.shape
        self._check_length(n_frames)
        x = functional.pad(self.log_power(power), (0, 0, 0, self.longest - n_frames))
        y = self.conditions.of_sequence(condition, batch, x)
        hidden = self.to_features(x)
        for i, stage in enumerate(cast(list[nn.ModuleList], self.encoder)):
            hidden = hidden.unflatten(-2, (-1, 2)).mean(-2) if i else hidden
            for block in stage:
                hidden = block(hidden, y)
        posterior = self.latents.from_outputs(self.to_latents(hidden.flatten(-2)).to(power.dtype))
        v = self.latents.centre(posterior) if mean else posterior.rsample()
        return Inference(in_every_frame(v, n_frames), (Factor(posterior, self.latents.prior(v), per_frame=False),))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        return standard_normal(latents[..., :0])  # no latents of single frames

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        *batch, n_frames, _ = latents.shape
        self._check_length(n_frames)
        v = self.latents.features(latents[..., 0, :])  # the same in every frame
        y = self.conditions.of_sequence(condition, batch, latents)
        hidden = self.from_latents(v if y is None else torch.cat([v, y.squeeze(-2)], dim=-1)).unflatten(-1, self._map)
        for i, stage in enumerate(cast(list[nn.ModuleList], self.decoder)):
            hidden = hidden.repeat_interleave(2, dim=-2) if i else hidden
            hidden = hidden + self.place if i == _RESOLUTIONS - 1 else hidden
            for block in stage:
                hidden = block(hidden, y)
        return cast(Tensor, self.to_spectrum(hidden[..., :n_frames, :]))

    def mean_path(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch frame latent"], Tensor | None]:
        return self.infer(power, condition, mean=True).latents, None

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        self._check_length(n_frames)
        v = self.latents.prior(self.log_power.mean.new_zeros(self.latent_dim)).sample()
        return in_every_frame(v, n_frames)

    def _check_length(self, n_frames: int) -> None:
        if n_frames > self.longest:
            raise LatentError(f"this model has sequences of at most {self.longest} frames, got {n_frames}")
