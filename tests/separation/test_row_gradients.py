"""Sums over frames of joint diagonalisation against plain expressions; their gradients against differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from audiovae.separation.outer_products import hermitian, outer_products
from audiovae.separation.spatial.row_gradients import GainSums, RowPower, WeightedOuter

N_SOURCES, N_RECORDINGS, N_FREQS, N_ROWS, N_FRAMES = 3, 2, 3, 4, 5


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    found = torch.randn(*shape, dtype=dtype, generator=generator)
    return found if dtype.is_complex else found.abs() + 0.1


def sounds() -> Tensor:
    """x, `[recording, freq, channel, frame]`; the last frame of the second recording is padding."""
    x = drawn(N_RECORDINGS, N_FREQS, N_ROWS, N_FRAMES, dtype=torch.complex128)
    x[1, ..., -1] = 0
    return x


def inside() -> Tensor:
    found = torch.ones(N_RECORDINGS, 1, N_FRAMES, dtype=torch.bool)
    found[1, :, -1] = False
    return found


def variance(gains: Tensor, psds: Tensor) -> Tensor:
    return (gains.permute(0, 3, 1, 2).unsqueeze(-1) * psds.unsqueeze(1)).sum(0)


def psds_and_gains(n_gains: int) -> tuple[Tensor, Tensor]:
    psds = drawn(N_SOURCES, N_RECORDINGS, N_FREQS, N_FRAMES).requires_grad_()
    return psds, drawn(N_SOURCES, N_RECORDINGS, n_gains, N_ROWS).requires_grad_()


def test_numbers_of_outer_products_hold_them_and_their_inner_products() -> None:
    x, y = sounds().numpy(), drawn(N_RECORDINGS, N_FREQS, N_ROWS, N_FRAMES, dtype=torch.complex128).numpy() + 1j
    of_x, of_y = (outer_products(torch.from_numpy(v)) for v in (x, y))
    matrices = np.einsum("...it,...jt->...tij", x, x.conj())
    assert np.allclose(hermitian(of_x.mT).numpy(), matrices)
    assert np.allclose((of_x * of_y).sum(-2).numpy(), np.abs(np.einsum("...it,...it->...t", x.conj(), y)) ** 2)


def test_power_of_rows() -> None:
    x, q = sounds(), drawn(N_RECORDINGS, N_FREQS, N_ROWS, N_ROWS, dtype=torch.complex128).requires_grad_()
    parts = torch.cat([x.real, x.imag], dim=-2)
    found = RowPower.apply(q, parts)
    assert torch.allclose(found, (q @ x).abs().square().movedim(2, 0))
    assert gradcheck(lambda q: RowPower.apply(q, parts), q)


@pytest.mark.parametrize("n_gains", [1, N_FREQS])
def test_sums_of_multiplicative_updates(n_gains: int) -> None:
    power = drawn(N_ROWS, N_RECORDINGS, N_FREQS, N_FRAMES).requires_grad_()
    psds, gains = psds_and_gains(n_gains)
    fall, rise = GainSums.apply(power, psds, gains, inside())
    y = variance(gains, psds)
    counted = psds * inside()
    assert torch.allclose(fall, torch.einsum("nrft,mrft->nrfm", counted, power / y**2))
    assert torch.allclose(rise, torch.einsum("nrft,mrft->nrfm", counted, 1 / y))
    assert gradcheck(lambda *inputs: GainSums.apply(*inputs, inside()), (power, psds, gains))


@pytest.mark.parametrize("n_gains", [1, N_FREQS])
def test_weighted_outer_products(n_gains: int) -> None:
    x = sounds()
    share = (inside() / inside().sum(-1, keepdim=True)).mT.double()
    dither = drawn(N_RECORDINGS, N_FREQS)
    psds, gains = psds_and_gains(n_gains)
    told = outer_products(x), share, dither
    found = hermitian(WeightedOuter.apply(psds, gains, *told))
    eye = dither[..., None, None, None] * torch.eye(N_ROWS)
    matrices = torch.einsum("rfit,rfjt->rftij", x, x.conj()) + eye
    weights = share[:, None, :, 0] / variance(gains, psds)
    assert torch.allclose(found, torch.einsum("mrft,rftij->rfmij", weights.to(x.dtype), matrices))
    assert gradcheck(lambda *inputs: WeightedOuter.apply(*inputs, *told), (psds, gains))
