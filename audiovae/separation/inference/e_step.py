"""The E-step: what every algorithm gives, latents that stand for their posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from audiovae.separation.inference.energy import LatentEnergy


@dataclass(frozen=True)
class Draws:
    """What an E-step says of the posterior.

    Attributes:
        latents: that stand for it, zeros or anything in the padding.
        acceptance: share of the proposals that were accepted; None where nothing can be refused.
        effective_samples: how many independent draws the steps of a chain are worth, on average over frames and
            latents; None where there is no chain. Of a path of a few steps, which is measured against its own mean, it
            says little.
    """

    latents: Float[Tensor, "sample recording frame latent"]
    acceptance: Float[Tensor, " recording"] | None = None
    effective_samples: Float[Tensor, " recording"] | None = None


@runtime_checkable
class EStep(Protocol):
    """How the latents' posterior is approximated, given all else."""

    def begin(self, latents: Float[Tensor, "recording frame latent"], frames_are_independent: bool) -> None:
        """Start at these latents; see `VAE.frames_are_independent`."""

    def draws(self, energy: LatentEnergy) -> Draws:
        """One E-step with the energy as it is now."""
