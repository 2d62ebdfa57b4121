"""From recordings, wherever they are, to a packed corpus: find, check, trim, resample, pack; only what is new."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from audiovae.audio import AudioInfo
from audiovae.corpora import items, packed
from audiovae.corpora.adapters import Recordings, read_table, recordings
from audiovae.corpora.items import Item, Origin
from audiovae.corpora.layouts import assign_splits, at_speeds, split_by
from audiovae.corpora.packed import Header, LeftOut, Utterance
from audiovae.corpora.signal import Signal
from audiovae.errors import AudioError, CorpusError
from audiovae.locks import locked_folder
from audiovae.pool import WorkerError, in_order, in_processes, nothing
from audiovae.settings import PrepareSettings
from audiovae.shards import Job, Shard, agree

_COMMIT_BYTES = 256 * 2**20  # an interrupted run loses at most this much
PART_OF = "job.sha256"  # in the folder of a shard
_AHEAD = 8  # files of each process that may wait for one before them
_SOUNDS = "sounds.partial"  # folder of what is written to be read, as it is no file


@dataclass(frozen=True)
class Prepared:
    """What a run did.

    Attributes:
        split_by: what stands in one split only, see `audiovae.corpora.layouts.split_by`.
        utterances: all recordings now in the corpus.
        left_out: all files that are not.
        n_new: recordings packed by this run.
        seconds_new: their duration before trimming; of shards that were joined, after it.
        n_resampled: those of them that had another rate.
        lowest_rate: of the files packed by this run; None if there are none.
    """

    layout: str
    split_by: str
    utterances: list[Utterance]
    left_out: list[LeftOut]
    n_new: int
    seconds_new: float
    n_resampled: int
    lowest_rate: int | None


def prepare(
    source: str | Path | Iterable[Item],
    target: str | Path,
    settings: PrepareSettings = PrepareSettings(),
    jobs: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    shard: Shard | None = None,
) -> Prepared:
    """Pack recordings into the folder `target`.

    Those already packed and unchanged (size and time of change of a file, the content of anything else) are kept, those
    that are gone are dropped from the index, and those that failed before are tried again only when they changed.

    Args:
        source: a folder of sound files; a table of recordings (.csv, .tsv, .jsonl: path, start, duration, speaker,
            split, id, and a label for every other column); the cuts of lhotse; a data set that Hugging Face's library
            saved to the disk; tars of WebDataset, such as "shards-{000..099}.tar"; "torchaudio:NAME:ROOT"; or the
            recordings themselves. See `audiovae.corpora.adapters`.
        jobs: processes that read and resample; 1 stays in this one.
        overwrite: start anew, also where `target` holds a corpus that was prepared otherwise.
        progress: called with the number of recordings done and their total.
        shard: pack only this part, into a folder in `target` that is named by it: see `audiovae.corpora.joining`.

    Raises:
        CorpusError: no source, no sound in it, or `target` holds another corpus.
        AudiovaeError: a library that the source needs is missing.
        PathError: `target` cannot be written, or its other parts are of another job.
        LockedError: another process is preparing it.
    """
    target = Path(target) if shard is None else Path(target) / str(shard)
    with locked_folder(target):
        return _prepare(source, target, settings, jobs, overwrite, progress, shard)


def _prepare(
    source: str | Path | Iterable[Item],
    target: Path,
    settings: PrepareSettings,
    jobs: int,
    overwrite: bool,
    progress: Callable[[int, int], None],
    shard: Shard | None,
) -> Prepared:
    there = recordings(source, settings.layout)
    found, group = _assigned(there, settings)
    header = Header(settings.sample_rate, settings.trim, there.layout, there.name, settings.channels)
    if shard is not None:
        told = str(source) if isinstance(source, (str, Path)) else there.name
        facts = {"source": told, "layout": there.layout, "split_by": group, "settings": asdict(settings)}
        digest = agree(target.parent, Job("prepare", facts, [item.id for item in found]), overwrite)
        (target / PART_OF).write_text(digest)
        found = shard.share(found)
    corpus = _Corpus(header) if overwrite else _existing(target, header, found)
    known = {u.id for u in corpus.utterances} | {file.id for file in corpus.left_out}
    unknown = [item for item in found if item.id not in known]
    new = [item for item in unknown if item.left_out is None]
    corpus.left_out += [LeftOut(i.id, i.left_out, False, 0, 0) for i in unknown if i.left_out is not None]
    if shard is None or shard.index == 1:
        corpus.left_out += there.left_out
    results = _process_all(new, settings, jobs, target / _SOUNDS, shard is not None)
    try:
        infos = _pack(new, results, corpus, target, overwrite, progress)
    except OSError as error:
        raise CorpusError(
            target, f"cannot be written ({error.strerror or error}); check the folder and the free space"
        ) from error
    finally:
        shutil.rmtree(target / _SOUNDS, ignore_errors=True)
    rates = [info.sample_rate for info in infos]
    return Prepared(
        there.layout,
        group,
        corpus.utterances,
        corpus.left_out,
        len(infos),
        sum((info.seconds for info in infos), 0.0),
        sum(rate != settings.sample_rate for rate in rates),
        min(rates, default=None),
    )


def _assigned(there: Recordings, settings: PrepareSettings) -> tuple[list[Item], str]:
    """All that was found, with labels and splits and at all speeds; and what stands in one split only."""
    found = _labelled(_once(there.items), settings.labels)
    group = split_by(found, settings.group)
    named = _names(settings.validation_speakers), _names(settings.test_speakers)
    asked = group if group != "speaker" else settings.group
    found = assign_splits(found, there.layout, settings.validation, *named, asked)
    return at_speeds(found, settings.speeds), group


def _pack(
    new: list[Item],
    results: Iterator[tuple[Item, Signal | str, Origin]],
    corpus: _Corpus,
    target: Path,
    overwrite: bool,
    progress: Callable[[int, int], None],
) -> list[AudioInfo]:
    """Append what is packed to the samples, and tell the corpus; of what sounds it was."""
    target.mkdir(parents=True, exist_ok=True)
    if overwrite:
        (target / packed.INDEX).unlink(missing_ok=True)
    sounds = target / _SOUNDS
    shutil.rmtree(sounds, ignore_errors=True)
    if any(item.path is None for item in new):
        sounds.mkdir()
    infos = []
    with open(target / packed.SAMPLES, "r+b" if (target / packed.SAMPLES).exists() else "wb") as file:
        committed = corpus.header.sample_bytes * corpus.end
        file.truncate(committed)
        file.seek(committed)
        for done, (item, result, origin) in enumerate(results, start=1):
            is_packed = corpus.append(item, result, origin, file)
            if isinstance(result, Signal):
                _forget(result, sounds)
                infos += [result.info] if is_packed else []
            progress(done, len(new))
            if file.tell() - committed > _COMMIT_BYTES:
                committed = corpus.commit(file, target)
        corpus.commit(file, target)
    return infos


@dataclass
class _Corpus:
    """What is packed, while it becomes more.

    Attributes:
        end: of its samples, in samples of all channels.
    """

    header: Header
    utterances: list[Utterance] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    end: int = 0

    def append(self, item: Item, result: Signal | str, origin: Origin, file: BinaryIO) -> bool:
        """Write the samples of a recording to a file; if there are none after all, it is left out.

        Args:
            result: what is packed, or why nothing is.
        """
        start = file.tell()
        if isinstance(result, Signal) and start > 0 and result.n_channels != self.header.n_channels:
            result = f"has {result.n_channels} channels, where the corpus has {self.header.n_channels}"
        result, digest = _written(result, file)
        if isinstance(result, str):
            self.left_out.append(LeftOut(item.id, result, True, *origin))
            return False
        self.header = replace(self.header, n_channels=result.n_channels)
        self.utterances.append(
            Utterance(
                item.id,
                item.speaker,
                str(item.split),
                start // self.header.sample_bytes,
                result.n_samples,
                result.scale,
                result.level,
                *origin,
                digest,
                item.labels,
            )
        )
        return True

    def commit(self, file: BinaryIO, target: Path) -> int:
        """Bring all to the disk; the place in the file."""
        file.flush()
        os.fsync(file.fileno())
        packed.write_index(target, self.header, self.utterances, self.left_out)
        return file.tell()


def _once(found: list[Item]) -> list[Item]:
    """The second of two names of one file, or of one part of it, is left out."""
    first: dict[tuple[str, float, float | None], str] = {}
    once = []
    for item in found:
        if item.left_out is None and item.path is not None:
            name = first.setdefault((os.path.realpath(item.path), item.start, item.duration), item.id)
            if name != item.id:
                item = replace(item, left_out=f"is the same file as {name}")
        once.append(item)
    return once


def _existing(target: Path, header: Header, found: list[Item]) -> _Corpus:
    """What of an earlier run still holds, with the new splits."""
    if not (target / packed.INDEX).exists():
        return _Corpus(header)
    old, utterances, left_out = packed.read_index(target)
    for name in ("source", "sample_rate", "trimmed", "layout", "channels"):
        if getattr(old, name) != getattr(header, name):
            raise CorpusError(
                target,
                f"holds a corpus with {name} {getattr(old, name)!r}, not {getattr(header, name)!r}; --overwrite "
                "replaces it",
            )
    current = {item.id: item for item in found if item.left_out is None}
    path = target / packed.SAMPLES
    n_there = path.stat().st_size // old.sample_bytes if path.exists() else 0
    utterances = [u for u in utterances if u.start + u.n_samples <= n_there]  # what was lost is packed again
    end = max((u.start + u.n_samples for u in utterances), default=0)
    if 0 < old.sample_bytes * end <= packed.SMALL_BYTES:
        packed.verify_samples(path, packed.mapped(path, end, old.n_channels), utterances)

    def unchanged(entry: Utterance | LeftOut) -> bool:
        if entry.id not in current:
            return False
        return _origin(current[entry.id]) == (entry.source_size, entry.source_mtime_ns)

    kept = [
        replace(u, split=str(current[u.id].split), speaker=current[u.id].speaker, labels=current[u.id].labels)
        for u in utterances
        if unchanged(u)
    ]
    header = replace(header, n_channels=old.n_channels)
    return _Corpus(header, kept, [entry for entry in left_out if unchanged(entry)], end)


def _origin(item: Item) -> Origin:
    try:
        return items.origin(item, items.content(item))
    except AudioError:
        return 0, 0


def _written(result: Signal | str, file: BinaryIO) -> tuple[Signal | str, str]:
    """The SHA-256 of the samples that were appended; in place of the signal the reason why there are none after all."""
    start, digest = file.tell(), hashlib.sha256()
    if isinstance(result, str):
        return result, ""
    try:
        for block in result.packed():
            content = block.tobytes()
            digest.update(content)
            file.write(content)
    except AudioError as error:
        file.seek(start)
        file.truncate()
        return error.reason, ""
    return result, digest.hexdigest()


def _forget(signal: Signal, sounds: Path) -> None:
    """Remove the file of a sound that was none."""
    if signal.info.path.parent == sounds:
        signal.info.path.unlink(missing_ok=True)


def _process_all(
    new: list[Item], settings: PrepareSettings, jobs: int, sounds: Path, apart: bool
) -> Iterator[tuple[Item, Signal | str, Origin]]:
    """Yield every recording as it is packed, or with the reason why it is not, in order, and its origin.

    Args:
        apart: even one process is not this one, so that a file that ends it is survived.
    """
    process = partial(_process, settings, sounds)
    if jobs == 1 and not apart:
        yield from ((item, *process([item])[0]) for item in new)
        return
    function = next((item.sound for item in new if callable(item.sound)), None)
    try:
        ForkingPickler.dumps(function)
    except Exception as error:  # pickle raises several kinds
        raise CorpusError(
            "the items", "hold a function that other processes cannot get; take one of a module, or one job"
        ) from error
    results = in_processes(process, [[item] for item in new], [nothing] * jobs, ahead=_AHEAD * jobs)
    for item, (result,) in zip(new, in_order(results), strict=True):
        if isinstance(result, WorkerError):
            yield item, str(result), items.origin(item, None) if item.path else (0, 0)
        else:
            yield item, *result


def _process(
    settings: PrepareSettings, sounds: Path, task: list[Item], again: bool = False
) -> list[tuple[Signal | str, Origin]]:
    """What is packed of a recording, or why nothing is; and its origin."""
    (item,) = task
    origin: Origin = 0, 0
    path = None
    try:
        content = items.content(item)
        origin = items.origin(item, content)
        path = items.stored(item, content, sounds)
        signal = Signal.of(path, item.speed, settings, item.start, item.duration)
        if item.sample_rate not in (None, signal.info.sample_rate):
            raise AudioError(path, f"has {signal.info.sample_rate} Hz, not {item.sample_rate}")
    except AudioError as error:
        if path is not None and item.path is None:
            path.unlink()
        return [(error.reason, origin)]
    if signal.is_held:
        _forget(signal, sounds)
    return [(signal, origin)]


def _labelled(found: list[Item], table: str | None) -> list[Item]:
    """Add the labels of a table, whose column "file" holds the names of recordings, below a folder their paths, and
    whose other columns are named by label; one named speaker says whose voice it is.
    """
    if table is None:
        return found
    rows = read_table(Path(table))
    if not rows or "file" not in rows[0] or len(rows[0]) < 2:
        raise CorpusError(table, "needs a heading with a column 'file' and one for each label")
    labels: dict[str, dict[str, str]] = {}
    for i, row in enumerate(rows, start=2):
        name = PurePosixPath(row.pop("file").replace("\\", "/")).as_posix()
        if labels.setdefault(name, row) != row:
            raise CorpusError(table, f"says of {name} in row {i} something else than before; keep one of the rows")
    missing = next((source.id for source in found if source.left_out is None and source.id not in labels), None)
    if missing is not None:
        raise CorpusError(table, f"has no row for {missing}")
    new = [labels.get(source.id, {}) for source in found]
    return [
        replace(source, speaker=of_table.get("speaker", source.speaker), labels={**source.labels, **of_table})
        for source, of_table in zip(found, new, strict=True)
    ]


def _names(path: str | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        names = (os.fsdecode(line.strip().encode()) for line in text.splitlines())  # as those of folders are decoded
        return frozenset(name for name in names if name)
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(path, "cannot be read; give a text file with one speaker a line") from error
