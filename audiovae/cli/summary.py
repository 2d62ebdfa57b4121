"""The last line of a verb: where, how many, how much sound in what time, and what was resampled."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

from audiovae.errors import PathError, named


def tell_end(options: Any, wall_seconds: float) -> None:
    """Print it to the error stream, of a verb that left rows of what it did.

    Args:
        options: `rows` are those of the files, as in the verb's JSON; and `work_seconds` what they took, of all
            processes together.
        wall_seconds: since the verb began.
    """
    rows = getattr(options, "rows", [])
    done = [row for row in rows if "seconds" in row]
    n_kept = sum("skipped" in row and "locked" not in row for row in rows)
    if not (done or n_kept):
        return
    place = next((place for name in ("output", "report", "packed") if (place := getattr(options, name, None))), None)
    parts = [f"{_counted(len(done))} of {len(rows)}" if len(done) < len(rows) else _counted(len(done))]
    parts += [f"{n_kept} kept that were there"] if n_kept else []
    sound_seconds = sum(row["seconds"] for row in done)
    if done:
        wall = "" if options.verb == "gather" else f" in {duration(wall_seconds)}"
        parts.append(f"{duration(sound_seconds)} of sound{wall}")
    if sound_seconds and (work_seconds := getattr(options, "work_seconds", 0.0)):
        several = options.verb == "gather" or options.jobs > 1 or options.devices > 1 or options.ray is not None
        of_each = " of each process" if several else ""
        parts.append(f"real-time factor {work_seconds / sound_seconds:.2g}{of_each} without the start")
    rates = Counter(tuple(row["resampled"]) for row in done if "resampled" in row)
    parts += [f"{n} resampled from {rate} to {model_rate} Hz" for (rate, model_rate), n in rates.most_common()]
    print(f"audiovae: {named(place) + ': ' if place else ''}{', '.join(parts)}", file=sys.stderr)


def index_pages(rows: list[dict[str, Any]], options: Any) -> None:
    """Write the index of the folder of pages, where --report named a folder and rows tell of pages."""
    from audiovae.report.index import write_index

    if options.report and os.path.isdir(options.report) and any("report" in row for row in rows):
        try:
            write_index(options.report)
        except PathError as error:  # the pages are there
            print(f"audiovae: {error}", file=sys.stderr)


def duration(seconds: float) -> str:
    """As one reads it: 3.2 s, 5 min 12 s, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _counted(n: int) -> str:
    return f"{n} file" if n == 1 else f"{n} files"
