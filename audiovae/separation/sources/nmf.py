"""Nonnegative matrix factorisation of a source's spectrogram."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.separation.mixture import Mixture
from audiovae.separation.sources.factors import root, sum_to_one
from audiovae.separation.sources.source import ShallowSource, Statistics
from audiovae.separation.spatial.diagonal import DiagonalView, Row


class NMF(ShallowSource):
    """lambda_ft = sum_k W_fk H_kt, W and H non-negative.

    Starts near the mean of `first` over the frames in which it sounds, within 10 dB of its loudest: every component is
    that, a share each, times random numbers from 0.5 to 1.5.

    Args:
        mixture: the recordings.
        first: a guess of lambda.
        rank: number of components.
        n_steps: updates in one iteration of EM.
        first_steps: updates that fit W and H to `first` itself, where that tells more than a mean.
        together: update W and H from one pair of statistics, as FastMNMF2 does: half the passes over the spectrogram,
            without the guarantee that the nll never rises.

    Attributes:
        spectra: W, `[recording, freq, component]`.
        activations: H, `[recording, frame, component]`.

    Raises:
        ValueError: no component, or no update.
    """

    def __init__(
        self,
        mixture: Mixture,
        first: Float[Tensor, "recording frame freq"],
        rank: int = 8,
        n_steps: int = 1,
        together: bool = False,
        first_steps: int = 0,
    ) -> None:
        super().__init__(mixture, n_steps)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self._together = together
        self._variance: Tensor | None = None
        shape = (first.shape[-1], rank)
        start = [torch.rand(shape, generator=g, device=first.device, dtype=first.dtype) for g in mixture.generators]
        loudness = torch.where(mixture.inside, first.sum(-1), 0.0)
        sounding = (loudness >= 0.1 * loudness.amax(-1, keepdim=True)).to(first.dtype)
        mean = ((sounding / sounding.sum(-1, keepdim=True)).unsqueeze(1) @ first).squeeze(1)
        self.spectra = mean.unsqueeze(-1) * (0.5 + torch.stack(start)) / rank
        self.activations = 0.8 + 0.4 * mixture.random(rank, uniform=True)
        alone = DiagonalView([Row(first, 0.0)], mixture.told)
        for _ in range(first_steps):
            self.update(alone, 1.0)

    def variance(self) -> Float[Tensor, "recording frame freq"]:
        if self._variance is None:  # the frames of a frequency side by side, as `JointDiagonal` multiplies them
            self._variance = (self.spectra @ self.activations.mT).add_(VARIANCE_FLOOR).mT
        return self._variance

    def update_factors(self, statistics: Callable[[], Statistics]) -> None:
        numerator, denominator = statistics()
        self.spectra = self.spectra * self._root(self.activations, numerator, denominator)
        if not self._together:
            self._variance = None
            numerator, denominator = statistics()
        factor = self._root(self.spectra, numerator.mT, denominator.mT)
        self.activations = torch.where(self._mixture.inside.unsqueeze(-1), self.activations * factor, self.activations)
        self.spectra, self.activations = sum_to_one(self.spectra, self.activations)
        self._variance = None

    @staticmethod
    def _root(other: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        """What a factor is multiplied by, from the `other` one; in this order the products are twice as fast."""
        up, down = other.mT @ numerator, other.mT @ denominator  # [recording, component, frame or freq]
        return root(up, down).mT
