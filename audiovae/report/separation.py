"""A page for one recording taken apart: sounds, spectrograms and variances of its sources, their levels and directions,
and how they were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from audiovae.audio import AudioInfo
from audiovae.report import plots
from audiovae.report.markup import image, number, players, write_page
from audiovae.separation import Separator, TakenApart
from audiovae.separation.directions import Steered
from audiovae.stft import power

_HEARD_CHANNELS = 2  # a player has no more


@torch.no_grad()
def write_separation_report(
    target: str | Path, done: TakenApart, separator: Separator, directions: Sequence[Steered] | None = None
) -> None:
    """Write a self-contained page of a recording and the sources of its first block.

    Args:
        done: of `separate_files`, the first block kept.
        separator: that took it apart.
        directions: of each source, where the geometry of the microphones is known.

    Raises:
        PathError: the page cannot be written.
        ValueError: the first block was not kept.
    """
    first = done.first
    if first is None:
        raise ValueError("a page needs the first block; set keep_first")
    front, info, separation = first.recording.front, first.recording.info, first.separation
    names = [*(f"source {n + 1}" for n in range(len(first.images) - 1)), "noise"]
    seconds = first.mixture.shape[1] / front.sample_rate
    sounds = {"mixture": first.mixture, **dict(zip(names, first.images, strict=True))}
    level = first.recording.level or 1.0
    heard = {name: level * wave[:_HEARD_CHANNELS].float().numpy(force=True) for name, wave in sounds.items()}
    numbers = {
        "duration": f"{number(info.seconds)} s",
        "channels": f"{info.n_channels}, {min(info.n_channels, _HEARD_CHANNELS)} heard",
    }
    body = players(heard, front.sample_rate, keep_levels=True) + (
        '<p class="note">One gain for all: their levels compare, and sources and noise sum to the mixture.</p>'
        + _levels(done, names, directions)
    )
    if directions is not None:
        responses = torch.stack([direction.response for direction in directions])
        body += image(plots.directions(responses, names[:-1]), "steered response of each source over azimuth")
    if separation is None:
        body += "<p>What is shown is digital silence: there was nothing to take apart.</p>"
    else:
        powers = power(front.stft(torch.cat([first.mixture.unsqueeze(0), first.images]))).mean(1)
        psds = torch.cat([separation.psds.sum(0, keepdim=True), separation.psds])
        alt = "spectrograms of the mixture, every source and the noise, beside the model's variances"
        body += image(plots.sources(powers, psds, [*sounds], front.sample_rate, front.stft.hop_length), alt)
        body += "<h2>Inference</h2>"
        body += image(plots.objective(separation.objective, separation.converged), "objective over iterations")
        numbers |= {
            "iterations": f"{len(separation.objective)} of at most {separator.settings.n_iterations}",
            "time of the inference": f"{number(first.seconds)} s",
            "real-time factor": number(first.seconds / seconds),
        }
    body += "<table>" + "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in numbers.items())
    write_page(target, f"{info.path.name}, taken apart", _note(info, front.sample_rate, seconds), body + "</table>")


def _levels(done: TakenApart, names: list[str], directions: Sequence[Steered] | None) -> str:
    """A table: of the whole recording the levels, of its first block the directions."""
    azimuths = ["-"] * len(names)
    for n, direction in enumerate(directions or ()):
        mirrored = "" if direction.mirrored_deg is None else f" or {direction.mirrored_deg}°"
        azimuths[n] = f"{direction.azimuth_deg}°{mirrored}"
    rows = "".join(
        f"<tr><td>{name}</td><td>{level:.1f} dB</td>" + (f"<td>{azimuth}</td>" if directions else "") + "</tr>"
        for name, level, azimuth in zip(names, done.levels_db, azimuths, strict=True)
    )
    head = "<th></th><th>level re full scale</th>" + ("<th>azimuth</th>" if directions else "")
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _note(info: AudioInfo, sample_rate: int, seconds: float) -> str:
    """What of the recording is shown."""
    sentences = [str(info.path) + "."]
    if seconds < info.seconds - 1 / sample_rate:
        sentences.append(f"Its first {number(seconds)} s are heard and shown; the levels are those of the whole.")
    if info.n_channels > 1:
        sentences.append(f"The mean power of its {info.n_channels} channels is shown.")
    if info.sample_rate != sample_rate:
        sentences.append(f"Shown at the separator's rate of {sample_rate} Hz; the recording has {info.sample_rate} Hz.")
    return " ".join(sentences)
