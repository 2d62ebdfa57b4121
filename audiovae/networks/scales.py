"""Standard deviations of Gaussians from the outputs of a network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from audiovae.settings import ScaleName

SMALLEST_SCALE, LARGEST_SCALE = 1e-6, 2.0  # of "bounded"; a standard normal prior's is 1
LARGEST_LOG_SCALE = 30.0  # of "exp", where it would overflow in a bad step

SCALES: dict[ScaleName, Callable[[Tensor], Tensor]] = {
    "bounded": lambda spread: LARGEST_SCALE * torch.sigmoid(spread) + SMALLEST_SCALE,
    "exp": lambda log_variance: torch.exp((0.5 * log_variance).clamp(math.log(SMALLEST_SCALE), LARGEST_LOG_SCALE)),
    "softplus": lambda spread: functional.softplus(spread).clamp(min=SMALLEST_SCALE),
    "softplus-floor": lambda spread: functional.softplus(spread) + 1e-6,
    "softplus-variance": lambda spread: functional.softplus(spread).clamp(min=SMALLEST_SCALE**2).sqrt(),
}
