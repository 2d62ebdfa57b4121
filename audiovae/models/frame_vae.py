"""The frame-wise VAE: every frame has its own latent vector and is independent of the others."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.models.conditions import Conditions
from audiovae.models.latents import latent_family
from audiovae.models.observation import Observation
from audiovae.models.vae import VAE, Inference
from audiovae.networks.log_power import LogPower
from audiovae.networks.mlp import mlp, start_small
from audiovae.settings import FrameVAESettings


class FrameVAE(VAE):
    """z_t ~ p(z), x_t | z_t ~ p(x | z), q(z_t | x_t): no context in time. Any latents, any likelihood.

    With Gaussian latents and the complex Gaussian likelihood it is z_t ~ N(0, I), x_ft | z_t ~ N_C(0, g_f(z_t)),
    q(z_t | x_t) = N(loc(x_t), scale(x_t)^2). With the Bernoulli likelihood it is the textbook's VAE. With labels y it is the
    conditional VAE p(x | z, y) with q(z | x, y) and p(z): K. Sohn et al., "Learning structured output representation using
    deep conditional generative models", NeurIPS 2015; D. Kingma et al., "Semi-supervised learning with deep generative
    models", NeurIPS 2014 (M2).

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.

    Reference: Y. Bando et al., "Statistical speech enhancement based on probabilistic integration of variational
        autoencoder and non-negative matrix factorization", ICASSP 2018; S. Leglaive, L. Girin, R. Horaud, "A variance
        modeling framework based on variational autoencoders for speech enhancement", MLSP 2018.
    """

    frames_are_independent = True

    def __init__(self, n_freqs: int, settings: FrameVAESettings = FrameVAESettings()) -> None:
        super().__init__()
        self.n_freqs, self.latent_dim, self.settings = n_freqs, settings.latent_dim, settings
        self.latents = latent_family(settings)
        self.conditions = Conditions(settings.labels)
        self.log_power = LogPower(n_freqs)
        self.observation = Observation(n_freqs, settings.likelihood)
        options = (settings.activation, settings.dropout, settings.residual)
        self.encoder = mlp([n_freqs + self.conditions.size, *settings.hidden, self.latents.n_outputs], *options)
        widths = [self.latent_dim + self.conditions.size, *reversed(settings.hidden), n_freqs]
        self.decoder = mlp(widths, *options, last_bias=False)
        start_small(cast(nn.Linear, self.encoder[-1]), cast(nn.Linear, self.decoder[-1]))

    def calibrate(self, power: Float[Tensor, "frame freq"]) -> None:
        self.log_power.calibrate(power)
        self.observation.calibrate(power)

    def infer(self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False) -> Inference:
        outputs = self.encoder(self.conditions.join(self.log_power(power), condition))
        posterior = self.latents.from_outputs(outputs.to(power.dtype))  # back from mixed precision
        latents = self.latents.centre(posterior) if mean else posterior.rsample()
        return Inference(latents, posterior, self.prior(latents))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        return self.latents.prior(latents)

    def likelihood(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        self.latents.check(latents)
        return self.observation(self.decoder(self.conditions.join(self.latents.features(latents), condition)))

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        return self.latents.prior(self.log_power.mean.new_zeros(n_frames, self.latent_dim)).sample()
