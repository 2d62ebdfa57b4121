"""Sound files to files of latents, and back."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.atomic import atomic_path
from audiovae.audio import AudioInfo, Writer
from audiovae.errors import ModelError
from audiovae.files.recording import Recording
from audiovae.files.stretch import STRETCH_FRAMES, stretches
from audiovae.models import Factor, Inference
from audiovae.phase import StreamingGriffinLim
from audiovae.prior import AudioVAE, LatentChoice, check_choice
from audiovae.settings import LARGEST_RATE
from audiovae.stft import power

LATENTS_FORMAT_VERSION = 2
LARGEST_LEVEL = 1e38  # as of a float sound file
_FIELDS = {"latents", "level", "sample_rate", "n_samples", "n_channels", "n_arrays", "model", "format_version"}
_KINDS = {"level": "f", "model": "U"}  # of numpy's, else integers


@dataclass(frozen=True)
class LatentsFile:
    """An encoded sound file: what `decode_file` needs, and nothing else.

    Attributes:
        latents: the path of the posterior's centres, `[channel, frame, latent]`.
        posterior: tensors of the posterior along it by name, such as loc and scale, `[channel, frame, ...]`; empty in
            models whose latents are all of the whole sequence.
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
            with open(path, "rb") as file:
                _check_archive(file)
                fields = np.load(file, allow_pickle=False)
                version = int(fields["format_version"])
                if version > LATENTS_FORMAT_VERSION:
                    raise ModelError(path, f"was written by a newer audiovae (format {version}); update audiovae")
                if version < LATENTS_FORMAT_VERSION:
                    raise ModelError(
                        path, f"was written by an older audiovae (format {version}); encode the sound again"
                    )
                return cls._of(fields)
        except ModelError:
            raise
        except FileNotFoundError as error:
            raise ModelError(path, "no such file") from error
        except PermissionError as error:
            raise ModelError(path, "cannot be read; check its permissions") from error
        except Exception as error:  # what zipfile and numpy raise on damaged bytes changes between their versions
            raise ModelError(path, "is not a latents file, or a damaged one; encode the sound again") from error

    @classmethod
    def _of(cls, fields: Any) -> LatentsFile:
        """From the arrays of an archive; raises an error of any class where they are not what was written."""
        groups: dict[str, dict[str, Tensor]] = {"posterior": {}, "sequence": {}}
        for name in set(fields.files) - _FIELDS:
            group, _, parameter = name.partition(".")
            groups[group][parameter] = torch.from_numpy(fields[name])
        latents = torch.from_numpy(fields["latents"])
        tensors = [latents, *groups["posterior"].values(), *groups["sequence"].values()]
        for name in _FIELDS - {"latents"}:
            if fields[name].ndim or fields[name].dtype.kind not in _KINDS.get(name, "i"):
                raise ValueError(name)
        level, rate, n_samples = float(fields["level"]), int(fields["sample_rate"]), int(fields["n_samples"])
        whole = latents.ndim == 3 and len(latents) == int(fields["n_channels"]) > 0
        whole = whole and 1 < len(tensors) == int(fields["n_arrays"])
        sound = all(
            tensor.dtype == torch.float32
            and tensor.shape[:1] == latents.shape[:1]
            and bool(torch.isfinite(tensor).all())
            for tensor in tensors
        )
        aligned = all(tensor.shape[:2] == latents.shape[:2] for tensor in groups["posterior"].values())
        counts = 0 < rate <= LARGEST_RATE and 0 < n_samples < 2**62
        if not (whole and sound and aligned and 0 <= level < LARGEST_LEVEL and counts):
            raise ValueError("latents")
        return cls(latents, groups["posterior"], groups["sequence"], level, rate, n_samples, str(fields["model"]))


def _check_archive(file: BinaryIO) -> None:
    """Raises ValueError where reading the arrays of an .npz file would take more memory than the file is long."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > file.seek(0, os.SEEK_END):
            raise ValueError("compressed")
        for member in members:
            with archive.open(member) as array:
                major, _ = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(array)
                if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError("header")
    file.seek(0)


@torch.no_grad()
def encode_file(prior: AudioVAE, source: str | Path, condition: Tensor | None = None) -> LatentsFile:
    """Infer the posterior of every frame of a sound file.

    A latent vector of a whole sequence is that of the first stretch, about a minute.

    Raises:
        AudioError: the source cannot be read.
    """
    recording = Recording.open(prior.front, source)
    latents: list[Tensor] = []
    posterior: dict[str, list[Tensor]] = {}
    sequence: dict[str, Tensor] = {}
    tensors = prior.vae.latents.tensors
    for stretch in stretches((block.spectrogram for block in recording.blocks()), prior.vae.context):
        inference = prior.vae.infer(power(stretch.frames), condition, mean=True)
        latents.append(inference.latents[:, stretch.kept].cpu())
        first = not sequence
        for factor in inference.factors:
            for name, tensor in tensors(factor.posterior).items():
                if factor.per_frame:
                    posterior.setdefault(name, []).append(tensor[:, stretch.kept].cpu())
                elif first:
                    sequence[name] = tensor.cpu()
    joined = {name: torch.cat(parts, dim=1) for name, parts in posterior.items()}
    info = recording.info
    return LatentsFile(
        torch.cat(latents, dim=1),
        joined,
        sequence,
        recording.level,
        info.sample_rate,
        info.n_samples,
        prior.model_hash(),
    )


@torch.no_grad()
def decode_file(
    prior: AudioVAE,
    source: str | Path,
    target: str | Path,
    latents: LatentChoice = "mean",
    condition: Tensor | None = None,
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
    z = encoded.latents
    # What was encoded: its format is not kept, so the target's suffix names one.
    info = AudioInfo(
        Path(source).with_suffix(".npz"), encoded.sample_rate, encoded.n_samples, len(z), container="", subtype=""
    )
    recording = Recording(prior.front, info, encoded.level)
    if z.shape[1:] != (prior.stft.n_frames(recording.n_samples), prior.vae.latent_dim):
        raise ModelError(source, "is damaged: its latents do not fit its number of samples; encode it again")
    try:
        prior.vae.latents.check(z)
        if latents == "sample":
            z = _sampled(prior, encoded)
    except (ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(source, f"is damaged: {reason}; encode it again") from error

    def magnitudes() -> Iterator[Tensor]:
        for stretch in stretches(iter(z.split(STRETCH_FRAMES, dim=1)), prior.vae.context):
            yield prior.psd(stretch.frames.to(prior.device), condition).sqrt()[:, stretch.kept]

    return recording.write(target, magnitudes(), StreamingGriffinLim(prior.stft))


def _sampled(prior: AudioVAE, encoded: LatentsFile) -> Float[Tensor, "channel frame latent"]:
    build, names = prior.vae.latents.build, set(prior.vae.latents.parameters)
    if any(tensors and tensors.keys() != names for tensors in (encoded.posterior, encoded.sequence)):
        raise ValueError(f"its posterior must have {' and '.join(sorted(names))}")
    stored = [(encoded.posterior, True), (encoded.sequence, False)]
    factors = tuple(Factor(build(**tensors), None, per_frame) for tensors, per_frame in stored if tensors)
    return Inference(encoded.latents, factors).sample()
