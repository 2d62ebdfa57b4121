"""Progress bars and tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(total: int, hidden: bool = False, what: str = "files") -> Iterator[Callable[..., None]]:
    """Show a bar with the time left on the error stream; yields advance(n=1, text=..., total=...)."""
    if hidden:
        yield lambda *amount, **changes: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
    )  # fmt: skip
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task("", total=total, text="")

    def advance(n: int | float = 1, **changes: Any) -> None:
        progress.start()  # not before something is done: an error that comes first stands alone
        progress.update(task, advance=n, **changes)

    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Print a table to the standard output; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(width=None if Console().is_terminal else 120)
    with console.capture() as printed:  # by itself it leaves with status 1 where nobody reads on
        console.print(table)
        for note in notes:
            console.print(Text(note))
    print(printed.get(), end="")
