"""Sound files: inspect, read in blocks or whole, resample, write. Waves: `[channel, sample]`, float32, full scale 1."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from audiovae.atomic import atomic_path
from audiovae.containers import View, missing_bytes, streams
from audiovae.errors import AudioError
from audiovae.level import without_rumble
from audiovae.quiet import quiet

Wave = NDArray[np.float32]

SUFFIXES = frozenset(
    {
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aiff",
        ".aif",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".rf64",
        ".w64",
        ".sph",
        ".nist",
    }
    | {".wv1", ".wv2"}  # NIST files of WSJ0
    | {
        ".wave",
        ".wavex",
        ".bwf",
        ".bw64",
        ".mpga",
        ".mp1",
        ".mp2",
        ".voc",
        ".sf",
        ".ircam",
        ".svx",
        ".8svx",
        ".paf",
        ".avr",
    }
)
# Sound that libsndfile cannot decode: named, so that it is not overlooked in a folder.
FOREIGN_SUFFIXES = frozenset(
    {
        ".m4a",
        ".m4b",
        ".aac",
        ".mp4",
        ".wma",
        ".webm",
        ".amr",
        ".shn",
        ".ape",
        ".wv",
        ".ac3",
        ".spx",
        ".mka",
        ".3gp",
        ".tta",
    }
)

BLOCK_SECONDS = 20.0

_FORMAT_OF_SUFFIX = {
    ".oga": "OGG",
    ".opus": "OGG",
    ".aif": "AIFF",
    ".aifc": "AIFF",
    ".snd": "AU",
    ".sph": "NIST",
    ".wv1": "NIST",
    ".wv2": "NIST",
    ".wave": "WAV",
    ".bwf": "WAV",
    ".bw64": "RF64",
    ".mpga": "MP3",
    ".mp1": "MP3",
    ".mp2": "MP3",
    ".sf": "IRCAM",
    ".8svx": "SVX",
}
_UNKNOWN_LENGTH = 2**62
LOWEST_RATE, HIGHEST_RATE = 1000, 4_000_000  # Hz; beyond them a header is damaged
# They store blocks of samples, so that lengths grow, and some cannot be written in blocks of any size.
_BLOCK_CODECS = ("ADPCM", "GSM610", "G721_", "G723_", "DWVW", "DPCM_")
_TAGGED = ("WAV", "WAVEX", "RF64", "AIFF", "CAF", "FLAC", "OGG", "MP3")  # not AU, W64, NIST, VOC, ...
_UNCLIPPED = ("FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_III")
_RIFF_LIMIT_BYTES = 4_000_000_000  # above it a WAV file must be RF64


@dataclass(frozen=True)
class Found:
    """What stands below a folder.

    Attributes:
        files: those with the wanted suffixes, folder by folder; hidden ones are passed over.
        passed_over: folders that were not looked into, and why: a link that leads back to where it stands or to what
            was seen already.
        unreadable: folders that cannot be read, and why.
    """

    files: list[Path]
    passed_over: list[tuple[Path, str]]
    unreadable: list[tuple[Path, str]]


def find(folder: Path, suffixes: frozenset[str] = SUFFIXES | FOREIGN_SUFFIXES) -> Found:
    """All files below a folder whose suffix says sound, those that cannot be decoded among them; links are followed."""
    found = Found([], [], [])

    def unreadable(error: OSError) -> None:
        found.unreadable.append((Path(os.fsdecode(error.filename)), f"cannot be read ({error.strerror})"))

    seen = {os.path.realpath(folder): folder}
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        kept = []
        for name in sorted(folders, key=lambda name: (os.path.islink(os.path.join(place, name)), name)):
            path = Path(place, name)
            real = os.path.realpath(path)
            if name.startswith("."):
                continue
            if real in seen:
                found.passed_over.append((path, f"is a link to {seen[real]}, which is taken once"))
            else:
                seen[real] = path
                kept.append(name)
        folders[:] = kept
        found.files.extend(
            Path(place, name)
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        )
    return found


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a sound file says.

    Attributes:
        sample_rate: in Hz.
        n_samples: per channel.
        container: libsndfile's name of the file format, such as WAV.
        subtype: libsndfile's name of the sample format, such as PCM_16.
        microphones: the files whose channels together are the recording's; none where it is one file, `path`.
        start: first sample of a part of the file, which `n_samples` are then of; None: all of it.
    """

    path: Path
    sample_rate: int
    n_samples: int
    n_channels: int
    container: str
    subtype: str
    microphones: tuple[AudioInfo, ...] = ()
    start: int | None = None

    @property
    def seconds(self) -> float:
        return self.n_samples / self.sample_rate


