"""Level and extent of a recording: what is divided out before a prior sees it, and where its sound begins and ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

FRAME_SECONDS = 0.064
ACTIVE_RANGE_DB = 30.0
TRIM_RANGE_DB = 30.0

_CHUNK = 16384
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


class LevelMeter:
    """RMS of a recording's active frames, from blocks of any length; its channels share one level.

    Frames of 64 ms, a quarter apart, under a sine window (at 16 kHz those of the default STFT); a frame is active when
    its power is within 30 dB of the loudest one's. The level is the square root of the mean power of the active frames,
    so multiplying a wave by a > 0 multiplies its level by a.
    """

    def __init__(self, sample_rate: int) -> None:
        frame_length = 4 * max(1, round(sample_rate * FRAME_SECONDS / 4))
        self._frame_power = FramePower(np.sin(np.pi * (np.arange(frame_length) + 0.5) / frame_length) ** 2)
        self.push = self._frame_power.push

    def finish(self) -> float:
        """End the recording and return its level, in the unit of its samples; 0.0 for digital silence."""
        powers = self._frame_power.finish()
        active = powers >= powers.max() * 10 ** (-ACTIVE_RANGE_DB / 10)
        return float(np.sqrt(powers[active].mean()))


def active_level(wave: NDArray[np.floating], sample_rate: int) -> float:
    """Level of a whole recording, `[sample]` or `[channel, sample]`: see `LevelMeter`."""
    meter = LevelMeter(sample_rate)
    meter.push(wave)
    return meter.finish()


def trim_bounds(wave: NDArray[np.floating]) -> tuple[int, int]:
    """First sample, and one past the last, of what is louder than 30 dB below the loudest frame; (0, 0) for silence.

    Args:
        wave: `[sample]` or `[channel, sample]`.

    Reference: the rule of `librosa.effects.trim(top_db=30)`, restated because importing librosa takes longer than
        preparing an hour of speech.
    """
    meter = FramePower(np.ones(4 * _TRIM_HOP))
    meter.push(wave)
    powers = meter.finish()
    loud = np.flatnonzero(powers > powers.max() * 10 ** (-TRIM_RANGE_DB / 10))
    if len(loud) == 0:
        return 0, 0
    return int(loud[0]) * _TRIM_HOP, min(wave.shape[-1], (int(loud[-1]) + 1) * _TRIM_HOP)


def spectrogram_level(power: Float[Any, "frame freq"], window: Float[Any, " sample"]) -> Float[Any, ""]:
    """RMS of the active frames of a recording, from the power of its spectrogram, tensors both: see `LevelMeter`; 0 for
    silence.

    By Parseval's theorem a frame's samples under the window have sum_n |w_n x_n|^2 = (1 / n_fft) sum_f c_f |x_f|^2,
    with c_f = 2 but for DC and Nyquist.
    """
    counts = power.new_full(power.shape[1:], 2.0)
    counts[0] = 1.0
    if len(window) % 2 == 0:
        counts[-1] = 1.0
    frame_power = power @ counts / (len(window) * window.square().sum())
    active = frame_power >= frame_power.max() * 10 ** (-ACTIVE_RANGE_DB / 10)
    return frame_power[active].mean().sqrt()
