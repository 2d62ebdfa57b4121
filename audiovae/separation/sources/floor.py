"""The noise that is always there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.separation.mixture import Mixture
from audiovae.separation.sources.source import ShallowSource, Statistics

_QUANTILE = 0.3  # over the frequencies with sound, of the least power in any direction


class Floor(ShallowSource):
    """lambda_ft = s_f, fixed: what is as strong in every direction, such as the microphones' own noise.

    s_f is the least power that frequency f has in any direction (half of it), but never more than a low quantile of
    that over all frequencies with sound: fitted freely, such a source grows until it takes all others.

    Args:
        mixture: recordings of several channels.
        first: not looked at.
    """

    def __init__(self, mixture: Mixture, first: Tensor | None = None) -> None:
        super().__init__(mixture)
        x = mixture.spectrogram.permute(0, 2, 3, 1)
        n_frames = mixture.inside.sum(-1)[:, None, None, None]
        least = torch.linalg.eigvalsh((x @ x.mH / n_frames).to(torch.complex128))[..., 0].to(mixture.power.dtype)
        bound = torch.stack(
            [torch.quantile(row[heard], _QUANTILE) for row, heard in zip(least, mixture.heard, strict=True)]
        )
        self._spectrum = torch.minimum(bound.unsqueeze(-1), least / 2).clamp(min=VARIANCE_FLOOR)

    def variance(self) -> Float[Tensor, "recording frame freq"]:
        return self._spectrum.unsqueeze(1).expand_as(self._mixture.power)

    def update_factors(self, statistics: Callable[[], Statistics]) -> None:
        """Nothing is fitted."""
