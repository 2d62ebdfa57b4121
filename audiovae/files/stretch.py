"""Frames that come in blocks, cut anew for a model with context in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STRETCH_FRAMES = 4096  # that a model with context in time sees at once, besides its context


@dataclass(frozen=True)
class Stretch:
    """Frames that a model sees at once, of which those in `kept` count: the others are there for their context.

    Attributes:
        frames: `[channel, frame, ...]`.
        kept: the part of the frames whose results are used.
    """

    frames: Tensor
    kept: slice


def stretches(blocks: Iterator[Tensor], context: int) -> Iterator[Stretch]:
    """Cut blocks of frames into overlapping stretches: a model with context gives nearly what it gives to the whole.

    Args:
        blocks: `[channel, frame, ...]`, one after another.
        context: frames to each side of what is kept; 0 passes the blocks on as they are.
    """
    if context == 0:
        yield from (Stretch(block, slice(0, block.shape[1])) for block in blocks if block.shape[1])
        return
    pending: Tensor | None = None
    n_before = 0  # frames at the beginning of `pending` that were kept already
    for block in blocks:
        pending = block if pending is None else torch.cat([pending, block], dim=1)
        while pending.shape[1] >= n_before + STRETCH_FRAMES + 2 * context:
            end = n_before + STRETCH_FRAMES
            yield Stretch(pending[:, : end + context], slice(n_before, end))
            cut = max(0, end - context)
            pending, n_before = pending[:, cut:], end - cut
    if pending is not None and pending.shape[1] > n_before:
        yield Stretch(pending, slice(n_before, pending.shape[1]))
