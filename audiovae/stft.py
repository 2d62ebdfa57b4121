"""Short-time Fourier transform with an exact inverse, offline and in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor, nn
from torch.nn import functional

from audiovae.settings import LARGEST_SIZE, LevelName, WindowName

_MOST_OVERLAP = 128  # frames that hold a sample


def _sine_window(length: int, dtype: torch.dtype) -> Tensor:
    return torch.sin(math.pi * (torch.arange(length, dtype=dtype) + 0.5) / length)


_WINDOWS: dict[str, Callable[..., Tensor]] = {
    "sine": _sine_window,
    "hann": lambda length, dtype: torch.hann_window(length, dtype=dtype),
    "hamming": lambda length, dtype: torch.hamming_window(length, dtype=dtype),
}


class STFT(nn.Module):
    """Analysis and synthesis of waves, each the other's exact inverse.

    Frame `t` is centred on sample `t * hop_length`; the wave counts as zero outside its ends. The scale is that of
    `torch.stft(normalized=False)`: white noise of unit variance has a mean power of `sum(window**2)` in every bin. The
    defaults are 64 ms and 16 ms at 16 kHz.

    Args:
        n_fft: length of window and transform in samples; `n_freqs = n_fft // 2 + 1`.
        hop_length: samples from one frame to the next, at most half of `n_fft`.
        window: "sine" (sin(pi (n + 1/2) / n_fft)), or the periodic "hann" or "hamming".

    Raises:
        ValueError: a size or window outside of these.
    """

    window: Tensor

    def __init__(self, n_fft: int = 1024, hop_length: int = 256, window: WindowName = "sine") -> None:
        super().__init__()
        if not (isinstance(n_fft, int) and isinstance(hop_length, int)):
            raise ValueError(f"n_fft and hop_length must be whole numbers, got {n_fft!r} and {hop_length!r}")
        if n_fft < 2:
            raise ValueError(f"n_fft must be at least 2, got {n_fft}")
        if n_fft > LARGEST_SIZE:
            raise ValueError(f"n_fft must be at most {LARGEST_SIZE}, got {n_fft}")
        if not 1 <= hop_length <= n_fft // 2:
            raise ValueError(
                f"hop_length must be from 1 to n_fft // 2 = {n_fft // 2}, got {hop_length}: the inverse needs overlap"
            )
        if hop_length * _MOST_OVERLAP < n_fft:
            raise ValueError(
                f"hop_length must be at least n_fft / {_MOST_OVERLAP} = {n_fft / _MOST_OVERLAP:g}, got {hop_length}"
            )
        if window not in _WINDOWS:
            raise ValueError(f"window must be one of {', '.join(_WINDOWS)}, got {window!r}")
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.window_name = window
        self.register_buffer("window", _WINDOWS[window](n_fft, dtype=torch.float64).float(), persistent=False)

    @property
    def n_freqs(self) -> int:
        return self.n_fft // 2 + 1

    def n_frames(self, n_samples: int) -> int:
        """Number of frames of a wave of `n_samples` samples: 1 + ceil(n_samples / hop_length)."""
        return 1 + -(-n_samples // self.hop_length)

    def forward(self, wave: Float[Tensor, "*batch sample"]) -> Complex[Tensor, "*batch frame freq"]:
        """Analyse a wave.

        Shape: `[..., sample]` real to `[..., frame, freq]` complex of the same precision.

        Raises:
            ValueError: no sample.
        """
        n_samples = wave.shape[-1]
        if n_samples == 0:
            raise ValueError("a wave needs at least one sample, got shape " + str(list(wave.shape)))
        n_frames = self.n_frames(n_samples)
        before = self.n_fft // 2
        after = (n_frames - 1) * self.hop_length + self.n_fft - before - n_samples
        return self.frames(functional.pad(wave, (before, after)))

    def frames(self, wave: Float[Tensor, "*batch sample"]) -> Complex[Tensor, "*batch frame freq"]:
        """Analyse only where the window lies within the wave: the first frame starts at sample 0, nothing is padded."""
        framed = wave.unfold(-1, self.n_fft, self.hop_length)  # [..., frame, n_fft], a view
        return torch.fft.rfft(framed * self._window(wave.dtype))

    def inverse(self, spectrogram: Complex[Tensor, "*batch frame freq"], length: int) -> Float[Tensor, "*batch sample"]:
        """Synthesise the wave whose STFT is nearest to `spectrogram` in the least-squares sense.

        Shape: `[..., frame, freq]` to `[..., length]`. For an unmodified STFT this is the analysed wave.

        Raises:
            ValueError: `length` does not belong to this number of frames.

        Reference: D. Griffin and J. Lim, "Signal estimation from modified short-time Fourier transform", IEEE Trans.
            ASSP 32(2), 1984, eq. 6.
        """
        n_frames = spectrogram.shape[-2]
        if self.n_frames(length) != n_frames or length < 1:
            raise ValueError(
                f"length {length} has {self.n_frames(length)} frames at hop_length {self.hop_length}, got {n_frames} "
                "frames"
            )
        if spectrogram.shape[-1] != self.n_freqs:
            raise ValueError(
                f"expected {self.n_freqs} frequency bins for n_fft {self.n_fft}, got {spectrogram.shape[-1]}"
            )
        numerator = self.overlap_add(self.windowed_inverse(spectrogram))
        start = self.n_fft // 2
        envelope = self.envelope(n_frames, numerator)
        return numerator[..., start : start + length] / envelope[start : start + length]

    def windowed_inverse(
        self, spectrogram: Complex[Tensor, "*batch frame freq"]
    ) -> Float[Tensor, "*batch frame sample"]:
        """The inverse transform of each frame times the window: what is overlapped and added. Shape: `[..., frame,
        n_fft]`.
        """
        framed = torch.fft.irfft(spectrogram, n=self.n_fft)
        return framed * self._window(framed.dtype)

    def envelope(self, n_frames: int, like: Tensor) -> Float[Tensor, " sample"]:
        """The overlapped and added squared windows of `n_frames` frames, in the type and on the device of `like`."""
        return self.overlap_add(self._window(like.dtype).square().expand(n_frames, self.n_fft))

    def overlap_add(self, framed: Float[Tensor, "*batch frame n_fft"]) -> Float[Tensor, "*batch sample"]:
        """Add up frames of samples, each `hop_length` after the one before. Shape: `[..., frame, n_fft]` to `[...,
        sample]`.
        """
        n_frames = framed.shape[-2]
        n_overlaps = -(-self.n_fft // self.hop_length)
        padded = functional.pad(framed, (0, n_overlaps * self.hop_length - self.n_fft))
        parts = padded.unflatten(-1, (n_overlaps, self.hop_length))  # [..., frame, overlap, hop]
        added = framed.new_zeros(*framed.shape[:-2], n_frames + n_overlaps - 1, self.hop_length)
        for overlap in range(n_overlaps):
            added[..., overlap : overlap + n_frames, :] += parts[..., overlap, :]
        return added.flatten(-2)[..., : (n_frames - 1) * self.hop_length + self.n_fft]

    def _window(self, dtype: torch.dtype) -> Tensor:
        if dtype == self.window.dtype == torch.float32:
            return self.window
        return _WINDOWS[self.window_name](self.n_fft, dtype=torch.float64).to(self.window.device, dtype)

    def extra_repr(self) -> str:
        return f"n_fft={self.n_fft}, hop_length={self.hop_length}, window={self.window_name!r}"


@dataclass(frozen=True)
class Front:
    """What a model hears through: waves at `sample_rate` Hz, divided by their level, seen by `stft`.

    Attributes:
        level_rule: how the level is measured, see `audiovae.level`.
    """

    stft: STFT
    sample_rate: int
    level_rule: LevelName = "active"

    @property
    def device(self) -> torch.device:
        return self.stft.window.device


class StreamingAnalysis:
    """`STFT.forward` for a wave that arrives in blocks: the frames put together equal the offline ones.

    A frame is returned as soon as its last sample has arrived, so the latency is `n_fft - n_fft // 2` samples. Leading
    dimensions (channels) are free but must stay the same.
    """

    def __init__(self, stft: STFT) -> None:
        self._stft = stft
        self._pending: Tensor | None = None
        self._n_samples = 0
        self._n_frames = 0

    def push(self, block: Float[Tensor, "*batch sample"]) -> Complex[Tensor, "*batch frame freq"]:
        """Take the next samples (any number) and return the frames that they complete (perhaps none)."""
        if self._pending is None:
            self._pending = block.new_zeros(*block.shape[:-1], self._stft.n_fft // 2)
        self._n_samples += block.shape[-1]
        self._pending = torch.cat([self._pending, block], dim=-1)
        return self._emit()

    def finish(self) -> Complex[Tensor, "*batch frame freq"]:
        """Return the last frames, which reach beyond the end of the wave.

        Raises:
            ValueError: no sample was pushed.
        """
        if self._pending is None or self._n_samples == 0:
            raise ValueError("a wave needs at least one sample, and none was pushed")
        missing = self._stft.n_frames(self._n_samples) - self._n_frames
        needed = (missing - 1) * self._stft.hop_length + self._stft.n_fft
        self._pending = functional.pad(self._pending, (0, needed - self._pending.shape[-1]))
        return self._emit()

    def _emit(self) -> Tensor:
        stft, pending = self._stft, self._pending
        assert pending is not None
        n_frames = max(0, 1 + (pending.shape[-1] - stft.n_fft) // stft.hop_length)
        # Only frames that the offline transform has too: its last one is centred at or after the last sample.
        if n_frames == 0:
            return torch.zeros(
                *pending.shape[:-1], 0, stft.n_freqs, dtype=pending.dtype.to_complex(), device=pending.device
            )
        frames = stft.frames(pending)
        self._pending = pending[..., n_frames * stft.hop_length :].clone()
        self._n_frames += n_frames
        return frames


class StreamingSynthesis:
    """`STFT.inverse` for a spectrogram that arrives in blocks of frames: the samples put together equal the offline
    ones.
    """

    def __init__(self, stft: STFT) -> None:
        self._stft = stft
        self._tail: Tensor | None = None  # numerator and envelope that later frames still add to
        self._envelope_tail: Tensor | None = None
        self._to_drop = stft.n_fft // 2  # the samples before the wave begins
        self._n_frames = 0
        self._n_emitted = 0

    def push(self, spectrogram: Complex[Tensor, "*batch frame freq"]) -> Float[Tensor, "*batch sample"]:
        """Take the next frames (any number) and return the samples that no later frame reaches."""
        stft = self._stft
        n_frames = spectrogram.shape[-2]
        if n_frames == 0:
            return torch.zeros(*spectrogram.shape[:-2], 0, dtype=spectrogram.real.dtype, device=spectrogram.device)
        self._n_frames += n_frames
        numerator = stft.overlap_add(stft.windowed_inverse(spectrogram))
        envelope = stft.envelope(n_frames, numerator)
        ready = (n_frames - 1) * stft.hop_length
        if self._tail is not None and self._envelope_tail is not None:  # the new frames start one hop into the tail
            numerator, envelope = (functional.pad(part, (stft.hop_length, 0)) for part in (numerator, envelope))
            numerator[..., : stft.n_fft] += self._tail
            envelope[: stft.n_fft] += self._envelope_tail
            ready += stft.hop_length
        # The last frame is held back whole: what is returned then never reaches beyond the end of the wave.
        self._tail, self._envelope_tail = numerator[..., ready:].clone(), envelope[ready:].clone()
        return self._divide(numerator[..., :ready], envelope[:ready])

    def finish(self, length: int) -> Float[Tensor, "*batch sample"]:
        """Return the rest of a wave of `length` samples.

        Raises:
            ValueError: `length` does not belong to the number of frames pushed.
        """
        if self._tail is None or self._envelope_tail is None:
            raise ValueError("no frame was pushed")
        if length < 1 or self._stft.n_frames(length) != self._n_frames:
            raise ValueError(
                f"length {length} does not belong to the frames pushed: it has {self._stft.n_frames(length)}, got "
                f"{self._n_frames}"
            )
        return self._divide(self._tail, self._envelope_tail, length - self._n_emitted)

    def _divide(self, numerator: Tensor, envelope: Tensor, at_most: int | None = None) -> Tensor:
        drop = min(self._to_drop, numerator.shape[-1])
        self._to_drop -= drop
        end = None if at_most is None else drop + max(0, at_most)
        wave = numerator[..., drop:end] / envelope[drop:end]
        self._n_emitted += wave.shape[-1]
        return wave


def power_of(x: Inexact[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The power of a complex spectrogram; what is real is power already, or an array."""
    return power(x) if x.is_complex() else x


def power(spectrogram: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """|x|^2 as real^2 + imag^2, whose gradient is right at zero too."""
    return spectrogram.real.square().addcmul_(spectrogram.imag, spectrogram.imag)
