"""Long recordings in blocks that overlap."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Complex
from torch import Tensor

from audiovae.files.recording import Block

BLOCK_FRAMES = 1800  # about half a minute at 16 kHz: what is inferred at once
OVERLAP_FRAMES = 100  # of two blocks, across which the images of one fade into those of the next


def overlapping(blocks: Iterator[Block], hop_length: int) -> Iterator[tuple[Block, bool]]:
    """Cut a stream into longer blocks that overlap; says which is the last. No block but a lone first is short."""
    frames: Tensor | None = None
    wave: Tensor | None = None
    for block in blocks:
        frames = block.spectrogram if frames is None else torch.cat([frames, block.spectrogram], dim=1)
        wave = block.wave if wave is None else torch.cat([wave, block.wave], dim=1)
        while frames.shape[1] >= 2 * BLOCK_FRAMES:
            yield Block(frames[:, :BLOCK_FRAMES], wave[:, : BLOCK_FRAMES * hop_length]), False
            rest = BLOCK_FRAMES - OVERLAP_FRAMES
            frames, wave = frames[:, rest:], wave[:, rest * hop_length :]
    assert frames is not None
    assert wave is not None
    yield Block(frames, wave), True


class Fade:
    """Images of overlapping blocks: from one to the next along a straight line."""

    def __init__(self) -> None:
        self._before: Tensor | None = None

    def push(self, image: Complex[Tensor, "channel frame freq"], last: bool) -> Tensor:
        """The frames that no later block reaches."""
        if self._before is not None:
            rise = torch.linspace(0, 1, OVERLAP_FRAMES, device=image.device, dtype=image.real.dtype).unsqueeze(-1)
            faded = self._before + rise * (image[:, :OVERLAP_FRAMES] - self._before)
            image = torch.cat([faded, image[:, OVERLAP_FRAMES:]], dim=1)
        self._before = image[:, -OVERLAP_FRAMES:]
        return image if last else image[:, :-OVERLAP_FRAMES]
