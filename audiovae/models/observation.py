"""Likelihoods: how a decoder's output becomes p(x | z)."""

from __future__ import annotations

import math
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal
from torch.nn import functional

from audiovae.distributions import ComplexNormal, ComplexStudentT, LogPowerNormal, ScaledBernoulli
from audiovae.networks.log_power import EULER_GAMMA, SMALLEST_DEVIATION, VARIANCE_FLOOR
from audiovae.settings import DataName, LikelihoodName

_RANGE = (0.001, 0.999)  # quantiles of the log power that become 0 and 1 in a scaled spectrogram
DENSITIES = ("complex-gaussian", "complex-student-t")  # of the complex STFT
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
    cross-entropy, or x ~ N(o + b, 1).

    Args:
        n_freqs: bins.
        likelihood: which of them.
        data: what x is, see `ModelSettings`.

    Raises:
        ValueError: an unknown one, or a density of the STFT for arrays.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, n_freqs: int, likelihood: LikelihoodName, data: DataName = "sound") -> None:
        super().__init__()
        if likelihood not in get_args(LikelihoodName):
            raise ValueError(f"likelihood must be one of {', '.join(get_args(LikelihoodName))}, got {likelihood!r}")
        if data == "array" and likelihood in DENSITIES:
            raise ValueError(f"likelihood must be bernoulli or squared-error for arrays, got {likelihood!r}")
        self.likelihood, self.data = likelihood, data
        self.bias = nn.Parameter(torch.zeros(n_freqs))
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
            mean = power.mean(0)
            self.bias.copy_(torch.logit(mean.clamp(0.01, 0.99)) if self.likelihood == "bernoulli" else mean)
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

    def forward(self, output: Float[Tensor, "*batch freq"]) -> Independent:
        """Batch `[..., frame]`, event `[freq]`; of sound `variance` is or stands for the PSD. Takes over the output's
        memory.
        """
        value = output.to(self.bias.dtype).add_(self.bias)  # back from mixed precision
        of_bins: Distribution
        if self.likelihood == "complex-gaussian":
            of_bins = ComplexNormal(log_variance=value, floor=VARIANCE_FLOOR, validate_args=False)
        elif self.likelihood == "complex-student-t":
            df = 2 + functional.softplus(self.raw_df)
            of_bins = ComplexStudentT(df, log_scale=value, floor=VARIANCE_FLOOR, validate_args=False)
        elif self.data == "array":
            is_binary = self.likelihood == "bernoulli"
            of_bins = (
                Bernoulli(logits=value, validate_args=False) if is_binary else Normal(value, 1.0, validate_args=False)
            )
        elif self.likelihood == "bernoulli":
            of_bins = ScaledBernoulli(value, self.low, self.high)
        else:
            of_bins = LogPowerNormal(value, self.mean, self.std)
        return Independent(of_bins, 1, validate_args=False)
