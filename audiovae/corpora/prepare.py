"""From a folder of sound files to a packed corpus: find, check, trim, resample, pack; only what is new."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from audiovae import audio
from audiovae.corpora import packed
from audiovae.corpora.layouts import Source, assign_splits, at_speeds, sources, split_by
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


@dataclass(frozen=True)
class Prepared:
    """What a run did.

    Attributes:
        split_by: what stands in one split only, see `audiovae.corpora.layouts.split_by`.
        utterances: all recordings now in the corpus.
        left_out: all files that are not.
        n_new: recordings packed by this run.
        seconds_new: their duration before trimming.
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
    folder: str | Path,
    target: str | Path,
    settings: PrepareSettings = PrepareSettings(),
    jobs: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    shard: Shard | None = None,
) -> Prepared:
    """Pack all sound files below `folder` into `target`.

    Files already packed and unchanged (size and time of change) are kept, files that are gone are dropped from the
    index, and files that failed before are tried again only when they changed.

    Args:
        jobs: processes that read and resample; 1 stays in this one.
        overwrite: start anew, also where `target` holds a corpus that was prepared otherwise.
        progress: called with the number of files done and their total.
        shard: pack only this part, into a folder in `target` that is named by it: see `audiovae.corpora.joining`.

    Raises:
        CorpusError: no folder, no sound in it, or `target` holds another corpus.
        PathError: `target` cannot be written, or its other parts are of another job.
        LockedError: another process is preparing it.
    """
    target = Path(target) if shard is None else Path(target) / str(shard)
    with locked_folder(target):
        return _prepare(Path(folder), target, settings, jobs, overwrite, progress, shard)


def _prepare(
    folder: Path,
    target: Path,
    settings: PrepareSettings,
    jobs: int,
    overwrite: bool,
    progress: Callable[[int, int], None],
    shard: Shard | None,
) -> Prepared:
    if not folder.is_dir():
        raise CorpusError(
            folder, "no such folder" if not folder.exists() else "is a file; give the folder that holds it"
        )
    there = audio.find(folder)
    layout, found = sources(folder, there.files, settings.layout)
    found = _once(found)
    if not any(source.left_out is None for source in found):
        raise CorpusError(
            folder, "holds no sound file that can be used (WAV, FLAC, OGG, Opus, MP3, AIFF, AU, CAF, NIST, RF64, W64)"
        )
    found = _labelled(found, folder, settings.labels)
    group = split_by(found, settings.group)
    named = _names(settings.validation_speakers), _names(settings.test_speakers)
    asked = group if group != "speaker" else settings.group
    found = at_speeds(assign_splits(found, layout, settings.validation, *named, asked), settings.speeds)
    header = Header(settings.sample_rate, settings.trim, layout, str(folder.resolve()))
    if shard is not None:
        facts = {"folder": str(folder), "layout": layout, "split_by": group, "settings": asdict(settings)}
        digest = agree(target.parent, Job("prepare", facts, [source.id for source in found]), overwrite)
        (target / PART_OF).write_text(digest)
        found = shard.share(found)
    utterances, left_out, end = ([], [], 0) if overwrite else _existing(target, header, found)

    known = {u.id for u in utterances} | {file.id for file in left_out}
    new = [source for source in found if source.left_out is None and source.id not in known]
    left_out += [LeftOut(s.id, s.left_out, False, 0, 0) for s in found if s.left_out is not None and s.id not in known]
    for places, failed in (
        ((there.passed_over, False), (there.unreadable, True)) if shard is None or shard.index == 1 else ()
    ):
        left_out += [LeftOut(path.relative_to(folder).as_posix(), reason, failed, 0, 0) for path, reason in places]
    n_before = len(utterances)
    seconds_new, rates = 0.0, []
    try:
        target.mkdir(parents=True, exist_ok=True)
        if overwrite:
            (target / packed.INDEX).unlink(missing_ok=True)
        with open(target / packed.SAMPLES, "r+b" if (target / packed.SAMPLES).exists() else "wb") as file:
            file.truncate(2 * end)
            file.seek(2 * end)
            committed = 2 * end
            for done, (source, result) in enumerate(_process_all(new, settings, jobs, shard is not None), start=1):
                origin, start = _size_and_time(source.path), file.tell()
                result, digest = _written(result, file)
                if isinstance(result, Signal):
                    utterances.append(
                        Utterance(
                            source.id,
                            source.speaker,
                            str(source.split),
                            start // 2,
                            result.n_samples,
                            result.scale,
                            result.level,
                            *origin,
                            digest,
                            source.labels,
                        )
                    )
                    seconds_new += result.info.seconds
                    rates.append(result.info.sample_rate)
                else:
                    left_out.append(LeftOut(source.id, result, True, *origin))
                progress(done, len(new))
                if file.tell() - committed > _COMMIT_BYTES:
                    committed = _commit(file, target, header, utterances, left_out)
            _commit(file, target, header, utterances, left_out)
    except OSError as error:
        raise CorpusError(
            target, f"cannot be written ({error.strerror or error}); check the folder and the free space"
        ) from error
    n_new, n_resampled = len(utterances) - n_before, sum(rate != settings.sample_rate for rate in rates)
    return Prepared(layout, group, utterances, left_out, n_new, seconds_new, n_resampled, min(rates, default=None))


