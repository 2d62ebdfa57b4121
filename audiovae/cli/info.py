"""audiovae info [MODEL]."""

from __future__ import annotations

import os
import re
from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.cli.arguments import DEFAULT_MODEL

_HASH = re.compile(r"\b[0-9a-f]{64}\b")


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="MODEL",
        help="name of a shipped model, a model folder, or owner/name[@revision] on the hub",
    )
    parser.add_argument(
        "--hashes", action="store_true", help="also those of the recordings that it was trained and scored on"
    )
    arguments.add_common(parser, "model", model=None)


def run(options: Any) -> int:
    from audiovae import saved
    from audiovae.cli.batch import print_json
    from audiovae.prior import AudioVAE
    from audiovae.separation.neural.separators import NeuralSeparator

    model = options.name or options.model
    if model is None:
        names, separators = saved.shipped_names(), saved.shipped_names("separators")
        if options.json:
            print_json({"shipped": names, "separators": separators, "default": DEFAULT_MODEL})
        else:
            print(
                "shipped models: " + ", ".join(f"{name} (default)" if name == DEFAULT_MODEL else name for name in names)
            )
            print("shipped separators: " + ", ".join(separators))
            print("audiovae info MODEL shows one of them, or a model folder of your own")
        return 0
    folder = saved.find_any(model)
    config = saved.read_config(folder)
    found = (NeuralSeparator if "separator" in config else AudioVAE).from_pretrained(folder)
    of_prior = config.get("prior", config)
    facts = {
        "model": model,
        "folder": str(folder),
        "kind": found.kind,
        "weights": sum(parameter.numel() for parameter in found.parameters()),
        "sample_rate": found.sample_rate,
        **({"level": "peak"} if found.level_rule == "peak" else {}),
        **of_prior["stft"],
        **(of_prior["vae"]["settings"] if of_prior is config else config["separator"]),
        "hash": config["config_sha256"],
    }
    card = folder / saved.CARD
    if options.json:
        print_json(facts)
        return 0
    if options.quiet:
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        if value not in ({}, None):  # labels, for one, which most models have none of
            print(_harmless(f"{name:<{width}}  {_told(name, value)}"))
    if os.path.isfile(card):
        text = card.read_text(encoding="utf-8", errors="replace")
        text = text.split("---\n", 2)[-1].strip() if text.startswith("---\n") else text
        print("\n" + _harmless(text if options.hashes else _without_hashes(text, model)))
    return 0


def _told(name: str, value: Any) -> str:
    if name == "weights":
        return f"{value:,}"
    if name == "sample_rate":
        return f"{value} Hz"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _without_hashes(card: str, model: str) -> str:
    """A card without the rows of its table that name a recording by its hash, and how to see them."""
    lines = card.splitlines()
    kept = [line for line in lines if not _HASH.search(line)]
    n_hidden = len(lines) - len(kept)
    if n_hidden:
        kept.append(f"({n_hidden} recordings with their hashes: audiovae info {model} --hashes)")
    return "\n".join(kept)


def _harmless(text: str) -> str:
    """Without the control characters, some of which command a terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
