"""A prior applied to sound files of any length, rate and channel count, in constant memory."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae import audio
from audiovae.atomic import atomic_path
from audiovae.audio import AudioInfo, Resampler, Writer, resampled_length
from audiovae.errors import ModelError
from audiovae.level import LevelMeter
from audiovae.objectives import power
from audiovae.prior import AudioVAE, LatentChoice, Phase, choose, griffin_lim
from audiovae.saved import model_hash
from audiovae.stft import STFT, StreamingAnalysis, StreamingSynthesis

LATENTS_FORMAT_VERSION = 1
_DAMAGED_ARCHIVE = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
_DECODED_FRAMES = 2048  # at a time
_GRIFFIN_LIM_FRAMES = 1024
_CROSSFADE_FRAMES = 16


def file_level(prior: AudioVAE, info: AudioInfo) -> float:
    """Level of a file at the prior's rate, shared by its channels: the first pass over it."""
    meter = LevelMeter(prior.sample_rate)
    for block in _at_rate(info, prior.sample_rate):
        meter.push(block)
    return meter.finish()


def spectrogram_blocks(prior: AudioVAE, info: AudioInfo, level: float) -> Iterator[Complex[Tensor, "channel frame freq"]]:
    """The STFT of a file over its level, in blocks of frames: the second pass."""
    analysis = StreamingAnalysis(prior.stft)
    for block in _at_rate(info, prior.sample_rate):
        if block.shape[1]:
            frames = analysis.push(torch.from_numpy(block).to(prior.device) / (level or 1.0))
            if frames.shape[-2]:
                yield frames
    yield analysis.finish()


def _at_rate(info: AudioInfo, rate: int) -> Iterator[audio.Wave]:
    resampler = Resampler(info.sample_rate, rate, info.n_channels)
    for block in audio.blocks(info):
        yield resampler.push(block)
    yield resampler.finish(resampled_length(info.n_samples, info.sample_rate, rate))


@torch.no_grad()
def resynthesize_file(
    prior: AudioVAE, source: str | Path, target: str | Path, phase: Phase = "original", latents: LatentChoice = "mean"
) -> Writer:
    """Write the resynthesis of a sound file, with its rate, length and channels; see `AudioVAE.resynthesize`.

    Returns:
        the closed writer, which knows the peak.

    Raises:
        AudioError: the source cannot be read, or the target not be written.
    """
    info = audio.inspect(source)
    level = file_level(prior, info)
    synthesis = StreamingSynthesis(prior.stft) if phase == "original" else StreamingGriffinLim(prior.stft)

    def magnitudes() -> Iterator[Tensor]:
        for spectrogram in spectrogram_blocks(prior, info, level):
            posterior = prior.vae.infer(power(spectrogram)).posterior
            magnitude = prior.vae.likelihood(choose(posterior, latents)).variance.sqrt()
            yield magnitude * torch.sgn(spectrogram) if phase == "original" else magnitude

    return _synthesise(prior, magnitudes(), synthesis, level, target, info.sample_rate, info.n_channels, info.n_samples, info)


@dataclass(frozen=True)
class LatentsFile:
    """An encoded sound file: what `decode_file` needs, and nothing else.

    Attributes:
        loc, scale: of the Gaussian posterior, `[channel, frame, latent]`.
        level: of the recording, shared by its channels.
        sample_rate, n_samples: of the sound file.
        model: hash of the model that encoded it.
    """

    loc: Float[Tensor, "channel frame latent"]
    scale: Float[Tensor, "channel frame latent"]
    level: float
    sample_rate: int
    n_samples: int
    model: str

    def save(self, path: str | Path) -> None:
        """Write an .npz file without pickle."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                loc=self.loc.numpy(force=True),
                scale=self.scale.numpy(force=True),
                level=self.level,
                sample_rate=self.sample_rate,
                n_samples=self.n_samples,
                n_channels=self.loc.shape[0],
                model=np.array(self.model),
                format_version=LATENTS_FORMAT_VERSION,
            )

    @classmethod
    def load(cls, path: str | Path) -> LatentsFile:
        """Read a latents file.

        Raises:
            ModelError: missing, damaged, not a latents file, or of a newer version.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as fields:
                version = int(fields["format_version"])
                if version > LATENTS_FORMAT_VERSION:
                    raise ModelError(path, f"was written by a newer audiovae (format {version}); update audiovae")
                loc, scale = (torch.from_numpy(fields[name]) for name in ("loc", "scale"))
                level, rate, n_samples = float(fields["level"]), int(fields["sample_rate"]), int(fields["n_samples"])
                whole = loc.ndim == 3 and loc.shape == scale.shape and len(loc) == int(fields["n_channels"]) > 0
                sound = bool(torch.isfinite(loc).all() and torch.isfinite(scale).all() and (scale >= 0).all())
                if not (whole and sound and loc.dtype == scale.dtype == torch.float32 and 0 <= level < math.inf and rate > 0 < n_samples):
                    raise ValueError("latents")
                return cls(loc, scale, level, rate, n_samples, str(fields["model"]))
        except FileNotFoundError as error:
            raise ModelError(path, "no such file") from error
        except _DAMAGED_ARCHIVE as error:
            raise ModelError(path, "is not a latents file, or a damaged one; encode the sound again") from error


