"""What every page is made of: one style, pictures and sounds inside the file, and numbers of one look."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from audiovae.atomic import atomic_path

_LISTENING_LEVEL = 0.05  # RMS of what is heard: a louder sound always seems better
_LARGEST_SAMPLE = 0.99

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; color: #222;
background: #fdfcfa } h1 { font-size: 1.6rem; overflow-wrap: anywhere } h2 { font-size: 1.3rem; margin-top: 2.6rem } h3
{ font-size: 1.1rem; margin-top: 2rem; overflow-wrap: anywhere } img { max-width: 100%; display: block; margin: .6rem 0
} table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { white-space: nowrap; padding: .2rem
.7rem; text-align: right; border-bottom: 1px solid #ddd }

td:first-child, th:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere } .mean td {
font-weight: 600 } .scroll { overflow-x: auto } .players { display: flex; flex-wrap: wrap; gap: 1.5rem } .players label
{ display: flex; flex-direction: column } .warning { background: #fff0d9; padding: .5rem .8rem; border-left: 4px solid
#d9622b } .note { color: #666 }
"""


def write_page(target: str | Path, title: str, note: str, body: str) -> None:
    """Write a page that needs no network, under its name only when it is complete.

    Args:
        title, note: plain text; the note is a sentence below the title.
        body: markup.

    Raises:
        PathError: the page cannot be written.
    """
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head>
<body><h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>
{body}</body></html>
"""
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # a file name may be no Unicode


def number(value: float) -> str:
    """Two decimals, one of a large number, three of a small one."""
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def image(png: bytes, alt: str) -> str:
    """A picture inside the page."""
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def players(sounds: dict[str, NDArray[np.float32]], sample_rate: int, keep_levels: bool) -> str:
    """Players side by side, each below its name.

    Args:
        sounds: `[sample]` each, or `[channel, sample]` of two channels, at any level.
        keep_levels: one gain for all of them, that of the first, so that their levels compare; else each has its own.
    """
    gains = [_listening_gain(wave) for wave in sounds.values()]
    if keep_levels:
        loudest = max(float(np.abs(wave).max()) for wave in sounds.values())
        gains = [min(gains[0], _LARGEST_SAMPLE / max(loudest, 1e-9))] * len(gains)
    labels = (
        f"<label>{name}{_player(gain * wave, sample_rate)}</label>"
        for (name, wave), gain in zip(sounds.items(), gains, strict=True)
    )
    return f'<div class="players">{"".join(labels)}</div>'


def _listening_gain(wave: NDArray[np.float32]) -> float:
    rms = float(np.sqrt(np.mean(np.square(wave)))) or 1.0
    return min(_LISTENING_LEVEL / rms, _LARGEST_SAMPLE / max(float(np.abs(wave).max()), 1e-9))


def _player(wave: NDArray[np.float32], sample_rate: int) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.T, sample_rate, format="FLAC")
    sound = base64.b64encode(buffer.getvalue()).decode()
    return f'<audio controls preload="none" src="data:audio/flac;base64,{sound}"></audio>'
