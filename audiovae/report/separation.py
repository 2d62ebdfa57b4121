"""A page for one recording taken apart: sounds, spectrograms and variances of its sources, their levels and directions,
and how they were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from audiovae.audio import AudioInfo
from audiovae.report import plots
from audiovae.report.markup import Panel, exact_players, facts, listed, number, panels, scale, write_page
from audiovae.separation import Separator, TakenApart
from audiovae.separation.directions import Steered
from audiovae.stft import power

_HEARD_CHANNELS = 2  # a player has no more


@torch.no_grad()
def write_separation_report(
    target: str | Path,
    done: TakenApart,
    separator: Separator,
    directions: Sequence[Steered] | None = None,
    made: Mapping[str, str] | None = None,
) -> None:
    """Write a self-contained page of a recording and the sources of its first block.

    Args:
        done: of `separate_files`, the first block kept.
        separator: that took it apart.
        directions: of each source, where the geometry of the microphones is known.
        made: what it was made with, by name: method, prior.

    Raises:
        PathError: the page cannot be written.
        ValueError: the first block was not kept.
    """
    first = done.first
    if first is None:
        raise ValueError("a page needs the first block; set keep_first")
    front, info, separation = first.recording.front, first.recording.info, first.separation
    names = [*(f"source {n + 1}" for n in range(len(first.images) - 1)), "noise"]
    seconds, frame_seconds = first.mixture.shape[1] / front.sample_rate, front.stft.hop_length / front.sample_rate
    sounds = {"mixture": first.mixture, **dict(zip(names, first.images, strict=True))}
    level = first.recording.level or 1.0
    heard = exact_players(
        {name: level * wave[:_HEARD_CHANNELS].float().numpy(force=True) for name, wave in sounds.items()},
        front.sample_rate,
    )
    numbers = {
        "duration": f"{number(info.seconds)} s",
        "channels": f"{info.n_channels}, {min(info.n_channels, _HEARD_CHANNELS)} heard",
    }
    powers = power(front.stft(torch.cat([first.mixture.unsqueeze(0), first.images]))).mean(1)
    psds = [] if separation is None else [separation.psds.sum(0), *separation.psds]
    pictures = [
        plots.spectrogram(values, frame_seconds, front.sample_rate) for values in plots.decibels([*powers, *psds])
    ]
    body = (
        scale("magma", f"{-plots.RANGE_DB:.0f} dB", "0 dB", "re the loudest bin of all pictures")
        + f"<section>{panels(map(Panel, sounds, heard.values(), pictures))}</section>"
        + '<p class="note">One gain for all sounds: their levels compare, and sources and noise sum to the mixture. Of '
        "two, the second goes on where the first was stopped.</p>" + _levels(done, names, directions)
    )
    if directions is not None:
        responses = torch.stack([direction.response for direction in directions])
        picture = plots.directions(responses, names[:-1])
        body += panels([Panel("directions", picture=picture, remark="steered response of each source")])
    if separation is None:
        body += "<p>What is shown is digital silence: there was nothing to take apart.</p>"
    else:
        variances = (
            Panel(name, picture=picture) for name, picture in zip(sounds, pictures[len(sounds) :], strict=True)
        )
        body += f"<h2>The model's variances</h2>{panels(variances)}<h2>Inference</h2>"
        end = "converged" if separation.converged else f"stopped at the last of {len(separation.objective)} iterations"
        trace = plots.objective(separation.objective)
        body += panels([Panel("objective", picture=trace, remark=f"lower is better; {end}")])
        numbers |= {
            "iterations": f"{len(separation.objective)} of at most {separator.settings.n_iterations}",
            "time of the inference": f"{number(first.seconds)} s",
            "real-time factor": number(first.seconds / seconds),
        }
    summary = f"{number(info.seconds)} s; {len(names) - 1} sources and noise. {listed(made)}"
    note = f"{_note(info, front.sample_rate, seconds)} {listed(made)}".strip()
    write_page(target, f"{info.path.name}, taken apart", note, body + facts(numbers), summary)


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
