"""Enhancement of sound files of any length, rate and channel count, in constant memory; several of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae import audio
from audiovae.audio import AudioInfo, Writer
from audiovae.errors import AudiovaeError
from audiovae.files import Recording
from audiovae.prior import AudioVAE
from audiovae.separation.enhancement import Enhancer, Separation
from audiovae.stft import StreamingSynthesis, power

BLOCK_FRAMES = 1800  # about half a minute at 16 kHz: what is inferred at once
OVERLAP_FRAMES = 100  # of two blocks, across which one gain fades into the other


@dataclass(frozen=True)
class NoisyFile:
    """A sound file to enhance, and where its parts go.

    Attributes:
        source: what to enhance.
        target: receives the speech, with the source's rate, length, level and channels, which share one gain. It appears complete, and
            after the residual. None: nothing is written; the file only runs along, so that those beside it come out to the last bit
            as if it were written.
        residual: receives what was taken away; the two sum to the source, except where the residual is cut at full scale.
        seed: of everything random.
    """

    source: str | Path
    target: str | Path | None
    residual: str | Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Enhanced:
    """What became of a file.

    Attributes:
        speech, residual: the closed writers, which know the peaks; no residual where none was asked for.
        objective: of every iteration of the first block, in nats per frame.
        labels: of the speech in the first block, given or inferred; none for a prior without.
    """

    speech: Writer
    residual: Writer | None
    objective: list[float]
    labels: dict[str, str]


def enhance_file(enhancer: Enhancer, source: str | Path, target: str | Path, residual: str | Path | None = None, seed: int = 0) -> Enhanced:
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
    enhancer: Enhancer, files: Sequence[NoisyFile], progress: Callable[[float], None] = lambda seconds: None
) -> list[Enhanced | AudiovaeError | None]:
    """Write the speech of sound files, all of them side by side; each comes out as it would alone, to 1e-4 of full scale.

    A file longer than half a minute is taken in blocks that overlap; the noise of one is where the next one's begins. So memory follows
    from the number of files and not from their lengths: cut many files into groups by `groups_by_length`. What lies above the prior's
    highest frequency is counted as noise.

    Args:
        progress: is told how many seconds of sound were just done.

    Returns:
        what became of each: None for one without a target; an error for one that cannot be read or written, of which nothing is left
        behind and which the others do not mind.
    """
    runs = [_enhance(enhancer.prior, file, progress) for file in files]
    results: list[Enhanced | AudiovaeError | None] = [None] * len(files)
    asked: dict[int, _Block] = {}

    def resume(i: int, separation: Separation | None) -> None:
        try:
            asked[i] = runs[i].send(separation)
        except StopIteration as end:
            results[i] = end.value
        except AudiovaeError as error:
            results[i] = error

    try:
        for i in range(len(files)):
            resume(i, None)
        while asked:
            places, blocks = list(asked), list(asked.values())
            asked.clear()
            separations = enhancer(
                [block.spectrogram for block in blocks],
                [files[i].seed for i in places],
                [block.level for block in blocks],
                [block.quiet for block in blocks],
            )
            for i, separation in zip(places, separations, strict=True):
                resume(i, separation)
    finally:
        for run in runs:  # where inference fails or is interrupted, no half file stays
            run.close()
    return results


def groups_by_length(sources: Sequence[str | Path], size: int) -> list[list[int]]:
    """Cut files into groups of `size` that are about as long as each other, the longest first; groups of one stay in their order.

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


@dataclass(frozen=True)
class _Block:
    """What a file wants to be inferred next: arguments of `Enhancer`."""

    spectrogram: Complex[Tensor, "frame freq"]
    level: float
    quiet: Float[Tensor, " freq"] | None


