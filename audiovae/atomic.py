"""Files appear complete or not at all: write under a temporary name in the same folder, then rename."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audiovae.errors import PathError


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` when the block ends without an error.

    Args:
        path: where the file shall stand; its folder is created. An existing file is replaced.
        durable: also flush the file and its folder to the disk (checkpoints: survives a power cut).

    Raises:
        PathError: the folder cannot be created or written, or the disk is full. Nothing is left behind.
    """
    path = Path(path)
    # The suffix stays last: libraries choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _flush(temporary)
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
