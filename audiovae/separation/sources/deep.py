"""A source whose PSD is decoded from latents: a prior of clean sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.errors import AudiovaeError
from audiovae.models.latents import Gaussian
from audiovae.models.vae import EVERYTHING
from audiovae.prior import AudioVAE
from audiovae.separation.inference.e_step import Draws, EStep
from audiovae.separation.inference.energy import LatentEnergy, LatentPrior
from audiovae.separation.mixture import Mixture
from audiovae.separation.sources.factors import bands, log_normal_update
from audiovae.separation.sources.source import Finding, MakeSource, Source
from audiovae.separation.spatial.spatial import View, without_draws

_COLOUR_BANDS = 20
_AUDIBLE = (
    1e-6  # of the loudest frame's power: below, the prior has no speech so faint, and the colour would be bent to it
)


@dataclass(frozen=True)
class DeepSettings:
    """How a prior is used.

    Attributes:
        prior_weight: see `LatentEnergy`; the priors of gain and colour have the same.
        gain_deviation, colour_deviation: of log g_t, and of log c_f in each of 20 bands (powers); 0 fixes them to 1.
        mixed_precision: matrix products of the prior in bfloat16: faster where the processor has them, and not the same
            to the last digits.
    """

    prior_weight: float = 1.0
    gain_deviation: float = 0.0
    colour_deviation: float = 0.0
    mixed_precision: bool = False


class DeepSource(Source):
    """lambda_ft = g_t c_f v_f(z_t): latents z of a prior, a gain of every frame and a colour of the recording.

    Logarithms of gain and colour are normal around 0 at the mixture's level: free, they grow until this source takes
    the others. The colour is a microphone's, or a voice's that the prior has not heard; digital silence says nothing
    of it.

    Args:
        mixture: the recordings.
        first: a guess of lambda, from which the encoder takes the first latents.
        prior: one that has a PSD and needs no past x.
        e_step: how the latents are found.
        settings: how the prior is used.
        condition: labels, for a conditional prior: `[label]`, or `[candidate, label]` to choose from; default all.

    Raises:
        AudiovaeError: a prior that cannot be used so, with the reason.
    """

    def __init__(
        self,
        mixture: Mixture,
        first: Float[Tensor, "recording frame freq"],
        prior: AudioVAE,
        e_step: EStep,
        settings: DeepSettings = DeepSettings(),
        condition: Tensor | None = None,
    ) -> None:
        self._mixture, self._first, self._vae = mixture, first, prior.vae
        self._e_step, self._settings = e_step, settings
        self._gain = torch.ones_like(mixture.power[..., 0])  # g [recording, frame]
        self._log_colour = mixture.power.new_zeros(len(mixture.power), _COLOUR_BANDS)
        self._shares = bands(_COLOUR_BANDS, mixture.power)
        loudness = mixture.power.sum(-1)
        self._audible = loudness > _AUDIBLE * loudness.amax(-1, keepdim=True)
        self._draws: Draws | None = None
        self._given: Tensor | None = None
        self._speech: Tensor | None = None
        self._scale: Tensor | None = None
        conditions = prior.vae.conditions
        if condition is None and conditions.labels:
            condition = conditions.every().to(mixture.power)
        self.candidates: Sequence[Tensor] = [] if condition is None else list(torch.atleast_2d(condition))
        self.choose(self.candidates[0].expand(len(mixture.power), -1) if self.candidates else None)

    @classmethod
    def of(
        cls,
        prior: AudioVAE,
        e_step: Callable[[], EStep],
        settings: DeepSettings = DeepSettings(),
        condition: Tensor | None = None,
    ) -> MakeSource:
        """Makes such sources, each with a fresh E-step.

        Raises:
            AudiovaeError: a prior that cannot be used so, with the reason.
        """
        check_prior(prior)
        return lambda mixture, first: cls(mixture, first, prior, e_step(), settings, condition)

    def choose(self, condition: Float[Tensor, "recording label"] | None) -> None:
        """Say what the source is, before the first E-step."""
        self.condition = condition
        self._speech = None
        self._prior = LatentPrior(self._vae, self._mixture, condition, self._settings.mixed_precision)

    def begin(self, latents: Float[Tensor, "recording frame latent"]) -> None:
        """Begin with these latents, whatever the first guess of the PSD."""
        self._given, self._speech = latents, None

    def _beginning(self) -> Float[Tensor, "recording frame latent"]:
        return self._prior.encoded(self._first) if self._given is None else self._prior.masked(self._given)

    def infer(self, view: View, heat: float) -> None:
        if self._draws is None:
            self._e_step.begin(self._beginning(), self._vae.frames_are_independent)
        weight = heat * self._settings.prior_weight
        self._draws = self._e_step.draws(LatentEnergy(self._prior, self._mixture, view, self._factor(), weight))
        self._speech = self._prior.variance(self._draws.latents)

    def _factor(self) -> Float[Tensor, "recording frame freq"]:
        """What the prior's PSD is multiplied by, g c."""
        if self._scale is None:
            self._scale = self._gain.unsqueeze(-1) * (self._log_colour @ self._shares.mT).exp().unsqueeze(-2)
        return self._scale

    def psd(self) -> Float[Tensor, "sample recording frame freq"]:
        if self._speech is None:  # before the first E-step, for the others' sake
            self._speech = self._prior.variance(self._beginning()).unsqueeze(0)
        return self._speech * self._factor()

    def update(self, view: View, heat: float) -> None:
        """Gain, then colour, each with the others fixed.

        For a PSD that is r times as strong the nll is at most fall / r + rise r + constant, with fall = lambda y' H y
        and rise = lambda tr(Y^-1 H). The logarithm of the colour lies on straight lines between centres of bands; exp
        is convex, so that the bound of every frequency is at most its bands' with the shares that it has in them.
        """
        settings, weight = self._settings, heat * self._settings.prior_weight
        if settings.gain_deviation:
            fall, rise = (part.sum(-1) for part in self._slopes(view))
            log_gain = log_normal_update(self._gain.log(), fall, rise, weight / settings.gain_deviation**2)
            self._gain = torch.where(self._mixture.inside, log_gain.exp(), 1.0)
            self._scale = None
        if settings.colour_deviation:
            told = self._audible.unsqueeze(-1)
            fall, rise = ((told * part).sum(-2) @ self._shares for part in self._slopes(view))
            stiffness = weight / settings.colour_deviation**2
            self._log_colour = log_normal_update(self._log_colour, fall, rise, stiffness)
            self._scale = None

    def _slopes(self, view: View) -> tuple[Tensor, Tensor]:
        psd = self.psd()
        numerator, denominator = view.statistics(psd)
        return without_draws(psd * numerator), without_draws(psd * denominator)

    def log_prior(self) -> Float[Tensor, "recording frame"]:
        """Weighted log p(z_t | z_<t), without those of gain and colour, which hardly move."""
        assert self._draws is not None
        log_prob = self._prior.log_prob(self._draws.latents).mean(0)
        return self._settings.prior_weight * log_prob * self._mixture.inside

    def state(self, i: int, n_frames: int) -> Float[Tensor, " freq"] | None:
        """Nothing is handed on: the next block is heard with fresh ears."""
        return None

    def finding(self, i: int, n_frames: int) -> Finding:
        assert self._draws is not None
        draws, condition = self._draws, None if self.condition is None else self.condition[i]
        return Finding(
            latents=draws.latents[:, i, :n_frames].clone(),
            gain=self._gain[i, :n_frames].clone(),
            acceptance=None if draws.acceptance is None else float(draws.acceptance[i]),
            effective_samples=None if draws.effective_samples is None else float(draws.effective_samples[i]),
            condition=condition,
            labels={} if condition is None else self._vae.conditions.names(condition),
        )


