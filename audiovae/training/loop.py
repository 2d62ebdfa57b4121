"""fit(): the one training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovae.corpora.batches import SegmentSampler, random_equaliser
from audiovae.corpora.packed import PackedCorpus, Utterance
from audiovae.errors import ConditionError, TrainingError
from audiovae.models import VAE, Conditions
from audiovae.objectives import (
    check_importance_training,
    collapse_warning,
    elbo_and_dimensions,
    elbo_of_power,
    free_bits,
    importance_weighted_surrogate,
    kl_per_dimension,
)
from audiovae.prior import AudioVAE
from audiovae.settings import TrainingSettings
from audiovae.stft import power
from audiovae.training.checkpoint import load_checkpoint, save_checkpoint
from audiovae.training.memory import keep_freed_memory
from audiovae.training.record import Record
from audiovae.training.state import TrainingState

CALIBRATION_FRAMES = 20_000
VALIDATION_FRAMES = 20_000
_VALIDATION_BATCH = 2048  # frames
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
    """What `fit` tells while it works: at every `log_every`-th step and at every validation."""

    step: int
    steps: int
    loss: float
    elbo: float | None


class Batch:
    """Power and condition of a step, in full precision: the engine would round plain tensors to half of it with mixed precision.

    Args:
        frame_power: `[segment, frame, freq]`.
        condition: `[segment, label]`, or None.
    """

    def __init__(self, frame_power: Tensor, condition: Tensor | None) -> None:
        self.frame_power, self.condition = frame_power, condition


class TrainingLoss(nn.Module):
    """The training step's forward pass: knows nothing of the engine that runs it.

    Args:
        vae: the model.
        settings: which objective it is.

    Raises:
        TrainingError: the model cannot have this objective.
    """

    def __init__(self, vae: VAE, settings: TrainingSettings) -> None:
        super().__init__()
        self.vae = vae
        self._free_bits, self._n_samples = settings.free_bits, settings.importance_samples
        if settings.scheduled_sampling and vae.own_past is None:
            raise TrainingError(
                f"scheduled_sampling is for models that feed on past frames and can learn to do without (SRNN with own_past), not "
                f"{type(vae).__name__}"
            )
        if self._n_samples > 1:
            try:
                check_importance_training(vae)
            except ValueError as error:
                raise TrainingError(str(error)) from error

    def forward(self, batch: Batch, beta: float) -> Float[Tensor, 2]:
        """The loss -log p(x | z) + beta KL (or minus the importance-weighted bound) and the KL alone, means over frames, in nats."""
        frame_power, condition = batch.frame_power, batch.condition
        if self._n_samples > 1:
            bound = importance_weighted_surrogate(self.vae, frame_power, self._n_samples, condition).mean()
            return torch.stack([-bound, torch.zeros_like(bound)])
        terms, of_dimensions = elbo_and_dimensions(self.vae, frame_power, condition, self._free_bits > 0)
        kl = terms.total_kl.mean()
        cost = free_bits(self.vae, kl, of_dimensions, self._free_bits) if self._free_bits else kl
        return torch.stack([beta * cost - terms.log_likelihood.mean(), kl])


def fit(
    prior: AudioVAE,
    corpus: PackedCorpus,
    validation: PackedCorpus,
    folder: str | Path,
    settings: TrainingSettings = TrainingSettings(),
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Fitted:
    """Train a prior on the "train" split of a corpus; the best weights by validation ELBO end up in `prior` and `folder`.

    A run that was killed goes on from its last checkpoint in `folder` and ends, on a CPU with the same number of threads,
    with the very weights and loss trace of an uninterrupted one: every step's batch and noise depend on the seed and the
    step alone, and all else (weights, their average, the optimiser, best weights, patience, trace) is in the checkpoint.

    Args:
        corpus: its "train" split is drawn from.
        validation: its "validation" split is scored (may be the same corpus).
        folder: receives `config.json`, `model.safetensors`, `README.md` (the best weights) and `training/`.
        device: "cpu", "cuda", "auto"; with settings.devices > 1, that many of them.
        overwrite: start anew where `folder` holds a run or a model.
        progress: called now and then.

    Raises:
        TrainingError: another run (other settings, data or model) stands in `folder`; a loss that is not finite.
        CorpusError: a split without recordings.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision
    for packed in (corpus, validation):
        if packed.header.sample_rate != prior.sample_rate:
            raise TrainingError(f"{packed.folder} was prepared at {packed.header.sample_rate} Hz, and the model has {prior.sample_rate} Hz")
    accelerator, _, index = device.partition(":")
    fabric = Fabric(
        accelerator=accelerator,
        devices=[int(index)] if index else settings.devices,
        num_nodes=settings.nodes,
        precision=settings.precision,
        strategy="ddp" if settings.devices * settings.nodes > 1 else "auto",
    )
    fabric.launch()
    rank, device_ = fabric.global_rank, fabric.device
    keep_freed_memory()
    n_segments = settings.batch_frames // settings.segment_frames
    prior.to(device_).train()
    draws = SegmentSampler(corpus, "train", prior.stft, settings.segment_frames, device_)
    condition_of = _Labelled(prior.vae.conditions, draws.utterances, device_)
    loss = TrainingLoss(prior.vae, settings)
    held_out = _held_out(validation, prior, settings, device_)
    heard = validation.split("validation")[0]
    listening = torch.from_numpy(validation.wave(heard)).to(device_)
    of_heard = _Labelled(prior.vae.conditions, [heard], device_)([heard])
    listening_condition = None if of_heard is None else of_heard[0]

    record = Record(Path(folder), prior, settings, _describe(corpus, validation), fabric.is_global_zero, overwrite)
    fabric.barrier()  # what is overwritten is gone before any process looks for a checkpoint
    checkpoint = load_checkpoint(record.folder)
    if checkpoint is None:
        n_calibration = max(1, CALIBRATION_FRAMES // settings.segment_frames)
        waves, _ = draws.draw(n_calibration, settings.seed, _NO_STEP)
        prior.vae.calibrate(power(prior.stft.frames(waves)).flatten(0, 1))
    weights = prior.vae.parameters()
    adam = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    module, optimizer = fabric.setup(loss, adam)
    state = TrainingState(prior.vae, adam, device_)
    if checkpoint is not None:
        state.restore(checkpoint)
    record.rewind(state.step, state.trace)
    dtype = next(prior.vae.parameters()).dtype
    held_out = [(frame_power.to(dtype), condition) for frame_power, condition in held_out]

    while state.step < settings.steps and not (settings.patience and state.waited >= settings.patience):
        step = state.step
        waves, utterances = draws.draw(n_segments, settings.seed, step, rank)
        frame_power = power(prior.stft.frames(waves))
        if settings.equaliser_db:
            frame_power *= random_equaliser(n_segments, prior.stft.n_freqs, settings.equaliser_db, (settings.seed, step, rank, 1)).to(
                device_
            )
        _seed(settings.seed, step, rank)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        if prior.vae.own_past is not None:
            prior.vae.own_past = own_past(settings, step)
        losses = module(Batch(frame_power.to(dtype), condition_of(utterances)), beta(settings, step))
        optimizer.zero_grad()
        fabric.backward(losses[0])
        norm = fabric.clip_gradients(module, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
        losses = cast(Tensor, fabric.all_reduce(losses.detach()))  # the mean: every device sees the same trace, and the same NaN
        if not (torch.isfinite(losses).all() and (norm is None or torch.isfinite(norm))):
            names = ", ".join(sorted({utterance.id for utterance in utterances}))
            raise TrainingError(
                f"the loss is {losses[0].item()} at step {step}, in a batch from {names}; the checkpoint of step "
                f"{state.saved_step} is kept (gradient norm {norm}). Lower learning_rate or clip_norm, or leave these recordings out"
            )
        optimizer.step()
        state.advance(losses, settings.averaging)

        if state.step % settings.log_every == 0:
            record.trace(state.close_interval(settings.log_every))
            progress(Progress(state.step, settings.steps, state.trace[-1][1], None))
        if state.step % settings.validate_every == 0 or state.step == settings.steps:
            with state.averaged_weights():
                prior.eval()
                log_likelihood, kl = _validate(prior, held_out, settings.seed)
                if not math.isfinite(log_likelihood - kl):
                    raise TrainingError(
                        f"the validation ELBO is {log_likelihood - kl} at step {state.step}; the checkpoint of step {state.saved_step} is "
                        "kept. Lower learning_rate"
                    )
                if state.score(log_likelihood - kl):
                    record.save_model(prior, state.step, state.best_elbo)
                record.validation(state.step, log_likelihood, kl, prior, listening, listening_condition)
                prior.train()
            if fabric.is_global_zero:
                save_checkpoint(record.folder, state.checkpoint())
            fabric.barrier()
            progress(Progress(state.step, settings.steps, losses[0].item(), state.last_elbo))

    record.close()
    if state.best is None:
        raise TrainingError(f"no validation ELBO was finite in {state.step} steps; lower learning_rate")
    prior.vae.load_state_dict(state.best)
    prior.eval()
    record.save_if_missing(prior, state.best_step, state.best_elbo)
    with torch.no_grad():
        warning = None if prior.vae.latents.name == "point" else collapse_warning(kl_per_dimension(prior.vae, *held_out[0]))
    return Fitted(state.step, state.best_elbo, state.best_step, warning)


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """A linear rise over the first `warmup` of the steps, then half a cosine down to zero."""
    t = (step + 1) / settings.steps
    if t < settings.warmup:
        return settings.learning_rate * t / settings.warmup
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (t - settings.warmup) / (1 - settings.warmup)))


