"""How good is a resynthesis, and how likely a sound: per file, and as a mean with a confidence interval over files."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from audiovae import audio
from audiovae.audio import resample
from audiovae.level import active_level, trim_bounds
from audiovae.objectives import elbo, importance_weighted_bound
from audiovae.prior import NO_DENSITY, AudioVAE, LatentChoice, Phase
from audiovae.recordings import stretches
from audiovae.stft import StreamingAnalysis, power

PERCEPTUAL_RATE = 16000  # wide-band PESQ, ESTOI and DNSMOS are computed at this rate
_BLOCK = 2**19  # samples that are scored at a time
_SHORTEST_SECONDS = 0.5  # below it neither PESQ nor ESTOI is defined

UNITS = {
    "nll": "nats per frame",
    "kl": "nats per frame",
    "bound": "nats per frame",
    "iw_bound": "nats per frame",
    "si_sdr": "dB",
    "pesq": "MOS, wide-band",
    "estoi": "0 to 1",
    "dnsmos": "MOS, overall",
    "si_sdr_gain": "dB over the noisy input",
    "pesq_gain": "MOS over the noisy input",
    "estoi_gain": "over the noisy input",
    "dnsmos_gain": "MOS over the noisy input",
}


class NotScored(Exception):  # noqa: N818 - an outcome, not a failure
    """Why a file has no value of a metric."""


@dataclass(frozen=True)
class Score:
    """The metrics of one file.

    Attributes:
        values: by metric, those that could be computed.
        reasons: by metric, why the others could not.
    """

    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """Mean over files with the half-width of its 95 % confidence interval (Student's t; nan for a single file)."""

    mean: float
    half_width: float
    n_files: int

    def __str__(self) -> str:
        digits = 1 if abs(self.mean) >= 100 else 2 if abs(self.mean) >= 1 else 3
        spread = "" if math.isnan(self.half_width) else f" ± {self.half_width:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def summarise(values_of_files: Iterable[Mapping[str, float]]) -> dict[str, Estimate]:
    """Mean and interval of every metric over the files that have it; files without it are left out, not averaged."""
    collected: dict[str, list[float]] = {}
    for values in values_of_files:
        for name, value in values.items():
            collected.setdefault(name, []).append(value)
    return {name: estimate(collected[name]) for name in UNITS if name in collected}


def estimate(values: list[float]) -> Estimate:
    """Mean and 95 % confidence interval of its error by Student's t."""
    n = len(values)
    if n < 2:
        return Estimate(values[0] if values else math.nan, math.nan, n)
    if not np.isfinite(values).all():
        return Estimate(math.fsum(values), math.nan, n)
    return Estimate(float(np.mean(values)), float(_student_t(n - 1) * np.std(values, ddof=1) / math.sqrt(n)), n)


def _student_t(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


def si_sdr(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, of `[sample]`.

    10 log10(|a s|^2 / |a s - e|^2) with a = <e, s> / |s|^2. An exact estimate has infinity.

    Raises:
        NotScored: the reference or the estimate is silent.

    Reference: J. Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, eq. 4 (no mean is removed).
    """
    s, e = (np.asarray(wave, dtype=np.float64) for wave in (reference, estimate))
    if not s.any() or not e.any():
        raise NotScored("silent")
    target = (e @ s) / (s @ s) * s
    distortion = np.sum((target - e) ** 2)
    if not target.any():
        return -math.inf
    return float(10 * np.log10(np.sum(target**2) / distortion)) if distortion > 0 else math.inf


def pesq(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """Wide-band PESQ (ITU-T P.862.2) of `[sample]` at 16 kHz, by the package `pesq`.

    Raises:
        NotScored: no speech is found, or the package is not installed.
    """
    try:
        from pesq import PesqError
        from pesq import pesq as run
    except ImportError as error:
        raise NotScored("not installed (pip install 'audiovae[metrics]'; pesq needs a C compiler)") from error
    _check_speech(reference, estimate)
    try:
        return float(run(PERCEPTUAL_RATE, reference, estimate, "wb"))
    except PesqError as error:
        raise NotScored("PESQ finds no speech") from error


def estoi(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """Extended short-time objective intelligibility of `[sample]` at 16 kHz, by the package `pystoi`.

    Raises:
        NotScored: less than the 30 active frames that it needs, or the package is not installed.
    """
    try:
        from pystoi import stoi
    except ImportError as error:
        raise NotScored("not installed (pip install 'audiovae[metrics]')") from error
    _check_speech(reference, estimate)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(stoi(reference, estimate, PERCEPTUAL_RATE, extended=True))
        except RuntimeWarning as error:
            raise NotScored("too little speech for ESTOI") from error


def dnsmos(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """DNSMOS (overall) of `[sample]` at 16 kHz, by the package `speechmos`; does not look at the reference.

    Raises:
        NotScored: silence, or the package is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from speechmos import dnsmos as model
    except ImportError as error:
        raise NotScored("not installed (pip install 'audiovae[metrics]')") from error
    _check_speech(reference, estimate)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return float(model.run(estimate / max(1.0, float(np.abs(estimate).max())), sr=PERCEPTUAL_RATE)["ovrl_mos"])


def _check_speech(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> None:
    if not reference.any() or not estimate.any():
        raise NotScored("silent")
    if len(reference) < _SHORTEST_SECONDS * PERCEPTUAL_RATE:
        raise NotScored(f"shorter than {_SHORTEST_SECONDS} s")


WAVE_METRICS: Mapping[str, Callable[[NDArray[np.floating], NDArray[np.floating]], float]] = {
    "si_sdr": si_sdr, "pesq": pesq, "estoi": estoi, "dnsmos": dnsmos,
}  # fmt: skip


def compare(reference: NDArray[np.float32], estimate: NDArray[np.float32], sample_rate: int) -> Score:
    """All wave metrics of an estimate, `[channel, sample]` each; with several channels, their mean.

    Metrics of perception see both waves at 16 kHz. What cannot be scored is named with its reason.
    """
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    at_16_khz = [resample(wave, sample_rate, PERCEPTUAL_RATE) for wave in (reference, estimate)]
    for metric, function in WAVE_METRICS.items():
        pairs = zip(reference, estimate, strict=True) if metric == "si_sdr" else zip(*at_16_khz, strict=True)
        try:
            values[metric] = float(np.mean([function(r, e) for r, e in pairs]))
        except NotScored as reason:
            reasons[metric] = str(reason)
    return Score(values, reasons)


def improvement(estimate: Score, noisy: Score) -> Score:
    """The metrics of an estimate, and what each gained over those of the noisy input (`si_sdr_gain`, ...)."""
    gains = {f"{metric}_gain": value - noisy.values[metric] for metric, value in estimate.values.items() if metric in noisy.values}
    return Score({**estimate.values, **gains}, estimate.reasons)


def normalise(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """The wave that a bound is quoted for: trimmed at 30 dB below the loudest frame, divided by its RMS, `[channel, sample]`.

    Raises:
        NotScored: it is silent.
    """
    start, end = trim_bounds(wave)
    trimmed = wave[:, start:end]
    rms = math.sqrt(np.square(trimmed, dtype=np.float64).mean()) if trimmed.size else 0.0
    if rms == 0:
        raise NotScored("silent")
    return np.ascontiguousarray(trimmed / np.float32(rms))


@torch.no_grad()
def bound(prior: AudioVAE, wave: NDArray[np.float32], n_samples: int = 1, condition: torch.Tensor | None = None) -> dict[str, float]:
    """NLL = -log p(x | z), KL and their sum for the STFT of a wave as it is, means over frames and channels, in nats.

    One z ~ q(z | x) is drawn for each frame. The sum, "bound", is an upper bound of -log p(x) in expectation, see
    `AudioVAE.log_likelihood`; with n_samples > 1 "iw_bound", the importance-weighted one, stands beside it. Models with
    context see stretches of about a minute.

    Args:
        wave: `[channel, sample]`; as of `normalise`, for numbers that can be compared between models.

    Raises:
        NotScored: the model's likelihood is no density of the STFT.
    """
    if not prior.vae.is_density:
        raise NotScored("n/a: " + NO_DENSITY)
    level = active_level(wave, prior.sample_rate) or 1.0
    totals = torch.zeros(3, dtype=torch.float64)
    n_frames = 0
    for stretch in stretches(_analysed(prior, wave, level), prior.vae.context):
        frame_power = power(stretch.frames)
        terms = elbo(prior.vae, frame_power, condition)
        parts = [terms.log_likelihood, terms.kl, terms.bound]
        if n_samples > 1:
            parts[2] = importance_weighted_bound(prior.vae, frame_power, n_samples, condition)
        totals += torch.stack([part[:, stretch.kept].double().sum().cpu() for part in parts])
        n_frames += terms.kl[:, stretch.kept].numel()
    log_likelihood, kl, weighted_bound = (totals / n_frames).tolist()
    log_determinant = 2 * prior.stft.n_freqs * math.log(level)
    values = {"nll": log_determinant - log_likelihood, "kl": kl, "bound": log_determinant - log_likelihood + kl}
    return values if n_samples == 1 else {**values, "iw_bound": log_determinant - weighted_bound}


def _analysed(prior: AudioVAE, wave: NDArray[np.float32], level: float) -> Iterator[torch.Tensor]:
    analysis = StreamingAnalysis(prior.stft)
    for i in range(0, wave.shape[1], _BLOCK):
        yield analysis.push(torch.from_numpy(wave[:, i : i + _BLOCK]).to(prior.device) / level)
    yield analysis.finish()


@torch.no_grad()
def evaluate_file(
    prior: AudioVAE,
    path: str | Path,
    phase: Phase = "original",
    latents: LatentChoice = "mean",
    n_samples: int = 1,
    teacher_forcing: bool = False,
    condition: torch.Tensor | None = None,
) -> Score:
    """Bound and resynthesis metrics of a sound file, trimmed and at unit RMS (see `normalise`), at the prior's rate.

    Args:
        n_samples: above 1, the importance-weighted bound too.
        teacher_forcing: a model that needs past x is shown the true one in resynthesis; in the bound it always is.

    Raises:
        AudioError: the file cannot be read.
    """
    wave, _ = audio.read(path, prior.sample_rate)
    try:
        wave = normalise(wave)
    except NotScored as reason:
        return Score({}, {metric: str(reason) for metric in ("bound", *WAVE_METRICS)})
    level = active_level(wave, prior.sample_rate)
    tensor = torch.from_numpy(wave).to(prior.device)
    resynthesis = prior.resynthesize(tensor, phase, latents, level, condition, teacher_forcing).numpy(force=True)
    score = compare(wave, resynthesis, prior.sample_rate)
    try:
        return Score({**bound(prior, wave, n_samples, condition), **score.values}, score.reasons)
    except NotScored as reason:
        return Score(score.values, {"bound": str(reason), **score.reasons})
