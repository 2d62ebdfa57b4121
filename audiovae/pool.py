"""Work in several processes, of which each may die or hang without harm to what the others do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from audiovae.errors import AudiovaeError, Terminated

Item = TypeVar("Item")
Result = TypeVar("Result")
Call = Callable[[list[Any], bool], list[Any]]  # of the items of a task, which may have been begun before

_ROUNDS_SECONDS = 1.0  # between two looks at whether the processes live
_START_SECONDS = 120.0  # after which a process that does not answer counts as dead
_MOST_DEATHS = 3  # of processes at work on a task
_MOST_FALSE_STARTS = 30  # of processes that died before any work, one after another
_CALL_SECONDS, _MOST_TASKS = 0.25, 64  # short tasks are given to a process together, so that asking costs little


class WorkerError(AudiovaeError):
    """Work that ended its process, or did not end, more than once."""


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        result: what it gave.
        failure: why there is none; None where there is.
        had_begun: may it be to blame for that?
    """

    result: Any = None
    failure: str | None = None
    had_begun: bool = True


class Slot(ABC):
    """A place for a process that does one call at a time; for another one where that died.

    Attributes:
        future: of the call; None while the process has nothing to do.
    """

    def __init__(self) -> None:
        self.future: Future[Any] | None = None

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Is there a process that has begun?"""

    @abstractmethod
    def begin(self) -> None:
        """Start a process, whose first call is what each does first."""

    @abstractmethod
    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> None:
        """Let the process call a function of a module, or a `functools.partial` of one.

        Args:
            seconds: that it may take.
        """

    @abstractmethod
    def outcome(self) -> Outcome | None:
        """Of the call, which is then forgotten; None while it goes on.

        Raises:
            Exception: what the function raised.
        """

    @abstractmethod
    def stop(self) -> None:
        """End the process."""


def nothing() -> None:
    """What a process does first that has nothing to prepare."""


def in_processes(
    function: Call,
    tasks: Sequence[list[Item]],
    starts: Sequence[Callable[[], None]],
    seconds: Callable[[list[Item]], float] = lambda task: 86400.0,
    ahead: int | None = None,
) -> Generator[tuple[int, list[Any]], None, None]:
    """Call a function for every task in processes of this machine: see `scheduled`.

    The processes do not run the caller's script again, unless function or tasks are defined there.

    Args:
        starts: for each process what it does first.
    """
    needs_main = b"__main__" in bytes(ForkingPickler.dumps((function, tasks, starts)))
    slots: list[Slot] = [_Process(start, needs_main) for start in starts[: len(tasks)]]
    return scheduled(function, tasks, slots, lambda: None, seconds, ahead)


def in_order(results: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Results by the order of their tasks, each as soon as those before it are there."""
    kept: dict[int, Result] = {}
    place = 0
    for done, result in results:
        kept[done] = result
        while place in kept:
            yield kept.pop(place)
            place += 1


def scheduled(
    function: Call,
    tasks: Sequence[list[Item]],
    slots: list[Slot],
    look: Callable[[], None],
    seconds: Callable[[list[Item]], float],
    ahead: int | None = None,
) -> Generator[tuple[int, list[Any]], None, None]:
    """Call a function for every task in the processes of slots; yields place and results as they come.

    A task whose process dies or that takes too long is tried twice more, and if it has several items these then one by
    one; what ended a process each time has a WorkerError in place of its result. A process that dies before it has
    begun, or that has nothing to do, costs nothing but its start.

    Args:
        function: gives a result for every item of a task; is told whether a process may have begun it before.
        slots: may become more meanwhile.
        look: is called about every second.
        seconds: that a task may take.
        ahead: no task is begun that is so far behind the first that is not done, which bounds the memory of who wants
            them in order; None: any.

    Raises:
        AudiovaeError: one process after another dies before it has begun.
        Exception: what `function`, or what a process does first, raises.
    """
    plan = _Plan(tasks, len(tasks) if ahead is None else ahead)
    at_work: dict[Slot, tuple[list[_Part], float]] = {}
    false_starts = 0

    def occupy(slot: Slot) -> None:
        if not slot.is_alive:
            if plan.waiting:
                slot.begin()
        elif parts := plan.take(len(slots)):
            at_work[slot] = parts, time.monotonic()
            calls = [(part.items, part.again) for part in parts]
            slot.call(_each, (function, calls), sum(seconds(part.items) for part in parts))

    try:
        while plan.n_left:
            for slot in slots:
                if slot.future is None:
                    occupy(slot)
            wait([slot.future for slot in slots if slot.future], _ROUNDS_SECONDS, FIRST_COMPLETED)
            if not slots:
                time.sleep(_ROUNDS_SECONDS)
            look()
            for slot in slots:
                outcome = slot.outcome() if slot.future is not None else None
                if outcome is None:
                    continue
                parts, since = at_work.pop(slot, ([], 0.0))
                if outcome.failure is None:
                    plan.measure(time.monotonic() - since, len(parts))
                    results = list(plan.filled(parts, outcome.result or []))
                    false_starts = 0 if parts else false_starts
                    occupy(slot)  # first, so that it does not wait for what is made of the results
                    yield from results
                    continue
                slot.stop()
                false_starts += not (parts and outcome.had_begun)
                if false_starts >= _MOST_FALSE_STARTS:
                    raise AudiovaeError(
                        f"no process gets to work: {outcome.failure}, time and again; free memory, or give fewer --jobs"
                    )
                yield from plan.again(parts, outcome)
    finally:
        stops = [threading.Thread(target=slot.stop) for slot in slots]
        for thread in stops:
            thread.start()
        for thread in stops:
            thread.join()


