"""Level and extent of a recording above about 50 Hz: what is divided out before a prior sees it, and where its sound
begins and ends.

Below that stand the offset of a cheap microphone and the rumble of wind and handling. They count in no level of active
frames; and where they are louder than in nearly all of a prior's recordings, they are turned down before it hears them.

A prior has one of two rules for its level: "active", the RMS of active frames, or "peak", the largest absolute sample
of what it hears, which is that of the published dynamical VAEs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float
from numpy.typing import NDArray

from audiovae.settings import LevelName

FRAME_SECONDS = 0.064
ACTIVE_RANGE_DB = 30.0
TRIM_RANGE_DB = 30.0
LOWEST_HZ = 50.0  # what lies below is rumble
RUMBLE_DB = -15.0  # of the level, that rumble is turned down to

_CHUNK = 16384
_ROUNDING = 2e-7  # of single precision
_TRIM_HOP = 512  # librosa.effects.trim: frames of 2048 samples, 512 apart


class FramePower:
    """Mean power of the frames of a recording that arrives in blocks, averaged over its channels.

    Frame `t` is centred on sample `t * hop`, a quarter of its length apart from the next; the recording counts as zero
    outside its ends. There are 1 + n_samples // hop frames.

    Args:
        window_power: weights of the squared samples of a frame, of length 4 * hop.
    """

    def __init__(self, window_power: NDArray[np.float64]) -> None:
        self._hop = len(window_power) // 4
        self._weights = (window_power / window_power.sum()).reshape(4, self._hop).T  # [hop, quarter]
        self._pending = np.zeros(2 * self._hop)  # the first frame is centred on the first sample
        self._powers: list[NDArray[np.float64]] = []

    def push(self, block: NDArray[np.floating]) -> None:
        """Take the next samples, `[sample]` or `[channel, sample]`."""
        channels = np.atleast_2d(block)
        for start in range(0, channels.shape[1], _CHUNK):  # short chunks stay in the processor's cache
            squares = np.square(channels[:, start : start + _CHUNK], dtype=np.float64)
            self._pending = np.concatenate([self._pending, squares[0] if len(squares) == 1 else squares.mean(axis=0)])
            self._consume()

    def _consume(self) -> None:
        n_frames = len(self._pending) // self._hop - 3
        if n_frames < 1:
            return
        quarters = self._pending[: (n_frames + 3) * self._hop].reshape(-1, self._hop) @ self._weights
        self._powers.append(sum(quarters[place : place + n_frames, place] for place in range(4)))
        self._pending = self._pending[n_frames * self._hop :]

    def finish(self) -> NDArray[np.float64]:
        """End the recording and return the power of every frame."""
        self.push(np.zeros(2 * self._hop))
        return np.concatenate(self._powers)


class RumbleSplitter:
    """Tells what lies below about 50 Hz in a recording that arrives in blocks, without any delay between the two.

    A low-pass of linear phase, on sound that is first averaged down to about 1 kHz (triangles of 2 ms) and afterwards
    interpolated (straight lines). What it leaves of a tone is 50 dB down at 20 Hz, and what it takes is nothing at
    60 Hz. Beyond its ends the recording counts as mirrored, so an offset has none; one shorter than 20 ms has no
    rumble.
    """

    def __init__(self, sample_rate: int, n_channels: int) -> None:
        self._step = max(1, sample_rate // 1000)
        rate = sample_rate / self._step
        self._mirrored = self._step * 1000
        self._shortest = sample_rate / LOWEST_HZ
        self._down = soxr.ResampleStream(rate, 2 * LOWEST_HZ, n_channels, dtype="float32")
        self._up = soxr.ResampleStream(2 * LOWEST_HZ, rate, n_channels, dtype="float32")
        ramp = np.arange(self._step, dtype=np.float32) / np.float32(self._step)
        self._rise, self._line = ramp / np.float32(self._step), np.stack([1 - ramp, ramp])
        empty = np.zeros((n_channels, 0), np.float32)
        self._begun = False
        self._waiting = empty  # for its rumble
        self._tail = empty
        self._unaveraged = empty
        self._risen: NDArray[np.float32] | None = None  # the rising half of the next triangle
        self._point: NDArray[np.float32] | None = None  # the last of those that lines begin at
        self._n_to_skip = self._mirrored - self._step  # the first triangle stands one step behind the beginning

    def push(self, block: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take the next samples, `[channel, sample]`, and return those that are ready, and their rumble."""
        self._waiting = np.concatenate([self._waiting, block], axis=1)
        if not self._begun:
            if self._waiting.shape[1] < self._mirrored:
                return block[:, :0], block[:, :0]
            self._begun = True
            block = np.concatenate([self._waiting[:, self._mirrored - 1 :: -1], self._waiting], axis=1)
        self._tail = np.concatenate([self._tail, block], axis=1)[:, -self._mirrored :]
        return self._split(self._low(block))

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The rest."""
        n_left = self._waiting.shape[1]
        if not self._begun and n_left < self._shortest:
            return self._waiting, np.zeros_like(self._waiting)
        around = ((0, 0), (0 if self._begun else self._mirrored, self._mirrored + 2 * self._step))
        rest = np.pad(self._tail if self._begun else self._waiting, around, mode="symmetric")
        low = self._low(rest[:, self._tail.shape[1] :], last=True)
        return self._split(low[:, :n_left])

    def _split(self, low: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        ready, self._waiting = np.split(self._waiting, [low.shape[1]], axis=1)
        return ready, low

    def _low(self, block: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        samples = np.concatenate([self._unaveraged, block], axis=1)
        n_steps = samples.shape[1] // self._step
        self._unaveraged = samples[:, n_steps * self._step :]
        steps = samples[:, : n_steps * self._step].reshape(len(samples), n_steps, self._step)
        flat = steps.reshape(-1, self._step)
        risen = (flat @ self._rise).reshape(len(samples), n_steps)
        fallen = (flat @ (1 / self._step - self._rise)).reshape(len(samples), n_steps)
        if self._risen is not None:
            risen = np.concatenate([self._risen, risen], axis=1)
        else:
            fallen = fallen[:, 1:]
        self._risen = risen[:, -1:]
        averages = np.ascontiguousarray((risen[:, :-1] + fallen).T)
        slow = self._up.resample_chunk(
            self._down.resample_chunk(averages, last=last).reshape(-1, len(samples)), last=last
        )
        points = slow.reshape(-1, len(samples)).T
        if self._point is not None:
            points = np.concatenate([self._point, points], axis=1)
        self._point = points[:, -1:] if points.shape[1] else None
        ends = np.stack([points[:, :-1], points[:, 1:]], axis=-1).reshape(-1, 2)
        low = (ends @ self._line).reshape(len(samples), -1)
        n_skipped = min(self._n_to_skip, low.shape[1])
        self._n_to_skip -= n_skipped
        return low[:, n_skipped:]


def split_blocks(
    blocks: Iterable[NDArray[np.float32]], sample_rate: int, n_channels: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Blocks of a recording, `[channel, sample]`, cut anew, each with its rumble: see `RumbleSplitter`."""
    splitter = RumbleSplitter(sample_rate, n_channels)
    for block in blocks:
        yield splitter.push(block)
    yield splitter.finish()


