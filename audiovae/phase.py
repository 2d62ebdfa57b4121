"""Phases estimated from magnitudes alone: Griffin-Lim, offline and for blocks of frames."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.stft import STFT

GRIFFIN_LIM_ITERATIONS = 64
_MOMENTUM = 0.99
_GRIFFIN_LIM_FRAMES = 1024
_CROSSFADE_FRAMES = 16


def griffin_lim(
    stft: STFT, magnitude: Float[Tensor, "*batch frame freq"], length: int
) -> Float[Tensor, "*batch sample"]:
    """A wave of `length` samples whose STFT magnitude is near to `magnitude`, from a random phase.

    Reference: N. Perraudin, P. Balazs, P. Sondergaard, "A fast Griffin-Lim algorithm", WASPAA 2013.
    """
    phase = 2 * math.pi * torch.rand_like(magnitude)
    phase[..., [0, -1]] = 0  # real bins: no iteration would turn the sign of a frame against its neighbours'
    spectrogram = torch.polar(magnitude, phase)
    before = torch.zeros_like(spectrogram)
    for _ in range(GRIFFIN_LIM_ITERATIONS):
        consistent = stft(stft.inverse(spectrogram, length))
        spectrogram = magnitude * torch.sgn(consistent + _MOMENTUM * (consistent - before))
        before = consistent
    return stft.inverse(spectrogram, length)


class StreamingGriffinLim:
    """Griffin-Lim for magnitudes that arrive in blocks: about 16 s at a time, cross-faded over a quarter of a second.

    The phase of one stretch knows nothing of the next one's, so a steady tone may dip where two of them meet.
    """

    def __init__(self, stft: STFT) -> None:
        self._stft = stft
        self._pending: list[Tensor] = []
        self._tail: Tensor | None = None  # the end of the stretch before, still to be cross-faded
        self._n_emitted = 0

    def push(self, magnitude: Float[Tensor, "channel frame freq"]) -> Float[Tensor, "channel sample"]:
        """Take the next frames and return the samples that are ready."""
        self._pending.append(magnitude)
        waves = [magnitude.new_zeros(magnitude.shape[0], 0)]
        while sum(part.shape[1] for part in self._pending) > 2 * _GRIFFIN_LIM_FRAMES:
            pending = torch.cat(self._pending, dim=1)
            stretch = pending[:, : _GRIFFIN_LIM_FRAMES + _CROSSFADE_FRAMES + 1]
            self._pending = [pending[:, _GRIFFIN_LIM_FRAMES:]]
            wave = self._fade_in(griffin_lim(self._stft, stretch, (stretch.shape[1] - 1) * self._stft.hop_length))
            cut = _GRIFFIN_LIM_FRAMES * self._stft.hop_length
            self._tail = wave[:, cut:]
            waves.append(wave[:, :cut])
        emitted = torch.cat(waves, dim=1)
        self._n_emitted += emitted.shape[1]
        return emitted

    def finish(self, length: int) -> Float[Tensor, "channel sample"]:
        """Return the rest of a wave of `length` samples."""
        return self._fade_in(griffin_lim(self._stft, torch.cat(self._pending, dim=1), length - self._n_emitted))

    def _fade_in(self, wave: Tensor) -> Tensor:
        if self._tail is None:
            return wave
        n = min(self._tail.shape[1], wave.shape[1])
        ramp = torch.linspace(0, 1, self._tail.shape[1], device=wave.device)[:n]
        return torch.cat([self._tail[:, :n] * (1 - ramp) + wave[:, :n] * ramp, wave[:, n:]], dim=1)
