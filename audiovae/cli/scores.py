"""The table of scores that `score` and `evaluate` print."""

from __future__ import annotations

import math
import os
from typing import Any

_LONGEST_TABLE = 40  # files; above it only the summary is printed


def print_scores(rows: list[dict[str, Any]], options: Any, title: str) -> None:
    """Print per-file values and their mean with a 95 % interval, or all of it as JSON."""
    from audiovae.metrics import METRICS, summarise

    scored = [row for row in rows if "values" in row]
    for row in scored:
        infinite = {name: "infinite" for name, value in row["values"].items() if math.isinf(value)}
        row["reasons"] = {**row["reasons"], **infinite}  # JSON has no number for it
    summary = summarise([row["values"] for row in scored])
    if options.json:
        from audiovae.cli.batch import print_json

        means = {
            name: {"mean": e.mean, "half_width": e.half_width, "n_files": e.n_files, "unit": METRICS[name].unit}
            for name, e in summary.items()
        }
        print_json({"about": title, "files": rows, "summary": means})
        return
    if options.quiet or not scored:
        return
    from audiovae.cli.progress import print_table

    names = list(summary)
    places = {row["file"]: os.path.abspath(row["file"]) for row in scored}
    parent = os.path.commonpath([os.path.dirname(place) for place in places.values()])
    body = (
        [
            [os.path.relpath(places[row["file"]], parent), *(_cell(row["values"].get(name)) for name in names)]
            for row in scored
        ]
        if len(scored) <= _LONGEST_TABLE
        else []
    )
    body.append([f"mean of {len(scored)} ± 95 %", *(str(summary[name]) for name in names)])
    notes = [
        f"{METRICS[name].heading}: scored on {summary[name].n_files} of {len(scored)} files"
        for name in names
        if summary[name].n_files < len(scored)
    ]
    reasons = sorted({(metric, reason) for row in scored for metric, reason in row["reasons"].items()})
    for metric, reason in reasons:
        files = [row["file"] for row in scored if row["reasons"].get(metric) == reason]
        what = "infinite, not averaged" if reason == "infinite" else f"not scored ({reason})"
        notes.append(f"{METRICS[metric].heading} {what}: " + (files[0] if len(files) == 1 else f"{len(files)} files"))
    print_table(["file", *(METRICS[name].heading for name in names)], body, title, notes)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.1f}"
        if abs(value) >= 100 or math.isinf(value)
        else f"{value:.2f}"
        if abs(value) >= 1
        else f"{value:.3f}"
    )