def measure(split: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]], sample_rate: int) -> tuple[float, float]:
    """Level above 50 Hz of a recording, and RMS of what lies below, both 0 for digital silence: see `split_blocks`."""
    meter, energy, n_values = LevelMeter(sample_rate), 0.0, 0
    for wave, rumble in split:
        meter.push(wave - rumble)
        energy += float(np.square(rumble, dtype=np.float64).sum())
        n_values += rumble.size
    rumble_rms = math.sqrt(energy / n_values) if n_values else 0.0
    return level_beside(rumble_rms, meter.finish()), rumble_rms


def split_rumble(wave: NDArray[np.floating], sample_rate: int) -> NDArray[np.float32]:
    """What lies below about 50 Hz in a whole wave, `[sample]` or `[channel, sample]`: see `RumbleSplitter`."""
    channels = np.atleast_2d(wave).astype(np.float32, copy=False)
    n_block = sample_rate  # short blocks stay in the processor's cache
    blocks = (channels[:, i : i + n_block] for i in range(0, channels.shape[1], n_block))
    parts = [rumble for _, rumble in split_blocks(blocks, sample_rate, len(channels))]
    return np.concatenate(parts, axis=1).reshape(wave.shape)


def rumble_share(rumble_rms: float, level: float) -> float:
    """The part of the rumble, from 0 to 1, that is taken away so that what stays is 15 dB below the level."""
    kept = level * 10 ** (RUMBLE_DB / 20)
    return 0.0 if rumble_rms <= kept else 1 - kept / rumble_rms


def level_beside(rumble_rms: float, level: float) -> float:
    """The level, but 0 where it is what rounding leaves of a mere offset."""
    return level if level > _ROUNDING * rumble_rms else 0.0


@dataclass(frozen=True)
class Heard:
    """A whole recording as a prior hears it, `[channel, sample]`.

    Attributes:
        wave: where the rumble was too loud, it is turned down; else the recording as it is, to the last bit.
        excess: what of the rumble was taken away, so that `wave + excess` is the recording.
        above: what lies above 50 Hz.
        level: by the rule of the prior; 0 for silence, a mere offset among it.
    """

    wave: NDArray[np.floating]
    excess: NDArray[np.floating]
    above: NDArray[np.floating]
    level: float


