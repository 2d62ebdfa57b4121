"""audiovae separate MIX... -o OUT."""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jsonargparse
import numpy as np
from numpy.typing import NDArray

from audiovae.audio import AudioInfo
from audiovae.cli import arguments
from audiovae.cli.arguments import Item, parts_before_magic
from audiovae.cli.batch import Result, Row, print_json, run_groups
from audiovae.cli.resume import Outputs, check_same_options, claimed
from audiovae.cli.streams import standard_streams
from audiovae.cli.summary import index_pages
from audiovae.errors import AudiovaeError, PathError, named
from audiovae.settings import RoomMethodName

if TYPE_CHECKING:  # torch takes long to load, and help needs none
    from audiovae.separation import NeuralSeparator, RoomFile, Separator, TakenApart

_MADE_BY = "audiovae separate"
_GPU_BATCH = 8
_LONG_SECONDS = 60  # of sound, from which on they are what progress counts where no files can be counted
_AUTO, _COUNTED_SECONDS = "auto", 60
_NUMBER = "{}"  # stands for that of a microphone


def _n_sources(text: str | int) -> int | str:
    """What --sources says."""
    if text == _AUTO:
        return _AUTO
    if not re.fullmatch(r"[1-9][0-9]?", str(text)):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 99 or {_AUTO}, got {str(text)[:40]}")
    return int(text)


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    positive = jsonargparse.typing.PositiveInt
    arguments.add_inputs(
        parser,
        "sound files of several channels; or of one microphone each, named together by {} for its number, as in "
        "meeting_CH{}.wav or 'dir/*_CH{}.wav'",
    )
    arguments.add_output(parser, files=False)
    arguments.add_resume(parser, arguments.ANEW)
    parser.add_argument(
        "--sources",
        type=_n_sources,
        default=2,
        help="how many speakers there are, or auto: up to three are counted; NAME-1.wav is the loudest, NAME-noise.wav "
        "the rest, and all sum to NAME.wav",
    )
    parser.add_argument(
        "--method",
        choices=get_args(RoomMethodName),
        default="deep",
        help="deep is the best; neural infers all sources in one pass; iva, ilrma and fastmnmf2 need no prior, and "
        "hear any rate",
    )
    parser.add_argument(
        "--refine",
        type=jsonargparse.typing.NonNegativeInt,
        default=0,
        metavar="N",
        help="with --method neural: go on from there with N iterations",
    )
    arguments.add_report(parser)
    parser.add_argument(
        "--geometry",
        type=arguments.path,
        metavar="FILE.json",
        help="where the microphones stand, [[x, y, z], ...] in metres, or mixtures.json of recipes/rooms: tells where "
        "each source is",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        help=f"recordings side by side; by default {_GPU_BATCH} on a GPU, and 1 on a CPU",
    )
    arguments.add_labels(parser)
    arguments.add_common(parser, "model", "device", "seed", "jobs", model=None)


@standard_streams()
def run(options: Any) -> int:
    from audiovae.separation import ROOM_METHODS

    method = ROOM_METHODS[options.method]
    if method.source is not None and (options.model or options.label):
        given = "--model" if options.model else "--label"
        raise AudiovaeError(f"separate: --method {options.method} has no prior; leave {given} out")
    is_learnt = method.spatial is None
    if options.refine and not is_learnt:
        raise AudiovaeError(f"separate: --refine is of --method neural, not of {options.method}; leave it out")
    if options.label and is_learnt:
        raise AudiovaeError("separate: --method neural knows no labels; leave --label out")
    options.model = options.model or method.prior
    options.learnt_sha256 = _hash(options) if is_learnt else ""
    kept = arguments.kept_rows(options)
    options.made = _made_by(options)
    items = _find(options)
    options.counts = {item.source: _counted(item, options) for item in items} if options.sources == _AUTO else {}
    items = arguments.with_targets(items, options.output, several=True)
    options.reports = arguments.beside(items, options.report, ".html")
    options.positions = _geometry(options.geometry, items)
    _check_geometry(items, options)
    microphones = [Item(path, path.name) for paths in options.microphones.values() for path in paths]
    targets = [path for item in items for path in _targets(item, options)]
    arguments.refuse_inputs([*targets, *options.reports.values()], [*items, *microphones])
    options.anew = check_same_options(targets, options, _MADE_BY) if options.resume and not kept else set()
    groups = _groups(items, options)
    options.alone = len(groups) == 1
    rows, status = run_groups(items, groups, separate, options, load_model=not is_learnt)
    tell(rows, options)
    return status


