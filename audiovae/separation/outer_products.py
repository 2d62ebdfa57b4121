"""Outer products x x' as real numbers, so that sums of them over frames are real products of matrices."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def outer_products(vectors: Complex[Tensor, "*batch channel frame"]) -> Float[Tensor, "*batch square frame"]:
    """Those of frames as M^2 real numbers whose inner product is tr(A B): the diagonal, then sqrt(2) times the real
    parts above it, and sqrt(2) times the imaginary ones.
    """
    n = vectors.shape[-2]
    real, imaginary = vectors.real.contiguous(), vectors.imag.contiguous()
    out = real.new_empty(*real.shape[:-2], n * n, real.shape[-1])
    out[..., :n, :] = real.square().add_(imaginary.square())
    above = [(i, j) for i in range(n) for j in range(i + 1, n)]
    for k, (i, j) in enumerate(above, n):
        one, other = real[..., i, :], imaginary[..., i, :]
        out[..., k, :] = (one * real[..., j, :]).addcmul_(other, imaginary[..., j, :])
        out[..., k + len(above), :] = (other * real[..., j, :]).addcmul_(one, imaginary[..., j, :], value=-1)
    out[..., n:, :] *= 2**0.5
    return out


def hermitian(numbers: Float[Tensor, "*batch square"]) -> Complex[Tensor, "*batch channel channel"]:
    """The matrix of such numbers."""
    n = round(numbers.shape[-1] ** 0.5)
    i, j = torch.triu_indices(n, n, 1)
    diagonal, pairs = torch.arange(n), torch.arange(n, n + len(i))
    basis = numbers.new_zeros(n * n, n, n, 2)  # the matrix of each unit vector, real and imaginary parts
    basis[diagonal, diagonal, diagonal, 0] = 1
    basis[pairs, i, j, 0] = basis[pairs, j, i, 0] = 2**-0.5
    basis[pairs + len(i), i, j, 1] = 2**-0.5
    basis[pairs + len(i), j, i, 1] = -(2**-0.5)
    return torch.view_as_complex((numbers @ basis.flatten(1)).unflatten(-1, (n, n, 2)))
