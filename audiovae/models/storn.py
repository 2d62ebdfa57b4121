"""STORN: the stochastic recurrent network, an autoregressive decoder driven by independent latents."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.models.dynamics import Dynamical
from audiovae.models.latents import standard_normal
from audiovae.models.vae import Factor, Inference
from audiovae.networks.bins import ToBins
from audiovae.networks.lstm import SequenceLSTM, shift, tanh_layers
from audiovae.networks.mlp import start_small
from audiovae.settings import STORNSettings


class STORN(Dynamical):
    """A recurrent network over past spectra and latents.

    Generation: p(x, z) = prod_t p(x_t | x_{1:t-1}, z_{1:t}) p(z_t), causal; p(z_t) = N(0, I).
    Inference: q(z | x) = prod_t q(z_t | x_{1:t}), causal (the exact posterior sees past z and future x too).

    The likelihood needs past x: teacher forcing where it is given, else the model feeds on its own variances.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.

    Reference: J. Bayer and C. Osendorfer, "Learning stochastic recurrent networks", 2014.
    """

    needs_past = True

    def __init__(self, n_freqs: int, settings: STORNSettings = STORNSettings()) -> None:
        super().__init__(n_freqs, settings)
        self.features = tanh_layers(n_freqs, settings.features)
        self.encoder = SequenceLSTM(settings.features, settings.width)
        self.to_latents = nn.Sequential(*tanh_layers(settings.width, 64, 32), nn.Linear(32, 2 * self.latent_dim))
        self.past_features = tanh_layers(n_freqs, settings.features)
        self.latent_features = tanh_layers(self.latent_dim, 32, 64)
        self.decoder = SequenceLSTM(settings.features + 64, settings.width)
        self.to_spectrum = nn.Sequential(
            *tanh_layers(settings.width, settings.features),
            ToBins(settings.features, self.observation.n_outputs),
        )
        start_small(cast(nn.Linear, self.to_latents[-1]), cast(nn.Linear, self.to_spectrum[-1]))

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        states = self.encoder(self.features(self._inputs(power, condition)))
        posterior = self.latents.from_outputs(self.to_latents(states).to(power.dtype))
        latents = posterior.mean if mean else posterior.rsample()
        return Inference(latents, (Factor(posterior, self.prior(latents)),))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        return standard_normal(latents)

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        z = self.latent_features(latents)
        if past is None:
            return self._run_freely(z)
        before = self.past_features(shift(self.log_power(past)))
        return cast(Tensor, self.to_spectrum(self.decoder(torch.cat([before, z], dim=-1))))

    def _run_freely(self, z: Float[Tensor, "*batch frame feature"]) -> Float[Tensor, "*batch frame freq"]:
        before, state, outputs = z.new_zeros(*z.shape[:-2], self.n_freqs), None, []
        for t in range(z.shape[-2]):
            hidden, state = self.decoder.step(torch.cat([self.past_features(before), z[..., t, :]], dim=-1), state)
            outputs.append(self.to_spectrum(hidden))
            before = self.expected_input(outputs[-1].clone())
        return torch.stack(outputs, dim=-2)

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        return torch.randn_like(self.log_power.mean.new_zeros(n_frames, self.latent_dim))
