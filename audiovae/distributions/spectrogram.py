"""Scores of a spectrogram that are no density of x, as older work trains on: binary cross-entropy and squared error."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional

from audiovae.distributions.complex_normal import EULER_GAMMA, VARIANCE_FLOOR


class ScaledBernoulli(Distribution):
    """The textbook's likelihood: s = (log(|x|^2 + 1e-6) - low) / (high - low), cut to 0..1, as a probability.

    log_prob = s log(m) + (1 - s) log(1 - m) with m = sigmoid(logits): minus the binary cross-entropy. It is no density
    of x, nor of s. Its `variance` is the PSD whose mean log power is the one that m stands for.

    Args:
        logits: of m, any shape.
        low, high: log power that becomes 0 and 1.

    Reference: D. Kingma and M. Welling, "Auto-encoding variational Bayes", ICLR 2014, appendix C.1.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, logits: Tensor, low: Tensor, high: Tensor) -> None:
        self.logits, self.low, self.high = logits, low, high
        super().__init__(logits.shape, validate_args=False)

    @property
    def variance(self) -> Tensor:
        return torch.exp(self.low + (self.high - self.low) * torch.sigmoid(self.logits) + EULER_GAMMA)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_prob_of_power(value.real.square() + value.imag.square())

    def log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob(x)` given power = |x|^2."""
        scaled = ((torch.log(power + VARIANCE_FLOOR) - self.low) / (self.high - self.low)).clamp(0, 1)
        logits, scaled = torch.broadcast_tensors(self.logits, scaled)
        return -functional.binary_cross_entropy_with_logits(logits, scaled, reduction="none")

    def summed_log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob_of_power(power).sum(-1)`."""
        return self.log_prob_of_power(power).sum(-1)


class LogPowerNormal(Distribution):
    """Squared error on the standardised log power: u = (log(|x|^2 + 1e-6) - mean) / std ~ N(location, 1), a density of
    u and not of x.

    Its `variance` is the PSD of the complex Gaussian whose mean log power is at `location`: E[log |x|^2] = log PSD -
    gamma.

    Args:
        location: mean of u, any shape.
        mean, std: of the log power, by which it is standardised.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, location: Tensor, mean: Tensor, std: Tensor) -> None:
        self.location, self._mean, self._std = location, mean, std
        super().__init__(location.shape, validate_args=False)

    @property
    def variance(self) -> Tensor:
        return torch.exp(self._mean + self._std * self.location + EULER_GAMMA)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_prob_of_power(value.real.square() + value.imag.square())

    def log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob(x)` given power = |x|^2."""
        standardised = (torch.log(power + VARIANCE_FLOOR) - self._mean) / self._std
        return -0.5 * (standardised - self.location).square() - 0.5 * math.log(2 * math.pi)

    def summed_log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob_of_power(power).sum(-1)`."""
        return self.log_prob_of_power(power).sum(-1)
