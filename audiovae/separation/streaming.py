"""Enhancement of a wave while it is heard: samples in, speech out, a few hundredths of a second later."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae.prior import AudioVAE
from audiovae.separation.stream_noise import QuietNoise
from audiovae.separation.stream_rates import StreamingResampler
from audiovae.separation.stream_speech import LiveLevel, LiveSpeech
from audiovae.stft import power
from audiovae.waves import Array, like, tensor_of

StreamMethodName = Literal["fast"]
MOST_LOOKAHEAD = 8  # frames

_WINDOW_FRAMES = 4  # in which latents still move, at least
_STEPS = 3  # of theirs with every frame
_LEAST_OVER_NOISE = 4.0  # of the level over the noise, as powers: at first, noise may be all that was heard
_ABSENT, _LEAST_GAIN = 0.3, 0.05
_LARGEST_POWER = 1e30


def stream(
    prior: AudioVAE,
    method: StreamMethodName = "fast",
    sample_rate: int | None = None,
    n_channels: int | None = None,
    lookahead: int = 2,
    level: float | None = None,
) -> Stream:
    """Speech out of a noisy wave that arrives in blocks.

    Args:
        prior: a causal one of speech, such as speech-16k-live, on the CPU.
        method: latents by Fisher scoring, a few steps with every frame.
        sample_rate: of the wave, in Hz; default the prior's. Others pass a short filter on their way in and out, and what
            lies above the prior's band is left out.
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
        self.sample_rate, self._n_channels = sample_rate, n_channels
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
        self._ready = torch.zeros(n, self.latency)

    def push(self, block: Float[Array, "*channel _"]) -> Float[Array, "*channel _"]:
        """Take the next samples, any number of them, and return as many.

        Raises:
            ValueError: a sample that is NaN or infinite, or another number of channels. The stream goes on as if the
                block had not been.
        """
        expected = () if self._n_channels is None else (self._n_channels,)
        if block.shape[:-1] != expected:
            shape = [*map(str, expected), "sample"]
            raise ValueError(f"the stream takes blocks of shape [{', '.join(shape)}], got {list(block.shape)}")
        given = torch.atleast_2d(tensor_of(block).float())
        heard = given if self._way_in is None else torch.from_numpy(self._way_in.push(given.numpy(force=True))).float()
        speech = self._frames.push(heard)
        if self._way_out is not None:
            speech = torch.from_numpy(self._way_out.push(speech.numpy())).float()
        ready = torch.cat([self._ready, speech], dim=1)
        taken, self._ready = ready[:, : block.shape[-1]], ready[:, block.shape[-1] :].clone()
        return like(taken.reshape(block.shape).to(block) if isinstance(block, Tensor) else taken.reshape(block.shape), block)

    def flush(self) -> Float[Tensor, "*channel _"]:
        """End the wave: the speech of its last `latency` samples."""
        return self.push(torch.zeros(*(() if self._n_channels is None else (self._n_channels,)), self.latency))


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
        self._stft, self._lookahead = prior.stft, lookahead
        n_fft, hop = self._stft.n_fft, self._stft.hop_length
        if n_fft % hop:
            raise ValueError(f"a stream needs a window of whole hops, got n_fft {n_fft} and hop_length {hop}")
        self._speech = LiveSpeech(prior, max(_WINDOW_FRAMES, lookahead + 1), _STEPS)
        self._noise = QuietNoise(self._stft.n_freqs, hop / prior.sample_rate)
        self._level, self._given = LiveLevel(prior), level
        self._heard = torch.zeros(n_channels, n_fft)
        self._made = torch.zeros(n_channels, n_fft)
        self._spectra = torch.zeros(lookahead + 1, n_channels, self._stft.n_freqs, dtype=torch.complex64)
        self._powers = torch.zeros(lookahead + 1, self._stft.n_freqs)
        self._pending = torch.zeros(n_channels, 0)
        self._n_heard = 0  # hops, of the first window at most
        self._n_early = n_fft // hop - 1 + lookahead  # hops that would stand before the wave
        squares = self._stft.window.square()
        self._shares = squares.flip(0).reshape(-1, hop).sum(1).cumsum(0) / squares.sum()
        self._envelope = squares.reshape(-1, hop).sum(0)
        self.latency = n_fft + lookahead * hop

    @torch.no_grad()
    def push(self, block: Float[Tensor, "channel _"]) -> Float[Tensor, "channel _"]:
        """Take the next samples and return the speech of the hops that they complete."""
        hop = self._stft.hop_length
        pending = torch.cat([self._pending, block], dim=1)
        n_hops = pending.shape[1] // hop
        done = [self._step(pending[:, i * hop : (i + 1) * hop]) for i in range(n_hops)]
        n_early = min(self._n_early, n_hops)
        done, self._n_early = done[n_early:], self._n_early - n_early
        self._pending = pending[:, n_hops * hop :].clone()
        return torch.cat(done, dim=1) if done else block[:, :0]

    def _step(self, samples: Float[Tensor, "channel hop"]) -> Float[Tensor, "channel hop"]:
        """One hop of what is heard; the hop of speech that ends a window and the look-ahead before."""
        stft = self._stft
        self._heard = torch.cat([self._heard[:, stft.hop_length :], samples], dim=1)
        spectrum = torch.fft.rfft(self._heard * stft.window)
        self._n_heard = min(self._n_heard + 1, len(self._shares))
        heard = power(spectrum).mean(0).clamp(max=_LARGEST_POWER) / self._shares[self._n_heard - 1]
        self._spectra = torch.cat([self._spectra[1:], spectrum.unsqueeze(0)])
        self._powers = torch.cat([self._powers[1:], heard.unsqueeze(0)])
        image = self._gain(heard) * self._spectra[0]
        self._made[:, : stft.n_fft - stft.hop_length] = self._made[:, stft.hop_length :].clone()
        self._made[:, stft.n_fft - stft.hop_length :] = 0
        self._made += stft.windowed_inverse(image)
        return self._made[:, : stft.hop_length] / self._envelope

    def _gain(self, heard: Float[Tensor, " freq"]) -> Float[Tensor, " freq"]:
        """Of the frame that has seen its look-ahead."""
        self._noise.push(heard)
        noise = self._noise.spectrum
        level = self._level.push(heard) if self._given is None else self._given**2
        level = max(level, _LEAST_OVER_NOISE * self._level.mean_square(noise), _TINY)
        self._speech.push(heard, noise, level)
        psds = self._speech.infer(noise, level)
        if len(psds) <= self._lookahead:
            return torch.zeros_like(noise)
        speech, loud = psds[-1 - self._lookahead], self._powers[0]
        variance = speech + noise
        self._noise.update(noise / variance, loud / variance)
        self._speech.update(speech / variance, loud / variance)
        return gain(speech, self._noise.spectrum, loud)


_TINY = 1e-24


def gain(
    speech: Float[Tensor, " freq"], noise: Float[Tensor, " freq"], heard: Float[Tensor, " freq"]
) -> Float[Tensor, " freq"]:
    """What is heard of the speech: the mean of the Wiener gain and of that which keeps the logarithm of the amplitude,
    where speech may be absent.

    Reference: I. Cohen, B. Berdugo, "Speech enhancement for non-stationary noise environments", Signal Processing
        81(11), 2001 (OM-LSA).
    """
    from scipy.special import exp1

    prior_snr = speech / noise
    wiener = speech / (speech + noise)
    v = (wiener * heard / noise).clamp(1e-6, 500.0)
    log_amplitude = (wiener * torch.from_numpy(exp1(v.numpy()) / 2).exp()).clamp(max=1.0)
    presence = 1 / (1 + _ABSENT / (1 - _ABSENT) * (1 + prior_snr) * torch.exp(-v))
    return (wiener + log_amplitude**presence * _LEAST_GAIN ** (1 - presence)) / 2
