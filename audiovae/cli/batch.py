"""A verb over many inputs, as a terminal sees it: progress, a line for each error, an exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from audiovae import batch
from audiovae.batch import WORK_SECONDS, Done, Item, Result, Row, Workers
from audiovae.cli.arguments import refuse_existing
from audiovae.cli.progress import bar
from audiovae.locks import break_lock, locked_file, sweep

Work = Callable[[Any, Item, Any], Row]  # (prior, item, options) -> what to report of it
GroupWork = Callable[..., list[Result]]  # (prior, items, options=...) -> the result of each


def run_batch(
    items: list[Item], work: Work, options: Any, load_model: bool = True, writes: bool = True
) -> tuple[list[Row], int]:
    """Call `work`, a function of a module, for every item: see `audiovae.batch.run_batch`.

    Args:
        writes: an item whose target exists is an error, unless --overwrite is given; and one that another process
            is just making.

    Returns:
        the rows, and the exit status.
    """
    workers = Workers(options.model if load_model else None, options.device, options.jobs)
    one = partial(_one, work, options, writes)
    return _shown(
        len(items), options, lambda told: batch.run_batch(items, one, workers, getattr(options, "seed", 0), told)
    )


def run_groups(
    groups: list[list[Item]], work: GroupWork, options: Any, devices: int = 1, nodes: int = 1
) -> tuple[list[Row], int]:
    """The same for groups of items that are worked on together, shared out among devices.

    Returns:
        the rows in the order of the groups, and the exit status; in any process but the first no rows, and 0.
    """
    workers = Workers(options.model, options.device, options.jobs, devices, nodes)
    together = partial(work, options=options)
    return _shown(len(groups), options, lambda told: batch.run_groups(groups, together, workers, told))


def print_json(result: Any) -> None:
    """JSON on the standard output; what is not a number (NaN) becomes null."""
    text = json.dumps(result, indent=2, allow_nan=True, default=str)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))


def _shown(n_groups: int, options: Any, run: Callable[[Callable[[Done], None]], list[Row]]) -> tuple[list[Row], int]:
    with bar(1, hidden=options.quiet or n_groups == 1) as advance:

        def told(done: Done) -> None:
            if done.rank == 0:
                advance(total=done.n_items)
            if "error" in done.row:
                print(f"audiovae: {done.row['error']}", file=sys.stderr)

        rows = run(told)
    times = [row.pop(WORK_SECONDS, 0.0) for row in rows]  # which no JSON shall depend on
    options.rows, options.work_seconds = rows, sum(times)  # for the last line, see `summary`
    n_failed = sum("error" in row for row in rows)
    return rows, 0 if n_failed == 0 else 2 if n_failed == len(rows) else 1


def _one(work: Work, options: Any, writes: bool, prior: Any, item: Item) -> Row:
    if not writes or item.target is None:
        return work(prior, item, options)
    sweep(item.target.parent)
    refuse_existing(item.target, options)
    if options.break_lock:
        break_lock(item.target)
    with locked_file(item.target):
        refuse_existing(item.target, options)  # another process may have made it meanwhile
        return work(prior, item, options)
