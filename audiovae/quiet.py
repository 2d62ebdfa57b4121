"""Libraries in C that write to the standard streams what is said better elsewhere, or belongs elsewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing reach the error stream of this process: mpg123 on a damaged file, ONNX Runtime without a home."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with _instead_of(2, nowhere):
            yield
    finally:
        os.close(nowhere)


@contextlib.contextmanager
def output_is_ours() -> Iterator[None]:
    """What is written to the standard output goes to the error stream: Gloo of torch 2.9 on whom it is connected to."""
    with _instead_of(1, 2):
        yield


@contextlib.contextmanager
def _instead_of(stream: int, other: int) -> Iterator[None]:
    with contextlib.ExitStack() as undone:
        try:
            kept = os.dup(stream)
        except OSError:  # closed: nothing to keep quiet
            kept = -1
        if kept >= 0:
            undone.callback(os.close, kept)
            undone.callback(os.dup2, kept, stream)
            with contextlib.suppress(OSError):  # the other one is closed
                os.dup2(other, stream)
        yield
