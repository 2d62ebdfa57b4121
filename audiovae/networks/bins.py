"""The last layer of a decoder: a linear one without bias, into an odd number of frequency bins."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_ALIGNED = 16  # numbers: a cache line


class ToBins(nn.Linear):
    """x W^T, as a linear layer without a bias.

    Rows of 513 numbers one after another begin anywhere in a cache line, and the product that writes them takes 1.6
    times as long as into rows that begin at one. While a model trains on a CPU, its spectra are laid out so, with a gap
    after each row; they are the same numbers.

    Args:
        n_inputs: width of what it sees.
        n_outputs: numbers per frame.
    """

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__(n_inputs, n_outputs, bias=False)

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch output"]:
        plain = input.device.type != "cpu" or input.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu")
        if plain or not self.training:
            return super().forward(input)
        return _AlignedProduct.apply(input, self.weight)  # type: ignore[no-untyped-call,no-any-return]


class _AlignedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        batch, n = x.shape[:-1], len(weight)
        stride = -(-n // _ALIGNED) * _ALIGNED
        steps = [math.prod(batch[i + 1 :]) * stride for i in range(len(batch))]
        out = torch.empty_strided((*batch, n), (*steps, 1), dtype=x.dtype)
        torch.mm(x.reshape(-1, x.shape[-1]), weight.t(), out=out.as_strided((math.prod(batch), n), (stride, 1)))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_weight = gradient.reshape(-1, gradient.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        return gradient @ weight if ctx.needs_input_grad[0] else None, of_weight
