"""The distribution that is one point: what an autoencoder's encoder says."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints


class Point(Distribution):
    """All mass at `location`: event `[latent]`. It has no density, and no prior.

    Args:
        location: `[..., latent]`.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "location": constraints.independent(constraints.real, 1)
    }
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(self, location: Tensor, validate_args: bool | None = None) -> None:
        self.location = location
        super().__init__(location.shape[:-1], location.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.location

    @property
    def mode(self) -> Tensor:
        return self.location

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.location)

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> Point:
        new, shape = self._get_checked_instance(Point, _instance), torch.Size(batch_shape)
        new.location = self.location.expand(*shape, -1)
        super(Point, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Refused: a point has none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Point has no density, and so no log_prob: all its mass is in one place")

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.location.expand(self._extended_shape(torch.Size(sample_shape)))
