"""Batches of segments from a corpus: thousands of frames at a time, no Python per file."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from audiovae.corpora.arrays import ArrayCorpus
from audiovae.corpora.packed import PackedCorpus, Utterance
from audiovae.errors import CorpusError
from audiovae.settings import LevelName

_SHARE_OF_DEVICE = 0.5  # of the free memory that a corpus may take on a GPU; a larger one stays on the disk

Corpus = PackedCorpus | ArrayCorpus


class SegmentSampler:
    """Draws segments uniformly over all positions of a split, each divided by its recording's level.

    What is drawn depends on the seed, the step and the rank alone: a sampler has no state to save.

    With a margin, the ends of a recording are heard as whoever uses a prior hears them: frames reach into the zeros
    around it. A segment that would begin up to half its length before the first place or after the last one is drawn
    there, so frames near the ends are, on average, drawn as often as others.

    Args:
        corpus: the recordings, or the arrays, of which a frame stands where a sample does.
        split: "train", "validation" or "test".
        segment_samples: length of a segment. A recording too short for that is followed by zeros,
            which weigh nothing in the loss of a prior; arrays must be as long.
        device: where the batches are wanted.
        level_rule: whether a recording's level is that of its active frames or its peak, see `audiovae.level`.
        margin: samples by which a segment may reach beyond a recording, into zeros: half a frame, as in `STFT`.

    Raises:
        CorpusError: no recording in that split, or an array that is too short.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        segment_samples: int,
        device: torch.device,
        level_rule: LevelName = "active",
        margin: int = 0,
    ) -> None:
        self.utterances = corpus.split(split)
        if not self.utterances:
            raise CorpusError(
                corpus.folder,
                f"has no recording in the split {split!r}; prepare more, name other speakers, or, where names of files "
                "told a layout, --layout folder",
            )
        self.segment_samples = segment_samples
        lengths = np.array([u.n_samples for u in self.utterances])
        if isinstance(corpus, ArrayCorpus) and lengths.min() < segment_samples:
            raise CorpusError(
                corpus.folder,
                f"have {lengths.min()} frames at the least, fewer than a segment: set segment_frames to at most that",
            )
        self._starts = np.array([u.start for u in self.utterances])
        self._margin = margin
        self._last = np.maximum(lengths + 2 * margin - segment_samples, 0)  # the first place is `margin` before it
        self._beyond = max(0, segment_samples - 2 * margin) // 2 if margin else 0
        self._ends = np.cumsum(self._last + 1 + 2 * self._beyond)
        levels = [u.level if level_rule == "active" else u.peak for u in self.utterances]
        self._gains = np.array([u.scale / level for u, level in zip(self.utterances, levels, strict=True)], np.float32)
        self._lengths = lengths
        self._device, self._corpus = device, corpus
        samples = _place(corpus.samples, device)
        missing = max(0, self.segment_samples - len(samples))
        self._samples = functional.pad(samples, (*[0] * (2 * samples.ndim - 1), missing)) if missing else samples
        self._holds_sound = not isinstance(corpus, ArrayCorpus)

    def draw(
        self, n_segments: int, seed: int, step: int, rank: int = 0
    ) -> tuple[Float[Tensor, "segment ..."], list[Utterance]]:
        """Segments at unit level, `[segment, sample]` or `[segment, channel, sample]` (of arrays `[segment, frame,
        freq]`), and what they are from.
        """
        generator = np.random.default_rng((seed, step, rank))
        position = generator.integers(self._ends[-1], size=n_segments)
        which = np.searchsorted(self._ends, position, side="right")
        place = position - self._ends[which] + self._last[which] + 1 + self._beyond
        offset = np.clip(place, 0, self._last[which]) - self._margin
        waves = self._gather(self._starts[which] + offset)
        waves = waves * torch.from_numpy(self._gains[which]).to(self._device).reshape(-1, *[1] * (waves.ndim - 1))
        if (offset < 0).any() or (offset + self.segment_samples > self._lengths[which]).any():
            at = offset[:, None] + np.arange(self.segment_samples)
            outside = torch.from_numpy((at < 0) | (at >= self._lengths[which, None]))  # there lies another recording
            outside = outside.reshape(len(waves), *[1] * (waves.ndim - 2), -1)
            waves = waves.masked_fill(outside.to(self._device), 0.0)
        return waves, [self.utterances[i] for i in which]

    def example(self, n_samples: int | None) -> Float[Tensor, ...]:
        """The beginning of the first recording, to listen to."""
        return torch.from_numpy(self._corpus.wave(self.utterances[0])[..., :n_samples])

    def _gather(self, starts: NDArray[np.int64]) -> Tensor:
        within = np.clip(starts, 0, len(self._samples) - self.segment_samples)
        rows = self._samples.unfold(0, self.segment_samples, 1)[torch.from_numpy(within).to(self._samples.device)]
        for i in np.flatnonzero(within != starts):  # beyond the first recording, or the last
            rows[i] = rows[i].roll(int(within[i] - starts[i]), -1)
        rows = rows if self._holds_sound else rows.movedim(-1, 1)
        return rows.to(self._device).float()


def _place(samples: NDArray[np.int16] | NDArray[np.float32], device: torch.device) -> Tensor:
    with np.errstate(all="ignore"):
        tensor = _as_tensor(samples)
    if device.type == "cuda" and samples.nbytes < _SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
        return tensor.to(device)
    return tensor


def _as_tensor(samples: NDArray[np.int16] | NDArray[np.float32]) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing here writes
        return torch.from_numpy(samples)


def random_equaliser(
    n_segments: int, n_freqs: int, deviation_db: float, seed: tuple[int, ...]
) -> Float[Tensor, "segment 1 freq"]:
    """Power gains of smooth random equalisers, one a segment: another microphone, another room, another voice's tilt.

    The gain in dB is a sum of the first seven cosines over frequency, with weights of variance deviation_db^2 / (1 +
    k). Multiplying the power of a circular complex Gaussian by a gain gives another one: the statistics stay those of
    sound.
    """
    order = np.arange(7)
    weights = np.random.default_rng(seed).standard_normal((n_segments, 7)) * deviation_db / np.sqrt(1 + order)
    basis = np.cos(np.pi * order[:, None] * (np.arange(n_freqs) + 0.5) / n_freqs)
    return torch.from_numpy(10 ** (weights @ basis / 10)).float()[:, None]
