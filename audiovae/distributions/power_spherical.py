"""The power spherical distribution: around a direction of the unit sphere, without Bessel functions and without
rejections.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audiovae.distributions.von_mises_fisher import AroundDirection


class PowerSpherical(AroundDirection):
    """Power spherical distribution on the unit sphere of R^d: log p(z) = k log(1 + mu.z) + log N.

    With b = (d-1)/2 and a = b + k, log N = -(a + b) log 2 - b log(pi) - log Gamma(a) + log Gamma(a + b). (1 + mu.z)/2
    is Beta(a, b) distributed, so that the mean is mu (a - b)/(a + b), and the KL divergence to the uniform distribution
    log N + k (log 2 + psi(a) - psi(a + b)) + log S. For large k it looks like a von Mises-Fisher of half the
    concentration. See `AroundDirection` for the arguments and errors.

    Reference: N. De Cao and W. Aziz, "The power spherical distribution", ICML workshop INNF+, 2020.
    """

    @staticmethod
    def _statistic(squared_distance: Tensor) -> Tensor:
        """T = log((1 + mu.z) / 2); the density at -mu, which is zero, counts as that very near to it."""
        return torch.log1p(-(squared_distance / 4).clamp(max=1 - 1e-12))

    @staticmethod
    def _moments(concentration: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        b = (dim - 1) / 2
        near, total = b + concentration, 2 * b + concentration
        log_partition = torch.lgamma(near) - torch.lgamma(total) - (math.lgamma(b) - math.lgamma(2 * b))
        return log_partition, torch.digamma(near) - torch.digamma(total)

    @staticmethod
    def _cosine(concentration: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """(a - b) / (a + b) and 4 a b / ((a + b)^2 (a + b + 1))."""
        b = (dim - 1) / 2
        a, total = b + concentration, 2 * b + concentration
        return concentration / total, 4 * a * b / (total.square() * (total + 1))

    @staticmethod
    def _draw(concentration: Tensor, dim: int) -> Tensor:
        """The Beta variable as two Gamma ones, whose ratio is tan^2 of the half angle: no rounding to 1 where k is
        large.
        """
        b = (dim - 1) / 2
        near, far = torch._standard_gamma(b + concentration), torch._standard_gamma(torch.full_like(concentration, b))
        return 2 * torch.atan(torch.sqrt(far / near))
