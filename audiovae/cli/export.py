"""audiovae export MODEL -o DIR, or MODEL --web DIR."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.errors import AudiovaeError, PathError


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="name of a shipped model, a model folder, or owner/name[@revision] on the hub"
    )
    parser.add_argument(
        "-o", "--output", type=arguments.path, metavar="DIR",
        help="folder for encoder.onnx, decoder.onnx, resynthesis.onnx, for a model that streams stream_step.onnx, and "
        "io.json, which says what goes in and out",
    )  # fmt: skip
    parser.add_argument(
        "--web", type=arguments.path, metavar="DIR",
        help="folder for a static page that denoises and resynthesises; serve it with any server of files",
    )  # fmt: skip
    parser.add_argument(
        "--runtime", type=arguments.path, metavar="FOLDER",
        help="with --web: the package onnxruntime-web, where npm cannot bring it",
    )  # fmt: skip
    parser.add_argument(
        "--int8",
        action="store_true",
        help="matrices in 8 bits: a quarter of the size; stream_step.onnx keeps its floats",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    arguments.add_common(parser)


def run(options: Any) -> int:
    if bool(options.output) == bool(options.web):
        raise AudiovaeError("export: give -o DIR for ONNX files, or --web DIR for a page")
    if options.runtime and not options.web:
        raise AudiovaeError("export: --runtime is of the page; give --web DIR with it")
    target = Path(options.output or options.web)
    if target.is_file():
        raise PathError(target, "is a file; name a folder")
    arguments.refuse_existing(target, options)

    from audiovae import saved
    from audiovae.cli.batch import print_json
    from audiovae.export import export, export_page
    from audiovae.prior import AudioVAE

    folder = saved.find(options.model)
    prior = AudioVAE.from_pretrained(folder)
    told = {"name": folder.name, "licence": _licence(saved.read_card(folder))}
    if options.web:
        made = export_page(prior, target, options.int8, **told, runtime=options.runtime)
    else:
        made = export(prior, target, options.int8, **told)
    if options.json:
        print_json({"folder": str(target), "bytes": made.bytes, "left_out": made.left_out})
    elif not options.quiet:
        for name, size in made.bytes.items():
            print(f"{target / name}: {size / 1e6:.2f} MB")
        if options.web:
            print(f"serve it: python -m http.server --bind 127.0.0.1 --directory {target}")
    if not options.quiet:
        for name, reason in made.left_out.items():
            print(f"audiovae: without {name}: {reason}", file=sys.stderr)
    return 0


def _licence(card: str | None) -> str:
    """What the head of a model's card says; empty where it says nothing."""
    found = re.search(r"^license: *(\S+)$", (card or "").split("\n---", 1)[0], re.MULTILINE)
    return found[1] if found else ""
