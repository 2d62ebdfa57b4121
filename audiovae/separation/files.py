"""Enhancement of sound files of any length, rate and channel count, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae import audio
from audiovae.audio import AudioInfo, Writer
from audiovae.objectives import power
from audiovae.recordings import file_level, spectrogram_blocks, waves
from audiovae.separation.enhancement import Enhancer, Separation
from audiovae.stft import StreamingSynthesis

BLOCK_FRAMES = 1800  # about half a minute at 16 kHz: what is inferred at once
OVERLAP_FRAMES = 100  # of two blocks, across which one gain fades into the other


@dataclass(frozen=True)
class Enhanced:
    """What became of a file.

    Attributes:
        speech, residual: the closed writers, which know the peaks; no residual where none was asked for.
        objective: of every iteration of the first block, in nats per frame.
    """

    speech: Writer
    residual: Writer | None
    objective: list[float]


def enhance_file(enhancer: Enhancer, source: str | Path, target: str | Path, residual: str | Path | None = None, seed: int = 0) -> Enhanced:
    """Write the speech of a sound file, with its rate, length, level and channels; the channels share one gain.

    A file longer than half a minute is taken in blocks that overlap; the noise of one is where the next one's begins. What lies above the
    prior's highest frequency is counted as noise.

    Args:
        residual: also write what was taken away; the two sum to the source, except where the residual is cut at full scale.
        seed: of everything random.

    Raises:
        AudioError: the source cannot be read, or a target not be written.
    """
    prior, info = enhancer.prior, audio.inspect(source)
    level = file_level(prior, info)
    objective: list[float] = []

    def speech_frames() -> Iterator[Complex[Tensor, "channel frame freq"]]:
        faded = _Fade()
        quiet: Tensor | None = None
        for block, last in _overlapping(spectrogram_blocks(prior, info, level)):
            separation = enhancer([_mean_channel(block)], [seed], [1.0 if level else 0.0], [quiet])[0]
            quiet = _final_noise(separation)
            objective.extend([] if objective else separation.objective.tolist())
            yield faded.push(block, separation.wiener, last)

    synthesis = StreamingSynthesis(prior.stft)
    pieces = waves(prior, speech_frames(), synthesis, level, info.sample_rate, info.n_channels, info.n_samples)
    with Writer(target, info.sample_rate, info.n_channels, info.n_samples, info) as speech:
        if residual is None:
            for wave in pieces:
                speech.write(wave)
            return Enhanced(speech, None, objective)
        with Writer(residual, info.sample_rate, info.n_channels, info.n_samples, info) as rest:
            of_source = _Reader(info)
            for wave in pieces:
                speech.write(wave)
                rest.write(of_source.take(wave.shape[1]) - speech.held(wave))
    return Enhanced(speech, rest, objective)


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
