"""`-` in place of a file: the standard input, kept in a temporary one, and the standard output, for what is made."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from audiovae.errors import STANDARD_INPUT, STANDARD_OUTPUT, AudiovaeError
from audiovae.locks import sweep, temporary_path

SIGN = "-"
Run = Callable[[Any], int]


def standard_streams(written: str | None = None) -> Callable[[Run], Run]:
    """Let a verb take `-`, alone, for the standard input; and for the standard output, where it writes one file.

    The verb sees files, and messages name the streams. While the standard output is kept for the file, all that is
    printed goes to the error stream.

    Args:
        written: suffix of the file for the standard output; None: the verb writes none, or several.
    """

    def decorated(run: Run) -> Run:
        verb = run.__module__.rpartition(".")[2]

        @functools.wraps(run)
        def with_streams(options: Any) -> int:
            reads, writes = SIGN in getattr(options, "inputs", []), getattr(options, "output", None) == SIGN
            for name in ("residual", "report"):
                if getattr(options, name, None) == SIGN:
                    raise AudiovaeError(f"{verb}: --{name} must name a file or folder; - is for inputs and -o")
            if not (reads or writes) or getattr(options, "stream", False):  # which is no file
                return run(options)
            _check(verb, options, writes and not written)
            with _folder() as folder:
                if reads:
                    options.inputs = [str(_kept(folder))]
                if not writes:
                    return run(options)
                options.output = str(folder / f"{STANDARD_OUTPUT}{written}")
                with _kept_free() as output:
                    status = run(options)
                    if status == 0:
                        _copy(Path(options.output), output)
                return status

        return with_streams

    return decorated


def _check(verb: str, options: Any, writes_in_vain: bool) -> None:
    """Raises AudiovaeError where `-` makes no sense."""
    inputs = getattr(options, "inputs", [])
    reason = None
    if SIGN in inputs and len(inputs) > 1:
        reason = "- is the standard input, which is read once and alone; give nothing else with it"
    elif SIGN in inputs and os.isatty(0):
        reason = "- is the standard input, which is a terminal; pipe a file into it, or name one"
    elif writes_in_vain:
        reason = "-o - is for what is one file; give a folder"
    elif getattr(options, "output", None) == SIGN and options.json:
        reason = "-o - and --json both want the standard output; give one of them"
    elif getattr(options, "output", None) == SIGN and os.isatty(1):
        reason = "-o - is the standard output, which is a terminal; send it to a file or a program"
    elif getattr(options, "resume", False):
        reason = "--resume goes by files that stay, and - is none; leave it out"
    elif getattr(options, "shard", None) or getattr(options, "ray", None) is not None:
        reason = "--shard and --ray go by files that all processes see, and - is none; leave them out"
    if reason:
        raise AudiovaeError(f"{verb}: {reason}")


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder of this process alone, which goes at the end; those that dead processes left go first."""
    try:
        parent = Path(tempfile.gettempdir())
        sweep(parent)
        folder = temporary_path(parent / "audiovae")
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise AudiovaeError(
            f"there is no place for temporary files ({error.strerror or error}); set TMPDIR to a folder with room"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kept(folder: Path) -> Path:
    """The file of what the standard input holds, its suffix by its content."""
    path = folder / STANDARD_INPUT
    try:
        with open(0, "rb", closefd=False) as stream, open(path, "xb") as file:
            shutil.copyfileobj(stream, file, 2**20)
    except OSError as error:
        raise AudiovaeError(
            f"the standard input cannot be kept in {folder.parent} ({error.strerror or error}); set TMPDIR to a folder "
            "with room"
        ) from error
    if path.stat().st_size == 0:
        raise AudiovaeError("the standard input is empty; pipe a file into it, or name one")
    return path.rename(path.with_suffix(_suffix(path)))


def _suffix(path: Path) -> str:
    from audiovae import audio

    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return ".npz"
    try:
        container = audio.inspect(path).container
    except AudiovaeError:  # which says so in its turn
        return ".wav"
    return ".wav" if container in ("WAVEX", "RF64") else f".{container.lower()}"


@contextmanager
def _kept_free() -> Iterator[int]:
    """The standard output; within the block all that is printed, by libraries in C too, goes to the error stream."""
    sys.stdout.flush()
    output = os.dup(1)
    try:
        os.dup2(2, 1)
        yield output
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os.dup2(output, 1)
        os.close(output)


def _copy(path: Path, output: int) -> None:
    try:
        with open(path, "rb") as file, open(output, "wb", closefd=False) as stream:
            shutil.copyfileobj(file, stream, 2**20)
    except BrokenPipeError:  # the reader has left, which is no error
        raise
    except OSError as error:
        raise AudiovaeError(f"the standard output cannot be written ({error.strerror})") from error
