"""Many inputs, one after another or in several processes, devices and machines: each fails or succeeds by itself."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiovae.errors import AudiovaeError, named, unexpected
from audiovae.locks import sweep
from audiovae.pool import WorkerError, in_processes

if TYPE_CHECKING:  # torch takes long to load, and help needs none
    from audiovae.prior import AudioVAE


PATIENCE_SECONDS = 3600.0  # for a file, and so much more for each of its bytes
PATIENCE_SECONDS_PER_BYTE = 0.01
WORK_SECONDS = "work_seconds"  # of a row: what the work on the item took, shared evenly by those side by side


@dataclass(frozen=True)
class Item:
    """One input and where its result goes.

    Attributes:
        source: the input file.
        name: its path relative to what the user named: the key of its row, of its output and of its random numbers.
        target: the output file; None where there is none.
        again: it may have been begun before, by a process that died: what stands at its target, and its lock on
            another machine, are of that, and are replaced.
    """

    source: Path
    name: str
    target: Path | None = None
    again: bool = False


@dataclass(frozen=True)
class Workers:
    """Who works on a batch.

    Attributes:
        model: the prior that each process loads; None where none is needed.
        device: that it is loaded on.
        jobs: processes that work at the same time, on each device; on a ray cluster all that it has room for, unless
            this is above 1.
        devices: GPUs of this machine, or more processes on a CPU.
        apart: even one process is not this one, so that a file that ends it is survived.
        ray: address of a ray cluster that the processes run on; "" for one that is started here; None: no ray.
    """

    model: str | None
    device: str = "cpu"
    jobs: int = 1
    devices: int = 1
    apart: bool = False
    ray: str | None = None


Row = dict[str, Any]  # what is told of an item, ready for JSON
Result = Row | AudiovaeError  # that, or what went wrong with it
Work = Callable[["AudioVAE | None", Item], Result]
GroupWork = Callable[["AudioVAE | None", list[Item]], list[Result]]  # a result for each
Told = Callable[[Row], None]

_worker: tuple[AudioVAE | None, GroupWork] | None = None


def run_batch(
    items: list[Item], work: Work, workers: Workers, seed: int = 0, told: Told = lambda row: None
) -> list[Row]:
    """Call `work` for every item, and return a row for each: what it gave with its WORK_SECONDS, or "error".

    Args:
        work: a function of a module, or a `functools.partial` of one.
        seed: the random numbers of an item follow from it and from its name, so neither the order nor the number of
            jobs changes a result.
        told: is called with the row of an item as soon as it is done.

    Raises:
        AudiovaeError: there is no such model or device.
    """
    return run_groups([[item] for item in items], partial(alone, work, seed), workers, told)


def run_groups(groups: list[list[Item]], work: GroupWork, workers: Workers, told: Told = lambda row: None) -> list[Row]:
    """The same for groups of items that are worked on together.

    Returns:
        the rows in the order of the groups.
    """
    rows: dict[int, list[Row]] = {}
    with closing(_results(groups, work, workers)) as results:
        for place, of_group in results:
            rows[place] = []
            for item, result in zip(groups[place], of_group, strict=True):
                row = {"error": " ".join(str(result).split())} if isinstance(result, AudiovaeError) else result
                rows[place].append({"file": named(item.source), **row})
                told(rows[place][-1])
    return [row for place in range(len(groups)) for row in rows[place]]


def alone(work: Work, seed: int, prior: AudioVAE | None, items: list[Item]) -> list[Result]:
    """Work on a group of one item, which has random numbers of its own."""
    (item,) = items
    if prior is not None:
        import torch

        digest = hashlib.sha256(f"{seed} {item.name}".encode("utf-8", "surrogateescape")).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
    return [work(prior, item)]


def resolve_device(name: str) -> str:
    """The torch device that a name means: "cpu", "cuda", "cuda:1", or "auto".

    Raises:
        AudiovaeError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu(:0)?|mps|cuda(:\d{1,3})?", name):  # torch has more, and models run on none of them
        raise AudiovaeError(f"--device {name}: no such device here; use cpu or auto")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise AudiovaeError(f"--device {name}: no such device here; use cpu or auto") from error
    return name


def _results(
    groups: list[list[Item]], work: GroupWork, workers: Workers
) -> Generator[tuple[int, list[Result]], None, None]:
    """Places of groups and their results, as they come."""
    processes = _each_process(workers)
    if workers.ray is None and not workers.apart and (len(processes) == 1 or len(groups) == 1):
        _start(work, workers)
        yield from ((place, _together(group, again=False)) for place, group in enumerate(groups))
        return
    if not groups:
        return
    if workers.ray is not None:
        from audiovae.cluster import on_cluster

        start = partial(_start, work, workers)
        results = on_cluster(_together, groups, start, _patience, workers.ray, workers.device, workers.jobs)
    else:
        threads = None if "OMP_NUM_THREADS" in os.environ else max(1, len(os.sched_getaffinity(0)) // len(processes))
        starts = [partial(_start, work, process, threads) for process in processes]
        results = in_processes(_together, groups, starts, _patience)
    try:
        with closing(results):
            for place, of_group in results:
                yield (
                    place,
                    [
                        AudiovaeError(f"{named(item.source)}: {result}") if isinstance(result, WorkerError) else result
                        for item, result in zip(groups[place], of_group, strict=True)
                    ],
                )
    finally:  # a process that did not hear that it shall end was killed
        for folder in {item.target.parent for group in groups for item in group if item.target is not None}:
            sweep(folder, again=True)


def _each_process(workers: Workers) -> list[Workers]:
    """Of every process the device that it works on.

    Raises:
        AudiovaeError: there are not so many devices.
    """
    if workers.devices == 1:
        return [workers] * workers.jobs
    kind, _, index = resolve_device(workers.device).partition(":")
    if index:
        raise AudiovaeError(f"--device {workers.device} is a single one; with --devices give --device {kind}")
    names = [kind if kind == "cpu" else f"{kind}:{i}" for i in range(workers.devices)]
    for name in dict.fromkeys(names):
        try:
            resolve_device(name)
        except AudiovaeError as error:
            raise AudiovaeError(f"--devices {workers.devices}: there is no {name} here; give fewer") from error
    return [replace(workers, device=name) for name in names * workers.jobs]


def _patience(items: list[Item]) -> float:
    """Seconds after which work on files counts as hanging: generous, for it ends nothing that goes on."""
    n_bytes = sum(item.source.stat().st_size for item in items if item.source.is_file())
    return PATIENCE_SECONDS + PATIENCE_SECONDS_PER_BYTE * n_bytes


# In the process


def _start(work: GroupWork, workers: Workers, threads: int | None = None) -> None:
    """What each process does first: it learns its work and loads the prior."""
    global _worker
    prior = None
    if workers.model is not None:
        import torch

        from audiovae.prior import AudioVAE

        if threads:
            torch.set_num_threads(threads)
        prior = AudioVAE.from_pretrained(workers.model, resolve_device(workers.device))
    _worker = (prior, work)


def _together(items: list[Item], again: bool) -> list[Result]:
    assert _worker is not None
    prior, work = _worker
    if again:
        items = [replace(item, again=True) for item in items]
    began = time.monotonic()
    try:
        results = work(prior, items)
    except Exception as error:  # one that nobody foresaw is of these files alone, too
        failure = error if isinstance(error, AudiovaeError) else unexpected(error, named(items[0].source))
        return [failure] * len(items)
    share = (time.monotonic() - began) / len(items)
    return [{**result, WORK_SECONDS: share} if isinstance(result, dict) else result for result in results]
