"""Libraries in C that write to the error stream what our own errors say better."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing reach the error stream of this process: mpg123 on a damaged file, ONNX Runtime without a home."""
    with contextlib.ExitStack() as undone:
        try:
            kept = os.dup(2)
        except OSError:  # closed: nothing to keep quiet
            kept = -1
        if kept >= 0:
            undone.callback(os.close, kept)
            undone.callback(os.dup2, kept, 2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield
