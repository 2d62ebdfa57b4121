"""Long recordings in blocks that overlap."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Complex, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from audiovae.files.recording import Block

BLOCK_FRAMES = 1800  # about half a minute at 16 kHz: what is inferred at once
OVERLAP_FRAMES = 100  # of two blocks, across which the images of one fade into those of the next
BLOCK_SECONDS, OVERLAP_SECONDS = 30.0, 4.0  # the same of waves, where several sources are to be known again
_PLACE_WINDOW, _PLACE_WEIGHT = 1024, 0.1  # samples; beside what differs in the overlap, as a share of its energy


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


def overlapping_waves(
    pieces: Iterator[Float[Tensor, "channel _"]], sample_rate: int
) -> Iterator[tuple[Float[Tensor, "channel _"], bool]]:
    """Cut a wave that arrives in pieces into longer blocks that overlap; says which is the last.

    No block but a lone first is shorter than `BLOCK_SECONDS`, and none twice as long.
    """
    n_block, n_rest = (round(s * sample_rate) for s in (BLOCK_SECONDS, BLOCK_SECONDS - OVERLAP_SECONDS))
    wave: Tensor | None = None
    for piece in pieces:
        wave = piece if wave is None else torch.cat([wave, piece], dim=1)
        while wave.shape[1] >= 2 * n_block:
            yield wave[:, :n_block], False
            wave = wave[:, n_rest:]
    assert wave is not None
    yield wave, True


class Chain:
    """Sources of overlapping blocks: each goes on, along a straight line, as the one of the next block that differs
    least in the overlap; where they hardly sound there, as the one that comes from the same place.
    """

    def __init__(self, sample_rate: int) -> None:
        self._n_overlap = round(OVERLAP_SECONDS * sample_rate)
        self._before: Tensor | None = None
        self._places: Tensor | None = None

    def push(self, images: Float[Tensor, "source channel _"], last: bool) -> Float[Tensor, "source channel _"]:
        """The samples that no later block reaches, in the order of the first block."""
        n = self._n_overlap
        places = _places(images)
        if self._before is not None:
            assert self._places is not None
            overlap = images[..., :n]
            # of the overlap, but never far below that of the block: where nobody speaks, nothing follows from it
            energy = self._before.square().sum() + overlap.square().sum() + n * images.square().mean(-1).sum() / 10
            alike = 2 * torch.einsum("ics,jcs->ij", self._before, overlap) / energy.clamp(min=1e-20)
            alike += _PLACE_WEIGHT * torch.einsum("ifcd,jfcd->ij", self._places, places.conj()).real
            order = linear_sum_assignment(alike.numpy(force=True), maximize=True)[1]
            images, places = images[order], places[order]
            sounding = images.abs().amax((1, 2))[:, None, None, None] > 0
            places = torch.where(sounding, places, self._places)
            rise = torch.linspace(0, 1, n, device=images.device, dtype=images.dtype)
            faded = self._before + rise * (images[..., :n] - self._before)
            images = torch.cat([faded, images[..., n:]], dim=-1)
        self._before, self._places = images[..., -n:], places
        return images if last else images[..., :-n]


def _places(images: Float[Tensor, "source channel _"]) -> Complex[Tensor, "source freq channel channel"]:
    """Where sources are: the phases of the cross spectra of their images, with a norm of 1 in all."""
    n_frames = images.shape[-1] // _PLACE_WINDOW
    frames = images[..., : n_frames * _PLACE_WINDOW].unflatten(-1, (n_frames, _PLACE_WINDOW))
    x = torch.fft.rfft(frames * torch.hann_window(_PLACE_WINDOW, device=images.device, dtype=images.dtype))
    cross = torch.einsum("nctf,ndtf->nfcd", x, x.conj())
    phases = cross / cross.abs().clamp(min=torch.finfo(images.dtype).tiny)
    return phases / torch.linalg.vector_norm(phases, dim=(1, 2, 3), keepdim=True).clamp(min=1.0)
