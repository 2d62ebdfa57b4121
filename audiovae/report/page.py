"""report.html: one file that holds its pictures and sounds, and needs no network."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from audiovae import audio
from audiovae.metrics import METRICS, NotScored, normalise, summarise
from audiovae.objectives import collapse_warning, kl_per_dimension
from audiovae.prior import AudioVAE
from audiovae.report import plots
from audiovae.report.markup import Panel, facts, number, panels, player, scale, write_page
from audiovae.stft import power

SHOWN_RECORDINGS = 6
LISTENING_SECONDS = 10.0


@dataclass(frozen=True)
class ReportedFile:
    """A row of a report's table: a sound file and its metrics, as of `audiovae.evaluation.evaluate_file`."""

    path: Path
    values: Mapping[str, float]
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class Evaluation:
    """A prior and the files that it resynthesised, with the condition that they have in common, if it needs one."""

    name: str
    prior: AudioVAE
    files: Sequence[ReportedFile]
    condition: torch.Tensor | None = None


@dataclass(frozen=True)
class _Shown:
    """A recording as one prior resynthesises it, for the page; the original is the same for priors of one rate."""

    original: Panel
    resynthesis: Panel
    latents: Panel
    kl: torch.Tensor


def write_report(target: str | Path, evaluations: Sequence[Evaluation], title: str, note: str = "") -> None:
    """Write a self-contained page: the priors' tables and KL per dimension, and of the first files the original beside
    what each prior makes of it, to be seen and heard.

    Args:
        title: of the page.
        note: a sentence below it: how the numbers were made.

    Raises:
        PathError: the page cannot be written.
    """
    paths = list(dict.fromkeys(file.path for evaluation in evaluations for file in evaluation.files))
    parent = os.path.commonpath([os.path.abspath(path.parent) for path in paths]) if paths else "."
    names = {path: os.path.relpath(os.path.abspath(path), parent) for path in paths}
    several = len(evaluations) > 1
    body = _means(evaluations) if several else "".join(_table(one.files, names) for one in evaluations)
    body += facts({one.name: _about(one.prior) for one in evaluations} | {"files": f"below {parent}"})
    kls: dict[int, list[torch.Tensor]] = {n: [] for n in range(len(evaluations))}
    sections = "".join(_recording(path, names[path], evaluations, kls) for path in paths[:SHOWN_RECORDINGS])
    if len(paths) > SHOWN_RECORDINGS:
        body += f'<p class="note">Pictures and sound of the first {SHOWN_RECORDINGS} of {len(paths)} files.</p>'
    if sections:
        body += (
            "<h2>Recordings</h2>"
            + scale("magma", f"{-plots.RANGE_DB:.0f} dB", "0 dB", "re the loudest bin of the recording")
            + '<p class="note">All sounds are equally loud. Of two in a row, the second goes on where the first was '
            "stopped.</p>" + sections
        )
    body += _information(evaluations, kls)
    if several:
        tables = (f"<h3>{html.escape(one.name)}</h3>{_table(one.files, names)}" for one in evaluations)
        body += "<h2>Every file</h2>" + "".join(tables)
    priors = ", ".join(evaluation.name for evaluation in evaluations)
    write_page(target, title, note, body, f"{len(paths)} recordings by {priors}")


def _about(prior: AudioVAE) -> str:
    weights = sum(parameter.numel() for parameter in prior.parameters())
    stft = f"STFT {prior.stft.n_fft}/{prior.stft.hop_length}"
    size = f"{weights:,} weights and {prior.vae.latent_dim} latents"
    return f"{type(prior.vae).__name__} of {size}, {prior.sample_rate} Hz, {stft}"


def _information(evaluations: Sequence[Evaluation], kls: Mapping[int, Sequence[torch.Tensor]]) -> str:
    """KL per dimension of every prior, over the recordings that are shown."""
    found, warnings = [], ""
    for n, evaluation in enumerate(evaluations):
        if not kls[n]:
            continue
        mean = torch.stack(list(kls[n])).mean(0)
        found.append(Panel(evaluation.name, picture=plots.kl_per_dimension(mean), remark=plots.kl_summary(mean)))
        warning = collapse_warning(mean) if evaluation.prior.vae.has_prior else None
        warnings += f'<p class="warning">{html.escape(f"{evaluation.name}: {warning}")}</p>' if warning else ""
    return f"<h2>Information in the latents</h2>{warnings}{panels(found)}" if found else ""


