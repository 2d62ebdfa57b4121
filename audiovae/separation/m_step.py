"""The M-step: noise, gain and colour given samples of the speech. No update increases the mean over samples of sum_ft log V + P / V."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.energy import LatentEnergy
from audiovae.separation.noise import NoiseModel, Statistics, bands

_NEWTON_STEPS = 4


def update_noise(noise: NoiseModel, energy: LatentEnergy, speech: Float[Tensor, "sample recording frame freq"]) -> None:
    """One M-step of the noise with fixed samples: never increases the mean over them of sum_ft log V + P / V."""
    inside = energy.mixture.inside.unsqueeze(-1)

    def statistics() -> Statistics:
        energy.noise = noise.variance()
        precision = 1 / energy.mixture_variance(speech)
        numerator = (energy.mixture.power * precision.square()).mean(0)
        return Statistics(numerator * inside, precision.mean(0) * inside)

    noise.update(statistics)
    energy.noise = noise.variance()


def update_gain(energy: LatentEnergy, speech: Float[Tensor, "sample recording frame freq"], deviation: float) -> None:
    """One M-step of the gain of every frame with fixed samples: never increases the objective with log g_t ~ N(0, deviation^2)."""
    fall, rise = _slopes(energy, speech)
    log_gain = _log_normal_update(energy.gain.log(), fall.sum(-1), rise.sum(-1), energy.prior_weight / deviation**2)
    energy.gain = torch.where(energy.mixture.inside, log_gain.exp(), 1.0)


def update_colour(
    energy: LatentEnergy,
    speech: Float[Tensor, "sample recording frame freq"],
    deviation: float,
    log_colour: Float[Tensor, "recording band"],
) -> Float[Tensor, "recording band"]:
    """The same of the colour, whose logarithm lies on straight lines between centres of bands, there N(0, deviation^2).

    exp is convex, so that the bound of every frequency is at most its bands' with the shares that it has in them.

    Args:
        log_colour: at the centres, as it is.

    Returns:
        as it becomes; `energy.colour` follows it.
    """
    fall, rise = _slopes(energy, speech)
    shares = bands(log_colour.shape[-1], speech.shape[-1], speech.device).to(fall.dtype)
    stiffness = energy.prior_weight / deviation**2
    log_colour = _log_normal_update(log_colour, fall.sum(-2) @ shares, rise.sum(-2) @ shares, stiffness)
    energy.colour = (log_colour @ shares.mT).exp()
    return log_colour


def _slopes(energy: LatentEnergy, speech: Float[Tensor, "sample recording frame freq"]) -> tuple[Tensor, Tensor]:
    """Of the bound log V + P / V <= a / r + b r + constant, for a speech s = g c v that is r times as strong, a = s P / V^2 and b = s / V.

    Means over samples, zero in the padding. The reference is that of `NoiseModel`.
    """
    inside = energy.mixture.inside.unsqueeze(-1)
    scaled = energy.scaled(speech)
    precision = 1 / (scaled + energy.noise)
    rise = scaled * precision
    return (rise * precision * energy.mixture.power).mean(0) * inside, rise.mean(0) * inside


def _log_normal_update(u: Tensor, a: Tensor, b: Tensor, stiffness: float) -> Tensor:
    """The minimum over u' of the convex a exp(u - u') + b exp(u' - u) + stiffness u'^2 / 2, by Newton's method."""
    new = u
    for _ in range(_NEWTON_STEPS):
        down, up = a * torch.exp(u - new), b * torch.exp(new - u)
        new = new - (up - down + stiffness * new) / (up + down + stiffness)
    return new
