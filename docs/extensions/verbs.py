"""The directive `verbs`: the command line as its own parsers know it, every verb with all its options and defaults."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from audiovae.cli.main import VERBS, Parser, _HelpFormatter, module_of
from audiovae.settings import MODEL_SETTINGS


class Verbs(SphinxDirective):
    """Sections, one for each verb."""

    def run(self) -> list[nodes.Node]:
        place = nodes.section()
        place.document = self.state.document
        self.state.nested_parse(StringList(list(pages()), "verbs"), 0, place, match_titles=True)
        return place.children


def pages() -> Iterator[str]:
    """All of it as reStructuredText."""
    for verb, what in VERBS.items():
        parser = parser_of(verb)
        yield from heading(verb, "-")
        yield from [f"{escaped(what[0].upper() + what[1:])}.", "", f".. program:: audiovae {verb}", ""]
        yield from ["::", "", f"    {usage(verb, parser)}", ""]
        yield from groups(parser)
        if verb == "train":
            yield from sizes()


def sizes() -> Iterator[str]:
    """Of `train`: the options that a type of model has beside those of FrameVAE, which stand above."""
    above = described(parser_of("train"))
    for kind in list(MODEL_SETTINGS)[1:]:
        own = [a for a in actions(parser_of("train", kind)) if described_as(a) not in above and "vae." in a.dest]
        yield from [f".. program:: audiovae train --type {kind}", "", f"**--type {kind}**, what is its own:", ""]
        for action in own:
            yield from option(action)
    yield from [".. program:: audiovae", ""]


def described(parser: Parser) -> set[tuple[str, str]]:
    return {described_as(action) for action in actions(parser)}


def described_as(action: argparse.Action) -> tuple[str, str]:
    return action.dest, f"{action.default}{action.help}"


def parser_of(verb: str, kind: str = "FrameVAE") -> Parser:
    """As `audiovae VERB --help` has it."""
    Parser.given = ["--type", kind]
    parser = Parser(prog=f"audiovae {verb}", allow_abbrev=False, formatter_class=_HelpFormatter)
    module_of(verb).add_arguments(parser)
    return parser


def actions(parser: Parser) -> list[argparse.Action]:
    return [a for a in parser._actions if a.help is not argparse.SUPPRESS and a.dest != "help"]


def usage(verb: str, parser: Parser) -> str:
    """What has to be given."""
    needed = [f"{a.option_strings[0]} {metavar(a)}" for a in actions(parser) if a.option_strings and a.required]
    given = [metavar(a) + " ..." * (a.nargs in ("+", "*")) for a in actions(parser) if not a.option_strings]
    return " ".join(["audiovae", verb, *given, *needed, "[option ...]"])


def groups(parser: Parser) -> Iterator[str]:
    """Options under the headings of their groups."""
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action in actions(parser)]
        if not shown:
            continue
        if group.title not in ("positional arguments", "options"):
            yield from [f"**{escaped(group.title or '')}**", ""]
        for action in shown:
            yield from option(action)


def option(action: argparse.Action) -> Iterator[str]:
    """One option: its names, its value, what it does, its default."""
    value = "" if action.nargs == 0 else f" {value_of(action)}"
    names = ", ".join(name + value for name in action.option_strings) or metavar(action)
    yield from [f".. option:: {names}", ""]
    text = escaped(" ".join(str(action.help).split()))
    yield from [f"    {text[0].upper()}{text[1:].rstrip('.')}{default(action)}.", ""]


def metavar(action: argparse.Action) -> str:
    return str(action.metavar or (action.dest if not action.option_strings else action.dest.rpartition(".")[2].upper()))


def value_of(action: Any) -> str:
    name = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else metavar(action)
    return {"+": f"{name} ...", "*": f"[{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def default(action: argparse.Action) -> str:
    """Its default in brackets; nothing of a switch, and where there is none."""
    if not action.option_strings or action.nargs == 0:
        return ""
    if action.required:
        return " (required)"
    value = action.default
    if value in (None, "", argparse.SUPPRESS, [], ()):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)
    return f" (default: ``{text}``)"


def heading(text: str, line: str) -> list[str]:
    return [f".. _{text}:", "", text, line * len(text), ""]


def escaped(text: str) -> str:
    """Plain text as reStructuredText; what stands in backticks, and names of options, are literal."""
    parts = re.split(r"`([^`]+)`|(?<![\w-])(--[a-z][\w.-]*\w)", text)
    texts = (re.sub(r"([\\*|_<>])", r"\\\1", part) for part in parts[::3])
    literals = (f"``{quoted or option}``" for quoted, option in zip(parts[1::3], parts[2::3], strict=True))
    return "".join(part for pair in itertools.zip_longest(texts, literals, fillvalue="") for part in pair)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("verbs", Verbs)
    return {"parallel_read_safe": True}
