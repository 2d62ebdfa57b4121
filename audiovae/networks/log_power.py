"""Frames as a network sees them: of sound the standardised log power or the power, of arrays the numbers they are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovae.distributions.complex_normal import EULER_GAMMA, VARIANCE_FLOOR
from audiovae.settings import DataName, InputName

SMALLEST_DEVIATION = (
    1.0  # that log power is divided by; that of Gaussian noise of constant variance is pi / sqrt(6) = 1.28
)


class LogPower(nn.Module):
    """Standardised log power of a spectrogram at unit level.

    `forward(power) = (log(power + VARIANCE_FLOOR) - mean) / std`, with the mean and the standard deviation of each bin
    over the training data, set once by `calibrate` and saved with the model.

    A deviation counts as `SMALLEST_DEVIATION` at the least, for a bin that hardly varies in training holds no sound: of
    speech at 16 kHz all 513 have 2.95 or more, of the same speech without its band above 4 kHz 216 have less than one
    (0.12 to 0.96). Divided by those, speech with its whole band would stand at 52 on average up there, and at 193 at
    most; so it stands at 12 and at 24.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, n_freqs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_freqs))
        self.register_buffer("std", torch.ones(n_freqs))

    @torch.no_grad()
    def calibrate(self, power: Float[Tensor, "frame freq"]) -> None:
        """Take mean and standard deviation from the power of a few thousand training frames."""
        log_power = torch.log(power + VARIANCE_FLOOR)
        self.mean.copy_(log_power.mean(0))
        self.std.copy_(log_power.std(0, correction=0).clamp(min=SMALLEST_DEVIATION))

    def forward(self, power: Float[Tensor, "*batch freq"]) -> Float[Tensor, "*batch freq"]:
        log_power = power + VARIANCE_FLOOR
        if log_power.requires_grad:
            return (log_power.log() - self.mean) / self.std
        log_power.log_()  # in place: a new array costs more than the arithmetic
        return torch.addcmul(-self.mean / self.std, log_power, 1 / self.std, out=log_power)

    def expected(self, variance: Float[Tensor, "*batch freq"]) -> Float[Tensor, "*batch freq"]:
        """Mean of `forward(|x|^2)` for x ~ N_C(0, variance): E[log |x|^2] = log variance - gamma. What stands for an x
        not seen.
        """
        return (torch.log(variance) - EULER_GAMMA - self.mean) / self.std


class Unchanged(nn.Module):
    """Power, or arrays, as they are: what may stand in the place of `LogPower`."""

    mean: Tensor

    def __init__(self, n_freqs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_freqs), persistent=False)

    def calibrate(self, x: Float[Tensor, "frame freq"]) -> None:
        """Nothing is taken from data."""

    def forward(self, x: Float[Tensor, "*batch freq"]) -> Float[Tensor, "*batch freq"]:
        return x

    def expected(self, variance: Float[Tensor, "*batch freq"]) -> Float[Tensor, "*batch freq"]:
        """Mean of the power of x ~ N_C(0, variance)."""
        return variance


def front_of(data: DataName, network_input: InputName, n_freqs: int) -> LogPower | Unchanged:
    """What networks see of frames."""
    return LogPower(n_freqs) if (data, network_input) == ("sound", "log-power") else Unchanged(n_freqs)
