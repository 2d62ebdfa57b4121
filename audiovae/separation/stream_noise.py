"""Noise of a stream: the quiet spectrum of its last seconds, whose bands rise and fall with what is heard now."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32
from scipy.ndimage import percentile_filter

from audiovae.separation.sources.factors import bands

Spectrum = Float32[np.ndarray, " freq"]

QUANTILE = 0.05
QUIET_SECONDS = 4.0
ROWS = 128  # averages of a few frames that are kept of them
AVERAGED = 3  # frames
PARTS = 4  # of the frequencies, one of which is looked through with every frame
FIRST_SECONDS, VALLEY_BINS, VALLEY_PERCENTILE, VALLEY_FACTOR = 0.5, 25, 25, 3.0
N_BANDS, DEVIATION, STIFFNESS, MEMORY_SECONDS = 16, 2.0, 12.0, 0.08


class BandLevels:
    """The level of bands of a spectrum, followed over time: the maximum of a posterior with exponential forgetting.

    Log powers lie on straight lines between the centres of bands and are normal around zero. For a level r times that
    of before the nll is at most fall / r + rise r + constant; one step of Newton's method towards its minimum with
    every frame.

    Args:
        n_freqs: of the spectrum.
        n_bands: see `bands`.
        deviation: of a band's log power.
        stiffness: how many bins that prior is worth.
        forgetting: of what a frame tells, the share that is left at the next one.

    Attributes:
        factor: of the spectrum.
    """

    def __init__(self, n_freqs: int, n_bands: int, deviation: float, stiffness: float, forgetting: float) -> None:
        self._shares = bands(n_bands, torch.zeros(n_freqs)).numpy()
        self._forgetting, self._stiffness = np.float32(forgetting), np.float32(stiffness / deviation**2)
        self._log_level, self._fall, self._rise = np.zeros((3, n_bands), np.float32)
        self.factor: Spectrum = np.ones(n_freqs, np.float32)

    def update(self, share: Spectrum, excess: Spectrum) -> None:
        """Take a frame that is explained.

        Args:
            share: of the variance that is this spectrum's.
            excess: what was heard over all of the variance.
        """
        fall = self._forgetting * self._fall + (share * excess) @ self._shares
        rise = self._forgetting * self._rise + share @ self._shares
        step = (fall - rise - self._stiffness * self._log_level) / (fall + rise + self._stiffness)
        moved = np.exp(step)  # sums were taken at the level of before
        self._log_level, self._fall, self._rise = self._log_level + step, fall / moved, rise * moved
        self.factor = np.exp(self._shares @ self._log_level)


class QuietNoise:
    """The power of a stream's noise: a low quantile of what was heard in the last four seconds, times the level of
    eight bands.

    Args:
        n_freqs: frequencies.
        seconds_per_frame: from one frame to the next.
    """

    def __init__(self, n_freqs: int, seconds_per_frame: float) -> None:
        self._stride = max(1, round(QUIET_SECONDS / seconds_per_frame / ROWS))
        self._last = np.zeros((AVERAGED, n_freqs), np.float32)
        self._heard = np.zeros((ROWS, n_freqs), np.float32)
        self._n_frames = 0
        self._quiet = np.zeros(n_freqs, np.float32)
        forgetting = 1 - seconds_per_frame / MEMORY_SECONDS
        self._n_first = round(FIRST_SECONDS / seconds_per_frame)
        self._levels = BandLevels(n_freqs, N_BANDS, DEVIATION, STIFFNESS, forgetting)
        self.update = self._levels.update

    @property
    def spectrum(self) -> Spectrum:
        """As it is now."""
        return self._quiet * self._levels.factor

    def push(self, power: Spectrum) -> None:
        """Hear the next frame."""
        self._last[self._n_frames % AVERAGED] = power
        n_averaged = min(self._n_frames + 1, AVERAGED)
        row, rest = divmod(self._n_frames, self._stride)
        if rest == 0:
            self._heard[row % ROWS] = self._last[:n_averaged].mean(0)
        self._n_frames += 1
        n_rows = min(row + 1, ROWS)
        parts = 1 if n_rows < ROWS // PARTS else PARTS
        of_part = slice(self._n_frames % parts, None, parts)
        place = int(QUANTILE * (n_rows - 1))
        lowest = np.partition(self._heard[:n_rows, of_part], place, axis=0)[place]
        self._quiet[of_part] = lowest / expected_quantile(max(QUANTILE, 0.5 / n_rows), n_averaged)
        if self._n_frames <= self._n_first:
            around = percentile_filter(self._quiet, VALLEY_PERCENTILE, VALLEY_BINS, mode="nearest")
            self._quiet = np.minimum(self._quiet, VALLEY_FACTOR * around)


def expected_quantile(quantile: float, n: int) -> float:
    """The quantile of the mean of n overlapping |x|^2 of variance 1: see `quiet_spectrum`."""
    from scipy.special import gammaincinv

    degrees = max(1.0, n / 2)
    return float(gammaincinv(degrees, quantile)) / degrees
