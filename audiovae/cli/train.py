"""audiovae train PACKED -o MODEL."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.errors import AudiovaeError
from audiovae.settings import FrameVAESettings, STFTSettings, TrainingSettings


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("packed", help="corpus as prepared by: audiovae prepare")
    parser.add_argument("-o", "--output", metavar="MODEL", required=True, help="model folder; a run that was stopped there is continued")
    parser.add_argument("--validation", metavar="PACKED", help="corpus whose validation split is scored, if not the same")
    parser.add_argument("--config", action="config", help="YAML file of the options below; dotted options after it override it")
    parser.add_class_arguments(FrameVAESettings, "vae", help="sizes of the model")
    parser.add_class_arguments(STFTSettings, "stft", help="front end")
    parser.add_class_arguments(TrainingSettings, "training", help="the training run")
    parser.add_argument("--devices", type=jsonargparse.typing.PositiveInt, help="short for --training.devices")
    parser.add_argument("--nodes", type=jsonargparse.typing.PositiveInt, help="short for --training.nodes")
    parser.add_argument("--overwrite", action="store_true", help="start anew, deleting the model and the run in MODEL")
    arguments.add_common(parser, unused=("model", "jobs"), unset=("seed",))


def run(options: Any) -> int:
    if int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("NODE_RANK", 0)):  # one of several processes of the same run
        options.quiet, options.json, options.overwrite = True, False, False
    shorts = {name: value for name in ("devices", "nodes", "seed") if (value := getattr(options, name)) is not None}
    try:
        settings = TrainingSettings(**{**options.training.as_dict(), **shorts})
        vae_settings = FrameVAESettings(**options.vae.as_dict())
    except ValueError as error:
        raise AudiovaeError(f"train: {error}") from error

    import torch

    from audiovae.cli.batch import print_json
    from audiovae.cli.progress import bar
    from audiovae.corpora.packed import PackedCorpus
    from audiovae.models import FrameVAE
    from audiovae.prior import AudioVAE
    from audiovae.stft import STFT
    from audiovae.training.loop import Progress, fit

    corpus = PackedCorpus(options.packed)
    validation = PackedCorpus(options.validation) if options.validation else corpus
    output = Path(options.output)
    device = arguments.resolve_device(options.device)
    torch.manual_seed(settings.seed)
    try:
        stft = STFT(**options.stft.as_dict())
        prior = AudioVAE(stft, FrameVAE(stft.n_freqs, vae_settings), corpus.header.sample_rate)
    except ValueError as error:
        raise AudiovaeError(f"train: {error}") from error

    with bar(settings.steps, hidden=options.quiet, what="steps") as advance:
        at = [0, float("nan")]

        def progress(now: Progress) -> None:
            at[1] = at[1] if now.elbo is None else now.elbo
            advance(now.step - at[0], text=f"loss {now.loss:.1f}  validation ELBO {at[1]:.1f}")
            at[0] = now.step

        fitted = fit(prior, corpus, validation, output, settings, device, options.overwrite, progress)
    if fitted.warning:
        print(f"audiovae: warning: {fitted.warning}", file=sys.stderr)
    if options.json:
        print_json({"model": str(output), **asdict(fitted)})
    elif not options.quiet:
        print(f"{output}: validation ELBO {fitted.elbo:.1f} nats per frame, reached at step {fitted.best_step} of {fitted.steps}")
    return 0
