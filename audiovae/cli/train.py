"""audiovae train PACKED -o MODEL."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jsonargparse

from audiovae.cli import arguments
from audiovae.errors import AudiovaeError
from audiovae.locks import break_lock
from audiovae.settings import (
    MODEL_SETTINGS,
    LevelName,
    MixtureSettings,
    NeuralSettings,
    STFTSettings,
    TrainingSettings,
    settings_from_config,
)

if TYPE_CHECKING:
    from audiovae.corpora.mixtures import MixtureCorpus
    from audiovae.corpora.packed import PackedCorpus
    from audiovae.prior import AudioVAE
    from audiovae.separation.neural.separators import NeuralSeparator
    from audiovae.training.loop import Progress

_PLAIN_SECONDS, _PLAIN_SECONDS_OF_VALIDATIONS = 10.0, 1.0  # between two lines in a log
_MOST_VALUES = 10_000  # of a YAML file


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    given, config = getattr(parser, "given", ()), getattr(parser, "config", None)
    init = _named("init", given, config)
    named = _named("type", given, config)
    kind, sizes = ("FrameVAE", {}) if init is None else _of_init(init, named)
    if init is None and named in MODEL_SETTINGS:
        kind = str(named)
    parser.add_argument("packed", help="corpus as prepared by: audiovae prepare")
    parser.add_argument(
        "-o",
        "--output",
        metavar="MODEL",
        required=True,
        help="model folder; a run there is continued: one that stopped, or has fewer steps",
    )
    parser.add_argument(
        "--validation", metavar="PACKED", help="corpus whose validation split is scored, if not the same"
    )
    parser.add_argument(
        "--config", action="config", help="YAML file of the options below; dotted options after it override it"
    )
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="fine-tune a shipped model or your own: type, sizes, front end and labels are its own; a lower "
        "--training.learning_rate keeps more of what it knows; an Autoencoder with --type FrameVAE starts a VAE; with "
        "--rooms a separator goes on, or one begins with this prior",
    )
    parser.add_argument(
        "--type",
        choices=list(MODEL_SETTINGS),
        default=kind,
        help="member of the family, whose sizes the options --vae are",
    )
    parser.add_argument(
        "--labels",
        nargs="*",
        default=[],
        metavar="LABEL",
        help="condition the model on labels of the corpus, such as: speaker",
    )
    parser.add_class_arguments(
        MODEL_SETTINGS[kind], "vae", skip={"labels"} if _takes_labels(kind) else set(), help=f"sizes of {kind}"
    )
    parser.add_class_arguments(STFTSettings, "stft", help="front end")
    parser.add_argument(
        "--level",
        choices=get_args(LevelName),
        default="active",
        help="what recordings are divided by: the RMS of their active frames, or their peak",
    )
    parser.add_argument(
        "--rooms",
        metavar="BANK",
        help="train a separator on mixtures of the corpus in these rooms, see recipes/neural_fca: with the prior of "
        "--init, or a new one of the options above",
    )
    parser.add_class_arguments(MixtureSettings, "mixtures", help="mixtures, with --rooms")
    parser.add_class_arguments(NeuralSettings, "separator", help="the separator, with --rooms")
    parser.set_defaults({name: value for name, value in sizes.items() if name != "labels"})
    parser.add_class_arguments(TrainingSettings, "training", help="the training run")
    parser.add_argument("--devices", type=jsonargparse.typing.PositiveInt, help="short for --training.devices")
    parser.add_argument("--nodes", type=jsonargparse.typing.PositiveInt, help="short for --training.nodes")
    parser.add_argument("--overwrite", action="store_true", help="start anew, deleting the model and the run in MODEL")
    parser.add_argument(
        "--verify", action="store_true", help="verify all recordings first, also of a corpus above 2 GB: slow"
    )
    arguments.add_break_lock(parser)
    arguments.add_common(parser, "device", "seed", first_seed=None)


def _named(option: str, given: Sequence[str], config: str | None) -> str | None:
    """An option that decides what others there are, such as the type of the model: as typed, or of the YAML file."""
    words = [part for text in given for part in (text.split("=", 1) if text.startswith(f"--{option}=") else [text])]
    value = next((words[i + 1] for i, text in enumerate(words[:-1]) if text == f"--{option}"), None)
    if value is None and config is not None:
        import yaml

        try:
            content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            content = None  # the parser says what is wrong
        if not _is_small(content):
            raise AudiovaeError(f"{config}: is not a YAML file of options: it has too many values")
        value = content.get(option) if isinstance(content, dict) else None
    return value if isinstance(value, str) else None


def _find(init: str) -> tuple[Path, dict[str, Any]]:
    """Folder and config of a saved prior or separator.

    Raises:
        ModelError: there is no such model.
    """
    from audiovae import saved

    folder = saved.find_any(init)
    return folder, saved.read_config(folder)


def _of_model(init: str) -> tuple[str, dict[str, Any]]:
    """Type of a saved prior, or of a separator's, and its options by name.

    Raises:
        ModelError: there is no such model.
    """
    from audiovae import saved

    folder, config = _find(init)
    try:
        of_separator = config.get("separator", {})
        config = config["prior"] if of_separator else config
        kind = config["vae"]["type"]
        sizes = asdict(settings_from_config(kind, config["vae"]["settings"]))
        stft = dict(config["stft"])
    except (KeyError, TypeError, ValueError) as error:
        raise saved.misfit(folder, error) from error
    own = {"labels": list(sizes.pop("labels", ())), "level": config.get("level_rule", "active")}
    own |= {f"vae.{name}": value for name, value in sizes.items()}
    own |= {f"separator.{name}": value for name, value in of_separator.items()}
    return kind, own | {f"stft.{name}": value for name, value in stft.items()}


def _of_init(init: str, named: str | None) -> tuple[str, dict[str, Any]]:
    """Type and options of the model that a saved one begins: its own, or a VAE's that begins with an autoencoder."""
    kind, own = _of_model(init)
    if (kind, named) != ("Autoencoder", "FrameVAE"):
        return kind, own
    shared = {f"vae.{field.name}" for field in fields(MODEL_SETTINGS["FrameVAE"])}
    return "FrameVAE", {name: x for name, x in own.items() if name in shared or not name.startswith("vae.")}


