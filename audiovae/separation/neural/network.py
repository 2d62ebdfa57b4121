"""What an encoder of mixtures sees of microphones and sources, whatever their number and order."""

from __future__ import annotations

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.networks.temporal import TemporalBlock, reach

_BANDS = 128  # over which microphones are compared: of 62 Hz at 16 kHz, where sound of one source keeps its phase
_SMALL = 1e-10  # power of a band at unit level, beside which another's means nothing
_SCALE = 6.0  # of log powers, about their deviation in speech


class PairFeatures(nn.Module):
    """What pairs of microphones tell of directions: their coherence and the ratio of their levels in bands, by one
    network for all ordered pairs, the mean over these. So no microphone is a reference, and any number will do.

    Args:
        n_freqs: frequency bins.
        width: features per frame.
    """

    def __init__(self, n_freqs: int, width: int) -> None:
        super().__init__()
        self.band = -(-n_freqs // _BANDS)
        self.n_bands = -(-n_freqs // self.band)
        self.of_pair = nn.Linear(3 * self.n_bands, width)
        self.out = nn.Linear(width, width)

    def forward(self, outer: Float[Tensor, "*batch freq square frame"]) -> Float[Tensor, "*batch frame width"]:
        """Args: outer: of two microphones or more in each bin, see `outer_products`."""
        n = math.isqrt(outer.shape[-2])
        bands = self._bands(outer).movedim(-2, -3).mT.contiguous()  # [..., number, frame, band]
        powers, real, imaginary = bands.split([n, n * (n - 1) // 2, n * (n - 1) // 2], -3)
        i, j = torch.triu_indices(n, n, 1)
        log_power = (powers + _SMALL).log()
        between = 2**0.5 * (0.5 * (log_power[..., i, :, :] + log_power[..., j, :, :])).exp()
        ratio = torch.tanh((log_power[..., i, :, :] - log_power[..., j, :, :]) / _SCALE)
        of_ratio, of_real, of_imaginary = self.of_pair.weight.chunk(3, dim=1)
        same = functional.linear(real / between, of_real, self.of_pair.bias)  # of either order
        turned = functional.linear(ratio, of_ratio) + functional.linear(imaginary / between, of_imaginary)
        both = functional.silu(same + turned) + functional.silu(same - turned)
        return self.out(0.5 * both.mean(-3))

    def _bands(self, values: Float[Tensor, "*batch freq square frame"]) -> Float[Tensor, "*batch band square frame"]:
        """The mean over each band; beyond the last frequency there is nothing."""
        whole = values.shape[-3] // self.band * self.band
        bands = values[..., :whole, :, :].unflatten(-3, (-1, self.band)).mean(-3)
        if whole == values.shape[-3]:
            return bands
        rest = values[..., whole:, :, :].sum(-3, keepdim=True) / self.band
        return torch.cat([bands, rest], -3)


class Stage(nn.Module):
    """Context over time of each source, and a look at the others: `[..., source, recording, frame, width]`.

    Args:
        n_outputs: numbers per frame, zeros at the start of training.
    """

    def __init__(self, width: int, n_outputs: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.others = nn.Linear(width, width)
        self.blocks = nn.Sequential(*(TemporalBlock(width, kernel_size, dilation) for dilation in dilations))
        self.head = nn.Linear(width, n_outputs)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, hidden: Float[Tensor, "source recording frame width"]
    ) -> tuple[Float[Tensor, "source recording frame width"], Float[Tensor, "source recording frame output"]]:
        hidden = self.blocks(hidden + self.others(hidden.mean(0)))
        return hidden, self.head(hidden)


class MixtureNetwork(nn.Module):
    """The network of an encoder of mixtures: the same for every source, which differ in what it sees of each.

    Args:
        n_freqs: frequency bins.
        n_outputs: numbers per frame and source, of every stage.
        n_slots: sources that are told apart by a number of their own, where they begin alike; 0: they do not.
        width, kernel_size, dilations, n_stages: sizes.

    Attributes:
        lookahead: frames after its own that an output depends on.
    """

    def __init__(
        self,
        n_freqs: int,
        n_outputs: int,
        n_slots: int,
        width: int,
        kernel_size: int,
        dilations: tuple[int, ...],
        n_stages: int,
    ) -> None:
        super().__init__()
        self.pairs = PairFeatures(n_freqs, width)
        self.of_mixture, self.of_source = nn.Linear(n_freqs, width), nn.Linear(n_freqs, width)
        self.slots = nn.Parameter(torch.randn(n_slots, width)) if n_slots else None
        self.stages = nn.ModuleList(Stage(width, n_outputs, kernel_size, dilations) for _ in range(n_stages))
        self.lookahead = n_stages * reach(kernel_size, dilations)

    def add_nothing(self) -> None:
        """All outputs are zeros until it is trained."""
        for stage in self.stages:
            nn.init.zeros_(cast(Stage, stage).head.weight)

    def of_microphones(
        self, outer: Float[Tensor, "recording freq square frame"], power: Float[Tensor, "recording frame freq"]
    ) -> Float[Tensor, "recording frame width"]:
        """What all sources share."""
        return self.pairs(outer) + self.of_mixture(_seen(power))

    def begin(
        self, shared: Float[Tensor, "recording frame width"], n_sources: int
    ) -> Float[Tensor, "source recording frame width"]:
        """The state of every source before the first stage."""
        if self.slots is None:
            return shared.expand(n_sources, *shared.shape)
        return shared + self.slots[:n_sources, None, None]

    def forward(
        self,
        stage: int,
        hidden: Float[Tensor, "source recording frame width"],
        powers: Float[Tensor, "source recording frame freq"],
    ) -> tuple[Float[Tensor, "source recording frame width"], Float[Tensor, "source recording frame output"]]:
        """The next state, and the outputs.

        Args:
            powers: what is known of each source.
        """
        hidden, outputs = self.stages[stage](hidden + self.of_source(_seen(powers)))
        return hidden, outputs


def _seen(power: Float[Tensor, "*batch freq"]) -> Float[Tensor, "*batch freq"]:
    return (power + VARIANCE_FLOOR).log() / _SCALE
