"""A verb over many inputs, as a terminal sees it: progress, a line for each error, kept rows, an exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from audiovae import batch
from audiovae.batch import WORK_SECONDS, GroupWork, Item, Result, Row, Workers
from audiovae.cli.arguments import kept_rows
from audiovae.cli.progress import bar
from audiovae.cli.resume import Outputs, claimed
from audiovae.errors import named
from audiovae.shards import Job, RowLog, Shard, row_log

Work = Callable[[Any, Item, Any], Row]  # (prior, item, options) -> what to report of it

_NOT_OF_THE_RESULT = (
    "inputs", "output", "device", "jobs", "devices", "shard", "ray", "resume", "overwrite", "break_lock", "json",
    "quiet", "verb", "alone",
)  # fmt: skip


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
    together = partial(batch.alone, partial(_one, work, options, writes), getattr(options, "seed", 0))
    return _run(items, [[i] for i in range(len(items))], together, options, options.model if load_model else None)


def run_groups(
    items: list[Item], groups: list[list[int]], work: Any, options: Any, load_model: bool = True
) -> tuple[list[Row], int]:
    """The same for groups of items that are worked on together.

    Args:
        groups: their places among the items.
        work: (prior, items, options=...) -> the result of each.
        load_model: is it a prior, which every process loads first?
    """
    return _run(items, groups, partial(work, options=options), options, options.model if load_model else None)


def print_json(result: Any) -> None:
    """JSON on the standard output; what is not a number (NaN) becomes null."""
    text = json.dumps(result, indent=2, allow_nan=True, default=str)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))


def settle(new: list[Row], kept: list[Row], options: Any) -> int:
    """Leave for the last line what it tells of rows, see `summary`; the exit status.

    Args:
        kept: of what an earlier run did.
    """
    options.work_seconds, _ = (sum(row.pop(WORK_SECONDS, 0.0) for row in rows) for rows in (new, kept))
    options.rows = [*new, *({"skipped": True} for _ in kept)]
    n_failed = sum("error" in row for row in new)
    return 0 if n_failed == 0 else 2 if n_failed == len(new) + len(kept) else 1


def _run(
    items: list[Item], groups: list[list[int]], work: GroupWork, options: Any, model: str | None
) -> tuple[list[Row], int]:
    folder = kept_rows(options)
    shard = options.shard or Shard()
    workers = Workers(
        model, options.device, options.jobs, options.devices, apart=options.shard is not None, ray=options.ray
    )
    order = {named(item.source): i for i, item in enumerate(items)}
    share = [[items[i] for i in group] for group in shard.share(groups)]
    kept: list[Row] = []
    if folder is None:
        new = _shown(share, work, workers, options)
    else:
        job = Job(options.verb, _deciding(options, model), list(order))
        again = {"resume": options.resume, "overwrite": options.overwrite, "gone": options.break_lock}
        with row_log(folder, job, shard, **again) as log:
            left = [group for group in share if not all(named(item.source) in log.rows for item in group)]
            left.sort(key=lambda group: any(named(item.source) in log.failed for item in group))  # these last
            if options.resume:  # what stands there without a row was made by a process that died before it told so
                left = [[replace(item, again=True) for item in group] for group in left]
            new = _shown(left, work, workers, options, log)
        done = {row["file"] for row in new}
        names = [named(item.source) for group in share for item in group]
        kept = [log.rows[name] for name in names if name not in done]
    rows = sorted([*new, *kept], key=lambda row: order[row["file"]])
    return rows, settle(new, kept, options)


def _deciding(options: Any, model: str | None) -> dict[str, Any]:
    """The options that decide on the results, and the model's hash."""
    kinds = (str, int, float, bool, type(None))
    plain = {
        name: value
        for name, value in vars(options).items()
        if name not in _NOT_OF_THE_RESULT
        and all(isinstance(x, kinds) for x in (value if isinstance(value, list) else [value]))
    }
    if model is None:
        return plain
    from audiovae import saved

    return {**plain, "model_sha256": saved.read_config(saved.find(model))["config_sha256"]}


def _shown(
    groups: list[list[Item]], work: GroupWork, workers: Workers, options: Any, log: RowLog | None = None
) -> list[Row]:
    n_items = sum(map(len, groups))
    with bar(n_items, hidden=options.quiet or len(groups) <= 1) as advance:

        def told(row: Row) -> None:
            if log is not None:
                log.append(row)
            advance()
            if "error" in row:
                print(f"audiovae: {row['error']}", file=sys.stderr)

        return batch.run_groups(groups, work, workers, told)


def _one(work: Work, options: Any, writes: bool, prior: Any, item: Item) -> Result:
    if not writes or item.target is None:
        return work(prior, item, options)
    with ExitStack() as locks:
        outputs = Outputs(item.target, [], [], {"output": str(item.target)}, item.again)
        settled = claimed(outputs, options, locks)
        return work(prior, item, options) if settled is None else settled
