"""The range of the concentrations of directions and of points of the simplex."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_CONCENTRATION = 1e-3  # as good as uniform on a sphere: the KL is 1e-6 / (2 d)
LARGEST_CONCENTRATION = 1e5  # a spread of 0.2 degrees


def within_range(concentration: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The nearest concentration in the range, with a gradient of one at its two ends too, where that of `clamp` differs
    between versions of torch.
    """
    largest = min(LARGEST_CONCENTRATION, torch.finfo(concentration.dtype).max)
    raised = torch.where(concentration < SMALLEST_CONCENTRATION, SMALLEST_CONCENTRATION, concentration)
    return torch.where(raised > largest, largest, raised)
