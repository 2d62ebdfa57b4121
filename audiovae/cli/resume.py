"""What a verb finds of its outputs: what another process makes, what stands there and stays, what is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiovae.audio import read_comment
from audiovae.batch import Result, Row
from audiovae.cli.arguments import refuse_existing
from audiovae.errors import PathError
from audiovae.locks import LockedError, break_lock, locked_file, sweep


@dataclass(frozen=True)
class Outputs:
    """What is made of one input.

    Attributes:
        main: appears last, so that where it is, all is; its lock stands for all.
        others: stand where it stands.
        pages: are written after it, and nothing is told from them.
        row: tells of them.
        again: what stands there, and its lock on another machine, are of a process that died over it.
    """

    main: Path
    others: Sequence[Path]
    pages: Sequence[Path]
    row: Row
    again: bool


def claimed(outputs: Outputs, options: Any, locks: ExitStack) -> Result | None:
    """Of what is not to be written, that it is there, or why not; else None, and this process has its lock."""
    sweep(outputs.main.parent)
    settled = _settled(outputs, options)
    if settled is not None:
        return settled
    if options.break_lock or outputs.again:
        break_lock(outputs.main)
    try:
        locks.enter_context(locked_file(outputs.main))
    except LockedError as error:
        return {"output": outputs.row["output"], "skipped": True, "locked": error.reason} if options.resume else error
    except PathError as error:
        return error
    return _settled(outputs, options)  # another process may have made it meanwhile


def _settled(outputs: Outputs, options: Any) -> Result | None:
    """Of what is not to be written, that it is there, or why not; else None."""
    if outputs.again:
        return None
    if options.resume:
        if outputs.main in getattr(options, "anew", ()) or not os.path.exists(outputs.main):
            return None  # what stands beside it is left from the run that was stopped
        for path in outputs.others:
            if not os.path.exists(path):
                return PathError(outputs.main, f"exists already, but {path} does not; --overwrite makes both")
        return {**outputs.row, "skipped": True}
    try:
        for path in (outputs.main, *outputs.others, *outputs.pages):
            refuse_existing(path, options, "--overwrite replaces it, --resume makes only what is missing")
    except PathError as error:
        return error
    return None


def check_same_options(paths: Iterable[Path], options: Any, verb: str) -> set[Path]:
    """Outputs in formats without tags, which do not tell how they were made: they are made anew, and that is said.

    Args:
        options: `made` is what made them if they were made now.
        verb: with which all that it made begins.

    Raises:
        PathError: an output that is to stay was made with other options, so far as it tells.
    """
    untold = []
    for path in paths:
        before = read_comment(path) if os.path.exists(path) else ""
        if before is None:
            untold.append(path)
        elif before.startswith(verb) and before != options.made:
            raise PathError(path, f"was made by {before}; give the same options, --overwrite or another output")
    if untold and not options.quiet:
        others = f" and {len(untold) - 1} more" if len(untold) > 1 else ""
        print(
            f"audiovae: {untold[0]}{others}: made anew, as the format has no tags that tell how it was made",
            file=sys.stderr,
        )
    return set(untold)