def _check_init(options: Any) -> None:
    """Raises AudiovaeError for an option that says something else than the model that is fine-tuned."""
    kind, own = _of_init(options.init, options.type)
    if "separator.type" in own and options.rooms is None:
        raise AudiovaeError(f"train: {options.init} is a separator, which is learnt from mixtures: give --rooms too")
    found = {"type": options.type, "level": options.level} | {
        f"{group}.{name}": value
        for group in ("vae", "stft", "separator")
        for name, value in _group(options, group).items()
    }
    own = {"type": kind, **own}
    if options.labels:
        found["labels"], own["labels"] = sorted(options.labels), sorted(own["labels"])
    for name, value in found.items():
        if name not in own:  # an autoencoder has not all that a VAE has, and a prior is no separator
            continue
        if name == "separator.n_sources" and own["separator.start"] == "iva":  # no weights depend on it
            continue
        here, there = (list(x) if isinstance(x, tuple) else x for x in (value, own[name]))
        if here != there:
            raise AudiovaeError(
                f"train: --{name} {here} contradicts {options.init}, which has {there}; leave it out to fine-tune that "
                "model, or --init to train another"
            )


def _group(options: Any, name: str) -> dict[str, Any]:
    """Options of one group; a group that is empty in a YAML file has its defaults.

    Raises:
        AudiovaeError: the YAML file has something else in its place.
    """
    group = getattr(options, name)
    if group is None:
        return {}
    if not isinstance(group, jsonargparse.Namespace):
        raise AudiovaeError(f"train: {name}: expected options by name, got {str(group)[:80]}")
    return group.as_dict()


