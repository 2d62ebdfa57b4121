"""The autoencoder: a deterministic code for every frame, and no prior."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.errors import LatentError
from audiovae.models.conditions import Conditions
from audiovae.models.latents import latent_family
from audiovae.models.observation import Observation
from audiovae.models.vae import VAE, Inference
from audiovae.networks.log_power import LogPower
from audiovae.networks.mlp import mlp, start_small
from audiovae.settings import AutoencoderSettings


class Autoencoder(VAE):
    """z_t = f(x_t), trained on log p(x_t | z_t) alone: squared error on the log power, cross-entropy on a scaled spectrogram, or a density.

    Its KL is zero, for there is no prior: it can be neither sampled nor plugged into a separator as one.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network, or labels.
    """

    frames_are_independent = True

    def __init__(self, n_freqs: int, settings: AutoencoderSettings = AutoencoderSettings()) -> None:
        super().__init__()
        if settings.latent != "point":
            raise ValueError(f"latent must be point in an autoencoder, got {settings.latent!r}: its code is no distribution; see FrameVAE")
        if settings.labels:
            raise ValueError("an autoencoder takes no labels; see FrameVAE")
        self.n_freqs, self.latent_dim, self.settings = n_freqs, settings.latent_dim, settings
        self.latents = latent_family(settings)
        self.conditions = Conditions({})
        self.log_power = LogPower(n_freqs)
        self.observation = Observation(n_freqs, settings.likelihood)
        options = (settings.activation, settings.dropout, settings.residual)
        self.encoder = mlp([n_freqs, *settings.hidden, self.latent_dim], *options)
        self.decoder = mlp([self.latent_dim, *reversed(settings.hidden), n_freqs], *options, last_bias=False)
        start_small(cast(nn.Linear, self.decoder[-1]))

    def calibrate(self, power: Float[Tensor, "frame freq"]) -> None:
        self.log_power.calibrate(power)
        self.observation.calibrate(power)

    def infer(self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False) -> Inference:
        posterior = self.latents.from_outputs(self.encoder(self.log_power(power)).to(power.dtype))
        return Inference(posterior.mean, posterior, self.prior(posterior.mean))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        return self.latents.prior(latents)

    def likelihood(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        self.latents.check(latents)
        return self.observation(self.decoder(latents))

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        raise LatentError("an autoencoder has no prior to draw from; train a VAE for that")
