"""A source that sounds at all frequencies at once: the model of independent vector analysis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.sources.source import ShallowSource, Statistics

_LEAST = 1e-6  # at unit level
EnvelopeName = Literal["gauss", "laplace"]


class Envelope(ShallowSource):
    """lambda_ft = r_t: a Gaussian whose variance is the same at all frequencies, or a spherical Laplace density.

    With rows of its own, as in `Demixing`, an update goes to the minimum of the majorant: r_t is the mean over f of
    |y_ft|^2 ("gauss"), or its square root, up to a factor that makes no difference ("laplace"). Frequencies that
    nothing is heard at do not count.

    Args:
        mixture: the recordings.
        first: a guess of lambda.
        density: "gauss" or "laplace".
        n_counted: so many of the lowest frequencies make the mean; None: all.

    Reference: N. Ono, "Stable and fast update rules for independent vector analysis based on auxiliary function
        technique", WASPAA 2011; the Gaussian: N. Ono, "Auxiliary-function-based independent vector analysis with power
        of vector-norm type weighting functions", APSIPA 2012.
    """

    def __init__(
        self,
        mixture: Mixture,
        first: Float[Tensor, "recording frame freq"],
        density: EnvelopeName = "gauss",
        n_counted: int | None = None,
    ) -> None:
        super().__init__(mixture)
        self._counted = slice(n_counted)
        self._power = 1.0 if density == "gauss" else 0.5
        self._r = first.mean(-1, keepdim=True).clamp(min=_LEAST)

    def variance(self) -> Float[Tensor, "recording frame freq"]:
        return self._r.expand_as(self._mixture.power)

    def update_factors(self, statistics: Callable[[], Statistics]) -> None:
        numerator, denominator = (part[..., self._counted].sum(-1, keepdim=True) for part in statistics())
        mean = self._r * numerator / denominator.clamp(min=torch.finfo(numerator.dtype).tiny)
        self._r = torch.where(self._mixture.inside.unsqueeze(-1), mean.pow(self._power).clamp(min=_LEAST), self._r)
