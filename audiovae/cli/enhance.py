"""audiovae enhance F... -o OUT."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jsonargparse

from audiovae.cli import arguments, live
from audiovae.cli.arguments import Item
from audiovae.cli.batch import Result, print_json, run_groups
from audiovae.cli.resume import Outputs, check_same_options, claimed
from audiovae.cli.streams import standard_streams
from audiovae.cli.summary import index_pages
from audiovae.errors import AudiovaeError, PathError, named
from audiovae.settings import MethodName, NoiseName

if TYPE_CHECKING:  # torch takes long to load, and help needs none
    from audiovae.separation import Separator
    from audiovae.separation.files import Enhanced, FirstBlock

_MADE_BY = "audiovae enhance"
GPU_BATCH = 8
LARGEST_RANK = 512  # of as many frequencies as there are
LONG_SECONDS = 60  # of sound, from which on they are what progress counts where no files can be counted


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    positive = jsonargparse.typing.PositiveInt
    arguments.add_inputs(parser)
    arguments.add_output(parser)
    arguments.add_resume(parser, arguments.ANEW)
    parser.add_argument(
        "--method",
        choices=get_args(MethodName),
        help="how the latents are found, each by its own shipped prior unless --model names one; peem, which is taken "
        "where none is named, is the best, fast the fastest and that of --stream",
    )
    parser.add_argument(
        "--noise",
        choices=get_args(NoiseName),
        default="slow",
        help="slow: bands that move slowly; nmf: a factorisation; stationary: one spectrum",
    )
    parser.add_argument("--rank", type=positive, default=8, help="components of a slow or NMF noise")
    parser.add_argument(
        "--residual",
        type=arguments.path,
        metavar="DIR",
        help="also write what was taken away, by the same names; with it the speech sums to the input",
    )
    arguments.add_report(parser)
    parser.add_argument(
        "--precision",
        choices=["auto", "32-true", "bf16-mixed"],
        default="auto",
        help="auto: bf16-mixed where the processor multiplies bfloat16",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        help=f"recordings side by side; by default {GPU_BATCH} on a GPU, and 1 on a CPU, which gains little by more",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="with - and -o -: speech comes out while the sound comes in (WAV or --raw)",
    )
    parser.add_argument("--raw", metavar="RATE[,s16|f32[,CHANNELS]]", help="with --stream: samples without a header")
    parser.add_argument(
        "--lookahead",
        type=jsonargparse.typing.NonNegativeInt,
        help="with --stream: frames of 16 ms that each one waits for; 1 where none are named",
    )
    arguments.add_labels(parser)
    arguments.add_common(parser, "model", "device", "seed", "jobs", model=None)


@standard_streams(".wav")
def run(options: Any) -> int:
    if options.stream:
        return live.run(options)
    for name in ("raw", "lookahead"):
        if getattr(options, name) is not None:
            raise AudiovaeError(f"enhance: --{name} is of --stream; leave it out, or stream: --stream - -o -")
    options.method = options.method or "peem"
    from audiovae.separation import METHODS
    from audiovae.separation.files import groups_by_length

    if options.rank > LARGEST_RANK:
        raise AudiovaeError(f"enhance: --rank must be at most {LARGEST_RANK}, got {options.rank}")
    options.model = options.model or METHODS[options.method].prior
    kept = arguments.kept_rows(options)
    found = arguments.find_inputs(options.inputs)
    items = arguments.without_outputs(found, options, options.output, options.residual)
    items = arguments.with_targets(items, options.output)
    options.residuals = arguments.beside(items, options.residual, option="--residual")
    options.reports = arguments.beside(items, options.report, ".html")
    _check_distinct(items, options)
    arguments.refuse_inputs([*options.residuals.values(), *options.reports.values()], items)
    options.made = _made_by(options)
    targets = [item.target for item in items if item.target]
    options.anew = check_same_options(targets, options, _MADE_BY) if options.resume and not kept else set()
    groups = groups_by_length(
        [item.source for item in items], options.batch or arguments.batch_size(options, GPU_BATCH)
    )
    options.alone = len(groups) == 1
    rows, status = run_groups(items, groups, enhance, options)
    tell(rows, options)
    return status


def tell(rows: list[dict[str, Any]], options: Any) -> None:
    arguments.report_rows(rows, options.quiet, above="whose gain follows from what was found below")
    index_pages(rows, options)
    if options.json:
        print_json(rows)


def _made_by(options: Any) -> str:
    """What the tags of an output say of how it was made: all that decides on its sound but the input."""
    from audiovae import saved

    model = saved.read_config(saved.find(options.model))["config_sha256"]
    words = [f"--method {options.method} --noise {options.noise} --rank {options.rank} --seed {options.seed}"]
    words += [f"--label {' '.join(options.label)}"] if options.label else []
    return f"{_MADE_BY} {' '.join(words)}, model {model[:16]}"


def _check_distinct(items: list[Item], options: Any) -> None:
    """Raises PathError where two outputs of different kinds have one name."""
    kinds: dict[Path | None, str] = {item.target: "speech" for item in items}
    for kind, others in (("residual", options.residuals), ("report", options.reports)):
        for path in others.values():
            if kinds.get(path, kind) != kind:
                raise PathError(path, f"would be both {kinds[path]} and {kind}; choose another --{kind}")
            kinds[path] = kind


def enhance(prior: Any, items: list[Item], options: Any) -> list[Result]:
    """Enhance files side by side.

    One that is not to be written runs along if others are: they come out to the last bit as if it were, so a resumed
    run ends with the bytes of an uninterrupted one.
    """
    with ExitStack() as locks:
        settled = {item: result for item in items if (result := claimed(_outputs(item, options), options, locks))}
        return _enhance(prior, items, settled, options)


def _enhance(prior: Any, items: list[Item], results: dict[Item, Result], options: Any) -> list[Result]:
    """Enhance those without a result."""
    from audiovae.cli.progress import bar
    from audiovae.separation import enhancer
    from audiovae.separation.files import Enhanced, NoisyFile, enhance_files, readable_seconds

    mixed = None if options.precision == "auto" else options.precision == "bf16-mixed"
    separate = enhancer(
        prior,
        options.method,
        options.noise,
        options.rank,
        arguments.condition(prior, options) if options.label else None,
        mixed,
    )
    missing = [item for item in items if item not in results]
    if missing:
        files = [
            NoisyFile(
                item.source,
                item.target if item in missing else None,
                options.residuals.get(item.target),
                options.seed,
                comment=options.made,
                keep_first=item in missing and item.target in options.reports,
            )
            for item in items
        ]
        seconds = sum(readable_seconds(item.source) for item in items)
        hidden = options.quiet or not options.alone or seconds < LONG_SECONDS
        with bar(int(seconds), hidden, what="seconds") as advance:
            done = dict(zip(items, enhance_files(separate, files, advance), strict=True))
        results |= {item: _row(item, done[item], options, prior.sample_rate) for item in missing}
        firsts = {item: of_item.first for item, of_item in done.items() if isinstance(of_item, Enhanced)}
    else:
        firsts = {}
    return [_with_report(item, results[item], firsts.get(item), separate, options) for item in items]


def _outputs(item: Item, options: Any) -> Outputs:
    assert item.target is not None
    residual, report = options.residuals.get(item.target), options.reports.get(item.target)
    row = {"output": str(item.target)} | ({} if residual is None else {"residual": str(residual)})
    residuals, reports = [] if residual is None else [residual], [] if report is None else [report]
    return Outputs(item.target, residuals, reports, row, item.again)


def _row(item: Item, done: Enhanced | AudiovaeError | None, options: Any, rate: int) -> Result:
    assert done is not None
    if isinstance(done, AudiovaeError):
        return done
    row = {
        "output": str(item.target),
        **arguments.report_peak(done.speech, options.quiet, rate),
        "objective": done.objective,
    }
    if done.labels:
        row["labels"] = done.labels
    if done.rumble_db > 0:
        row["rumble_db"] = done.rumble_db
        arguments.report_rumble(item.source, done.rumble_db, options.quiet)
    if done.residual is None:
        return row
    arguments.report_peak(done.residual, options.quiet)
    return {**row, "residual": str(done.residual.path)}


def _with_report(item: Item, result: Result, first: FirstBlock | None, separate: Separator, options: Any) -> Result:
    """Write the page of a file, but where it is there already."""
    report = options.reports.get(item.target)
    if report is None or isinstance(result, AudiovaeError) or "locked" in result:
        return result
    from audiovae.report.enhancement import write_enhancement_report
    from audiovae.separation.files import first_block

    if not ("skipped" in result and os.path.exists(report)):
        try:
            if first is None:
                first = first_block(separate, item.source, options.seed)
                if not options.quiet:
                    print(
                        f"audiovae: {named(item.source)}: inferred anew for its page, which was missing",
                        file=sys.stderr,
                    )
            noise = options.noise if options.noise == "stationary" else f"{options.noise}, rank {options.rank}"
            made = {"method": options.method, "prior": options.model, "noise model": noise}
            write_enhancement_report(report, first, separate, made=made)
        except AudiovaeError as error:
            return error
    return {**result, "report": str(report)}
