"""What every page is made of: a style for light and dark, pictures and sounds inside the file, numbers of one look."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from audiovae import __version__
from audiovae.atomic import atomic_path

GENERATOR = f'<meta name="generator" content="audiovae {__version__}">'
_LISTENING_LEVEL = 0.05  # RMS of what is heard: a louder sound always seems better
_LARGEST_SAMPLE = 0.99
_LARGEST_OF_MP3 = 0.9  # as its decoder overshoots
_MP3_QUALITY = 0.1  # from 0, the best, to 1: about 60 kbit/s at 16 kHz
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

# Colours of Okabe and Ito, which the colour-blind tell apart; pictures name them by these variables.
_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --paper: #fdfcfa; --muted: #5f6368; --line: #d8d5cf; --first: #0072b2;
--second: #d55e00; --warn: #fff0d9 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e4e0; --paper: #16181b; --muted: #a2a6ab; --line: #3b3f45;
--first: #56b4e9; --second: #e69f00; --warn: #40300f } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 1.5rem auto; padding: 0 1rem; color: var(--ink);
background: var(--paper) }
h1 { font-size: 1.5rem } h2 { font-size: 1.25rem; margin-top: 2.4rem } h3 { font-size: 1.05rem; margin-top: 1.8rem }
h1, h2, h3, p, figcaption { overflow-wrap: anywhere } a { color: var(--first) }
.note, footer { color: var(--muted); font-size: .9rem } footer { margin-top: 2.4rem; border-top: 1px solid var(--line) }
.warning { background: var(--warn); padding: .5rem .8rem; border-left: 4px solid var(--second) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem 0 .25rem 1.1rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; font-size: .9rem } td { white-space: nowrap }
.reason { white-space: normal; color: var(--muted); font-size: .9rem }
.scroll td:first-child, .scroll th:first-child { position: sticky; left: 0; background: var(--paper) }
td:first-child, th:first-child { text-align: left; white-space: normal; min-width: 9rem; padding-left: 0;
overflow-wrap: anywhere }
@media (max-width: 500px) { .cards, .cards tr { display: block } .cards th { display: none }
.cards tbody { display: flex; flex-direction: column } .cards .mean { order: -1 }
.cards tr { margin-bottom: .9rem; border-bottom: 1px solid var(--line) }
.cards td { display: flex; justify-content: space-between; gap: 1rem; padding: .1rem 0; border: 0; white-space: normal }
.cards td::before { content: attr(data-name); flex: none; color: var(--muted); font-weight: 400 }
.cards td:first-child { position: static; font-weight: 600 } .cards td:first-child::before { content: none } }
.facts td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere } .mean td { font-weight: 600 }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.2rem }
figure { margin: 0; min-width: 0 } figcaption { font-weight: 600 }
figcaption span { font-weight: 400; color: var(--muted) }
label { display: block; color: var(--muted); font-size: .9rem; margin-top: .2rem }
audio { width: 100%; height: 2.6rem; margin: .3rem 0 } svg { display: block; width: 100%; height: auto }
svg text { font-family: inherit !important; fill: currentColor !important }
.scale { display: flex; flex-wrap: wrap; align-items: center; gap: 0 .5rem;
color: var(--muted); font-size: .9rem; margin: .8rem 0 }
.scale span { white-space: nowrap } .scale i { flex: none; width: 8rem; height: .8rem }
.magma { background: linear-gradient(90deg, #000004, #3b0f70, #8c2981, #de4968, #fe9f6d, #fcfdbf) }
.cividis { background: linear-gradient(90deg, #00224e, #35456c, #666970, #948e77, #c8b866, #fee838) }
"""

# Of two sounds side by side the second goes on where the first was stopped.
_SCRIPT = """
addEventListener("play", event => {
  for (const other of document.querySelectorAll("audio")) {
    if (other === event.target || other.paused) continue
    other.pause()
    if (other.closest("section") === event.target.closest("section")) event.target.currentTime = other.currentTime
  }
}, true)
"""