def _once(found: list[Source]) -> list[Source]:
    """The second of two names of one file is left out."""
    first: dict[str, str] = {}
    once = []
    for source in found:
        if source.left_out is None:
            name = first.setdefault(os.path.realpath(source.path), source.id)
            if name != source.id:
                source = replace(source, left_out=f"is the same file as {name}")
        once.append(source)
    return once


def _existing(target: Path, header: Header, found: list[Source]) -> tuple[list[Utterance], list[LeftOut], int]:
    """What of an earlier run still holds, with the new splits, and the end of its samples."""
    if not (target / packed.INDEX).exists():
        return [], [], 0
    old, utterances, left_out = packed.read_index(target)
    for name in ("source", "sample_rate", "trimmed", "layout"):
        if getattr(old, name) != getattr(header, name):
            raise CorpusError(
                target,
                f"holds a corpus with {name} {getattr(old, name)!r}, not {getattr(header, name)!r}; --overwrite "
                "replaces it",
            )
    current = {source.id: source for source in found if source.left_out is None}
    path = target / packed.SAMPLES
    n_there = path.stat().st_size // 2 if path.exists() else 0
    utterances = [u for u in utterances if u.start + u.n_samples <= n_there]  # what was lost is packed again
    end = max((u.start + u.n_samples for u in utterances), default=0)
    if 0 < 2 * end <= packed.SMALL_BYTES:
        packed.verify_samples(path, np.memmap(path, "<i2", "r", shape=(end,)), utterances)

    def unchanged(entry: Utterance | LeftOut) -> bool:
        source = current.get(entry.id)
        if source is None:
            return False
        return _size_and_time(source.path) == (entry.source_size, entry.source_mtime_ns)

    kept = [
        replace(u, split=str(current[u.id].split), speaker=current[u.id].speaker, labels=current[u.id].labels)
        for u in utterances
        if unchanged(u)
    ]
    return kept, [entry for entry in left_out if unchanged(entry)], end


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _commit(file: object, target: Path, header: Header, utterances: list[Utterance], left_out: list[LeftOut]) -> int:
    file.flush()  # type: ignore[attr-defined]
    os.fsync(file.fileno())  # type: ignore[attr-defined]
    packed.write_index(target, header, utterances, left_out)
    return int(file.tell())  # type: ignore[attr-defined]


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


def _process_all(
    new: list[Source], settings: PrepareSettings, jobs: int, apart: bool
) -> Iterator[tuple[Source, Signal | str]]:
    """Yield every source as it is packed, or with the reason why it is not, in order.

    Args:
        apart: even one process is not this one, so that a file that ends it is survived.
    """
    process = partial(_process, settings)
    if jobs == 1 and not apart:
        yield from ((source, process([source])[0]) for source in new)
        return
    results = in_processes(process, [[source] for source in new], [nothing] * jobs, ahead=_AHEAD * jobs)
    for source, (result,) in zip(new, in_order(results), strict=True):
        yield source, str(result) if isinstance(result, WorkerError) else result


def _process(settings: PrepareSettings, sources: list[Source], again: bool = False) -> list[Signal | str]:
    (source,) = sources
    try:
        return [Signal.of(source.path, source.speed, settings)]
    except AudioError as error:
        return [error.reason]


def _labelled(found: list[Source], folder: Path, table: str | None) -> list[Source]:
    """Add the labels of a table, whose column "file" holds paths below the folder and whose other columns are named by
    label; one named speaker says whose voice it is.
    """
    if table is None:
        return found
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            heading = file.readline()
            file.seek(0)
            delimiter = max("\t;,", key=heading.count) if Path(table).suffix != ".tsv" else "\t"
            rows = list(csv.DictReader(file, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(table, "cannot be read; give a CSV or TSV file in UTF-8") from error
    if not rows or "file" not in rows[0] or len(rows[0]) < 2:
        raise CorpusError(table, "needs a heading with a column 'file' and one for each label")
    labels: dict[str, dict[str, str]] = {}
    for i, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise CorpusError(table, f"has another number of cells in row {i} than in its heading")
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
