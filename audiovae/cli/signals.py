"""Ctrl-C and SIGTERM: everything is cleaned up, one line says so, and the exit status is 130 or 143."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from audiovae.errors import Terminated

_ECHO_SECONDS = 2.0  # in which the same signal may come again, by way of the process group
_LINES = {signal.SIGINT: "audiovae: interrupted", signal.SIGTERM: "audiovae: terminated"}


def ends_in_one_line(main: Callable[[Sequence[str] | None], int]) -> Callable[[Sequence[str] | None], int]:
    """Let a command line end so when it is interrupted at any moment."""

    @functools.wraps(main)
    def interruptible(arguments: Sequence[str] | None = None) -> int:
        with _raised():
            try:
                return main(arguments)
            except KeyboardInterrupt as interrupt:
                number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
                if not (int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("NODE_RANK", 0))):
                    print(_LINES[number], file=sys.stderr)
                return 128 + number

    return interruptible


def leave_at_once() -> None:
    """The same for a program that has not begun, and has nothing to clean up: even while its modules are loaded."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        os.write(2, f"{_LINES[signal.Signals(number)]}\n".encode())
        os._exit(128 + number)

    for number in _heard():
        signal.signal(number, leave)


@contextmanager
def _raised() -> Iterator[None]:
    """Within the block the signals are exceptions, the first of them; what comes much later ends the process."""
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not first:
            first = time.monotonic()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if time.monotonic() - first > _ECHO_SECONDS:
            os._exit(128 + number)

    before = {number: signal.signal(number, handle) for number in _heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard() -> list[signal.Signals]:
    """Those that are not ignored, as in a background job; none outside the main thread, which gets no signals."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in _LINES if signal.getsignal(number) not in (signal.SIG_IGN, None)]
