"""Rows of a mixture that each hear their sources at a gain of one: a single channel, or a row for each source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from audiovae.separation.spatial.spatial import mean_over_draws


@dataclass(frozen=True)
class Row:
    """x_ft ~ N_C(0, V_ft), V = rest + lambda.

    Attributes:
        power: P = |x_ft|^2.
        rest: what the other sources contribute, `[*draw, recording, frame, freq]`; 0 where there is no other.
    """

    power: Float[Tensor, "recording frame freq"]
    rest: Tensor | float

    def variance(self, psd: Tensor) -> Tensor:
        return self.rest + psd


class DiagonalView:
    """A `View` of independent rows.

    Args:
        rows: of the mixture.
        told: do these frames, or bins, tell anything of the source? Others count in no statistics.
        constant: that the rows' joint density adds to the nll of every frame.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        told: Bool[Tensor, "recording frame _"],
        constant: Float[Tensor, "recording 1"] | float = 0.0,
    ) -> None:
        self._rows, self._told, self._constant = rows, told, constant

    def nll(self, psd: Float[Tensor, "*sample recording frame freq"]) -> Float[Tensor, "*sample recording frame"]:
        misfit: Tensor | float = self._constant
        for row in self._rows:
            variance = row.variance(psd)
            misfit = misfit + mean_over_draws((torch.log(variance) + row.power / variance).sum(-1), psd.ndim - 1)
        return torch.as_tensor(misfit)

    def statistics(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> tuple[Float[Tensor, "*sample recording frame freq"], Float[Tensor, "*sample recording frame freq"]]:
        parts = []
        for row in self._rows:
            precision = row.variance(psd).reciprocal_()
            fall = row.power * precision.square()
            parts.append((mean_over_draws(fall, psd.ndim), mean_over_draws(precision, psd.ndim)))
        numerator, denominator = (sum(part[1:], start=part[0]) for part in zip(*parts, strict=True))
        return numerator * self._told, denominator * self._told

    def slope(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> Float[Tensor, "*sample recording frame freq"]:
        parts = []
        for row in self._rows:
            precision = row.variance(psd).reciprocal_()
            parts.append(mean_over_draws(precision * (1 - row.power * precision), psd.ndim))
        return sum(parts[1:], start=parts[0]) * self._told

    def information(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> Float[Tensor, "*sample recording frame freq"]:
        parts = [mean_over_draws(row.variance(psd).reciprocal_().square(), psd.ndim) for row in self._rows]
        return sum(parts[1:], start=parts[0]) * self._told
