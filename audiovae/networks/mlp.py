"""The multilayer perceptron, with or without skip connections."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovae.networks.bins import ToBins
from audiovae.settings import ActivationName

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def mlp(
    sizes: Sequence[int],
    activation: ActivationName,
    dropout: float = 0.0,
    residual: bool = False,
    last_bias: bool = True,
) -> nn.Sequential:
    """Linear layers from `sizes[0]` to `sizes[-1]`, each but the last followed by the activation and dropout.

    Without a hidden layer it is one linear layer.

    Args:
        residual: add a hidden layer's input to its output wherever the two have the same width.
        last_bias: give the last layer a bias; without one it is `ToBins`.

    Raises:
        ValueError: a width that is not positive, an unknown activation, a dropout outside [0, 1).
    """
    if min(sizes) < 1:
        raise ValueError(f"layers must have positive widths, got {list(sizes)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes[:-1])):
        layer = nn.Sequential(
            nn.Linear(n_in, n_out), ACTIVATIONS[activation](), *([nn.Dropout(dropout)] if dropout > 0 else [])
        )
        layers.append(Residual(layer) if residual and i > 0 and n_in == n_out else layer)
    last = nn.Linear if last_bias else ToBins
    return nn.Sequential(*layers, last(sizes[-2], sizes[-1]))


@torch.no_grad()
def start_small(*heads: nn.Linear) -> None:
    """Shrink last layers, so that a model starts near the prior and near the mean spectrum: no huge first losses."""
    for head in heads:
        head.weight.mul_(0.1)
        if head.bias is not None:
            head.bias.zero_()


class Residual(nn.Module):
    """h + layer(h), without normalisation: a layer norm made the bound worse in every trial, see
    recipes/speech_prior.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return hidden + self.layer(hidden)
