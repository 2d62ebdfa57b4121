"""report.html: one file that holds its pictures and sounds, and needs no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from audiovae import audio
from audiovae.atomic import atomic_path
from audiovae.level import active_level
from audiovae.metrics import NotScored, normalise, summarise
from audiovae.objectives import collapse_warning, kl_per_dimension, power
from audiovae.prior import AudioVAE
from audiovae.report import plots

SHOWN_RECORDINGS = 6
LISTENING_SECONDS = 10.0
_LISTENING_LEVEL = 0.05  # RMS of every sound on the page: a louder one always seems better

_HEADINGS = {
    "nll": "NLL",
    "kl": "KL",
    "bound": "NLL + KL",
    "si_sdr": "SI-SDR (dB)",
    "pesq": "PESQ",
    "estoi": "ESTOI",
    "dnsmos": "DNSMOS",
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fdfcfa }
h1 { font-size: 1.6rem } h2 { font-size: 1.3rem; margin-top: 2.6rem } h3 { font-size: 1.1rem; margin-top: 2rem; overflow-wrap: anywhere }
img { max-width: 100%; display: block; margin: .6rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { white-space: nowrap; padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }

td:first-child, th:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere } tr:last-child td { font-weight: 600 }
.scroll { overflow-x: auto }
.players { display: flex; flex-wrap: wrap; gap: 1.5rem } .players label { display: flex; flex-direction: column }
.warning { background: #fff0d9; padding: .5rem .8rem; border-left: 4px solid #d9622b } .note { color: #666 }
"""


@dataclass(frozen=True)
class ReportedFile:
    """A row of a report's table: a sound file and its metrics, as of `audiovae.metrics.evaluate_file`."""

    path: Path
    values: Mapping[str, float]
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class Evaluation:
    """A prior and the files that it resynthesised, with the condition that they have in common, if the prior needs one."""

    name: str
    prior: AudioVAE
    files: Sequence[ReportedFile]
    condition: torch.Tensor | None = None


def write_report(target: str | Path, evaluations: Sequence[Evaluation], title: str, note: str = "") -> None:
    """Write a self-contained page: for each prior its table and KL per dimension, and for the first files pictures and sound.

    Args:
        title: of the page.
        note: a sentence below it: how the numbers were made.

    Raises:
        PathError: the page cannot be written.
    """
    body = "".join(_evaluation(evaluation, headed=len(evaluations) > 1) for evaluation in evaluations)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head>
<body><h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>
{body}</body></html>
"""
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # a file name may be no Unicode


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
        warning = None if evaluation.prior.vae.latents.name == "point" else collapse_warning(mean_kl)
        information = "<h3>Information in the latents</h3>" + _image(plots.kl_per_dimension(mean_kl), "KL per latent dimension")
        information += f'<p class="warning">{html.escape(warning)}</p>' if warning else ""
    n = len(evaluation.files)
    more = f'<p class="note">Pictures and sound of the first {SHOWN_RECORDINGS} of {n} files.</p>' if n > SHOWN_RECORDINGS else ""
    heading = f"<h2>{html.escape(evaluation.name)}</h2>" if headed else ""
    return heading + _table(evaluation.files) + information + more + "".join(sections)


@torch.no_grad()
def _recording(prior: AudioVAE, file: ReportedFile, condition: torch.Tensor | None) -> tuple[str, torch.Tensor]:
    wave, _ = audio.read(file.path, prior.sample_rate)
    mono = normalise(wave[:1])[0, : int(LISTENING_SECONDS * prior.sample_rate)]
    level = active_level(mono, prior.sample_rate)
    samples = torch.from_numpy(mono).to(prior.device)
    spectrogram, _ = prior.analyse(samples, level)
    latents = prior.encode(samples, level, condition)
    kl = kl_per_dimension(prior.vae, power(spectrogram), condition).cpu()
    psd = prior.decode(latents, condition=condition) / level**2
    picture = plots.spectrogram_and_psd(power(spectrogram), psd, latents.inference.latents, kl, prior.sample_rate, prior.stft.hop_length)
    players = "".join(
        f"<label>{name}{_player(sound, prior.sample_rate)}</label>"
        for name, sound in (
            ("original", mono),
            ("resynthesis, posterior mean", prior.resynthesize(samples, level=level, condition=condition).numpy(force=True)),
            (
                "resynthesis, sampled latents",
                prior.resynthesize(samples, latents="sample", level=level, condition=condition).numpy(force=True),
            ),
        )
    )
    values = ", ".join(f"{_HEADINGS[name]} {_number(value)}" for name, value in file.values.items() if name in _HEADINGS)
    alt = "spectrogram beside decoded PSD, latents over time, KL per dimension"
    return (
        f'<h3>{html.escape(str(file.path))}</h3><p>{values}</p><div class="players">{players}</div>{_image(picture, alt)}',
        kl,
    )


def _table(files: Sequence[ReportedFile]) -> str:
    summary = summarise([file.values for file in files])
    names = [name for name in _HEADINGS if name in summary]
    head = "".join(f"<th>{_HEADINGS[name]}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{html.escape(str(file.path))}</td>"
        + "".join(
            f"<td>{_number(file.values[name])}</td>" if name in file.values else f"<td>{html.escape(file.reasons.get(name, '-'))}</td>"
            for name in names
        )
        + "</tr>"
        for file in files
    )
    last = "".join(f"<td>{summary[name]}</td>" for name in names)  # Estimate prints as mean ± half-width
    return (
        f'<div class="scroll"><table><tr><th>file</th>{head}</tr>{rows}<tr><td>mean of {len(files)} ± 95 %</td>{last}</tr></table></div>'
        '<p class="note">NLL and KL in nats per frame of the trimmed sound at unit RMS. '
        "What could not be scored says why, and is not averaged.</p>"
    )


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _player(wave: NDArray[np.float32], sample_rate: int) -> str:
    rms = float(np.sqrt(np.mean(np.square(wave)))) or 1.0
    scaled = wave * min(_LISTENING_LEVEL / rms, 0.99 / max(float(np.abs(wave).max()), 1e-9))
    buffer = io.BytesIO()
    soundfile.write(buffer, scaled, sample_rate, format="FLAC")
    return f'<audio controls preload="none" src="data:audio/flac;base64,{base64.b64encode(buffer.getvalue()).decode()}"></audio>'
