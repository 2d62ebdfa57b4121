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
from audiovae.models import Factor, Inference
from audiovae.phase import StreamingGriffinLim
from audiovae.prior import AudioVAE, LatentChoice, Phase, check_choice
from audiovae.stft import StreamingAnalysis, StreamingSynthesis, power

LATENTS_FORMAT_VERSION = 2
_LATENTS_FIELDS = {"latents", "level", "sample_rate", "n_samples", "n_channels", "n_arrays", "model", "format_version"}
_DAMAGED_ARCHIVE = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
_STRETCH_FRAMES = 4096  # that a model with context in time sees at once, besides its context


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


@dataclass(frozen=True)
class Stretch:
    """Frames that a model sees at once, of which those in `kept` count: the others are there for their context.

    Attributes:
        frames: `[channel, frame, ...]`.
        kept: the part of the frames whose results are used.
    """

    frames: Tensor
    kept: slice


def stretches(blocks: Iterator[Tensor], context: int) -> Iterator[Stretch]:
    """Cut blocks of frames into overlapping stretches, so that a model with context gives nearly what it gives to the whole.

    Args:
        blocks: `[channel, frame, ...]`, one after another.
        context: frames to each side of what is kept; 0 passes the blocks on as they are.
    """
    if context == 0:
        yield from (Stretch(block, slice(0, block.shape[1])) for block in blocks if block.shape[1])
        return
    pending: Tensor | None = None
    n_before = 0  # frames at the beginning of `pending` that were kept already
    for block in blocks:
        pending = block if pending is None else torch.cat([pending, block], dim=1)
        while pending.shape[1] >= n_before + _STRETCH_FRAMES + 2 * context:
            end = n_before + _STRETCH_FRAMES
            yield Stretch(pending[:, : end + context], slice(n_before, end))
            cut = max(0, end - context)
            pending, n_before = pending[:, cut:], end - cut
    if pending is not None and pending.shape[1] > n_before:
        yield Stretch(pending, slice(n_before, pending.shape[1]))


def _at_rate(info: AudioInfo, rate: int) -> Iterator[audio.Wave]:
    resampler = Resampler(info.sample_rate, rate, info.n_channels)
    for block in audio.blocks(info):
        yield resampler.push(block)
    yield resampler.finish(resampled_length(info.n_samples, info.sample_rate, rate))


@torch.no_grad()
def resynthesize_file(
    prior: AudioVAE,
    source: str | Path,
    target: str | Path,
    phase: Phase = "original",
    latents: LatentChoice = "mean",
    condition: Tensor | None = None,
) -> Writer:
    """Write the resynthesis of a sound file, with its rate, length and channels; see `AudioVAE.resynthesize`.

    Returns:
        the closed writer, which knows the peak.

    Raises:
        AudioError: the source cannot be read, or the target not be written.
    """
    check_choice(latents)
    info = audio.inspect(source)
    level = file_level(prior, info)
    synthesis = StreamingSynthesis(prior.stft) if phase == "original" else StreamingGriffinLim(prior.stft)

    def magnitudes() -> Iterator[Tensor]:
        for stretch in stretches(spectrogram_blocks(prior, info, level), prior.vae.context):
            z = prior.vae.infer(power(stretch.frames), condition, mean=latents == "mean").latents
            magnitude = prior.psd(z, condition).sqrt()[:, stretch.kept]
            yield magnitude * torch.sgn(stretch.frames[:, stretch.kept]) if phase == "original" else magnitude

    return _synthesise(prior, magnitudes(), synthesis, level, target, info.sample_rate, info.n_channels, info.n_samples, info)


