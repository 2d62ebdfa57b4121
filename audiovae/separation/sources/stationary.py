"""One spectrum for the whole recording."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.separation.mixture import Mixture
from audiovae.separation.sources.factors import root
from audiovae.separation.sources.source import ShallowSource, Statistics

_SOUNDING = 0.1  # of the loudest frame's power in the first guess


class Stationary(ShallowSource):
    """lambda_ft = n_f, told by the frames in which noise sounds: in pauses, where the first guess is far below its
    loudest, it goes on.

    Args:
        mixture: the recordings.
        first: a guess of lambda, whose mean over these frames is where it begins.
        n_steps: updates in one iteration of EM.
    """

    def __init__(self, mixture: Mixture, first: Float[Tensor, "recording frame freq"], n_steps: int = 1) -> None:
        super().__init__(mixture, n_steps)
        loudness = torch.where(mixture.inside, first.sum(-1), 0.0)
        sounding = (loudness >= _SOUNDING * loudness.amax(-1, keepdim=True)).to(first.dtype)
        self._shares = (sounding / sounding.sum(-1, keepdim=True)).unsqueeze(1)  # [recording, 1, frame]
        self._spectrum = (self._shares @ first).squeeze(1)

    def variance(self) -> Float[Tensor, "recording frame freq"]:
        return (self._spectrum + VARIANCE_FLOOR).unsqueeze(1).expand_as(self._mixture.power)

    def update_factors(self, statistics: Callable[[], Statistics]) -> None:
        numerator, denominator = statistics()
        self._spectrum = self._spectrum * root(*((self._shares @ part).squeeze(1) for part in (numerator, denominator)))
