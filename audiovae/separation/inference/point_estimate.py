"""PEEM: the latents as a point, moved down the energy."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.inference.e_step import Draws
from audiovae.separation.inference.energy import LatentEnergy

_MEMORY = 0.5  # of the curvature's estimates, each of which is noisy


class PointEstimate:
    """The E-step of PEEM: Fisher scoring with momentum. m <- momentum m - clip(gradient / curvature), z <- z + step m.

    The curvature is the running mean of `LatentEnergy.curvature`. It and the momentum last from one E-step to the next.

    Args:
        n_steps: gradient steps in one E-step.
        step: share of the way to the minimum of the quadratic model.
        momentum: share of the last move that is made again.
        refresh: gradient steps from one estimate of the curvature to the next.
        trust: the longest move in a coordinate before the momentum, in units of the latents, whose prior is of unit
            size.

    Raises:
        ValueError: a number out of its range.

    Reference: B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964 (momentum).
    """

    def __init__(
        self, n_steps: int = 2, step: float = 0.2, momentum: float = 0.85, refresh: int = 4, trust: float = 0.6
    ) -> None:
        if min(n_steps, refresh) < 1 or min(step, trust) <= 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"n_steps, step, refresh and trust must be positive and momentum from 0 to below 1, got {n_steps}, "
                f"{step}, {refresh}, "
                f"{trust} and {momentum}"
            )
        self.n_steps, self.step, self.momentum, self.refresh, self.trust = n_steps, step, momentum, refresh, trust

    def begin(self, latents: Float[Tensor, "recording frame latent"], frames_are_independent: bool) -> None:
        self._latents = latents
        self._move = torch.zeros_like(latents)
        self._curvature: Tensor | None = None
        self._taken = 0

    def draws(self, energy: LatentEnergy) -> Draws:
        mixture = energy.mixture
        for _ in range(self.n_steps):
            if self._taken % self.refresh == 0:
                signs = 1 - 2 * (mixture.random(mixture.power.shape[-1], uniform=True) < 0.5).to(mixture.power.dtype)
                found = energy.curvature(self._latents, signs)
                self._curvature = found if self._curvature is None else torch.lerp(found, self._curvature, _MEMORY)
            assert self._curvature is not None
            slope = energy.slope(self._latents)
            self._move = self.momentum * self._move - (slope / self._curvature).clamp(-self.trust, self.trust)
            self._latents = self._latents + self.step * self._move
            self._taken += 1
        return Draws(self._latents.unsqueeze(0))
