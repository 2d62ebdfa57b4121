"""What is made of covariances: masks, updates of a demixing matrix against brute force, and common diagonals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from spaces import N_FREQS, mixture_of, normal, positive, positive_definite, without_phase
from torch import Tensor

from audiovae.separation.spatial.cholesky import Cholesky
from audiovae.separation.spatial.covariances import (
    diagonal_of,
    diagonaliser,
    floored,
    generalised_eigenvectors,
    masked_covariances,
    projected,
    steered,
)

# A sweep over the rows -----------------------------------------------------------------------------------------------


def objective(q: np.ndarray, v: np.ndarray) -> float:
    """What a sweep minimises: sum_m q_m V_m q_m' - log det Q Q'."""
    quadratic = sum((row @ matrix @ row.conj()).real for row, matrix in zip(q, v, strict=True))
    return float(quadratic - 2 * np.linalg.slogdet(q)[1])


def swept(q: np.ndarray, v: np.ndarray, moved: Callable[[np.ndarray, int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Rows in turn, each by a search over all complex vectors."""
    size = len(q)
    for k in range(size):

        def value(numbers: np.ndarray, q: np.ndarray = q, k: int = k) -> float:
            return objective(moved(q, k, numbers[:size] + 1j * numbers[size:]), v)

        starts = np.random.default_rng(k).normal(scale=0.3, size=(4, 2 * size))
        best = min((scipy.optimize.minimize(value, start, tol=1e-12) for start in starts), key=lambda run: run.fun)
        q = moved(q, k, best.x[:size] + 1j * best.x[size:])
    return q


def row_replaced(q: np.ndarray, k: int, row: np.ndarray) -> np.ndarray:
    return np.concatenate([q[:k], row[None], q[k + 1 :]])


def row_subtracted(q: np.ndarray, k: int, weights: np.ndarray) -> np.ndarray:
    return q - np.outer(weights, q[k])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("sweep", "moved"), [(projected, row_replaced), (steered, row_subtracted)])
def test_a_sweep_finds_the_minimum_of_each_row_in_turn(sweep: Callable[..., Tensor], moved: object, size: int) -> None:
    q, v = normal(1, 1, size, size), positive_definite(1, 1, size, size)
    before = q.clone()
    found = sweep(q, v)
    expected = torch.from_numpy(swept(q[0, 0].numpy(), v[0, 0].numpy(), moved))  # type: ignore[arg-type]
    torch.testing.assert_close(without_phase(found[0, 0]), without_phase(expected), rtol=0, atol=1e-4)
    assert objective(found[0, 0].numpy(), v[0, 0].numpy()) <= objective(expected.numpy(), v[0, 0].numpy()) + 1e-6
    assert torch.equal(q, before)


def test_projection_and_steering_come_to_the_same_rest() -> None:
    v = positive_definite(2, 3, 3, 3)
    ends = []
    for sweep in (projected, steered):
        q = torch.eye(3, dtype=torch.complex128).expand(2, 3, 3, 3)
        for _ in range(300):
            q = sweep(q, v)
        ends.append(without_phase(q))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)


# Common diagonals ----------------------------------------------------------------------------------------------------


def misfit(q: Tensor, h: Tensor) -> Tensor:
    """Of Q H Q' from diagonal matrices, `[recording, freq]`: zero where all are."""
    turned = q @ h @ q.mH
    return (turned.diagonal(dim1=-2, dim2=-1).real.log().sum(-1) - torch.linalg.slogdet(turned).logabsdet).sum(0)


def test_two_covariances_become_diagonal() -> None:
    h = positive_definite(2, 2, 3, 4)
    q = generalised_eigenvectors(h[0], h.sum(0))
    eye = torch.eye(4, dtype=torch.complex128).expand(2, 3, 4, 4)
    torch.testing.assert_close(q @ h.sum(0) @ q.mH, eye, rtol=0, atol=1e-11)
    for one in h:
        turned = q @ one @ q.mH
        torch.testing.assert_close(turned, torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-11)
    torch.testing.assert_close(diagonal_of(q, h).sum(0), torch.ones(2, 3, 4, dtype=torch.float64))
    assert misfit(diagonaliser(h), h).max() < 1e-9
    assert misfit(eye, h).min() > 0.1


