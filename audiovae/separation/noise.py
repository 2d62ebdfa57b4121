"""Models of the noise's variance, fitted to the noisy recording alone by multiplicative updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.separation.mixture import Mixture

_TINY = 1e-30
_LEAST_SHARE = 0.2


@dataclass(frozen=True)
class Statistics:
    """What the M-step needs of the samples z_r with V_r = g v(z_r) + noise: means over r and, in the padding, zeros.

    Attributes:
        numerator: P / V_r^2.
        denominator: 1 / V_r.
    """

    numerator: Float[Tensor, "recording frame freq"]
    denominator: Float[Tensor, "recording frame freq"]


class NoiseModel(ABC):
    """The noise's variance N_ft, for recordings side by side.

    `update` never increases the mean over samples of sum_ft log V + P / V: each factor is multiplied by the square root of
    the ratio of the gradient's two parts.

    Reference: C. Fevotte, N. Bertin, J.-L. Durrieu, "Nonnegative matrix factorization with the Itakura-Saito divergence",
        Neural Computation 21(3), 2009; the majorisation, which gives the square root: C. Fevotte, J. Idier, "Algorithms for
        nonnegative matrix factorization with the beta-divergence", Neural Computation 23(9), 2011.
    """

    @abstractmethod
    def variance(self) -> Float[Tensor, "recording frame freq"]:
        """N_ft at the mixture's unit level, positive in the padding too."""

    @abstractmethod
    def update(self, statistics: Callable[[], Statistics]) -> None:
        """One M-step; calls `statistics` anew for every factor that it changes."""


class StationaryNoise(NoiseModel):
    """N_ft = n_f: one spectrum for the whole recording."""

    def __init__(self, mixture: Mixture) -> None:
        self._spectrum = mixture.mean_over_frames(mixture.quiet.movedim(-1, 0)).mT
        self._n_frames = mixture.power.shape[1]

    def variance(self) -> Float[Tensor, "recording frame freq"]:
        return (self._spectrum + VARIANCE_FLOOR).unsqueeze(1).expand(-1, self._n_frames, -1)

    def update(self, statistics: Callable[[], Statistics]) -> None:
        ratio = statistics()
        self._spectrum = self._spectrum * _root(ratio.numerator.sum(1), ratio.denominator.sum(1))


class NMFNoise(NoiseModel):
    """N_ft = sum_k W_fk H_kt, W and H non-negative.

    Starts near the quiet spectrum: every component is that, a share each, times random numbers from 0.5 to 1.5.

    Args:
        rank: number of components.

    Raises:
        ValueError: no component.
    """

    def __init__(self, mixture: Mixture, rank: int = 8) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self._inside = mixture.inside.unsqueeze(-1)
        start = [torch.rand(mixture.power.shape[-1], rank, generator=g, device=mixture.power.device) for g in mixture.generators]
        quiet = mixture.mean_over_frames(mixture.quiet.movedim(-1, 0)).mT
        self._spectra = quiet.unsqueeze(-1) * (0.5 + torch.stack(start)) / rank  # W [recording, freq, component]
        self._activations = 0.8 + 0.4 * mixture.random(rank, uniform=True)  # H [recording, frame, component]

    def variance(self) -> Float[Tensor, "recording frame freq"]:
        return self._activations @ self._spectra.mT + VARIANCE_FLOOR

    def update(self, statistics: Callable[[], Statistics]) -> None:
        ratio = statistics()
        self._spectra = self._spectra * _root(ratio.numerator.mT @ self._activations, ratio.denominator.mT @ self._activations)
        ratio = statistics()
        factor = _root(ratio.numerator @ self._spectra, ratio.denominator @ self._spectra)
        self._activations = torch.where(self._inside, self._activations * factor, self._activations)
        norm = self._spectra.sum(1, keepdim=True).clamp(min=_TINY)  # W's columns sum to one
        self._spectra, self._activations = self._spectra / norm, self._activations * norm


class SlowNoise(NoiseModel):
    """N_ft = q_ft / 5 + sum_k W_fk H_kt with slow activations: H = B A, B the overlapping triangles of a linear spline in time.

    q is the quiet spectrum: a fifth of it stays noise, whatever the speech would take. Components start as bands of it, so that each
    part of it may rise and fall by itself.

    Args:
        rank: number of components.
        bump_frames: distance between the bumps' centres, in frames.

    Raises:
        ValueError: no component, or no distance.
    """

    def __init__(self, mixture: Mixture, rank: int = 8, bump_frames: int = 16) -> None:
        if rank < 1 or bump_frames < 1:
            raise ValueError(f"rank and bump_frames must be at least 1, got {rank} and {bump_frames}")
        n_frames, n_freqs = mixture.power.shape[1:]
        device = mixture.power.device
        shares = (bands(rank, n_freqs, device) + 1e-3) / (1 + 1e-3 * rank)  # no component is blind to a frequency
        mean = mixture.mean_over_frames(mixture.quiet.movedim(-1, 0)).mT
        self._least = _LEAST_SHARE * mixture.quiet
        self._spectra = mean.unsqueeze(-1) * shares  # W [recording, freq, component]
        times = torch.arange(n_frames, device=device)
        knots = torch.arange(0, n_frames + bump_frames, bump_frames, device=device)
        self._bumps = (1 - (times[:, None] - knots).abs() / bump_frames).clamp(min=0.0)  # [frame, knot], sums to one
        at_knots = mixture.quiet[:, knots.clamp(max=n_frames - 1)] / mean.unsqueeze(1)
        self._weights = at_knots @ (shares / shares.sum(0))  # A [recording, knot, component]

    @property
    def _activations(self) -> Tensor:
        return self._bumps @ self._weights

    def variance(self) -> Float[Tensor, "recording frame freq"]:
        return self._activations @ self._spectra.mT + self._least

    def update(self, statistics: Callable[[], Statistics]) -> None:
        ratio, activations = statistics(), self._activations
        self._spectra = self._spectra * _root(ratio.numerator.mT @ activations, ratio.denominator.mT @ activations)
        ratio = statistics()
        numerator, denominator = (self._bumps.mT @ (part @ self._spectra) for part in (ratio.numerator, ratio.denominator))
        self._weights = self._weights * _root(numerator, denominator)
        norm = self._spectra.sum(1, keepdim=True).clamp(min=_TINY)
        self._spectra, self._weights = self._spectra / norm, self._weights * norm


def bands(n_bands: int, n_freqs: int, device: torch.device) -> Float[Tensor, "freq band"]:
    """Overlapping triangles that sum to one at every frequency, narrower at low ones: their centres go with its square root."""
    place = torch.linspace(0, 1, n_freqs, device=device).sqrt()
    triangles = (1 - (place[:, None] - torch.linspace(0, 1, n_bands, device=device)).abs() * max(1, n_bands - 1)).clamp(min=0.0)
    return triangles / triangles.sum(-1, keepdim=True)


def _root(numerator: Tensor, denominator: Tensor) -> Tensor:
    """sqrt(numerator / denominator), 1 where both are zero: a knot or a recording's padding that nothing speaks for."""
    return torch.where(denominator > 0, (numerator / denominator.clamp(min=_TINY)).sqrt(), 1.0)
