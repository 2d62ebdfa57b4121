"""audiovae enhance F... -o OUT."""

from __future__ import annotations

from typing import Any, get_args

import jsonargparse

from audiovae.cli import arguments
from audiovae.cli.arguments import Item
from audiovae.errors import PathError
from audiovae.settings import MethodName, NoiseName


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    arguments.add_inputs(parser)
    arguments.add_output(parser)
    parser.add_argument(
        "--method", choices=get_args(MethodName), default="peem", help="how the latents are found; peem is the best, fast the fastest"
    )
    parser.add_argument(
        "--noise", choices=get_args(NoiseName), default="slow", help="slow: bands that move slowly; stationary: one spectrum"
    )
    parser.add_argument("--rank", type=jsonargparse.typing.PositiveInt, default=8, help="components of a slow or NMF noise")
    parser.add_argument(
        "--residual", metavar="DIR", help="also write what was taken away, by the same names; with it the speech sums to the input"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "32-true", "bf16-mixed"],
        default="auto",
        help="auto: bf16-mixed where the processor multiplies bfloat16",
    )
    arguments.add_labels(parser)
    arguments.add_common(parser, model="speech-16k-separation")


def run(options: Any) -> int:
    from audiovae.cli.batch import print_json, run_batch

    items = arguments.with_targets(arguments.find_inputs(options.inputs), options.output)
    options.residuals = {}
    if options.residual:
        residuals = arguments.with_targets(items, options.residual)
        options.residuals = {item.target: residual.target for item, residual in zip(items, residuals, strict=True)}
        for both in options.residuals.keys() & options.residuals.values():
            raise PathError(both, "would be both speech and residual; choose another --residual")
    rows, status = run_batch(items, enhance, options)
    if options.json:
        print_json(rows)
    return status


def enhance(prior: Any, item: Item, options: Any) -> dict[str, Any]:
    from audiovae.separation import enhancer
    from audiovae.separation.files import enhance_file

    assert item.target is not None
    residual = options.residuals.get(item.target)
    arguments.refuse_existing(residual, options)
    mixed = None if options.precision == "auto" else options.precision == "bf16-mixed"
    separate = enhancer(prior, options.method, options.noise, options.rank, arguments.condition(prior, options), mixed)
    done = enhance_file(separate, item.source, item.target, residual, options.seed)
    row = {"output": str(item.target), **arguments.report_peak(done.speech, options.quiet), "objective": done.objective}
    if done.residual is not None:
        arguments.report_peak(done.residual, options.quiet)
    return row if residual is None else {**row, "residual": str(residual)}
