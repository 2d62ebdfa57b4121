"""A sound file as a model hears it: in blocks of frames at unit level; and frames back to a sound file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae import audio
from audiovae.audio import AudioInfo, Resampler, Writer, resample_blocks, resampled_length
from audiovae.errors import AudioError
from audiovae.level import RUMBLE_DB, LevelMeter, level_beside, peak, rumble_share, split_blocks
from audiovae.phase import StreamingGriffinLim
from audiovae.stft import Front, StreamingAnalysis, StreamingSynthesis

Synthesis = StreamingSynthesis | StreamingGriffinLim  # of spectrograms, of magnitudes


@dataclass(frozen=True)
class Block:
    """Frames of a recording, and the samples that they stand on, both at unit level and the front's rate.

    Frame `t` of a block is centred on its sample `t * hop_length`. Blocks put together, on both axes, are the whole.

    Attributes:
        spectrogram: `[channel, frame, freq]`.
        wave: `hop_length` samples a frame, fewer where the recording ends, `[channel, sample]`.
    """

    spectrogram: Complex[Tensor, "channel frame freq"]
    wave: Float[Tensor, "channel sample"]


@dataclass(frozen=True)
class Recording:
    """A sound file seen through a front end.

    It is read from the disk each time that its blocks are asked for, and never held whole.

    Attributes:
        front: STFT, sample rate and device of the blocks.
        info: rate, length, channels and format of the file, which what is made of it gets too.
        level: at the front's rate, shared by the channels; 0 for digital silence, whose blocks are as they are.
        rumble_share: the part of what lies below 50 Hz that the blocks lack, see `audiovae.level`.
    """

    front: Front
    info: AudioInfo
    level: float
    rumble_share: float = 0.0

    @classmethod
    def open(cls, front: Front, path: str | Path) -> Recording:
        """Read the header, and measure the level: the first pass over the file, and one more where it is the peak.

        Raises:
            AudioError: the file cannot be read.
        """
        return cls.measured(front, audio.inspect(path))

    @classmethod
    def measured(cls, front: Front, info: AudioInfo) -> Recording:
        """The same for a file, or several, whose header was read.

        Raises:
            AudioError: it cannot be read.
        """
        meter = LevelMeter(front.sample_rate)
        energy = 0.0

        def above() -> Iterator[audio.Wave]:
            nonlocal energy
            for wave, rumble in _split(info):
                energy += float(np.square(rumble, dtype=np.float64).sum())
                yield wave - rumble

        for piece in _at_rate(above(), info, front.sample_rate):
            meter.push(piece)
        rumble_rms = math.sqrt(energy / (info.n_samples * info.n_channels))
        level = level_beside(rumble_rms, meter.finish())
        if not math.isfinite(level):
            raise AudioError(info.path, "holds samples beyond all scale; turn it down")
        recording = cls(front, info, level, rumble_share(rumble_rms, level))
        is_peak = front.level_rule == "peak" and level > 0
        return replace(recording, level=peak(recording.heard())) if is_peak else recording

    @property
    def n_samples(self) -> int:
        """Per channel, at the front's rate."""
        return resampled_length(self.info.n_samples, self.info.sample_rate, self.front.sample_rate)

    @property
    def rumble_db(self) -> float:
        """Of what lies below 50 Hz, above the level; no less than what is left alone, and -inf in silence."""
        return RUMBLE_DB - 20 * math.log10(1 - self.rumble_share) if self.level else -math.inf

    def blocks(self) -> Iterator[Block]:
        """About 20 s at a time, one or more in all, the last perhaps of few frames: the second pass.

        Raises:
            AudioError: the file cannot be read.
        """
        hop_length = self.front.stft.hop_length
        analysis = StreamingAnalysis(self.front.stft)
        wave = torch.zeros(self.info.n_channels, 0, device=self.front.device)  # which frames to come stand on
        for samples in self.sound():
            wave = torch.cat([wave, samples], dim=1)
            frames = analysis.push(samples)
            if frames.shape[1]:
                cut = frames.shape[1] * hop_length
                yield Block(frames, wave[:, :cut])
                wave = wave[:, cut:]
        yield Block(analysis.finish(), wave)

    def sound(self) -> Iterator[Float[Tensor, "channel sample"]]:
        """The samples of the blocks alone, about 20 s at a time.

        Raises:
            AudioError: the file cannot be read.
        """
        for piece in self.heard():
            if piece.shape[1]:
                yield torch.from_numpy(piece).to(self.front.device) / (self.level or 1.0)

    def waves(self, frames: Iterator[Tensor], synthesis: Synthesis) -> Iterator[audio.Wave]:
        """Frames as pieces of a wave with the file's rate, length and level, `[channel, sample]`.

        Args:
            frames: all that the recording has, at unit level, `[channel, frame, freq]` in blocks of any length.
            synthesis: what makes a wave of them.
        """

        def pieces() -> Iterator[Tensor]:
            for block in frames:
                yield synthesis.push(block)
            yield synthesis.finish(self.n_samples)

        return self.at_own_rate(pieces(), self.info.n_channels)

    def at_own_rate(self, pieces: Iterator[Tensor], n_rows: int) -> Iterator[audio.Wave]:
        """Pieces of waves at unit level and the front's rate as pieces with the file's rate, length and level.

        Args:
            pieces: `[row, sample]`, all that the recording has.
            n_rows: channels, of one sound or of several.
        """
        back = Resampler(self.front.sample_rate, self.info.sample_rate, n_rows)

        def resampled() -> Iterator[audio.Wave]:
            for piece in pieces:
                yield back.push((piece * self.level).numpy(force=True))
            yield back.finish(self.info.n_samples)

        n_left = self.info.n_samples
        for piece in resampled():
            yield piece[:, :n_left]
            n_left -= min(n_left, piece.shape[1])

    def heard(self) -> Iterator[audio.Wave]:
        """What the blocks are made of, at the file's level and the front's rate, `[channel, sample]` in pieces.

        Raises:
            AudioError: the file cannot be read.
        """
        return _at_rate(self._heard(), self.info, self.front.sample_rate)

    def _heard(self) -> Iterator[audio.Wave]:
        """The file without its rumble, at its own rate."""
        if self.rumble_share == 0:
            yield from audio.blocks(self.info)
            return
        for wave, rumble in _split(self.info):
            yield wave - np.float32(self.rumble_share) * rumble

    def _with_rumble(self, pieces: Iterator[audio.Wave]) -> Iterator[audio.Wave]:
        """Pieces of a wave at the file's rate, with the rumble that the blocks lack."""
        if self.rumble_share == 0:
            yield from pieces
            return
        rumbles = (rumble for _, rumble in _split(self.info))
        pending = np.zeros((self.info.n_channels, 0), np.float32)
        for piece in pieces:
            while pending.shape[1] < piece.shape[1]:
                pending = np.concatenate([pending, next(rumbles)], axis=1)
            yield piece + np.float32(self.rumble_share) * pending[:, : piece.shape[1]]
            pending = pending[:, piece.shape[1] :]

    def writer(self, target: str | Path, comment: str = "") -> Writer:
        """A sound file to write: of this one's rate, length, channels and, where the suffix is the same, format."""
        return Writer(target, self.info.sample_rate, self.info.n_channels, self.info.n_samples, self.info, comment)

    def write(self, target: str | Path, frames: Iterator[Tensor], synthesis: Synthesis) -> Writer:
        """Write a sound file of frames, with the rumble that the blocks lack; see `waves` and `writer`.

        Returns:
            the closed writer, which knows the peak.

        Raises:
            AudioError: the target cannot be written.
        """
        with self.writer(target) as writer:
            for wave in self._with_rumble(self.waves(frames, synthesis)):
                writer.write(wave)
        return writer


def _split(info: AudioInfo) -> Iterator[tuple[audio.Wave, audio.Wave]]:
    """Pieces of the file, and what of them lies below 50 Hz."""
    return split_blocks(audio.blocks(info), info.sample_rate, info.n_channels)


def _at_rate(waves: Iterator[audio.Wave], info: AudioInfo, rate: int) -> Iterator[audio.Wave]:
    return resample_blocks(waves, info.sample_rate, rate, info.n_channels, info.n_samples)
