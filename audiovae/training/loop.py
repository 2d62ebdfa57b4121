"""fit(): the one training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovae.corpora.batches import Corpus, SegmentSampler, random_equaliser
from audiovae.corpora.mixtures import MixtureCorpus, MixtureSampler
from audiovae.corpora.packed import PackedCorpus, Utterance
from audiovae.errors import ConditionError, TrainingError
from audiovae.locks import locked_folder
from audiovae.models import Conditions
from audiovae.objectives import Objective
from audiovae.quiet import output_is_ours
from audiovae.settings import TrainingSettings
from audiovae.trainable import Trainable
from audiovae.training.checkpoint import load_checkpoint, save_checkpoint
from audiovae.training.interruption import postponed
from audiovae.training.memory import keep_freed_memory
from audiovae.training.record import Record
from audiovae.training.state import TrainingState

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CALIBRATION_FRAMES = 20_000
VALIDATION_FRAMES = 20_000
MIXTURE_FRAMES = 2_048  # of either, where a frame is that of a mixture, which takes a hundred times as long
_VALIDATION_BATCH, _MIXTURE_BATCH = 2048, 256  # frames
_LISTENING_SECONDS = 5.0
_NO_STEP = 2**40  # a step that training never reaches: its random numbers are its own


@dataclass(frozen=True)
class Fitted:
    """The end of a training run.

    Attributes:
        steps: optimiser steps taken.
        elbo: best validation ELBO, in nats per frame at unit level.
        best_step: where it was reached; these weights were saved.
        warning: of a collapsed posterior, if it is.
    """

    steps: int
    elbo: float
    best_step: int
    warning: str | None


@dataclass(frozen=True)
class Progress:
    """What `fit` tells while it works: at every `log_every`-th step and at every validation.

    Attributes:
        loss: mean over the last `log_every` steps that are over.
        elbo: of a validation at this step.
    """

    step: int
    steps: int
    loss: float
    elbo: float | None


def fit(
    model: Trainable,
    corpus: Corpus | MixtureCorpus,
    validation: Corpus | MixtureCorpus,
    folder: str | Path,
    settings: TrainingSettings = TrainingSettings(),
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Fitted:
    """Train a model on the "train" split of a corpus; the best weights by validation ELBO end up in both.

    A run that is interrupted leaves a checkpoint of its last step, and one that is killed has that of its last
    validation. It goes on from there in `folder` and ends, on a CPU with the same number of
    threads, with the very weights and loss trace of an uninterrupted one: every step's batch and noise depend on the
    seed and the step alone, and all else (weights, their average, the optimiser, best weights, patience, trace) is in
    the checkpoint.

    More steps than a run had, finished or not, continue it. Schedules are functions of the share of all steps, so from
    there on they are those of a run of that many steps from the start: the learning rate, which had fallen towards
    zero, jumps up to where that run would have it, and falls again.

    A model that was loaded is fine-tuned: its constants stay as they are, and its card goes on below the new one.

    Args:
        model: such as an `AudioVAE`, or an `ArrayVAE`, which is trained on an `ArrayCorpus`. Weights that need a
            gradient are trained, or what `require_gradients` says, where none does; at the end none does, as of a model
            that is loaded.
        corpus: its "train" split is drawn from.
        validation: its "validation" split is scored (may be the same corpus).
        folder: receives `config.json`, `model.safetensors`, `README.md` (the best weights) and `training/`.
        device: "cpu", "cuda", "auto"; with settings.devices > 1, that many of them.
        overwrite: start anew where `folder` holds a run or a model.
        progress: called now and then.

    Raises:
        LockedError: another process trains in `folder`.
        TrainingError: the model cannot be trained so; another run (other settings, data or model) stands in `folder`; a
            loss that is not finite.
        CorpusError: a split without recordings, or a recording that is damaged.
    """
    model.check(settings)
    fabric = _engine(settings, device)
    with locked_folder(Path(folder)) if fabric.is_global_zero else nullcontext():
        model.to(fabric.device).train()
        if not any(weight.requires_grad for weight in model.parameters()):
            model.require_gradients()
        data = _Data(model, corpus, validation, settings, fabric)
        record = Record(Path(folder), model, settings, _describe(corpus, validation), fabric.is_global_zero, overwrite)
        fabric.barrier()  # what is overwritten is gone before any process looks for a checkpoint
        run = _Run(model, data, settings, fabric, record)
        with postponed() as interrupted:
            _train(run, record, settings, progress, interrupted)
        if not run.is_over:
            raise KeyboardInterrupt
        record.close()
        return run.finish()


def _train(
    run: _Run,
    record: Record,
    settings: TrainingSettings,
    progress: Callable[[Progress], None],
    interrupted: Callable[[], bool],
) -> None:
    """Steps and validations, until the run is over, or interrupted: then there is a checkpoint of the last step."""
    while not run.is_over:
        loss = run.step(interrupted())
        step = run.state.step
        if step % settings.log_every == 0:
            record.trace(run.state.close_interval(settings.log_every))
            progress(Progress(step, settings.steps, run.state.trace[-1][1], None))
        if step % settings.validate_every == 0 or step == settings.steps:
            run.validate()
            mean_loss = run.state.trace[-1][1] if run.state.trace else loss.item()
            progress(Progress(step, settings.steps, mean_loss, run.state.last_elbo))
        if run.is_interrupted:
            run.save()
            return


# Engine


def _engine(settings: TrainingSettings, device: str) -> Fabric:
    """Lightning's Fabric, launched: devices, precision, processes."""
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision
    accelerator, _, index = device.partition(":")
    fabric = Fabric(
        accelerator=accelerator,
        devices=[int(index)] if index else settings.devices,
        num_nodes=settings.nodes,
        precision=settings.precision,
        strategy="ddp" if settings.devices * settings.nodes > 1 else "auto",
    )
    with output_is_ours():
        fabric.launch()
    keep_freed_memory()
    return fabric


