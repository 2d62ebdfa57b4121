"""Likelihoods: how a decoder's output becomes p(x | z)."""

from __future__ import annotations

import math
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal
from torch.nn import functional

from audiovae.distributions import ComplexNormal, ComplexStudentT, LogPowerNormal, ScaledBernoulli, SteppedCategorical
from audiovae.networks.log_power import EULER_GAMMA, SMALLEST_DEVIATION, VARIANCE_FLOOR
from audiovae.settings import DataName, LikelihoodName

_RANGE = (0.001, 0.999)  # quantiles of the log power that become 0 and 1 in a scaled spectrogram
DENSITIES = ("complex-gaussian", "complex-student-t")  # of the complex STFT
_OF_ARRAYS = ("gaussian", "categorical")
_SMALLEST_VARIANCE, _LARGEST_LOG_VARIANCE = 1e-4, 20.0  # of arrays
_CALIBRATION_VALUES = 2**20  # of a training corpus that the quantiles are taken from
_FIRST_DF = 10.0


class Observation(nn.Module):
    """p(x | z) from a decoder's output o and one constant b per bin.

    * complex-gaussian: x ~ N_C(0, exp(o + b)).
    * complex-student-t: the same scale with heavy tails; degrees of freedom above 2, one number, learnt.
    * bernoulli: the log power scaled to 0..1, as if it were a probability, with mean sigmoid(o + b): the textbook's. No
      density.
    * squared-error: the log power, standardised as `LogPower` does it, ~ N(o + b, 1). No density of x.

    Of arrays in [0, 1] it is torch's own: x ~ Bernoulli(sigmoid(o + b)), whose log_prob of a real x is minus the binary
    cross-entropy, or x ~ N(o + b, 1). Two more have several outputs for each bin:

    * gaussian: x ~ N(o + b, v) with v = exp(o' + b') + 1e-4: without that floor the density of a bin that is constant
      has no bound.
    * categorical: x is one of `n_values` numbers, evenly from 0 to 1, with the probabilities softmax(o + b).

    Args:
        n_freqs: bins.
        likelihood: which of them.
        data: what x is, see `ModelSettings`.
        variance_floor: smallest variance or scale of a density.
        n_values: of a categorical x.

    Raises:
        ValueError: an unknown one, a density of the STFT for arrays, one of arrays for sound, or fewer than two values.

    Attributes:
        n_outputs: numbers that a decoder gives for a frame.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        n_freqs: int,
        likelihood: LikelihoodName,
        data: DataName = "sound",
        variance_floor: float = VARIANCE_FLOOR,
        n_values: int = 256,
    ) -> None:
        super().__init__()
        if likelihood not in get_args(LikelihoodName):
            raise ValueError(f"likelihood must be one of {', '.join(get_args(LikelihoodName))}, got {likelihood!r}")
        if data == "array" and likelihood in DENSITIES:
            raise ValueError(
                f"likelihood must be bernoulli, squared-error, gaussian or categorical for arrays, got {likelihood!r}"
            )
        if data == "sound" and likelihood in _OF_ARRAYS:
            raise ValueError(f"the likelihood {likelihood!r} is of arrays (data: array), not of sound")
        if likelihood == "categorical" and n_values < 2:
            raise ValueError(f"n_values must be at least 2, got {n_values}")
        self.likelihood, self.data, self.variance_floor = likelihood, data, variance_floor
        self._per_bin = {"gaussian": 2, "categorical": n_values}.get(likelihood, 1)
        self.n_outputs = n_freqs * self._per_bin
        self.bias = nn.Parameter(torch.zeros(self.n_outputs))
        if likelihood == "complex-student-t":
            self.raw_df = nn.Parameter(torch.tensor(math.log(math.expm1(_FIRST_DF - 2))))
        if data == "array":
            return
        if likelihood == "bernoulli":
            self.register_buffer("low", torch.tensor(-1.0))
            self.register_buffer("high", torch.tensor(1.0))
        if likelihood == "squared-error":
            self.register_buffer("mean", torch.zeros(n_freqs))
            self.register_buffer("std", torch.ones(n_freqs))

    @torch.no_grad()
    def calibrate(self, power: Float[Tensor, "frame freq"], cautious: bool = False) -> None:
        """Start at the mean spectrum of training frames, and take the range or the deviation of their log power.

        Args:
            cautious: start a density at the mean power instead of the mean of its logarithm: slower, but without the
                huge first losses of loud frames, from which some models fall into a state that ignores its latents.
        """
        if self.data == "array":
            self.bias.copy_(self._start_of_arrays(power).flatten())
            return
        log_power = torch.log(power + VARIANCE_FLOOR)
        mean = log_power.mean(0)
        if self.likelihood == "bernoulli":
            values = log_power.flatten()[:: max(1, log_power.numel() // _CALIBRATION_VALUES)].sort().values
            low, high = (values[round(q * (len(values) - 1))] for q in _RANGE)
            self.low.copy_(low)
            self.high.copy_(torch.maximum(high, low + 1))
            share = ((mean - self.low) / (self.high - self.low)).clamp(0.01, 0.99)
            self.bias.copy_(torch.logit(share))
        elif self.likelihood == "squared-error":
            self.mean.copy_(mean)
            self.std.copy_(log_power.std(0, correction=0).clamp(min=SMALLEST_DEVIATION))
        elif cautious:
            self.bias.copy_(torch.log(power.mean(0) + VARIANCE_FLOOR))
        else:
            self.bias.copy_(mean + EULER_GAMMA)  # E[log |x|^2] = log variance - gamma

    def _start_of_arrays(self, x: Float[Tensor, "frame freq"]) -> Tensor:
        """The bias at which a decoder that says nothing gives the distribution of each bin over some frames."""
        mean = x.mean(0)
        if self.likelihood == "bernoulli":
            return torch.logit(mean.clamp(0.01, 0.99))
        if self.likelihood == "gaussian":
            return torch.stack([mean, torch.log(x.var(0, correction=0) + _SMALLEST_VARIANCE)], dim=-1)
        if self.likelihood == "categorical":
            last = self._per_bin - 1
            steps = (x * last).round().long()
            counts = torch.stack([torch.bincount(of_bin, minlength=last + 1) for of_bin in steps.unbind(-1)])
            return torch.log((counts + 1) / (len(x) + last + 1))  # as if each value had been seen once more
        return mean

    def forward(self, output: Float[Tensor, "*batch output"]) -> Independent:
        """Batch `[..., frame]`, event `[freq]`; of sound `variance` is or stands for the PSD. Takes over the output's
        memory.
        """
        value = output.to(self.bias.dtype).add_(self.bias)  # back from mixed precision
        of_bins: Distribution
        if self.likelihood == "complex-gaussian":
            of_bins = ComplexNormal(log_variance=value, floor=self.variance_floor, validate_args=False)
        elif self.likelihood == "complex-student-t":
            df = 2 + functional.softplus(self.raw_df)
            of_bins = ComplexStudentT(df, log_scale=value, floor=self.variance_floor, validate_args=False)
        elif self.likelihood == "gaussian":
            mean, log_variance = value.unflatten(-1, (-1, 2)).unbind(-1)
            variance = log_variance.clamp(max=_LARGEST_LOG_VARIANCE).exp() + _SMALLEST_VARIANCE
            of_bins = Normal(mean, variance.sqrt(), validate_args=False)
        elif self.likelihood == "categorical":
            of_bins = SteppedCategorical(value.unflatten(-1, (-1, self._per_bin)), validate_args=False)
        elif self.data == "array" and self.likelihood == "bernoulli":
            of_bins = Bernoulli(logits=value, validate_args=False)
        elif self.data == "array":
            of_bins = Normal(value, 1.0, validate_args=False)
        elif self.likelihood == "bernoulli":
            of_bins = ScaledBernoulli(value, self.low, self.high)
        else:
            of_bins = LogPowerNormal(value, self.mean, self.std)
        return Independent(of_bins, 1, validate_args=False)
