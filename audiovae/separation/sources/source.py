"""The contract of a source: its power spectral density, how it is inferred, and how it is fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.spatial.spatial import View

_STATE_FRAMES = 100  # over which the spectrum at the end of a block is averaged

Statistics = tuple[Float[Tensor, "recording frame freq"], Float[Tensor, "recording frame freq"]]
"""Numerator and denominator of `View.statistics`."""


@dataclass(frozen=True)
class Finding:
    """What is known of one source of one recording at the end.

    Attributes:
        latents: samples of them, `[sample, frame, latent]`; None for a shallow source, like all but `state` below.
        gain: g_t, `[frame]`.
        acceptance, effective_samples: of the last E-step, see `Draws`; None where nothing was sampled.
        condition: its labels, `[label]`, given or inferred; None for a prior without.
        labels: the same by name.
        state: its spectrum at the end, `[freq]` at the recording's own level, with which the next block of a long
            recording begins; None where nothing is handed on.
    """

    latents: Float[Tensor, "sample frame latent"] | None = None
    gain: Float[Tensor, " frame"] | None = None
    acceptance: float | None = None
    effective_samples: float | None = None
    condition: Float[Tensor, " label"] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    state: Float[Tensor, " freq"] | None = None


class Source(ABC):
    """lambda_ft of one source, for recordings side by side, at their unit level."""

    @abstractmethod
    def psd(self) -> Float[Tensor, "sample recording frame freq"]:
        """lambda_ft, for every draw of what is random in it; positive in the padding too."""

    @abstractmethod
    def infer(self, view: View, heat: float) -> None:
        """One E-step: what is random, given all else. `heat` multiplies the weight of its prior."""

    @abstractmethod
    def update(self, view: View, heat: float) -> None:
        """One M-step: what is not random. Never increases the nll of the view, less the log prior at this `heat`."""

    @abstractmethod
    def log_prior(self) -> Float[Tensor, "recording frame"]:
        """Of what is random, weighted as in inference at heat 1, the mean over draws; zeros in the padding."""

    @abstractmethod
    def state(self, i: int, n_frames: int) -> Float[Tensor, " freq"] | None:
        """The spectrum with which recording `i` of `n_frames` ends, at its own level: see `Finding`."""

    @abstractmethod
    def finding(self, i: int, n_frames: int) -> Finding:
        """What is known of recording `i` of `n_frames`."""


MakeSource = Callable[[Mixture, Tensor], Source]
"""Makes a source for a mixture from a first guess of its PSD, `[recording, frame, freq]`."""


class ShallowSource(Source, ABC):
    """A source without anything random: lambda_ft is fitted to the recording alone, by multiplicative updates.

    Each factor is multiplied by the square root of the ratio of the gradient's two parts, so that no update increases
    the nll.

    Args:
        mixture: the recordings.
        n_steps: updates in one iteration of EM.

    Raises:
        ValueError: no update.

    Reference: C. Fevotte, N. Bertin, J.-L. Durrieu, "Nonnegative matrix factorization with the Itakura-Saito
        divergence", Neural Computation 21(3), 2009; the majorisation, which gives the square root: C. Fevotte, J.
        Idier, "Algorithms for nonnegative matrix factorization with the beta-divergence", Neural Computation 23(9),
        2011.
    """

    def __init__(self, mixture: Mixture, n_steps: int = 1) -> None:
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}")
        self._mixture, self.n_steps = mixture, n_steps

    @abstractmethod
    def variance(self) -> Float[Tensor, "recording frame freq"]:
        """lambda_ft."""

    @abstractmethod
    def update_factors(self, statistics: Callable[[], Statistics]) -> None:
        """One update; calls `statistics` anew for every factor that it changes."""

    def psd(self) -> Float[Tensor, "sample recording frame freq"]:
        return self.variance().unsqueeze(0)

    def infer(self, view: View, heat: float) -> None:
        """Nothing is random."""

    def update(self, view: View, heat: float) -> None:
        self.update_factors(lambda: view.statistics(self.variance()))

    def log_prior(self) -> Float[Tensor, "recording frame"]:
        return self._mixture.power.new_zeros(self._mixture.inside.shape)

    def state(self, i: int, n_frames: int) -> Float[Tensor, " freq"] | None:
        return self.variance()[i, :n_frames][-_STATE_FRAMES:].mean(0) * self._mixture.level[i].square()

    def finding(self, i: int, n_frames: int) -> Finding:
        return Finding(state=self.state(i, n_frames))