class Batch:
    """All of a step, in full precision: the engine would round plain tensors to half of it with mixed precision.

    Args:
        observed: as of `Trainable.observe`, one entry per segment.
        condition: `[segment, label]`, or None.
    """

    def __init__(self, observed: Tensor, condition: Tensor | None, objective: Objective = Objective()) -> None:
        self.observed, self.condition, self.objective = observed, condition, objective


class TrainingLoss(nn.Module):
    """The training step's forward pass, which the engine wraps. No other call has gradients."""

    def __init__(self, model: Trainable) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Float[Tensor, 2]:
        """The loss and the KL alone, see `Trainable.loss`."""
        return self.model.loss(batch.observed, batch.condition, batch.objective)


# Data


class _Data:
    """What a run trains on and is scored on: all of it follows from seed, step and rank.

    Raises:
        TrainingError: a corpus of another rate or number of channels, or a recording without the labels of the model.
        CorpusError: a split without recordings.
    """

    def __init__(
        self,
        model: Trainable,
        corpus: Corpus | MixtureCorpus,
        validation: Corpus | MixtureCorpus,
        settings: TrainingSettings,
        fabric: Fabric,
    ) -> None:
        for packed in (corpus, validation):
            if packed.sample_rate != model.sample_rate:
                prepared = f"was prepared at {packed.sample_rate} Hz" if packed.sample_rate else "are no sound"
                expected = f"has {model.sample_rate} Hz" if model.sample_rate else "is one of arrays"
                raise TrainingError(f"{packed.folder} {prepared}, and the model {expected}")
            if isinstance(packed, PackedCorpus) and packed.n_channels > 1 and model.n_channels == 1:
                raise TrainingError(
                    f"{packed.folder} has recordings of {packed.n_channels} channels, and the model takes one; prepare "
                    "it with --channels mean"
                )
            packed.verify_small()
        self._model, self._settings, self._corpus = model, settings, corpus
        self._rank, self._device = fabric.global_rank, fabric.device
        self._of_mixtures = isinstance(corpus, MixtureCorpus)
        self._train = _sampler(model, corpus, "train", settings.segment_frames, self._device)
        self._conditions = _conditions(model, self._train.utterances, self._device)
        draws = _sampler(model, validation, "validation", settings.segment_frames, self._device)
        n_frames = MIXTURE_FRAMES if self._of_mixtures else VALIDATION_FRAMES
        self._validation, drawn = draws.draw(max(1, n_frames // settings.segment_frames), 0, _NO_STEP)
        validation.verify(drawn)
        conditions = _conditions(model, draws.utterances, self._device)
        self._validation_condition = _stacked(conditions, drawn)
        n_heard = int(_LISTENING_SECONDS * validation.sample_rate) or None  # of arrays all frames
        self.listening = draws.example(n_heard).to(self._device)
        self.listening_condition = conditions.get(draws.utterances[0].id)

    def calibration(self) -> Tensor:
        """What the model's constants are taken from."""
        n_frames = MIXTURE_FRAMES if self._of_mixtures else CALIBRATION_FRAMES
        n_segments = max(1, n_frames // self._settings.segment_frames)
        waves, utterances = self._train.draw(n_segments, self._settings.seed, _NO_STEP)
        self._corpus.verify(utterances)
        return self._model.observe(waves)

    def batch(self, step: int) -> tuple[Batch, list[Utterance]]:
        """The batch of a step, and the recordings that it is from."""
        settings = self._settings
        n_segments = settings.batch_frames // settings.segment_frames
        waves, utterances = self._train.draw(n_segments, settings.seed, step, self._rank)
        self._corpus.verify(utterances)
        equaliser = None
        if settings.equaliser_db:
            key = (settings.seed, step, self._rank, 1)
            equaliser = partial(random_equaliser, n_segments, deviation_db=settings.equaliser_db, seed=key)
        observed = self._model.observe(waves, equaliser)
        return Batch(observed, _stacked(self._conditions, utterances), objective(settings, step)), utterances

    def held_out(self) -> list[tuple[Tensor, Tensor | None]]:
        """The same validation segments in every run, as batches of what is observed and its condition."""
        n_frames = _MIXTURE_BATCH if self._of_mixtures else _VALIDATION_BATCH
        n = max(1, n_frames // self._settings.segment_frames)
        waves = self._validation.split(n)
        of_waves = self._validation_condition
        conditions = [None] * len(waves) if of_waves is None else of_waves.split(n)
        return [(self._model.observe(batch), condition) for batch, condition in zip(waves, conditions, strict=True)]


def _sampler(
    model: Trainable, corpus: Corpus | MixtureCorpus, split: str, n_frames: int, device: torch.device
) -> SegmentSampler | MixtureSampler:
    """What draws segments of so many frames."""
    n_samples = model.segment_samples(n_frames)
    if isinstance(corpus, MixtureCorpus):
        return MixtureSampler(corpus, split, n_samples, device)
    margin = model.segment_samples(1) // 2  # half a frame; of arrays nothing
    return SegmentSampler(corpus, split, n_samples, device, model.level_rule, margin)


def _conditions(model: Trainable, utterances: list[Utterance], device: torch.device) -> dict[str, Tensor]:
    """The condition of every recording by its id; none where the model has no labels.

    Raises:
        TrainingError: a recording without a label of the model, or with a class that the model does not know.
    """
    conditions = Conditions(model.labels)
    found = {}
    for utterance in utterances if conditions.labels else []:
        known = {name: utterance.labels[name] for name in conditions.labels if name in utterance.labels}
        try:
            found[utterance.id] = conditions.encode(**known).to(device)
        except ConditionError as error:
            raise TrainingError(f"{utterance.id} ({utterance.split}): {error}") from error
    return found


def _stacked(conditions: dict[str, Tensor], utterances: list[Utterance]) -> Tensor | None:
    return torch.stack([conditions[utterance.id] for utterance in utterances]) if conditions else None


def _describe(corpus: Corpus | MixtureCorpus, validation: Corpus | MixtureCorpus) -> dict[str, str]:
    return {
        "description": corpus.description,
        "train": corpus.fingerprint(),
        "validation": validation.fingerprint(),
    }


# Run


class _Run:
    """The steps and validations of a run, from its checkpoint if there is one.

    Raises:
        TrainingError: checkpoints that cannot be read; a loss or a bound that is not finite.
    """

    def __init__(
        self, model: Trainable, data: _Data, settings: TrainingSettings, fabric: Fabric, record: Record
    ) -> None:
        self._model, self._data, self._settings = model, data, settings
        self._fabric, self._record = fabric, record
        checkpoint = load_checkpoint(record.folder)
        if checkpoint is None and model.origin is None:
            model.calibrate(data.calibration())
        adam = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        setup: tuple[Any, Any] = fabric.setup(TrainingLoss(model), adam)
        self._loss, self._optimizer = setup
        self.is_interrupted = False
        self.state = TrainingState(model, adam, fabric.device)
        if checkpoint is not None:
            try:
                self.state.restore(checkpoint)
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
                raise TrainingError(
                    f"{record.folder}: its checkpoint is not of this run ({' '.join(str(error).split())[:200]}); "
                    "--overwrite starts anew"
                ) from error
            if record.lengthened:
                self.state.waited = 0  # its patience begins anew
        record.rewind(self.state.step, self.state.trace)
        self._held_out = data.held_out()

    @property
    def is_over(self) -> bool:
        patience = self._settings.patience
        return self.state.step >= self._settings.steps or bool(patience and self.state.waited >= patience)

    def step(self, interrupted: bool = False) -> Tensor:
        """One step of the optimiser; its loss, the mean over devices.

        Args:
            interrupted: make this the last step, on all devices.
        """
        settings, fabric, step = self._settings, self._fabric, self.state.step
        batch, utterances = self._data.batch(step)
        _seed(settings.seed, step, fabric.global_rank)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        losses = self._loss(batch)
        self._optimizer.zero_grad()
        fabric.backward(losses[0])
        norm = fabric.clip_gradients(self._loss, self._optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
        told = torch.cat([losses.detach(), losses.new_tensor([float(interrupted)])])
        told = cast(Tensor, fabric.all_reduce(told))  # every device sees the same trace, the same NaN, the same end
        losses, self.is_interrupted = told[:2], bool(told[2] > 0)
        if not (torch.isfinite(losses).all() and (norm is None or torch.isfinite(norm))):
            names = ", ".join(sorted({utterance.id for utterance in utterances}))
            raise TrainingError(
                f"the loss is {losses[0].item()} at step {step}, in a batch from {names}; the checkpoint of step "
                f"{self.state.saved_step} is kept (gradient norm {norm}). Lower learning_rate or clip_norm, or leave "
                "these recordings out"
            )
        self._optimizer.step()
        self.state.advance(losses, settings.averaging)
        return losses[0]

    def validate(self) -> None:
        """Score the averaged weights, keep them if they are the best so far, and write a checkpoint."""
        model, state, record = self._model, self.state, self._record
        with state.averaged_weights():
            model.eval()
            log_likelihood, kl = _score(model, self._held_out, self._settings.seed)
            if not math.isfinite(log_likelihood - kl):
                raise TrainingError(
                    f"the validation ELBO is {log_likelihood - kl} at step {state.step}; the checkpoint of step "
                    f"{state.saved_step} is kept. Lower learning_rate"
                )
            if state.score(log_likelihood - kl):
                record.save_model(model, state.step, state.best_elbo)
            record.validation(state.step, log_likelihood, kl)
            record.illustration(state.step, model, self._data.listening, self._data.listening_condition)
            model.train()
        self.save()
        self._fabric.barrier()

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this step."""
        if self._fabric.is_global_zero and self.state.saved_step != self.state.step:
            save_checkpoint(self._record.folder, self.state.checkpoint())

    def finish(self) -> Fitted:
        """Leave the best weights in the model and on the disk."""
        model, state = self._model, self.state
        if state.best is None:
            raise TrainingError(f"no validation ELBO was finite in {state.step} steps; lower learning_rate")
        model.load_state_dict(state.best)
        model.eval().requires_grad_(False)
        model.origin = self._record.repair(model, state.best_step, state.best_elbo)
        with torch.no_grad():
            warning = model.warning(*self._held_out[0])
        return Fitted(state.step, state.best_elbo, state.best_step, warning)


@torch.no_grad()
def _score(model: Trainable, held_out: list[tuple[Tensor, Tensor | None]], seed: int) -> tuple[float, float]:
    """Log-likelihood and KL, means over all held-out frames, with the same noise each time; every rank does it all."""
    _seed(seed, _NO_STEP)
    terms = [model.elbo(*batch) for batch in held_out]
    parts = [t.log_likelihood for t in terms], [t.kl for t in terms]
    log_likelihood, kl = (torch.cat([part.flatten() for part in of_all]).double().mean().item() for of_all in parts)
    return log_likelihood, kl


# Schedules


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """A linear rise over the first `warmup` of the steps, then half a cosine down to zero."""
    t = (step + 1) / settings.steps
    if t < settings.warmup:
        return settings.learning_rate * t / settings.warmup
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (t - settings.warmup) / (1 - settings.warmup)))


def objective(settings: TrainingSettings, step: int) -> Objective:
    """The loss of a step."""
    return Objective(
        beta(settings, step),
        settings.free_bits,
        settings.importance_samples,
        own_past(settings, step),
        settings.reduction,
    )


def beta(settings: TrainingSettings, step: int) -> float:
    """Weight of the KL: a linear rise from zero over the first `beta_warmup` of the steps, or of each of `beta_cycles`.

    Reference: H. Fu et al., "Cyclical annealing schedule: a simple approach to mitigating KL vanishing", NAACL 2019.
    """
    t = step / settings.steps * settings.beta_cycles % 1.0
    return settings.beta * (min(1.0, t / settings.beta_warmup) if settings.beta_warmup else 1.0)


def own_past(settings: TrainingSettings, step: int) -> float:
    """Share of the frames that see the model's own past: none, a linear rise, then all; without a schedule all."""
    if not settings.scheduled_sampling:
        return 1.0
    start, end = settings.scheduled_sampling
    return min(1.0, max(0.0, (step / settings.steps - start) / (end - start)))


def _seed(*key: int) -> None:
    """All noise of a step follows from its key: what makes a resumed run the same as an uninterrupted one."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
