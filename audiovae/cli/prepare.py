"""audiovae prepare SOURCE PACKED."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.errors import AudiovaeError
from audiovae.locks import break_lock
from audiovae.settings import PrepareSettings

if TYPE_CHECKING:
    from audiovae.corpora.prepare import Prepared
    from audiovae.shards import Job


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="any folder of sound files, or a known corpus (its layout is recognised); a table of recordings (.csv, "
        ".jsonl: path, start, duration, speaker, split, labels); cuts of lhotse; a data set that Hugging Face's "
        "library saved; WebDataset ('shards-{000..099}.tar'); torchaudio:NAME:ROOT",
    )
    parser.add_argument("packed", help="folder of the packed corpus; a second run adds what is new")
    parser.add_class_arguments(PrepareSettings)
    parser.add_argument(
        "--download",
        metavar="NAME",
        help="first fetch a free corpus into the folder SOURCE, such as LIBRISPEECH:train-clean-100, LJSPEECH, VCTK, "
        "LIBRITTS:dev-clean, CMUARCTIC:bdl; its SHA-256 is verified, and what is there is not fetched again",
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew")
    parser.add_argument("--resume", action="store_true", help="go on after a run that was stopped, as it does anyway")
    arguments.add_break_lock(parser)
    arguments.add_common(parser, "jobs")


def run(options: Any) -> int:
    from audiovae.cli.progress import bar
    from audiovae.corpora.prepare import prepare

    if options.download:
        from audiovae.corpora.download import download

        with bar(1, hidden=options.quiet, what="MiB") as advance:
            download(options.download, Path(options.source), _counted(advance))
    try:
        settings = PrepareSettings(**{field.name: getattr(options, field.name) for field in fields(PrepareSettings)})
    except ValueError as error:
        raise AudiovaeError(f"prepare: {error}") from error
    if options.resume and options.overwrite:
        raise AudiovaeError("prepare: --resume keeps what --overwrite replaces; give one of them")
    if options.break_lock:
        break_lock(Path(options.packed) / (str(options.shard) if options.shard else ""))
    with bar(1, hidden=options.quiet) as advance:
        progress = _counted(advance)
        result = prepare(
            options.source, options.packed, settings, options.jobs, options.overwrite, progress, options.shard
        )
    return tell(result, settings, options)


def join(packed: Path, job: Job, options: Any) -> int:
    """`gather` of shards: make one corpus of them, or tell what is missing."""
    from audiovae.cli.gather import tell_missing
    from audiovae.corpora import joining

    names = joining.missing(packed)
    tell_missing(names, len(job.files))
    if names:
        return 1
    settings = {**job.options["settings"], "speeds": tuple(job.options["settings"]["speeds"])}
    return tell(joining.join(packed), PrepareSettings(**settings), options)


def tell(result: Prepared, settings: PrepareSettings, options: Any) -> int:
    """Print what became of a corpus; the exit status."""
    from audiovae.cli.progress import print_table
    from audiovae.corpora.packed import names_speakers

    failed = [file for file in result.left_out if file.failed]
    options.rows = [{"seconds": result.seconds_new / result.n_new} for _ in range(result.n_new)]
    options.rows += [{"skipped": True} for _ in range(len(result.utterances) - result.n_new)] + [{} for _ in failed]
    for file in failed:
        print(f"audiovae: {options.source}/{file.id}: left out: {file.reason}", file=sys.stderr)
    if not options.quiet:
        for note in _notes(result, settings):
            print(f"audiovae: {note}", file=sys.stderr)
    splits = []
    for split in ("train", "validation", "test"):
        utterances = [u for u in result.utterances if u.split == split]
        minutes = sum(u.n_samples for u in utterances) / settings.sample_rate / 60
        splits.append(
            {
                "split": split,
                "recordings": len(utterances),
                "speakers": len({u.speaker for u in utterances}),
                "minutes": minutes,
            }
        )
    if options.json:
        from audiovae.cli.batch import print_json

        print_json(
            {
                "layout": result.layout,
                "split_by": result.split_by,
                "new": result.n_new,
                "splits": splits,
                "left_out": [asdict(file) for file in result.left_out],
            }
        )
    elif not options.quiet:
        named = names_speakers(result.utterances)
        rows = [
            [str(s["split"]), str(s["recordings"]), str(s["speakers"]) if named else "-", f"{s['minutes']:.1f}"]
            for s in splits
        ]
        notes = [f"layout: {result.layout}; new recordings: {result.n_new}; left out: {len(result.left_out)}"]
        reasons = sorted({file.reason for file in result.left_out if not file.failed})
        notes += [f"  {sum(f.reason == reason for f in result.left_out)} files: {reason}" for reason in reasons]
        print_table(["split", "recordings", "speakers", "minutes"], rows, notes=notes)
    if not result.utterances:
        return 2
    return 1 if failed else 0


def _counted(advance: Callable[..., None]) -> Callable[[int, int], None]:
    """Progress as the number that is done, for a bar that wants to know how many more are."""
    last = [0]

    def progress(done: int, total: int) -> None:
        advance(done - last[0], total=total)
        last[0] = done

    return progress


def _notes(result: Prepared, settings: PrepareSettings) -> Iterator[str]:
    """What may surprise in the corpus."""
    from audiovae.corpora.layouts import LAYOUTS

    rate = result.lowest_rate
    if result.n_resampled:
        yield f"{result.n_resampled} files were resampled to {settings.sample_rate} Hz"
    if rate is not None and rate < settings.sample_rate:
        yield (
            f"files of {rate} Hz hold nothing above {rate // 2} Hz, and a prior of many of them knows nothing there; "
            f"with --sample_rate {rate} it hears what all files hold"
        )
    if result.split_by == "recording" and settings.group is None:
        yield (
            "several speakers are not told apart: recordings are held out for validation, maybe of "
            "voices that are trained on; --labels with a column speaker, or --group, tells them"
        )
    if result.utterances and not any(u.split == "train" for u in result.utterances):
        yield "nothing is there to train on: all recordings are of the test or validation split" + (
            f" of {result.layout}, by their names; --layout folder --overwrite splits them anew"
            if result.layout in LAYOUTS
            else ""
        )
