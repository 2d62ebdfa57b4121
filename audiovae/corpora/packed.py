"""A packed corpus: all recordings at one rate in one file of 16-bit samples, and an index beside it.

`samples.int16` holds the recordings one after another, mono, little-endian, each scaled to its own peak; `index.jsonl`
a header line and one line per recording. Samples beyond the last indexed one are the rest of an interrupted run:
ignored.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiovae.atomic import atomic_path
from audiovae.errors import CorpusError

FORMAT_VERSION = 2  # 1: levels and trimming counted DC and rumble
SAMPLES, INDEX = "samples.int16", "index.jsonl"


@dataclass(frozen=True)
class Utterance:
    """One packed recording.

    Attributes:
        id: path of its source below the corpus folder.
        speaker, split: see `audiovae.corpora.layouts`.
        labels: what else is known of it, by name; the speaker is one too.
        start, n_samples: its place in the samples' file.
        scale: multiply the integers by this to get the wave of the source.
        level: active level of that wave, see `audiovae.level`.
        source_size, source_mtime_ns: of the source, to notice a change.
        sha256: of the packed samples.
    """

    id: str
    speaker: str
    split: str
    start: int
    n_samples: int
    scale: float
    level: float
    source_size: int
    source_mtime_ns: int
    sha256: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A file that is not in the corpus, and why. `failed` tells a broken file from one that the layout excludes."""

    id: str
    reason: str
    failed: bool
    source_size: int
    source_mtime_ns: int


@dataclass(frozen=True)
class Header:
    """What all recordings of a packed corpus share: how they were prepared."""

    sample_rate: int
    trimmed: bool
    layout: str
    source: str


class PackedCorpus:
    """A packed corpus on disk.

    Args:
        folder: as `audiovae prepare` wrote it.

    Raises:
        CorpusError: no packed corpus, damaged, incomplete, or of a newer version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header, self.utterances, self.left_out = read_index(self.folder)
        n_samples = max((u.start + u.n_samples for u in self.utterances), default=0)
        path = self.folder / SAMPLES
        if n_samples == 0:
            raise CorpusError(self.folder, "holds no recording; prepare it from a folder of sound files")
        if not path.exists() or path.stat().st_size < 2 * n_samples:
            raise CorpusError(path, "is missing or truncated; prepare the corpus again with --overwrite")
        self.samples: NDArray[np.int16] = np.memmap(path, dtype="<i2", mode="r", shape=(n_samples,))

    def split(self, name: str) -> list[Utterance]:
        """The recordings of "train", "validation" or "test"."""
        return [utterance for utterance in self.utterances if utterance.split == name]

    def classes(self, label: str) -> tuple[str, ...]:
        """All classes of a label among the training recordings, sorted.

        Raises:
            CorpusError: recordings without it; those that there are, are named.
        """
        train = self.split("train")
        known = sorted(set.intersection(*({*u.labels} for u in train))) if train else []
        if label not in known:
            raise CorpusError(
                self.folder, f"has no label {label!r}" + (f"; it has {', '.join(known)}" if known else "")
            )
        return tuple(sorted({u.labels[label] for u in train}))

    def wave(self, utterance: Utterance) -> NDArray[np.float32]:
        """The wave of one recording, `[sample]`, at its source's scale."""
        return self.samples[utterance.start : utterance.start + utterance.n_samples] * np.float32(utterance.scale)

    def fingerprint(self) -> str:
        """SHA-256 over ids, splits, labels, levels and samples of all recordings and the rate."""
        lines = [str(self.header.sample_rate)]
        lines += sorted(
            f"{u.id} {u.split} {sorted(u.labels.items())} {u.level!r} {u.scale!r} {u.sha256}" for u in self.utterances
        )
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def write_index(folder: Path, header: Header, utterances: list[Utterance], left_out: list[LeftOut]) -> None:
    """Write the index of a packed corpus; its samples must be on disk already."""
    lines: list[dict[str, Any]] = [{"format_version": FORMAT_VERSION, **asdict(header)}]
    lines += [asdict(utterance) for utterance in sorted(utterances, key=lambda u: u.id)]
    lines += [asdict(file) for file in sorted(left_out, key=lambda f: f.id)]
    with atomic_path(folder / INDEX, durable=True) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_index(folder: Path) -> tuple[Header, list[Utterance], list[LeftOut]]:
    path = folder / INDEX
    if not path.exists():
        raise CorpusError(folder, f"is not a packed corpus (no {INDEX}); make one with: audiovae prepare FOLDER PACKED")
    try:
        header, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        version = header.pop("format_version")
        if version > FORMAT_VERSION:
            raise CorpusError(
                path,
                f"was written by a newer audiovae (format {version}, this one reads up to {FORMAT_VERSION}); update it",
            )
        if version < FORMAT_VERSION:
            raise CorpusError(
                path,
                f"was written by an older audiovae (format {version}), which measured levels otherwise; prepare the "
                "corpus again with --overwrite",
            )
        utterances = [Utterance(**line) for line in lines if "sha256" in line]
        left_out = [LeftOut(**line) for line in lines if "reason" in line]
        return Header(**header), utterances, left_out
    except (ValueError, TypeError, KeyError) as error:
        raise CorpusError(path, "is damaged; prepare the corpus again with --overwrite") from error
