"""Temporal convolutions with skip connections, frames before features: what gives a frame its context."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from audiovae.networks.bins import ToBins


class TemporalConvolution(nn.Module):
    """Depthwise convolution over time: y_t = sum_i w_i * h_{t + (i - centre) dilation}, zeros beyond the ends.

    Args:
        width: features per frame.
        kernel_size: frames that are combined.
        dilation: frames between them.
        causal: the last of them is the frame itself, else the middle one. It may be given the frames before the first
            one: as many as it pads.
    """

    def __init__(self, width: int, kernel_size: int, dilation: int, causal: bool = False) -> None:
        super().__init__()
        if min(width, kernel_size, dilation) < 1:
            raise ValueError(
                f"width, kernel_size and dilations must be positive, got {width}, {kernel_size} and {dilation}"
            )
        self.dilation = dilation
        before = kernel_size - 1 if causal else kernel_size // 2
        self.padding = (before * dilation, (kernel_size - 1 - before) * dilation)
        weight = 0.3 * torch.randn(kernel_size, width) / math.sqrt(kernel_size)
        weight[before] += 1.0  # starts near the identity
        self.weight = nn.Parameter(weight)

    def forward(
        self, hidden: Float[Tensor, "*batch frame width"], before: Float[Tensor, "*batch past width"] | None = None
    ) -> Float[Tensor, "*batch frame width"]:
        n_frames, weight = hidden.shape[-2], self.weight.to(hidden.dtype)
        padded = (
            functional.pad(hidden, (0, 0, *self.padding)) if before is None else torch.cat([before, hidden], dim=-2)
        )
        result = padded[..., :n_frames, :] * weight[0]
        for i in range(1, len(weight)):
            start = i * self.dilation
            result = torch.addcmul(result, padded[..., start : start + n_frames, :], weight[i])
        return result


class TemporalBlock(nn.Module):
    """h + silu(W conv(h) + b + U y): context by a depthwise convolution, features mixed by a matrix, and a skip.

    Args:
        n_labels: size of the condition y of the whole sequence; 0: there is none.
        dropout: probability of what is added to h.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int,
        dilation: int = 1,
        causal: bool = False,
        n_labels: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.convolution = TemporalConvolution(width, kernel_size, dilation, causal)
        self.linear = nn.Linear(width, width)
        self.of_labels = nn.Linear(n_labels, width, bias=False) if n_labels else None
        self.dropout = dropout

    def forward(
        self, hidden: Float[Tensor, "*batch frame width"], condition: Tensor | None = None, before: Tensor | None = None
    ) -> Float[Tensor, "*batch frame width"]:
        mixed = self.linear(self.convolution(hidden, before))
        if self.of_labels is not None:
            mixed = mixed + self.of_labels(condition)
        added = functional.silu(mixed)
        return hidden + (functional.dropout(added, self.dropout, self.training) if self.dropout else added)


def temporal_network(
    n_inputs: int,
    width: int,
    n_outputs: int,
    kernel_size: int,
    dilations: tuple[int, ...],
    causal: bool = False,
    last_bias: bool = True,
) -> nn.Sequential:
    """Linear and silu into `width` features, a `TemporalBlock` for each dilation, linear out of them."""
    blocks = [TemporalBlock(width, kernel_size, dilation, causal) for dilation in dilations]
    return nn.Sequential(
        nn.Linear(n_inputs, width), nn.SiLU(), *blocks, (nn.Linear if last_bias else ToBins)(width, n_outputs)
    )


def stream(
    network: nn.Sequential, inputs: Float[Tensor, "*batch frame feature"], state: Tensor | None
) -> tuple[Float[Tensor, "*batch frame output"], Float[Tensor, "*batch past width"]]:
    """A causal `temporal_network` on frames that follow others, and the state from which the next ones go on.

    Args:
        state: what each convolution saw last, one after another along the frames; None before the first frame.
    """
    hidden, seen = inputs, []
    for layer in network:
        if isinstance(layer, TemporalBlock):
            n_past = layer.convolution.padding[0]
            if state is None:
                before = hidden.new_zeros(*hidden.shape[:-2], n_past, hidden.shape[-1])
            else:
                before, state = state[..., :n_past, :], state[..., n_past:, :]
            seen.append(torch.cat([before, hidden], dim=-2)[..., hidden.shape[-2] :, :])
            hidden = layer(hidden, before=before)
        else:
            hidden = layer(hidden)
    return hidden, torch.cat(seen, dim=-2)


def reach(kernel_size: int, dilations: tuple[int, ...], causal: bool = False) -> int:
    """Frames to the further side that a frame's result depends on, after convolutions of these dilations."""
    return (kernel_size - 1 if causal else kernel_size // 2) * sum(dilations)
