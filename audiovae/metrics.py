"""How near is a sound to its reference, per file and as a mean with a confidence interval; and the table of metrics."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from audiovae.audio import resample
from audiovae.level import TrimMeter, split_blocks, trim_bounds, without_rumble
from audiovae.pool import WorkerError, in_processes, nothing
from audiovae.quiet import quiet

PERCEPTUAL_RATE = 16000  # wide-band PESQ, ESTOI and DNSMOS are computed at this rate
_ZEROS = 512  # samples of a channel that count as silence, not as sound, if all are zero
_PESQ_SECONDS = 120.0
_PESQ_SAFE_SECONDS = 20.0  # above it there can be more utterances than its arrays hold, which ends the process
_SHORTEST_SECONDS = 0.5  # below it neither PESQ nor ESTOI is defined


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
    """Mean and interval of every metric over the files that have it.

    Files without it, and those where it is infinite, are left out, not averaged; a metric that is infinite in all files
    that have it has that as its mean, or NaN where signs differ.
    """
    collected: dict[str, list[float]] = {}
    for values in values_of_files:
        for name, value in values.items():
            collected.setdefault(name, []).append(value)
    for name, found in collected.items():
        collected[name] = [value for value in found if math.isfinite(value)] or found
    return {name: estimate(collected[name]) for name in METRICS if name in collected}


def estimate(values: list[float]) -> Estimate:
    """Mean and 95 % confidence interval of its error by Student's t; without one where a value is infinite."""
    n = len(values)
    if n < 2:
        return Estimate(values[0] if values else math.nan, math.nan, n)
    if not np.isfinite(values).all():
        return Estimate(sum(values), math.nan, n)  # NaN of infinities of both signs
    return Estimate(float(np.mean(values)), float(_student_t(n - 1) * np.std(values, ddof=1) / math.sqrt(n)), n)


