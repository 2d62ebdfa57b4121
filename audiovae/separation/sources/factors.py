"""What the sources' multiplicative and log-normal updates share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_TINY = 1e-30
_NEWTON_STEPS = 4


def root(numerator: Tensor, denominator: Tensor) -> Tensor:
    """sqrt(numerator / denominator), 1 where both are zero: a knot or a recording's padding that nothing speaks for."""
    return torch.where(denominator > 0, (numerator / denominator.clamp(min=_TINY)).sqrt(), 1.0)


def sum_to_one(
    spectra: Float[Tensor, "recording freq component"], activations: Float[Tensor, "recording _ component"]
) -> tuple[Tensor, Tensor]:
    """The same product, with spectra that sum to one each."""
    norm = spectra.sum(1, keepdim=True).clamp(min=_TINY)
    return spectra / norm, activations * norm


def bands(n_bands: int, like: Float[Tensor, "*batch freq"]) -> Float[Tensor, "freq band"]:
    """Overlapping triangles that sum to one at every frequency, narrower at low ones: their centres go with its square
    root.
    """
    place, centres = (torch.linspace(0, 1, n, dtype=like.dtype, device=like.device) for n in (like.shape[-1], n_bands))
    distance = (place.sqrt()[:, None] - centres).abs()
    triangles = (1 - distance * max(1, n_bands - 1)).clamp(min=0.0)
    return triangles / triangles.sum(-1, keepdim=True)


def log_normal_update(u: Tensor, fall: Tensor, rise: Tensor, stiffness: float) -> Tensor:
    """The minimum over u' of fall exp(u - u') + rise exp(u' - u) + stiffness u'^2 / 2, by Newton's method: convex."""
    new = u
    for _ in range(_NEWTON_STEPS):
        down, up = fall * torch.exp(u - new), rise * torch.exp(new - u)
        new = new - (up - down + stiffness * new) / (up + down + stiffness)
    return new
