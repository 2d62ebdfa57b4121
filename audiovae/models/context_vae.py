"""A frame-wise decoder behind an encoder that sees neighbouring frames."""

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
from audiovae.networks.temporal import reach, temporal_network
from audiovae.settings import ContextVAESettings


class ContextVAE(VAE):
    """p(x, z) = prod_t p(x_t | z_t) p(z_t) and q(z | x) = prod_t q(z_t | x_{t-R:t+R}), or q(z_t | x_{t-R:t}) if causal.

    The generative model is that of `FrameVAE`: separators use it as it is, and frames have importance weights of their own.
    Only inference knows the neighbours, through dilated depthwise convolutions; R is `context`. Frames beyond the ends
    count as mean spectra, so a sequence may be shorter than R.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.
    """

    frames_are_independent = True

    def __init__(self, n_freqs: int, settings: ContextVAESettings = ContextVAESettings()) -> None:
        super().__init__()
        self.n_freqs, self.latent_dim, self.settings = n_freqs, settings.latent_dim, settings
        self.latents = latent_family(settings)
        self.conditions = Conditions(settings.labels)
        self.log_power = LogPower(n_freqs)
        self.observation = Observation(n_freqs, settings.likelihood)
        self.encoder = temporal_network(
            n_freqs + self.conditions.size,
            settings.width,
            self.latents.n_outputs,
            settings.kernel_size,
            settings.dilations,
            settings.causal,
        )
        widths = [self.latent_dim + self.conditions.size, *[settings.width] * (1 + settings.decoder_layers), n_freqs]
        self.decoder = mlp(widths, "silu", residual=True, last_bias=False)
        self.context = reach(settings.kernel_size, settings.dilations, settings.causal)
        start_small(cast(nn.Linear, self.encoder[-1]), cast(nn.Linear, self.decoder[-1]))

    def calibrate(self, power: Float[Tensor, "frame freq"]) -> None:
        self.log_power.calibrate(power)
        self.observation.calibrate(power)

    def infer(self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False) -> Inference:
        outputs = self.encoder(self.conditions.join(self.log_power(power), condition))
        posterior = self.latents.from_outputs(outputs.to(power.dtype))
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
