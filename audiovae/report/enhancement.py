"""A page for one enhanced recording: its sounds and pictures, what the model says of speech and noise, and how that was
found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from audiovae.audio import AudioInfo, Resampler
from audiovae.errors import named
from audiovae.report import plots
from audiovae.report.markup import Panel, exact_players, facts, listed, number, panels, scale, write_page
from audiovae.separation import FirstBlock, Separation, Separator
from audiovae.separation.files import Reader
from audiovae.separation.upper_band import UpperBand, reaches_above
from audiovae.stft import STFT, power

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
    n_samples = min(recording.n_samples, max(1, len(first.spectrogram) - 1) * front.stft.hop_length)
    seconds, frame_seconds = n_samples / front.sample_rate, front.stft.hop_length / front.sample_rate
    shown = _whole_band(first, n_samples) if reaches_above(recording) else _below(first, n_samples)
    noisy, enhanced, residual = shown.waves
    rate = shown.sample_rate
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
    in_decibels = plots.decibels([*shown.powers, *separation.psds])
    pictures = [
        plots.spectrogram(values, frame_seconds, rate if n < len(sounds) else front.sample_rate)
        for n, values in enumerate(in_decibels)
    ]
    remarks = ("|x|²", "|s|²", "|x - s|²: what was taken away")
    five = [*map(Panel, sounds, heard.values(), pictures, remarks)]
    five += [
        Panel("variance of the speech", picture=pictures[3], remark="g c v"),
        Panel("variance of the noise", picture=pictures[4], remark="N"),
    ]
    wiener = plots.wiener_gain(separation.wiener.mean(-1), frame_seconds, front.sample_rate)
    activity = plots.over_time(separation.activity, frame_seconds, "share", (-0.03, 1.03))
    gain_db = plots.over_time(10 * torch.log10(gain), frame_seconds, "gain (dB)", (-10.0, 10.0))
    trace = plots.objective(separation.objective)
    end = "converged" if separation.converged else f"stopped at the last of {len(separation.objective)} iterations"
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
    note = f"{_note(info, front.sample_rate, rate, seconds)} {listed(made)}".strip()
    write_page(target, title or f"{name}, enhanced", note, body, summary)


@dataclass(frozen=True)
class _Shown:
    """The block noisy, enhanced and what was taken away.

    Attributes:
        waves: at the level of the file, `[channel, sample]` each.
        powers: of their spectrograms, means over channels, as a front end at the prior's rate has them.
        sample_rate: of the waves, in Hz.
    """

    waves: Sequence[NDArray[np.float32]]
    powers: Sequence[Float[torch.Tensor, "frame freq"]]
    sample_rate: int


def _below(first: FirstBlock, n_samples: int) -> _Shown:
    """At the prior's rate, which is all that the file holds, or more."""
    recording = first.recording
    front = recording.front
    spectrograms = torch.cat([first.spectrogram.unsqueeze(0), first.separation.images])
    waves = front.stft.inverse(spectrograms.movedim(-1, 1), n_samples) * (recording.level or 1.0)
    return _Shown(list(waves.float().numpy(force=True)), list(power(spectrograms).mean(-1)), front.sample_rate)


def _whole_band(first: FirstBlock, n_samples: int) -> _Shown:
    """At the rate of the file, with what `UpperBand` makes of all above the prior's."""
    recording, separation = first.recording, first.separation
    front, info = recording.front, recording.info
    below = front.stft.inverse(separation.images[0].movedim(-1, 0), n_samples)
    last = n_samples == recording.n_samples
    upper = UpperBand(recording)
    upper.push(power(separation.images[0]).mean(-1), separation.psds[1], last)
    above = upper.take(info.n_samples if last else int(n_samples * info.sample_rate / front.sample_rate))
    at_own_rate = Resampler(front.sample_rate, info.sample_rate, info.n_channels)
    lower = at_own_rate.push((below * (recording.level or 1.0)).numpy(force=True))
    lower = np.concatenate([lower, at_own_rate.finish(above.shape[1])], axis=1)
    enhanced = lower[:, : above.shape[1]] + above
    noisy = Reader(info).take(above.shape[1])
    waves = [noisy, enhanced, noisy - enhanced]
    ratio = info.sample_rate / front.sample_rate
    hop_length = max(1, round(front.stft.hop_length * ratio))
    stft = STFT(front.stft.n_fft * hop_length // front.stft.hop_length, hop_length)
    scale = (recording.level or 1.0) * ratio
    powers = [power(stft(torch.from_numpy(wave / np.float32(scale)))).mean(0) for wave in waves]
    return _Shown(waves, powers, info.sample_rate)


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


def _note(info: AudioInfo, prior_rate: int, rate: int, seconds: float) -> str:
    """What of the file is shown."""
    sentences = [named(info.path) + "."]
    if seconds < info.seconds - 1 / prior_rate:
        sentences.append(
            f"Its first {number(seconds)} s of {number(info.seconds)} s are shown: what was inferred at once."
        )
    if info.n_channels > 1:
        sentences.append(f"Its {info.n_channels} channels share one gain; their mean power is shown.")
    if rate > prior_rate:
        sentences.append(
            f"Sounds and spectrograms have its rate of {rate} Hz; the model's variances reach {prior_rate / 2:.0f} Hz, "
            "the highest that its prior hears."
        )
    elif info.sample_rate != rate:
        sentences.append(f"Shown at the prior's rate of {rate} Hz; the file has {info.sample_rate} Hz.")
    return " ".join(sentences)