def inspect(path: str | Path) -> AudioInfo:
    """Read the header and check the file against it.

    Raises:
        AudioError: the file is missing, a folder, empty, no sound file, without samples, or cut off.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise AudioError(path, "no such file") from error
    except OSError as error:  # no permission, a loop of links, a name that is too long
        raise AudioError(path, f"cannot be read ({error.strerror})") from error
    if stat.S_ISDIR(mode):
        readable = os.access(path, os.R_OK | os.X_OK)
        raise AudioError(path, "is a folder" + (", not a sound file" if readable else " that cannot be read"))
    if path.suffix.lower() in FOREIGN_SUFFIXES:
        raise AudioError(path, f"{path.suffix} files cannot be read; convert it to WAV or FLAC first")
    try:
        if not stat.S_ISREG(mode):
            kind = "a pipe" if stat.S_ISFIFO(mode) else "a device"
            raise AudioError(path, f"is {kind}, not a file; write it to a file first")
        if path.stat().st_size == 0:
            raise AudioError(path, "is empty (0 bytes); restore it or leave it out")
        if missing_bytes(path) > 0:  # first: the MP3 decoder prints its own complaint
            raise AudioError(path, "is truncated: it ends before its header says; restore the whole file")
        with quiet(), ExitStack() as opened:
            links = list(_opened(path, opened))
    except OSError as error:
        raise AudioError(path, f"cannot be read ({error.strerror or error})") from error
    except (RuntimeError, ValueError, IndexError, TypeError, struct.error) as error:
        raise AudioError(
            path, "is not a sound file, or a damaged one; restore it, or convert it to WAV or FLAC"
        ) from error
    first, n_samples = links[0], sum(file.frames for file in links)
    if first.format == "RAW":  # what libsndfile takes a file without a header for
        raise AudioError(path, "is not a sound file, or a damaged one; restore it, or convert it to WAV or FLAC")
    if n_samples <= 0:
        raise AudioError(path, "has a header but no samples; restore it or leave it out")
    if n_samples >= _UNKNOWN_LENGTH:
        raise AudioError(path, "does not tell its length, as if written into a pipe; encode it again from a file")
    if not LOWEST_RATE <= first.samplerate <= HIGHEST_RATE:
        limit = f"below {LOWEST_RATE}" if first.samplerate < LOWEST_RATE else f"above {HIGHEST_RATE}"
        raise AudioError(path, f"has a rate of {first.samplerate} Hz by its header, {limit}; correct the header")
    if any((file.samplerate, file.channels) != (first.samplerate, first.channels) for file in links):
        raise AudioError(path, "is a chain of streams with different rates or channels; split it into files")
    return AudioInfo(path, first.samplerate, n_samples, first.channels, first.format, first.subtype)


def inspect_together(paths: Sequence[str | Path], name: str | Path) -> AudioInfo:
    """The same for files that are one recording: its microphones, each in a file of its own.

    Args:
        paths: in the order of the channels.
        name: of the recording, by which errors call it.

    Raises:
        AudioError: as `inspect`, for each of them; or they differ in rate or length.
    """
    first, *others = found = tuple(inspect(path) for path in paths)
    for other in others:
        for what, of_first, of_other in (
            ("Hz", first.sample_rate, other.sample_rate),
            ("samples", first.n_samples, other.n_samples),
        ):
            if of_first != of_other:
                raise AudioError(
                    other.path,
                    f"has {of_other} {what}, and {first.path} has {of_first}; microphones of a recording share both "
                    "rate and length",
                )
    n_channels = sum(info.n_channels for info in found)
    return replace(first, path=Path(name), n_channels=n_channels, microphones=found)


def part(info: AudioInfo, start: float, duration: float | None = None) -> AudioInfo:
    """A part of a file, of which alone `blocks` then reads.

    Args:
        start, duration: in seconds; to the end by default. At most a millisecond beyond it is rounding.

    Raises:
        AudioError: it does not lie in the file.
    """
    first = round(start * info.sample_rate)
    n_samples = info.n_samples - first if duration is None else round(duration * info.sample_rate)
    n_beyond = first + n_samples - info.n_samples
    if first < 0 or n_samples <= max(0, n_beyond) or n_beyond > info.sample_rate / 1000:
        end = "its end" if duration is None else f"{start + duration:g} s"
        raise AudioError(info.path, f"has no part from {start:g} s to {end}: it is {info.seconds:g} s long")
    return replace(info, start=first, n_samples=n_samples - max(0, n_beyond))


def _opened(path: Path, opened: ExitStack) -> Iterator[soundfile.SoundFile]:
    """The streams of a file, mostly one, one after another; all stay open as long as `opened`."""
    stored: list[View | bytes] = [opened.enter_context(view) for view in streams(path)]
    for one in stored or [os.fsencode(path)]:
        yield opened.enter_context(soundfile.SoundFile(one))


def _read(file: soundfile.SoundFile, n_samples: int) -> NDArray[np.float32]:
    with quiet():
        return file.read(n_samples, dtype="float32", always_2d=True)


def _pass_over(file: soundfile.SoundFile, n_samples: int) -> None:
    """Go to a sample; MP3 streams are read up to there, as what follows a jump is not what stands there."""
    if file.seekable() and file.format != "MP3":
        file.seek(n_samples)
        return
    while n_samples > 0 and len(block := _read(file, min(n_samples, 2**18))):
        n_samples -= len(block)


def blocks(info: AudioInfo, n_samples: int | None = None) -> Iterator[Wave]:
    """Yield the file, or the part of it, in blocks of `n_samples` (default 20 s), each `[channel, sample]`.

    Raises:
        AudioError: while reading: damaged or cut-off data, or samples that are not finite.
    """
    n_samples = n_samples or int(BLOCK_SECONDS * info.sample_rate)
    if info.microphones:
        for of_each in zip(*(blocks(one, n_samples) for one in info.microphones), strict=True):
            yield np.concatenate(of_each)
        return
    n_read, n_before = 0, info.start or 0
    end = _UNKNOWN_LENGTH if info.start is None else info.n_samples
    try:
        with ExitStack() as opened:
            for file in _opened(info.path, opened):
                if n_before:
                    _pass_over(file, min(n_before, file.frames))
                    n_before -= min(n_before, file.frames)
                while n_read < end and len(block := _read(file, min(n_samples, end - n_read))):
                    n_read += len(block)
                    if not np.isfinite(block).all():
                        raise AudioError(info.path, "holds samples that are NaN or infinite; repair it or leave it out")
                    yield np.ascontiguousarray(block.T)
    except OSError as error:
        raise AudioError(info.path, f"cannot be read ({error.strerror or error})") from error
    except RuntimeError as error:
        raise AudioError(info.path, "is damaged: decoding fails in the middle; restore the whole file") from error
    if n_read != info.n_samples:
        raise AudioError(
            info.path, f"is truncated: {n_read} of {info.n_samples} samples can be read; restore the whole file"
        )


T = TypeVar("T")
_HELD_SAMPLES = 2**20  # of all channels


def is_short(info: AudioInfo) -> bool:
    """May all of the file be held in memory?"""
    return info.n_samples * info.n_channels <= _HELD_SAMPLES


def repeatable(make: Callable[[], Iterator[T]], info: AudioInfo) -> Callable[[], Iterator[T]]:
    """What is made of a file, each time that it is asked for: held if the file is short, else made anew."""
    if not is_short(info):
        return make
    held = list(make())
    return lambda: iter(held)


def read(path: str | Path, sample_rate: int | None = None) -> tuple[Wave, AudioInfo]:
    """Read a whole file, `[channel, sample]`, resampled to `sample_rate` if one is given.

    Raises:
        AudioError: as `inspect` and `blocks`.
    """
    info = inspect(path)
    wave = np.concatenate(list(blocks(info)), axis=1)  # in blocks: what a header promises is not allocated on its word
    return resample(wave, info.sample_rate, sample_rate or info.sample_rate), info


def read_heard(path: str | Path, sample_rate: int) -> tuple[Wave, AudioInfo]:
    """Read a whole file as a prior hears it, `[channel, sample]` at `sample_rate`: see `audiovae.level`.

    Raises:
        AudioError: as `inspect` and `blocks`.
    """
    wave, info = read(path)
    return resample(without_rumble(wave, info.sample_rate).wave, info.sample_rate, sample_rate), info


def resampled_length(n_samples: int, rate: int, new_rate: int) -> int:
    """Number of samples at another rate, rounded up, so that even one sample leaves one."""
    return -(-n_samples * new_rate // rate)


def resample(wave: Wave, rate: int, new_rate: int) -> Wave:
    """Resample `[..., sample]` from `rate` to `new_rate` Hz with soxr's high quality; see `resampled_length`."""
    if rate == new_rate:
        return wave
    length = resampled_length(wave.shape[-1], rate, new_rate)
    resampler = Resampler(rate, new_rate, int(np.prod(wave.shape[:-1])))
    flat = wave.reshape(-1, wave.shape[-1])
    whole = np.concatenate([resampler.push(flat), resampler.finish(length)], axis=1)
    return whole.reshape(*wave.shape[:-1], length)


