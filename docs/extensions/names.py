"""Python names as users know them, and docstrings as they are read in the code.

What the code calls audiovae.prior.AudioVAE is documented as audiovae.AudioVAE. Docstrings are plain text with
backticks: the bars and stars of |x|^2 and `[*sample, frame]` mean themselves.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import audiovae
import audiovae.separation


def public_names() -> dict[str, str]:
    """The public name of every public class or function by the one under which it was defined."""
    found = {}
    for module in (audiovae.separation, audiovae):
        for name in module.__all__:
            thing = getattr(module, name)
            if str(getattr(thing, "__module__", "")).startswith("audiovae."):
                found[f"{thing.__module__}.{name}"] = f"{module.__name__}.{name}"
    return found


def resolve(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.TextElement) -> nodes.Element | None:
    """The event "missing-reference"."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    head, _, rest = target.rpartition(".")
    public = app.public_names.get(target) or (f"{app.public_names[head]}.{rest}" if head in app.public_names else None)
    python = env.domains["py"]
    for name in (public, f"audiovae.{target}", f"audiovae.separation.{target}"):
        if name in python.objects and name != target:
            return python.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, content)
    return None


def as_plain_text(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """The event "autodoc-process-docstring", before Google's sections are read."""
    parts = re.split(r"(`[^`]*`)", "\n".join(lines))
    lines[:] = "".join(part if i % 2 else re.sub(r"([*|])", r"\\\1", part) for i, part in enumerate(parts)).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.public_names = public_names()
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", as_plain_text, priority=400)
    return {"parallel_read_safe": True}
