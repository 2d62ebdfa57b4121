"""What a training run leaves in its folder: settings, versions and data, loss trace, curves, the best model."""

from __future__ import annotations

import csv
import json
import logging
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiovae import saved
from audiovae.atomic import atomic_path
from audiovae.corpora.layouts import LAYOUTS
from audiovae.errors import ModelError, TrainingError
from audiovae.saved import CARD, CONFIG, NEXT, TENSORS, Origin
from audiovae.settings import TrainingSettings
from audiovae.trainable import Trainable
from audiovae.training.state import TraceRow

RUN, TRACE = "run.json", "trace.csv"
_FORMAT = 4  # of run.json and the checkpoints beside it; 3: segments had no ends of recordings
_MAY_DIFFER = ("versions", "init")  # of what run.json holds, when a run continues


class Record:
    """The folder `training/` below a model's.

    Args:
        folder: the model's folder.
        model: before training.
        settings: of the run.
        data: fingerprints of the corpora by role.
        writes: False on all but one process of several; those leave no trace.
        overwrite: delete what a run left in the folder, and nothing else that may be there.

    Attributes:
        lengthened: the run in the folder had fewer steps.

    Raises:
        TrainingError: the folder holds another run, or a model that no run left there.
    """

    def __init__(
        self,
        folder: Path,
        model: Trainable,
        settings: TrainingSettings,
        data: dict[str, str],
        writes: bool = True,
        overwrite: bool = False,
    ) -> None:
        self.model_folder = folder
        self.folder = folder / "training"
        self._writes = writes
        self._board: Any = None  # where TensorBoard is not installed, and in processes that leave no trace
        self.lengthened = False
        self._run = {
            "format": {"version": _FORMAT},
            "settings": asdict(settings),
            "model": _leaves(model.config()),
            "data": data,
            "init": {} if model.origin is None else asdict(model.origin),
            "versions": {
                "audiovae": version("audiovae"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        self._run = json.loads(json.dumps(self._run))  # tuples become lists, as in the file
        if overwrite and writes:
            self._delete()
        elif writes:
            self._compare(settings.steps)
        if writes:
            with atomic_path(self.folder / RUN) as temporary:
                temporary.write_text(json.dumps(self._run, indent=2) + "\n")

    def _delete(self) -> None:
        try:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            for name in (CONFIG, TENSORS, NEXT, CARD):
                if self.model_folder.is_dir():
                    (self.model_folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.model_folder}: cannot be replaced ({error.strerror})") from error

    def _compare(self, n_steps: int) -> None:
        path = self.folder / RUN
        if not path.exists():
            if (self.model_folder / CONFIG).exists():
                raise TrainingError(f"{self.model_folder}: holds a model already; --overwrite replaces it")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not all(isinstance(part, dict) for part in (found, *found.values())):
                raise TypeError("run")
        except OSError as error:
            raise TrainingError(f"{path}: cannot be read ({error.strerror}); --overwrite starts anew") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise TrainingError(f"{path}: is damaged; --overwrite starts anew") from error
        if found.get("format") != self._run["format"]:
            raise TrainingError(
                f"{self.model_folder}: holds a run of another version of audiovae, whose checkpoints this one cannot "
                "continue; --overwrite starts anew"
            )
        found["settings"] = {**asdict(TrainingSettings()), **found.get("settings", {})}  # of an older run: the defaults
        self._compare_beginning(found.get("init", {}))
        for group in (name for name in self._run if name not in _MAY_DIFFER):
            for name in sorted({*self._run[group], *found.get(group, {})}):
                there, here = found.get(group, {}).get(name), self._run[group].get(name)
                if (group, name) == ("settings", "steps") and isinstance(there, int) and there < n_steps:
                    self.lengthened = True
                    logging.getLogger("audiovae").warning(
                        "%s: a run of %d steps goes on to %d; from here its learning rate is that of a run of %d steps",
                        self.model_folder, there, n_steps, n_steps,
                    )  # fmt: skip
                elif there != here:
                    raise TrainingError(f"{self.model_folder}: {_difference(group, name, there, here)}")

    def _compare_beginning(self, there: dict[str, Any]) -> None:
        """A run continues with the model that it began as, or with the one that it left."""
        here = self._run["init"]
        try:
            left = saved.read_config(self.model_folder)["config_sha256"]
        except ModelError:
            left = None
        if here and here["sha256"] == left:
            self._run["init"] = there
        elif here.get("sha256") != there.get("sha256"):
            began = [str(init["name"]) if init else "random weights" for init in (there, here)]
            raise TrainingError(
                f"{self.model_folder}: holds a run that began as {began[0]}, and this one begins as {began[1]}; begin "
                "with the same model to continue it, or --overwrite to start anew"
            )

    def rewind(self, step: int, trace: list[TraceRow]) -> None:
        """Begin, or go back to where a checkpoint was taken: drop what was written after it."""
        if not self._writes:
            return
        self._write_trace("w", [("step", "loss", "kl"), *trace])
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logging.getLogger("audiovae").warning(
                "no curves for TensorBoard, which is not installed (pip install 'audiovae[tensorboard]'); losses: "
                "%s", self.folder / TRACE,
            )  # fmt: skip
            return
        self._board = SummaryWriter(str(self.folder), purge_step=step + 1)

    def trace(self, row: TraceRow) -> None:
        """Append to the loss trace."""
        if not self._writes:
            return
        self._write_trace("a", [row])
        step, loss, kl = row
        if self._board is not None:
            self._board.add_scalar("train/loss", loss, step)
            self._board.add_scalar("train/kl", kl, step)

    def _write_trace(self, mode: str, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            with open(self.folder / TRACE, mode, newline="") as file:
                csv.writer(file).writerows(rows)
        except OSError as error:
            raise TrainingError(
                f"{self.folder / TRACE}: cannot be written ({error.strerror}); check the folder and the free space, "
                "then the same command goes on"
            ) from error

    def validation(self, step: int, log_likelihood: float, kl: float) -> None:
        """Append to the curves."""
        if self._board is None:
            return
        self._board.add_scalar("validation/nll_plus_kl", kl - log_likelihood, step)  # minus the ELBO
        self._board.add_scalar("validation/nll", -log_likelihood, step)
        self._board.add_scalar("validation/kl", kl, step)

    @torch.no_grad()
    def illustration(self, step: int, model: Trainable, wave: Tensor, condition: Tensor | None) -> None:
        """What the model shows of one recording, weights as they are: pictures of powers, and sounds on one scale."""
        if self._board is None:
            return
        from audiovae.objectives import ACTIVE_NATS
        from audiovae.report.plots import kl_pixels, spectrogram_pixels

        shown = model.illustrate(wave, condition)
        waves, powers = (
            {name: values for name, values in several.items() if torch.isfinite(values).all()}
            for several in (shown.waves, shown.powers)
        )
        if missing := [name for name in (*shown.waves, *shown.powers) if name not in {**waves, **powers}]:
            logging.getLogger("audiovae").warning(
                "step %d: %s of a recording is beyond all numbers, and is not shown; if the next ones are, too, lower "
                "--training.learning_rate", step, " and ".join(missing),
            )  # fmt: skip
        scale = 0.9 / max([float(sound.abs().max()) for sound in waves.values()] + [1e-9])
        for name, sound in waves.items():
            self._board.add_audio(f"validation/{name}", sound.cpu() * scale, step, model.sample_rate)
        if powers:
            seconds = next(iter(waves.values()), wave).shape[-1] / model.sample_rate
            frame_seconds = seconds / max(1, next(iter(powers.values())).shape[0] - 1)
            pixels = spectrogram_pixels(powers, frame_seconds, model.sample_rate)
            self._board.add_image("validation/spectrograms", pixels, step, dataformats="HWC")
        if shown.kl is not None:
            self._board.add_image("validation/kl_per_dimension", kl_pixels(shown.kl.cpu()), step, dataformats="HWC")
            self._board.add_histogram("validation/kl_of_dimensions", shown.kl.cpu(), step)
            self._board.add_scalar("validation/active_dimensions", int((shown.kl > ACTIVE_NATS).sum()), step)

    def save_model(self, model: Trainable, step: int, elbo: float) -> None:
        """Write the model as it is, with a card that says where it comes from."""
        if self._writes:
            model.save_pretrained(self.model_folder, self._card(model, step, elbo))

    def repair(self, model: Trainable, step: int, elbo: float) -> Origin:
        """Write the best model once more if it was deleted or damaged since, and say what it is."""
        card = self._card(model, step, elbo)
        origin = Origin(self.model_folder.name, saved.model_hash(model.config(), model.state_dict()), card)
        if not self._writes:
            return origin
        saved.finish(self.model_folder)
        if not saved.holds(self.model_folder, model.config(), model.state_dict(), card):
            if (self.model_folder / CONFIG).exists():
                logging.getLogger("audiovae").warning(
                    "%s: the model was not the one of this run, or damaged: written again from the checkpoint",
                    self.model_folder,
                )
            self.save_model(model, step, elbo)
        return origin

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _card(self, model: Trainable, step: int, elbo: float) -> str:
        what, level = f"{model.sample_rate} Hz {model.purpose}", ", at unit level"
        scored = " with\n  `audiovae evaluate --model FOLDER FILES`" if model.purpose == "audio prior" else ""
        limits = (
            "it knows the kind of sound that it was trained on, and nothing else. Score it on recordings of your own"
            f"{scored} before you rely on it."
        )
        if not model.sample_rate:
            what, level = "prior of arrays in [0, 1]", ""
            limits = "it knows the kind of arrays that it was trained on, and nothing else."
        weights = sum(parameter.numel() for parameter in model.parameters())
        rows = "\n".join(
            f"| {name} | {value} |" for name, value in {**self._run["model"], **self._run["settings"]}.items()
        )
        description = self._run["data"]["description"]
        spoken = any(f"({layout} layout)" in description for layout in LAYOUTS)  # other folders may hold any sound
        kinds = ["audio"] * bool(model.sample_rate) + ["speech"] * spoken
        matter = f"library_name: audiovae\ntags: [{', '.join([*kinds, 'vae', 'unsupervised'])}]\n"
        init, before = self._run["init"], ""
        how, whose = "trained", "that of its training data decides"
        if init:
            found, before = _parts(str(init["card"] or ""))
            matter = found or matter
            before = f"\n## What it began as\n\nThe card of {init['name']}, as it was:\n\n{before.strip()}\n"
            how = f"fine-tuned from {init['name']} (SHA-256 {init['sha256'][:16]})"
            whose = f"those of its training data and of {init['name']}, below, decide"
        return f"""---
{matter}---

# A {what}

A {model.kind} of {weights:,} weights, {how} with audiovae {self._run["versions"]["audiovae"]}.

* Data: {description}; fingerprint {self._run["data"]["train"][:16]}.
* Validation NLL + KL (minus the ELBO): {-elbo:.1f} {model.unit}{level}, after {step} steps (one draw of the latents).
* Licence: {whose}; fill it in before you share this model.
* Limits: {limits}

| setting | value |
| --- | --- |
{rows}
{before}"""


def _difference(group: str, name: str, there: Any, here: Any) -> str:
    """What a run in the folder has that this one has not, and what to do about it."""
    if group == "data":
        found = f"holds a run on other data: {name} is {there!r} there and {here!r} now"
        remedy = "give the same corpus to continue it"
    else:
        option = name.partition(".")[2] if group == "model" and name.startswith("vae.") else name
        found = f"holds a run whose {option} is {there!r}, and now it is {here!r}"
        remedy = f"give it as {there!r}" + (" or more" if name == "steps" else "") + " to continue that run"
    return f"{found}; {remedy}, or --overwrite to start anew, or another -o for a new model"


def _parts(card: str) -> tuple[str, str]:
    """Front matter of a card, which holds its licence and data, empty where there is none; and the rest."""
    found = re.match(r"---\n(.*?\n)---\n", card, flags=re.DOTALL)
    return (found[1], card[found.end() :]) if found else ("", card)


def _leaves(config: dict[str, Any]) -> dict[str, Any]:
    """The innermost fields of a config by name, or by path, such as "vae.type", where several share a name."""
    paths = _paths(config, "")
    names = [path.rpartition(".")[2] for path in paths]
    unique = [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]
    return dict(zip(unique, paths.values(), strict=True))


def _paths(config: dict[str, Any], parent: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _paths(value, f"{parent}{name}.") if isinstance(value, dict) and value else {parent + name: value}
    return found
