"""The last layer of a decoder gives what a linear layer gives, and its derivatives, however its rows lie in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from audiovae.networks.bins import ToBins


@pytest.mark.parametrize("shape", [(7,), (3, 5, 7), (0, 7), (1, 1, 7)])
@pytest.mark.parametrize("n_outputs", [1, 16, 33, 513])
def test_in_training_it_is_a_linear_layer(shape: tuple[int, ...], n_outputs: int) -> None:
    torch.manual_seed(0)
    layer, x = ToBins(7, n_outputs), torch.randn(shape)
    given = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(given[0]), nn.functional.linear(given[1], layer.weight)]
    torch.testing.assert_close(*outputs)
    slope = torch.randn_like(outputs[1])
    gradients = [
        torch.autograd.grad(out, [inputs, layer.weight], slope) for out, inputs in zip(outputs, given, strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_its_rows_begin_at_a_cache_line_in_training_alone() -> None:
    layer, x = ToBins(7, 513), torch.randn(3, 5, 7)
    assert layer(x).stride() == (5 * 528, 528, 1)
    assert layer.eval()(x).is_contiguous()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight))


def test_both_derivatives_are_those_of_finite_differences() -> None:
    layer = ToBins(4, 5).double()
    given = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True),)
    assert torch.autograd.gradcheck(layer, given)
    assert torch.autograd.gradgradcheck(layer, given)


def test_mixed_precision_is_that_of_a_linear_layer() -> None:
    layer, x = ToBins(7, 33), torch.randn(3, 7)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        expected = nn.functional.linear(x, layer.weight)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
