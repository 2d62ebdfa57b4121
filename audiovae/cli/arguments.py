"""Arguments that the verbs share, and the files that they name."""

from __future__ import annotations

import argparse
import glob
import math
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse

from audiovae.audio import FOREIGN_SUFFIXES, SUFFIXES, find
from audiovae.batch import Item
from audiovae.batch import resolve_device as resolve_device  # what --device names
from audiovae.errors import AudiovaeError, PathError, named
from audiovae.settings import LARGEST_SEED
from audiovae.shards import Shard

DEFAULT_MODEL = "speech-16k"
_FILES = SUFFIXES | {".npz", ".html"}  # by which an output is taken for one file


def seed(value: str | int) -> int:
    """The number that --seed names."""
    try:
        number = int(value)
    except ValueError:
        number = -1
    if not 0 <= number <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"expected int from 0 to 2^64 - 1, got {str(value)[:40]}")
    return number


def add_common(
    parser: jsonargparse.ArgumentParser, *names: str, model: str | None = DEFAULT_MODEL, first_seed: int | None = 0
) -> None:
    """Those of --model, --device, --seed and --jobs that make a difference to the verb; --json and --quiet.

    Args:
        model, first_seed: where none is given.
    """
    if "model" in names:
        text = "name of a shipped model, a model folder, or owner/name[@revision] on the hub"
        parser.add_argument("--model", help=text, default=model)
    if "device" in names:
        parser.add_argument("--device", help="cpu, cuda, cuda:1, or auto", default="cpu")
    if "seed" in names:
        parser.add_argument("--seed", help="of everything random", type=seed, default=first_seed)
    if "jobs" in names:
        positive = jsonargparse.typing.PositiveInt
        parser.add_argument("--jobs", help="processes that work at the same time", type=positive, default=1)
        parser.add_argument(
            "--shard",
            type=shard,
            metavar="I/N",
            help="do only the I-th of N parts, apart from who does the others; rows and failures go to a file of this "
            "part in the output folder, and audiovae gather joins them",
        )
    if {"jobs", "device"} <= set(names):
        parser.add_argument(
            "--devices", type=positive, default=1, help="GPUs of this machine, or more processes on a CPU"
        )
        parser.add_argument(
            "--ray",
            nargs="?",
            const="",
            metavar="ADDRESS",
            help="processes on a ray cluster, all that it has room for or at most --jobs; without an address on one "
            "that is started here",
        )
    parser.add_argument("--json", help="print the result as JSON", action="store_true")
    parser.add_argument("--quiet", help="no progress, no summary: errors only", action="store_true")


def shard(text: str | Shard) -> Shard:
    """What --shard names."""
    try:
        return text if isinstance(text, Shard) else Shard.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected I/N, from 1/N to N/N, got {str(text)[:40]}") from None


def rank(name: str) -> int:
    """The number of this process, or of its machine, as whoever started several of them says in the environment.

    Raises:
        AudiovaeError: it is no number.
    """
    value = os.environ.get(name, "0")
    if not (value.isascii() and value.isdigit()):
        raise AudiovaeError(f"the environment variable {name} must be a whole number, got {value!r}; unset it")
    return int(value)


