"""The contract of a spatial model: how sources reach the microphones, and what each of them sees of the mixture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor


@runtime_checkable
class View(Protocol):
    """The mixture as one source sees it, the others and the space as they are.

    Y_ft = sum_n lambda_nft H_nf is the covariance of the mixture and lambda_ft the PSD of the own source, `[*sample,
    recording, frame, freq]`; its sample axes are its own, such as chains, and what comes back has them too. Where the
    others have several draws, the statistics are means over these.
    """

    def nll(self, psd: Float[Tensor, "*sample recording frame freq"]) -> Float[Tensor, "*sample recording frame"]:
        """-log p(x_t) = sum_f log det Y + x' Y^-1 x, less a constant, with this PSD; of any value in the padding."""

    def statistics(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> tuple[Float[Tensor, "*sample recording frame freq"], Float[Tensor, "*sample recording frame freq"]]:
        """The two parts of the gradient d nll / d lambda = denominator - numerator; zeros in the padding.

        numerator y' H y with y = Y^-1 x, and denominator tr(Y^-1 H). With one microphone these are P / V^2 and 1 / V.
        """

    def slope(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> Float[Tensor, "*sample recording frame freq"]:
        """Their difference d nll / d lambda, with less rounding and in fewer passes."""

    def information(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> Float[Tensor, "*sample recording frame freq"]:
        """The Fisher information of lambda, tr((Y^-1 H)^2); zeros in the padding."""


class Spatial(ABC):
    """x_ft ~ N_C(0, sum_n lambda_nft H_nf) for recordings side by side: H, and all that is asked about it.

    PSDs come as a list, one of each source, `[sample, recording, frame, freq]`. Draws of a single source count one by
    one and those of several by their means, so that chains of different lengths need not fit together.

    Subclasses are made from a `Mixture` and the state that a start gives the space, None for their own default.
    Recordings may have different numbers of channels, zeros beyond their own: what cannot take them so refuses them.
    """

    @abstractmethod
    def view(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]], n: int) -> View:
        """The mixture as source `n` sees it; its own PSD is given to the view, and `psds[n]` is not looked at."""

    @abstractmethod
    def update(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> None:
        """One M-step of H with the PSDs as they are: never increases `nll`."""

    @abstractmethod
    def nll(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> Float[Tensor, "recording frame"]:
        """-log p(x_t) less a constant, the mean over draws."""

    @abstractmethod
    def images(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Complex[Tensor, "source chosen frame freq channel"]:
        """Each source at the microphones, E[lambda H Y^-1] x, of the `chosen` recordings; they sum to the mixture."""

    @abstractmethod
    def powers(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Float[Tensor, "source chosen frame freq"]:
        """Variances of the images, the mean over microphones (tr(H) / M is what H adds to a PSD), of the `chosen`
        recordings.
        """


def without_draws(psd: Float[Tensor, "sample recording frame freq"]) -> Float[Tensor, "recording frame freq"]:
    """The mean over draws."""
    return psd[0] if len(psd) == 1 else psd.mean(0)


def side_by_side(psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> list[Tensor]:
    """PSDs that can be added: the draws of a single source stay, `[sample, ...]`; those of several become means."""
    if sum(len(psd) > 1 for psd in psds) > 1:
        return [without_draws(psd) for psd in psds]
    return [psd[0] if len(psd) == 1 else psd for psd in psds]


def total(psds: Sequence[Tensor]) -> Tensor:
    """Their sum."""
    out = psds[0]
    for psd in psds[1:]:
        out = out + psd
    return out


def mean_over_draws(values: Tensor, n_dims: int) -> Tensor:
    """Values of `n_dims` dimensions, the mean over what stands before them."""
    return values if values.ndim == n_dims else values.flatten(0, values.ndim - n_dims - 1).mean(0)


def closed(images: list[Complex[Tensor, "chosen frame freq channel"]], mixture: Tensor) -> Tensor:
    """Images of all sources: the last one's is what the others leave, so that they sum to the mixture exactly."""
    return torch.stack([*images, mixture - total(images) if images else mixture])
