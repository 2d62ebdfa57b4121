"""One source of a packed corpus, in constant memory: found where it sounds, measured, and made 16-bit samples of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from numpy.typing import NDArray

from audiovae import audio
from audiovae.audio import AudioInfo
from audiovae.errors import AudioError
from audiovae.level import LevelMeter, TrimMeter, measure, rumble_share, split_blocks
from audiovae.settings import PrepareSettings

SHORTEST_SECONDS = 0.1
_FAINTEST = 1e-20  # level, that single precision can divide by
_CANCELLED = 1e-3

_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]  # two waves, [channel, sample]


@dataclass(frozen=True)
class Signal:
    """A wave made of a sound file, and what is packed of it.

    Attributes:
        info: of the file, or of the part of it.
        rate: by which its samples count, that of the file times the speed.
        new_rate: of the corpus.
        n_channels: that are packed; one is the mean of all.
        one_channel: the first channel is taken, where there are others because their mean is next to nothing.
        share: of the rumble that is taken away.
        start, end: of what is packed, at the new rate.
        scale: of the packed integers.
        level: of what is packed.
    """

    info: AudioInfo
    rate: int
    new_rate: int
    n_channels: int = 1
    one_channel: bool = False
    share: float = 0.0
    start: int = 0
    end: int = 0
    scale: float = 0.0
    level: float = 0.0
    _held: list[NDArray[np.int16]] = field(default_factory=list)

    @classmethod
    def of(
        cls, path: Path, speed: float, settings: PrepareSettings, start: float = 0.0, duration: float | None = None
    ) -> Signal:
        """Measure a sound file, or the part of it from `start` on, in seconds.

        Raises:
            AudioError: it cannot be read, is silent, too short, or holds samples beyond all scale.
        """
        info = audio.inspect(path)
        if start > 0 or duration is not None:
            info = audio.part(info, start, duration)
        n_channels = info.n_channels if settings.channels == "all" else 1
        signal = cls(info, round(speed * info.sample_rate), settings.sample_rate, n_channels)
        blocks = audio.repeatable(lambda: audio.blocks(info), info)
        if n_channels == 1:
            signal = replace(signal, one_channel=info.n_channels == 1 or _cancel(blocks()))
        split = audio.repeatable(lambda: signal._split(blocks()), info)
        share = signal._share(split())
        if share is None:
            raise AudioError(path, "is silent")
        signal = replace(signal, share=share)
        pairs = audio.repeatable(lambda: signal._pairs(split()), info)
        start, end = _bounds(pairs(), settings.trim)
        meter, peak = LevelMeter(signal.new_rate), 0.0
        for heard, above in _cut(pairs(), start, end):
            meter.push(above)
            peak = max(peak, float(np.abs(heard).max()))
        level = meter.finish() if end > start else 0.0
        if level < _FAINTEST:
            raise AudioError(path, "is silent")
        if not math.isfinite(level):
            raise AudioError(path, "is beyond all scale; turn it down")
        if end - start < SHORTEST_SECONDS * signal.new_rate:
            raise AudioError(path, f"is shorter than {SHORTEST_SECONDS} s")
        signal = replace(signal, start=start, end=end, scale=peak / 32767, level=level)
        return replace(signal, _held=list(signal._packed(pairs()))) if audio.is_short(info) else signal

    @property
    def n_samples(self) -> int:
        """That are packed."""
        return self.end - self.start

    @property
    def is_held(self) -> bool:
        """Is the file not read again to be packed?"""
        return bool(self._held)

    def packed(self) -> Iterator[Int16[np.ndarray, "sample channel"]]:
        """What is packed, in blocks: multiply it by `scale` to get the wave.

        Raises:
            AudioError: the file cannot be read, which it could before.
        """
        return iter(self._held) if self._held else self._packed(self._pairs(self._split(audio.blocks(self.info))))

    def _packed(self, pairs: Iterator[_Pair]) -> Iterator[Int16[np.ndarray, "sample channel"]]:
        for heard, _ in _cut(pairs, self.start, self.end):
            yield np.rint(heard.T / np.float32(self.scale)).astype("<i2", order="C")

    def _split(self, blocks: Iterator[audio.Wave]) -> Iterator[_Pair]:
        """The wave, and its rumble."""
        rate = self.info.sample_rate
        if self.one_channel:
            blocks = (block[:1] for block in blocks)
        elif self.n_channels == 1:
            blocks = (block.mean(axis=0, keepdims=True) for block in blocks)
        short = (block[:, i : i + rate] for block in blocks for i in range(0, block.shape[1], rate))
        return split_blocks(short, rate, self.n_channels)  # short blocks stay in the processor's cache

    def _share(self, split: Iterator[_Pair]) -> float | None:
        """Of the rumble, how much is taken away; None for silence."""
        level, rumble_rms = measure(split, self.info.sample_rate)
        return rumble_share(rumble_rms, level) if level else None

    def _pairs(self, split: Iterator[_Pair]) -> Iterator[_Pair]:
        """At the new rate: the wave as a prior hears it, and what of it lies above 50 Hz."""
        share = np.float32(self.share)
        if self.rate == self.new_rate:
            yield from ((wave - share * rumble if share else wave, wave - rumble) for wave, rumble in split)
            return
        heard = (wave - share * rumble if share else wave for wave, rumble in split)
        resampled = audio.resample_blocks(heard, self.rate, self.new_rate, self.n_channels, self.info.n_samples)
        yield from ((wave, wave - rumble) for wave, rumble in split_blocks(resampled, self.new_rate, self.n_channels))


def _cancel(blocks: Iterator[audio.Wave]) -> bool:
    """Do channels cancel each other, as of a cable with its wires swapped?"""
    peaks = [(float(np.abs(block).max()), float(np.abs(block.mean(axis=0)).max())) for block in blocks]
    return max(mean for _, mean in peaks) < _CANCELLED * max(peak for peak, _ in peaks)


def _bounds(pairs: Iterator[_Pair], trims: bool) -> tuple[int, int]:
    meter, n_samples = TrimMeter(), 0
    for _, above in pairs:
        n_samples += above.shape[1]
        if trims:
            meter.push(above)
    return meter.finish(n_samples) if trims else (0, n_samples)


def _cut(pairs: Iterator[_Pair], start: int, end: int) -> Iterator[_Pair]:
    place = 0
    for heard, above in pairs:
        part = slice(max(0, start - place), max(0, end - place))
        if heard[:, part].size:
            yield heard[:, part], above[:, part]
        place += heard.shape[1]
