"""Many inputs, one after another or in several processes and devices: each fails or succeeds by itself."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from typing import Any

from audiovae.cli.arguments import Item, refuse_existing, resolve_device
from audiovae.errors import AudiovaeError

Row = dict[str, Any]
Result = Row | AudiovaeError  # what to report of an item, or what went wrong with it
Work = Callable[[Any, Item, Any], Row]  # (prior, item, options) -> what to report of it
GroupWork = Callable[[Any, list[Item], Any], list[Result]]  # (prior, items, options) -> the result of each

_worker: tuple[Any, _Start] | None = None


def run_batch(items: list[Item], work: Work, options: Any, load_model: bool = True, writes: bool = True) -> tuple[list[Row], int]:
    """Call `work` for every item, show progress, report errors, and return the rows and the exit status.

    `work` must be a function of a module. The random numbers of an item follow from --seed and its name, so neither the
    order nor --jobs changes a result.
    """
    return run_groups([[item] for item in items], partial(_alone, work, writes), options, load_model)


def run_groups(
    groups: list[list[Item]], work: GroupWork, options: Any, load_model: bool = True, devices: int = 1, nodes: int = 1
) -> tuple[list[Row], int]:
    """The same for groups of items that are worked on together, shared out among devices.

    Returns:
        the rows in the order of the groups, and the exit status; in any process but the first no rows, and 0.
    """
    from audiovae.cli.progress import bar

    start = _Start(work, options, load_model)
    rank, n_ranks = 0, devices * nodes
    if n_ranks == 1 or not int(os.environ.get("LOCAL_RANK", 0)):
        start()  # before there are other processes: a model that cannot be loaded is refused once
    if n_ranks > 1:
        rank, options.device = _launch(options, devices, nodes)
        start()
    share = groups[rank::n_ranks]
    results = _in_processes(share, start, devices) if options.jobs > 1 and len(share) > 1 else map(_together, share)
    rows: list[list[Row]] = []
    with bar(sum(map(len, share)), hidden=options.quiet or rank > 0 or len(groups) == 1) as advance:
        for group, of_group in zip(share, results, strict=True):
            rows.append([])
            for item, result in zip(group, of_group, strict=True):
                advance()
                row = {"error": " ".join(str(result).split())} if isinstance(result, AudiovaeError) else result
                rows[-1].append({"file": str(item.source), **row})
                if "error" in row:
                    print(f"audiovae: {row['error']}", file=sys.stderr)
    everything = [rows] if n_ranks == 1 else _gather(rows, rank, n_ranks)
    if rank > 0:
        return [], 0
    all_rows = [row for i in range(len(groups)) for row in everything[i % n_ranks][i // n_ranks]]
    n_failed = sum("error" in row for row in all_rows)
    return all_rows, 0 if n_failed == 0 else 2 if n_failed == len(all_rows) else 1


def print_json(result: Any) -> None:
    """JSON on the standard output; what is not a number (NaN) becomes null."""
    text = json.dumps(result, indent=2, allow_nan=True, default=str)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))


@dataclass(frozen=True)
class _Start:
    """What a process needs to begin; runs in each of them."""

    work: GroupWork
    options: Any
    load_model: bool

    def __call__(self, threads: int | None = None) -> None:
        global _worker
        prior = None
        if self.load_model:
            import torch

            from audiovae.prior import AudioVAE

            if threads:
                torch.set_num_threads(threads)
            prior = AudioVAE.from_pretrained(self.options.model, resolve_device(self.options.device))
        _worker = (prior, self)


def _in_processes(groups: list[list[Item]], start: _Start, devices: int) -> Iterator[list[Result]]:
    jobs = start.options.jobs
    threads = max(1, (os.cpu_count() or 1) // (jobs * devices))
    with ProcessPoolExecutor(jobs, get_context("spawn"), start, (threads,)) as pool:
        yield from pool.map(_together, groups)


def _together(items: list[Item]) -> list[Result]:
    assert _worker is not None
    prior, start = _worker
    try:
        return start.work(prior, items, start.options)
    except AudiovaeError as error:
        return [error] * len(items)


def _alone(work: Work, writes: bool, prior: Any, items: list[Item], options: Any) -> list[Result]:
    (item,) = items
    if writes:
        refuse_existing(item.target, options)
    if prior is not None:
        import torch

        digest = hashlib.sha256(f"{options.seed} {item.name}".encode("utf-8", "surrogateescape")).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
    return [work(prior, item, options)]


def _launch(options: Any, devices: int, nodes: int) -> tuple[int, str]:
    """Start the other processes as training does; the rank of this one and its device.

    Raises:
        AudiovaeError: there are not so many devices or nodes.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    accelerator, _, index = resolve_device(options.device).partition(":")
    if index:
        raise AudiovaeError(f"--device {options.device} is a single one; with --devices and --nodes give --device {accelerator}")
    patient = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=365))  # one process may have far more to do than another
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
