"""A page for one enhanced recording: its sounds and pictures, what the model says of speech and noise, and how that was found."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from audiovae import audio
from audiovae.audio import AudioInfo
from audiovae.level import active_level
from audiovae.report import plots
from audiovae.report.markup import image, number, players, write_page
from audiovae.separation.enhancement import Enhancer, Separation
from audiovae.stft import power

SHOWN_SECONDS = 30.0


@torch.no_grad()
def write_enhancement_report(target: str | Path, source: str | Path, enhancer: Enhancer, seed: int = 0, title: str | None = None) -> None:
    """Enhance the first channel of the first 30 s of a sound file and write a self-contained page of it.

    Args:
        seed: of everything random.
        title: of the page; default: the name of the file.

    Raises:
        AudioError: the source cannot be read.
        PathError: the page cannot be written.
    """
    prior, info = enhancer.prior, audio.inspect(source)
    noisy = _beginning(info, prior.sample_rate)
    level = active_level(noisy, prior.sample_rate)
    spectrogram, _ = prior.analyse(torch.from_numpy(noisy).to(prior.device), level)
    start = time.perf_counter()
    (separation,) = enhancer([spectrogram], [seed], [1.0 if level else 0.0])
    inference_seconds = time.perf_counter() - start
    enhanced, residual = (prior.stft.inverse(separation.images, len(noisy)) * (level or 1.0)).numpy(force=True)
    seconds = len(noisy) / prior.sample_rate
    numbers = {
        "duration": f"{number(seconds)} s",
        "level of the active frames": _decibels(level**2, 1.0, " re full scale"),
        "mean power taken away": _decibels(_energy(noisy), _energy(enhanced)),
        **_inference(separation, enhancer.n_iterations),
        "time of the inference": f"{number(inference_seconds)} s",
        "real-time factor": number(inference_seconds / seconds),
    }
    powers = power(torch.cat([spectrogram.unsqueeze(0), separation.images]))
    picture = plots.separation(
        powers, separation.psds, separation.wiener, separation.activity, separation.gain, prior.sample_rate, prior.stft.hop_length
    )
    trace = plots.objective(separation.objective, separation.converged)
    sounds = {"noisy": noisy, "enhanced": enhanced, "residual: what was taken away": residual}
    body = (
        players(sounds, prior.sample_rate, keep_levels=True)
        + '<p class="note">One gain for the three, so that their levels compare; enhanced and residual sum to noisy.</p>'
        + image(picture, "spectrograms of the three sounds, variances of speech and noise, Wiener gain, activity and gain over time")
        + "<h2>Inference</h2>"
        + image(trace, "objective over iterations")
        + "<table>"
        + "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in numbers.items())
        + "</table>"
    )
    write_page(target, title or f"{info.path.name}, enhanced", _note(info, prior.sample_rate), body)


def _beginning(info: AudioInfo, sample_rate: int) -> NDArray[np.float32]:
    """The first channel of the first 30 s, `[sample]`."""
    wave = next(audio.blocks(info, int(SHOWN_SECONDS * info.sample_rate)))[:1]
    return audio.resample(wave, info.sample_rate, sample_rate)[0]


def _inference(separation: Separation, limit: int) -> dict[str, str]:
    numbers = {"iterations": f"{len(separation.objective)} of at most {limit}", "converged": "yes" if separation.converged else "no"}
    if separation.acceptance is not None:
        numbers["acceptance rate of the last E-step"] = number(separation.acceptance)
    if separation.effective_samples is not None:
        numbers["effective sample size of the last E-step"] = number(separation.effective_samples)
    return numbers


def _energy(wave: NDArray[np.float32]) -> float:
    return float(np.square(wave, dtype=np.float64).sum())


def _decibels(energy: float, reference: float, of_what: str = "") -> str:
    return f"{10 * math.log10(energy / reference):.1f} dB{of_what}" if energy else "none: digital silence"


def _note(info: AudioInfo, sample_rate: int) -> str:
    """What of the file is shown."""
    sentences = [str(info.path) + "."]
    if info.seconds > SHOWN_SECONDS:
        sentences.append(f"Only its first {SHOWN_SECONDS:.0f} s of {number(info.seconds)} s are shown, and were enhanced by themselves.")
    if info.n_channels > 1:
        sentences.append(f"Only the first of its {info.n_channels} channels is shown, and was enhanced by itself.")
    if info.sample_rate != sample_rate:
        sentences.append(f"Shown at the prior's rate of {sample_rate} Hz; the file has {info.sample_rate} Hz.")
    return " ".join(sentences)