def _is_small(content: Any) -> bool:
    """Has a YAML file so few values, those that it repeats by reference counted anew, that they can be printed?"""
    waiting, n = [content], 0
    while waiting and n < _MOST_VALUES:
        value, n = waiting.pop(), n + 1
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return n < _MOST_VALUES


def _takes_labels(kind: str) -> bool:
    return any(field.name == "labels" for field in fields(MODEL_SETTINGS[kind]))


def _prior(options: Any, corpus: PackedCorpus) -> AudioVAE:
    """The model to train, as it begins."""
    from audiovae.models import build
    from audiovae.prior import AudioVAE
    from audiovae.stft import STFT

    begun = None if options.init is None else AudioVAE.from_pretrained(options.init)
    if begun is not None and begun.kind == options.type:
        return begun
    try:
        if begun is not None:
            vae = build(options.type, begun.stft.n_freqs, MODEL_SETTINGS[options.type](**_group(options, "vae")))
            vae.start_from(begun.vae)
            prior = AudioVAE(begun.stft, vae, begun.sample_rate, begun.level_rule)
            prior.origin = begun.origin  # whose constants of data it keeps
            return prior
        stft = STFT(**_group(options, "stft"))
        sizes = _group(options, "vae")
        if options.labels:
            sizes["labels"] = {name: corpus.classes(name) for name in options.labels}
        vae = build(options.type, stft.n_freqs, MODEL_SETTINGS[options.type](**sizes))
        return AudioVAE(stft, vae, corpus.header.sample_rate, options.level)
    except ValueError as error:
        raise AudiovaeError(f"train: {error}") from error


def _check_rooms(options: Any) -> None:
    """Raises AudiovaeError for options of separators without the rooms that one is learnt in."""
    if options.rooms is not None:
        return
    for name, plain in (("mixtures", MixtureSettings()), ("separator", NeuralSettings())):
        group = {**asdict(plain), **_group(options, name)}
        for setting, value in asdict(plain).items():
            if group[setting] != value:
                raise AudiovaeError(
                    f"train: --{name}.{setting} is of a separator: give its --rooms too, or leave it out"
                )


def _separator(options: Any, corpus: PackedCorpus) -> NeuralSeparator:
    """The separator to train, as it begins."""
    from audiovae.separation.neural.separators import NeuralSeparator, build_separator

    if options.init is not None and "separator" in _find(options.init)[1]:
        begun = NeuralSeparator.from_pretrained(options.init)
        begun.settings = replace(begun.settings, n_sources=options.separator.n_sources)
        return begun
    prior = _prior(options, corpus)
    try:
        settings = NeuralSettings(**_group(options, "separator"))
        is_new = options.init is None or _of_model(options.init)[0] != options.type
        if is_new and not settings.train_prior:
            raise ValueError("a new prior knows nothing yet: give --init, or --separator.train_prior true")
        return build_separator(prior, settings)
    except ValueError as error:
        raise AudiovaeError(f"train: {error}") from error


def _mixed(options: Any, corpus: PackedCorpus, separator: NeuralSettings) -> MixtureCorpus:
    """Mixtures of a corpus, for a separator."""
    from audiovae.corpora.mixtures import MixtureCorpus, RoomBank

    try:
        settings = MixtureSettings(**_group(options, "mixtures"))
    except ValueError as error:
        raise AudiovaeError(f"train: {error}") from error
    if settings.n_sources != separator.n_sources:
        raise AudiovaeError(
            f"train: --mixtures.n_sources is {settings.n_sources} and --separator.n_sources {separator.n_sources}: "
            "give both the same number"
        )
    if separator.start == "iva" and settings.n_sources > settings.n_channels:
        raise AudiovaeError(
            f"train: independent vector analysis needs a microphone for each of {settings.n_sources} sources, and "
            f"--mixtures.n_channels is {settings.n_channels}"
        )
    return MixtureCorpus(corpus, RoomBank(options.rooms), settings)