@torch.no_grad()
def encode_file(prior: AudioVAE, source: str | Path) -> LatentsFile:
    """Infer the posterior of every frame of a sound file.

    Raises:
        AudioError: the source cannot be read.
    """
    info = audio.inspect(source)
    level = file_level(prior, info)
    posteriors = [prior.vae.infer(power(block)).posterior for block in spectrogram_blocks(prior, info, level)]
    loc, scale = (torch.cat([getattr(posterior, name).cpu() for posterior in posteriors], dim=1) for name in ("mean", "stddev"))
    return LatentsFile(loc, scale, level, info.sample_rate, info.n_samples, model_hash(prior))


@torch.no_grad()
def decode_file(prior: AudioVAE, source: str | Path, target: str | Path, latents: LatentChoice = "mean") -> Writer:
    """Write the sound of a latents file, its phase estimated by Griffin-Lim.

    Raises:
        ModelError: no latents file, or one of another model.
        AudioError: the target cannot be written.
    """
    encoded = LatentsFile.load(source)
    if encoded.model != model_hash(prior):
        raise ModelError(source, f"was encoded by another model ({encoded.model[:12]}); give that one with --model")
    length = resampled_length(encoded.n_samples, encoded.sample_rate, prior.sample_rate)
    if encoded.loc.shape[1:] != (prior.stft.n_frames(length), prior.vae.latent_dim):
        raise ModelError(source, "is damaged: its latents do not fit its number of samples; encode it again")

    def magnitudes() -> Iterator[Tensor]:
        for loc, scale in zip(encoded.loc.split(_DECODED_FRAMES, 1), encoded.scale.split(_DECODED_FRAMES, 1), strict=True):
            z = loc + scale * torch.randn_like(scale) if latents == "sample" else loc
            yield prior.vae.likelihood(z.to(prior.device)).variance.sqrt()

    synthesis = StreamingGriffinLim(prior.stft)
    return _synthesise(prior, magnitudes(), synthesis, encoded.level, target, encoded.sample_rate, encoded.loc.shape[0], encoded.n_samples)


def _synthesise(
    prior: AudioVAE, blocks: Iterator[Tensor], synthesis: StreamingSynthesis | StreamingGriffinLim, level: float, target: str | Path,
    rate: int, n_channels: int, n_samples: int, like: AudioInfo | None = None,
) -> Writer:  # fmt: skip
    back = Resampler(prior.sample_rate, rate, n_channels)
    with Writer(target, rate, n_channels, n_samples, like) as writer:
        n_written = 0

        def write(block: audio.Wave) -> None:
            nonlocal n_written
            writer.write(block[:, : n_samples - n_written])
            n_written += block.shape[1]

        for block in blocks:
            write(back.push((synthesis.push(block) * level).numpy(force=True)))
        rest = synthesis.finish(resampled_length(n_samples, rate, prior.sample_rate))
        write(back.push((rest * level).numpy(force=True)))
        write(back.finish(max(n_samples, n_written)))
    return writer


class StreamingGriffinLim:
    """Griffin-Lim for magnitudes that arrive in blocks: about 16 s at a time, cross-faded over a quarter of a second.

    The phase of one stretch knows nothing of the next one's, so a steady tone may dip where two of them meet.
    """

    def __init__(self, stft: STFT) -> None:
        self._stft = stft
        self._pending: list[Tensor] = []
        self._tail: Tensor | None = None  # the end of the stretch before, still to be cross-faded
        self._n_emitted = 0

    def push(self, magnitude: Float[Tensor, "channel frame freq"]) -> Float[Tensor, "channel sample"]:
        """Take the next frames and return the samples that are ready."""
        self._pending.append(magnitude)
        waves = [magnitude.new_zeros(magnitude.shape[0], 0)]
        while sum(part.shape[1] for part in self._pending) > 2 * _GRIFFIN_LIM_FRAMES:
            pending = torch.cat(self._pending, dim=1)
            stretch = pending[:, : _GRIFFIN_LIM_FRAMES + _CROSSFADE_FRAMES + 1]
            self._pending = [pending[:, _GRIFFIN_LIM_FRAMES:]]
            wave = self._fade_in(griffin_lim(self._stft, stretch, (stretch.shape[1] - 1) * self._stft.hop_length))
            cut = _GRIFFIN_LIM_FRAMES * self._stft.hop_length
            self._tail = wave[:, cut:]
            waves.append(wave[:, :cut])
        emitted = torch.cat(waves, dim=1)
        self._n_emitted += emitted.shape[1]
        return emitted

    def finish(self, length: int) -> Float[Tensor, "channel sample"]:
        """Return the rest of a wave of `length` samples."""
        return self._fade_in(griffin_lim(self._stft, torch.cat(self._pending, dim=1), length - self._n_emitted))

    def _fade_in(self, wave: Tensor) -> Tensor:
        if self._tail is None:
            return wave
        n = min(self._tail.shape[1], wave.shape[1])
        ramp = torch.linspace(0, 1, self._tail.shape[1], device=wave.device)[:n]
        return torch.cat([self._tail[:, :n] * (1 - ramp) + wave[:, :n] * ramp, wave[:, n:]], dim=1)
