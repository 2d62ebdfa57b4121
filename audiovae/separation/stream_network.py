"""A causal temporal network one short window at a time, with its gradient: a few frames are too few to be worth torch's
calls, which take five times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import nn

from audiovae.networks.temporal import TemporalBlock

State = tuple[NDArray[np.float32], ...]
"""What each convolution saw last before a window, `[past, width]`."""


@dataclass(frozen=True)
class _Block:
    taps: Float32[np.ndarray, "tap width"]
    dilation: int
    weight: Float32[np.ndarray, "width width"]
    bias: Float32[np.ndarray, " width"]


@dataclass(frozen=True)
class Pass:
    """A pass through the network.

    Attributes:
        outputs: `[frame, output]`.
        seen: what each convolution saw, what was before the window first.
        slopes: of each silu.
    """

    outputs: Float32[np.ndarray, "frame output"]
    seen: State
    slopes: tuple[Float32[np.ndarray, "frame width"], ...]


class CausalNetwork:
    """A causal `temporal_network`, as it is when this is made."""

    def __init__(self, network: nn.Sequential) -> None:
        first, last = cast(nn.Linear, network[0]), cast(nn.Linear, network[-1])
        self._first, self._last = _weights(first), _weights(last)
        self._blocks = []
        for block in network:
            if isinstance(block, TemporalBlock):
                taps = block.convolution.weight.detach().float().numpy()
                self._blocks.append(_Block(taps, block.convolution.dilation, *_weights(block.linear)))

    def start(self) -> State:
        """Before the first frame there are zeros."""
        width = len(self._first[1])
        pasts = [(len(block.taps) - 1) * block.dilation for block in self._blocks]
        return tuple(np.zeros((past, width), np.float32) for past in pasts)

    def forward(self, inputs: Float32[np.ndarray, "frame input"], before: State) -> Pass:
        """Frames that follow others."""
        n = len(inputs)
        hidden, slope = _silu(inputs @ self._first[0] + self._first[1])
        slopes, seen = [slope], []
        for block, past in zip(self._blocks, before, strict=True):
            padded = np.concatenate([past, hidden])
            mixed = padded[:n] * block.taps[0]
            for i in range(1, len(block.taps)):
                mixed += padded[i * block.dilation :][:n] * block.taps[i]
            added, slope = _silu(mixed @ block.weight + block.bias)
            hidden = hidden + added
            seen.append(padded)
            slopes.append(slope)
        return Pass(hidden @ self._last[0] + self._last[1], tuple(seen), tuple(slopes))

    def backward(
        self, of_outputs: Float32[np.ndarray, "frame output"], made: Pass
    ) -> Float32[np.ndarray, "frame input"]:
        """The gradient with respect to the inputs of a pass from that with respect to its outputs."""
        n = len(of_outputs)
        slope = of_outputs @ self._last[0].T
        for block, of_silu in zip(reversed(self._blocks), reversed(made.slopes), strict=False):
            of_mixed = (slope * of_silu) @ block.weight.T
            for i, tap in enumerate(reversed(block.taps)):
                distance = i * block.dilation
                if distance < n:
                    slope[: n - distance] += of_mixed[distance:] * tap
        return ((slope * made.slopes[0]) @ self._first[0].T).astype(np.float32, copy=False)

    def after(self, made: Pass, n_frames: int) -> State:
        """What comes before the frames that follow the first few of a pass."""
        return tuple(
            seen[n_frames : n_frames + (len(block.taps) - 1) * block.dilation].copy()
            for seen, block in zip(made.seen, self._blocks, strict=True)
        )


def _weights(linear: nn.Linear) -> tuple[Float32[np.ndarray, "input output"], Float32[np.ndarray, " output"]]:
    weight = linear.weight.detach().float().numpy()
    if linear.bias is None:
        return weight.T, np.zeros(len(weight), np.float32)
    return weight.T, linear.bias.detach().float().numpy()


def _silu(
    x: Float32[np.ndarray, "frame width"],
) -> tuple[Float32[np.ndarray, "frame width"], Float32[np.ndarray, "frame width"]]:
    """X sigmoid(x) and its derivative."""
    sigmoid = 1 / (1 + np.exp(np.negative(x).clip(max=80)))
    result = x * sigmoid
    return result, sigmoid + result * (1 - sigmoid)