class Resampler:
    """Resample a wave that arrives in blocks, `[channel, sample]`; passes it through where the rates are equal."""

    def __init__(self, rate: int, new_rate: int, n_channels: int) -> None:
        self._stream = soxr.ResampleStream(rate, new_rate, n_channels, dtype="float32") if rate != new_rate else None
        self._n_channels = n_channels
        self._tail_samples = -(-rate // new_rate) * 64  # zeros that push out the last samples of even the shortest wave
        self._n_emitted = 0

    def push(self, block: Wave) -> Wave:
        """Take the next samples and return those that are ready."""
        resampled = block if self._stream is None else self._resample(block, last=False)
        self._n_emitted += resampled.shape[1]
        return resampled

    def finish(self, length: int) -> Wave:
        """Return the rest, so that `length` samples were returned in all."""
        missing = length - self._n_emitted
        tail = np.zeros((self._n_channels, 0), np.float32)
        if self._stream is not None:
            tail = self._resample(np.zeros((self._n_channels, self._tail_samples), np.float32), last=True)
        return np.pad(tail[:, :missing], ((0, 0), (0, max(0, missing - tail.shape[1]))))

    def _resample(self, block: Wave, last: bool) -> Wave:
        assert self._stream is not None
        return np.ascontiguousarray(
            self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last).reshape(-1, self._n_channels).T
        )


