"""Sound files to files of latents, and back."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
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

LATENTS_FORMAT_VERSION = 2
LARGEST_LEVEL = 1e38  # as of a float sound file
_FIELDS = {"latents", "level", "sample_rate", "n_samples", "n_channels", "n_arrays", "model", "format_version"}
_POSTERIOR, _SEQUENCE = "posterior.", "sequence."
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
        arrays |= {_POSTERIOR + name: tensor for name, tensor in self.posterior.items()}
        arrays |= {_SEQUENCE + name: tensor for name, tensor in self.sequence.items()}
        whole = {name: tensor.numpy(force=True) for name, tensor in arrays.items()}
        facts = _facts(self.level, self.sample_rate, self.n_samples, len(self.latents), self.model)
        with atomic_path(path) as temporary:
            _write(temporary, facts, whole)

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


def encoded_by(path: str | Path) -> str:
    """Hash of the model that encoded a latents file, of which nothing else is read.

    Raises:
        ModelError: it is none, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as fields:
            return str(fields["model"])
    except Exception as error:  # see `LatentsFile.load`
        raise ModelError(path, "is not a latents file, or a damaged one; encode the sound again") from error


def _facts(level: float, sample_rate: int, n_samples: int, n_channels: int, model: str) -> dict[str, Any]:
    return {
        "level": level,
        "sample_rate": sample_rate,
        "n_samples": n_samples,
        "n_channels": n_channels,
        "model": np.array(model),
        "format_version": LATENTS_FORMAT_VERSION,
    }


class _Rows:
    """An array `[channel, frame, ...]` that grows along its frames, in a nameless file in place of memory."""

    def __init__(self, file: IO[bytes], n_frames: int) -> None:
        self._file = file
        self._n_frames, self._n_there = n_frames, 0
        self._shape: tuple[int, ...] = ()

    def append(self, rows: NDArray[np.float32]) -> None:
        self._shape = (len(rows), self._n_frames, *rows.shape[2:])
        n_bytes = rows.itemsize * math.prod(rows.shape[2:])
        for channel, of_channel in enumerate(rows):
            self._file.seek((channel * self._n_frames + self._n_there) * n_bytes)
            self._file.write(of_channel.tobytes())
        self._n_there += rows.shape[1]

    def write(self, target: Any) -> None:
        """As an .npy file."""
        header = {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(target, header)  # type: ignore[arg-type]
        self._file.seek(0)
        shutil.copyfileobj(self._file, target)


def _write(path: Path, facts: dict[str, Any], arrays: Mapping[str, NDArray[np.float32] | _Rows]) -> None:
    """An .npz file as of `numpy.savez`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in {**facts, "n_arrays": len(arrays), **arrays}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(value, _Rows):
                    value.write(member)
                else:
                    np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)


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
    parts: dict[str, list[Tensor]] = {}
    for stretch in _inferred(prior, recording, condition):
        for name, tensor in stretch.items():
            parts.setdefault(name, []).append(tensor)
    joined = {name: torch.cat(tensors, dim=1) for name, tensors in parts.items() if not name.startswith(_SEQUENCE)}
    info = recording.info
    return LatentsFile(
        joined.pop("latents"),
        {name.removeprefix(_POSTERIOR): tensor for name, tensor in joined.items()},
        {name.removeprefix(_SEQUENCE): first for name, (first, *_) in parts.items() if name.startswith(_SEQUENCE)},
        recording.level,
        info.sample_rate,
        info.n_samples,
        prior.model_hash(),
    )


@torch.no_grad()
def write_latents(
    prior: AudioVAE, source: str | Path, target: str | Path, condition: Tensor | None = None
) -> tuple[Recording, int]:
    """`encode_file` and `LatentsFile.save` in constant memory.

    Returns:
        the recording, and its number of frames.

    Raises:
        AudioError: the source cannot be read.
        PathError: the target cannot be written.
    """
    recording = Recording.open(prior.front, source)
    info, n_frames = recording.info, prior.stft.n_frames(recording.n_samples)
    with atomic_path(target) as temporary, ExitStack() as opened:
        rows: dict[str, _Rows] = {}
        sequence: dict[str, NDArray[np.float32]] = {}
        for stretch in _inferred(prior, recording, condition):
            for name, tensor in stretch.items():
                array = tensor.numpy()
                if name.startswith(_SEQUENCE):
                    sequence.setdefault(name, array)
                    continue
                if name not in rows:
                    rows[name] = _Rows(opened.enter_context(tempfile.TemporaryFile(dir=temporary.parent)), n_frames)
                rows[name].append(array)
        facts = _facts(recording.level, info.sample_rate, info.n_samples, info.n_channels, prior.model_hash())
        _write(temporary, facts, {**rows, **sequence})
    return recording, n_frames


def _inferred(prior: AudioVAE, recording: Recording, condition: Tensor | None) -> Iterator[dict[str, Tensor]]:
    """What a latents file holds of one stretch after another, by its names there."""
    tensors = prior.vae.latents.tensors
    for stretch in stretches((block.spectrogram for block in recording.blocks()), prior.vae.context):
        inference = prior.vae.infer(prior.vae.observed(stretch.frames), condition, mean=True)
        found = {"latents": inference.latents[:, stretch.kept].cpu()}
        for factor in inference.factors:
            for name, tensor in tensors(factor.posterior).items():
                if factor.per_frame:
                    found[_POSTERIOR + name] = tensor[:, stretch.kept].cpu()
                else:
                    found[_SEQUENCE + name] = tensor.cpu()
        yield found


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
