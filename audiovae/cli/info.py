"""audiovae info [MODEL]."""

from __future__ import annotations

import os
from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.cli.arguments import DEFAULT_MODEL


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="MODEL", help="name of a shipped model, a model folder, or owner/name on the hub"
    )
    arguments.add_common(parser, "model", model=None)


def run(options: Any) -> int:
    from audiovae import saved
    from audiovae.cli.batch import print_json
    from audiovae.prior import AudioVAE

    model = options.name or options.model
    if model is None:
        names = saved.shipped_names()
        if options.json:
            print_json({"shipped": names, "default": DEFAULT_MODEL})
        else:
            print(
                "shipped models: " + ", ".join(f"{name} (default)" if name == DEFAULT_MODEL else name for name in names)
            )
            print("audiovae info MODEL shows one of them, or a model folder of your own")
        return 0
    folder = saved.find(model)
    prior = AudioVAE.from_pretrained(model)
    config = saved.read_config(folder)
    settings = config["vae"]["settings"]
    facts = {
        "model": model,
        "folder": str(folder),
        "kind": config["vae"]["type"],
        "weights": sum(parameter.numel() for parameter in prior.parameters()),
        "sample_rate": prior.sample_rate,
        **config["stft"],
        **settings,
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
        print(_harmless(f"{name:<{width}}  {', '.join(map(str, value)) if isinstance(value, list) else value}"))
    if os.path.isfile(card):
        text = card.read_text(encoding="utf-8", errors="replace")
        text = text.split("---\n", 2)[-1].strip() if text.startswith("---\n") else text
        print("\n" + _harmless(text))
    return 0


def _harmless(text: str) -> str:
    """Without the control characters, some of which command a terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
