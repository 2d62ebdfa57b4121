"""Scores of a spectrogram that are no density of x, as older work trains on: binary cross-entropy and squared error."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional

from audiovae.distributions.complex_normal import EULER_GAMMA, VARIANCE_FLOOR


class ScaledBernoulli(Distribution):
    """The textbook's likelihood: s = (log(|x|^2 + 1e-6) - low) / (high - low), cut to 0..1, as a probability.

    log_prob = s log(m) + (1 - s) log(1 - m) with m = sigmoid(logits): minus the binary cross-entropy. It is no density
    of x, and a probability of s where s is 0 or 1. Mean, mode, samples and entropy are those of s, and a real value is
    s itself, where a complex one is x. Its `variance` is the PSD whose mean log power is the one that m stands for.

    Args:
        logits: of m, any shape.
        low, high: log power that becomes 0 and 1.

    Reference: D. Kingma and M. Welling, "Auto-encoding variational Bayes", ICLR 2014, appendix C.1.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, low: Tensor, high: Tensor) -> None:
        self.logits, self.low, self.high = logits, low, high
        super().__init__(logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E[s] = m."""
        return torch.sigmoid(self.logits)

    @property
    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    @property
    def variance(self) -> Tensor:
        return torch.exp(self.low + (self.high - self.low) * self.mean + EULER_GAMMA)

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> ScaledBernoulli:
        new, shape = self._get_checked_instance(ScaledBernoulli, _instance), torch.Size(batch_shape)
        new.logits, new.low, new.high = self.logits.expand(shape), self.low, self.high
        super(ScaledBernoulli, new).__init__(shape, validate_args=False)
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of s: 1 with probability m, else 0."""
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        """Of a complex x, or of s itself where the value is real."""
        if not value.is_complex():
            return self._log_prob_of_scaled(value)
        return self.log_prob_of_power(value.real.square() + value.imag.square())

    def log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob(x)` given power = |x|^2."""
        return self._log_prob_of_scaled(
            ((torch.log(power + VARIANCE_FLOOR) - self.low) / (self.high - self.low)).clamp(0, 1)
        )

    def _log_prob_of_scaled(self, scaled: Tensor) -> Tensor:
        logits, scaled = torch.broadcast_tensors(self.logits, scaled)
        return -functional.binary_cross_entropy_with_logits(logits, scaled, reduction="none")

    def entropy(self) -> Tensor:
        """-m log(m) - (1 - m) log(1 - m), in nats."""
        return -self._log_prob_of_scaled(self.mean)

    def summed_log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob_of_power(power).sum(-1)`."""
        return self.log_prob_of_power(power).sum(-1)


class LogPowerNormal(Distribution):
    """Squared error on the standardised log power: u = (log(|x|^2 + 1e-6) - mean) / std ~ N(location, 1), a density of
    u and not of x.

    Mean, mode, samples and entropy are those of u, and a real value is u itself, where a complex one is x. Its
    `variance` is the PSD of the complex Gaussian whose mean log power is at `location`: E[log |x|^2] = log PSD -
    gamma.

    Args:
        location: mean of u, any shape.
        mean, std: of the log power, by which it is standardised.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, location: Tensor, mean: Tensor, std: Tensor) -> None:
        self.location, self._mean, self._std = location, mean, std
        super().__init__(location.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E[u]."""
        return self.location

    @property
    def mode(self) -> Tensor:
        return self.location

    @property
    def variance(self) -> Tensor:
        return torch.exp(self._mean + self._std * self.location + EULER_GAMMA)

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> LogPowerNormal:
        new, shape = self._get_checked_instance(LogPowerNormal, _instance), torch.Size(batch_shape)
        new.location, new._mean, new._std = self.location.expand(shape), self._mean, self._std
        super(LogPowerNormal, new).__init__(shape, validate_args=False)
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparameterised samples of u."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.location + torch.randn(shape, dtype=self.location.dtype, device=self.location.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of u, in nats: that of a complex x, or u itself where the value is real."""
        if not value.is_complex():
            return self._log_prob_of_standardised(value)
        return self.log_prob_of_power(value.real.square() + value.imag.square())

    def log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob(x)` given power = |x|^2."""
        return self._log_prob_of_standardised((torch.log(power + VARIANCE_FLOOR) - self._mean) / self._std)

    def _log_prob_of_standardised(self, standardised: Tensor) -> Tensor:
        return -0.5 * (standardised - self.location).square() - 0.5 * math.log(2 * math.pi)

    def entropy(self) -> Tensor:
        """Half of 1 + log(2 pi), in nats."""
        return torch.full_like(self.location, 0.5 * (1 + math.log(2 * math.pi)))

    def summed_log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob_of_power(power).sum(-1)`."""
        return self.log_prob_of_power(power).sum(-1)
