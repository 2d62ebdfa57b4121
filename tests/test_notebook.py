"""What a notebook shows: its HTML, read as a browser reads it, and its text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import audiovae
from audiovae.errors import PathError
from audiovae.notebook import Bar, Page, Table
from audiovae.training.loop import Progress


class Read(HTMLParser):
    """Texts of cells, and attributes by tag."""

    def __init__(self, shown: object) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.feed(shown._repr_html_())  # type: ignore[attr-defined]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes[tag] = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


@pytest.mark.parametrize(
    ("told", "share", "text"),
    [
        ((0.25,), "0.250", "25 %, "),
        ((3, 12), "0.250", "25 %, 3 of 12, "),
        ((Progress(15, 60, 12.34, -5.06),), "0.250", "25 %, step 15 of 60, loss 12.3, validation NLL + KL 5.1, "),
    ],
)
def test_a_bar_tells_the_share_and_the_time_left(told: tuple, share: str, text: str) -> None:
    bar = Bar()
    assert repr(bar) == "0 %, begins"
    bar(*told)
    read = Read(bar)
    assert read.attributes["progress"] == {"value": share, "max": "1"}
    assert re.fullmatch(re.escape(text) + r"\d+ s left", repr(bar))
    assert repr(bar) in read.cells[0]
    bar(1.0)
    assert re.fullmatch(r"100 %, \d+ s", repr(bar))


def test_a_bar_is_what_enhance_takes_and_silent_where_there_is_no_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    audiovae.enhance(np.random.default_rng(0).standard_normal(4000), 16000, "fast", progress=bar)
    assert repr(bar).startswith("100 %")
    assert capsys.readouterr() == ("", "")


def test_a_table_has_every_file_and_the_means() -> None:
    table = Table({"<a>.wav": {"si_sdr": 3.0, "estoi": 0.5}, "b.wav": {"si_sdr": 5.0}})
    *cells, mean, alone = Read(table).cells
    assert cells == ["SI-SDR (dB)", "ESTOI (0 to 1)", "<a>.wav", "3.00", "0.500", "b.wav", "5.00", "mean of 2"]
    assert (mean, alone) == ("4.00 ± 12.71", "0.500")  # t of one degree of freedom is 12.71
    lines = repr(table).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["<a>.wav", "3.00", "0.500"]


def test_a_page_is_shown_as_it_is(tmp_path: Path) -> None:
    content = '<!doctype html>\n<p title="x">A &amp; B</p>\n'
    (tmp_path / "page.html").write_text(content)
    assert Read(Page(tmp_path / "page.html", 300)).attributes["iframe"] == {
        "srcdoc": content,
        "style": "width: 100%; height: 300px; border: 0",
    }
    with pytest.raises(PathError, match=r"none\.html: is no page that can be read"):
        Page(tmp_path / "none.html")
