"""Texts of the repository inside the documentation: README, recipes and benchmarks are included, not copied.

The directive `part` takes a section of a file, or one of its tables; MyST's own `include` a whole file. Their links
point at files: here they point at the pages that include these, and a file without a page is named.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PAGES = {
    "README.md": "/index.md",
    "CONTRIBUTING.md": "/contributing.md",
    "CHANGELOG.md": "/changelog.md",
    "benchmarks": "/benchmarks.md",
    "benchmarks/README.md": "/benchmarks.md",
    "recipes/many_machines/README.md": "/many_machines.md",
}
_LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")


class Part(SphinxDirective):
    """A section of a Markdown file of the repository, without its heading."""

    required_arguments = 1  # the heading
    final_argument_whitespace = True
    option_spec = {"file": directives.unchanged, "table": directives.positive_int}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        heading, path = self.arguments[0], self.options.get("file", "README.md")
        source = Path(self.env.srcdir).parent / path
        self.env.note_dependency(str(source))
        lines = section(source.read_text(encoding="utf-8"), heading)
        if lines is None:
            raise self.error(f"{path} has no section {heading!r}")
        if wanted := self.options.get("table"):
            found = tables(lines)
            if len(found) < wanted:
                raise self.error(f"the section {heading!r} of {path} has {len(found)} tables, and not {wanted}")
            lines = found[wanted - 1]
        place = nodes.container()
        text = relinked("\n".join(lines), posixpath.dirname(path))
        self.state.nested_parse(StringList(text.split("\n"), path), 0, place, match_titles=True)
        return place.children


def section(text: str, heading: str) -> list[str] | None:
    """The lines below a heading of the second level."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    return bodies[heading].strip("\n").split("\n") if heading in bodies else None


def tables(lines: list[str]) -> list[list[str]]:
    """Runs of lines that begin with a bar."""
    found: list[list[str]] = []
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            if not above.startswith("|"):
                found.append([])
            found[-1].append(line)
    return found


def relinked(text: str, folder: str) -> str:
    """The text of a file in a folder of the repository, its links as they are here."""

    def again(found: re.Match[str]) -> str:
        picture, shown, target = found.groups()
        if target.startswith(("http", "#")):
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if picture:
            return f"![{shown}](/../{path})"
        page = page_of(path)
        return f"`{path}`" if page is None else f"[{shown}]({page})"

    return _LINK.sub(again, text)


def page_of(path: str) -> str | None:
    """The page that includes a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if page := re.fullmatch(r"docs/(\w+\.md)", path):
        return f"/{page[1]}"
    recipe = re.fullmatch(r"recipes/(\w+)(/README\.md)?", path)
    return None if recipe is None else f"/recipes/{recipe[1]}.md"


def relink(app: Sphinx, relative_path: Path, parent: str, content: list[str]) -> None:
    """The event "include-read"."""
    folder = posixpath.normpath(posixpath.join("docs", relative_path.parent.as_posix()))
    content[0] = relinked(content[0], "" if folder == "." else folder)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("part", Part)
    app.connect("include-read", relink)
    return {"parallel_read_safe": True}