def path(text: str) -> str:
    """A path as given, which must not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("must name a file or folder, got nothing")
    return text


def add_inputs(parser: jsonargparse.ArgumentParser, what: str = "sound files") -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="F",
        help=f"{what}, folders of them, or quoted patterns such as 'dir/**/*.wav'; - is the standard input",
    )


def add_output(parser: jsonargparse.ArgumentParser, required: bool = True, files: bool = True) -> None:
    text = "a folder that mirrors the input tree" + (
        "; for one input it may be a file, or - for the standard output" if files else ""
    )
    parser.add_argument("-o", "--output", type=path, metavar="OUT", required=required, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    add_break_lock(parser)


def add_break_lock(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--break-lock", action="store_true", help="take over what a process of another machine, now gone, was at"
    )


def add_latents(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--latents", choices=["mean", "sample"], default="mean", help="decode the posterior mean, or a sample of it"
    )


def add_resume(parser: jsonargparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="make only what is missing of the output, after a run that was stopped" + more,
    )


ANEW = "; and anew what cannot tell how it was made (AU, W64, NIST, VOC)"


def batch_size(options: Any, on_gpu: int) -> int:
    """How many recordings run side by side where nobody says: on a CPU one, which gains little by more."""
    far = options.ray is not None and options.device != "auto"  # whose devices are not those of this machine
    return 1 if (options.device if far else resolve_device(options.device)) == "cpu" else on_gpu


def add_rows(parser: jsonargparse.ArgumentParser) -> None:
    """Of a verb that writes nothing else."""
    parser.add_argument(
        "-o", "--output", type=path, metavar="FOLDER", help="also keep the rows there, for --shard, --ray and --resume"
    )
    parser.add_argument(
        "--resume", action="store_true", help="work only on what has no row, after a run that was stopped"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    add_break_lock(parser)


def kept_rows(options: Any) -> Path | None:
    """The folder that gets the rows of a verb as they are done; None where it is not asked for.

    Raises:
        AudiovaeError: it is not named, or no folder; or the options do not go together.
    """
    only_rows = options.verb in ("score", "evaluate")
    asked = options.shard is not None or options.ray is not None
    if options.resume and options.overwrite:
        raise AudiovaeError(f"{options.verb}: --resume keeps what --overwrite replaces; give one of them")
    if options.ray is not None and (options.shard or options.devices > 1):
        raise AudiovaeError(f"{options.verb}: --ray shares the work by itself; leave --shard and --devices out")
    if only_rows and options.output is None and (asked or options.resume):
        raise AudiovaeError(f"{options.verb}: --shard, --ray and --resume need a folder for the rows; give -o FOLDER")
    if not asked and not (only_rows and options.output):
        return None
    folder = Path(options.output)
    if not folder.is_dir() and (folder.exists() or folder.suffix.lower() in _FILES):
        raise AudiovaeError(f"-o {folder}: rows are kept in a folder; give one")
    return folder


def add_report(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report",
        type=path,
        metavar="PATH",
        help="also write a page on each input: a folder that mirrors the inputs, with an index; or a file for one",
    )


def add_labels(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label",
        nargs="+",
        default=[],
        metavar="NAME=CLASS",
        help="what the sound is, for a model conditioned on labels: digit=7 speaker=theo",
    )


def condition(prior: Any, options: Any) -> Any:
    """The condition that --label names; None for a model without labels.

    Raises:
        AudiovaeError: not NAME=CLASS, or no label or class of the model.
    """
    pairs = [text.partition("=") for text in options.label]
    for name, equals, _ in pairs:
        if not equals:
            raise AudiovaeError(f"--label {name}: give it as NAME=CLASS")
    if not pairs and not prior.vae.conditions.labels:
        return None
    return prior.condition(**{name: value for name, _, value in pairs})


def find_inputs(inputs: list[str], suffixes: frozenset[str] = SUFFIXES | FOREIGN_SUFFIXES) -> list[Item]:
    """Files as named; all files with one of the suffixes below a folder; all matches of a pattern; each once.

    Raises:
        PathError: a folder without such a file, a pattern without a match, or a file that is named twice.
    """
    items: list[Item] = []
    named: set[str] = set()
    for text in inputs:
        path = Path(text)
        if os.path.isdir(path):  # unlike pathlib, does not mind a folder that cannot be read
            there = find(path, suffixes)
            for folder, reason in there.passed_over:
                print(f"audiovae: {folder}: {reason}", file=sys.stderr)
            files = there.files + [folder for folder, _ in there.unreadable]  # these fail in their turn
            found = [Item(file, file.relative_to(path).as_posix()) for file in files]
            if not found:
                raise PathError(
                    path, f"is a folder without any file to work on ({', '.join(sorted(suffixes)[:8])}, ...)"
                )
        elif os.path.exists(path) or not glob.has_magic(text):
            if _identity(path) in named:
                raise PathError(path, "is named twice; name each file once")
            named.add(_identity(path))
            found = [Item(path, path.name)]  # a missing file is reported in its turn, like any other bad one
        else:
            root = Path(*parts_before_magic(path))
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))
            found = [Item(file, file.relative_to(root).as_posix()) for file in matches if os.path.isfile(file)]
            if not found:
                raise PathError(text, "no file matches this pattern")
        items += found
    return list({_identity(item.source): item for item in reversed(items)}.values())[::-1]


def _identity(path: Path) -> str:
    """The same for a file that is found twice, in folders or links to them."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def parts_before_magic(path: Path) -> Iterator[str]:
    """The folders of a pattern before its first wildcard."""
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def with_targets(
    items: list[Item], output: str, suffix: str | None = None, option: str = "-o", several: bool = False
) -> list[Item]:
    """Give every input its output: `output` itself for one input if that is no folder, else its name below `output`.

    Args:
        suffix: replaces the inputs' suffix, such as ".npz"; None keeps it.
        option: that named the output.
        several: files are made of each input, so that the output is a folder even for one.

    Raises:
        PathError: two inputs have the same output, or an output is an input.
        AudiovaeError: several inputs, and the standard output or one file.
    """
    folder = Path(output)
    if len(items) > 1 and named(folder) != str(folder):
        raise AudiovaeError(f"-o - takes one file, got {len(items)}; give a folder")
    is_folder = os.path.isdir(folder) or output.endswith("/")
    if not is_folder and (len(items) > 1 or several) and folder.suffix.lower() in _FILES:
        made = "several files are made of each input" if several else f"there are {len(items)} inputs"
        raise AudiovaeError(f"{option} {output} is one file, and {made}; give a folder")
    if len(items) == 1 and folder.suffix and not is_folder and not several:
        targets = [folder]
    else:
        targets = [
            folder / (item.name if suffix is None else str(Path(item.name).with_suffix(suffix))) for item in items
        ]
    seen: dict[Path, Item] = {}
    for item, target in zip(items, targets, strict=True):
        if target in seen:
            raise PathError(
                target, f"would be the output of both {seen[target].source} and {item.source}; give them one by one"
            )
        seen[target] = item
    refuse_inputs(targets, items)
    return [Item(item.source, item.name, target) for item, target in zip(items, targets, strict=True)]


