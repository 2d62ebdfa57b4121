"""Models whose frames are independent: one latent vector each, one decoder for all."""

from __future__ import annotations

from abc import ABC
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.models.sound_vae import SoundVAE
from audiovae.models.vae import Factor, Inference
from audiovae.networks.temporal import stream


class FrameWise(SoundVAE, ABC):
    """p(x, z | y) = prod_t p(x_t | z_t, y) p(z_t), with any latents and likelihood; its subclasses are its encoders.

    Attributes:
        encoder: standardised log power of the frames (and labels y) to the parameters of q(z_t | ...).
        decoder: z_t (and y) to a spectrum.
    """

    frames_are_independent = True
    encoder: nn.Sequential
    decoder: nn.Sequential

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        outputs = self.encoder(self.conditions.join(self.log_power(power), condition))
        posterior = self.latents.from_outputs(outputs.to(power.dtype))  # back from mixed precision
        latents = self.latents.centre(posterior) if mean else posterior.rsample()
        return Inference(latents, (Factor(posterior, self.prior(latents) if self.has_prior else None),))

    def mean_path(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch frame latent"], Tensor | None]:
        x = self.conditions.join(self.log_power(power), condition)
        if self.context and not self.lookahead:
            outputs, state = stream(self.encoder, x, state)
        else:
            outputs, state = self.encoder(x), None
        return self.latents.centre(self.latents.from_outputs(outputs.to(power.dtype))), state

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        return self.latents.prior(latents)

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        return cast(Tensor, self.decoder(self.conditions.join(self.latents.features(latents), condition)))

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        return self.latents.prior(self.log_power.mean.new_zeros(n_frames, self.latent_dim)).sample()
