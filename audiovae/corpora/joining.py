"""What shards of `prepare` have packed apart, joined to the corpus that one process would have packed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from audiovae.atomic import atomic_path
from audiovae.corpora import packed
from audiovae.corpora.packed import Header, LeftOut, Utterance
from audiovae.corpora.prepare import PART_OF, Prepared
from audiovae.errors import CorpusError
from audiovae.locks import locked_folder
from audiovae.shards import JOB, Job

_COPY_BYTES = 16 * 2**20
_SHARD = re.compile(r"\d+-of-\d+")


@dataclass(frozen=True)
class _Part:
    folder: Path
    header: Header
    utterances: list[Utterance]
    left_out: list[LeftOut]


def missing(target: Path) -> list[str]:
    """Recordings of a job that no shard has packed or left out.

    Raises:
        PathError: `target` holds no job, or a damaged shard.
    """
    job, parts = _parts(target)
    there = {u.id for part in parts for u in part.utterances} | {f.id for part in parts for f in part.left_out}
    return [name for name in job.files if name not in there]


def join(target: Path) -> Prepared:
    """Make one corpus of all shards in `target`, byte for byte what one process makes; the shards go.

    Raises:
        PathError: `target` holds no job, or cannot be written.
        CorpusError: a recording is missing, or a shard is damaged.
        LockedError: another process is at it.
    """
    with locked_folder(target):
        job, parts = _parts(target)
        places = {u.id: (part, u) for part in parts for u in part.utterances}
        others = {file.id: file for part in parts for file in part.left_out if file.id not in places}
        if any(name not in places and name not in others for name in job.files):
            raise CorpusError(target, "lacks recordings; give the commands of all shards once more")
        left_out = _in_order(others, job.files)
        numbers = {part.header.n_channels for part in parts if part.utterances}
        if len(numbers) > 1:
            raise CorpusError(target, f"has shards of {sorted(numbers)} channels; prepare recordings of one number")
        header = replace(parts[0].header, n_channels=max(numbers, default=1))
        joined: list[Utterance] = []
        with atomic_path(target / packed.SAMPLES, durable=True) as temporary, open(temporary, "wb") as file:
            for name in (name for name in job.files if name in places):
                part, utterance = places[name]
                joined.append(replace(utterance, start=file.tell() // header.sample_bytes))
                _copy(part.folder / packed.SAMPLES, utterance, header.sample_bytes, file)
        packed.write_index(target, header, joined, left_out)
        for part in parts:
            shutil.rmtree(part.folder)
        (target / JOB).unlink()
    options = job.options
    seconds = sum(u.n_samples for u in joined) / header.sample_rate
    return Prepared(options["layout"], options["split_by"], joined, left_out, len(joined), seconds, 0, None)


def _copy(path: Path, utterance: Utterance, sample_bytes: int, file: BinaryIO) -> None:
    """Append the samples of a recording.

    Raises:
        CorpusError: they are not as they were packed.
    """
    digest, n_left = hashlib.sha256(), utterance.n_samples * sample_bytes
    with open(path, "rb") as samples:
        samples.seek(utterance.start * sample_bytes)
        while content := samples.read(min(n_left, _COPY_BYTES)):
            digest.update(content)
            file.write(content)
            n_left -= len(content)
    if digest.hexdigest() != utterance.sha256:
        raise CorpusError(path, f"is damaged in {utterance.id}; prepare this shard again with --overwrite")


def _in_order(left_out: dict[str, LeftOut], names: list[str]) -> list[LeftOut]:
    """As one process finds them: what the layout excludes, what is no recording, and what failed."""
    of_job = [left_out[name] for name in names if name in left_out]
    others = [left_out[name] for name in sorted(left_out.keys() - set(names))]
    excluded, failed = ([file for file in of_job if file.failed is failed] for failed in (False, True))
    return [*excluded, *sorted(others, key=lambda file: file.failed), *failed]


def _parts(target: Path) -> tuple[Job, list[_Part]]:
    job = Job.load(target)
    digest, _ = job.content()
    parts = []
    for name in sorted(os.listdir(target)):
        folder = target / name
        if _SHARD.fullmatch(name) and (folder / packed.INDEX).exists() and (folder / PART_OF).read_text() == digest:
            parts.append(_Part(folder, *packed.read_index(folder)))
    return job, parts
