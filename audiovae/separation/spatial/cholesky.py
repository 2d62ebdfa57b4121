"""Cholesky factors of many small matrices side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float, Shaped
from torch import Tensor

from audiovae.separation.spatial.spatial import total

Triangle = Sequence[Sequence[Shaped[Tensor, "*bin"]]]
"""The lower triangle of Hermitian matrices: `[i][j]` with j <= i is an array over all of them; real where i = j."""


class Cholesky:
    """Y = L L', entry by entry: every step is one operation on an array over all matrices.

    For matrices of a few rows this takes a fraction of the time of a call of LAPACK for each, and what is known to be
    zero is left out.

    Args:
        matrices: positive definite.
    """

    def __init__(self, matrices: Triangle) -> None:
        self._lower: list[list[Tensor]] = [[] for _ in matrices]  # below the diagonal
        self._scales: list[Tensor] = []  # 1 / the diagonal
        for j in range(len(matrices)):
            pivot = matrices[j][j]
            for part in self._lower[j]:
                pivot = pivot - square(part)
            scale = pivot.rsqrt()
            self._scales.append(scale)
            for i in range(j + 1, len(matrices)):
                entry = matrices[i][j]
                for left, above in zip(self._lower[i], self._lower[j], strict=True):
                    entry = entry - left * above.conj()
                self._lower[i].append(entry * scale)

    def log_det(self) -> Float[Tensor, "*bin"]:
        """The logarithm of the determinant."""
        return -2 * total([torch.log(scale) for scale in self._scales])

    def whiten(self, vector: Sequence[Tensor], first: int = 0) -> list[Tensor]:
        """L^-1 b, from entry `first` on, before which b is zero."""
        found: list[Tensor] = []
        for i, entry in enumerate(vector, start=first):
            for part, before in zip(self._lower[i][first:], found, strict=True):
                entry = entry - part * before
            found.append(entry * self._scales[i])
        return found

    def solve(self, vector: Sequence[Complex[Tensor, "*bin"]]) -> list[Tensor]:
        """Y^-1 b."""
        found = self.whiten(vector)
        for i in reversed(range(len(found))):
            for below in range(i + 1, len(found)):
                found[i] = found[i] - self._lower[below][i].conj() * found[below]
            found[i] = found[i] * self._scales[i]
        return found

    def inverse(self) -> list[list[Tensor]]:
        """The lower triangle of Y^-1."""
        size = len(self._scales)
        columns = []  # of L^-1, from the diagonal on
        for j, scale in enumerate(self._scales):
            column = [scale]
            for i in range(j + 1, size):
                parts = [left * before for left, before in zip(self._lower[i][j:], column, strict=True)]
                column.append(-total(parts) * self._scales[i])
            columns.append(column)
        return [[inner(columns[i], columns[j][i - j :]) for j in range(i + 1)] for i in range(size)]


def square(values: Tensor) -> Tensor:
    """|v|^2."""
    return values.real.square() + values.imag.square() if values.is_complex() else values.square()


def inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The product left' right; real where both are the same."""
    if left is right or all(a is b for a, b in zip(left, right, strict=True)):
        return total([square(a) for a in left])
    return total([a.conj() * b for a, b in zip(left, right, strict=True)])