def without_rumble(wave: NDArray[np.floating], sample_rate: int, rule: LevelName = "active") -> Heard:
    """A whole recording, `[channel, sample]`, as a prior hears it: what `Recording` does to a file in blocks."""
    rumble = split_rumble(wave, sample_rate)
    above = wave - rumble
    rumble_rms = _rms(rumble)
    level = level_beside(rumble_rms, active_level(above, sample_rate, rumble=False))
    if level == 0:
        nothing = 0 * wave  # which keeps a NaN
        return Heard(nothing, wave, nothing, level)
    share = rumble_share(rumble_rms, level)
    excess = np.float32(share) * rumble if share else np.zeros_like(wave)
    heard = wave - excess if share else wave
    return Heard(heard, excess, above, level if rule == "active" else peak([heard]))


def _rms(wave: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(wave, dtype=np.float64).mean())) if wave.size else 0.0


def peak(pieces: Iterable[NDArray[np.floating]]) -> float:
    """Largest absolute sample of a recording, `[channel, sample]` in pieces; 0.0 without any."""
    return max((float(np.abs(piece).max()) for piece in pieces if piece.size), default=0.0)


class LevelMeter:
    """RMS of a recording's active frames, from blocks of any length; its channels share one level.

    Give it what lies above 50 Hz: `RumbleSplitter`.

    Frames of 64 ms, a quarter apart, under a sine window (at 16 kHz those of the default STFT); a frame is active when
    its power is within 30 dB of the loudest one's. The level is the square root of the mean power of the active frames,
    so multiplying a wave by a > 0 multiplies its level by a.
    """

    def __init__(self, sample_rate: int) -> None:
        frame_length = 4 * max(1, round(sample_rate * FRAME_SECONDS / 4))
        self._frame_power = FramePower(np.sin(np.pi * (np.arange(frame_length) + 0.5) / frame_length) ** 2)
        self.push = self._frame_power.push

    def finish(self) -> float:
        """End the recording and return its level, in the unit of its samples; 0.0 for digital silence, infinity for
        samples beyond single precision.
        """
        powers = self._frame_power.finish()
        if not np.isfinite(powers).all():
            return math.inf
        active = powers >= powers.max() * 10 ** (-ACTIVE_RANGE_DB / 10)
        return float(np.sqrt(powers[active].mean()))


def active_level(wave: NDArray[np.floating], sample_rate: int, rumble: bool = True) -> float:
    """Level of a whole recording, `[sample]` or `[channel, sample]`: see `LevelMeter`.

    Args:
        rumble: there may be some, which is taken away first.
    """
    meter = LevelMeter(sample_rate)
    if not rumble or wave.size == 0:
        meter.push(wave)
        return meter.finish()
    low = split_rumble(wave, sample_rate)
    meter.push(wave - low)
    return level_beside(_rms(low), meter.finish())


class TrimMeter:
    """Where a recording that arrives in blocks sounds: see `trim_bounds`."""

    def __init__(self) -> None:
        self._frame_power = FramePower(np.ones(4 * _TRIM_HOP))
        self.push = self._frame_power.push

    def finish(self, n_samples: int) -> tuple[int, int]:
        """End the recording, which has so many samples."""
        powers = self._frame_power.finish()
        loud = np.flatnonzero(powers > powers.max() * 10 ** (-TRIM_RANGE_DB / 10))
        if len(loud) == 0:
            return 0, 0
        return int(loud[0]) * _TRIM_HOP, min(n_samples, (int(loud[-1]) + 1) * _TRIM_HOP)


def trim_bounds(wave: NDArray[np.floating]) -> tuple[int, int]:
    """First sample, and one past the last, of what is louder than 30 dB below the loudest frame; (0, 0) for silence.

    Give it what lies above 50 Hz: `split_rumble`.

    Args:
        wave: `[sample]` or `[channel, sample]`.

    Reference: the rule of `librosa.effects.trim(top_db=30)`, restated because importing librosa takes longer than
        preparing an hour of speech.
    """
    meter = TrimMeter()
    meter.push(wave)
    return meter.finish(wave.shape[-1])


def spectrogram_level(
    power: Float[Any, "frame freq"], window: Float[Any, " sample"], sample_rate: int
) -> Float[Any, ""]:
    """RMS of the active frames of a recording above 50 Hz, from the power of its spectrogram, tensors both: see
    `LevelMeter`; 0 for silence.

    By Parseval's theorem a frame's samples under the window have sum_n |w_n x_n|^2 = (1 / n_fft) sum_f c_f |x_f|^2,
    with c_f = 2 but for DC and Nyquist.
    """
    counts = power.new_full(power.shape[1:], 2.0)
    if len(window) % 2 == 0:
        counts[-1] = 1.0
    counts[: max(1, math.ceil(LOWEST_HZ * len(window) / sample_rate))] = 0.0
    frame_power = power @ counts / (len(window) * window.square().sum())
    active = frame_power >= frame_power.max() * 10 ** (-ACTIVE_RANGE_DB / 10)
    return frame_power[active].mean().sqrt()
