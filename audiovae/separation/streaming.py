"""Enhancement of a wave while it is heard: samples in, speech out, a few hundredths of a second later."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy.special import exp1
from torch import Tensor

from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.prior import AudioVAE
from audiovae.separation.stream_noise import QuietNoise, Spectrum
from audiovae.separation.stream_rates import StreamingResampler
from audiovae.separation.stream_speech import LiveLevel, LiveSpeech
from audiovae.waves import Array, tensor_of

StreamMethodName = Literal["fast"]
MOST_LOOKAHEAD = 8  # frames

WINDOW_FRAMES = 4  # in which latents still move, at least
STEPS = 3  # of theirs with every frame
LEAST_OVER_NOISE = 4.0  # of the level over the noise, as powers: at first, noise may be all that was heard
ABSENT, LEAST_GAIN = 0.3, 0.05
LEAST, LARGEST = 1e-24, 1e30  # powers


def stream(
    prior: AudioVAE,
    method: StreamMethodName = "fast",
    sample_rate: int | None = None,
    n_channels: int | None = None,
    lookahead: int = 1,
    level: float | None = None,
) -> Stream:
    """Speech out of a noisy wave that arrives in blocks.

    Args:
        prior: a causal one of speech, such as speech-16k-live, on the CPU.
        method: latents by Fisher scoring, a few steps with every frame.
        sample_rate: of the wave, in Hz; default the prior's. Others pass a short filter on their way in and out, and
            what lies above the prior's band is left out.
        n_channels: of waves `[channel, sample]`, which share one gain; None: `[sample]`.
        lookahead: frames after its own that a frame waits for; each adds a hop to the latency.
        level: RMS of the active frames, see `audiovae.level`, where it is known; else it is followed from the first
            frame on.

    Raises:
        ValueError: an unknown method, or a number out of its range.
        AudiovaeError: a prior that cannot be used so.
    """
    if method not in get_args(StreamMethodName):
        raise ValueError(f"method must be one of {', '.join(get_args(StreamMethodName))}, got {method!r}")
    return Stream(prior, sample_rate or prior.sample_rate, n_channels, lookahead, level)


class Stream:
    """A noisy wave on its way: see `stream`.

    `push` returns as many samples as it is given: the speech of those `latency` samples before, zeros at first. What
    comes out does not depend on how the wave is cut, and nothing that is kept grows.

    Attributes:
        sample_rate: of the wave, in Hz.
        latency: samples from what goes in to its speech: the window, the look-ahead, and at rates that are not the
            prior's two filters.
    """

    def __init__(
        self, prior: AudioVAE, sample_rate: int, n_channels: int | None, lookahead: int, level: float | None
    ) -> None:
        if sample_rate < 1 or (n_channels is not None and n_channels < 1):
            raise ValueError(f"sample_rate and n_channels must be positive, got {sample_rate} and {n_channels}")
        self.sample_rate = sample_rate
        self._shape: tuple[int, ...] = () if n_channels is None else (n_channels,)
        n = n_channels or 1
        self._frames = _Frames(prior, n, lookahead, level)
        self._way_in: StreamingResampler | None = None
        self._way_out: StreamingResampler | None = None
        self.latency = self._frames.latency
        if sample_rate != prior.sample_rate:
            self._way_in = StreamingResampler(sample_rate, prior.sample_rate, n)
            self._way_out = StreamingResampler(prior.sample_rate, sample_rate, n)
            seconds = self._frames.latency / prior.sample_rate + self._way_in.delay + self._way_out.delay
            self.latency = math.ceil(seconds * sample_rate)
        self._ready = np.zeros((n, self.latency), np.float32)

    def push(self, block: Float[Array, "*channel _"]) -> Float[Array, "*channel _"]:
        """Take the next samples, any number of them, and return as many.

        Raises:
            ValueError: a sample that is NaN or infinite, or another number of channels. The stream goes on as if the
                block had not been.
        """
        if block.shape[:-1] != self._shape:
            shape = [*map(str, self._shape), "sample"]
            raise ValueError(f"the stream takes blocks of shape [{', '.join(shape)}], got {list(block.shape)}")
        heard = np.atleast_2d(tensor_of(block).numpy(force=True)).astype(np.float32)
        if self._way_in is not None:
            heard = self._way_in.push(heard).astype(np.float32)
        speech = self._frames.push(heard)
        if self._way_out is not None:
            speech = self._way_out.push(speech).astype(np.float32)
        ready = np.concatenate([self._ready, speech], axis=1)
        self._ready = ready[:, block.shape[-1] :].copy()
        taken = ready[:, : block.shape[-1]].reshape(block.shape)
        return torch.from_numpy(taken).to(block) if isinstance(block, Tensor) else taken

    def flush(self) -> Float32[np.ndarray, "*channel _"]:
        """End the wave: the speech of its last `latency` samples."""
        return self.push(np.zeros((*self._shape, self.latency), np.float32))


class _Frames:
    """The same at the prior's rate, hop by hop.

    Args:
        prior: of the speech.
        n_channels: of the wave.
        lookahead: frames.
        level: RMS, or None.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, prior: AudioVAE, n_channels: int, lookahead: int, level: float | None) -> None:
        if not 0 <= lookahead <= MOST_LOOKAHEAD:
            raise ValueError(f"lookahead must be from 0 to {MOST_LOOKAHEAD} frames, got {lookahead}")
        if level is not None and not 0 < level < math.inf:
            raise ValueError(f"level must be positive, got {level}")
        stft, self._lookahead = prior.stft, lookahead
        n_fft, hop = stft.n_fft, stft.hop_length
        self._window, self._hop = stft.window.numpy(), hop
        if n_fft % hop:
            raise ValueError(f"a stream needs a window of whole hops, got n_fft {n_fft} and hop_length {hop}")
        self._speech = LiveSpeech(prior, max(WINDOW_FRAMES, lookahead + 1), STEPS)
        self._noise = QuietNoise(stft.n_freqs, hop / prior.sample_rate)
        self._level, self._given = LiveLevel(prior), level
        self._heard, self._made = np.zeros((2, n_channels, n_fft), np.float32)
        self._spectra = np.zeros((lookahead + 1, n_channels, stft.n_freqs), np.complex64)
        self._powers = np.zeros((lookahead + 1, stft.n_freqs), np.float32)
        self._pending = np.zeros((n_channels, 0), np.float32)
        self._n_heard = 0  # hops, of the first window at most
        self._n_early = n_fft // hop - 1 + lookahead  # hops that would stand before the wave
        squares = np.square(self._window).reshape(-1, hop)
        self._shares = squares[::-1].sum(1).cumsum() / squares.sum()  # of a window that so many hops have filled
        self._envelope = squares.sum(0)
        self.latency = n_fft + lookahead * hop

    def push(self, block: Float32[np.ndarray, "channel _"]) -> Float32[np.ndarray, "channel _"]:
        """Take the next samples and return the speech of the hops that they complete."""
        hop = self._hop
        pending = np.concatenate([self._pending, block], axis=1)
        n_hops = pending.shape[1] // hop
        done = [self._step(pending[:, i * hop : (i + 1) * hop]) for i in range(n_hops)]
        n_early = min(self._n_early, n_hops)
        self._pending, self._n_early = pending[:, n_hops * hop :].copy(), self._n_early - n_early
        return np.concatenate([block[:, :0], *done[n_early:]], axis=1)

    def _step(self, samples: Float32[np.ndarray, "channel hop"]) -> Float32[np.ndarray, "channel hop"]:
        """One hop of what is heard; the hop of speech that begins a window and the look-ahead before its end."""
        n_kept = len(self._window) - self._hop
        self._heard = np.concatenate([self._heard[:, self._hop :], samples], axis=1)
        spectrum = np.fft.rfft(self._heard * self._window)
        self._n_heard = min(self._n_heard + 1, len(self._shares))
        heard = (np.square(spectrum.real) + np.square(spectrum.imag)).mean(0) / self._shares[self._n_heard - 1]
        self._spectra = np.concatenate([self._spectra[1:], spectrum[None]])
        self._powers = np.concatenate([self._powers[1:], heard.clip(max=LARGEST)[None]])
        image = np.fft.irfft(self._gain(self._powers[-1]) * self._spectra[0], len(self._window)) * self._window
        self._made = np.concatenate([self._made[:, self._hop :] + image[:, :n_kept], image[:, n_kept:]], axis=1)
        return self._made[:, : self._hop] / self._envelope

    def _gain(self, heard: Spectrum) -> Spectrum:
        """Of the frame that has seen its look-ahead."""
        self._noise.push(heard)
        noise = self._noise.spectrum
        level = self._level.push(heard) if self._given is None else self._given**2
        level = max(level, LEAST_OVER_NOISE * self._level.mean_square(noise), LEAST)
        noise = np.maximum(noise, np.float32(VARIANCE_FLOOR * level))
        self._speech.push(heard, noise, level)
        psds = self._speech.infer(noise, level)
        if len(psds) <= self._lookahead:
            return np.zeros_like(noise)
        speech, loud = psds[-1 - self._lookahead], self._powers[0]
        variance = speech + noise
        self._noise.update(noise / variance, loud / variance)
        self._speech.update(speech / variance, loud / variance)
        return gain(speech, np.maximum(self._noise.spectrum, np.float32(VARIANCE_FLOOR * level)), loud)


def gain(speech: Spectrum, noise: Spectrum, heard: Spectrum) -> Spectrum:
    """What is heard of the speech: the mean of the Wiener gain and of that which keeps the logarithm of the amplitude,
    where speech may be absent.

    Reference: I. Cohen, B. Berdugo, "Speech enhancement for non-stationary noise environments", Signal Processing
        81(11), 2001 (OM-LSA).
    """
    prior_snr = speech / noise
    wiener = speech / (speech + noise)
    v = (wiener * (heard / noise)).clip(1e-6, 500.0)
    log_amplitude = (wiener * np.exp(exp1(v) / 2)).clip(max=1.0)
    presence = 1 / (1 + ABSENT / (1 - ABSENT) * (1 + prior_snr) * np.exp(-v))
    return (wiener + log_amplitude**presence * LEAST_GAIN ** (1 - presence)) / 2
