"""report.html: one file that holds its pictures and sounds, and needs no network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from audiovae import audio
from audiovae.level import active_level
from audiovae.metrics import METRICS, NotScored, normalise, summarise
from audiovae.objectives import collapse_warning, kl_per_dimension
from audiovae.prior import AudioVAE
from audiovae.report import plots
from audiovae.report.markup import image, number, players, write_page
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


def write_report(target: str | Path, evaluations: Sequence[Evaluation], title: str, note: str = "") -> None:
    """Write a self-contained page: of each prior its table and KL per dimension, of the first files pictures and sound.

    Args:
        title: of the page.
        note: a sentence below it: how the numbers were made.

    Raises:
        PathError: the page cannot be written.
    """
    body = "".join(_evaluation(evaluation, headed=len(evaluations) > 1) for evaluation in evaluations)
    write_page(target, title, note, body)


def _evaluation(evaluation: Evaluation, headed: bool) -> str:
    kls, sections = [], []
    for file in evaluation.files[:SHOWN_RECORDINGS]:
        try:
            section, kl = _recording(evaluation.prior, file, evaluation.condition)
            kls.append(kl)
        except NotScored as reason:
            section = f"<h3>{html.escape(str(file.path))}</h3><p>Not shown: {reason}.</p>"
        sections.append(section)
    information = ""
    if kls:
        mean_kl = torch.stack(kls).mean(0)
        warning = collapse_warning(mean_kl) if evaluation.prior.vae.has_prior else None
        information = "<h3>Information in the latents</h3>" + image(
            plots.kl_per_dimension(mean_kl), "KL per latent dimension"
        )
        information += f'<p class="warning">{html.escape(warning)}</p>' if warning else ""
    n = len(evaluation.files)
    more = (
        f'<p class="note">Pictures and sound of the first {SHOWN_RECORDINGS} of {n} files.</p>'
        if n > SHOWN_RECORDINGS
        else ""
    )
    heading = f"<h2>{html.escape(evaluation.name)}</h2>" if headed else ""
    return heading + _table(evaluation.files) + information + more + "".join(sections)


@torch.no_grad()
def _recording(prior: AudioVAE, file: ReportedFile, condition: torch.Tensor | None) -> tuple[str, torch.Tensor]:
    wave, _ = audio.read_heard(file.path, prior.sample_rate)
    mono = normalise(wave[:1], prior.sample_rate)[0, : int(LISTENING_SECONDS * prior.sample_rate)]
    level = active_level(mono, prior.sample_rate)
    samples = torch.from_numpy(mono).to(prior.device)
    spectrogram, _ = prior.analyse(samples, level)
    latents = prior.encode(samples, level, condition)
    kl = kl_per_dimension(prior.vae, power(spectrogram), condition).cpu()
    psd = prior.decode(latents, condition=condition) / level**2
    picture = plots.spectrogram_and_psd(
        power(spectrogram), psd, latents.inference.latents, kl, prior.sample_rate, prior.stft.hop_length
    )
    sounds = {
        "original": mono,
        "resynthesis, posterior mean": prior.resynthesize(samples, level=level, condition=condition).numpy(force=True),
        "resynthesis, sampled latents": prior.resynthesize(
            samples, latents="sample", level=level, condition=condition
        ).numpy(force=True),
    }
    values = ", ".join(f"{METRICS[name].heading} {number(value)}" for name, value in file.values.items())
    alt = "spectrogram beside decoded PSD, latents over time, KL per dimension"
    heard = players(sounds, prior.sample_rate, keep_levels=False)
    return f"<h3>{html.escape(str(file.path))}</h3><p>{values}</p>{heard}{image(picture, alt)}", kl


def _table(files: Sequence[ReportedFile]) -> str:
    summary = summarise([file.values for file in files])
    names = list(summary)
    head = "".join(f"<th>{METRICS[name].title}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{html.escape(str(file.path))}</td>"
        + "".join(
            f"<td>{number(file.values[name])}</td>"
            if name in file.values
            else f"<td>{html.escape(file.reasons.get(name, '-'))}</td>"
            for name in names
        )
        + "</tr>"
        for file in files
    )
    mean = "".join(f"<td>{summary[name]}</td>" for name in names)  # Estimate prints as mean ± half-width
    last = f'<tr class="mean"><td>mean of {len(files)} ± 95 %</td>{mean}</tr>'
    return (
        f'<div class="scroll"><table><tr><th>file</th>{head}</tr>{rows}{last}</table></div>'
        '<p class="note">Of the trimmed sound at unit RMS. '
        "What could not be scored says why, and is not averaged.</p>"
    )