@dataclass(slots=True, eq=False)
class _Part:
    """Items of a task that are to be done together.

    Attributes:
        place: of the task.
        first: place of the first item within the task.
        deaths: of processes at work on them.
        again: they may have been begun.
    """

    place: int
    items: list[Any]
    first: int = 0
    deaths: int = 0
    again: bool = False


class _Plan:
    """What is to be done, and what is."""

    def __init__(self, tasks: Sequence[list[Any]], ahead: int) -> None:
        self.waiting = deque(_Part(place, task) for place, task in enumerate(tasks))
        self.n_left = len(tasks)
        self._sizes = [len(task) for task in tasks]
        self._split: dict[int, dict[int, Any]] = {}  # results of tasks that are done in several parts
        self._ahead, self._oldest, self._done = ahead, 0, set[int]()
        self._seconds = _CALL_SECONDS  # that a task takes

    def take(self, n_slots: int) -> list[_Part]:
        """What a process does next: of what was tried before one alone, else as many as fill a moment."""
        most = min(_MOST_TASKS, int(_CALL_SECONDS / self._seconds), len(self.waiting) // (2 * n_slots))
        parts: list[_Part] = []
        while self.waiting and self.waiting[0].place < self._oldest + self._ahead:
            if parts and (self.waiting[0].again or len(parts) >= most):
                break
            parts.append(self.waiting.popleft())
            if parts[0].again:
                break
        return parts

    def measure(self, seconds: float, n_tasks: int) -> None:
        if n_tasks:
            self._seconds += 0.5 * (max(seconds, 1e-4) / n_tasks - self._seconds)

    def filled(self, parts: list[_Part], results: list[list[Any]]) -> Iterator[tuple[int, list[Any]]]:
        """Places and results of the tasks that are now done."""
        for part, of_part in zip(parts, results, strict=True):
            there = self._split.setdefault(part.place, {})
            there.update(enumerate(of_part, part.first))
            if len(there) < self._sizes[part.place]:
                continue
            del self._split[part.place]
            self.n_left -= 1
            self._done.add(part.place)
            while self._oldest in self._done:
                self._done.remove(self._oldest)
                self._oldest += 1
            yield part.place, [there[i] for i in range(len(there))]

    def again(self, parts: list[_Part], outcome: Outcome) -> Iterator[tuple[int, list[Any]]]:
        """After a failure: what was tried too often is done with, the rest waits once more."""
        for part in reversed(parts):
            if outcome.had_begun:
                part.deaths, part.again = part.deaths + 1, True
            if part.deaths < _MOST_DEATHS:
                self.waiting.appendleft(part)
            elif len(part.items) == 1:
                yield from self.filled([part], [[WorkerError(f"{outcome.failure}, more than once")]])
            else:
                for i, item in reversed(list(enumerate(part.items, part.first))):
                    self.waiting.appendleft(_Part(part.place, [item], i, again=True))


def _each(function: Call, calls: list[tuple[list[Any], bool]]) -> list[list[Any]]:
    return [function(items, again) for items, again in calls]


class _Process(Slot):
    """One of this machine, in a pool of its own, so that one that dies takes nothing of the others' along."""

    def __init__(self, start: Callable[[], None], needs_main: bool) -> None:
        super().__init__()
        self._start = start
        self._context = _Context(needs_main)
        self._pool: ProcessPool | None = None
        self._since = 0.0

    @property
    def is_alive(self) -> bool:
        return self._pool is not None and bool(self._pool.active)  # an idle process that was killed breaks its pool

    def begin(self) -> None:
        self.stop()
        self._pool = ProcessPool(1, context=self._context)
        self.call(self._start, (), 86400.0)

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> None:
        assert self._pool is not None
        self._since = time.monotonic()
        try:
            self.future = self._pool.schedule(_call, (function, arguments), timeout=seconds)
        except RuntimeError as error:
            self.future = Future()
            self.future.set_exception(error)

    def outcome(self) -> Outcome | None:
        assert self.future is not None
        assert self._pool is not None
        if self.future.done():
            future, self.future = self.future, None
            return self._finished(future)
        late = not self.future.running() and time.monotonic() - self._since > _START_SECONDS
        if self._pool.active and not late:
            return None
        self.future = None
        return Outcome(failure=self._ending(), had_begun=False)

    def _finished(self, future: Future[Any]) -> Outcome:
        error = future.exception()
        if error is None:
            result, raised = future.result()
            if raised is not None:
                raise raised
            return Outcome(result)
        if isinstance(error, ProcessExpired):
            return Outcome(failure=f"its process was ended by {_cause(error.exitcode)}")
        if isinstance(error, TimeoutError):
            return Outcome(failure=f"took longer than {error.args[-1]:.0f} s and was stopped")
        if isinstance(error, RuntimeError):
            return Outcome(failure=self._ending(), had_begun=False)
        raise error  # what it was given, or gave, cannot be pickled

    def _ending(self) -> str:
        """Of the last process: one that dies at once may do so before the pool has heard that it had begun."""
        exit_codes = [process.exitcode for process in self._context.started[-2:] if process.exitcode]
        return f"its process was ended by {_cause(exit_codes[-1])}" if exit_codes else "its process does not answer"

    def stop(self) -> None:
        pool, self._pool, self.future = self._pool, None, None
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


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """The result, or what was raised; ends with the parent, and cleans up where it is ended."""
    _stay_with_parent()
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return function(*arguments), None
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