def tell(rows: list[Row], options: Any) -> None:
    arguments.report_rows(rows, options.quiet, above="which counted as noise")
    index_pages(rows, options)
    if options.json:
        print_json(rows)


def _find(options: Any) -> list[Item]:
    """The recordings; `options.microphones` gets the files of those with one a microphone."""
    options.microphones, options.reports, options.positions = {}, {}, {}
    items: list[Item] = []
    for text in options.inputs:
        if _NUMBER not in os.path.basename(text) or os.path.exists(text):
            items += arguments.find_inputs([text])
            continue
        for item, paths in _together(text).items():
            items.append(item)
            options.microphones[item.source] = paths
    items = list({os.path.realpath(item.source): item for item in reversed(items)}.values())[::-1]
    return arguments.without_outputs(items, options, options.output)


def _together(text: str) -> dict[Item, list[Path]]:
    """Recordings with one file a microphone, and these files by their numbers.

    Raises:
        PathError: no file matches, or {} stands twice.
    """
    folder, name = os.path.split(text)
    before, _, after = name.partition(_NUMBER)
    if _NUMBER in after:
        raise PathError(text, "{} stands for the number of the microphone, once")
    expressions = [re.escape(part).replace(r"\*", ".*").replace(r"\?", ".") for part in (before, after)]
    pattern = re.compile(f"({expressions[0]})([0-9]+)({expressions[1]})", re.DOTALL)
    found: dict[str, list[tuple[int, Path]]] = {}
    for match in sorted(glob.glob(os.path.join(folder, f"{before}*{after}"), recursive=True)):
        parts = pattern.fullmatch(os.path.basename(match))
        if parts and os.path.isfile(match):
            whole = os.path.join(os.path.dirname(match), parts[1] + _NUMBER + parts[3])
            found.setdefault(whole, []).append((int(parts[2]), Path(match)))
    if not found:
        raise PathError(text, "no file has a number in the place of {}")
    root = Path(*parts_before_magic(Path(folder, name)))
    return {
        Item(Path(whole), _name(Path(whole).relative_to(root))): [path for _, path in sorted(numbered)]
        for whole, numbered in found.items()
    }


def _name(path: Path) -> str:
    """Of what is made of the files of a recording."""
    stem = path.stem.replace(_NUMBER, "").strip("_-. ") or "mixture"
    return path.with_name(stem + path.suffix).as_posix()


