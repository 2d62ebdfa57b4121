"""audiovae import dvae CHECKPOINT CONFIG -o MODEL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.locks import break_lock, locked_folder


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("collection", choices=["dvae"], help="where the checkpoint is from: dvae, the DVAE collection")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="its weights (.pt); nothing is unpickled")
    parser.add_argument("configuration", metavar="CONFIG", help="the .ini file that it was trained with")
    parser.add_argument("-o", "--output", type=arguments.path, metavar="MODEL", required=True, help="model folder")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    arguments.add_break_lock(parser)
    arguments.add_common(parser)


def run(options: Any) -> int:
    from audiovae.cli.batch import print_json
    from audiovae.dvae import card_of, import_dvae

    target = Path(options.output)
    arguments.refuse_existing(target, options)
    prior = import_dvae(options.checkpoint, options.configuration)
    if options.break_lock:
        break_lock(target)
    with locked_folder(target):
        prior.save_pretrained(target, card_of(prior, options.checkpoint, options.configuration))
    n_weights = sum(parameter.numel() for parameter in prior.parameters())
    if options.json:
        print_json({"model": str(target), "kind": prior.kind, "weights": n_weights, "hash": prior.model_hash()})
    elif not options.quiet:
        print(f"{target}: {prior.kind}, {n_weights:,} weights, {prior.sample_rate} Hz")
    return 0
