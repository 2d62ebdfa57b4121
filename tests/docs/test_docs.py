"""The documentation builds without a warning and without a network, is whole, and what it shows runs."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import audiovae
import audiovae.separation
from audiovae.cli.main import VERBS, Parser, module_of

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NEEDED = ("sphinx", "myst_nb", "furo", "ipykernel", "espeakng_loader")
pytestmark = [
    pytest.mark.xdist_group("docs"),  # built once
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)), reason="needs pip install 'audiovae[docs,demo]'"
    ),
]
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "notebooks" and path.name != "latents.md")
WITH_CODE = [
    path
    for path in PAGES
    if path.name != "export.md" and re.search(r"^```python\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
]


def run(*arguments: str, cwd: Path) -> str:
    """Both streams of a command of this tree's Python, which must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, their notebooks executed; a warning or a cell that fails is an error."""
    target = tmp_path_factory.mktemp("docs")
    run("-m", "sphinx", "-W", "-q", "-b", "html", "-d", "doctrees", str(DOCS), "html", cwd=target)
    return target / "html"


@pytest.fixture(scope="module")
def inventory(site: Path) -> set[str]:
    """Names of the Python domain that have a place in the pages."""
    from sphinx.util.inventory import InventoryFile

    content = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    return {name for domain, names in content.data.items() if domain.startswith("py:") for name in names}


class Links(HTMLParser):
    """What a page fetches, what it links to, and where it can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a":
            self.linked += [found["href"]] if "href" in found else []
        else:
            self.fetched += [found[name] for name in ("src", "href", "srcset", "data", "poster") if name in found]
        if tag == "iframe" and "srcdoc" in found:
            self.feed_inner(found["srcdoc"])

    def feed_inner(self, content: str) -> None:
        inner = Links.__new__(Links)
        HTMLParser.__init__(inner)
        inner.fetched, inner.linked, inner.places = [], [], set()
        inner.feed(content)
        self.fetched += inner.fetched


def outside(address: str) -> bool:
    return re.match(r"(?:\w+:)?//", address) is not None


def test_no_page_fetches_anything_from_outside(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    fetched = {page.name: [address for address in Links(page).fetched if outside(address)] for page in pages}
    assert {name: addresses for name, addresses in fetched.items() if addresses} == {}
    for path in [*site.rglob("*.css"), *site.rglob("*.js")]:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import|fetch\(|importScripts\(|\.src ?=)\s*[\"']?(?:https?:)?//.*", text) == []


def test_every_link_between_pages_leads_somewhere(site: Path) -> None:
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html")}
    dead = []
    for page, links in pages.items():
        for address in links.linked:
            path, _, place = address.partition("#")
            if outside(address) or address.startswith(("mailto:", "data:")):
                continue
            target = (page.parent / path).resolve() if path else page
            if target not in pages:
                if not target.exists():
                    dead.append((page.name, address))
            elif place and place not in pages[target].places:
                dead.append((page.name, address))
    assert dead == []


def test_every_public_name_is_documented(inventory: set[str]) -> None:
    modules = {name for name in audiovae.__all__ if type(getattr(audiovae, name)).__name__ == "module"}
    names = {f"audiovae.{name}" for name in audiovae.__all__ if name not in modules and not name.startswith("_")}
    names |= {f"audiovae.separation.{name}" for name in audiovae.separation.__all__}
    assert len(names) > 100
    assert sorted(names - inventory) == []


def test_every_option_of_every_verb_stands_in_the_reference(site: Path) -> None:
    text = (site / "cli.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'id="cmdoption-audiovae-([\w.-]+)"', text))
    for verb in VERBS:
        parser = Parser(prog=verb, allow_abbrev=False)
        Parser.given = []
        module_of(verb).add_arguments(parser)
        for action in parser._actions:
            if action.help is not argparse.SUPPRESS and action.dest != "help" and action.option_strings:
                name = action.option_strings[-1].lstrip("-")
                assert re.sub(r"[^\w.-]", "-", f"{verb}-{name}").lower() in {place.lower() for place in shown}, name


def test_the_python_of_the_pages_runs(tmp_path: Path, tone_folder: Callable[..., Path]) -> None:
    """Each page by itself, one after another in one process; that of export with what is exported, in its tests."""
    tone_folder(tmp_path / "recordings", n_speakers=4)  # "any folder of sound files"
    scripts = [tmp_path / f"{page.stem}.py" for page in WITH_CODE]
    assert len(scripts) >= 4
    for page, script in zip(WITH_CODE, scripts, strict=True):
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        script.write_text("\n".join(blocks), encoding="utf-8")
    run("-c", "import runpy, sys; [runpy.run_path(path) for path in sys.argv[1:]]", *map(str, scripts), cwd=tmp_path)


def test_the_verbs_and_options_that_pages_name_exist() -> None:
    known: dict[str, set[str]] = {}
    for verb in VERBS:
        parser = Parser(prog=verb, allow_abbrev=False)
        Parser.given = []
        module_of(verb).add_arguments(parser)
        known[verb] = {name for action in parser._actions for name in action.option_strings}
    commands = 0
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            for verb, rest in re.findall(r"\baudiovae ([a-z]+)\b([^|&#\n]*)", block):
                assert verb in {*VERBS, "help", "completion"}, f"{path.name}: {verb}"
                given = set(re.findall(r"(?<=\s)--?[a-z][\w.-]*", rest))
                assert given <= known.get(verb, given), f"{path.name}: {verb}{rest}"
                commands += 1
    assert commands > 10


def test_the_doctests_pass(site: Path) -> None:
    """With what was read for the pages; notebooks are not executed again."""
    said = run("-m", "sphinx", "-b", "doctest", "-d", "doctrees", str(DOCS), "doctest", cwd=site.parent)
    assert int(re.search(r"(\d+) tests\n", said)[1]) > 5  # type: ignore[index]
    assert "0 failures in tests" in said
