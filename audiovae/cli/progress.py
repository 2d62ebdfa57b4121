"""Progress bars and tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_GAP = 3  # between columns


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
    """Print a table to the standard output; the first column is text, the others are numbers.

    Columns that find no room beside each other go on below, with the first one repeated: nothing is broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    columns = [[heading, *(row[i] for row in rows)] for i, heading in enumerate(headings)]
    with console.capture() as printed:  # by itself it leaves with status 1 where nobody reads on
        if title:
            console.print(Text(title, style="italic"))
        for numbers in _side_by_side([max(map(cell_len, column)) for column in columns], console.width):
            table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
            for i in (0, *numbers):
                table.add_column(Text(headings[i]), justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
            for row in rows:
                table.add_row(*(Text(row[i]) for i in (0, *numbers)))
            console.print(table)
        for note in notes:
            console.print(Text(note))
    print(printed.get(), end="")


def _side_by_side(widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns after the first, in their order, in lists that find room beside it."""
    blocks: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        if blocks[-1] and widths[0] + sum(widths[k] + _GAP for k in [*blocks[-1], i]) > room:
            blocks.append([])
        blocks[-1].append(i)
    return blocks
