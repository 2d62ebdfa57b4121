"""Processes that die or hang: what they were at is tried once more and named, and the others are done."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from audiovae import batch
from audiovae.batch import WORK_SECONDS, Item, Row, Workers, run_batch
from audiovae.errors import AudiovaeError
from audiovae.pool import WorkerError, in_order, in_processes, nothing


def squares(tasks: list[Any], again: bool) -> list[Any]:
    """A number's square; a signal's name ends the process, and a path does so the first time."""
    for task in tasks:
        if isinstance(task, signal.Signals):
            os.kill(os.getpid(), task)
        if task == "hang":
            time.sleep(600)
        if task == "fail":
            raise AudiovaeError("is broken")
        if isinstance(task, Path) and not task.exists():
            task.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return [task**2 if isinstance(task, int) and not isinstance(task, signal.Signals) else "done" for task in tasks]


def told(results: list[Any]) -> list[Any]:
    return [str(result) if isinstance(result, WorkerError) else result for result in results]


def test_a_task_that_ends_its_process_is_named_with_the_signal_and_the_others_are_done(tmp_path: Path) -> None:
    tasks: list[list[Any]] = [[1], [signal.SIGSEGV], [2, 3], [tmp_path / "once"], [4, signal.SIGKILL, 5], [6]]
    results = [told(of_task) for of_task in in_order(in_processes(squares, tasks, [nothing] * 2))]
    assert results == [
        [1],
        ["its process was ended by SIGSEGV, more than once"],
        [4, 9],
        ["done"],
        [16, "its process was ended by SIGKILL (out of memory?), more than once", 25],
        [36],
    ]


def test_a_task_that_hangs_is_stopped_and_the_others_are_done() -> None:
    results = [
        told(of_task)
        for of_task in in_order(in_processes(squares, [[1], ["hang"], [2]], [nothing] * 2, lambda task: 1.0))
    ]
    assert results == [[1], ["took longer than 1 s and was stopped, more than once"], [4]]


def test_what_a_task_raises_is_raised() -> None:
    with pytest.raises(AudiovaeError, match="is broken"):
        list(in_processes(squares, [[1], ["fail"], [2]], [nothing] * 2))


def slow(tasks: list[int], again: bool) -> list[int]:
    time.sleep(0.3)
    return [task**2 for task in tasks]


def test_processes_killed_at_any_moment_idle_or_starting_change_no_result() -> None:
    moments = random.Random(0)

    def kill() -> None:
        for _ in range(8):
            time.sleep(moments.uniform(0.05, 0.5))
            workers = [p.pid for p in multiprocessing.active_children() if p.name == "pebble_pool_worker" and p.pid]
            if workers:
                os.kill(moments.choice(workers), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    done = in_order(in_processes(slow, [[i] for i in range(12)], [nothing] * 3))
    results = [result for of_task in done for result in of_task]
    thread.join()
    whole = [result for result in results if not isinstance(result, WorkerError)]
    assert whole == [i**2 for i, result in enumerate(results) if not isinstance(result, WorkerError)]
    assert len(whole) > 8  # a task may have met it twice
    assert multiprocessing.active_children() == []


def fatal(prior: None, item: Item) -> Row:
    if item.name == "b":
        os.kill(os.getpid(), signal.SIGABRT)
    if item.name == "c":
        time.sleep(600)
    return {"name": item.name}


def test_a_batch_reports_the_files_that_end_their_process_or_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PATIENCE_SECONDS", 2.0)
    items = [Item(Path("in", name), name) for name in "abcd"]
    rows = run_batch(items, fatal, Workers(None, jobs=2))
    assert [{key: row[key] for key in row if key != WORK_SECONDS} for row in rows] == [
        {"file": "in/a", "name": "a"},
        {"file": "in/b", "error": "in/b: its process was ended by SIGABRT, more than once"},
        {"file": "in/c", "error": "in/c: took longer than 2 s and was stopped, more than once"},
        {"file": "in/d", "name": "d"},
    ]


PLAIN = """
from audiovae import prepare, PrepareSettings
print("begun")
print("packed", prepare({folder!r}, {target!r}, PrepareSettings(), jobs=2).n_new)
"""


@pytest.mark.parametrize("way", ["script", "stdin", "-c"])
def test_a_script_without_a_main_guard_is_run_once(toy_corpus_folder: Path, tmp_path: Path, way: str) -> None:
    program = PLAIN.format(folder=str(toy_corpus_folder), target=str(tmp_path / "packed"))
    script = tmp_path / "script.py"
    script.write_text(program)
    arguments = {"script": [str(script)], "stdin": ["-"], "-c": ["-c", program]}[way]
    done = subprocess.run([sys.executable, *arguments], input=program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == "begun"
    assert second.startswith("packed ")


GUARDED = """
from audiovae.pool import in_order, in_processes, nothing

def double(tasks, again):
    return [2 * task for task in tasks]

if __name__ == "__main__":
    print(list(in_order(in_processes(double, [[1], [2]], [nothing] * 2))))
"""


def test_work_of_a_guarded_script_is_found(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(GUARDED)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[[2], [4]]\n", "")


def test_a_process_of_a_cluster_that_never_starts_has_not_begun_its_work() -> None:
    """So it counts as a false start, and what it was to do is not blamed."""
    exceptions = pytest.importorskip("ray.exceptions")
    import ray

    from audiovae.cluster import _Actor

    slot = _Actor(ray, None, nothing)
    for error, had_begun in (
        (exceptions.ActorUnschedulableError("no room"), False),
        (exceptions.ActorDiedError(), True),
    ):
        slot.future = Future()
        slot.future.set_exception(error)
        outcome = slot.outcome()
        assert outcome is not None
        assert outcome.failure is not None
        assert outcome.had_begun is had_begun
