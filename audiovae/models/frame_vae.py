"""The frame-wise VAE: every frame has its own latent vector and is independent of the others."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from audiovae.models.autoencoder import Autoencoder
from audiovae.models.frame_wise import FrameWise
from audiovae.models.latents import latent_family
from audiovae.networks.mlp import mlp, start_small
from audiovae.settings import FrameVAESettings


class FrameVAE(FrameWise):
    """z_t ~ p(z), x_t | z_t ~ p(x | z), q(z_t | x_t): no context in time. Any latents, any likelihood.

    With Gaussian latents and the complex Gaussian likelihood it is z_t ~ N(0, I), x_ft | z_t ~ N_C(0, g_f(z_t)),
    q(z_t | x_t) = N(loc(x_t), scale(x_t)^2). With the Bernoulli likelihood it is the textbook's VAE. With labels y it
    is the conditional VAE p(x | z, y) with q(z | x, y) and p(z): K. Sohn et al., "Learning structured output
    representation using deep conditional generative models", NeurIPS 2015; D. Kingma et al., "Semi-supervised learning
    with deep generative models", NeurIPS 2014 (M2).

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.

    Reference: Y. Bando et al., "Statistical speech enhancement based on probabilistic integration of variational
        autoencoder and non-negative matrix factorization", ICASSP 2018; S. Leglaive, L. Girin, R. Horaud, "A variance
        modeling framework based on variational autoencoders for speech enhancement", MLSP 2018.
    """

    settings: FrameVAESettings

    def __init__(self, n_freqs: int, settings: FrameVAESettings = FrameVAESettings()) -> None:
        super().__init__(n_freqs, settings, latent_family(settings), settings.labels, settings.phase)
        options = (settings.activation, settings.dropout, settings.residual)
        y = self.conditions.size
        self.encoder = mlp([self.n_inputs + y, *settings.hidden, self.latents.n_outputs], *options)
        widths = [self.latent_dim + y, *reversed(settings.hidden), self.observation.n_outputs]
        self.decoder = mlp(widths, *options, last_bias=False)
        start_small(cast(nn.Linear, self.encoder[-1]), cast(nn.Linear, self.decoder[-1]))

    @torch.no_grad()
    def start_from(self, autoencoder: Autoencoder) -> None:
        """Take over an autoencoder's layers: its code is the mean of q(z | x), whose scale starts as a new model's.

        Raises:
            ValueError: the autoencoder has other sizes, or its code passes an activation.
        """
        given = autoencoder.settings
        if given.code_activation != "none":
            raise ValueError(f"the autoencoder's code passes {given.code_activation}, and no mean of latents does")
        if self.settings.latent != "gaussian" or self.conditions.labels or self.n_freqs != autoencoder.n_freqs:
            raise ValueError("an autoencoder starts a FrameVAE of as many bins, with Gaussian latents and no labels")
        alike = ("latent_dim", "hidden", "residual", "activation", "data", "likelihood", "n_values", "phase")
        for name in (*alike, "network_input", "variance_floor"):
            own, other = getattr(self.settings, name), getattr(given, name)
            if own != other:
                raise ValueError(f"the autoencoder has {name} {other}, and the model {own}; give both the same")
        weights, own_weights = autoencoder.state_dict(), self.state_dict()
        for name in (f"encoder.{len(self.encoder) - 1}.{part}" for part in ("weight", "bias")):
            weights[name] = torch.cat([weights[name], own_weights[name][self.latent_dim :]])
        self.load_state_dict(weights)