@dataclass(frozen=True)
class LatentsFile:
    """An encoded sound file: what `decode_file` needs, and nothing else.

    Attributes:
        latents: the path of the posterior's centres, `[channel, frame, latent]`.
        posterior: tensors of the posterior along it by name, such as loc and scale, `[channel, frame, ...]`; empty in models whose
            latents are all of the whole sequence.
        sequence: those of the posterior of the whole sequence, `[channel, ...]`; empty in models without one.
        level: of the recording, shared by its channels.
        sample_rate, n_samples: of the sound file.
        model: hash of the model that encoded it.
    """

    latents: Float[Tensor, "channel frame latent"]
    posterior: dict[str, Tensor]
    sequence: dict[str, Tensor]
    level: float
    sample_rate: int
    n_samples: int
    model: str

    def save(self, path: str | Path) -> None:
        """Write an .npz file without pickle."""
        arrays = {"latents": self.latents}
        arrays |= {f"posterior.{name}": tensor for name, tensor in self.posterior.items()}
        arrays |= {f"sequence.{name}": tensor for name, tensor in self.sequence.items()}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                level=self.level,
                sample_rate=self.sample_rate,
                n_samples=self.n_samples,
                n_channels=self.latents.shape[0],
                n_arrays=len(arrays),
                model=np.array(self.model),
                format_version=LATENTS_FORMAT_VERSION,
                **{name: tensor.numpy(force=True) for name, tensor in arrays.items()},  # type: ignore[arg-type]
            )

    @classmethod
    def load(cls, path: str | Path) -> LatentsFile:
        """Read a latents file.

        Raises:
            ModelError: missing, damaged, not a latents file, or of another version.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as fields:
                version = int(fields["format_version"])
                if version > LATENTS_FORMAT_VERSION:
                    raise ModelError(path, f"was written by a newer audiovae (format {version}); update audiovae")
                if version < LATENTS_FORMAT_VERSION:
                    raise ModelError(path, f"was written by an older audiovae (format {version}); encode the sound again")
                groups: dict[str, dict[str, Tensor]] = {"posterior": {}, "sequence": {}}
                for name in set(fields.files) - _LATENTS_FIELDS:
                    group, _, parameter = name.partition(".")
                    groups[group][parameter] = torch.from_numpy(fields[name])
                latents = torch.from_numpy(fields["latents"])
                level, rate, n_samples = float(fields["level"]), int(fields["sample_rate"]), int(fields["n_samples"])
                whole = (
                    latents.ndim == 3 and len(latents) == int(fields["n_channels"]) > 0 and bool(groups["posterior"] or groups["sequence"])
                )
                whole = whole and 1 + sum(map(len, groups.values())) == int(fields["n_arrays"])
                tensors = [latents, *groups["posterior"].values(), *groups["sequence"].values()]
                sound = all(
                    t.dtype == torch.float32 and t.shape[:1] == latents.shape[:1] and bool(torch.isfinite(t).all()) for t in tensors
                )
                aligned = all(tensor.shape[:2] == latents.shape[:2] for tensor in groups["posterior"].values())
                if not (whole and sound and aligned and 0 <= level < math.inf and rate > 0 < n_samples):
                    raise ValueError("latents")
                return cls(latents, groups["posterior"], groups["sequence"], level, rate, n_samples, str(fields["model"]))
        except FileNotFoundError as error:
            raise ModelError(path, "no such file") from error
        except _DAMAGED_ARCHIVE as error:
            raise ModelError(path, "is not a latents file, or a damaged one; encode the sound again") from error


@torch.no_grad()
def encode_file(prior: AudioVAE, source: str | Path, condition: Tensor | None = None) -> LatentsFile:
    """Infer the posterior of every frame of a sound file.

    A latent vector of a whole sequence is that of the first stretch, about a minute.

    Raises:
        AudioError: the source cannot be read.
    """
    info = audio.inspect(source)
    level = file_level(prior, info)
    latents: list[Tensor] = []
    posterior: dict[str, list[Tensor]] = {}
    sequence: dict[str, Tensor] = {}
    for stretch in stretches(spectrogram_blocks(prior, info, level), prior.vae.context):
        inference = prior.vae.infer(power(stretch.frames), condition, mean=True)
        latents.append(inference.latents[:, stretch.kept].cpu())
        first = not sequence
        for factor in inference.factors:
            for name, tensor in prior.vae.latents.tensors(factor.posterior).items():
                if factor.per_frame:
                    posterior.setdefault(name, []).append(tensor[:, stretch.kept].cpu())
                elif first:
                    sequence[name] = tensor.cpu()
    joined = {name: torch.cat(tensors, dim=1) for name, tensors in posterior.items()}
    return LatentsFile(torch.cat(latents, dim=1), joined, sequence, level, info.sample_rate, info.n_samples, prior.model_hash())


@torch.no_grad()
def decode_file(
    prior: AudioVAE, source: str | Path, target: str | Path, latents: LatentChoice = "mean", condition: Tensor | None = None
) -> Writer:
    """Write the sound of a latents file, its phase estimated by Griffin-Lim.

    Raises:
        ModelError: no latents file, or one of another model.
        AudioError: the target cannot be written.
    """
    check_choice(latents)
    encoded = LatentsFile.load(source)
    if encoded.model != prior.model_hash():
        raise ModelError(source, f"was encoded by another model ({encoded.model[:12]}); give that one with --model")
    length = resampled_length(encoded.n_samples, encoded.sample_rate, prior.sample_rate)
    if encoded.latents.shape[1:] != (prior.stft.n_frames(length), prior.vae.latent_dim):
        raise ModelError(source, "is damaged: its latents do not fit its number of samples; encode it again")
    z = encoded.latents
    try:
        prior.vae.latents.check(z)
        if latents == "sample":
            build = prior.vae.latents.build
            stored = [(encoded.posterior, True), (encoded.sequence, False)]
            factors = tuple(Factor(build(**tensors), None, per_frame) for tensors, per_frame in stored if tensors)
            z = Inference(z, factors).sample()
    except (ValueError, KeyError, RuntimeError) as error:
        raise ModelError(source, f"is damaged: {error}; encode it again") from error

    def magnitudes() -> Iterator[Tensor]:
        for stretch in stretches(iter(z.split(_STRETCH_FRAMES, dim=1)), prior.vae.context):
            yield prior.psd(stretch.frames.to(prior.device), condition).sqrt()[:, stretch.kept]

    synthesis = StreamingGriffinLim(prior.stft)
    return _synthesise(prior, magnitudes(), synthesis, encoded.level, target, encoded.sample_rate, len(z), encoded.n_samples)


def _synthesise(
    prior: AudioVAE, blocks: Iterator[Tensor], synthesis: StreamingSynthesis | StreamingGriffinLim, level: float, target: str | Path,
    rate: int, n_channels: int, n_samples: int, like: AudioInfo | None = None,
) -> Writer:  # fmt: skip
    with Writer(target, rate, n_channels, n_samples, like) as writer:
        for wave in waves(prior, blocks, synthesis, level, rate, n_channels, n_samples):
            writer.write(wave)
    return writer


def waves(
    prior: AudioVAE, blocks: Iterator[Tensor], synthesis: StreamingSynthesis | StreamingGriffinLim, level: float, rate: int,
    n_channels: int, n_samples: int,
) -> Iterator[audio.Wave]:  # fmt: skip
    """Blocks of frames as pieces of a wave at `rate`, `[channel, sample]`, `n_samples` in all."""
    back = Resampler(prior.sample_rate, rate, n_channels)

    def pieces() -> Iterator[audio.Wave]:
        for block in blocks:
            yield back.push((synthesis.push(block) * level).numpy(force=True))
        rest = synthesis.finish(resampled_length(n_samples, rate, prior.sample_rate))
        yield back.push((rest * level).numpy(force=True))
        yield back.finish(n_samples)

    n_left = n_samples
    for piece in pieces():
        yield piece[:, :n_left]
        n_left -= min(n_left, piece.shape[1])