def check_prior(prior: AudioVAE) -> None:
    """Raises AudiovaeError for a prior that gives no PSD from latents alone, with the reason."""
    vae, name = prior.vae, type(prior.vae).__name__
    if not vae.has_psd:
        raise AudiovaeError(f"{name} predicts labels: it has no PSD of speech")
    if vae.needs_past:
        raise AudiovaeError(
            f"{name} needs past clean speech, which a mixture does not have; use a prior that needs latents alone"
        )
    if vae.sees_phase:
        raise AudiovaeError(f"this {name} sees the phase of clean speech, which a mixture does not have; use another")
    if not vae.is_density:
        raise AudiovaeError(
            f"the likelihood {vars(vae.settings)['likelihood']!r} is no density of the STFT, so its PSD stands for no "
            "variance"
        )
    if vae.lookahead >= EVERYTHING:
        raise AudiovaeError(
            f"{name} has one latent vector for a whole sequence, and no recording is one; use a prior with latents of "
            "frames alone"
        )
    if not vae.has_prior:
        raise AudiovaeError(f"{name} has no prior on its latents, so nothing tells speech from noise")
    if not isinstance(vae.latents, Gaussian):
        raise AudiovaeError(
            f"{name} has {vae.latents.name} latents, which inference would move off the sphere or simplex where they "
            "lie; use a prior with gaussian latents"
        )
