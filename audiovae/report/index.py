"""index.html of a folder of pages: a line for each, by what its head says."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from urllib.parse import quote

from audiovae.errors import PathError
from audiovae.report.markup import write_page

INDEX = "index.html"
_SUMMARY = "An index of pages by audiovae."  # by which an index is told from a page
_HEAD_BYTES = 8192


def write_index(folder: str | Path) -> Path:
    """Write, or write anew, a page that links all pages of audiovae below a folder.

    Raises:
        PathError: it cannot be written, or something else has its name.
    """
    folder = Path(folder)
    target = folder / INDEX
    if os.path.exists(target) and (_head(target) or ("", ""))[1] != _SUMMARY:
        raise PathError(target, "is no index of audiovae's, and was left; the pages beside it are complete")
    rows = ""
    for path in sorted(folder.rglob("*.html")):
        head = None if path.name == INDEX else _head(path)
        if head is not None:
            title, summary = head
            link = quote(os.fsencode(path.relative_to(folder)))
            rows += f'<tr><td><a href="{link}">{title}</a></td><td>{summary}</td></tr>'
    body = f'<div class="scroll"><table class="facts">{rows}</table></div>'
    write_page(target, f"Pages in {folder.absolute().name}", f"{rows.count('<tr>')} pages.", body, _SUMMARY)
    return target


def _head(path: Path) -> tuple[str, str] | None:
    """Title and summary of a page, as markup; None where audiovae did not make it."""
    try:
        with open(path, "rb") as file:
            text = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    found = re.search(
        r'<meta name="generator" content="audiovae [^"]*">\s*<title>([^<]*)</title>\s*'
        r'<meta name="description" content="([^"]*)">',
        text,
    )
    return (html.escape(html.unescape(found[1])), html.escape(html.unescape(found[2]))) if found else None