def _geometry(file: str | None, items: list[Item]) -> dict[Path, NDArray[np.float64]]:
    """Where the microphones of every recording stand, in metres, `[microphone, 3]`; empty without a file.

    Raises:
        PathError: the file cannot be read, or does not say it of a recording.
    """
    if file is None:
        return {}
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        if all(isinstance(entry, dict) for entry in content):
            of_name = {entry["mixture"]: np.asarray(entry["mics_m"], np.float64) for entry in content}
        else:
            of_name = dict.fromkeys((item.source.name for item in items), np.asarray(content, np.float64))
    except OSError as error:
        raise PathError(file, f"cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise PathError(file, "is no list of microphones, [[x, y, z], ...] in metres, and no mixtures.json") from error
    for item in items:
        positions = of_name.get(item.source.name)
        if positions is None:
            raise PathError(file, f"says nothing of {item.source.name}")
        if positions.ndim != 2 or positions.shape[1] != 3 or not np.isfinite(positions).all():
            raise PathError(file, "is no list of microphones, [[x, y, z], ...] in metres, and no mixtures.json")
    return {item.source: of_name[item.source.name] for item in items}


def _check_geometry(items: list[Item], options: Any) -> None:
    """Raises PathError where a recording has not as many channels as there are microphones."""
    for item in items if options.positions else []:
        info, n = _inspected(item, options), len(options.positions[item.source])
        if info is not None and info.n_channels != n:
            raise PathError(item.source, f"has {info.n_channels} channels, and {options.geometry} {n} microphones")


def _targets(item: Item, options: Any) -> list[Path]:
    """NAME-1.wav, NAME-2.wav, ..., and NAME-noise.wav for NAME.wav."""
    assert item.target is not None
    names = [*map(str, range(1, _sources_of(item, options) + 1)), "noise"]
    return [item.target.with_stem(f"{item.target.stem}-{name}") for name in names]


def _sources_of(item: Item, options: Any) -> int:
    return int(options.counts.get(item.source, options.sources))


def _counted(item: Item, options: Any) -> int:
    """How many speak in the first minute of a recording; what cannot be read, or has one channel, is refused later."""
    import torch

    from audiovae import audio
    from audiovae.separation.counting import count_sources

    info = _inspected(item, options)
    if info is None or info.n_channels == 1:
        return 1
    waves, n_samples = [], 0
    try:
        for block in audio.blocks(info):
            waves.append(block)
            n_samples += block.shape[1]
            if n_samples >= _COUNTED_SECONDS * info.sample_rate:
                break
    except AudiovaeError:
        return 1
    wave = np.concatenate(waves, axis=1)[:, : _COUNTED_SECONDS * info.sample_rate]
    n_sources = count_sources(torch.from_numpy(wave), info.sample_rate)
    if not options.quiet:
        print(f"audiovae: {named(item.source)}: sources counted: {n_sources}", file=sys.stderr)
    return n_sources


def _made_by(options: Any) -> str:
    """What the tags of an output say of how it was made: all that decides on its sound but the input."""
    words = [f"--sources {options.sources} --method {options.method} --seed {options.seed}"]
    words[0] += f" --refine {options.refine}" if options.refine else ""
    words += [f"--label {' '.join(options.label)}"] if options.label else []
    if options.model:
        words[-1] += f", model {_hash(options)[:16]}"
    return f"{_MADE_BY} {' '.join(words)}"


def _hash(options: Any) -> str:
    """That of the prior, or of the learnt separator."""
    from audiovae import saved
    from audiovae.separation import ROOM_METHODS

    shelf = "separators" if ROOM_METHODS[options.method].spatial is None else ""
    return str(saved.read_config(saved.find(options.model, shelf=shelf))["config_sha256"])


@cache
def _loaded(name: str, device: str) -> NeuralSeparator:
    """A learnt separator, once in a process."""
    from audiovae.separation import NeuralSeparator

    return NeuralSeparator.from_pretrained(name, device)


def _groups(items: list[Item], options: Any) -> list[list[int]]:
    """The places of recordings that run side by side: of one number of channels and sources, one
    rate and about one length.
    """
    from audiovae.separation.files import groups_by_length

    batch = options.batch or arguments.batch_size(options, _GPU_BATCH)
    if batch == 1:
        return [[i] for i in range(len(items))]
    alike: dict[tuple[int, int, int] | None, list[int]] = {}
    for i, item in enumerate(items):
        info = _inspected(item, options)
        kind = (info.n_channels, info.sample_rate, _sources_of(item, options)) if info else None
        alike.setdefault(kind, []).append(i)
    groups = []
    for places in alike.values():
        sources = [next(iter(options.microphones.get(items[i].source, [])), items[i].source) for i in places]
        groups += [[places[k] for k in group] for group in groups_by_length(sources, batch)]
    return groups


def _inspected(item: Item, options: Any) -> AudioInfo | None:
    """What the headers say; None where a file cannot be read."""
    try:
        return _file(item, options).inspect()
    except AudiovaeError:
        return None


def _file(item: Item, options: Any, targets: list[Path] | None = None) -> RoomFile:
    from audiovae.separation import RoomFile

    wanted = targets is not None and (item.target in options.reports or item.source in options.positions)
    microphones = options.microphones.get(item.source, [])
    return RoomFile(item.source, targets, microphones, options.seed, wanted, options.made)


def separate(prior: Any, items: list[Item], options: Any) -> list[Result]:
    """Take recordings apart side by side; see `enhance` for those that are not to be written."""
    with ExitStack() as locks:
        settled = {item: result for item in items if (result := claimed(_outputs(item, options), options, locks))}
        return _separate(prior, items, settled, options)


def _outputs(item: Item, options: Any) -> Outputs:
    targets = _targets(item, options)
    report = options.reports.get(item.target)
    row = {"output": [str(path) for path in targets]} | ({} if report is None else {"report": str(report)})
    return Outputs(targets[0], [*targets[1:], *([] if report is None else [report])], [], row, item.again)


def _separate(prior: Any, items: list[Item], results: dict[Item, Result], options: Any) -> list[Result]:
    """Take those apart that have no result."""
    from audiovae.cli.progress import bar
    from audiovae.separation import ROOM_METHODS, separate_files, separator

    missing = [item for item in items if item not in results]
    if missing:
        infos = [info for item in items if (info := _inspected(item, options))]
        rate = infos[0].sample_rate if infos else 16000
        condition = arguments.condition(prior, options) if options.label else None
        n_sources = _sources_of(items[0], options)
        if ROOM_METHODS[options.method].spatial is None:
            prior = _loaded(options.model, arguments.resolve_device(options.device))
        run = separator(n_sources, options.method, prior, rate, condition, options.refine)
        run.front.stft.to(arguments.resolve_device(options.device))  # of a method without a prior, which has a device
        files = [_file(item, options, _targets(item, options) if item in missing else None) for item in items]
        seconds = sum(info.seconds for info in infos)
        hidden = options.quiet or not options.alone or seconds < _LONG_SECONDS
        with bar(int(seconds), hidden, what="seconds") as advance:
            least = ROOM_METHODS[options.method].least_channels(n_sources)
            done = dict(zip(items, separate_files(run, files, least, advance), strict=True))
        results |= {item: _row(item, done[item], run, options) for item in missing}
    return [results[item] for item in items]


def _row(item: Item, done: TakenApart | AudiovaeError | None, run: Separator, options: Any) -> Result:
    """What is told of a recording; its page is written."""
    assert done is not None
    if isinstance(done, AudiovaeError):
        return done
    told = [arguments.report_peak(writer, options.quiet, run.front.sample_rate) for writer in done.sources]
    row: Row = {
        **told[0],
        "output": [str(writer.path) for writer in done.sources],
        "peak": [of_one["peak"] for of_one in told],
        "clipped": [of_one["clipped"] for of_one in told],
        "levels_db": list(done.levels_db),
        "objective": done.objective,
    }
    if done.labels:
        row["labels"] = list(done.labels)
    if done.rumble_db > 0:
        row["rumble_db"] = done.rumble_db
        arguments.report_rumble(item.source, done.rumble_db, options.quiet)
    if done.without_sound:
        row["without_sound"] = list(done.without_sound)
        if not options.quiet:
            numbers = ", ".join(map(str, done.without_sound))
            print(f"audiovae: {named(item.source)}: no sound from microphone {numbers}: left out", file=sys.stderr)
    directions = None
    if done.first is not None and item.source in options.positions:
        from audiovae.separation.directions import steered

        positions = options.positions[item.source]
        directions = [steered(image, positions, run.front) for image in done.first.images[:-1]]
        row["azimuth_deg"] = [direction.azimuth_deg for direction in directions]
    report = options.reports.get(item.target)
    if report is not None:
        from audiovae.report.separation import write_separation_report

        try:
            assert done.first is not None
            made = {"method": options.method} | ({"prior": options.model} if options.model else {})
            write_separation_report(report, done, run, directions, made)
        except AudiovaeError as error:
            return error
        row["report"] = str(report)
    return row
