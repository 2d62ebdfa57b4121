"""Spatial covariances and what is made of them: from masks, and one matrix that diagonalises several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.outer_products import hermitian
from audiovae.separation.spatial.spatial import total

_RIDGE = 1e-6  # of the mean diagonal of the covariances' sum
_DIAGONALISATIONS = 10
_FIRST_GAIN = 0.05  # of a source in a channel that is not its own at the start

Covariances = Complex[Tensor, "source recording freq channel channel"]


def masked_covariances(
    mixture: Mixture,
    psds: Sequence[Float[Tensor, "recording frame freq"]],
    levels: Float[Tensor, "source recording"] | None = None,
) -> Covariances:
    """H_n = mean_t s_n s_n' / lambda_n, s_n the images by the masks u_n lambda_n / sum_n u_n lambda_n: what PSDs say of
    space.

    Args:
        levels: the square roots of u, which stay in H; None: 1.
    """
    u = mixture.power.new_ones(len(psds), len(mixture.power)) if levels is None else levels.square()
    of_all = total([scale[:, None, None] * psd for scale, psd in zip(u, psds, strict=True)])
    share = mixture.share / of_all.square()
    weights = [(scale[:, None, None].square() * psd * share).mT for scale, psd in zip(u, psds, strict=True)]
    numbers = torch.stack(weights, 2) @ mixture.outer.mT  # [recording, freq, source, channel^2]
    return hermitian(numbers.movedim(2, 0)).to(torch.complex128)


def diagonaliser(
    covariances: Covariances, n_iterations: int = _DIAGONALISATIONS
) -> Complex[Tensor, "recording freq row channel"]:
    """Q such that all Q H_n Q' are as diagonal as can be, and their sum is the identity but for a ridge.

    For two it is exact, by their generalised eigenvectors; that of the first beside the sum of the others is where the
    search for more begins: iterative projection on sum_n log det diag(Q H_n Q') - log det Q Q', which never increases.

    Reference: D. T. Pham, "Joint approximate diagonalization of positive definite Hermitian matrices", SIAM J. Matrix
        Anal. Appl. 22(4), 2001 (the criterion).
    """
    together = ridged(covariances.sum(0), _RIDGE)
    q = generalised_eigenvectors(covariances[0], together)
    if len(covariances) == 2:
        return q
    for _ in range(n_iterations):
        of_rows = diagonal_of(q, covariances).clamp(min=torch.finfo(torch.float32).tiny)
        v = torch.einsum("nrfm,nrfij->rfmij", 1 / of_rows.to(covariances.dtype), covariances) / len(covariances)
        q = projected(q, ridged(v, _RIDGE))
    scale = diagonal_of(q, together.unsqueeze(0))[0].rsqrt()
    return q * scale.unsqueeze(-1)


def generalised_eigenvectors(
    one: Complex[Tensor, "recording freq channel channel"], together: Complex[Tensor, "recording freq channel channel"]
) -> Complex[Tensor, "recording freq row channel"]:
    """Q such that Q A Q' of the one is diagonal and that of the other, which is positive definite, the identity."""
    root = torch.linalg.cholesky(together)
    inner = torch.linalg.solve_triangular(root, one, upper=False)
    inner = torch.linalg.solve_triangular(root, inner.mH, upper=False)
    _, vectors = torch.linalg.eigh((inner + inner.mH) / 2)
    return torch.linalg.solve_triangular(root.mH, vectors, upper=True).mH


def first_gains(n_sources: int, n_channels: int) -> Float[Tensor, "source channel"]:
    """What a source has of a channel where nothing is known: much of those that are its own in turn."""
    own = torch.arange(n_channels) % n_sources == torch.arange(n_sources)[:, None]
    return torch.where(own, 1.0, _FIRST_GAIN)


def floored(covariances: Complex[Tensor, "*batch channel channel"], least: Float[Tensor, "*batch"]) -> Tensor:
    """The nearest Hermitian matrices without an eigenvalue below `least`; a gradient passes as if there were none."""
    hermitian = (covariances + covariances.mH) / 2
    values, vectors = torch.linalg.eigh(hermitian.detach())
    if hermitian.requires_grad:  # that of eigenvectors is infinite where two eigenvalues are the same
        short = (least.unsqueeze(-1) - values).clamp(min=0.0).unsqueeze(-2)
        return hermitian + (vectors * short) @ vectors.mH
    return (vectors * torch.maximum(values, least.unsqueeze(-1)).unsqueeze(-2)) @ vectors.mH


def diagonal_of(q: Complex[Tensor, "recording freq row channel"], covariances: Covariances) -> Tensor:
    """q_m H_n q_m', `[source, recording, freq, row]`."""
    return torch.einsum("rfmi,nrfij,rfmj->nrfm", q, covariances, q.conj()).real


def ridged(covariances: Complex[Tensor, "*batch channel channel"], ridge: float) -> Tensor:
    """With `ridge` times the mean diagonal added to the diagonal, and a little more for silence."""
    out = covariances.clone()
    diagonal = out.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(ridge * diagonal.real.mean(-1, keepdim=True) + torch.finfo(torch.float32).tiny)
    return out


def projected(
    q: Complex[Tensor, "recording freq row channel"], v: Complex[Tensor, "recording freq row channel channel"]
) -> Complex[Tensor, "recording freq row channel"]:
    """One sweep of iterative projection: rows in turn, q_m = (Q V_m)^-1 e_m / sqrt(q' V_m q).

    Reference: N. Ono, "Stable and fast update rules for independent vector analysis based on auxiliary function
        technique", WASPAA 2011.
    """
    q = q.clone()
    eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    for m in range(v.shape[-3]):
        of_row = v[..., m, :, :]
        row = torch.linalg.solve(q @ of_row, eye[:, m].expand(q.shape[:-1]))
        norm = torch.linalg.vecdot(row, (of_row @ row.unsqueeze(-1)).squeeze(-1)).real.sqrt()
        q[..., m, :] = (row / norm.unsqueeze(-1)).conj()
    return q


def steered(
    q: Complex[Tensor, "recording freq row channel"], v: Complex[Tensor, "recording freq row channel channel"]
) -> Complex[Tensor, "recording freq row channel"]:
    """One sweep of iterative source steering: Q <- Q - u_k q_k for each row k in turn, u_k the best of all vectors.

    Minimises the same sum_m q_m V_m q_m' - log det Q Q' as `projected`, without an inverse.

    Reference: R. Scheibler, N. Ono, "Fast and stable blind source separation with rank-1 updates", ICASSP 2020.
    """
    for k in range(v.shape[-3]):
        own = q[..., k, :]
        seen = (v @ own.conj()[..., None, :, None]).squeeze(-1)  # V_m q_k', [recording, freq, row, channel]
        of_own = (seen * own.unsqueeze(-2)).sum(-1).real  # q_k V_m q_k'
        step = (q * seen).sum(-1) / of_own
        step[..., k] = 1 - of_own[..., k].rsqrt()
        q = q - step.unsqueeze(-1) * own.unsqueeze(-2)
    return q
