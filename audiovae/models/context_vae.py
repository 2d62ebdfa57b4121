"""A frame-wise decoder behind an encoder that sees neighbouring frames."""

from __future__ import annotations

from typing import cast

from torch import nn

from audiovae.models.frame_wise import FrameWise
from audiovae.models.latents import latent_family
from audiovae.networks.mlp import mlp, start_small
from audiovae.networks.temporal import reach, temporal_network
from audiovae.settings import ContextVAESettings


class ContextVAE(FrameWise):
    """p(x, z) = prod_t p(x_t | z_t) p(z_t) and q(z | x) = prod_t q(z_t | x_{t-R:t+R}), or q(z_t | x_{t-R:t}) if causal.

    The generative model is that of `FrameVAE`: separators use it as it is, and frames have importance weights of their
    own. Only inference knows the neighbours, through dilated depthwise convolutions; R is `context`. Frames beyond the
    ends count as mean spectra, so a sequence may be shorter than R.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.
    """

    def __init__(self, n_freqs: int, settings: ContextVAESettings = ContextVAESettings()) -> None:
        super().__init__(n_freqs, settings, latent_family(settings), settings.labels, settings.phase)
        y, sizes = self.conditions.size, (settings.kernel_size, settings.dilations, settings.causal)
        self.encoder = temporal_network(self.n_inputs + y, settings.width, self.latents.n_outputs, *sizes)
        widths = [self.latent_dim + y, *[settings.width] * (1 + settings.decoder_layers), self.observation.n_outputs]
        self.decoder = mlp(widths, "silu", residual=True, last_bias=False)
        self.context = reach(*sizes)
        self.lookahead = 0 if settings.causal else self.context
        start_small(cast(nn.Linear, self.encoder[-1]), cast(nn.Linear, self.decoder[-1]))