def beta(settings: TrainingSettings, step: int) -> float:
    """Weight of the KL: a linear rise from zero over the first `beta_warmup` of the steps, or of each of `beta_cycles` parts of them.

    Reference: H. Fu et al., "Cyclical annealing schedule: a simple approach to mitigating KL vanishing", NAACL 2019.
    """
    t = step / settings.steps * settings.beta_cycles % 1.0
    return settings.beta * (min(1.0, t / settings.beta_warmup) if settings.beta_warmup else 1.0)


def _seed(*key: int) -> None:
    """All noise of a step follows from its key: what makes a resumed run the same as an uninterrupted one."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def own_past(settings: TrainingSettings, step: int) -> float:
    """Share of the frames that see the model's own past: none, then a linear rise, then all; all, without a schedule."""
    if not settings.scheduled_sampling:
        return 1.0
    start, end = settings.scheduled_sampling
    return min(1.0, max(0.0, (step / settings.steps - start) / (end - start)))


class _Labelled:
    """Conditions of recordings, looked up by batch.

    Raises:
        TrainingError: a recording without a label of the model, or with a class that the model does not know.
    """

    def __init__(self, conditions: Conditions, utterances: list[Utterance], device: torch.device) -> None:
        self._has_labels = bool(conditions.labels)
        self._of: dict[str, Tensor] = {}
        for utterance in utterances if self._has_labels else []:
            known = {name: utterance.labels[name] for name in conditions.labels if name in utterance.labels}
            try:
                self._of[utterance.id] = conditions.encode(**known).to(device)
            except ConditionError as error:
                raise TrainingError(f"{utterance.id} ({utterance.split}): {error}") from error

    def __call__(self, utterances: list[Utterance]) -> Tensor | None:
        """`[segment, label]`; None where the model has no labels."""
        return torch.stack([self._of[utterance.id] for utterance in utterances]) if self._has_labels else None


