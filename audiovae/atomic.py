"""Files appear complete or not at all: write under a temporary name in the same folder, then rename."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from audiovae.errors import PathError
from audiovae.locks import sweep, temporary_path


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = False, final: Callable[[], Path] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` when the block ends without an error.

    What dead processes left in the folder goes first, see `audiovae.locks`.

    Args:
        path: where the file shall stand; its folder is created. An existing file is replaced.
        final: another name in the same folder, for what only its contents name; asked for at the end.
        durable: also flush the file and its folder to the disk (checkpoints: survives a power cut).

    Raises:
        PathError: the folder cannot be created or written, or the disk is full. Nothing is left behind.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # no link that lay in wait
        yield temporary
        if durable:
            _flush(temporary)
        path = path if final is None else final()
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    except OSError as error:
        raise PathError(
            path, f"cannot be written ({error.strerror or error}); check the folder and the free space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
