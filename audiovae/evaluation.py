"""How likely is a sound to a prior, and how good its resynthesis: bounds and scores of files."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from audiovae import audio
from audiovae.files import Recording, stretches
from audiovae.level import measure, peak, split_blocks
from audiovae.metrics import WAVE_METRICS, NotScored, Score, compare, normalise, normalised
from audiovae.objectives import elbo, importance_weighted_bound
from audiovae.prior import NO_DENSITY, AudioVAE, LatentChoice, Phase
from audiovae.stft import StreamingAnalysis, power
from audiovae.waves import tensor_of

_SILENCE = 1e-12  # of the power at unit level: digital silence, and what resampling leaves of it
_BLOCK = 2**19  # samples that are scored at a time


@torch.no_grad()
def bound(
    prior: AudioVAE, wave: NDArray[np.float32], n_samples: int = 1, condition: torch.Tensor | None = None
) -> dict[str, float]:
    """NLL = -log p(x | z), KL and their sum for the STFT of a wave as it is, means over frames and channels, in nats.

    Frames of digital silence do not count; their number, where there are any, stands beside it as "silent_frames".
    One z ~ q(z | x) is drawn for each frame. The sum, "bound", is an upper bound of -log p(x) in expectation, see
    `AudioVAE.log_likelihood`; with n_samples > 1 "iw_bound", the importance-weighted one, stands beside it. Models with
    context see stretches of about a minute.

    Args:
        wave: `[channel, sample]`; as of `audiovae.metrics.normalise`, for numbers that can be compared between models.

    Raises:
        NotScored: the model's likelihood is no density of the STFT, or the wave is silent.
        ValueError: a sample that is NaN or infinite.
    """
    tensor_of(wave)
    return _bound(prior, lambda: iter([wave]), len(wave), n_samples, condition)


@torch.no_grad()
def score_file(
    prior: AudioVAE, path: str | Path, n_samples: int = 1, condition: torch.Tensor | None = None
) -> dict[str, float]:
    """`bound` of a sound file of any length at the prior's rate, normalised as in `audiovae.metrics.normalise`.

    Raises:
        AudioError: the file cannot be read.
        NotScored: the model's likelihood is no density of the STFT, or the file is silent.
    """
    recording = Recording.open(prior.front, path)
    if recording.level == 0:
        raise NotScored("silent")
    n_channels = recording.info.n_channels
    pieces = audio.repeatable(recording.heard, recording.info)
    return _bound(prior, normalised(pieces, prior.sample_rate, n_channels), n_channels, n_samples, condition)


def _bound(
    prior: AudioVAE,
    pieces: Callable[[], Iterator[NDArray[np.float32]]],
    n_channels: int,
    n_samples: int,
    condition: torch.Tensor | None,
) -> dict[str, float]:
    """Of a wave, `[channel, sample]` in pieces, which are asked for twice."""
    if not prior.vae.is_density:
        raise NotScored("n/a: " + NO_DENSITY)
    second = prior.sample_rate  # short pieces stay in the processor's cache
    cut = _cut_anew(pieces(), second)
    is_peak = prior.level_rule == "peak"
    level = (
        peak(cut) if is_peak else measure(split_blocks(cut, prior.sample_rate, n_channels), prior.sample_rate)[0]
    ) or 1.0
    totals = torch.zeros(3, dtype=torch.float64)
    n_frames = n_silent = 0
    silence = _SILENCE * float(prior.stft.window.square().sum())
    for stretch in stretches(_analysed(prior, _cut_anew(pieces(), _BLOCK), level), prior.vae.context):
        frame_power = power(stretch.frames)
        terms = elbo(prior.vae, frame_power, condition)
        parts = [terms.log_likelihood, terms.kl, terms.bound]
        if n_samples > 1:
            parts[2] = importance_weighted_bound(prior.vae, frame_power, n_samples, condition)
        sounding = frame_power[:, stretch.kept].mean(-1) > silence
        totals += torch.stack([part[:, stretch.kept][sounding].double().sum().cpu() for part in parts])
        n_frames += int(sounding.sum())
        n_silent += sounding.numel() - int(sounding.sum())
    if n_frames == 0:
        raise NotScored("silent")
    log_likelihood, kl, weighted_bound = (totals / n_frames).tolist()
    log_determinant = 2 * prior.stft.n_freqs * math.log(level)
    values = {"nll": log_determinant - log_likelihood, "kl": kl, "bound": log_determinant - log_likelihood + kl}
    values |= {"silent_frames": n_silent} if n_silent else {}
    return values if n_samples == 1 else {**values, "iw_bound": log_determinant - weighted_bound}


def _analysed(prior: AudioVAE, pieces: Iterator[NDArray[np.float32]], level: float) -> Iterator[torch.Tensor]:
    analysis = StreamingAnalysis(prior.stft)
    for piece in pieces:
        yield analysis.push(torch.from_numpy(piece).to(prior.device) / level)
    yield analysis.finish()


def _cut_anew(pieces: Iterator[NDArray[np.float32]], n_samples: int) -> Iterator[NDArray[np.float32]]:
    """All of one length but the last."""
    rest: list[NDArray[np.float32]] = []
    n_there = 0
    for piece in pieces:
        rest.append(piece)
        n_there += piece.shape[1]
        if n_there >= n_samples:
            whole = np.concatenate(rest, axis=1)
            end = n_there // n_samples * n_samples
            yield from (whole[:, i : i + n_samples] for i in range(0, end, n_samples))
            rest, n_there = [whole[:, end:]], n_there - end
    if n_there:
        yield np.concatenate(rest, axis=1)


@torch.no_grad()
def evaluate_file(
    prior: AudioVAE,
    path: str | Path,
    phase: Phase = "original",
    latents: LatentChoice = "mean",
    n_samples: int = 1,
    teacher_forcing: bool = False,
    condition: torch.Tensor | None = None,
    metrics: Collection[str] | None = None,
) -> Score:
    """Bound and resynthesis metrics of a sound file at the prior's rate, see `audiovae.metrics.normalise`.

    Args:
        n_samples: above 1, the importance-weighted bound too.
        teacher_forcing: a model that needs past x is shown the true one in resynthesis; in the bound it always is.
        metrics: of the resynthesis, names of `WAVE_METRICS`; default all.

    Raises:
        AudioError: the file cannot be read.
    """
    wave, _ = audio.read_heard(path, prior.sample_rate)
    try:
        wave = normalise(wave, prior.sample_rate)
    except NotScored as reason:
        return Score({}, {metric: str(reason) for metric in ("bound", *(WAVE_METRICS if metrics is None else metrics))})
    level = float(prior.measure_level(wave, channels=True)[0])
    tensor = torch.from_numpy(wave).to(prior.device)
    resynthesis = prior.resynthesize(tensor, phase, latents, level, condition, teacher_forcing).numpy(force=True)
    score = compare(wave, resynthesis, prior.sample_rate, metrics)
    try:
        return Score({**bound(prior, wave, n_samples, condition), **score.values}, score.reasons)
    except NotScored as reason:
        return Score(score.values, {"bound": str(reason), **score.reasons})
