"""No E-step: the latents are those that an encoder gave."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from audiovae.separation.inference.e_step import Draws
from audiovae.separation.inference.energy import LatentEnergy


class Amortised:
    """The E-step of amortised inference: latents stay where they begin."""

    def begin(self, latents: Float[Tensor, "recording frame latent"], frames_are_independent: bool) -> None:
        self._latents = latents

    def draws(self, energy: LatentEnergy) -> Draws:
        return Draws(self._latents.unsqueeze(0))
