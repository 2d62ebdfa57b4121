"""From a folder of sound files to a packed corpus: find, check, trim, resample, pack; only what is new."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from audiovae import audio
from audiovae.corpora import packed
from audiovae.corpora.layouts import Source, assign_splits, at_speeds, sources
from audiovae.corpora.packed import Header, LeftOut, Utterance
from audiovae.errors import AudioError, CorpusError
from audiovae.level import active_level, split_rumble, trim_bounds, without_rumble
from audiovae.locks import locked_folder
from audiovae.pool import WorkerError, in_processes
from audiovae.settings import PrepareSettings

SHORTEST_SECONDS = 0.1
_COMMIT_BYTES = 256 * 2**20  # an interrupted run loses at most this much
_FILES_PER_TASK = 8
_FAINTEST = 1e-20  # level, that single precision can divide by
_CANCELLED = 1e-3


@dataclass(frozen=True)
class Prepared:
    """What a run did.

    Attributes:
        utterances: all recordings now in the corpus.
        left_out: all files that are not.
        n_new: recordings packed by this run.
        seconds_new: their duration before trimming.
        n_resampled: those of them that had another rate.
    """

    layout: str
    utterances: list[Utterance]
    left_out: list[LeftOut]
    n_new: int
    seconds_new: float
    n_resampled: int


@dataclass(frozen=True)
class _Processed:
    samples: NDArray[np.int16]
    scale: float
    level: float
    seconds: float
    resampled: bool


def prepare(
    folder: str | Path,
    target: str | Path,
    settings: PrepareSettings = PrepareSettings(),
    jobs: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Pack all sound files below `folder` into `target`.

    Files already packed and unchanged (size and time of change) are kept, files that are gone are dropped from the
    index, and files that failed before are tried again only when they changed.

    Args:
        jobs: processes that read and resample; 1 stays in this one.
        overwrite: start anew, also where `target` holds a corpus that was prepared otherwise.
        progress: called with the number of files done and their total.

    Raises:
        CorpusError: no folder, no sound in it, or `target` holds another corpus.
        PathError: `target` cannot be written.
        LockedError: another process is preparing it.
    """
    with locked_folder(Path(target)):
        return _prepare(Path(folder), Path(target), settings, jobs, overwrite, progress)


def _prepare(
    folder: Path,
    target: Path,
    settings: PrepareSettings,
    jobs: int,
    overwrite: bool,
    progress: Callable[[int, int], None],
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
    found = assign_splits(
        found, layout, settings.validation, _names(settings.validation_speakers), _names(settings.test_speakers)
    )
    found = at_speeds(_labelled(found, folder, settings.labels), settings.speeds)
    header = Header(settings.sample_rate, settings.trim, layout, str(folder.resolve()))
    utterances, left_out, end = ([], [], 0) if overwrite else _existing(target, header, found)

    known = {u.id for u in utterances} | {file.id for file in left_out}
    new = [source for source in found if source.left_out is None and source.id not in known]
    left_out += [LeftOut(s.id, s.left_out, False, 0, 0) for s in found if s.left_out is not None and s.id not in known]
    for places, failed in ((there.passed_over, False), (there.unreadable, True)):
        left_out += [LeftOut(path.relative_to(folder).as_posix(), reason, failed, 0, 0) for path, reason in places]
    n_before = len(utterances)
    seconds_new, n_resampled = 0.0, 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        if overwrite:
            (target / packed.INDEX).unlink(missing_ok=True)
        with open(target / packed.SAMPLES, "r+b" if (target / packed.SAMPLES).exists() else "wb") as file:
            file.truncate(2 * end)
            file.seek(2 * end)
            committed = 2 * end
            for done, (source, result) in enumerate(_process_all(new, settings, jobs), start=1):
                origin = _size_and_time(source.path)
                if isinstance(result, _Processed):
                    digest = hashlib.sha256(result.samples.tobytes()).hexdigest()
                    place = (file.tell() // 2, len(result.samples))
                    utterances.append(
                        Utterance(
                            source.id,
                            source.speaker,
                            str(source.split),
                            *place,
                            result.scale,
                            result.level,
                            *origin,
                            digest,
                            source.labels,
                        )
                    )
                    file.write(result.samples.tobytes())
                    seconds_new += result.seconds
                    n_resampled += result.resampled
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
    return Prepared(layout, utterances, left_out, len(utterances) - n_before, seconds_new, n_resampled)


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


def _process_all(new: list[Source], settings: PrepareSettings, jobs: int) -> Iterator[tuple[Source, _Processed | str]]:
    """Yield every source with its samples, or with the reason why there are none, in order."""
    tasks = [new[i : i + _FILES_PER_TASK] for i in range(0, len(new), _FILES_PER_TASK)]
    if jobs == 1:
        for task in tasks:
            yield from zip(task, _process(task, settings), strict=True)
        return
    together = partial(_process, settings=settings)
    for task, results in zip(tasks, in_processes(together, tasks, jobs), strict=True):
        yield from zip(task, [str(r) if isinstance(r, WorkerError) else r for r in results], strict=True)


def _process(task: list[Source], settings: PrepareSettings) -> list[_Processed | str]:
    results: list[_Processed | str] = []
    for source in task:
        try:
            results.append(_process_one(source.path, source.speed, settings))
        except AudioError as error:
            results.append(error.reason)
    return results


def _process_one(path: Path, speed: float, settings: PrepareSettings) -> _Processed:
    channels, info = audio.read(path)
    mono = channels.mean(axis=0, keepdims=True)
    if np.abs(mono).max() < _CANCELLED * np.abs(channels).max():
        mono = channels[:1]  # a cable with its wires swapped: the channels cancel each other
    whole = without_rumble(mono, info.sample_rate)
    heard, above = whole.wave, whole.above
    rate = round(speed * info.sample_rate)
    if rate != settings.sample_rate:
        heard = audio.resample(heard, rate, settings.sample_rate)
        above = heard - split_rumble(heard, settings.sample_rate)
    start, end = trim_bounds(above) if settings.trim else (0, above.shape[1])
    wave, above = heard[0, start:end], above[0, start:end]
    level = active_level(above, settings.sample_rate, rumble=False) if len(wave) else 0.0
    if level < _FAINTEST:
        raise AudioError(path, "is silent")
    if not math.isfinite(level):
        raise AudioError(path, "is beyond all scale; turn it down")
    if len(wave) < SHORTEST_SECONDS * settings.sample_rate:
        raise AudioError(path, f"is shorter than {SHORTEST_SECONDS} s")
    scale = float(np.abs(wave).max()) / 32767
    samples = np.rint(wave / np.float32(scale)).astype("<i2")
    return _Processed(samples, scale, level, info.seconds, info.sample_rate != settings.sample_rate)


def _labelled(found: list[Source], folder: Path, table: str | None) -> list[Source]:
    """Add the labels of a table, whose column "file" holds paths below the folder and whose other columns are named by
    label.
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
    return [replace(source, labels={**source.labels, **labels.get(source.id, {})}) for source in found]


def _names(path: str | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        names = (os.fsdecode(line.strip().encode()) for line in text.splitlines())  # as those of folders are decoded
        return frozenset(name for name in names if name)
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(path, "cannot be read; give a text file with one speaker a line") from error
