"""Noise of a stream: the quiet spectrum of its last seconds, whose bands rise and fall with what is heard now."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.sources.factors import bands, log_normal_update

_QUANTILE = 0.1
_QUIET_SECONDS = 4.0
_ROWS = 128  # averages of a few frames that are kept of them
_AVERAGED = 3  # frames
_PARTS = 4  # of the frequencies, one of which is looked through with every frame
_N_BANDS, _DEVIATION, _STIFFNESS, _MEMORY_SECONDS = 8, 2.0, 12.0, 0.15
_LEAST = 1e-30


class BandLevels:
    """The level of bands of a spectrum, followed over time: the maximum of a posterior with exponential forgetting.

    The logarithms of powers lie on straight lines between the centres of bands and are normal around zero.

    Args:
        n_bands: see `bands`.
        deviation: of a band's log power.
        stiffness: how many bins that prior is worth.
        forgetting: of what a frame tells, the share that is left at the next one.
        like: a spectrum.
    """

    def __init__(
        self, n_bands: int, deviation: float, stiffness: float, forgetting: float, like: Float[Tensor, " freq"]
    ) -> None:
        self._shares, self._forgetting = bands(n_bands, like), forgetting
        self._stiffness = stiffness / deviation**2
        self._log_level, self._fall, self._rise = like.new_zeros(3, n_bands).unbind()
        self.factor = torch.ones_like(like)

    def update(self, share: Float[Tensor, " freq"], excess: Float[Tensor, " freq"]) -> None:
        """Take a frame that is explained.

        Args:
            share: of the variance that is this spectrum's.
            excess: what was heard over all of the variance.
        """
        fall = self._forgetting * self._fall + (share * excess) @ self._shares
        rise = self._forgetting * self._rise + share @ self._shares
        after = log_normal_update(self._log_level, fall, rise, self._stiffness)
        moved = (after - self._log_level).exp()  # sums were taken at the level of before
        self._log_level, self._fall, self._rise = after, fall / moved, rise * moved
        self.factor = (self._shares @ after).exp()


class QuietNoise:
    """The power of a stream's noise, `[freq]`: a low quantile of what was heard in the last four seconds, times the
    level of eight bands.

    Args:
        n_freqs: frequencies.
        seconds_per_frame: from one frame to the next.

    Attributes:
        spectrum: as it is now.
    """

    def __init__(self, n_freqs: int, seconds_per_frame: float) -> None:
        self._stride = max(1, round(_QUIET_SECONDS / seconds_per_frame / _ROWS))
        self._last = torch.zeros(_AVERAGED, n_freqs)
        self._heard = torch.full((_ROWS, n_freqs), torch.inf)
        self._n_frames = 0
        self._quiet = torch.zeros(n_freqs)
        forgetting = 1 - seconds_per_frame / _MEMORY_SECONDS
        self._levels = BandLevels(_N_BANDS, _DEVIATION, _STIFFNESS, forgetting, self._quiet)

    @property
    def spectrum(self) -> Float[Tensor, " freq"]:
        return self._quiet * self._levels.factor + _LEAST

    def push(self, power: Float[Tensor, " freq"]) -> None:
        """Hear the next frame."""
        self._last[self._n_frames % _AVERAGED] = power
        n = min(self._n_frames + 1, _AVERAGED)
        row, rest = divmod(self._n_frames, self._stride)
        if rest == 0:
            self._heard[row % _ROWS] = self._last[:n].mean(0)
        self._n_frames += 1
        n_rows = min(row + 1, _ROWS)
        parts = 1 if n_rows < _ROWS // _PARTS else _PARTS
        of_part = slice(self._n_frames % parts, None, parts)
        place = int(_QUANTILE * (n_rows - 1))
        lowest = self._heard[:n_rows, of_part].kthvalue(1 + place, 0).values
        self._quiet[of_part] = lowest / _expected(max(_QUANTILE, 0.5 / n_rows), n)

    def update(self, share: Float[Tensor, " freq"], excess: Float[Tensor, " freq"]) -> None:
        """See `BandLevels`."""
        self._levels.update(share, excess)


def _expected(quantile: float, n: int) -> float:
    """The quantile of the mean of n overlapping |x|^2 of variance 1: see `audiovae.separation.starts.quiet_spectrum`."""
    from scipy.special import gammaincinv

    degrees = max(1.0, n / 2)
    return float(gammaincinv(degrees, quantile)) / degrees
