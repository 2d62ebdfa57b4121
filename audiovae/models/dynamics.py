"""What dynamical models share: their inputs, and a path of latents from a stochastic recurrence."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent

from audiovae.errors import ConditionError
from audiovae.models.latents import normal
from audiovae.models.vae import VAE
from audiovae.networks.recurrence import StochasticRecurrence

NO_LABELS = "{} takes no labels: its published structure has no place for them; FrameVAE, ContextVAE, DynamicVAE and SequenceVAE do"
RECURRENT_CONTEXT = 64  # frames after which what a recurrence remembers is taken to make no difference: one second


def encoder_inputs(vae: VAE, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None) -> Float[Tensor, "*batch frame freq"]:
    """The standardised log power of a model without labels.

    Raises:
        ConditionError: a condition was given all the same.
    """
    if condition is not None:
        raise ConditionError(f"a condition was given to {type(vae).__name__}, which takes none")
    features: Tensor = vae.log_power(power)  # type: ignore[operator]
    return features


def path(
    recurrence: StochasticRecurrence, drive: Float[Tensor, "*batch frame drive"], mean: bool, input_drive: Tensor | None = None
) -> tuple[Tensor, Independent, Tensor | None]:
    """Latents along one path, the posterior along it, and the LSTM's states."""
    shape = (*drive.shape[:-1], recurrence.latent_dim)
    dtype = recurrence.mixer.weight.dtype
    noise = torch.zeros(shape, dtype=dtype, device=drive.device) if mean else torch.randn(shape, dtype=dtype, device=drive.device)
    out = recurrence(drive, noise, input_drive)
    return out.latents, normal(out.loc, out.scale), out.states