def _recording(path: Path, name: str, evaluations: Sequence[Evaluation], kls: dict[int, list[torch.Tensor]]) -> str:
    """The original, and what every prior that has the file makes of it; their KLs are added to `kls`."""
    originals: dict[int, Panel] = {}
    shown, latents, reasons = [], [], []
    for n, evaluation in enumerate(evaluations):
        file = next((file for file in evaluation.files if file.path == path), None)
        if file is None:
            continue
        try:
            of_prior = _show(evaluation, file)
        except NotScored as reason:
            reasons.append(str(reason))
            continue
        originals.setdefault(evaluation.prior.sample_rate, of_prior.original)  # no sound twice
        shown.append(of_prior.resynthesis)
        latents.append(of_prior.latents)
        kls[n].append(of_prior.kl)
    missing = "".join(f"<p>Not shown: {html.escape(reason)}.</p>" for reason in dict.fromkeys(reasons))
    return (
        f"<section><h3>{html.escape(name)}</h3>{missing}"
        + panels([*originals.values(), *shown])
        + (
            f"<h4>Latents over time, the most informative first (red 3, blue -3)</h4>{panels(latents)}"
            if latents
            else ""
        )
        + "</section>"
    )


@torch.no_grad()
def _show(evaluation: Evaluation, file: ReportedFile) -> _Shown:
    prior, condition = evaluation.prior, evaluation.condition
    wave, _ = audio.read_heard(file.path, prior.sample_rate)
    mono = normalise(wave[:1], prior.sample_rate)[0, : int(LISTENING_SECONDS * prior.sample_rate)]
    level = float(prior.measure_level(mono))
    samples = torch.from_numpy(mono).to(prior.device)
    spectrogram, _ = prior.analyse(samples, level)
    latents = prior.encode(samples, level, condition)
    kl = kl_per_dimension(prior.vae, power(spectrogram), condition).cpu()
    psd = prior.decode(latents, condition=condition) / level**2
    frame_seconds = prior.stft.hop_length / prior.sample_rate
    heard = power(spectrogram)
    original, decoded = plots.decibels([heard, psd.clamp(max=heard.max())])  # one scale for all priors: the recording's
    name = evaluation.name
    sounds = {
        choice: prior.resynthesize(samples, latents=choice, level=level, condition=condition).numpy(force=True)
        for choice in ("mean", "sample")
    }
    values = ", ".join(
        f"{METRICS[name].heading} {number(file.values[name])}" for name in METRICS if name in file.values
    )
    return _Shown(
        Panel(
            "original",
            player("original", mono, prior.sample_rate),
            plots.spectrogram(original, frame_seconds, prior.sample_rate),
            "|x|²",
        ),
        Panel(
            name,
            "".join(
                f"<label>{said}{player(f'{name}, {said}', sounds[choice], prior.sample_rate)}</label>"
                for choice, said in (("mean", "posterior mean"), ("sample", "sampled latents"))
            ),
            plots.spectrogram(decoded, frame_seconds, prior.sample_rate) + f'<p class="note">{values}</p>',
            "decoded PSD",
        ),
        Panel(name, picture=plots.latents(latents.inference.latents, kl, frame_seconds)),
        kl,
    )


def _means(evaluations: Sequence[Evaluation]) -> str:
    """A table of the means: a prior a row."""
    summaries = [summarise([file.values for file in evaluation.files]) for evaluation in evaluations]
    metrics = [metric for metric in METRICS if any(metric in summary for summary in summaries)]
    head = "".join(f"<th>{METRICS[metric].title}</th>" for metric in metrics)
    rows = "".join(
        f"<tr><td>{html.escape(evaluation.name)}</td>"
        + "".join(_cell(metric, summary.get(metric, "-")) for metric in metrics)
        + "</tr>"
        for evaluation, summary in zip(evaluations, summaries, strict=True)
    )
    return (
        f'<div class="scroll"><table class="cards"><tr><th>prior</th>{head}</tr>{rows}</table></div>'
        '<p class="note">Means over the files, ± 95 %, of the trimmed sound at unit RMS.</p>'
    )


def _table(files: Sequence[ReportedFile], shown_names: Mapping[Path, str]) -> str:
    summary = summarise([file.values for file in files])
    names = list(summary)
    head = "".join(f"<th>{METRICS[name].title}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{html.escape(shown_names[file.path])}</td>"
        + "".join(
            _cell(name, number(file.values[name]))
            if name in file.values
            else _cell(name, html.escape(file.reasons.get(name, "-")), "reason")
            for name in names
        )
        + "</tr>"
        for file in files
    )
    mean = "".join(_cell(name, summary[name]) for name in names)  # Estimate prints as mean ± half-width
    last = f'<tr class="mean"><td>mean of {len(files)} ± 95 %</td>{mean}</tr>'
    return (
        f'<div class="scroll"><table class="cards"><tr><th>file</th>{head}</tr>{rows}{last}</table></div>'
        '<p class="note">Of the trimmed sound at unit RMS. '
        "What could not be scored says why, and is not averaged.</p>"
    )


def _cell(metric: str, content: object, kind: str = "") -> str:
    """With the name of its column, which stands beside it where the page is narrow."""
    of_kind = f' class="{kind}"' if kind else ""
    return f'<td data-name="{html.escape(METRICS[metric].title)}"{of_kind}>{content}</td>'
