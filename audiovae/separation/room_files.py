"""Sound files of several microphones, several of them side by side, to a file of each source and of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovae import audio
from audiovae.audio import AudioInfo, Writer
from audiovae.errors import AudioError, AudiovaeError
from audiovae.files.recording import Recording
from audiovae.separation.blocks import Chain, overlapping_waves
from audiovae.separation.em import Separator
from audiovae.separation.files import Reader, popped, side_by_side
from audiovae.separation.separation import Separation

MICROPHONES = "two or more microphones"


@dataclass(frozen=True)
class RoomFile:
    """A recording of several microphones to take apart, and where its parts go.

    Attributes:
        source: the sound file; of a recording with one file a microphone, its name.
        targets: receive the images of the sources at all microphones, the loudest first, and last the noise: what these
            leave. All have the source's rate, length, level and channels, and sum to it, except where a part is cut at
            full scale. Each appears complete, and the first after all others. None: nothing is written; the file only
            runs along, see `NoisyFile`.
        microphones: one file each, in the order of the channels; none where `source` is the file.
        seed: of everything random.
        keep_first: hold on to the first block, for a page on it.
        comment: stands in the tags of what is written.
    """

    source: str | Path
    targets: Sequence[str | Path] | None
    microphones: Sequence[str | Path] = ()
    seed: int = 0
    keep_first: bool = False
    comment: str = ""

    def inspect(self) -> AudioInfo:
        """Read the headers.

        Raises:
            AudioError: a file cannot be read, or those of one recording do not fit together.
        """
        if self.microphones:
            return audio.inspect_together(self.microphones, self.source)
        return audio.inspect(self.source)


@dataclass(frozen=True)
class FirstRoomBlock:
    """The beginning of a recording as it was inferred: all of it, or about half a minute.

    Attributes:
        recording: the file.
        mixture: at unit level.
        images: at unit level too, the loudest of the whole recording first, the noise last.
        separation: how they were found, in the same order; None for silence.
        seconds: that inference took, shared evenly by the recordings side by side.
    """

    recording: Recording
    mixture: Float[Tensor, "channel sample"]
    images: Float[Tensor, "source channel sample"]
    separation: Separation | None
    seconds: float


@dataclass(frozen=True)
class TakenApart:
    """What became of a recording.

    Attributes:
        sources: the closed writers, which know path and peak: the loudest first, the noise last.
        levels_db: of each, the mean over channels, below full scale; -inf for silence.
        objective: of every iteration of the first block, in nats per frame; empty for silence.
        labels: of the sources but the noise in the first block, given or inferred; none for a prior without.
        first: the first block, where that was to be kept.
        rumble_db: of what lies below 50 Hz, above the level of the rest; see `Recording`.
        without_sound: the microphones, counted from 1, that took no part; none in silence.
    """

    sources: tuple[Writer, ...]
    levels_db: tuple[float, ...]
    objective: list[float]
    labels: tuple[dict[str, str], ...]
    first: FirstRoomBlock | None
    rumble_db: float
    without_sound: tuple[int, ...]


def separate_file(separator: Separator, source: str | Path, targets: Sequence[str | Path], seed: int = 0) -> TakenApart:
    """Take one recording apart: `separate_files` of one, whose arguments are those of `RoomFile`.

    Raises:
        AudioError: the source cannot be read or taken apart, or a target not be written.
    """
    (done,) = separate_files(separator, [RoomFile(source, targets, seed=seed)])
    if isinstance(done, AudiovaeError):
        raise done
    assert done is not None
    return done


@torch.no_grad()
def separate_files(
    separator: Separator,
    files: Sequence[RoomFile],
    least_channels: int = 2,
    progress: Callable[[float], None] = lambda seconds: None,
) -> list[TakenApart | AudiovaeError | None]:
    """Take recordings apart, all of them side by side; each comes out as it would alone, to 1e-3 of full scale.

    A file longer than a minute is taken in blocks of half a minute that overlap, and the sources of one are known again
    in the next. So memory follows from the number of files and not from their lengths. Microphones without any sound
    take no part. Rumble that is too loud, see `audiovae.level`, and what lies above the highest frequency of the
    separator are counted as noise.

    Args:
        separator: whose last source is the noise.
        least_channels: that it needs.
        progress: is told how many seconds of sound were just done.

    Returns:
        what became of each: None for one without targets; an error for one that cannot be read, taken apart or written,
        of which nothing is left behind and which the others do not mind.
    """

    def infer(places: list[int], blocks: list[_Asked]) -> list[Separation | None]:
        found: dict[int, Separation | None] = {}
        for n_channels in {len(block.wave) for block in blocks}:
            chosen = [i for i, block in enumerate(blocks) if len(block.wave) == n_channels]
            waves, seeds = [blocks[i].wave for i in chosen], [files[places[i]].seed for i in chosen]
            found |= dict(zip(chosen, _inferred(separator, waves, seeds), strict=True))
        return [found[i] for i in range(len(blocks))]

    return side_by_side([_separate(separator, file, least_channels, progress) for file in files], infer)


def _inferred(separator: Separator, waves: list[Tensor], seeds: list[int]) -> list[Separation | None]:
    """Blocks of equally many channels taken apart; None for one whose matrices have no inverse."""
    try:
        spectrograms = [separator.front.stft(wave).movedim(0, -1) for wave in waves]
        return list(separator(spectrograms, seeds, waves=waves))
    except torch.linalg.LinAlgError:
        if len(waves) == 1:
            return [None]
        return [_inferred(separator, [wave], [seed])[0] for wave, seed in zip(waves, seeds, strict=True)]


@dataclass(frozen=True)
class _Asked:
    """What a recording wants to be taken apart next."""

    wave: Float[Tensor, "channel sample"]


def _separate(
    separator: Separator, file: RoomFile, least_channels: int, progress: Callable[[float], None]
) -> Generator[_Asked, tuple[Separation | None, float] | None, TakenApart | None]:
    """One recording: yields a block, is sent what inference says of it and how long that took, and so on to its end.

    Raises:
        AudioError: the source cannot be read or taken apart, or a target not be written.
    """
    info = file.inspect()
    _check_channels(info, info.n_channels, least_channels)
    recording = Recording.measured(separator.front, info)
    n_sources = separator.n_targets
    chain = Chain(separator.front.sample_rate)
    sounded = torch.zeros(info.n_channels, dtype=torch.bool)
    begun, objective, labels = False, list[float](), list[dict[str, str]]()
    first: FirstRoomBlock | None = None
    ready: list[Tensor] = []  # the samples that are resampled next; they end where there are none
    pieces = recording.at_own_rate(popped(ready), n_sources * info.n_channels)
    with ExitStack() as opened:
        parts = _Parts(recording, file, n_sources, opened)
        for wave, last in overlapping_waves(recording.sound(), separator.front.sample_rate):
            live = wave.abs().amax(1) > 0
            sounded |= live.cpu()
            images = wave.new_zeros(n_sources, *wave.shape)
            separation, seconds = None, 0.0
            if recording.level and live.any():
                _check_channels(info, int(live.sum()), least_channels)
                answer = yield _Asked(wave[live])
                assert answer is not None
                separation, seconds = answer
                images[:, live] = _images(separator, separation, info, wave.shape[1])
            if not begun and separation is not None:
                objective, labels = separation.objective.tolist(), [source.labels for source in separation.sources]
            if not begun and file.keep_first:
                everything = torch.cat([images, (wave - images.sum(0)).unsqueeze(0)])
                first = FirstRoomBlock(recording, wave, everything, separation, seconds)
            begun = True
            ready.append(chain.push(images, last).flatten(0, 1))
            progress(parts.write(next(pieces)))
        for resampled in pieces:
            progress(parts.write(resampled))
        if file.targets is None:
            return None
        order = parts.finish(file.targets)
    if first is not None:
        first = replace(first, images=first.images[order], separation=_ordered(first.separation, order))
    sorted_labels = tuple(labels[n] for n in order[:-1] if any(labels))
    return TakenApart(
        tuple(parts.writers[n] for n in order),
        tuple(parts.levels_db[n] for n in order),
        objective,
        sorted_labels,
        first,
        recording.rumble_db,
        tuple(n + 1 for n, sound in enumerate(sounded.tolist()) if sounded.any() and not sound),
    )


class _Parts:
    """The files of a recording: of the sources as they come, and of the noise, which is what these leave.

    Args:
        opened: closes them where something fails.
    """

    def __init__(self, recording: Recording, file: RoomFile, n_sources: int, opened: ExitStack) -> None:
        targets = file.targets or ()
        self._info, self._source = recording.info, Reader(recording.info)
        self._closers = [opened.enter_context(ExitStack()) for _ in targets]
        self.writers = [
            closer.enter_context(recording.writer(target, file.comment))
            for closer, target in zip(self._closers, targets, strict=True)
        ]
        self._energy = np.zeros(n_sources + 1)

    def write(self, wave: audio.Wave) -> float:
        """The next samples of all sources, `[source * channel, sample]`; the seconds that they last."""
        if self.writers:
            rest = self._source.take(wave.shape[1])
            for n, image in enumerate(wave.reshape(len(self._energy) - 1, self._info.n_channels, -1)):
                self.writers[n].write(image)
                self._energy[n] += np.square(image, dtype=np.float64).sum()
                rest = rest - self.writers[n].held(image)
            self.writers[-1].write(rest)
            self._energy[-1] += np.square(rest, dtype=np.float64).sum()
        return wave.shape[1] / self._info.sample_rate

    def finish(self, targets: Sequence[str | Path]) -> list[int]:
        """Name the files, the loudest first, of which that of the first appears last; the order of the sources."""
        n_noise = len(self._energy) - 1
        order = [*np.argsort(-self._energy[:-1], kind="stable").tolist(), n_noise]
        for n, target in zip(order, targets, strict=True):
            self.writers[n].path = Path(target)
        for n in reversed(order):
            self._closers[n].close()
        return order

    @property
    def levels_db(self) -> list[float]:
        n = self._info.n_samples * self._info.n_channels
        return [10 * math.log10(energy / n) if energy else -math.inf for energy in self._energy]


def _images(
    separator: Separator, separation: Separation | None, info: AudioInfo, n_samples: int
) -> Float[Tensor, "source channel sample"]:
    """Waves of all sources but the noise.

    Raises:
        AudioError: they are no numbers.
    """
    if separation is not None:
        images = separator.front.stft.inverse(separation.images[:-1].movedim(-1, 1), n_samples)
        if images.isfinite().all():
            return images
    raise AudioError(
        info.path,
        "did not come apart into finite numbers, as happens to a few frames or to microphones that are copies of each "
        "other; try another --method",
    )


def _ordered(separation: Separation | None, order: list[int]) -> Separation | None:
    if separation is None:
        return None
    sources = tuple(separation.sources[n] for n in order)
    return replace(separation, images=separation.images[order], psds=separation.psds[order], sources=sources)


def _check_channels(info: AudioInfo, n_channels: int, least: int) -> None:
    """Raises AudioError where a recording has too few microphones."""
    if n_channels >= least:
        return
    sounding = "" if n_channels == info.n_channels else " with sound"
    have = f"has {n_channels} channel{'s' * (n_channels > 1)}{sounding}"
    if info.n_channels == 1:
        raise AudioError(
            info.path,
            f"{have}, and sources in space need {MICROPHONES}; name files of one microphone each as 'NAME{{}}.wav', or "
            "take one voice out of noise with: audiovae enhance",
        )
    raise AudioError(info.path, f"{have}, and the method needs {least}; give fewer --sources, or --method fastmnmf2")
