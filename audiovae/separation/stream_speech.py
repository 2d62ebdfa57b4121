"""Speech of a stream: latents of the last few frames, which still move."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32

from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.errors import AudiovaeError
from audiovae.level import ACTIVE_RANGE_DB, LOWEST_HZ
from audiovae.models import DynamicVAE
from audiovae.networks.recurrence import LARGEST_SCALE, SMALLEST_SCALE
from audiovae.prior import AudioVAE
from audiovae.separation.inference.energy import LARGEST_LOG_VARIANCE
from audiovae.separation.methods import COLOUR_DEVIATION, PRIOR_WEIGHT
from audiovae.separation.stream_network import CausalNetwork
from audiovae.separation.stream_noise import BandLevels, Spectrum

N_BANDS, STIFFNESS, COLOUR_SECONDS = 20, 360.0, 1.6
OVERSUBTRACTION, SMALLEST_FIRST_GAIN = 3.0, 0.1  # of the first guess, see `quiet_start`
STEP, MOMENTUM, TRUST, MEMORY = 0.4, 0.6, 0.6, 0.5  # see `PointEstimate`; of longer steps rounding grows


class LiveLevel:
    """The level of a stream: RMS of its active frames above 50 Hz, see `audiovae.level`, as far as it was heard.

    Args:
        prior: whose spectra it is given.
        forgetting_seconds: after which a frame counts e times less.
    """

    def __init__(self, prior: AudioVAE, forgetting_seconds: float = 16.0) -> None:
        stft, rate = prior.stft, prior.sample_rate
        weight = 2.0 / (stft.n_fft * float(stft.window.square().sum()))
        self.counts = np.full(stft.n_freqs, weight, np.float32)
        self.counts[: max(1, math.ceil(LOWEST_HZ * stft.n_fft / rate))] = 0.0
        self.forgetting = math.exp(-stft.hop_length / rate / forgetting_seconds)
        self._loudest = self._sum = self._n = 0.0

    def mean_square(self, power: Spectrum) -> float:
        """Of the wave under a frame."""
        return float(power @ self.counts)

    def push(self, power: Spectrum) -> float:
        """The mean square of the active frames so far, after one more."""
        value, least = self.mean_square(power), 10 ** (-ACTIVE_RANGE_DB / 10)
        self._loudest = max(self.forgetting * self._loudest, value)
        if self._sum < least * self._loudest * self._n:  # all before was silence beside this
            self._sum = self._n = 0.0
        if value >= least * self._loudest:
            self._sum, self._n = self.forgetting * self._sum + value, self.forgetting * self._n + 1
        return self._sum / self._n


class LiveSpeech:
    """lambda_ft = level_t^2 c_f v_f(z_t) of a causal prior, in a window of the last few frames.

    A new frame begins at the encoder's view of a first guess; with every frame all latents of the window take a few
    steps of Fisher scoring with momentum, as of `PointEstimate`, down the energy of `LatentEnergy`; those that leave
    the window stay as they are: what the next ones follow.

    Args:
        prior: a `DynamicVAE` that is causal.
        n_frames: of the window.
        n_steps: with every frame.

    Raises:
        AudiovaeError: another prior.
    """

    def __init__(self, prior: AudioVAE, n_frames: int, n_steps: int) -> None:
        vae = prior.vae
        is_causal = isinstance(vae, DynamicVAE) and not vae.lookahead
        if not isinstance(vae, DynamicVAE) or not is_causal or vae.conditions.labels or not vae.is_density:
            raise AudiovaeError(
                "a stream needs a DynamicVAE that sees no future (causal: true), without labels; speech-16k-live is one"
            )
        self._n_frames, self._n_steps = n_frames, n_steps
        self._encoder, self._decoder = CausalNetwork(vae.encoder), CausalNetwork(vae.decoder)
        self._transition = CausalNetwork(vae.transition)
        self._bias = vae.observation.bias.detach().float().numpy()
        self._mean, self._std = (part.float().numpy() for part in vae.log_power.buffers())
        self._random = np.random.default_rng(0)
        self._encoded, self._decoded = self._encoder.start(), self._decoder.start()
        self._moved, self._last = self._transition.start(), np.zeros((1, vae.latent_dim), np.float32)
        self._latents, self._move, self._curvature = np.zeros((3, 0, vae.latent_dim), np.float32)
        self._power = np.zeros((0, vae.n_freqs), np.float32)
        forgetting = math.exp(-prior.stft.hop_length / prior.sample_rate / COLOUR_SECONDS)
        self._colour = BandLevels(vae.n_freqs, N_BANDS, COLOUR_DEVIATION, STIFFNESS, forgetting)
        self.update = self._colour.update

    def push(self, power: Spectrum, noise: Spectrum, mean_square: float) -> None:
        """Hear the next frame.

        Args:
            noise: its power.
            mean_square: the level, squared.
        """
        if len(self._latents) == self._n_frames:
            self._leave()
        gain = (1 - OVERSUBTRACTION * noise / np.maximum(power, noise)).clip(min=SMALLEST_FIRST_GAIN)
        guess = np.log(power * np.square(gain) / np.float32(mean_square) + VARIANCE_FLOOR)
        made = self._encoder.forward((guess[None] - self._mean) / self._std, self._encoded)
        self._encoded = self._encoder.after(made, 1)
        latents = made.outputs[:, : self._latents.shape[1]]
        self._latents = np.concatenate([self._latents, latents])
        self._move, self._curvature = (
            np.concatenate([part, np.zeros_like(latents)]) for part in (self._move, self._curvature)
        )
        self._power = np.concatenate([self._power, power[None]])

    def _leave(self) -> None:
        """The oldest frame leaves the window."""
        self._decoded = self._decoder.after(self._decoder.forward(self._latents[:1], self._decoded), 1)
        self._moved = self._transition.after(self._transition.forward(self._last, self._moved), 1)
        self._last = self._latents[:1]
        self._latents, self._move, self._curvature = self._latents[1:], self._move[1:], self._curvature[1:]
        self._power = self._power[1:]

    def infer(self, noise: Spectrum, mean_square: float) -> Float32[np.ndarray, "frame freq"]:
        """The power of the speech in the frames of the window, the last one the newest."""
        scale = self._colour.factor * np.float32(mean_square)
        for step in range(self._n_steps):
            self._descend(noise, scale, with_curvature=step == 0)
        return self._variance(self._decoder.forward(self._latents, self._decoded).outputs) * scale

    def _variance(self, outputs: Float32[np.ndarray, "frame freq"]) -> Float32[np.ndarray, "frame freq"]:
        return np.exp((outputs + self._bias).clip(math.log(VARIANCE_FLOOR), LARGEST_LOG_VARIANCE))

    def _descend(self, noise: Spectrum, scale: Spectrum, with_curvature: bool) -> None:
        z, weight = self._latents, np.float32(PRIOR_WEIGHT)
        decoded = self._decoder.forward(z, self._decoded)
        moved = self._transition.forward(np.concatenate([self._last, z[:-1]]), self._moved)
        loc, spread = np.split(moved.outputs, 2, axis=1)
        sigmoid = 1 / (1 + np.exp(-spread.clip(-80, 80)))
        deviation = np.float32(LARGEST_SCALE) * sigmoid + np.float32(SMALLEST_SCALE)
        variance = self._variance(decoded.outputs) * scale
        share = variance / (variance + noise)

        if with_curvature:
            signs = self._random.integers(0, 2, share.shape, np.int8) * np.float32(2) - np.float32(1)
            found = np.square(self._decoder.backward(share * signs, decoded)) + weight / np.square(deviation)
            known = MEMORY * self._curvature + (1 - MEMORY) * found
            self._curvature = np.where(self._curvature > 0, known, found)

        slope = self._decoder.backward(share * (1 - self._power / (variance + noise)), decoded)
        away = (z - loc) / deviation
        slope += weight * away / deviation
        of_spread = (1 - np.square(away)) / deviation * (np.float32(LARGEST_SCALE) * sigmoid * (1 - sigmoid))
        of_moves = weight * np.concatenate([-away / deviation, of_spread], axis=1)
        slope[:-1] += self._transition.backward(of_moves, moved)[1:]
        self._move = MOMENTUM * self._move - (slope / self._curvature).clip(-TRUST, TRUST)
        self._latents = z + STEP * self._move
