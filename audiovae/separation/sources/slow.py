"""Noise whose bands change slowly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.sources.factors import bands, root, sum_to_one
from audiovae.separation.sources.source import ShallowSource, Statistics

_LEAST_SHARE = 0.2


class SlowBands(ShallowSource):
    """lambda_ft = q_ft / 5 + sum_k W_fk H_kt with slow activations: H = B A, B the overlapping triangles of a linear
    spline in time.

    q is the first guess: a fifth of it stays noise, whatever the speech would take. Components start as bands of it, so
    that each part of it may rise and fall by itself.

    Args:
        mixture: the recordings.
        first: q, such as the quiet spectrum.
        rank: number of components.
        bump_frames: distance between the bumps' centres, in frames.
        n_steps: updates in one iteration of EM.

    Raises:
        ValueError: no component, no distance, or no update.
    """

    def __init__(
        self,
        mixture: Mixture,
        first: Float[Tensor, "recording frame freq"],
        rank: int = 8,
        bump_frames: int = 16,
        n_steps: int = 1,
    ) -> None:
        super().__init__(mixture, n_steps)
        if rank < 1 or bump_frames < 1:
            raise ValueError(f"rank and bump_frames must be at least 1, got {rank} and {bump_frames}")
        n_frames = first.shape[1]
        shares = (bands(rank, first) + 1e-3) / (1 + 1e-3 * rank)  # no component is blind to a frequency
        mean = mixture.mean_over_frames(first.movedim(-1, 0)).mT
        self._least = _LEAST_SHARE * first
        self._spectra = mean.unsqueeze(-1) * shares  # W [recording, freq, component]
        times = torch.arange(n_frames, device=first.device)
        knots = torch.arange(0, n_frames + bump_frames, bump_frames, device=first.device)
        distance = (times[:, None] - knots).abs().to(first.dtype)
        self._bumps = (1 - distance / bump_frames).clamp(min=0.0)  # [frame, knot], sums to one
        at_knots = first[:, knots.clamp(max=n_frames - 1)] / mean.unsqueeze(1)
        self._weights = at_knots @ (shares / shares.sum(0))  # A [recording, knot, component]

    @property
    def _activations(self) -> Float[Tensor, "recording frame component"]:
        return self._bumps @ self._weights

    def variance(self) -> Float[Tensor, "recording frame freq"]:
        return self._activations @ self._spectra.mT + self._least

    def update_factors(self, statistics: Callable[[], Statistics]) -> None:
        activations = self._activations
        numerator, denominator = statistics()
        self._spectra = self._spectra * root(numerator.mT @ activations, denominator.mT @ activations)
        up, down = (self._bumps.mT @ (part @ self._spectra) for part in statistics())
        self._weights = self._weights * root(up, down)
        self._spectra, self._weights = sum_to_one(self._spectra, self._weights)
