"""DSAE: the disentangled sequential autoencoder, one latent for what lasts and one for what moves."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.models.dynamics import Dynamical
from audiovae.models.latents import standard_normal
from audiovae.models.vae import EVERYTHING, Factor, Inference, in_every_frame
from audiovae.networks.bins import ToBins
from audiovae.networks.lstm import SequenceLSTM, shift, tanh_layers
from audiovae.networks.mlp import start_small
from audiovae.settings import DSAESettings


class DSAE(Dynamical):
    """A vector v for the whole sequence (the voice) and a chain of latents z (what is said).

    Generation: p(x, z, v) = p(v) prod_t p(x_t | z_t, v) p(z_t | z_{1:t-1}), causal, v known from the start; p(v) = N(0,
    I).
    Inference: q(z, v | x) = q(v | x_{1:T}) prod_t q(z_t | v, x_{1:T}), which sees everything, and no other z.

    The likelihood needs no past x. The last `sequence_dim` coordinates of the latents are v in every frame; a decoder
    given others takes their mean.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes; `latent_dim` is that of z alone.

    Raises:
        ValueError: a size that makes no network.

    Reference: Y. Li and S. Mandt, "Disentangled sequential autoencoder", ICML 2018.
    """

    factorised_posterior = False  # z_t is inferred given the drawn v
    lookahead = EVERYTHING  # v is of the whole sequence

    def __init__(self, n_freqs: int, settings: DSAESettings = DSAESettings()) -> None:
        if min(settings.latent_dim, settings.sequence_dim) < 1:
            raise ValueError(
                f"latent_dim and sequence_dim must be positive, got {settings.latent_dim} and {settings.sequence_dim}"
            )
        super().__init__(n_freqs, settings, settings.latent_dim + settings.sequence_dim)
        self._frame_dim = settings.latent_dim
        self.sequence_encoder = SequenceLSTM(n_freqs, settings.width, "both")
        self.to_sequence = nn.Linear(2 * settings.width, 2 * settings.sequence_dim)
        self.encoder = SequenceLSTM(n_freqs + settings.sequence_dim, settings.width, "both")
        self.smoother = nn.RNN(2 * settings.width, settings.width, batch_first=True)
        self.to_latents = nn.Linear(settings.width, 2 * self._frame_dim)
        self.transition = SequenceLSTM(self._frame_dim, settings.width)
        self.to_prior = nn.Linear(settings.width, 2 * self._frame_dim)
        self.decoder = nn.Sequential(
            *tanh_layers(self.latent_dim, *settings.emission),
            ToBins([self.latent_dim, *settings.emission][-1], self.observation.n_outputs),
        )
        start_small(self.to_sequence, self.to_latents, self.to_prior, cast(nn.Linear, self.decoder[-1]))

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        x = self._inputs(power, condition)
        states = self.sequence_encoder(x)
        forward, backward = states.chunk(2, dim=-1)
        ends = torch.cat([forward[..., -1, :], backward[..., 0, :]], dim=-1)  # both have seen it all
        of_sequence = self.latents.from_outputs(self.to_sequence(ends).to(power.dtype))
        v = of_sequence.mean if mean else of_sequence.rsample()
        states = self.encoder(torch.cat([x, in_every_frame(v, x.shape[-2])], dim=-1))
        with torch.autocast(power.device.type, enabled=False):
            smoothed = self.smoother(states.reshape(-1, *states.shape[-2:]))[0].reshape(*states.shape[:-1], -1)
        posterior = self.latents.from_outputs(self.to_latents(smoothed).to(power.dtype))
        z = posterior.mean if mean else posterior.rsample()
        factors = (Factor(posterior, self.prior(z)), Factor(of_sequence, standard_normal(v), per_frame=False))
        return Inference(torch.cat([z, in_every_frame(v, z.shape[-2])], dim=-1), factors)

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        states = self.transition(shift(latents[..., : self._frame_dim]))
        return self.latents.from_outputs(self.to_prior(states).to(latents.dtype))

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        z, v = latents.split([self._frame_dim, self.latent_dim - self._frame_dim], dim=-1)
        return cast(Tensor, self.decoder(torch.cat([z, in_every_frame(v.mean(-2), z.shape[-2])], dim=-1)))

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        z, state, drawn = self.log_power.mean.new_zeros(self._frame_dim), None, []
        for _ in range(n_frames):
            output, state = self.transition.step(z, state)
            z = self.latents.from_outputs(self.to_prior(output)).sample()
            drawn.append(z)
        v = torch.randn_like(z.new_zeros(self.latent_dim - self._frame_dim))
        return torch.cat([torch.stack(drawn), in_every_frame(v, n_frames)], dim=-1)
