"""Work in several processes, of which each may die or hang without harm to what the others do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from audiovae.errors import AudiovaeError, Terminated

Item = TypeVar("Item")
Result = TypeVar("Result")

_ROUNDS_SECONDS = 1.0  # between two looks at whether the pools are whole
_START_SECONDS = 120.0  # after which a worker that has not begun counts as dead
_MOST_DEATHS, _MOST_FALSE_STARTS = 2, 4  # of a task's processes, at work and before that


class WorkerError(AudiovaeError):
    """Work that ended its process, or did not end, more than once."""


def in_processes(
    function: Callable[[list[Item]], list[Result]],
    tasks: Sequence[list[Item]],
    jobs: int,
    seconds: Callable[[list[Item]], float] = lambda task: 86400.0,
) -> Generator[list[Result | WorkerError], None, None]:
    """Call a function for every task in `jobs` processes; yields the results in the order of the tasks.

    Every process has a pool of its own, so that one that dies takes nothing of the others' along. A task whose process
    dies or that takes too long is tried once more, and if it has several items these then one by one. The processes do
    not run the caller's script again, unless function or tasks are defined there.

    Args:
        function: of a module, or a `functools.partial` of one; gives a result for every item of a task.
        seconds: that a task may take.

    Raises:
        Exception: what `function` raises.
    """
    needs_main = b"__main__" in bytes(ForkingPickler.dumps((function, tasks)))
    waiting = deque(range(len(tasks)))
    results: dict[int, list[Result] | WorkerError] = {}
    deaths, false_starts = [0] * len(tasks), [0] * len(tasks)
    slots = [_Slot(needs_main) for _ in range(min(jobs, len(tasks)))]
    try:
        for place, task in enumerate(tasks):
            while place not in results:
                for slot in slots:
                    if slot.future is None and waiting and waiting[0] < place + 4 * jobs:  # bounds the memory
                        slot.start(waiting.popleft(), function, tasks, seconds)
                for slot, outcome in _settled(slots):
                    deaths[slot.place] += outcome.failure is not None and outcome.had_begun
                    false_starts[slot.place] += not outcome.had_begun
                    if outcome.failure is None:
                        results[slot.place] = outcome.result
                    elif deaths[slot.place] >= _MOST_DEATHS or false_starts[slot.place] >= _MOST_FALSE_STARTS:
                        results[slot.place] = WorkerError(f"{outcome.failure}, more than once")
                    else:
                        waiting.appendleft(slot.place)
            result = results.pop(place)
            if not isinstance(result, WorkerError):
                yield list(result)
            elif len(task) == 1:
                yield [result]
            else:
                alone = in_processes(function, [[item] for item in task], 1, seconds)
                yield [of_one for (of_one,) in alone]
    finally:
        stops = [threading.Thread(target=slot.stop) for slot in slots]
        for thread in stops:
            thread.start()
        for thread in stops:
            thread.join()


def _settled(slots: list[_Slot]) -> list[tuple[_Slot, _Outcome]]:
    """Wait a moment, then those that are done with their tasks."""
    wait([slot.future for slot in slots if slot.future], _ROUNDS_SECONDS, FIRST_COMPLETED)
    outcomes = [(slot, slot.outcome()) for slot in slots if slot.future]
    return [(slot, outcome) for slot, outcome in outcomes if outcome is not None]


class _Outcome:
    """What became of a task: its result, or why there is none, and whether it is known to have begun."""

    def __init__(self, result: Any = None, failure: str | None = None, had_begun: bool = True) -> None:
        self.result, self.failure, self.had_begun = result, failure, had_begun


class _Slot:
    """A process and what it is at; another process where that one died."""

    def __init__(self, needs_main: bool) -> None:
        self._context = _Context(needs_main)
        self._pool: ProcessPool | None = None
        self._since = 0.0
        self.future: Future[Any] | None = None
        self.place = -1

    def start(
        self, place: int, function: Callable[[Any], Any], tasks: Sequence[Any], seconds: Callable[[Any], float]
    ) -> None:
        arguments = (function, tasks[place])
        self.place, self._since = place, time.monotonic()
        if self._pool is None or not self._pool.active:  # an idle process that was killed breaks its pool
            self.stop()
            self._pool = ProcessPool(1, context=self._context)
        try:
            self.future = self._pool.schedule(_call, arguments, timeout=seconds(tasks[place]))
        except RuntimeError as error:
            self.future = Future()
            self.future.set_exception(error)

    def outcome(self) -> _Outcome | None:
        """Of the task; None while it goes on. A pool that is not whole goes, and the next task gets a new one."""
        assert self.future is not None
        assert self._pool is not None
        if not self.future.done():
            late = not self.future.running() and time.monotonic() - self._since > _START_SECONDS
            if self._pool.active and not late:
                return None
            outcome = _Outcome(failure=self._ending(), had_begun=False)
        else:
            outcome = self._finished(self.future)
        if outcome.failure is not None:
            self.stop()
        self.future = None
        return outcome

    def _finished(self, future: Future[Any]) -> _Outcome:
        error = future.exception()
        if error is None:
            result, raised = future.result()
            if raised is not None:
                raise raised
            return _Outcome(result)
        if isinstance(error, ProcessExpired):
            return _Outcome(failure=f"its process was ended by {_cause(error.exitcode)}")
        if isinstance(error, TimeoutError):
            return _Outcome(failure=f"took longer than {error.args[-1]:.0f} s and was stopped")
        if isinstance(error, RuntimeError):
            return _Outcome(failure=self._ending(), had_begun=False)
        raise error  # what it was given, or gave, cannot be pickled

    def _ending(self) -> str:
        """Of the last process: one that dies at once may do so before the pool has heard that it had begun."""
        exit_codes = [process.exitcode for process in self._context.started[-2:] if process.exitcode]
        return f"its process was ended by {_cause(exit_codes[-1])}" if exit_codes else "its process does not answer"

    def stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return name + (" (out of memory?)" if name == "SIGKILL" else "")


# In the process


def _call(function: Callable[[Any], Any], task: Any) -> tuple[Any, Exception | None]:
    """The result, or what was raised; ends with the parent, and cleans up where it is ended."""
    _stay_with_parent()
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return function(task), None
    except Terminated:  # what was begun is cleaned up: now it may take effect
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        raise
    except Exception as error:
        return None, error
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _stay_with_parent() -> None:
    parent = multiprocessing.parent_process()
    name = "end with the parent"
    if parent is None or any(thread.name == name for thread in threading.enumerate()):
        return

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name=name, daemon=True).start()


# How they start: deaf to Ctrl-C, which is the parent's, and without running the caller's script again


class _QuietPopen(Popen):
    def _launch(self, process: Any) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the process inherits
        try:
            super()._launch(process)  # type: ignore[misc]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _MainlessPopen(_QuietPopen):
    def _launch(self, process: Any) -> None:
        with _main_hidden:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super()._launch(process)
            finally:
                sys.modules["__main__"] = main


_main_hidden = threading.Lock()


class _QuietProcess(SpawnProcess):
    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802 - the name of the standard library
        return _QuietPopen(process)


class _MainlessProcess(SpawnProcess):
    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802
        return _MainlessPopen(process)


class _Context(SpawnContext):
    """Attributes:
    started: all its processes.
    """

    def __init__(self, needs_main: bool) -> None:
        super().__init__()
        self._kind = _QuietProcess if needs_main else _MainlessProcess
        self.started: list[SpawnProcess] = []

    def Process(self, *arguments: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        self.started.append(self._kind(*arguments, **options))
        return self.started[-1]
