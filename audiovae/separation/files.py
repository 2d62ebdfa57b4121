"""Sound files of any rate, length and channel count, several of them side by side, to files of their sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae import audio
from audiovae.audio import AudioInfo, Writer
from audiovae.errors import AudiovaeError
from audiovae.files.recording import Recording
from audiovae.separation.blocks import Fade, overlapping
from audiovae.separation.em import Separator
from audiovae.separation.separation import Separation
from audiovae.separation.upper_band import UpperBand, reaches_above
from audiovae.stft import Front, StreamingSynthesis, power

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


@dataclass(frozen=True)
class NoisyFile:
    """A sound file to enhance, and where its parts go.

    Attributes:
        source: what to enhance.
        target: receives the speech, with the source's rate, length, level and channels, which share one gain. It
            appears complete, and after the residual. None: nothing is written; the file only runs along, so that those
            beside it come out to the last bit as if it were written.
        residual: receives what was taken away; the two sum to the source, except where the residual is cut at full
            scale.
        seed: of everything random.
        keep_first: hold on to the first block, for a page on it.
        comment: stands in the tags of what is written.
    """

    source: str | Path
    target: str | Path | None
    residual: str | Path | None = None
    seed: int = 0
    keep_first: bool = False
    comment: str = ""


@dataclass(frozen=True)
class FirstBlock:
    """The beginning of a file as it was inferred: all of it, or about half a minute.

    Attributes:
        recording: the file.
        spectrogram: at unit level.
        separation: what became of it, at unit level too.
        seconds: that inference took, shared evenly by the recordings side by side.
    """

    recording: Recording
    spectrogram: Complex[Tensor, "frame freq channel"]
    separation: Separation
    seconds: float


@dataclass(frozen=True)
class Enhanced:
    """What became of a file.

    Attributes:
        speech, residual: the closed writers, which know the peaks; no residual where none was asked for.
        objective: of every iteration of the first block, in nats per frame.
        labels: of the speech in the first block, given or inferred; none for a prior without.
        first: the first block, where that was to be kept.
        rumble_db: of what lies below 50 Hz, which counts as noise, above the recording's level: see `Recording`.
    """

    speech: Writer
    residual: Writer | None
    objective: list[float]
    labels: dict[str, str]
    first: FirstBlock | None
    rumble_db: float


def enhance_file(
    enhancer: Separator, source: str | Path, target: str | Path, residual: str | Path | None = None, seed: int = 0
) -> Enhanced:
    """Write the speech of a sound file: `enhance_files` of one, whose arguments are those of `NoisyFile`.

    Raises:
        AudioError: the source cannot be read, or a target not be written.
    """
    (done,) = enhance_files(enhancer, [NoisyFile(source, target, residual, seed)])
    if isinstance(done, AudiovaeError):
        raise done
    assert done is not None
    return done


def enhance_files(
    enhancer: Separator, files: Sequence[NoisyFile], progress: Callable[[float], None] = lambda seconds: None
) -> list[Enhanced | AudiovaeError | None]:
    """Write the speech of sound files, all of them side by side; each comes out as it would alone, to 1e-4 of full
    scale.

    A file longer than half a minute is taken in blocks that overlap; the noise at the end of one is where the next
    one's begins. So memory follows
    from the number of files and not from their lengths: cut many files into groups by `groups_by_length`. For what lies
    above the prior's highest frequency see `UpperBand`.

    Args:
        progress: is told how many seconds of sound were just done.

    Returns:
        what became of each: None for one without a target; an error for one that cannot be read or written, of which
        nothing is left behind and which the others do not mind.
    """

    def infer(places: list[int], blocks: list[_Asked]) -> list[Separation]:
        return enhancer(
            [block.spectrogram for block in blocks],
            [files[i].seed for i in places],
            [block.level for block in blocks],
            [block.states for block in blocks],
            [block.wave for block in blocks],
        )

    return side_by_side([_enhance(enhancer.front, file, progress) for file in files], infer)


def side_by_side(
    runs: Sequence[Generator[Question, tuple[Answer, float] | None, Result]],
    infer: Callable[[list[int], list[Question]], list[Answer]],
) -> list[Result | AudiovaeError]:
    """Let the runs of files go on together: each yields a block, and is sent what inference says of it.

    Args:
        runs: are sent that and the seconds that it took, shared evenly by those that ran together.
        infer: from the places of runs and their blocks an answer to each.

    Returns:
        what each run came to: what it returns, or the error that it raises, which the others do not mind.
    """
    results: dict[int, Result | AudiovaeError] = {}
    asked: dict[int, Question] = {}

    def resume(i: int, answer: tuple[Answer, float] | None) -> None:
        try:
            asked[i] = runs[i].send(answer)
        except StopIteration as end:
            results[i] = end.value
        except AudiovaeError as error:
            results[i] = error

    try:
        for i in range(len(runs)):
            resume(i, None)
        while asked:
            places, blocks = list(asked), list(asked.values())
            asked.clear()
            start = time.perf_counter()
            separations = infer(places, blocks)
            seconds = (time.perf_counter() - start) / len(blocks)
            for i, separation in zip(places, separations, strict=True):
                resume(i, (separation, seconds))
    finally:
        for run in runs:  # where inference fails or is interrupted, no half file stays
            run.close()
    return [results[i] for i in range(len(runs))]


def groups_by_length(sources: Sequence[str | Path], size: int) -> list[list[int]]:
    """Cut files into groups of `size` that are about as long as each other, the longest first; groups of one stay in
    their order.

    The groups follow from the files alone, in whatever order they are given; one that cannot be read counts as empty.

    Returns:
        for every group the places of its files in `sources`.
    """
    places = list(range(len(sources)))
    if size > 1:
        places.sort(key=lambda i: (-readable_seconds(sources[i]), str(sources[i])))
    return [places[start : start + size] for start in range(0, len(places), size)]


def readable_seconds(source: str | Path) -> float:
    """Duration of a sound file; 0 for one that cannot be read."""
    try:
        return audio.inspect(source).seconds
    except AudiovaeError:
        return 0.0


def first_block(enhancer: Separator, source: str | Path, seed: int = 0) -> FirstBlock:
    """Infer the first block of a sound file, and write nothing.

    Raises:
        AudioError: the source cannot be read.
    """
    run = _enhance(enhancer.front, NoisyFile(source, None), lambda seconds: None)
    block = next(run)
    run.close()
    start = time.perf_counter()
    (separation,) = enhancer([block.spectrogram], [seed], [block.level], waves=[block.wave])
    return FirstBlock(block.recording, block.spectrogram, separation, time.perf_counter() - start)


@dataclass(frozen=True)
class _Asked:
    """What a file wants to be inferred next."""

    recording: Recording
    spectrogram: Complex[Tensor, "frame freq channel"]
    wave: Float[Tensor, "channel sample"]
    states: Sequence[Float[Tensor, " freq"] | None] | None

    @property
    def level(self) -> float:
        """Of the spectrogram, which was divided by the file's."""
        return 1.0 if self.recording.level else 0.0


