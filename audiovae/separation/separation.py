"""The result: one recording taken apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae.separation.sources.source import Finding


@dataclass(frozen=True)
class Separation:
    """One recording taken apart.

    Attributes:
        images: each source as the microphones hear it, `[source, frame, freq, channel]`; they sum to the mixture.
            Without the channel where the mixture came without one.
        psds: their variances at the mixture's level, the mean over channels.
        objective: of every iteration, in nats per frame; lower is better.
        converged: did it stop by itself, before the last iteration?
        sources: what is known of each.
    """

    images: Complex[Tensor, "source frame freq *channel"]
    psds: Float[Tensor, "source frame freq"]
    objective: Float[Tensor, " iteration"]
    converged: bool
    sources: tuple[Finding, ...]

    @property
    def wiener(self) -> Float[Tensor, "frame freq *channel"]:
        """The gain from 0 to 1 that makes the first source of the mixture of one microphone, or of channels that share
        it.

        Where the mixture is zero, that of the variances.
        """
        mixture = self.images.sum(0)
        silent = mixture == 0
        gain = (self.images[0] / torch.where(silent, 1.0, mixture)).real.clamp(0.0, 1.0)
        by_variance = self.psds[0] / self.psds.sum(0)
        return torch.where(silent, by_variance if gain.ndim == 2 else by_variance.unsqueeze(-1), gain)

    @property
    def activity(self) -> Float[Tensor, " frame"]:
        """The first source's share of the variance of each frame."""
        of_sources = self.psds.sum(-1)
        return of_sources[0] / of_sources.sum(0)
