"""Context in encoder and decoder, and a prior that knows what came before."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from audiovae.models.latents import Gaussian, normal, normal_from_outputs
from audiovae.models.sound_vae import SoundVAE
from audiovae.models.vae import Factor, Inference
from audiovae.networks.mlp import start_small
from audiovae.networks.temporal import reach, stream, temporal_network
from audiovae.settings import DynamicVAESettings

_PRIOR_KERNEL = 3


class DynamicVAE(SoundVAE):
    """p(x, z) = prod_t p(x_t | z_{t-R:t+R}) p(z_t | z_{t-S:t-1}) and q(z | x) = prod_t q(z_t | x_{t-R:t+R}).

    Encoder and decoder are dilated depthwise convolutions that see R frames to both sides, or if causal 2 R before and
    none after; the prior is a causal one that sees the S latents before. Given x the posterior factorises, so nothing
    steps through time in training: all frames of all distributions are one pass each. Generation does step, over the
    prior alone. It needs no past x.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.
    """

    def __init__(self, n_freqs: int, settings: DynamicVAESettings = DynamicVAESettings()) -> None:
        super().__init__(n_freqs, settings, Gaussian(settings.latent_dim), settings.labels)
        y, sizes = self.conditions.size, (settings.kernel_size, settings.dilations, settings.causal)
        self.encoder = temporal_network(n_freqs + y, settings.width, 2 * self.latent_dim, *sizes)
        self.decoder = temporal_network(
            self.latent_dim + y, settings.width, self.observation.n_outputs, *sizes, last_bias=False
        )
        self.transition = temporal_network(
            self.latent_dim + y,
            settings.prior_width,
            2 * self.latent_dim,
            _PRIOR_KERNEL,
            settings.prior_dilations,
            causal=True,
        )
        self._prior_reach = 1 + reach(_PRIOR_KERNEL, settings.prior_dilations, causal=True)  # S
        self.lookahead = 0 if settings.causal else reach(*sizes)
        self.context = 2 * reach(*sizes) + self._prior_reach
        start_small(*(cast(nn.Linear, network[-1]) for network in (self.encoder, self.decoder, self.transition)))

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        outputs = self.encoder(self.conditions.join(self.log_power(power), condition))
        posterior = normal_from_outputs(outputs.to(power.dtype))
        latents = posterior.mean if mean else posterior.rsample()
        return Inference(latents, (Factor(posterior, self.prior(latents, condition)),))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        before = functional.pad(latents, (0, 0, 1, 0))[..., :-1, :]
        outputs = self.transition(self.conditions.join(before, condition))
        return normal_from_outputs(outputs.to(latents.dtype))

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        return cast(Tensor, self.decoder(self.conditions.join(latents, condition)))

    def mean_path(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch frame latent"], Tensor | None]:
        x = self.conditions.join(self.log_power(power), condition)
        outputs, state = (self.encoder(x), None) if self.lookahead else stream(self.encoder, x, state)
        return normal_from_outputs(outputs.to(power.dtype)).mean, state

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        drawn = self.log_power.mean.new_zeros(n_frames, self.latent_dim)
        if condition is not None and condition.ndim == 2 and len(condition) != n_frames:
            self.conditions.per_frame(condition, drawn)  # says what is wrong
        for t in range(n_frames):
            start = max(0, t - self._prior_reach)
            y = condition[start : t + 1] if condition is not None and condition.ndim == 2 else condition
            step = self.prior(drawn[start : t + 1], y)
            drawn[t] = normal(step.mean[-1], step.stddev[-1]).sample()
        return drawn
