"""Speech of a stream: latents of the last few frames, which still move."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.errors import AudiovaeError
from audiovae.level import ACTIVE_RANGE_DB, LOWEST_HZ
from audiovae.models import DynamicVAE
from audiovae.prior import AudioVAE
from audiovae.separation.inference.energy import clamped_variance
from audiovae.separation.methods import COLOUR_DEVIATION, PRIOR_WEIGHT
from audiovae.separation.sources.deep import check_prior
from audiovae.separation.stream_noise import BandLevels

_N_BANDS, _STIFFNESS, _COLOUR_SECONDS = 20, 360.0, 1.6
_OVERSUBTRACTION, _SMALLEST_FIRST_GAIN = 3.0, 0.1  # of the first guess, see `quiet_start`
_STEP, _MOMENTUM, _TRUST, _MEMORY = 0.5, 0.6, 0.6, 0.5  # see `PointEstimate`


class LiveLevel:
    """The level of a stream: RMS of its active frames above 50 Hz, see `audiovae.level`, as far as it was heard.

    Args:
        prior: whose spectra it is given.
        forgetting_seconds: after which a frame counts e times less.
    """

    def __init__(self, prior: AudioVAE, forgetting_seconds: float = 16.0) -> None:
        stft, rate = prior.stft, prior.sample_rate
        self._counts = torch.full((stft.n_freqs,), 2.0 / (stft.n_fft * float(stft.window.square().sum())))
        self._counts[: max(1, math.ceil(LOWEST_HZ * stft.n_fft / rate))] = 0.0
        self._forgetting = math.exp(-stft.hop_length / rate / forgetting_seconds)
        self._loudest = self._sum = self._n = 0.0

    def mean_square(self, power: Float[Tensor, " freq"]) -> float:
        """Of the wave under a frame."""
        return float(power @ self._counts)

    def push(self, power: Float[Tensor, " freq"]) -> float:
        """The mean square of the active frames so far, after one more."""
        value, least = self.mean_square(power), 10 ** (-ACTIVE_RANGE_DB / 10)
        self._loudest = max(self._forgetting * self._loudest, value)
        if self._sum < least * self._loudest * self._n:  # all before was silence beside this
            self._sum = self._n = 0.0
        if value >= least * self._loudest:
            self._sum, self._n = self._forgetting * self._sum + value, self._forgetting * self._n + 1
        return self._sum / self._n


class LiveSpeech:
    """lambda_ft = level_t^2 c_f v_f(z_t) of a causal prior, in a window of the last few frames.

    A new frame begins at the encoder's view of a first guess; with every frame all latents of the window take a few
    steps of Fisher scoring (`PointEstimate`), and those that leave the window stay as they are: what the next ones
    follow.

    Args:
        prior: a `DynamicVAE` that is causal.
        n_frames: of the window.
        n_steps: with every frame.

    Raises:
        AudiovaeError: another prior.
    """

    def __init__(self, prior: AudioVAE, n_frames: int, n_steps: int) -> None:
        check_prior(prior)
        vae = prior.vae
        if not isinstance(vae, DynamicVAE) or vae.lookahead or vae.conditions.labels:
            raise AudiovaeError(
                "a stream needs a DynamicVAE that sees no future (causal) and has no labels; speech-16k-live is one"
            )
        self._vae, self._n_frames, self._n_steps = vae, n_frames, n_steps
        self._random = torch.Generator().manual_seed(0)
        self._encoded: Tensor | None = None
        self._before: tuple[Tensor, ...] | None = None
        none = torch.zeros(0, vae.latent_dim)
        self._latents, self._move, self._curvature = none, none, none
        self._power = torch.zeros(0, vae.n_freqs)
        forgetting = math.exp(-prior.stft.hop_length / prior.sample_rate / _COLOUR_SECONDS)
        self._colour = BandLevels(_N_BANDS, COLOUR_DEVIATION, _STIFFNESS, forgetting, torch.zeros(vae.n_freqs))

    @torch.no_grad()
    def push(self, power: Float[Tensor, " freq"], noise: Float[Tensor, " freq"], mean_square: float) -> None:
        """Hear the next frame.

        Args:
            noise: its power.
            mean_square: the level, squared.
        """
        gain = (1 - _OVERSUBTRACTION * noise / power.clamp(min=1e-30)).clamp(min=_SMALLEST_FIRST_GAIN)
        guess = power * gain.square() / mean_square
        latents, self._encoded = self._vae.mean_path(guess.unsqueeze(0), state=self._encoded)
        if len(self._latents) == self._n_frames:
            _, _, self._before = self._vae.follow(self._latents[:1], self._before)
        nothing = torch.zeros_like(latents)
        kept = slice(1 - self._n_frames, None)
        self._latents = torch.cat([self._latents[kept], latents])
        self._move = torch.cat([self._move[kept], nothing])
        self._curvature = torch.cat([self._curvature[kept], nothing])
        self._power = torch.cat([self._power[kept], power.unsqueeze(0)])

    @torch.no_grad()
    def infer(self, noise: Float[Tensor, " freq"], mean_square: float) -> Float[Tensor, "frame freq"]:
        """The power of the speech in the frames of the window, the last one the newest."""
        scale = self._colour.factor * mean_square
        for step in range(self._n_steps):
            self._descend(noise, scale, with_curvature=step == 0)
        likelihood, _, _ = self._vae.follow(self._latents, self._before)
        return clamped_variance(likelihood) * scale

    def update(self, share: Float[Tensor, " freq"], excess: Float[Tensor, " freq"]) -> None:
        """Fit the colour: see `BandLevels`."""
        self._colour.update(share, excess)

    def _descend(self, noise: Tensor, scale: Tensor, with_curvature: bool) -> None:
        with torch.enable_grad():
            z = self._latents.requires_grad_()
            likelihood, prior, _ = self._vae.follow(z, self._before)
            variance, log_prior = clamped_variance(likelihood), prior.log_prob(z)
        precision = (noise + scale * variance.detach()).reciprocal()
        if with_curvature:
            signs = torch.randint(0, 2, variance.shape, generator=self._random).mul_(2).sub_(1)
            (projection,) = torch.autograd.grad(variance, z, scale * precision * signs, retain_graph=True)
            found = projection.square() + PRIOR_WEIGHT / prior.variance.detach()
            known = self._curvature > 0
            self._curvature = torch.where(known, torch.lerp(found, self._curvature, _MEMORY), found)
        of_speech = scale * precision * (1 - self._power * precision)
        of_prior = torch.full_like(log_prior, -PRIOR_WEIGHT)
        (slope,) = torch.autograd.grad([variance, log_prior], z, [of_speech, of_prior])
        self._move = _MOMENTUM * self._move - (slope / self._curvature).clamp(-_TRUST, _TRUST)
        self._latents = self._latents.detach() + _STEP * self._move