def resample_blocks(
    blocks: Iterable[Wave], rate: int, new_rate: int, n_channels: int, n_samples: int
) -> Iterator[Wave]:
    """Resample a wave of `n_samples` that arrives in blocks, `[channel, sample]`: see `resampled_length`."""
    resampler = Resampler(rate, new_rate, n_channels)
    for block in blocks:
        yield resampler.push(block)
    yield resampler.finish(resampled_length(n_samples, rate, new_rate))


def read_comment(path: str | Path) -> str | None:
    """The comment among the tags of a sound file; empty where there is none, or no sound file; None for a format that
    has no tags.
    """
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            return str(file.comment) if file.format in _TAGGED else None
    except (OSError, RuntimeError, TypeError, ValueError):
        return ""


class Writer:
    """Write a sound file in blocks; it appears under its name only when the `with` block ends without an error.

    Rate and channels are given; container and sample format are those of `like` where its suffix is the same, else the
    usual ones of the suffix (WAV above 4 GB becomes RF64).

    Args:
        comment: stands in the file's tags, where its format has any; `read_comment` gives it back.

    Attributes:
        path: may be changed as long as the file is open, to another of the same folder and suffix.
        peak: largest absolute sample so far; above 1 it was clipped unless the samples are stored as float.
        recoded: `like` has a codec of blocks, such as ADPCM or GSM, which would change the length: this is 16-bit PCM.

    Raises:
        AudioError: unknown suffix, a rate that the format does not have, no room, or no permission.
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int,
        n_channels: int,
        n_samples: int,
        like: AudioInfo | None = None,
        comment: str = "",
    ) -> None:
        self.path = Path(path)
        self.peak = 0.0
        self._n_written = 0
        suffix = self.path.suffix.lower()
        if suffix not in SUFFIXES:
            raise AudioError(
                path, f"{suffix or 'no suffix'} is not a sound format that can be written; use .wav or .flac"
            )
        same = like is not None and like.path.suffix.lower() == suffix
        self._container = like.container if like and same else _FORMAT_OF_SUFFIX.get(suffix, suffix[1:].upper())
        self._subtype = like.subtype if like and same else ("OPUS" if suffix == ".opus" else None)
        self.recoded = self._subtype is not None and any(name in self._subtype for name in _BLOCK_CODECS)
        if self.recoded:
            self._subtype = "PCM_16"
        if self._container in ("WAV", "WAVEX") and n_samples * n_channels * 4 > _RIFF_LIMIT_BYTES:
            self._container = "RF64"
        self.sample_rate, self._n_channels, self._comment = sample_rate, n_channels, comment
        self._atomic = atomic_path(self.path, final=lambda: self.path)

    def __enter__(self) -> Writer:
        temporary = self._atomic.__enter__()
        try:
            self._file = soundfile.SoundFile(
                os.fsencode(temporary), "w", self.sample_rate, self._n_channels, self._subtype, format=self._container
            )
        except (RuntimeError, ValueError, TypeError) as error:
            failure = AudioError(
                self.path,
                f"cannot be written as {self._container} at {self.sample_rate} Hz with {self._n_channels} channels; "
                "check the folder, or choose another suffix",
            )
            self._atomic.__exit__(type(failure), failure, None)
            raise failure from error
        if self._comment:
            with contextlib.suppress(RuntimeError):  # some formats have no tags
                self._file.comment = self._comment
        return self

    @property
    def clips(self) -> bool:
        """Did samples exceed what the file can hold?"""
        return self.peak > 1.0 and self._file.subtype not in _UNCLIPPED

    def held(self, block: Wave) -> Wave:
        """What the file holds of samples: cut at full scale unless stored as float (libsndfile wraps around in mu-law
        and ADPCM).
        """
        return block if self._file.subtype in _UNCLIPPED else np.clip(block, -1.0, 1.0)

    @property
    def seconds(self) -> float:
        """Of what is written so far."""
        return self._n_written / self.sample_rate

    def write(self, block: Wave) -> None:
        """Append `[channel, sample]`."""
        if block.size:
            peak = float(np.abs(block).max())
            if not math.isfinite(peak):
                raise AudioError(self.path, "would hold samples that are NaN or infinite; turn the input down")
            self.peak = max(self.peak, peak)
            try:
                self._file.write(self.held(block).T)
                self._n_written += block.shape[1]
            except RuntimeError as error:
                raise AudioError(self.path, "cannot be written to the end; check the free space") from error

    def _last_sample_is_there(self) -> bool:
        if missing_bytes(os.fsdecode(self._file.name)) > 0:
            return False
        with soundfile.SoundFile(self._file.name) as file:
            if file.frames < self._n_written:
                return False
            if file.format in ("OGG", "MP3"):  # seeking beyond the end of these goes unnoticed: decode them
                return sum(len(block) for block in file.blocks(2**16, dtype="float32")) >= self._n_written
            file.seek(max(0, self._n_written - 1))
            return self._n_written == 0 or len(file.read(1)) == 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            # libsndfile does not report what fails while it closes: look at what arrived.
            complete = error is not None or self._last_sample_is_there()
        except RuntimeError:
            complete = False
        if not complete and error is None:
            kind, error = AudioError, AudioError(self.path, "cannot be written to the end; check the free space")
            self._atomic.__exit__(kind, error, None)
            raise error
        self._atomic.__exit__(kind, error, trace)
