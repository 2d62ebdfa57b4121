"""audiovae gather FOLDER."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import jsonargparse

from audiovae.cli import arguments


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="FOLDER", help="what -o named for --shard or --ray; or PACKED of prepare")
    arguments.add_common(parser)


def run(options: Any) -> int:
    from audiovae.cli.batch import settle
    from audiovae.shards import gather

    gathered = gather(Path(options.output))
    job = gathered.job
    verb: Any = importlib.import_module(f"audiovae.cli.{job.verb}")
    of_job = Namespace(**job.options, json=options.json, quiet=options.quiet)
    if job.verb == "prepare":
        status = verb.join(Path(options.output), job, of_job)
        options.rows = getattr(of_job, "rows", [])
        return int(status)
    for row in gathered.rows:
        if "error" in row:
            print(f"audiovae: {row['error']}", file=sys.stderr)
    tell_missing(gathered.missing, len(job.files))
    status = settle(gathered.rows, [], options)
    verb.tell(gathered.rows, of_job)
    return 2 if not gathered.rows else max(status, min(len(gathered.missing), 1))


def tell_missing(names: list[str], n_files: int) -> None:
    """One line each, and what to do."""
    for name in names:
        print(f"audiovae: missing: {name}", file=sys.stderr)
    if names:
        print(
            f"audiovae: {len(names)} of {n_files} are missing; the same command with --resume does them",
            file=sys.stderr,
        )