def _enhance(prior: AudioVAE, file: NoisyFile, progress: Callable[[float], None]) -> Generator[_Block, Separation | None, Enhanced | None]:
    """One file: yields a block, is sent what inference says of it, and so on to its end.

    Raises:
        AudioError: the source cannot be read, or a target not be written.
    """
    recording = Recording.open(prior.front, file.source)
    info, level = recording.info, recording.level
    faded, of_source = _Fade(), _Reader(info)
    quiet: Tensor | None = None
    objective: list[float] = []
    labels: dict[str, str] = {}
    ready: list[Tensor] = []  # the frames of speech that the synthesis takes next; it ends where there are none
    pieces = recording.waves(_popped(ready), StreamingSynthesis(prior.stft))
    with ExitStack() as opened:

        def writer(path: str | Path | None) -> Writer | None:
            if path is None:
                return None
            return opened.enter_context(recording.writer(path))

        speech = writer(file.target)
        residual = speech and writer(file.residual)

        def write(wave: audio.Wave) -> None:
            if speech is not None:
                speech.write(wave)
                if residual is not None:
                    residual.write(of_source.take(wave.shape[1]) - speech.held(wave))
            progress(wave.shape[1] / info.sample_rate)

        for block, last in _overlapping(block.spectrogram for block in recording.blocks()):
            separation = yield _Block(_mean_channel(block), 1.0 if level else 0.0, quiet)
            assert separation is not None
            quiet = _final_noise(separation)
            objective = objective or separation.objective.tolist()
            if separation.condition is not None:
                labels = labels or prior.vae.conditions.names(separation.condition)
            ready.append(faded.push(block, separation.wiener, last))
            write(next(pieces))
        for wave in pieces:
            write(wave)
    return None if speech is None else Enhanced(speech, residual, objective, labels)


def _popped(ready: list[Tensor]) -> Iterator[Tensor]:
    while ready:
        yield ready.pop()


def _mean_channel(block: Complex[Tensor, "channel frame freq"]) -> Complex[Tensor, "frame freq"]:
    """A spectrogram with the mean power of the channels."""
    return block[0] if len(block) == 1 else power(block).mean(0).sqrt().to(block.dtype)


def _final_noise(separation: Separation) -> Float[Tensor, " freq"]:
    return separation.psds[1, -OVERLAP_FRAMES:].mean(0)


def _overlapping(blocks: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Cut a stream of frames into blocks that overlap; says which is the last. No block but a lone first is short."""
    pending: Tensor | None = None
    for block in blocks:
        pending = block if pending is None else torch.cat([pending, block], dim=1)
        while pending.shape[1] >= 2 * BLOCK_FRAMES:
            yield pending[:, :BLOCK_FRAMES], False
            pending = pending[:, BLOCK_FRAMES - OVERLAP_FRAMES :]
    assert pending is not None
    yield pending, True


class _Fade:
    """Gains of overlapping blocks: from one to the next along a straight line."""

    def __init__(self) -> None:
        self._before: Tensor | None = None

    def push(self, block: Complex[Tensor, "channel frame freq"], gain: Float[Tensor, "frame freq"], last: bool) -> Tensor:
        """The speech in the frames that no later block reaches."""
        if self._before is not None:
            rise = torch.linspace(0, 1, OVERLAP_FRAMES, device=gain.device, dtype=gain.dtype).unsqueeze(-1)
            gain = torch.cat([torch.lerp(self._before, gain[:OVERLAP_FRAMES], rise), gain[OVERLAP_FRAMES:]])
        self._before = gain[-OVERLAP_FRAMES:]
        end = len(gain) if last else len(gain) - OVERLAP_FRAMES
        return block[:, :end] * gain[:end]


class _Reader:
    """The source once more, in pieces of any length."""

    def __init__(self, info: AudioInfo) -> None:
        self._blocks = audio.blocks(info)
        self._pending = np.zeros((info.n_channels, 0), np.float32)

    def take(self, n_samples: int) -> audio.Wave:
        while self._pending.shape[1] < n_samples:
            self._pending = np.concatenate([self._pending, next(self._blocks)], axis=1)
        taken, self._pending = self._pending[:, :n_samples], self._pending[:, n_samples:]
        return taken
