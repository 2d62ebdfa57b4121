"""A packed corpus: all recordings at one rate in one file of 16-bit samples, and an index beside it.

`samples.int16` holds the recordings one after another, little-endian, each scaled to its own peak, mono or with all
channels of a sample side by side; `index.jsonl` a header line and one line per recording. Samples beyond the last
indexed one are the rest of an interrupted run: ignored.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiovae.atomic import atomic_path
from audiovae.errors import CorpusError
from audiovae.settings import LARGEST_RATE
from audiovae.shards import JOB

FORMAT_VERSION = 2  # 1: levels and trimming counted DC and rumble
SAMPLES, INDEX = "samples.int16", "index.jsonl"
SMALL_BYTES = 2 * 2**30
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Utterance:
    """One packed recording.

    Attributes:
        id: path of its source below the corpus folder.
        speaker, split: see `audiovae.corpora.layouts`.
        labels: what else is known of it, by name; the speaker is one too.
        start, n_samples: its place in the samples' file, in samples of all channels.
        scale: multiply the integers by this to get the wave of the source.
        level: active level of that wave, see `audiovae.level`.
        source_size, source_mtime_ns: of the source, to notice a change: see `audiovae.corpora.items.origin`.
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

    def __post_init__(self) -> None:
        texts = (self.id, self.speaker, self.split, self.sha256, *self.labels, *self.labels.values())
        counts = (self.start, self.n_samples, self.source_size, self.source_mtime_ns)
        if not all(isinstance(text, str) for text in texts) or not all(type(count) is int for count in counts):
            raise TypeError(f"the line of {self.id!r} has values of other types")
        levels = (self.scale, self.level)
        if not (self.split in SPLITS and self.start >= 0 < self.n_samples and all(1e-45 < x < 1e39 for x in levels)):
            raise ValueError(f"the line of {self.id!r} has values out of range")

    @property
    def peak(self) -> float:
        """Largest absolute sample of the wave of the source."""
        return 32767 * self.scale


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
    """What all recordings of a packed corpus share: how they were prepared.

    Attributes:
        channels, n_channels: "mean", one; or "all", so many.
    """

    sample_rate: int
    trimmed: bool
    layout: str
    source: str
    channels: str = "mean"
    n_channels: int = 1

    def __post_init__(self) -> None:
        if type(self.sample_rate) is not int or not 0 < self.sample_rate <= LARGEST_RATE:
            raise ValueError(f"a sample rate of {self.sample_rate!r}")
        if type(self.n_channels) is not int or self.n_channels < 1:
            raise ValueError(f"{self.n_channels!r} channels")

    @property
    def sample_bytes(self) -> int:
        """That a sample of all channels takes."""
        return 2 * self.n_channels


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
        try:
            if os.stat(path).st_size < self.header.sample_bytes * n_samples:
                raise FileNotFoundError
            self.samples = mapped(path, n_samples, self.n_channels)
        except FileNotFoundError as error:
            raise CorpusError(path, "is missing or truncated; prepare the corpus again with --overwrite") from error
        except OSError as error:
            raise CorpusError(path, f"cannot be read ({error.strerror}); check its permissions") from error
        self._verified: set[str] = set()

    @property
    def sample_rate(self) -> int:
        """Of all recordings, in Hz."""
        return self.header.sample_rate

    @property
    def n_channels(self) -> int:
        """Of all recordings."""
        return self.header.n_channels

    @property
    def description(self) -> str:
        """In a sentence, for a model's card."""
        train = self.split("train")
        hours = sum(u.n_samples for u in train) / self.sample_rate / 3600
        speakers = len({u.speaker for u in train}) if names_speakers(train) else "unnamed"
        return f"{len(train)} recordings of {speakers} speakers, {hours:.2f} h ({self.header.layout} layout)"

    def verify(self, utterances: Iterable[Utterance] | None = None) -> None:
        """Compare recordings, all by default, with their SHA-256; each only once.

        Raises:
            CorpusError: one is not as it was packed.
        """
        unknown = [u for u in (self.utterances if utterances is None else utterances) if u.id not in self._verified]
        verify_samples(self.folder / SAMPLES, self.samples, unknown)
        self._verified.update(u.id for u in unknown)

    def verify_small(self) -> None:
        """`verify` all of a corpus that is read in seconds: below 2 GB."""
        if self.samples.nbytes <= SMALL_BYTES:
            self.verify()

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
        """The wave of one recording, `[sample]`, or `[channel, sample]` of several, at its source's scale."""
        return self.samples[utterance.start : utterance.start + utterance.n_samples].T * np.float32(utterance.scale)

    def fingerprint(self) -> str:
        """SHA-256 over ids, splits, labels, levels and samples of all recordings and the rate."""
        lines = [str(self.header.sample_rate) + (f" {self.n_channels}" if self.n_channels > 1 else "")]
        lines += sorted(
            f"{u.id} {u.split} {sorted(u.labels.items())} {u.level!r} {u.scale!r} {u.sha256}" for u in self.utterances
        )
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def mapped(path: Path, n_samples: int, n_channels: int) -> NDArray[np.int16]:
    """The samples of a file, `[sample]`, or `[sample, channel]` of several."""
    return np.memmap(path, "<i2", "r", shape=(n_samples, n_channels)[: 1 + (n_channels > 1)])


