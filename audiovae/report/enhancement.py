"""A page for one enhanced recording: its sounds and pictures, what the model says of speech and noise, and how that was
found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from audiovae.audio import AudioInfo
from audiovae.errors import named
from audiovae.report import plots
from audiovae.report.markup import Panel, exact_players, facts, listed, number, panels, scale, write_page
from audiovae.separation import FirstBlock, Separation, Separator
from audiovae.stft import power

_HEARD_CHANNELS = 2  # a player has no more


@torch.no_grad()
def write_enhancement_report(
    target: str | Path,
    first: FirstBlock,
    enhancer: Separator,
    title: str | None = None,
    made: Mapping[str, str] | None = None,
) -> None:
    """Write a self-contained page of the first block of a sound file, as it was inferred.

    Args:
        first: of `enhance_files` or `first_block`.
        enhancer: that inferred it.
        title: of the page; default: the name of the file.
        made: what it was made with, by name: method, prior, noise model.

    Raises:
        PathError: the page cannot be written.
    """
    recording, separation = first.recording, first.separation
    front, info = recording.front, recording.info
    rate = front.sample_rate
    n_samples = min(recording.n_samples, max(1, len(first.spectrogram) - 1) * front.stft.hop_length)
    spectrograms = torch.cat([first.spectrogram.unsqueeze(0), separation.images])  # noisy, enhanced, residual
    waves = front.stft.inverse(spectrograms.movedim(-1, 1), n_samples) * (recording.level or 1.0)
    noisy, enhanced, residual = waves.float().numpy(force=True)
    seconds, frame_seconds = n_samples / rate, front.stft.hop_length / rate
    taken_away = _decibels(_energy(noisy), _energy(enhanced))
    numbers = {
        "duration": f"{number(seconds)} s",
        "channels": f"{info.n_channels}, {min(info.n_channels, _HEARD_CHANNELS)} heard",
        "level of the active frames": _decibels(recording.level**2, 1.0, " re full scale"),
        "mean power taken away": taken_away,
        **_inference(separation, enhancer.settings.n_iterations),
        "time of the inference": f"{number(first.seconds)} s",
        "real-time factor": number(first.seconds / seconds),
    }
    gain = separation.sources[0].gain
    assert gain is not None
    sounds = {"noisy": noisy, "enhanced": enhanced, "residual": residual}
    heard = exact_players({name: wave[:_HEARD_CHANNELS] for name, wave in sounds.items()}, rate)
    pictures = [
        plots.spectrogram(values, frame_seconds, rate)
        for values in plots.decibels([*power(spectrograms).mean(-1), *separation.psds])
    ]
    remarks = ("|x|²", "|s|²", "|x - s|²: what was taken away")
    five = [*map(Panel, sounds, heard.values(), pictures, remarks)]
    five += [
        Panel("variance of the speech", picture=pictures[3], remark="g c v"),
        Panel("variance of the noise", picture=pictures[4], remark="N"),
    ]
    wiener = plots.wiener_gain(separation.wiener.mean(-1), frame_seconds, rate)
    activity = plots.over_time(separation.activity, frame_seconds, "share", (-0.03, 1.03))
    gain_db = plots.over_time(10 * torch.log10(gain), frame_seconds, "gain (dB)", (-10.0, 10.0))
    trace = plots.objective(separation.objective)
    end = "converged" if separation.converged else "not converged, stopped at the limit"
    body = (
        scale("magma", f"{-plots.RANGE_DB:.0f} dB", "0 dB", "re the loudest bin of the five pictures")
        + f"<section>{panels(five)}</section>"
        + '<p class="note">One gain for the three sounds: their levels compare, and enhanced and residual sum to '
        "noisy. Of two, the second goes on where the first was stopped.</p>"
        + scale("cividis", "0", "1", "share of a bin that is kept")
        + panels(
            [
                Panel("Wiener gain", picture=wiener),
                Panel("activity", picture=activity, remark="the speech's share of the variance"),
                Panel("gain", picture=gain_db, remark="g of the speech's variance"),
            ]
        )
        + "<h2>Inference</h2>"
        + panels([Panel("objective", picture=trace, remark=f"lower is better; {end}")])
        + facts(numbers)
    )
    name = Path(named(info.path)).name
    summary = f"{number(seconds)} s; mean power taken away: {taken_away}. {listed(made)}".strip()
    note = f"{_note(info, rate, seconds)} {listed(made)}".strip()
    write_page(target, title or f"{name}, enhanced", note, body, summary)


def _inference(separation: Separation, limit: int) -> dict[str, str]:
    numbers = {
        "iterations": f"{len(separation.objective)} of at most {limit}",
        "converged": "yes" if separation.converged else "no",
    }
    if separation.sources[0].acceptance is not None:
        numbers["acceptance rate of the last E-step"] = number(separation.sources[0].acceptance)
    if separation.sources[0].effective_samples is not None:
        numbers["effective sample size of the last E-step"] = number(separation.sources[0].effective_samples)
    return numbers


def _energy(wave: NDArray[np.float32]) -> float:
    return float(np.square(wave, dtype=np.float64).sum())


def _decibels(energy: float, reference: float, of_what: str = "") -> str:
    return f"{10 * math.log10(energy / reference):.1f} dB{of_what}" if energy else "none: digital silence"


def _note(info: AudioInfo, sample_rate: int, seconds: float) -> str:
    """What of the file is shown."""
    sentences = [named(info.path) + "."]
    if seconds < info.seconds - 1 / sample_rate:
        sentences.append(
            f"Its first {number(seconds)} s of {number(info.seconds)} s are shown: what was inferred at once."
        )
    if info.n_channels > 1:
        sentences.append(f"Its {info.n_channels} channels share one gain; their mean power is shown.")
    if info.sample_rate != sample_rate:
        sentences.append(f"Shown at the prior's rate of {sample_rate} Hz; the file has {info.sample_rate} Hz.")
    return " ".join(sentences)
