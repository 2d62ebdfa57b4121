"""Models whose frames are independent: one latent vector each, one decoder for all."""

from __future__ import annotations

from abc import ABC

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.errors import LatentError
from audiovae.models.conditions import Conditions
from audiovae.models.latents import latent_family
from audiovae.models.observation import Observation
from audiovae.models.vae import VAE, Inference
from audiovae.networks.log_power import LogPower
from audiovae.settings import ModelSettings


class FrameWise(VAE, ABC):
    """p(x, z | y) = prod_t p(x_t | z_t, y) p(z_t), with any latents and any likelihood; its subclasses are its encoders.

    Attributes:
        encoder: standardised log power of the frames (and labels y) to the parameters of q(z_t | ...).
        decoder: z_t (and y) to a spectrum.
    """

    frames_are_independent = True
    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(self, n_freqs: int, settings: ModelSettings) -> None:
        super().__init__()
        self.n_freqs, self.latent_dim, self.settings = n_freqs, settings.latent_dim, settings
        self.latents = latent_family(settings)
        self.conditions = Conditions(settings.labels)
        self.log_power = LogPower(n_freqs)
        self.observation = Observation(n_freqs, settings.likelihood)

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
        if self.latents.name == "point":
            raise LatentError("an autoencoder has no prior to draw from; train a VAE for that")
        return self.latents.prior(self.log_power.mean.new_zeros(n_frames, self.latent_dim)).sample()
