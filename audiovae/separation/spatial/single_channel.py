"""One microphone, or several that share one gain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.spatial.diagonal import DiagonalView, Row
from audiovae.separation.spatial.spatial import (
    Spatial,
    closed,
    mean_over_draws,
    side_by_side,
    total,
    without_draws,
)


class SingleChannel(Spatial):
    """H = 1: x_ft ~ N_C(0, sum_n lambda_nft).

    Channels of a recording share one gain, that of their mean power |x_ft|^2: where they differ is not looked at.
    """

    def __init__(self, mixture: Mixture, space: None = None) -> None:
        self._mixture = mixture

    def view(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]], n: int) -> DiagonalView:
        others = side_by_side([psd for i, psd in enumerate(psds) if i != n])
        row = Row(self._mixture.power, total(others) if others else 0.0)
        return DiagonalView([row], self._mixture.inside.unsqueeze(-1))

    def update(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> None:
        """Nothing is left to fit."""

    def nll(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> Float[Tensor, "recording frame"]:
        variance = total(side_by_side(psds))
        return mean_over_draws((torch.log(variance) + self._mixture.power / variance).sum(-1), 2)

    def images(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Complex[Tensor, "source chosen frame freq channel"]:
        x = self._mixture.spectrogram[list(chosen)]
        together = side_by_side(psds)
        variance = total(together)
        gains = [mean_over_draws(psd / variance, 3) for psd in together[:-1]]
        return closed([gain.unsqueeze(-1) * x for gain in gains], x)

    def powers(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Float[Tensor, "source chosen frame freq"]:
        return torch.stack([without_draws(psd) for psd in psds])