def _held_out(
    validation: PackedCorpus, prior: AudioVAE, settings: TrainingSettings, device: torch.device
) -> list[tuple[Tensor, Tensor | None]]:
    """The same validation segments at every validation and in every run, as batches of power and condition."""
    draws = SegmentSampler(validation, "validation", prior.stft, settings.segment_frames, device)
    waves, utterances = draws.draw(max(1, VALIDATION_FRAMES // settings.segment_frames), 0, _NO_STEP)
    condition_of = _Labelled(prior.vae.conditions, draws.utterances, device)
    n = max(1, _VALIDATION_BATCH // settings.segment_frames)
    return [(power(prior.stft.frames(batch)), condition_of(utterances[i * n : (i + 1) * n])) for i, batch in enumerate(waves.split(n))]


@torch.no_grad()
def _validate(prior: AudioVAE, held_out: list[tuple[Tensor, Tensor | None]], seed: int) -> tuple[float, float]:
    """Log-likelihood and KL, means over all held-out frames, with the same noise each time. Every rank does all of it."""
    _seed(seed, _NO_STEP)
    terms = [elbo_of_power(prior.vae, *batch) for batch in held_out]
    return tuple(torch.cat([getattr(t, name).flatten() for t in terms]).double().mean().item() for name in ("log_likelihood", "total_kl"))  # type: ignore[return-value]


def _describe(corpus: PackedCorpus, validation: PackedCorpus) -> dict[str, str]:
    train = corpus.split("train")
    hours = sum(u.n_samples for u in train) / corpus.header.sample_rate / 3600
    n_speakers = len({u.speaker for u in train})
    return {
        "description": f"{len(train)} recordings of {n_speakers} speakers, {hours:.2f} h ({corpus.header.layout} layout)",
        "train": corpus.fingerprint(),
        "validation": validation.fingerprint(),
    }