@dataclass(frozen=True)
class Panel:
    """A sound and a picture of it, or one of them, below a name and a remark (plain text); `""` is left out."""

    name: str
    sound: str = ""
    picture: str = ""
    remark: str = ""


def write_page(target: str | Path, title: str, note: str, body: str, summary: str = "") -> None:
    """Write a page that needs no network, under its name only when it is complete.

    Args:
        title, note: plain text; the note is a sentence below the title.
        body: markup.
        summary: plain text that tells of it in an index, see `write_index`; default: the note.

    Raises:
        PathError: the page cannot be written.
    """
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{GENERATOR}
<title>{html.escape(title)}</title>
<meta name="description" content="{html.escape(summary or note)}">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>
{body}<footer><p>Made by audiovae {__version__}.</p></footer><script>{_SCRIPT}</script></body></html>
"""
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # a file name may be no Unicode


def number(value: float) -> str:
    """Two decimals, one of a large number, three of a small one."""
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def listed(made: Mapping[str, str] | None) -> str:
    """A sentence of what something was made with, by name; empty without."""
    said = "; ".join(f"{name} {value}" for name, value in (made or {}).items())
    return f"{said[0].upper()}{said[1:]}." if said else ""


def facts(values: Mapping[str, str]) -> str:
    """A table of names and plain text."""
    rows = (f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in values.items())
    return f'<table class="facts">{"".join(rows)}</table>'


def panels(several: Iterable[Panel]) -> str:
    """Side by side, as many as there is room for."""
    figures = (
        f"<figure><figcaption>{html.escape(panel.name)}"
        + (f" <span>{html.escape(panel.remark)}</span>" if panel.remark else "")
        + f"</figcaption>{panel.sound}{panel.picture}</figure>"
        for panel in several
    )
    return f'<div class="panels">{"".join(figures)}</div>'


def scale(colours: str, low: str, high: str, what: str) -> str:
    """What the colours of the pictures below it mean, from low to high.

    Args:
        colours: "magma" or "cividis".
    """
    return f'<p class="scale"><span>{low}</span> <i class="{colours}"></i> <span>{high}</span> {what}</p>'


def exact_players(sounds: Mapping[str, NDArray[np.float32]], sample_rate: int) -> dict[str, str]:
    """A player of each, with one gain for all of them, that of the first: their levels compare, and what sums, sums.

    Args:
        sounds: `[sample]` each, or `[channel, sample]` of two channels, at any level.
    """
    waves = list(sounds.values())
    loudest = max(float(np.abs(wave).max()) for wave in waves)
    gain = min(_listening_gain(waves[0], _LARGEST_SAMPLE), _LARGEST_SAMPLE / max(loudest, 1e-9))
    return {name: _player(name, gain * wave, sample_rate, "FLAC") for name, wave in sounds.items()}


def player(name: str, wave: NDArray[np.float32], sample_rate: int) -> str:
    """A player of one of many sounds, small (MP3, which every browser plays), at the loudness of all others.

    Args:
        wave: `[sample]`, at any level.
    """
    container = "MP3" if sample_rate in _MP3_RATES else "FLAC"
    return _player(name, _listening_gain(wave, _LARGEST_OF_MP3) * wave, sample_rate, container)


def _listening_gain(wave: NDArray[np.float32], largest: float) -> float:
    rms = float(np.sqrt(np.mean(np.square(wave)))) or 1.0
    return min(_LISTENING_LEVEL / rms, largest / max(float(np.abs(wave).max()), 1e-9))


def _player(name: str, wave: NDArray[np.float32], sample_rate: int, container: str) -> str:
    buffer = io.BytesIO()
    if container == "MP3":
        soundfile.write(
            buffer, wave.T, sample_rate, format="MP3", bitrate_mode="VARIABLE", compression_level=_MP3_QUALITY
        )
    else:
        soundfile.write(buffer, wave.T, sample_rate, format=container)
    kind = {"MP3": "mpeg", "FLAC": "flac"}[container]
    source = f"data:audio/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<audio controls preload="none" aria-label="{html.escape(name)}" src="{source}"></audio>'