def beside(
    items: list[Item], output: str | None, suffix: str | None = None, option: str = "--report"
) -> dict[Path, Path]:
    """Of every target the file that another option, such as --report, puts beside it; empty without the option."""
    if not output:
        return {}
    found = with_targets(items, output, suffix, option)
    return {item.target: other.target for item, other in zip(items, found, strict=True) if item.target and other.target}


def refuse_inputs(targets: Iterable[Path], items: list[Item]) -> None:
    """Raises PathError where what is to be written is one of the inputs."""
    sources = {os.path.realpath(item.source) for item in items}
    for target in targets:
        if os.path.realpath(target) in sources:
            raise PathError(target, "is the input itself; choose another output")


def without_outputs(items: list[Item], options: Any, *outputs: str | None) -> list[Item]:
    """Inputs but those that stand in an output folder below the folder that was searched: they are of an earlier run.

    Raises:
        PathError: nothing else is there.
    """
    left: list[Item] = []
    folders = [os.path.realpath(output) for output in outputs if output]
    for item in items:
        source = os.path.abspath(item.source)
        root = os.path.realpath(source.removesuffix(item.name)) + os.sep
        place = os.path.realpath(os.path.dirname(source)) + os.sep
        if not any(folder.startswith(root) and place.startswith(folder + os.sep) for folder in folders):
            left.append(item)
    if items and not left:
        raise PathError(items[0].source, "there is nothing to work on but what stands in the output folder")
    if len(left) < len(items) and not options.quiet:
        print(f"audiovae: left out: {len(items) - len(left)} files that stand in the output folder", file=sys.stderr)
    return left


def refuse_existing(target: Path | None, options: Any, remedy: str = "--overwrite replaces it") -> None:
    """Raises PathError where the output exists and --overwrite was not given."""
    if target is not None and os.path.exists(target) and not options.overwrite:
        raise PathError(target, f"exists already; {remedy}")


def report_peak(writer: Any, quiet: bool, model_rate: int | None = None) -> dict[str, Any]:
    """What a row says of a file that was written; and one line on the error stream where it was clipped.

    Args:
        model_rate: in Hz, that the sound was resampled to, if it had another one.
    """
    if writer.clips and not quiet:
        excess = f"{20 * math.log10(writer.peak):.1f} dB above full scale"
        print(
            f"audiovae: {named(writer.path)}: peaks {excess} were clipped; a float WAV keeps them",
            file=sys.stderr,
        )
    row = {
        "seconds": writer.seconds,
        "peak": writer.peak,
        "clipped": writer.clips,
        **resampling(writer.sample_rate, model_rate),
    }
    return {**row, "recoded": True} if writer.recoded else row


def report_rumble(source: Path, rumble_db: float, quiet: bool) -> None:
    """One line on the error stream of rumble that went to the noise."""
    if not quiet:
        print(
            f"audiovae: {named(source)}: what lies below 50 Hz is {rumble_db:.0f} dB above the level of the rest, and "
            "was counted as noise",
            file=sys.stderr,
        )


def resampling(rate: int, model_rate: int | None) -> dict[str, Any]:
    """What a row says of sound that was resampled; nothing if it was not."""
    return {} if model_rate in (None, rate) else {"resampled": [rate, model_rate]}


def report_rows(rows: list[dict[str, Any]], quiet: bool, above: str = "") -> None:
    """What befell some files, once for all, by their number: on the error stream.

    Args:
        above: what became of that which lies above the prior's band; empty: not to be told.
    """
    if quiet:
        return
    resampled = [row["resampled"] for row in rows if "resampled" in row]
    n_higher = sum(rate > model_rate for rate, model_rate in resampled)
    n_silent = sum(row.get("values", {}).get("silent_frames", 0) for row in rows)
    lines = [
        (n_higher if above else 0, "of {n} files: sound above {half} Hz, " + above),
        (sum("recoded" in row for row in rows), "of {n} files: a codec of blocks (ADPCM, GSM, ...), written as PCM"),
        (n_silent, "frames of digital silence did not count"),
    ]
    rate = resampled[0][1] if resampled else 0
    for count, text in lines:
        if count:
            print(f"audiovae: {count} {text.format(n=len(rows), half=rate // 2)}", file=sys.stderr)
