"""The recordings that a corpus is made of, wherever they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal, get_args

import numpy as np
import soundfile

from audiovae import audio
from audiovae.errors import AudioError, CorpusError

Split = Literal["train", "validation", "test"]
Content = bytes | np.ndarray
Origin = tuple[int, int]

_WAV_BYTES = 4_000_000_000  # above it a WAV file must be RF64


@dataclass(frozen=True, eq=False)
class Item:
    """A recording to pack.

    Attributes:
        id: its name in the corpus, which no other has; of a file below a folder, the path there, with slashes.
        sound: a sound file; or the bytes of one; or a wave, `[sample]` or `[channel, sample]`, full scale 1; or a
            function without arguments that gives bytes or a wave: only then do they take no memory before they are
            packed. For several jobs it must be one that can be pickled, of a module or a `functools.partial` of one.
        sample_rate: of a wave, in Hz; files tell theirs.
        start: in seconds, where the recording begins in the sound.
        duration: in seconds; None: to the end.
        speaker: whose voice it is; where nobody tells, the recording counts as a speaker of its own.
        split: None until one is assigned.
        left_out: why it is not to be packed, if so.
        speed: how much faster it is played, as a tape: pitch, formants and tempo change together.
        labels: what else is known of it, by name, such as the digit that is spoken.

    Raises:
        CorpusError: no name, an unknown split, a start or duration that is none, a wave without a rate, or a label
            that is no text.
    """

    id: str
    sound: str | Path | Content | Callable[[], Content]
    sample_rate: int | None = None
    start: float = 0.0
    duration: float | None = None
    speaker: str = ""
    split: Split | None = None
    left_out: str | None = None
    speed: float = 1.0
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id:
            raise CorpusError(str(self.sound)[:50], "is an item without an id; give each one")
        if self.split not in (None, *get_args(Split)):
            raise CorpusError(self.id, f"has the split {self.split!r}; known are {', '.join(get_args(Split))}")
        if not (math.isfinite(self.start) and self.start >= 0):
            raise CorpusError(self.id, f"starts at {self.start} s; a start is a number from 0 on")
        if self.duration is not None and not (math.isfinite(self.duration) and self.duration > 0):
            raise CorpusError(self.id, f"has a duration of {self.duration} s; it must be above 0")
        if isinstance(self.sound, np.ndarray) and self.sample_rate is None:
            raise CorpusError(self.id, "is a wave without a sample rate; give its sample_rate")
        for name, value in self.labels.items():
            if not isinstance(value, str):
                raise CorpusError(self.id, f"has the label {name} {value!r}; labels are text, {str(value)!r}")

    @property
    def is_part(self) -> bool:
        """Is it not all of its sound?"""
        return self.start > 0 or self.duration is not None

    @property
    def path(self) -> Path | None:
        """The sound file, if it is one."""
        return Path(self.sound) if isinstance(self.sound, (str, Path)) else None


def content(item: Item) -> Content | None:
    """The bytes or the wave of what is no file.

    Raises:
        AudioError: a function fails, or gives something else.
    """
    if isinstance(item.sound, (str, Path)):
        return None
    found = item.sound
    if callable(found):
        try:
            found = found()
        except AudioError:
            raise
        except Exception as error:  # whatever a library of data sets raises for one recording, the others are packed
            reason = " ".join(str(error).split())[:200]
            raise AudioError(item.id, f"cannot be loaded ({type(error).__name__}: {reason})") from error
    if isinstance(found, bytes):
        return found
    if not isinstance(found, np.ndarray) or found.ndim not in (1, 2) or found.dtype.kind != "f":
        kind = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise AudioError(item.id, f"is {kind}; give bytes, or floats [sample] or [channel, sample] of full scale 1")
    if item.sample_rate is None:
        raise AudioError(item.id, "is a wave without a sample rate; give its sample_rate")
    return found


def origin(item: Item, loaded: Content | None) -> Origin:
    """Two numbers that change when the recording does: size and time of change of a file, (0, 0) where there is none;
    of anything else, its length and 56 bits of its SHA-256. The bounds of a part, and a rate, are mixed in.

    Args:
        loaded: see `content`.
    """
    if loaded is None:
        try:
            stat = Path(str(item.sound)).stat()
        except OSError:  # a link to nowhere
            return 0, 0
        size, stamp = stat.st_size, stat.st_mtime_ns
    else:
        size, stamp = len(loaded), _digest(loaded if isinstance(loaded, bytes) else np.ascontiguousarray(loaded).data)
    if item.is_part or item.sample_rate is not None:
        duration = None if item.duration is None else float(item.duration)
        stamp = _digest(repr((stamp, float(item.start), duration, item.sample_rate)).encode())
    return size, stamp


def _digest(loaded: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.sha256(loaded).digest()[:7])


def stored(item: Item, loaded: Content | None, folder: Path) -> Path:
    """The sound file of a recording: its own, or one that is written below a folder.

    Args:
        loaded: see `content`.

    Raises:
        AudioError: no file can hold the wave.
        OSError: it cannot be written.
    """
    if loaded is None:
        return Path(str(item.sound))
    name = hashlib.sha256(item.id.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    if isinstance(loaded, bytes):
        suffix = PurePath(item.id).suffix.lower()
        path = folder / (name + (suffix if suffix in audio.SUFFIXES | audio.FOREIGN_SUFFIXES else ""))
        path.write_bytes(loaded)
        return path
    path = folder / f"{name}.wav"
    wave = np.atleast_2d(loaded).astype(np.float32)
    container = "RF64" if wave.nbytes > _WAV_BYTES else "WAV"
    try:
        soundfile.write(path, wave.T, item.sample_rate, "FLOAT", format=container)
    except (RuntimeError, ValueError, TypeError) as error:
        raise AudioError(
            item.id, f"is a wave of {len(wave)} channels at {item.sample_rate} Hz; give [sample] or [channel, sample]"
        ) from error
    return path