def verify_samples(path: Path, samples: NDArray[np.int16], utterances: list[Utterance]) -> None:
    """Compare recordings among the samples of a file with their SHA-256.

    Raises:
        CorpusError: one is not as it was packed.
    """
    for u in utterances:
        if hashlib.sha256(samples[u.start : u.start + u.n_samples].data).hexdigest() != u.sha256:
            raise CorpusError(path, f"is damaged in {u.id}; prepare it again with --overwrite")


def write_index(folder: Path, header: Header, utterances: list[Utterance], left_out: list[LeftOut]) -> None:
    """Write the index of a packed corpus; its samples must be on disk already."""
    lines: list[dict[str, Any]] = [{"format_version": FORMAT_VERSION, **asdict(header)}]
    lines += [asdict(utterance) for utterance in sorted(utterances, key=lambda u: u.id)]
    lines += [asdict(file) for file in sorted(left_out, key=lambda f: f.id)]
    with atomic_path(folder / INDEX, durable=True) as temporary:
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        temporary.write_bytes(content + _digest_line(content))


def _digest_line(content: bytes) -> bytes:
    return (json.dumps({"index_sha256": hashlib.sha256(content).hexdigest()}) + "\n").encode()


def _verified_lines(path: Path) -> list[Any]:
    """The lines of an index but the last, which holds the SHA-256 of all before it; the first format had none.

    Raises:
        ValueError: the index is not whole.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    end = content.rstrip(b"\n").rfind(b"\n") + 1
    if content[end:] == _digest_line(content[:end]):
        content = content[:end]
    elif b'"index_sha256"' in content or json.loads(content.splitlines()[0])["format_version"] != 1:
        if json.loads(content.splitlines()[0])["format_version"] > FORMAT_VERSION:
            return [json.loads(content.splitlines()[0])]  # which is refused for that
        raise ValueError("digest")
    return [json.loads(line) for line in content.decode().splitlines()]


def _check(utterances: list[Utterance]) -> None:
    """Raises ValueError or TypeError where an entry has another type or range than what is written."""
    end = 0
    for u in sorted(utterances, key=lambda u: u.start):
        texts = (u.id, u.speaker, u.split, u.sha256, *u.labels, *u.labels.values())
        counts = (u.start, u.n_samples, u.source_size, u.source_mtime_ns)
        if not all(type(text) is str for text in texts) or not all(type(count) is int for count in counts):
            raise TypeError(u.id)
        if not (u.start >= end and u.n_samples > 0 and 0 < u.peak < 1e30 and 1e-6 * u.peak < u.level < 4 * u.peak):
            raise ValueError(u.id)
        if u.split not in ("train", "validation", "test"):
            raise ValueError(u.split)
        end = u.start + u.n_samples
    if len({u.id for u in utterances}) < len(utterances):
        raise ValueError("id")


def read_index(folder: Path) -> tuple[Header, list[Utterance], list[LeftOut]]:
    path = folder / INDEX
    if not os.path.lexists(path) and os.path.lexists(folder / JOB):
        raise CorpusError(folder, f"holds shards that are not joined yet; join them with: audiovae gather {folder}")
    if not os.path.lexists(path):
        raise CorpusError(folder, f"is not a packed corpus (no {INDEX}); make one with: audiovae prepare FOLDER PACKED")
    try:
        header, *lines = _verified_lines(path)
        version = header.pop("format_version")
        if type(version) is not int:
            raise TypeError("format_version")
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
        by_start = sorted(utterances, key=lambda u: u.start)
        if any(a.start + a.n_samples > b.start for a, b in itertools.pairwise(by_start)):
            raise ValueError("recordings overlap")
        _check(utterances)
        return Header(**header), utterances, left_out
    except OSError as error:
        raise CorpusError(path, f"cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise CorpusError(path, "is damaged; prepare the corpus again with --overwrite") from error


def names_speakers(utterances: Iterable[Utterance]) -> bool:
    """Is any voice named, where a file that tells of none counts as a speaker of its own?"""
    return any(u.speaker not in (u.id, u.id.rpartition("@")[0]) for u in utterances)  # @: at another speed
