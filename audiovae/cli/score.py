"""audiovae score F...."""

from __future__ import annotations

from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.cli.arguments import Item
from audiovae.cli.streams import standard_streams


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    arguments.add_inputs(parser)
    arguments.add_rows(parser)
    parser.add_argument(
        "--samples",
        type=jsonargparse.typing.PositiveInt,
        default=1,
        help="above 1: the importance-weighted bound of so many samples",
    )
    arguments.add_labels(parser)
    arguments.add_common(parser, "model", "device", "seed", "jobs")


@standard_streams()
def run(options: Any) -> int:
    from audiovae.cli.batch import run_batch

    rows, status = run_batch(arguments.find_inputs(options.inputs), score, options)
    tell(rows, options)
    return status


def tell(rows: list[dict[str, Any]], options: Any) -> None:
    from audiovae.cli.scores import print_scores

    arguments.report_rows(rows, options.quiet)
    print_scores(rows, options, "upper bounds of -log p in nats per frame, of the trimmed sound at unit RMS")


def score(prior: Any, item: Item, options: Any) -> dict[str, Any]:
    from audiovae import audio
    from audiovae.evaluation import score_file
    from audiovae.metrics import NotScored

    condition = arguments.condition(prior, options)
    info = audio.inspect(item.source)
    told = {"seconds": info.seconds, **arguments.resampling(info.sample_rate, prior.sample_rate)}
    try:
        values = score_file(prior, item.source, options.samples, condition)
        return {"values": values, "reasons": {}, **told}
    except NotScored as reason:
        return {"values": {}, "reasons": {"bound": str(reason)}, **told}
