"""What makes images better at the end: filters with windows longer than the sources'."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.spatial.covariances import masked_covariances, ridged
from audiovae.separation.spatial.joint_diagonal import JointDiagonal
from audiovae.stft import STFT, Front, power

_RIDGE = 1e-4
_LEAST = 1e-4

Waves = Float[Tensor, "source recording channel sample"]
Filter = Callable[[Mixture, Waves], Waves]
"""Makes better estimates of the images of all sources but the last, whose image is the rest, from the mixture and
these.
"""


class Filters:
    """A `Finish`: filters one after another."""

    def __init__(self, front: Front, filters: Sequence[Filter]) -> None:
        self._stft, self._filters = front.stft, filters

    def __call__(self, mixture: Mixture, images: Tensor) -> Tensor:
        waves = mixture.sound(self._stft, images[:-1])
        n_frames = self._stft.n_frames(waves.shape[-1])
        for of_waves in self._filters:
            waves = of_waves(mixture, waves)
        out = torch.zeros_like(images)
        out[:-1, :, :n_frames] = self._stft(waves).movedim(2, -1)
        out[-1] = mixture.spectrogram - out[:-1].sum(0)
        return out


def least_squares(window: int, n_taps: int) -> Filter:
    """The time-invariant filters of the mixture that come nearest to each estimate: all microphones, `n_taps` frames.

    Args:
        window: of a Hann STFT with a hop of a quarter, in samples.
        n_taps: frames t, t - 1, ... that the filter sees.
    """

    def filtered(mixture: Mixture, waves: Waves) -> Waves:
        stft = STFT(window, window // 4, "hann").to(mixture.power)
        seen = mixture.through(stft)
        x = seen.spectrogram.permute(0, 2, 3, 1)  # [recording, freq, channel, frame]
        delayed = [torch.nn.functional.pad(x, (k, 0))[..., : x.shape[-1]] for k in range(n_taps)]
        x = torch.cat(delayed, 2) * seen.inside[:, None, None]
        target = stft(waves).permute(1, 4, 0, 2, 3).flatten(2, 3)  # [recording, freq, source x channel, frame]
        own = ridged((x @ x.mH).to(torch.complex128), _RIDGE)
        filters = torch.linalg.solve(own, (x @ target.mH).to(own.dtype)).mH.to(x.dtype)
        found = (filters @ x).unflatten(2, (len(waves), waves.shape[2])).permute(2, 0, 4, 1, 3)
        return mixture.sound(stft, found)

    return filtered


def wiener(window: int, n_updates: int = 10) -> Filter:
    """The multichannel Wiener filter whose PSDs are the estimates' own, and whose space is fitted to them.

    Args:
        window: of a Hann STFT with a hop of a quarter, in samples.
        n_updates: of the spatial model.
    """

    def filtered(mixture: Mixture, waves: Waves) -> Waves:
        stft = STFT(window, window // 4, "hann").to(mixture.power)
        seen = mixture.through(stft)
        least = _LEAST * seen.mean_over_frames(seen.power.mean(-1))
        psds = list(power(stft(waves[:, :, 0])) + least[:, None, None])
        space = JointDiagonal(seen, masked_covariances(seen, psds), len(psds), per_frequency=True)
        drawn = [psd.unsqueeze(0) for psd in psds]
        for _ in range(n_updates):
            space.update(drawn)
        found = space.images(drawn, range(len(seen.power)))
        return mixture.sound(stft, found)

    return filtered
