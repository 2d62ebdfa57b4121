"""Many inputs, one after another or in several processes and devices: each fails or succeeds by itself."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
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
    """

    source: Path
    name: str
    target: Path | None = None


@dataclass(frozen=True)
class Workers:
    """Who works on a batch.

    Attributes:
        model: the prior that each process loads; None where none is needed.
        device: that it is loaded on.
        jobs: processes that work at the same time.
        devices: per node, or processes on a CPU, that share the inputs; above 1, the program is started once for each.
        nodes: machines, each of which runs the program.
    """

    model: str | None
    device: str = "cpu"
    jobs: int = 1
    devices: int = 1
    nodes: int = 1


Row = dict[str, Any]  # what is told of an item, ready for JSON
Result = Row | AudiovaeError  # that, or what went wrong with it
Work = Callable[["AudioVAE | None", Item], Row]
GroupWork = Callable[["AudioVAE | None", list[Item]], list[Result]]  # a result for each


@dataclass(frozen=True)
class Done:
    """What became of an item, told as soon as it is known.

    Attributes:
        row: what the work gave, with the name of the file; or "error".
        rank: of the process that tells it, among those on several devices.
        n_items: that this process works on in all.
    """

    row: Row
    rank: int
    n_items: int


_worker: tuple[AudioVAE | None, GroupWork] | None = None


def run_batch(
    items: list[Item], work: Work, workers: Workers, seed: int = 0, told: Callable[[Done], None] = lambda done: None
) -> list[Row]:
    """Call `work` for every item, and return a row for each: what it gave with its WORK_SECONDS, or "error".

    Args:
        work: a function of a module, or a `functools.partial` of one.
        seed: the random numbers of an item follow from it and from its name, so neither the order nor the number of
            jobs changes a result.
        told: is called as soon as an item is done.

    Raises:
        AudiovaeError: there is no such model or device.
    """
    return run_groups([[item] for item in items], partial(_alone, work, seed), workers, told)


def run_groups(
    groups: list[list[Item]], work: GroupWork, workers: Workers, told: Callable[[Done], None] = lambda done: None
) -> list[Row]:
    """The same for groups of items that are worked on together, shared out among devices.

    Returns:
        the rows in the order of the groups; none in any process but the first.
    """
    rank, n_ranks = 0, workers.devices * workers.nodes
    if n_ranks == 1 or not int(os.environ.get("LOCAL_RANK", 0)):
        _start(work, workers)  # before there are other processes: a model that cannot be loaded is refused once
    if n_ranks > 1:
        rank, device = _launch(workers)
        workers = replace(workers, device=device)
        _start(work, workers)
    share = groups[rank::n_ranks]
    n_items = sum(map(len, share))
    several = workers.jobs > 1 and len(share) > 1
    results = _in_processes(share, work, workers) if several else map(_together, share)
    rows: list[list[Row]] = []
    for group, of_group in zip(share, results, strict=True):
        rows.append([])
        for item, result in zip(group, of_group, strict=True):
            row = {"error": " ".join(str(result).split())} if isinstance(result, AudiovaeError) else result
            rows[-1].append({"file": named(item.source), **row})
            told(Done(rows[-1][-1], rank, n_items))
    everything = [rows] if n_ranks == 1 else _gather(rows, rank, n_ranks)
    if rank > 0:
        return []
    return [row for i in range(len(groups)) for row in everything[i % n_ranks][i // n_ranks]]


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


def _in_processes(groups: list[list[Item]], work: GroupWork, workers: Workers) -> Iterator[list[Result]]:
    threads = max(1, (os.cpu_count() or 1) // (workers.jobs * workers.devices))
    together = partial(_first_started, work, workers, threads)
    try:
        with closing(in_processes(together, groups, workers.jobs, _patience)) as of_groups:
            for group, results in zip(groups, of_groups, strict=True):
                yield [
                    AudiovaeError(f"{named(item.source)}: {result}") if isinstance(result, WorkerError) else result
                    for item, result in zip(group, results, strict=True)
                ]
    finally:  # a process that did not hear that it shall end was killed
        for folder in {item.target.parent for group in groups for item in group if item.target is not None}:
            sweep(folder, again=True)


def _patience(items: list[Item]) -> float:
    """Seconds after which work on files counts as hanging: generous, for it ends nothing that goes on."""
    n_bytes = sum(item.source.stat().st_size for item in items if item.source.is_file())
    return PATIENCE_SECONDS + PATIENCE_SECONDS_PER_BYTE * n_bytes


def _first_started(work: GroupWork, workers: Workers, threads: int, items: list[Item]) -> list[Result]:
    """What a process does; the first time it loads the prior."""
    if _worker is None:
        _start(work, workers, threads)
    return _together(items)


def _together(items: list[Item]) -> list[Result]:
    assert _worker is not None
    prior, work = _worker
    began = time.monotonic()
    try:
        results = work(prior, items)
    except Exception as error:  # one that nobody foresaw is of these files alone, too
        failure = error if isinstance(error, AudiovaeError) else unexpected(error, named(items[0].source))
        return [failure] * len(items)
    share = (time.monotonic() - began) / len(items)
    return [{**result, WORK_SECONDS: share} if isinstance(result, dict) else result for result in results]


def _alone(work: Work, seed: int, prior: AudioVAE | None, items: list[Item]) -> list[Result]:
    (item,) = items
    if prior is not None:
        import torch

        digest = hashlib.sha256(f"{seed} {item.name}".encode("utf-8", "surrogateescape")).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
    return [work(prior, item)]


def _launch(workers: Workers) -> tuple[int, str]:
    """Start the other processes as training does; the rank of this one and its device.

    Raises:
        AudiovaeError: there are not so many devices or nodes.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    devices, nodes = workers.devices, workers.nodes
    accelerator, _, index = resolve_device(workers.device).partition(":")
    if index:
        single = f"--device {workers.device} is a single one"
        raise AudiovaeError(f"{single}; with --devices and --nodes give --device {accelerator}")
    # One process may have far more to do than another.
    patient = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=365))
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=patient)
        fabric.launch()
    except (MisconfigurationException, ValueError) as error:
        raise AudiovaeError(f"--devices {devices} --nodes {nodes}: {error}") from error
    return fabric.global_rank, str(fabric.device)


def _gather(rows: list[list[Row]], rank: int, n_ranks: int) -> list[list[list[Row]]]:
    """The rows of all processes, in the first of them."""
    import torch.distributed

    everything: list[Any] = [None] * n_ranks
    torch.distributed.gather_object(rows, everything if rank == 0 else None)
    return everything
