"""audiovae prepare FOLDER PACKED."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.errors import AudiovaeError
from audiovae.locks import break_lock
from audiovae.settings import PrepareSettings


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="any folder of sound files, or a known corpus (its layout is recognised)")
    parser.add_argument("packed", help="folder of the packed corpus; a second run adds what is new")
    parser.add_class_arguments(PrepareSettings)
    parser.add_argument(
        "--download",
        metavar="NAME",
        help="first fetch a free corpus into FOLDER, such as LIBRISPEECH:train-clean-100, LJSPEECH, VCTK, "
        "LIBRITTS:dev-clean, CMUARCTIC:bdl (by torchaudio, which verifies its checksum)",
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew")
    arguments.add_break_lock(parser)
    arguments.add_common(parser, "jobs")


def run(options: Any) -> int:
    from audiovae.cli.progress import bar, print_table
    from audiovae.corpora.prepare import prepare

    if options.download:
        from audiovae.corpora.download import download

        download(options.download, Path(options.folder))
    try:
        settings = PrepareSettings(**{field.name: getattr(options, field.name) for field in fields(PrepareSettings)})
    except ValueError as error:
        raise AudiovaeError(f"prepare: {error}") from error
    if options.break_lock:
        break_lock(Path(options.packed))
    with bar(1, hidden=options.quiet) as advance:
        last = [0]

        def progress(done: int, total: int) -> None:
            advance(done - last[0], total=total)
            last[0] = done

        result = prepare(options.folder, options.packed, settings, options.jobs, options.overwrite, progress)
    failed = [file for file in result.left_out if file.failed]
    for file in failed:
        print(f"audiovae: {options.folder}/{file.id}: left out: {file.reason}", file=sys.stderr)
    if result.n_resampled and not options.quiet:
        print(f"audiovae: {result.n_resampled} files were resampled to {settings.sample_rate} Hz", file=sys.stderr)
    if result.split_by == "recording" and settings.group is None and not options.quiet:
        print(
            "audiovae: the folder does not tell several speakers: recordings are held out for validation, maybe of "
            "voices that are trained on; --labels with a column speaker, or --group, tells them",
            file=sys.stderr,
        )
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
        rows = [[str(s["split"]), str(s["recordings"]), str(s["speakers"]), f"{s['minutes']:.1f}"] for s in splits]
        notes = [f"layout: {result.layout}; new recordings: {result.n_new}; left out: {len(result.left_out)}"]
        reasons = sorted({file.reason for file in result.left_out if not file.failed})
        notes += [f"  {sum(f.reason == reason for f in result.left_out)} files: {reason}" for reason in reasons]
        print_table(["split", "recordings", "speakers", "minutes"], rows, notes=notes)
    if not result.utterances:
        return 2
    return 1 if failed else 0