def _student_t(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


def si_sdr(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, of `[sample]`.

    10 log10(|a s|^2 / |a s - e|^2) with a = <e, s> / |s|^2. An exact estimate has infinity.

    Raises:
        NotScored: the reference or the estimate is silent, or holds samples that are not finite.

    Reference: J. Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, eq. 4 (no mean is removed).
    """
    s, e = (np.asarray(wave, dtype=np.float64) for wave in (reference, estimate))
    for name, wave in (("reference", s), ("estimate", e)):
        if not np.isfinite(wave).all():
            raise NotScored(f"the {name} holds samples that are NaN or infinite")
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
        NotScored: no speech is found, the recording is too long, or the package is not installed.
    """
    if find_spec("pesq") is None:
        raise NotScored("not installed (pip install 'audiovae[pesq]', which needs a C compiler)")
    _check_speech(reference, estimate)
    seconds = len(reference) / PERCEPTUAL_RATE
    if seconds > _PESQ_SECONDS:
        raise NotScored(f"longer than {_PESQ_SECONDS:.0f} s, which PESQ is not made for")
    pairs = [[np.asarray(reference), np.asarray(estimate)]]
    value: float | WorkerError | None
    if seconds <= _PESQ_SAFE_SECONDS:
        (value,) = _pesq(pairs)
    else:
        ((_, (value,)),) = in_processes(_pesq, [pairs], [nothing])
    if isinstance(value, WorkerError):
        raise NotScored(f"PESQ failed ({value}): it cannot take more than 50 utterances")
    if value is None:
        raise NotScored("PESQ finds no speech")
    return value


def _pesq(pairs: list[list[NDArray[np.floating]]], again: bool = False) -> list[float | None]:
    from pesq import PesqError
    from pesq import pesq as run

    try:
        return [float(run(PERCEPTUAL_RATE, *waves, "wb")) for waves in pairs]
    except PesqError:
        return [None]


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
        with warnings.catch_warnings(), quiet():
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


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics.

    Attributes:
        name: the key of its values.
        heading: of its column.
        unit: of its values.
        function: of reference and estimate, `[sample]` each; None for a bound, which needs a prior, and for a gain.
        rate: in Hz, that the function hears them at; None for their own.
    """

    name: str
    heading: str
    unit: str
    function: Callable[[NDArray[np.floating], NDArray[np.floating]], float] | None = None
    rate: int | None = None

    @property
    def title(self) -> str:
        """The heading of a table that is read by itself: with the unit."""
        return f"{self.heading} ({self.unit})"


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (  # in the order in which tables show them
        Metric("nll", "NLL", "nats per frame"),
        Metric("kl", "KL", "nats per frame"),
        Metric("bound", "NLL + KL", "nats per frame"),
        Metric("iw_bound", "bound (IW)", "nats per frame"),
        Metric("si_sdr", "SI-SDR", "dB", si_sdr),
        Metric("pesq", "PESQ", "MOS, wide-band", pesq, PERCEPTUAL_RATE),
        Metric("estoi", "ESTOI", "0 to 1", estoi, PERCEPTUAL_RATE),
        Metric("dnsmos", "DNSMOS", "MOS, overall", dnsmos, PERCEPTUAL_RATE),
        Metric("si_sdr_gain", "SI-SDR gain", "dB over the noisy input"),
        Metric("pesq_gain", "PESQ gain", "MOS over the noisy input"),
        Metric("estoi_gain", "ESTOI gain", "over the noisy input"),
        Metric("dnsmos_gain", "DNSMOS gain", "MOS over the noisy input"),
    )
}
WAVE_METRICS: Mapping[str, Metric] = {name: metric for name, metric in METRICS.items() if metric.function}


def compare(
    reference: NDArray[np.float32],
    estimate: NDArray[np.float32],
    sample_rate: int,
    metrics: Collection[str] | None = None,
) -> Score:
    """Metrics of two waves, `[channel, sample]` each; with several channels, their mean.

    What cannot be scored is named with its reason.

    Args:
        metrics: names of `WAVE_METRICS`; default all.
    """
    chosen = {name: metric for name, metric in WAVE_METRICS.items() if metrics is None or name in metrics}
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    waves = reference, estimate
    rates = {metric.rate for metric in chosen.values()}
    heard = {rate: [resample(wave, sample_rate, rate or sample_rate) for wave in waves] for rate in rates}
    for name, metric in chosen.items():
        assert metric.function is not None
        try:
            pairs = zip(*heard[metric.rate], strict=True)
            values[name] = sum(metric.function(r, e) for r, e in pairs) / len(reference)
            if math.isnan(values[name]):
                del values[name]
                raise NotScored("infinite, with another sign in each channel")
        except NotScored as reason:
            reasons[name] = str(reason)
    return Score(values, reasons)


def improvement(estimate: Score, noisy: Score) -> Score:
    """The metrics of an estimate, and what each gained over those of the noisy input (`si_sdr_gain`, ...)."""
    gains, reasons = {}, dict(estimate.reasons)
    for metric, value in estimate.values.items():
        if metric in noisy.values:
            gain = value - noisy.values[metric]
            if math.isnan(gain):
                reasons[f"{metric}_gain"] = "infinite before and after"
            else:
                gains[f"{metric}_gain"] = gain
    return Score({**estimate.values, **gains}, reasons)


def normalise(wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """What numbers are quoted for, `[channel, sample]`: trimmed at 30 dB below the loudest frame, divided by its RMS.

    Loud rumble is turned down first, and does not count in trimming; stretches of exact zeros, 32 ms and more at 16
    kHz, do not count in the RMS of their channel.

    Raises:
        NotScored: it is silent.
    """
    heard = without_rumble(wave, sample_rate)
    start, end = trim_bounds(heard.above)
    trimmed = heard.wave[:, start:end]
    rms = _rms_of_sound(trimmed)
    return np.ascontiguousarray(trimmed / np.float32(rms))


def normalised(
    pieces: Callable[[], Iterator[NDArray[np.float32]]], sample_rate: int, n_channels: int
) -> Callable[[], Iterator[NDArray[np.float32]]]:
    """The same for a recording in pieces of any length, whose loud rumble was turned down already.

    Raises:
        NotScored: it is silent.
    """
    meter = TrimMeter()
    energies: list[NDArray[np.float64]] = []  # of each channel's blocks, those at which it may be trimmed
    counts: list[NDArray[np.int64]] = []
    n_samples, rest = 0, np.zeros((n_channels, 0), np.float32)

    def count(wave: NDArray[np.float32]) -> None:
        blocks = wave.reshape(n_channels, -1, _ZEROS)
        energies.append(np.square(blocks, dtype=np.float64).sum((0, 2)))
        counts.append(blocks.any(2).sum(0) * _ZEROS)

    for wave, rumble in split_blocks(pieces(), sample_rate, n_channels):
        meter.push(wave - rumble)
        n_samples += wave.shape[1]
        rest = np.concatenate([rest, wave], axis=1)
        whole = rest.shape[1] // _ZEROS * _ZEROS
        count(rest[:, :whole])
        rest = rest[:, whole:]
    energies.append(np.square(rest, dtype=np.float64).sum(keepdims=True)[0])
    counts.append(rest.any(1).sum(keepdims=True) * rest.shape[1])
    start, end = meter.finish(n_samples)
    kept = slice(start // _ZEROS, -(-end // _ZEROS))
    rms = _root(float(np.concatenate(energies)[kept].sum()), int(np.concatenate(counts)[kept].sum()))

    def scaled() -> Iterator[NDArray[np.float32]]:
        place = 0
        for piece in pieces():
            yield piece[:, max(0, start - place) : max(0, end - place)] / np.float32(rms)
            place += piece.shape[1]

    return scaled


def _root(energy: float, n_samples: int) -> float:
    rms = math.sqrt(energy / n_samples) if n_samples else 0.0
    if rms == 0 or not math.isfinite(rms):
        raise NotScored("silent" if rms == 0 else "beyond all scale")
    return rms


def _rms_of_sound(wave: NDArray[np.float32]) -> float:
    """RMS of all blocks of a channel that hold anything but zeros."""
    energies, n_samples = 0.0, 0
    for start in range(0, wave.shape[1], _ZEROS):
        block = wave[:, start : start + _ZEROS]
        sounding = block[block.any(axis=1)]
        energies += float(np.square(sounding, dtype=np.float64).sum())
        n_samples += sounding.size
    return _root(energies, n_samples)
