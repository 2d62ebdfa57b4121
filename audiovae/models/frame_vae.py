"""The frame-wise VAE: every frame has its own latent vector and is independent of the others."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from audiovae.distributions import ComplexNormal
from audiovae.models.vae import VAE, Inference
from audiovae.networks.log_power import EULER_GAMMA, VARIANCE_FLOOR, LogPower
from audiovae.networks.mlp import ACTIVATIONS, mlp
from audiovae.settings import FrameVAESettings

SMALLEST_SCALE, LARGEST_SCALE = 1e-6, 2.0  # of a posterior; the prior's is 1


class FrameVAE(VAE):
    """z_t ~ N(0, I), x_ft | z_t ~ N_C(0, g_f(z_t)), q(z_t | x_t) = N(loc(x_t), scale(x_t)^2): no context in time.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.

    Reference: Y. Bando et al., "Statistical speech enhancement based on probabilistic integration of variational
        autoencoder and non-negative matrix factorization", ICASSP 2018; S. Leglaive, L. Girin, R. Horaud, "A variance
        modeling framework based on variational autoencoders for speech enhancement", MLSP 2018.
    """

    needs_past = False

    def __init__(self, n_freqs: int, settings: FrameVAESettings = FrameVAESettings()) -> None:
        super().__init__()
        _check(n_freqs, settings)
        self.n_freqs = n_freqs
        self.latent_dim = settings.latent_dim
        self.settings = settings
        self.log_power = LogPower(n_freqs)
        options = (settings.activation, settings.dropout, settings.residual)
        self.encoder = mlp([n_freqs, *settings.hidden, 2 * self.latent_dim], *options)
        self.decoder = mlp([self.latent_dim, *reversed(settings.hidden), n_freqs], *options, last_bias=False)
        self.mean_log_variance = nn.Parameter(torch.zeros(n_freqs))
        with torch.no_grad():  # start near the prior and near the mean spectrum: no huge first losses
            heads = cast(nn.Linear, self.encoder[-1]), cast(nn.Linear, self.decoder[-1])
            for head in heads:
                head.weight.mul_(0.1)
            heads[0].bias.zero_()

    def calibrate(self, power: Float[Tensor, "frame freq"]) -> None:
        self.log_power.calibrate(power)
        with torch.no_grad():
            self.mean_log_variance.copy_(self.log_power.mean + EULER_GAMMA)  # E[log |x|^2] = log variance - gamma

    def posterior(self, power: Float[Tensor, "*batch frame freq"]) -> Independent:
        """q(z | x): batch `[..., frame]`, event `[latent]`."""
        loc, spread = self.encoder(self.log_power(power)).to(power.dtype).chunk(2, dim=-1)  # back from mixed precision
        scale = LARGEST_SCALE * torch.sigmoid(spread) + SMALLEST_SCALE  # bounded, where exp would overflow in a bad step
        return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)

    def infer(self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None) -> Inference:
        posterior = self.posterior(power)
        latents = posterior.rsample()
        zeros = latents.new_zeros(self.latent_dim)
        prior = Independent(Normal(zeros, torch.ones_like(zeros), validate_args=False), 1, validate_args=False)
        return Inference(latents, posterior, prior.expand(posterior.batch_shape))

    def likelihood(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        log_variance = self.decoder(latents).to(latents.dtype).add_(self.mean_log_variance)
        return Independent(ComplexNormal(log_variance=log_variance, floor=VARIANCE_FLOOR, validate_args=False), 1, validate_args=False)

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        like = self.log_power.mean
        return torch.randn(n_frames, self.latent_dim, dtype=like.dtype, device=like.device)


def _check(n_freqs: int, settings: FrameVAESettings) -> None:
    for name, sizes in (("n_freqs", [n_freqs]), ("latent_dim", [settings.latent_dim]), ("hidden", settings.hidden)):
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{name} must be positive, got {sizes}")
    if settings.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {settings.activation!r}")
    if not 0 <= settings.dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {settings.dropout}")
