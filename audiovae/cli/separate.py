"""audiovae separate MIX... -o OUT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.cli.arguments import Item
from audiovae.cli.streams import standard_streams
from audiovae.locks import break_lock, locked_file


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    arguments.add_inputs(parser, "sound files of several channels")
    arguments.add_output(parser, files=False)
    parser.add_argument(
        "--sources",
        type=jsonargparse.typing.PositiveInt,
        default=2,
        help="how many there are: one file each, the loudest first",
    )
    arguments.add_common(parser, "device", "seed", "jobs")


@standard_streams()
def run(options: Any) -> int:
    from audiovae.cli.batch import print_json, run_batch

    items = arguments.without_outputs(arguments.find_inputs(options.inputs), options, options.output)
    targets = [Item(item.source, item.name, Path(options.output, item.name)) for item in items]
    rows, status = run_batch(targets, separate, options, load_model=False, writes=False)
    if options.json:
        print_json(rows)
    return status


def separate(prior: None, item: Item, options: Any) -> dict[str, Any]:
    """Write the image of every source at all microphones: NAME-1.wav, NAME-2.wav, ... for NAME.wav."""
    from audiovae.separation.files import separate_file

    assert item.target is not None
    targets = [item.target.with_stem(f"{item.target.stem}-{n + 1}") for n in range(options.sources)]
    for target in targets:
        arguments.refuse_existing(target, options)
    arguments.refuse_inputs(list(targets), [item])
    if options.break_lock:
        break_lock(item.target)
    with locked_file(item.target):
        writers = separate_file(item.source, targets, options.seed, arguments.resolve_device(options.device))
    for writer in writers:
        arguments.report_peak(writer, options.quiet)
    return {"output": [str(writer.path) for writer in writers], "clipped": [writer.clips for writer in writers]}
