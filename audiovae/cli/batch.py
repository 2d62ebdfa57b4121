"""Many inputs, one after another or in several processes: each fails or succeeds by itself."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from audiovae.cli.arguments import Item, refuse_existing, resolve_device
from audiovae.errors import AudiovaeError

Row = dict[str, Any]
Work = Callable[[Any, Item, Any], Row]  # (prior, item, options) -> what to report of it

_worker: tuple[Any, _Start] | None = None


def run_batch(items: list[Item], work: Work, options: Any, load_model: bool = True, writes: bool = True) -> tuple[list[Row], int]:
    """Call `work` for every item, show progress, report errors, and return the rows and the exit status.

    `work` must be a function of a module. The random numbers of an item follow from --seed and its name, so neither the
    order nor --jobs changes a result.
    """
    from audiovae.cli.progress import bar

    rows: list[Row] = []
    n_failed = 0
    start = _Start(options, work, load_model, writes)
    results = _in_processes(items, start) if options.jobs > 1 and len(items) > 1 else _here(items, start)
    with bar(len(items), hidden=options.quiet or len(items) == 1) as advance:
        for item, result in zip(items, results, strict=True):
            advance()
            if isinstance(result, str):
                n_failed += 1
                rows.append({"file": str(item.source), "error": result})
                print(f"audiovae: {result}", file=sys.stderr)
            else:
                rows.append({"file": str(item.source), **result})
    return rows, 0 if n_failed == 0 else 2 if n_failed == len(items) else 1


def print_json(result: Any) -> None:
    """JSON on the standard output; what is not a number (NaN) becomes null."""
    text = json.dumps(result, indent=2, allow_nan=True, default=str)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))


@dataclass(frozen=True)
class _Start:
    """What a process needs to begin; runs in each of them."""

    options: Any
    work: Work
    load_model: bool
    writes: bool

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


def _here(items: list[Item], start: _Start) -> Iterator[Row | str]:
    start()
    for item in items:
        yield _one(item)


def _in_processes(items: list[Item], start: _Start) -> Iterator[Row | str]:
    start()  # here as well: a model that cannot be loaded is refused once, not by every process
    threads = max(1, (os.cpu_count() or 1) // start.options.jobs)
    with ProcessPoolExecutor(start.options.jobs, get_context("spawn"), start, (threads,)) as pool:
        yield from pool.map(_one, items)


def _one(item: Item) -> Row | str:
    assert _worker is not None
    prior, start = _worker
    try:
        if start.writes:
            refuse_existing(item.target, start.options)
        if prior is not None:
            import torch

            digest = hashlib.sha256(f"{start.options.seed} {item.name}".encode("utf-8", "surrogateescape")).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
        return start.work(prior, item, start.options)
    except AudiovaeError as error:
        return " ".join(str(error).split())
