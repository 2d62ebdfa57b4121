"""Resampling of a wave that arrives in blocks, with a delay of a few milliseconds."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float64
from scipy.signal import firwin

_REACH_SECONDS = 0.0038  # of the filter to both sides
_STOP_BAND_BETA = 8.0  # of its Kaiser window: 80 dB


class StreamingResampler:
    """Polyphase resampling by a filter of linear phase: sample m of what comes out stands at m / new_rate seconds, as
    that of the wave does; it is given as soon as the filter needs nothing that is still to come, 3.8 ms later.

    Args:
        rate, new_rate: in Hz.
        n_channels: of the wave.

    Attributes:
        delay: seconds from a sample to all that stands before it, at most.
    """

    def __init__(self, rate: int, new_rate: int, n_channels: int) -> None:
        common = math.gcd(rate, new_rate)
        self._up, self._down = new_rate // common, rate // common
        n_side = round(_REACH_SECONDS * rate * self._up)  # taps to each side, at rate * up
        width = 1.0 / _REACH_SECONDS * 1.25  # Hz, from pass band to stop band
        nyquist = min(rate, new_rate) / 2
        taps = firwin(2 * n_side + 1, nyquist - width, window=("kaiser", _STOP_BAND_BETA), fs=rate * self._up)
        self._reach = -(-n_side // self._up)  # samples to both sides
        self.delay = (self._reach + 1) / rate
        n_each = 2 * self._reach + 1
        padded = np.zeros(n_each * self._up + self._up)
        padded[self._reach * self._up - n_side :][: len(taps)] = taps * self._up
        # phase p: y = sum_i x[q - reach + i] h[(reach - i) up + p], q up + p being the place of y at rate * up
        places = (self._reach - np.arange(n_each)) * self._up + self._reach * self._up
        index = places[None] + np.arange(self._up)[:, None]
        self._phases = np.where(index < len(padded), padded[np.minimum(index, len(padded) - 1)], 0.0)
        self._pending = np.zeros((n_channels, self._reach))  # before the wave there is nothing
        self._first = -self._reach  # the place of what is pending
        self._n_given = 0

    def push(self, block: Float[np.ndarray, "channel _"]) -> Float64[np.ndarray, "channel _"]:
        """Take the next samples, any number, and return those that are ready."""
        self._pending = np.concatenate([self._pending, block], axis=1)
        known = self._first + self._pending.shape[1] - self._reach  # so many samples have all that comes after them
        n_ready = max(self._n_given, -(-max(0, known) * self._up // self._down))
        if n_ready == self._n_given:
            return np.zeros((len(block), 0))
        places = np.arange(self._n_given, n_ready) * self._down
        whole, phases = np.divmod(places, self._up)
        framed = np.lib.stride_tricks.sliding_window_view(self._pending, 2 * self._reach + 1, axis=1)
        ready = np.einsum("cmi,mi->cm", framed[:, whole - self._reach - self._first], self._phases[phases])
        self._n_given = n_ready
        n_over = max(0, n_ready * self._down // self._up - self._reach - self._first)
        self._pending, self._first = self._pending[:, n_over:], self._first + n_over
        return ready
