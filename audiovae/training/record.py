"""What a training run leaves in its folder: settings, versions and data, loss trace, TensorBoard curves, the best model."""

from __future__ import annotations

import csv
import json
import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from audiovae.atomic import atomic_path
from audiovae.errors import TrainingError
from audiovae.prior import AudioVAE
from audiovae.saved import CARD, CONFIG, TENSORS, save
from audiovae.settings import TrainingSettings
from audiovae.training.state import TraceRow

RUN, TRACE = "run.json", "trace.csv"
_LISTENING_SECONDS = 5.0
_MAY_DIFFER = ("versions",)  # of what run.json holds, when a run continues


class Record:
    """The folder `training/` below a model's.

    Args:
        folder: the model's folder.
        prior: the model, before training.
        settings: of the run.
        data: fingerprints of the corpora by role.
        writes: False on all but one process of several; those leave no trace.
        overwrite: delete what a run left in the folder, and nothing else that may be there.

    Raises:
        TrainingError: the folder holds another run, or a model that no run left there.
    """

    def __init__(
        self, folder: Path, prior: AudioVAE, settings: TrainingSettings, data: dict[str, str], writes: bool = True, overwrite: bool = False
    ) -> None:
        self.model_folder = folder
        self.folder = folder / "training"
        self._writes = writes
        self._board: Any = None
        self._run = {
            "settings": asdict(settings),
            "model": {
                "type": type(prior.vae).__name__, "sample_rate": prior.sample_rate, "n_fft": prior.stft.n_fft,
                "hop_length": prior.stft.hop_length, "window": prior.stft.window_name, **asdict(prior.vae.settings),
            },
            "data": data,
            "versions": {"audiovae": version("audiovae"), "torch": torch.__version__, "python": platform.python_version()},
        }  # fmt: skip
        self._run = json.loads(json.dumps(self._run))  # tuples become lists, as in the file
        if overwrite and writes:
            self._delete()
        elif writes:
            self._compare()
        if writes:
            with atomic_path(self.folder / RUN) as temporary:
                temporary.write_text(json.dumps(self._run, indent=2) + "\n")

    def _delete(self) -> None:
        try:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            for name in (CONFIG, TENSORS, CARD):
                if self.model_folder.is_dir():
                    (self.model_folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.model_folder}: cannot be replaced ({error.strerror})") from error

    def _compare(self) -> None:
        path = self.folder / RUN
        if not path.exists():
            if (self.model_folder / CONFIG).exists():
                raise TrainingError(f"{self.model_folder}: holds a model already; --overwrite replaces it")
            return
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise TrainingError(f"{path}: is damaged; --overwrite starts anew") from error
        for group in (name for name in self._run if name not in _MAY_DIFFER):
            for name in sorted({*self._run[group], *found.get(group, {})}):
                there, here = found.get(group, {}).get(name), self._run[group].get(name)
                if there != here:
                    raise TrainingError(
                        f"{self.model_folder}: holds a run with another {name} ({group}): {there!r} there, {here!r} now; "
                        "repeat its settings to continue it, or --overwrite to start anew"
                    )

    def rewind(self, step: int, trace: list[TraceRow]) -> None:
        """Begin, or go back to where a checkpoint was taken: drop what was written after it."""
        if not self._writes:
            return
        with open(self.folder / TRACE, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("step", "loss", "kl"))
            writer.writerows(trace)
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self.folder), purge_step=step + 1)

    def trace(self, row: TraceRow) -> None:
        """Append to the loss trace."""
        if not self._writes:
            return
        with open(self.folder / TRACE, "a", newline="") as file:
            csv.writer(file).writerow(row)
        step, loss, kl = row
        self._board.add_scalar("train/loss", loss, step)
        self._board.add_scalar("train/kl", kl, step)

    def validation(
        self, step: int, log_likelihood: float, kl: float, prior: AudioVAE, wave: torch.Tensor, condition: torch.Tensor | None
    ) -> None:
        """Curves, the spectrogram and the PSD, and the sound of one held-out recording with the weights as they are."""
        if not self._writes:
            return
        self._board.add_scalar("validation/elbo", log_likelihood - kl, step)
        self._board.add_scalar("validation/log_likelihood", log_likelihood, step)
        self._board.add_scalar("validation/kl", kl, step)
        if prior.vae.predicts != "sound":
            return
        from audiovae.report.plots import decibel_image

        with torch.no_grad():
            wave = wave[: int(_LISTENING_SECONDS * prior.sample_rate)]
            if prior.vae.longest is not None:
                wave = wave[: (prior.vae.longest - 1) * prior.stft.hop_length]
            psd = prior.decode(prior.encode(wave, condition=condition), condition=condition).cpu()
            resynthesis = prior.resynthesize(wave, condition=condition).cpu()
        power = prior.stft(wave).abs().square().cpu()
        self._board.add_image("validation/power_and_psd", decibel_image([power, psd]), step)
        scale = 0.9 / max(float(wave.abs().max()), float(resynthesis.abs().max()), 1e-9)
        self._board.add_audio("validation/original", wave.cpu() * scale, step, prior.sample_rate)
        self._board.add_audio("validation/resynthesis", resynthesis * scale, step, prior.sample_rate)

    def save_model(self, prior: AudioVAE, step: int, elbo: float) -> None:
        """Write the model as it is, with a card that says where it comes from."""
        if self._writes:
            save(prior, self.model_folder, self._card(prior, step, elbo))

    def save_if_missing(self, prior: AudioVAE, step: int, elbo: float) -> None:
        """Write the best model once more if it was deleted since."""
        if not all((self.model_folder / name).exists() for name in (CONFIG, TENSORS, CARD)):
            self.save_model(prior, step, elbo)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _card(self, prior: AudioVAE, step: int, elbo: float) -> str:
        weights = sum(parameter.numel() for parameter in prior.parameters())
        unit = (
            "nats per frame at unit level"
            if prior.vae.is_density
            else "per frame (no density of the STFT: it compares with no other model's)"
        )
        rows = "\n".join(f"| {name} | {value} |" for name, value in {**self._run["model"], **self._run["settings"]}.items())
        return f"""---
library_name: audiovae
tags: [audio, speech, vae, unsupervised]
---

# A {prior.sample_rate} Hz audio prior

A {type(prior.vae).__name__} of {weights:,} weights, trained with audiovae {self._run["versions"]["audiovae"]}.

* Data: {self._run["data"]["description"]}; fingerprint {self._run["data"]["train"][:16]}.
* Validation ELBO: {elbo:.1f} {unit}, after {step} steps (one draw of the latents).
* Licence: that of its training data decides; fill it in before you share this model.
* Limits: it knows the kind of sound that it was trained on, and nothing else. Score it on recordings of your own with
  `audiovae evaluate --model FOLDER FILES` before you rely on it.

| setting | value |
| --- | --- |
{rows}
"""
