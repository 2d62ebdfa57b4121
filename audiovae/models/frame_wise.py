"""Models whose frames are independent: one latent vector each, one decoder for all."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.errors import LatentError
from audiovae.models.latents import LatentFamily
from audiovae.models.sound_vae import SoundVAE
from audiovae.models.vae import Factor, Inference
from audiovae.networks.log_power import VARIANCE_FLOOR
from audiovae.networks.temporal import stream
from audiovae.settings import SoundSettings
from audiovae.stft import power_of


class FrameWise(SoundVAE, ABC):
    """p(x, z | y) = prod_t p(x_t | z_t, y) p(z_t), with any latents and likelihood; its subclasses are its encoders.

    An encoder that sees the phase has x / sqrt(|x|^2 + 1e-6), its real and its imaginary part, beside the log power:
    inside the unit circle, and zero in silence. The level is that of the power. The phase is that of the STFT, counted
    from each frame's first sample: a recording upside down (times -1), or some samples later, is another input.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.
        latents: the family of all coordinates of the latents.
        labels: names and classes of the labels that condition the model.
        phase: the encoder sees the phase.

    Raises:
        ValueError: a label with less than two classes, or a phase of arrays.

    Attributes:
        n_inputs: numbers per frame that the encoder sees, but the labels.
        encoder: what is seen of the frames (and labels y) to the parameters of q(z_t | ...).
        decoder: z_t (and y) to a spectrum.
    """

    frames_are_independent = True
    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(
        self,
        n_freqs: int,
        settings: SoundSettings,
        latents: LatentFamily,
        labels: Mapping[str, Sequence[str]] = {},
        phase: bool = False,
    ) -> None:
        super().__init__(n_freqs, settings, latents, labels)
        if phase and settings.data == "array":
            raise ValueError("phase is of sound, and arrays have none: leave it at false")
        self.sees_phase = phase
        self.n_inputs = n_freqs * (3 if phase else 1)

    def infer(
        self, power: Inexact[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        outputs = self.encoder(self.conditions.join(self._seen(power), condition))
        posterior = self.latents.from_outputs(outputs.to(power.real.dtype))  # back from mixed precision
        latents = self.latents.centre(posterior) if mean else posterior.rsample()
        return Inference(latents, (Factor(posterior, self.prior(latents) if self.has_prior else None),))

    def mean_path(
        self, power: Inexact[Tensor, "*batch frame freq"], condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch frame latent"], Tensor | None]:
        x = self.conditions.join(self._seen(power), condition)
        if self.context and not self.lookahead:
            outputs, state = stream(self.encoder, x, state)
        else:
            outputs, state = self.encoder(x), None
        return self.latents.centre(self.latents.from_outputs(outputs.to(power.real.dtype))), state

    def _seen(self, x: Inexact[Tensor, "*batch frame freq"]) -> Float[Tensor, "*batch frame feature"]:
        if not self.sees_phase:
            return cast(Tensor, self.log_power(x))
        if not x.is_complex():
            raise LatentError(
                f"this {type(self).__name__} sees the phase (phase: true): it needs the complex STFT, and got its power"
            )
        frame_power = power_of(x)
        direction = x / (frame_power + VARIANCE_FLOOR).sqrt()
        return torch.cat([self.log_power(frame_power), direction.real, direction.imag], dim=-1)

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
