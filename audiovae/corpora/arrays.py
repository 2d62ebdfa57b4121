"""A corpus of arrays in [0, 1], in memory: images, scaled spectrograms. It is drawn from like a packed one of sound."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audiovae.corpora.packed import Utterance
from audiovae.errors import CorpusError


class ArrayCorpus:
    """Arrays `[frame, freq]` in [0, 1], of any number of frames each; an image is one frame of all its pixels.

    Args:
        arrays: `[item, frame, freq]`, any iterable of arrays `[frame, freq]`, or a NumPy file (.npy) of either one.
        labels: what is known of every item, by name: one class each, such as {"digit": ["7", "0", ...]}.
        validation: share of the items held out for validation, the same ones in every run.

    Attributes:
        sample_rate: 0, that of models of arrays.
        samples: the frames of all arrays one after another, `[position, freq]`, which start and n_samples of an
            utterance count.

    Raises:
        CorpusError: no array, one of another shape or with values outside [0, 1], labels of another number, or a file
            that is no NumPy file.
        ValueError: a share outside [0, 1].
    """

    sample_rate = 0

    def __init__(
        self,
        arrays: str | Path | Iterable[np.ndarray],
        labels: Mapping[str, Sequence[str]] = {},
        validation: float = 0.1,
    ) -> None:
        if not 0 <= validation <= 1:
            raise ValueError(f"validation must be from 0 to 1, got {validation}")
        self.folder = Path(arrays if isinstance(arrays, (str, Path)) else "the arrays")
        items = [self._checked(i, item) for i, item in enumerate(self._read(arrays))]
        if not items:
            raise CorpusError(self.folder, "hold no array; give at least one [frame, freq]")
        if len(widths := {item.shape[1] for item in items}) > 1:
            raise CorpusError(self.folder, f"have {sorted(widths)} bins; all must have the same")
        for name, classes in labels.items():
            if len(classes) != len(items):
                raise CorpusError(self.folder, f"are {len(items)}, and the label {name!r} has {len(classes)} classes")
        self.samples: NDArray[np.float32] = np.concatenate(items)
        ends = np.cumsum([len(item) for item in items])
        held_out = {*np.random.default_rng(0).permutation(len(items))[: round(validation * len(items))].tolist()}
        self.utterances = [
            Utterance(
                id=(name := f"item {i}"), speaker=name, split="validation" if i in held_out else "train",
                start=int(end) - len(item), n_samples=len(item), scale=1.0, level=1.0, source_size=0, source_mtime_ns=0,
                sha256=hashlib.sha256(item.data).hexdigest(),
                labels={label: str(classes[i]) for label, classes in labels.items()},
            )
            for i, (item, end) in enumerate(zip(items, ends, strict=True))
        ]  # fmt: skip

    def _read(self, arrays: str | Path | Iterable[np.ndarray]) -> Iterable[np.ndarray]:
        if not isinstance(arrays, (str, Path)):
            return arrays
        try:
            found = np.load(arrays, allow_pickle=False)
        except OSError as error:
            raise CorpusError(arrays, f"cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise CorpusError(arrays, "is no NumPy file of numbers; write one with numpy.save") from error
        if not isinstance(found, np.ndarray):
            raise CorpusError(arrays, "holds several arrays by name; write one [item, frame, freq] with numpy.save")
        return found

    def _checked(self, i: int, item: np.ndarray) -> NDArray[np.float32]:
        item = np.ascontiguousarray(item, np.float32)
        if item.ndim != 2 or 0 in item.shape:
            raise CorpusError(
                self.folder,
                f"need the shape [frame, freq], and item {i} has {list(item.shape)}; an image is one frame of all its "
                "pixels: [1, pixel]",
            )
        if not ((item >= 0) & (item <= 1)).all():  # NaN neither
            raise CorpusError(
                self.folder, f"must be in [0, 1], and item {i} goes from {item.min():.3g} to {item.max():.3g}: scale it"
            )
        return item

    @property
    def description(self) -> str:
        """In a sentence, for a model's card."""
        train = self.split("train")
        return f"{len(train)} arrays, {sum(u.n_samples for u in train)} frames of {self.samples.shape[1]}"

    def verify(self, utterances: Iterable[Utterance] | None = None) -> None:
        """Arrays in memory are as they were when they were checked."""

    def verify_small(self) -> None:
        """See `verify`."""

    def split(self, name: str) -> list[Utterance]:
        """The items of "train" or "validation"."""
        return [utterance for utterance in self.utterances if utterance.split == name]

    def classes(self, label: str) -> tuple[str, ...]:
        """All classes of a label among the training items, sorted.

        Raises:
            CorpusError: there is no such label; those that there are, are named.
        """
        if label not in (known := self.utterances[0].labels):
            raise CorpusError(
                self.folder, f"have no label {label!r}" + (f"; they have {', '.join(known)}" if known else "")
            )
        return tuple(sorted({u.labels[label] for u in self.split("train")}))

    def wave(self, utterance: Utterance) -> NDArray[np.float32]:
        """One array, `[frame, freq]`."""
        return self.samples[utterance.start : utterance.start + utterance.n_samples]

    def fingerprint(self) -> str:
        """SHA-256 over ids, splits, labels and numbers of all items."""
        lines = [f"{u.id} {u.split} {sorted(u.labels.items())} {u.sha256}" for u in self.utterances]
        return hashlib.sha256("\n".join([str(self.samples.shape[1]), *lines]).encode()).hexdigest()