def test_of_more_no_further_iteration_makes_the_misfit_worse() -> None:
    h = positive_definite(3, 2, 3, 4)
    trace = torch.stack([misfit(diagonaliser(h, n), h) for n in range(0, 20, 2)])
    assert trace.diff(dim=0).max() <= 1e-9
    assert (trace[-1] < 0.9 * trace[0]).all()
    q = diagonaliser(h)
    ones = torch.ones(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(diagonal_of(q, h.sum(0, keepdim=True))[0], ones, rtol=1e-4, atol=0)


def test_more_with_a_common_diagonal_find_it() -> None:
    back, gains = normal(2, 3, 3, 3), positive(4, 2, 3, 1, 3)
    h = (back * gains) @ back.mH
    assert misfit(diagonaliser(h, 50), h).max() < 0.002
    assert misfit(torch.eye(3, dtype=back.dtype).expand_as(back), h).min() > 0.2


# Others --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, torch.tensor([[1.0, 0.5], [2.0, 3.0]], dtype=torch.float64)])
def test_masks_give_the_covariances_of_a_loop(levels: Tensor | None) -> None:
    """Those of the masked mixture over lambda, in which the square of the level stays."""
    mixture = mixture_of(3)
    psds = list(positive(2, *mixture.power.shape))
    found = masked_covariances(mixture, psds, levels)
    u = torch.ones(2, 2) if levels is None else levels.square()
    for i, n_frames in enumerate(mixture.inside.sum(-1).tolist()):
        for f in range(N_FREQS):
            for n in range(2):
                expected = torch.zeros(3, 3, dtype=torch.complex128)
                for t in range(n_frames):
                    values = [float(u[k, i] * psd[i, t, f]) for k, psd in enumerate(psds)]
                    image = values[n] / sum(values) * mixture.spectrogram[i, t, f]
                    expected += torch.outer(image, image.conj()) / float(psds[n][i, t, f]) / n_frames
                torch.testing.assert_close(found[n, i, f], expected)


def test_eigenvalues_are_floored_and_nothing_else_changes() -> None:
    h = positive_definite(2, 3, 4)
    lowest = torch.linalg.eigvalsh(h)[..., 1]  # the second of each is the bound
    found = floored(h, lowest)
    values, expected = torch.linalg.eigvalsh(found), torch.linalg.eigvalsh(h)
    torch.testing.assert_close(values[..., 1:], expected[..., 1:])
    torch.testing.assert_close(values[..., 0], lowest)
    torch.testing.assert_close(floored(h, torch.zeros(2, 3, dtype=torch.float64)), h)
    torch.testing.assert_close(found @ h, h @ found)  # the same eigenvectors


@pytest.mark.parametrize("size", [1, 2, 4])
def test_cholesky_factors_entry_by_entry_are_those_of_whole_matrices(size: int) -> None:
    h, b = positive_definite(3, 2, size), normal(3, 2, size, seed=9)
    factor = Cholesky([[h[..., i, j].real if i == j else h[..., i, j] for j in range(i + 1)] for i in range(size)])
    torch.testing.assert_close(factor.log_det(), torch.linalg.slogdet(h).logabsdet)
    torch.testing.assert_close(torch.stack(factor.solve(list(b.unbind(-1))), -1), torch.linalg.solve(h, b))
    lower = torch.linalg.cholesky(h)
    for first in range(size):
        later = torch.where(torch.arange(size) < first, 0, b)
        expected = torch.linalg.solve_triangular(lower, later.unsqueeze(-1), upper=False).squeeze(-1)
        found = factor.whiten(list(later.unbind(-1)[first:]), first)
        torch.testing.assert_close(torch.stack(found, -1), expected[..., first:])
    inverse = torch.linalg.inv(h)
    for i, row in enumerate(factor.inverse()):
        assert not row[i].is_complex()
        for j, entry in enumerate(row):
            torch.testing.assert_close(entry.to(h.dtype), inverse[..., i, j])