def _bar(advance: Callable[..., None]) -> Callable[[Progress], None]:
    """What `fit` tells, beside the bar, with the validation before."""
    bound, step = "", 0

    def progress(now: Progress) -> None:
        nonlocal bound, step
        bound = _bound(now) or bound
        advance(now.step - step, text=f"loss {now.loss:.1f}{bound}")
        step = now.step

    return progress


def _log() -> Callable[[Progress], None]:
    """What `fit` tells, in lines now and then, of which the last is that of the last validation."""
    last = -_PLAIN_SECONDS

    def progress(now: Progress) -> None:
        nonlocal last
        bound = _bound(now)
        is_due = time.monotonic() - last > (_PLAIN_SECONDS_OF_VALIDATIONS if bound else _PLAIN_SECONDS)
        if is_due or (bound and now.step == now.steps):
            text = f"loss {now.loss:.1f}{bound}"
            print(f"audiovae: step {now.step} of {now.steps}: {text}", file=sys.stderr, flush=True)
            last = time.monotonic()

    return progress


def _bound(now: Progress) -> str:
    """As evaluate has it: like the loss, to be low."""
    return "" if now.elbo is None else f"  validation NLL + KL {-now.elbo:.1f}"


def run(options: Any) -> int:
    if arguments.rank("LOCAL_RANK") or arguments.rank("NODE_RANK"):  # one of several processes of the same run
        options.quiet, options.json, options.overwrite = True, False, False
    shorts = {name: value for name in ("devices", "nodes", "seed") if (value := getattr(options, name)) is not None}
    if options.init is not None:
        _check_init(options)
    elif options.labels and not _takes_labels(options.type):
        takers = ", ".join(filter(_takes_labels, MODEL_SETTINGS))
        raise AudiovaeError(f"train: {options.type} takes no labels: its structure has no place for them; {takers} do")
    _check_rooms(options)
    try:
        settings = TrainingSettings(**{**_group(options, "training"), **shorts})
    except ValueError as error:
        raise AudiovaeError(f"train: {error}") from error

    import torch

    from audiovae.cli.batch import print_json
    from audiovae.cli.progress import bar
    from audiovae.corpora.packed import PackedCorpus
    from audiovae.prior import AudioVAE
    from audiovae.training.loop import fit

    corpus = PackedCorpus(options.packed)
    validation = PackedCorpus(options.validation) if options.validation else corpus
    output = Path(options.output)
    device = arguments.resolve_device(options.device).replace("cpu:0", "cpu")
    torch.manual_seed(settings.seed)
    model = _prior(options, corpus) if options.rooms is None else _separator(options, corpus)
    if isinstance(model, AudioVAE):
        heard: list[PackedCorpus | MixtureCorpus] = [corpus, validation]
    else:
        heard = [_mixed(options, one, model.settings) for one in (corpus, validation)]
    if options.break_lock:
        break_lock(output)
    if options.verify:
        corpus.verify()
        validation.verify()
    is_plain = not sys.stderr.isatty()  # a log file
    with bar(settings.steps, hidden=options.quiet or is_plain, what="steps") as advance:
        progress = _log() if is_plain and not options.quiet else _bar(advance)
        fitted = fit(model, heard[0], heard[1], output, settings, device, options.overwrite, progress)
    options.rows = [{"seconds": u.n_samples / corpus.sample_rate} for u in corpus.split("train")]
    if fitted.warning:
        print(f"audiovae: warning: {fitted.warning}", file=sys.stderr)
    if options.json:
        print_json({"model": str(output), **asdict(fitted)})
    elif not options.quiet:
        print(
            f"{output}: validation NLL + KL {-fitted.elbo:.1f} {model.unit}, the lowest, reached at step "
            f"{fitted.best_step} of {fitted.steps}"
        )
    return 0
