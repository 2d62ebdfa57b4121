"""audiovae resynthesize F... -o OUT."""

from __future__ import annotations

from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.cli.arguments import Item
from audiovae.cli.streams import standard_streams


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    arguments.add_inputs(parser)
    arguments.add_output(parser)
    arguments.add_resume(parser)
    parser.add_argument(
        "--phase",
        choices=["original", "griffin-lim"],
        default="original",
        help="keep the phase of the input (an oracle), or estimate it",
    )
    arguments.add_latents(parser)
    arguments.add_labels(parser)
    arguments.add_common(parser, "model", "device", "seed", "jobs")


@standard_streams(".wav")
def run(options: Any) -> int:
    from audiovae.cli.batch import run_batch

    found = arguments.without_outputs(arguments.find_inputs(options.inputs), options, options.output)
    items = arguments.with_targets(found, options.output)
    rows, status = run_batch(items, resynthesize, options)
    tell(rows, options)
    return status


def tell(rows: list[dict[str, Any]], options: Any) -> None:
    from audiovae.cli.batch import print_json

    arguments.report_rows(rows, options.quiet, above="which the output lacks")
    if options.json:
        print_json(rows)


def resynthesize(prior: Any, item: Item, options: Any) -> dict[str, Any]:
    from audiovae.files import resynthesize_file

    assert item.target is not None
    writer = resynthesize_file(
        prior, item.source, item.target, options.phase, options.latents, arguments.condition(prior, options)
    )
    return {"output": str(item.target), **arguments.report_peak(writer, options.quiet, prior.sample_rate)}
