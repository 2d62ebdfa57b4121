"""One job over several processes that know nothing of each other: who does what, and what each has done.

A folder holds `job.jsonl`, on which all agree, and of every process `rows.I-of-N.jsonl`, a line for each file as soon
as it is done, and `failed.I-of-N.jsonl`. A process that dies may tear its last line: that file is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from audiovae.atomic import atomic_path
from audiovae.errors import PathError
from audiovae.locks import break_lock, locked_file

Thing = TypeVar("Thing")
Row = dict[str, Any]

JOB = "job.jsonl"
_ROWS = re.compile(r"(rows|failed)\.(\d+-of-\d+)\.jsonl")
_OUTPUTS = ("output", "residual", "report")  # of a row: what was written


@dataclass(frozen=True)
class Shard:
    """One of several processes that share a job.

    Attributes:
        index: from 1 to `count`.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"there is no shard {self.index} of {self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "2/4", the second of four; raises ValueError where it is none."""
        if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", text):
            raise ValueError(text)
        return cls(*map(int, text.split("/")))

    def share(self, things: Sequence[Thing]) -> list[Thing]:
        """Every `count`-th."""
        return list(things[self.index - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


@dataclass(frozen=True)
class Job:
    """What all processes of a job agree on.

    Attributes:
        verb: of the command line.
        options: that decide on the results.
        files: all inputs, in the order of the rows.
    """

    verb: str
    options: dict[str, Any]
    files: list[str]

    def content(self) -> tuple[str, bytes]:
        """Of its file; and the SHA-256 by which rows tell that they are of this job."""
        lines: list[Any] = [{"verb": self.verb, "options": self.options}, *self.files]
        body = "".join(json.dumps(line, sort_keys=True, default=str) + "\n" for line in lines).encode()
        digest = hashlib.sha256(body).hexdigest()
        return digest, json.dumps({"job": digest}).encode() + b"\n" + body

    @classmethod
    def load(cls, folder: Path) -> Job:
        """The job of a folder.

        Raises:
            PathError: there is none.
        """
        path = folder / JOB
        try:
            content = path.read_bytes()
            _, header, *files = map(json.loads, content.splitlines())
            job = cls(header["verb"], header["options"], files)
            if job.content()[1] != content:
                raise ValueError("digest")
        except FileNotFoundError as error:
            raise PathError(
                folder, f"holds no job (no {JOB}); give the folder that --shard or --ray wrote to"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise PathError(path, "cannot be read, or is damaged; give the command again with --overwrite") from error
        return job


class RowLog:
    """The rows of one process, each on the disk as soon as it is told.

    Attributes:
        rows: by file, those that are done: of this process, and of any other of the same job.
        failed: files that have failed.
    """

    def __init__(self, rows: dict[str, Row], failed: set[str], files: tuple[BinaryIO, BinaryIO]) -> None:
        self.rows, self.failed, self._files = rows, failed, files

    def append(self, row: Row) -> None:
        file = self._files["error" in row]
        file.write(json.dumps(row, default=str).encode() + b"\n")
        file.flush()


@contextmanager
def row_log(
    folder: Path, job: Job, shard: Shard = Shard(), *, resume: bool = False, overwrite: bool = False, gone: bool = False
) -> Iterator[RowLog]:
    """Within the block this process alone writes the rows of a shard.

    Args:
        resume: go on where another process stopped.
        overwrite: start anew.
        gone: a process of another machine that holds the shard is known to be gone.

    Raises:
        PathError: the folder is of another job; the shard was begun, and neither `resume` nor `overwrite` is given; or
            it cannot be written.
        LockedError: another process is at it.
    """
    paths = [folder / f"{kind}.{shard}.jsonl" for kind in ("rows", "failed")]
    if gone:
        break_lock(paths[0])
    with locked_file(paths[0]):
        digest, _ = job.content()
        agree(folder, job, overwrite)
        head = json.dumps({"job": digest}).encode() + b"\n"
        begun = any(path.exists() and path.stat().st_size > len(head) for path in paths)
        if begun and not (resume or overwrite):
            raise PathError(paths[0], "exists already; --resume goes on, --overwrite starts anew")
        for path in paths:
            _mend(path, b"" if overwrite else head)
        rows, failed = ({} if overwrite else dict(_rows(folder, kind, digest)) for kind in ("rows", "failed"))
        rows = {file: row for file, row in rows.items() if _is_whole(row)}
        with open(paths[0], "ab") as of_rows, open(paths[1], "ab") as of_failed:
            for file in (of_rows, of_failed):
                if not file.tell():
                    file.write(head)
                    file.flush()
            yield RowLog(rows, set(failed), (of_rows, of_failed))
            os.fsync(of_rows.fileno())


@dataclass(frozen=True)
class Gathered:
    """What all processes of a job have done.

    Attributes:
        rows: in the order of the job's files; of a file that failed, its error.
        missing: files without a row.
    """

    job: Job
    rows: list[Row]
    missing: list[str]


def gather(folder: Path) -> Gathered:
    """Join the rows of all processes of a job, each file's once.

    Raises:
        PathError: the folder holds no job.
    """
    job = Job.load(folder)
    digest, _ = job.content()
    rows = dict(_rows(folder, "failed", digest)) | dict(_rows(folder, "rows", digest))
    return Gathered(
        job, [rows[file] for file in job.files if file in rows], [file for file in job.files if file not in rows]
    )


def agree(folder: Path, job: Job, overwrite: bool = False) -> str:
    """Write the job of a folder down, or make sure that it is the one that stands there.

    Returns:
        its SHA-256.

    Raises:
        PathError: it is another one.
    """
    path = folder / JOB
    digest, content = job.content()
    try:
        with open(path, "rb") as file:
            same = json.loads(file.readline()) == {"job": digest}
    except FileNotFoundError:
        same = None
    except (OSError, ValueError):
        same = False
    if same:
        return digest
    if same is False and not overwrite:
        raise PathError(
            path,
            "is of another job: other options or other files; give the same, --overwrite to start anew, or another "
            "folder",
        )
    with atomic_path(path, durable=True) as temporary:
        temporary.write_bytes(content)
    return digest


def _mend(path: Path, head: bytes) -> None:
    """Drop a torn last line; and everything where it is of another job."""
    try:
        with open(path, "r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1 if head and content.startswith(head) else 0)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise PathError(path, f"cannot be written ({error.strerror}); check its permissions") from error


def _rows(folder: Path, kind: str, digest: str) -> Iterator[tuple[str, Row]]:
    """Files and rows of a job, the last row of a file last."""
    for name in sorted(os.listdir(folder)):
        match = _ROWS.fullmatch(name)
        if not match or match[1] != kind:
            continue
        try:
            with open(folder / name, "rb") as file:
                if json.loads(file.readline() or b"{}") != {"job": digest}:
                    continue
                for line in file:
                    if line.endswith(b"\n"):  # else its writer is at it, or died over it
                        row = json.loads(line)
                        yield row["file"], row
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PathError(folder / name, "cannot be read, or is damaged; delete it and give --resume") from error


def _is_whole(row: Row) -> bool:
    """Does what was written stand where it was?"""
    written = [row[name] for name in _OUTPUTS if name in row]
    paths = [path for entry in written for path in (entry if isinstance(entry, list) else [entry])]
    return all(map(os.path.exists, paths))
