"""audiovae decode Z... -o OUT."""

from __future__ import annotations

from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.cli.arguments import Item
from audiovae.cli.streams import standard_streams


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    arguments.add_inputs(parser, "latents files (.npz)")
    arguments.add_output(parser)
    arguments.add_resume(parser)
    arguments.add_latents(parser)
    arguments.add_labels(parser)
    arguments.add_common(parser, "model", "device", "seed", "jobs")


@standard_streams(".wav")
def run(options: Any) -> int:
    from audiovae.cli.batch import run_batch

    items = arguments.with_targets(arguments.find_inputs(options.inputs, frozenset({".npz"})), options.output, ".wav")
    rows, status = run_batch(items, decode, options)
    tell(rows, options)
    return status


def tell(rows: list[dict[str, Any]], options: Any) -> None:
    from audiovae.cli.batch import print_json

    if options.json:
        print_json(rows)


def decode(prior: Any, item: Item, options: Any) -> dict[str, Any]:
    from audiovae.files import decode_file

    assert item.target is not None
    writer = decode_file(prior, item.source, item.target, options.latents, arguments.condition(prior, options))
    return {"output": str(item.target), **arguments.report_peak(writer, options.quiet)}
