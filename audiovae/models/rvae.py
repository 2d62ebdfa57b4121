"""RVAE: the recurrent VAE, causal or not in generation."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.models.dynamics import Dynamical, path
from audiovae.models.latents import standard_normal
from audiovae.models.vae import Factor, Inference
from audiovae.networks.bins import ToBins
from audiovae.networks.lstm import SequenceLSTM
from audiovae.networks.mlp import start_small
from audiovae.networks.recurrence import StochasticRecurrence
from audiovae.settings import RVAESettings


class RVAE(Dynamical):
    """Latents that are independent a priori, and a recurrent decoder of them.

    Generation: p(x, z) = prod_t p(x_t | z_{1:t}) p(z_t) if causal, else prod_t p(x_t | z_{1:T}) p(z_t), with p(z_t) =
    N(0, I).
    Inference: q(z | x) = prod_t q(z_t | z_{1:t-1}, x_{t:T}) if causal, else prod_t q(z_t | z_{1:t-1}, x_{1:T}).

    "Causal" is said of generation: inference sees the future in both. The likelihood needs no past x.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.

    Reference: S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, "A recurrent variational autoencoder for speech
        enhancement", ICASSP 2020.
    """

    factorised_posterior, draws_in_turn = False, True

    def __init__(self, n_freqs: int, settings: RVAESettings = RVAESettings()) -> None:
        if settings.head < 0:
            raise ValueError(f"head must not be negative, got {settings.head}")
        super().__init__(n_freqs, settings)
        self.encoder = SequenceLSTM(n_freqs, settings.width, "backward" if settings.causal else "both")
        self.recurrence = StochasticRecurrence(
            self.latent_dim,
            lstm=settings.width,
            hidden=[settings.head] if settings.head else [],
            scale=settings.posterior_scale,
        )
        self.to_drive = nn.Linear(self.encoder.n_outputs, self.recurrence.drive_size)
        self.decoder = SequenceLSTM(self.latent_dim, settings.width, "forward" if settings.causal else "both")
        self.to_spectrum = ToBins(self.decoder.n_outputs, self.observation.n_outputs)
        start_small(self.to_spectrum)

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        drive = self.to_drive(self.encoder(self._inputs(power, condition)))  # g^x
        latents, posterior, _ = path(self.recurrence, drive, mean)
        return Inference(latents, (Factor(posterior, self.prior(latents)),))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        return standard_normal(latents)

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        return cast(Tensor, self.to_spectrum(self.decoder(latents)))

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        return torch.randn_like(self.log_power.mean.new_zeros(n_frames, self.latent_dim))
