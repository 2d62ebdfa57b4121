"""The zero-mean circular complex Gaussian, the likelihood of an STFT coefficient given its variance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl
from torch.distributions.utils import broadcast_all

LOG_PI = math.log(math.pi)


class _Complex(constraints.Constraint):
    """Finite complex numbers."""

    def check(self, value: Tensor) -> Tensor:
        return torch.isfinite(value) if value.is_complex() else torch.zeros_like(value, dtype=torch.bool)


class ComplexNormal(Distribution):
    """Zero-mean circular complex Gaussian N_C(0, variance), independent over its batch.

    log p(x) = -log(pi) - log(variance) - |x|^2 / variance, a density over the plane (real, imaginary): the real and the
    imaginary part are independent real Gaussians of half the variance each. The log-likelihood ratio
    log N_C(x; 0, |x|^2) - log N_C(x; 0, variance) is the Itakura-Saito divergence d_IS(|x|^2, variance) =
    |x|^2/variance - log(|x|^2/variance) - 1, and `kl_divergence(p, q)` is d_IS(p.variance, q.variance).

    Args:
        variance: E|x|^2 > 0, any shape.
        log_variance: its logarithm, instead of it; what a decoder gives, and exact where the variance overflows.

    Raises:
        ValueError: none or both of the two, or a variance that is not positive.

    Reference: F. Neeser and J. Massey, "Proper complex random processes with applications to information theory", IEEE
        Trans. IT 39(4), 1993; C. Fevotte, N. Bertin, J.-L. Durrieu, "Nonnegative matrix factorization with the
        Itakura-Saito divergence", Neural Computation 21(3), 2009.
    """

    arg_constraints = {"variance": constraints.positive, "log_variance": constraints.real}
    support = _Complex()
    has_rsample = True

    def __init__(self, variance: Any = None, log_variance: Any = None, validate_args: bool | None = None) -> None:
        if (variance is None) == (log_variance is None):
            raise ValueError("ComplexNormal takes either variance or log_variance, got " + ("neither" if variance is None else "both"))
        if log_variance is None:
            (self._variance,) = broadcast_all(variance)
            self._log_variance = self._variance.log()
        else:
            (self._log_variance,) = broadcast_all(log_variance)
            self._variance = None
        super().__init__(self._log_variance.shape, validate_args=validate_args)

    @property
    def variance(self) -> Tensor:
        """E|x|^2, the power spectral density where x is an STFT."""
        if self._variance is None:
            self._variance = self._log_variance.exp()
        return self._variance

    @property
    def log_variance(self) -> Tensor:
        return self._log_variance

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self._log_variance, dtype=self._log_variance.dtype.to_complex())

    @property
    def mode(self) -> Tensor:
        return self.mean

    @property
    def stddev(self) -> Tensor:
        """sqrt(E|x|^2)."""
        return self.variance.sqrt()

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> ComplexNormal:
        return ComplexNormal(log_variance=self._log_variance.expand(torch.Size(batch_shape)), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparameterised samples: sqrt(variance) times a complex standard normal."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self._log_variance.dtype.to_complex(), device=self._log_variance.device)
        return self.stddev * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats of complex values; its gradient is finite at zero.

        Raises:
            ValueError: a value that is not complex or not finite.
        """
        if self._validate_args:
            self._validate_sample(value)
        return self.log_prob_of_power(value.real.square() + value.imag.square())

    def log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob(x)` given power = |x|^2, which is all that it depends on: still a density over the complex plane."""
        return -LOG_PI - self._log_variance - power * torch.exp(-self._log_variance)

    def entropy(self) -> Tensor:
        """1 + log(pi) + log(variance), in nats."""
        return 1 + LOG_PI + self._log_variance


@register_kl(ComplexNormal, ComplexNormal)
def _kl_complex_normal(p: ComplexNormal, q: ComplexNormal) -> Tensor:
    log_ratio = p.log_variance - q.log_variance
    return torch.expm1(log_ratio) - log_ratio
