"""Rows put in order by delays, against the order in which they were made."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import RATE
from jaxtyping import TypeCheckError
from torch import Tensor

from audiovae import STFT
from audiovae.separation.delays import order_by_delays
from audiovae.stft import Front

FRONT = Front(STFT(2048, 512, "hann"), RATE)
HZ = torch.arange(1025, dtype=torch.float64) * RATE / 2048


def arriving(delays: Tensor, deviation: float = 0.0, seed: int = 0) -> Tensor:
    """Columns of sources that reach microphone m after delays[m, n] seconds, at any scale, in a room that moves phases
    by `deviation` radians.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    angles = -2 * math.pi * HZ[:, None, None] * delays
    angles = angles + deviation * random(*angles.shape)
    strength = random(len(HZ), 1, delays.shape[1]).exp()
    turned = 2 * math.pi * random(len(HZ), 1, delays.shape[1])
    return torch.polar(strength.expand_as(angles), angles + turned).unsqueeze(0)


def of_sources(n_channels: int, n_sources: int, longest: float = 1e-4) -> Tensor:
    """Each source is first at a microphone of its own."""
    places = torch.linspace(0, math.pi, n_channels, dtype=torch.float64)[:, None]
    return -longest / 2 * torch.cos(places - math.pi * torch.linspace(0, 1, n_sources, dtype=torch.float64))


@pytest.mark.parametrize(("n_channels", "n_sources"), [(2, 2), (4, 2), (4, 3), (9, 9)])
@pytest.mark.parametrize("deviation", [0.0, 0.5])
def test_bands_that_changed_places_are_put_back(n_channels: int, n_sources: int, deviation: float) -> None:
    columns = arriving(of_sources(n_channels, n_sources, 1e-4 if n_sources < 9 else 1e-3), deviation)
    there = torch.arange(n_sources).repeat(1, len(HZ), 1)
    for lowest, highest, by in ((2600.0, 4000.0, 1), (5500.0, 8001.0, n_sources - 1)):
        band = (lowest <= HZ) & (highest > HZ)
        there[:, band] = there[:, band].roll(by, -1)
    mixed_up = columns.gather(-1, there.unsqueeze(-2).expand_as(columns))
    order = order_by_delays(mixed_up, FRONT)
    assert (order.sort(-1).values == torch.arange(n_sources)).all()
    found = there.gather(-1, order)
    inside = HZ > 400
    for edge in (2600.0, 4000.0, 5500.0):
        inside &= (edge - HZ).abs() > 300
    assert (found[0, inside] == torch.arange(n_sources)).all()


def test_rows_in_order_stay_and_scale_makes_no_difference() -> None:
    columns = arriving(of_sources(4, 2), 0.5)
    order = order_by_delays(columns, FRONT)
    assert (order[0, HZ > 400] == torch.arange(2)).all()
    assert torch.equal(order_by_delays((3 + 4j) * columns, FRONT), order)


def test_sources_without_different_delays_stay_as_they_are() -> None:
    """Two speakers that a line of microphones cannot tell apart."""
    delays = of_sources(4, 1).expand(-1, 2)
    assert torch.equal(order_by_delays(arriving(delays), FRONT), torch.arange(2).expand(1, len(HZ), 2))


def test_a_dead_microphone_tells_nothing_and_harms_nothing() -> None:
    columns = arriving(of_sources(4, 2))
    columns[:, :, 2] = 0
    assert (order_by_delays(columns, FRONT)[0, HZ > 400] == torch.arange(2)).all()
    columns[:, :, 0] = 0
    assert torch.equal(order_by_delays(columns, FRONT), torch.arange(2).expand(1, len(HZ), 2))


@pytest.mark.usefixtures("checked")
def test_columns_without_sources_are_refused() -> None:
    with pytest.raises(TypeCheckError):
        order_by_delays(torch.zeros(1, 1025, 4, dtype=torch.complex128), FRONT)
