"""audiovae evaluate F..., or --clean DIR --estimate DIR."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jsonargparse

from audiovae.audio import SUFFIXES
from audiovae.cli import arguments
from audiovae.cli.arguments import Item
from audiovae.errors import AudiovaeError, PathError
from audiovae.locks import break_lock, locked_file

METRICS = ("si_sdr", "pesq", "estoi", "dnsmos")  # known without the libraries that compute them


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="*",
        default=[],
        metavar="F",
        help="sound files, folders, or quoted patterns: resynthesise and score them",
    )
    parser.add_argument(
        "--clean",
        type=arguments.path,
        metavar="DIR",
        help="with --estimate: compare two folders (or files) instead, by equal names",
    )
    parser.add_argument("--estimate", type=arguments.path, metavar="DIR", help="see --clean")
    parser.add_argument(
        "--noisy",
        type=arguments.path,
        metavar="DIR",
        help="with --clean and --estimate: what was enhanced, to tell the improvement over it",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        help="only these of the waves (default: all); PESQ, ESTOI and DNSMOS are of speech, and take most of the time",
    )
    parser.add_argument("--phase", choices=["original", "griffin-lim"], default="original", help="as of resynthesize")
    arguments.add_latents(parser)
    parser.add_argument(
        "--samples",
        type=jsonargparse.typing.PositiveInt,
        default=1,
        help="above 1: also the importance-weighted bound of so many samples",
    )
    parser.add_argument(
        "--teacher_forcing",
        action="store_true",
        help="show the true past to a model that needs it (STORN, VRNN, SRNN): prediction, no resynthesis",
    )
    arguments.add_labels(parser)
    parser.add_argument(
        "--report",
        type=arguments.path,
        metavar="FILE",
        help="also write a self-contained HTML page with pictures and sound",
    )
    arguments.add_rows(parser)
    arguments.add_common(parser, "model", "device", "seed", "jobs")


def run(options: Any) -> int:
    if (options.clean is None) != (options.estimate is None):
        raise AudiovaeError("evaluate: --clean and --estimate belong together")
    if options.noisy and not options.clean:
        raise AudiovaeError("evaluate: --noisy belongs to --clean and --estimate")
    if options.clean and (options.inputs or options.report):
        raise AudiovaeError("evaluate: with --clean and --estimate no other files and no --report can be given")
    if not options.clean and not options.inputs:
        raise AudiovaeError("evaluate: give sound files, or --clean DIR --estimate DIR")
    if not options.report:
        return _run(options)
    if options.shard:
        raise AudiovaeError("evaluate: --report is of all files, and --shard works on a part; leave one of them out")
    report = Path(options.report)
    arguments.refuse_existing(report, options)
    if any(os.path.isfile(parent) for parent in report.parents):
        raise PathError(report, "cannot be written (not a folder); check where it shall stand")
    if options.break_lock:
        break_lock(report)
    with locked_file(report):
        arguments.refuse_existing(report, options)  # another process may have made it meanwhile
        return _run(options)


def _run(options: Any) -> int:
    from audiovae.cli.batch import run_batch

    if options.clean:
        rows, status = run_batch(
            _pairs(options.clean, options.estimate), compare, options, load_model=False, writes=False
        )
    else:
        items = arguments.find_inputs(options.inputs)
        if options.report:
            arguments.refuse_inputs([Path(options.report)], items)
        rows, status = run_batch(items, evaluate, options)
    tell(rows, options)
    if options.report and status != 2:
        import torch

        from audiovae.prior import AudioVAE
        from audiovae.report.page import Evaluation, ReportedFile, write_report

        torch.manual_seed(options.seed)
        prior = AudioVAE.from_pretrained(options.model, arguments.resolve_device(options.device))
        files = [ReportedFile(Path(row["file"]), row["values"], row["reasons"]) for row in rows if "values" in row]
        write_report(
            options.report,
            [Evaluation(options.model, prior, files, arguments.condition(prior, options))],
            f"{options.model} on {len(files)} recordings",
            _title(options),
        )
    return status


def tell(rows: list[dict[str, Any]], options: Any) -> None:
    from audiovae.cli.scores import print_scores

    arguments.report_rows(rows, options.quiet)
    print_scores(rows, options, _title(options))


def _title(options: Any) -> str:
    if options.clean:
        return f"{options.estimate} against {options.clean}"
    title = f"{options.model}: resynthesis with {options.phase} phase, z = posterior {options.latents}"
    return title + "; bound with sampled z" + ("; teacher-forced" if options.teacher_forcing else "")


def evaluate(prior: Any, item: Item, options: Any) -> dict[str, Any]:
    from audiovae import audio
    from audiovae.evaluation import evaluate_file

    condition = arguments.condition(prior, options)
    score = evaluate_file(
        prior,
        item.source,
        options.phase,
        options.latents,
        options.samples,
        options.teacher_forcing,
        condition,
        options.metrics,
    )
    info = audio.inspect(item.source)
    told = {"seconds": info.seconds, **arguments.resampling(info.sample_rate, prior.sample_rate)}
    return {"values": score.values, "reasons": score.reasons, **told}


def compare(_: Any, item: Item, options: Any) -> dict[str, Any]:
    from audiovae import audio
    from audiovae.metrics import improvement

    assert item.target is not None
    clean, info = audio.read(item.source)
    score = _compare(clean, info, item.target, options.metrics)
    if options.noisy:
        noisy = _compare(clean, info, _partner(item.name, options.noisy), options.metrics)
        score = improvement(score, noisy)
    return {"values": score.values, "reasons": score.reasons, "seconds": info.seconds}


def _compare(clean: Any, info: Any, path: Path, metrics: Collection[str] | None) -> Any:
    from audiovae import audio
    from audiovae.metrics import compare as compare_waves

    estimate, other = audio.read(path)
    for what, expected, got in (
        ("sample rate", info.sample_rate, other.sample_rate), ("channel count", info.n_channels, other.n_channels),
        ("number of samples", info.n_samples, other.n_samples),
    ):  # fmt: skip
        if expected != got:
            raise PathError(path, f"has another {what} ({got}) than the clean file ({expected})")
    return compare_waves(clean, estimate, info.sample_rate, metrics)


def _pairs(clean: str, estimate: str) -> list[Item]:
    """Clean files with their estimates; the item's target is only read."""
    return [Item(item.source, item.name, _partner(item.name, estimate)) for item in arguments.find_inputs([clean])]


def _partner(name: str, place: str) -> Path:
    """The file of this name below a folder, if need be of another suffix; `place` itself where that is a file."""
    if os.path.isfile(place):
        return Path(place)
    same = Path(place) / name
    others = (
        []
        if os.path.exists(same)
        else sorted(path for path in same.parent.glob(glob.escape(same.stem) + ".*") if path.suffix.lower() in SUFFIXES)
    )
    return others[0] if others else same
