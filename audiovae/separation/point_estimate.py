"""PEEM: the latents as a point, moved by gradient steps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.e_step import Draws
from audiovae.separation.energy import LatentEnergy, gradient


class PointEstimate:
    """The E-step of PEEM: a few steps of Adam down the energy, whose state lasts from one E-step to the next.

    Args:
        n_steps: gradient steps in one E-step.
        learning_rate: of Adam, in units of the latents, whose prior is of unit size.

    Raises:
        ValueError: no step, or a learning rate that is not positive.

    Reference: D. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """

    def __init__(self, n_steps: int = 2, learning_rate: float = 0.15) -> None:
        if n_steps < 1 or learning_rate <= 0:
            raise ValueError(f"n_steps must be at least 1 and learning_rate positive, got {n_steps} and {learning_rate}")
        self.n_steps, self.learning_rate = n_steps, learning_rate

    def begin(self, energy: LatentEnergy, latents: Float[Tensor, "recording frame latent"]) -> None:
        self._energy = energy
        self._latents = latents.clone()
        self._adam = torch.optim.Adam([self._latents], self.learning_rate, betas=(0.9, 0.99))

    def draws(self) -> Draws:
        for _ in range(self.n_steps):
            _, self._latents.grad = gradient(self._energy, self._latents)
            self._adam.step()
        return Draws(self._latents.unsqueeze(0))
