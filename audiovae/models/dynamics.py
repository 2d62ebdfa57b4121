"""What dynamical models share: their parts, their inputs, and a path of latents from a stochastic recurrence."""

from __future__ import annotations

from abc import ABC
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent

from audiovae.errors import ConditionError, LatentError
from audiovae.models.latents import Gaussian, normal
from audiovae.models.sound_vae import SoundVAE
from audiovae.networks.recurrence import StochasticRecurrence
from audiovae.settings import DynamicalSettings

RECURRENT_CONTEXT = 64  # frames after which what a recurrence remembers is taken to make no difference: one second


class Dynamical(SoundVAE, ABC):
    """A published dynamical VAE: Gaussian latents, no labels, standardised log power in, any likelihood out.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.
        latent_dim: width of a frame's latents, where it is not that of the settings.

    Attributes:
        draws_in_turn: is each latent vector inferred from the one drawn before it, in a recurrence?
    """

    context = lookahead = RECURRENT_CONTEXT
    cautious = True
    draws_in_turn: bool = False

    def __init__(self, n_freqs: int, settings: DynamicalSettings, latent_dim: int | None = None) -> None:
        dim = settings.latent_dim if latent_dim is None else latent_dim
        super().__init__(n_freqs, settings, Gaussian(dim, settings.posterior_scale))

    def mean_path(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch frame latent"], Tensor | None]:
        if self.draws_in_turn:
            raise LatentError(
                f"{type(self).__name__} infers each latent vector from the one before it: it has no graph to export"
            )
        return self.infer(power, condition, mean=True).latents, None

    def _inputs(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        """What encoders see: the standardised log power; raises ConditionError for a condition."""
        if condition is not None:
            raise ConditionError(f"a condition was given to {type(self).__name__}, which takes none")
        return cast(Tensor, self.log_power(power))


def path(
    recurrence: StochasticRecurrence,
    drive: Float[Tensor, "*batch frame drive"],
    mean: bool,
    input_drive: Tensor | None = None,
) -> tuple[Tensor, Independent, Tensor | None]:
    """Latents along one path, the posterior along it, and the LSTM's states."""
    shape = (*drive.shape[:-1], recurrence.latent_dim)
    dtype = recurrence.mixer.weight.dtype
    noise = (
        torch.zeros(shape, dtype=dtype, device=drive.device)
        if mean
        else torch.randn(shape, dtype=dtype, device=drive.device)
    )
    out = recurrence(drive, noise, input_drive)
    return out.latents, normal(out.loc, out.scale), out.states
