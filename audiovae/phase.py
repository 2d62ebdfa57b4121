"""Phases estimated from magnitudes alone: Griffin-Lim, offline and for blocks of frames."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovae.errors import AudiovaeError
from audiovae.stft import STFT

GRIFFIN_LIM_ITERATIONS = 64
_GRIFFIN_LIM_FRAMES = 1024
_CROSSFADE_FRAMES = 16


def griffin_lim(stft: STFT, magnitude: Float[Tensor, "*batch frame freq"], length: int) -> Float[Tensor, "*batch sample"]:
    """A wave of `length` samples whose STFT magnitude is near to `magnitude`, from a random phase.

    Raises:
        AudiovaeError: torchaudio is not installed.

    Reference: N. Perraudin, P. Balazs, P. Sondergaard, "A fast Griffin-Lim algorithm", WASPAA 2013.
    """
    try:
        from torchaudio.functional import griffinlim
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise AudiovaeError("Griffin-Lim needs torchaudio in the build that matches torch; install both at 2.11.0") from error

    # torchaudio reflects at the ends, which takes more than half a window of samples: lengthen short spectrograms.
    at_least = 2 + stft.n_fft // stft.hop_length
    n_frames = magnitude.shape[-2]
    padded = nn.functional.pad(magnitude, (0, 0, 0, max(0, at_least - n_frames)))
    wave = griffinlim(
        padded.transpose(-1, -2),
        window=stft.window,
        n_fft=stft.n_fft,
        hop_length=stft.hop_length,
        win_length=stft.n_fft,
        power=1.0,
        n_iter=GRIFFIN_LIM_ITERATIONS,
        momentum=0.99,
        length=(padded.shape[-2] - 1) * stft.hop_length,
        rand_init=True,
    )
    return wave[..., :length]


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
