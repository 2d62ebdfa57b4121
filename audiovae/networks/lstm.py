"""Recurrences whose inputs are all known: one fused call over the sequence."""

from __future__ import annotations

import itertools
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Direction = Literal["forward", "backward", "both"]


class SequenceLSTM(nn.Module):
    """An LSTM over `[..., frame, feature]` in the given direction, from a zero state, in full precision also under
    autocast.

    Args:
        n_inputs: features per frame.
        width: of its state.
        direction: forward, backward, or both side by side (`2 * width` outputs).
    """

    def __init__(self, n_inputs: int, width: int, direction: Direction = "forward") -> None:
        super().__init__()
        if min(n_inputs, width) < 1:
            raise ValueError(f"widths must be positive, got {n_inputs} and {width}")
        self.direction = direction
        self.n_outputs = width * (2 if direction == "both" else 1)
        self.lstm = nn.LSTM(n_inputs, width, batch_first=True, bidirectional=direction == "both")

    def forward(self, inputs: Float[Tensor, "*batch frame feature"]) -> Float[Tensor, "*batch frame state"]:
        sequences = inputs.to(cast(Tensor, self.lstm.weight_ih_l0).dtype).reshape(-1, *inputs.shape[-2:])
        with torch.autocast(inputs.device.type, enabled=False):
            backward = self.direction == "backward"
            states = self.lstm(sequences.flip(-2) if backward else sequences)[0]
            states = states.flip(-2) if backward else states
        return states.reshape(*inputs.shape[:-1], self.n_outputs)

    def step(
        self, inputs: Float[Tensor, "*batch feature"], state: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "*batch state"], tuple[Tensor, Tensor]]:
        """One frame of a forward LSTM, for inputs that depend on its last output: the output and the next state."""
        output, after = self.lstm(inputs.reshape(-1, 1, inputs.shape[-1]), state)
        return output.reshape(*inputs.shape[:-1], self.n_outputs), after


def shift(features: Float[Tensor, "*batch frame feature"]) -> Float[Tensor, "*batch frame feature"]:
    """What each frame sees of the one before: zeros first."""
    return functional.pad(features, (0, 0, 1, 0))[..., :-1, :]


def tanh_layers(*widths: int) -> nn.Sequential:
    """Linear layers of these widths, each followed by tanh.

    Raises:
        ValueError: a width that is not positive.
    """
    if min(widths) < 1:
        raise ValueError(f"widths must be positive, got {list(widths)}")
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers)