def _enhance(
    front: Front, file: NoisyFile, progress: Callable[[float], None]
) -> Generator[_Asked, tuple[Separation, float] | None, Enhanced | None]:
    """One file: yields a block, is sent what inference says of it and how long that took, and so on to its end.

    Raises:
        AudioError: the source cannot be read, or a target not be written.
    """
    recording = Recording.open(front, file.source)
    faded, of_source = Fade(), Reader(recording.info)
    states: Sequence[Tensor | None] | None = None
    first: FirstBlock | None = None
    objective: list[float] = []
    labels: dict[str, str] = {}
    ready: list[Tensor] = []  # the frames of speech that the synthesis takes next; it ends where there are none
    pieces = recording.waves(popped(ready), StreamingSynthesis(front.stft))
    with ExitStack() as opened:
        speech = None if file.target is None else opened.enter_context(recording.writer(file.target, file.comment))
        residual = None
        if speech is not None and file.residual is not None:
            residual = opened.enter_context(recording.writer(file.residual, file.comment))
        upper = None if speech is None or not reaches_above(recording) else UpperBand(recording)

        def write(wave: audio.Wave) -> None:
            if speech is not None:
                wave = wave if upper is None else wave + upper.take(wave.shape[1])
                speech.write(wave)
                if residual is not None:
                    residual.write(of_source.take(wave.shape[1]) - speech.held(wave))
            progress(wave.shape[1] / recording.info.sample_rate)

        for block, last in overlapping(recording.blocks(), front.stft.hop_length):
            asked = _Asked(recording, block.spectrogram.movedim(0, -1), block.wave, states)
            answer = yield asked
            assert answer is not None
            separation, seconds = answer
            if states is None:
                objective, labels = separation.objective.tolist(), separation.sources[0].labels
                if file.keep_first:
                    first = FirstBlock(recording, asked.spectrogram, separation, seconds)
            states = [source.state for source in separation.sources]
            ready.append(faded.push(separation.images[0].movedim(-1, 0), last))
            if upper is not None:
                upper.push(power(ready[0]).mean(0), separation.psds[1, : ready[0].shape[1]], last)
            write(next(pieces))
        for wave in pieces:
            write(wave)
    return None if speech is None else Enhanced(speech, residual, objective, labels, first, recording.rumble_db)


def popped(ready: list[Tensor]) -> Iterator[Tensor]:
    """What is put into a list, taken out again; at its end where there is nothing."""
    while ready:
        yield ready.pop()


class Reader:
    """A source once more, in pieces of any length."""

    def __init__(self, info: AudioInfo) -> None:
        self._blocks = audio.blocks(info)
        self._pending = np.zeros((info.n_channels, 0), np.float32)

    def take(self, n_samples: int) -> audio.Wave:
        """The next samples, `[channel, sample]`.

        Raises:
            AudioError: the file cannot be read.
        """
        while self._pending.shape[1] < n_samples:
            self._pending = np.concatenate([self._pending, next(self._blocks)], axis=1)
        taken, self._pending = self._pending[:, :n_samples], self._pending[:, n_samples:]
        return taken
