"""Ctrl-C and SIGTERM between two steps of training, not within one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ECHO_SECONDS = 2.0  # in which the same signal may come again, by way of the process group


@contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """Within the block SIGINT and SIGTERM only make what it yields true; at its end they act as they did before.

    A second one acts at once. Outside the main thread, which gets no signals, nothing is changed.
    """
    came: list[tuple[int, float]] = []

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not came:
            came.append((number, now))
        elif now - came[0][1] > _ECHO_SECONDS:
            restore()
            signal.raise_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield lambda: bool(came)
    finally:
        restore()
    if came:
        signal.raise_signal(came[0][0])
