"""Sounds on their way between the page and the library: within limits, at their own rate and level, as float."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from audiovae import audio
from audiovae.audio import Wave
from audiovae.errors import AudiovaeError, PathError, unexpected
from audiovae.prior import AudioVAE
from audiovae.report import plots
from audiovae.report.markup import scale
from audiovae.stft import STFT, power

LARGEST_MEGABYTES = 200
LONGEST_SECONDS = 300.0
MOST_CHANNELS = 32
_HOP_SECONDS, _HOPS_A_WINDOW = 0.016, 4  # of pictures: the front end of the shipped priors, at any rate
_MOST_COLUMNS = 1000  # of a picture; of a longer sound a column is the mean of several frames
Found = TypeVar("Found")
ENDED = threading.Event()  # of the page, for what still works on something
_NOTHING_YET = "no sound yet: record one, drop a file, or take an example"


@dataclass(frozen=True)
class Sound:
    """A sound file as it is.

    Attributes:
        wave: `[channel, sample]`, single precision, full scale 1.
        sample_rate: in Hz.
        name: of the file, without its folder.
    """

    wave: Wave
    sample_rate: int
    name: str

    @property
    def seconds(self) -> float:
        return self.wave.shape[1] / self.sample_rate


def sound_input(label: str, name: str, **more: Any) -> Any:
    """Where a sound is recorded or dropped; not trimmed there, which would write it again in 16 bits.

    Args:
        label: what is read above it.
        name: of the element in the page.
        more: options of `gradio.Audio`.
    """
    import gradio as gr

    sources = {"sources": ["upload", "microphone"], **more}
    return gr.Audio(label=label, elem_id=name, type="filepath", editable=False, buttons=[], **sources)


def sound_output(name: str, label: str | None = None) -> Any:
    """Where a sound that was made is heard and downloaded: see `sound_input`."""
    import gradio as gr

    return gr.Audio(label=label, elem_id=name, interactive=False, buttons=["download"])


def read_sound(path: str | Path | None, longest_seconds: float = LONGEST_SECONDS) -> Sound:
    """Read what was recorded, dropped or chosen.

    Raises:
        AudiovaeError: nothing was; or it is too long or too large, or cannot be read; by the name of the file alone.
    """
    if path is None:
        raise AudiovaeError(_NOTHING_YET)
    name = Path(path).name
    try:
        n_bytes = os.path.getsize(path) if os.path.isfile(path) else 0
        if n_bytes > LARGEST_MEGABYTES * 10**6:
            raise PathError(name, f"is larger than {LARGEST_MEGABYTES} MB; the command line takes any size")
        info = audio.inspect(path)
        if info.seconds > longest_seconds:
            reason = f"lasts {info.seconds:.1f} s, and {longest_seconds:g} s are taken here; the command line takes any"
            raise PathError(name, f"{reason} length")
        if info.n_channels > MOST_CHANNELS:
            raise PathError(name, f"has {info.n_channels} channels, and {MOST_CHANNELS} are taken here")
        wave, _ = audio.read(path)
    except PathError as error:
        raise AudiovaeError(f"{name}: {error.reason}") from error
    return Sound(wave, info.sample_rate, name)


def write_sound(folder: Path, name: str, wave: Wave, sample_rate: int) -> str:
    """Write `name`.wav as 32-bit float, in a new folder below that of the page; returns its path.

    Args:
        wave: `[channel, sample]` or `[sample]`, at any level: nothing is cut or turned down.
    """
    path = Path(tempfile.mkdtemp(dir=folder)) / f"{name}.wav"
    soundfile.write(path, np.atleast_2d(wave).T, sample_rate, subtype="FLOAT")
    return str(path)


@cache
def load_prior(name: str) -> AudioVAE:
    """A shipped prior by its name, or one's own.

    Raises:
        ModelError: it cannot be loaded.
    """
    return AudioVAE.from_pretrained(name)


def still_there(found: Found | None) -> Found:
    """What a page found before, which it keeps for an hour.

    Raises:
        AudiovaeError: it is gone.
    """
    if found is None:
        raise AudiovaeError("what was found an hour ago is gone; press the button again")
    return found


def told_by(progress: Callable[..., Any], what: str) -> Callable[[float], None]:
    """A callback that shows the share that is done, and ends the work when the page does."""

    def tell(done: float) -> None:
        if ENDED.is_set():
            raise AudiovaeError("the page has ended")
        progress(done, what)

    return tell


@contextmanager
def one_line() -> Iterator[None]:
    """Whatever fails within is told on the page, in one line that a reader understands."""
    import gradio as gr

    try:
        yield
    except Exception as error:
        known = isinstance(error, (AudiovaeError, ValueError))
        raise gr.Error(_told(str(error if known else unexpected(error))), print_exception=False) from error


def _told(line: str) -> str:
    """As one line, whose markup is none."""
    return re.sub(r"[<>&]", " ", " ".join(line.split()))


def spectrograms(waves: Mapping[str, Wave], sample_rate: int) -> dict[str, str]:
    """Pictures of sounds beside each other, on one scale: see `scale_line`.

    Args:
        waves: `[channel, sample]` each; the mean power of the channels is shown.
    """
    hop_length = max(1, round(_HOP_SECONDS * sample_rate))
    stft = STFT(_HOPS_A_WINDOW * hop_length, hop_length)
    powers = [power(stft(torch.from_numpy(np.asarray(wave, np.float32)))).mean(0) for wave in waves.values()]
    return pictures(dict(zip(waves, powers, strict=True)), hop_length / sample_rate, sample_rate)


def pictures(
    powers: Mapping[str, Float[torch.Tensor, "frame freq"]], frame_seconds: float, sample_rate: int
) -> dict[str, str]:
    """Pictures of powers or power spectral densities, on one scale: see `scale_line`."""
    n_together = -(-max(len(values) for values in powers.values()) // _MOST_COLUMNS)
    shown = plots.decibels([_together(values, n_together) for values in powers.values()])
    drawn = (plots.spectrogram(values, n_together * frame_seconds, sample_rate) for values in shown)
    return dict(zip(powers, drawn, strict=True))


def _together(values: torch.Tensor, n: int) -> torch.Tensor:
    """The means of so many frames each; what is left at the end is a column, too."""
    return torch.stack([part.mean(0) for part in values.split(n)]) if n > 1 else values


def scale_line() -> str:
    """What the colours of pictures beside each other mean."""
    return scale("magma", f"{-plots.RANGE_DB:.0f} dB", "0 dB", "re the loudest bin of these pictures")


def level_db(wave: Wave | NDArray[np.float32]) -> float:
    """Mean power re full scale, in dB; -inf for digital silence."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64))))
