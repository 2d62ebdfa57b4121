"""The autoencoder: a deterministic code for every frame, and no prior."""

from __future__ import annotations

from typing import cast

from torch import nn

from audiovae.models.frame_wise import FrameWise
from audiovae.models.latents import PointFamily
from audiovae.networks.mlp import ACTIVATIONS, mlp, start_small
from audiovae.settings import AutoencoderSettings


class Autoencoder(FrameWise):
    """z_t = f(x_t), trained on log p(x_t | z_t) alone.

    That is squared error on the log power, cross-entropy on a scaled spectrogram, either on arrays, or a density.
    Its KL is zero, for there is no prior: it can be neither sampled nor plugged into a separator as one.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.
    """

    has_prior = False
    settings: AutoencoderSettings

    def __init__(self, n_freqs: int, settings: AutoencoderSettings = AutoencoderSettings()) -> None:
        super().__init__(n_freqs, settings, PointFamily(settings.latent_dim), phase=settings.phase)
        options = (settings.activation, settings.dropout, settings.residual)
        self.encoder = mlp([self.n_inputs, *settings.hidden, self.latents.n_outputs], *options)
        if settings.code_activation != "none":
            self.encoder.append(ACTIVATIONS[settings.code_activation]())
        widths = [self.latent_dim, *reversed(settings.hidden), self.observation.n_outputs]
        self.decoder = mlp(widths, *options, last_bias=False)
        start_small(cast(nn.Linear, self.decoder[-1]))
