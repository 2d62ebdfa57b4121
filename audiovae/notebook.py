"""For notebooks: a bar of what is done, a table of scores, a report's page.

audiovae.enhance(wave, 48000, progress=Bar())
Table({path.name: evaluate_file(prior, path).values for path in paths})
Page("report.html")
"""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiovae.errors import PathError
from audiovae.metrics import METRICS, Estimate, estimate, summarise
from audiovae.training.loop import Progress

_SECONDS = 0.2  # between two looks of a bar


class Bar:
    """How far something is: the `progress` of `enhance`, `separate`, `fit` and `prepare`.

    Is seen in a notebook, from the first call on; elsewhere nothing is shown.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown = -_SECONDS
        self._share, self._text = 0.0, ""
        self._handle: Any = None

    def __call__(self, done: int | float | Progress, total: int | None = None) -> None:
        """Args: done: a share, or a number where there is a total."""
        if isinstance(done, Progress):
            elbo = "" if done.elbo is None else f", validation NLL + KL {-done.elbo:.1f}"
            self._text = f"step {done.step} of {done.steps}, loss {done.loss:.1f}{elbo}"
            self._share = done.step / done.steps
        else:
            self._text = "" if total is None else f"{done:.0f} of {total}"
            self._share = done / (1.0 if total is None else max(1, total))
        if self._share >= 1 or time.monotonic() - self._shown > _SECONDS:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            return
        if not hasattr(get_ipython(), "kernel"):  # a terminal
            return
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def __repr__(self) -> str:
        seconds = time.monotonic() - self._began
        if self._share >= 1:
            when = f"{seconds:.0f} s"
        else:
            when = f"{seconds * (1 - self._share) / self._share:.0f} s left" if self._share else "begins"
        return ", ".join(part for part in (f"{100 * self._share:.0f} %", self._text, when) if part)

    def _repr_html_(self) -> str:
        return f'<progress value="{self._share:.3f}" max="1"></progress> {html.escape(repr(self))}'


class Table:
    """Metrics of files by name, as of `evaluate_file` or `audiovae.metrics.compare`, and their means."""

    def __init__(self, values: Mapping[str, Mapping[str, float]]) -> None:
        means = summarise(values.values())
        each = {name: {key: estimate([value]) for key, value in of_file.items()} for name, of_file in values.items()}
        rows: dict[str, Mapping[str, Estimate]] = {**each, f"mean of {len(values)}": means}
        self._rows = [["", *(METRICS[key].title for key in means)]]
        self._rows += [[name, *(str(row[key]) if key in row else "" for key in means)] for name, row in rows.items()]

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in self._rows)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        heading, *rows = ([html.escape(cell) for cell in row] for row in self._rows)
        head = "".join(f"<th>{cell}</th>" for cell in heading)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Page:
    """A page such as `audiovae.write_report` writes, as a whole in the notebook.

    Args:
        path: of the page.
        height: in pixels.

    Raises:
        PathError: it cannot be read.
    """

    def __init__(self, path: str | Path, height: int = 700) -> None:
        try:
            self._content = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PathError(path, "is no page that can be read; write_report() writes one") from error
        self._path, self._height = path, height

    def __repr__(self) -> str:
        return f"Page({str(self._path)!r})"

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self._content)}" style="width: 100%; height: {self._height}px; border: 0">'
            "</iframe>"
        )
