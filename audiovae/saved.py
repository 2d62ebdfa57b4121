"""Saved models: a folder of config.json, model.safetensors and README.md, laid out as a Hugging Face hub repository.

`config.json` holds the sizes, the SHA-256 of the tensors' file and the SHA-256 of all its other fields, both verified
at load. The second one identifies the model: latents carry it. A model in half precision (`prior.half()`) makes a file
of half the size; it is loaded in single precision, and its SHA-256 is that of the file which it would be then.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from audiovae import hub
from audiovae.atomic import atomic_path
from audiovae.errors import ModelError, PathError

FORMAT_VERSION = 1
FILES = CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
NEXT = "model.next.safetensors"  # tensors on their way, seen only after an interrupted save
_ATTEMPTS = 10
_NEWER = "was saved by a newer audiovae (format {found}, this one reads up to {known}); update audiovae"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """The saved model that weights are from.

    Attributes:
        name: of its folder.
        sha256: see `model_hash`.
        card: its README.md; None where it has none.
    """

    name: str
    sha256: str
    card: str | None


def write(folder: str | Path, config: Mapping[str, Any], tensors: Tensors, card: str) -> None:
    """Write a model folder.

    Args:
        config: sizes, as JSON can hold them.
        card: contents of its README.md.

    Raises:
        PathError: the folder cannot be written.
    """
    folder = Path(folder)
    content, signed = _serialise(config, tensors)
    finish(folder)
    try:
        # At each moment the folder holds the old model or the new one, which it is from the last of these lines on:
        # the tensors of a config are those with its SHA-256, under either name.
        _replace(folder / NEXT, content)
        _replace(folder / CARD, card.encode())
        _replace(folder / CONFIG, (json.dumps(signed, indent=2) + "\n").encode())
    finally:
        finish(folder)


def finish(folder: Path) -> None:
    """Bring a save to its end that was interrupted, if there is one.

    Raises:
        PathError: the folder cannot be written.
    """
    if not (folder / NEXT).exists():
        return
    try:
        if _digest((folder / NEXT).read_bytes()) == _digest_in_config(folder):
            os.replace(folder / NEXT, folder / TENSORS)
        else:
            (folder / NEXT).unlink()
    except OSError as error:
        raise PathError(folder, f"cannot be written ({error.strerror}); check the folder") from error


def holds(folder: Path, config: Mapping[str, Any], tensors: Tensors, card: str) -> bool:
    """Does a folder hold exactly this model, whole, with this card?"""
    try:
        found, _ = read(folder)
        same_card = (folder / CARD).read_bytes() == card.encode()
    except (ModelError, OSError):
        return False
    return same_card and found["config_sha256"] == model_hash(config, tensors)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a model folder, both verified; see `find`.

    Raises:
        ModelError: missing, damaged, or of a newer format.
    """
    for _ in range(_ATTEMPTS):  # while it is read, another process may save it
        config = read_config(folder)
        path, missing = folder / TENSORS, None
        for path in (folder / NEXT, folder / TENSORS):
            try:
                content, missing = path.read_bytes(), None
            except OSError as error:
                missing = error
                continue
            if _digest(content) == config.get("tensors_sha256"):
                return config, _loaded(folder, content)
        if read_config(folder) == config and not (folder / NEXT).exists():
            break
    if missing is not None:
        raise ModelError(path, "is missing; copy the whole model folder") from missing
    raise ModelError(path, "is damaged: its SHA-256 is not the one in config.json; copy or train the model again")


def _loaded(folder: Path, content: bytes) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(_single(content))
    except (safetensors.SafetensorError, ValueError) as error:
        raise misfit(folder, error) from error
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ModelError(folder, f"holds weights that are NaN or infinite ({broken[0]}); train the model again")
    return tensors


def misfit(folder: Path, error: Exception) -> ModelError:
    """What to raise where config and tensors are whole, and no model can be built from them."""
    reason = " ".join(str(error).split())[:200]
    return ModelError(folder / CONFIG, f"does not describe a model that this version can build ({reason})")


def find(name_or_path: str | Path, revision: str | None = None, shelf: str = "") -> Path:
    """The folder of a model: a path first, then a shipped name, then the hub.

    Args:
        revision: of a repository of the hub, which "owner/name@revision" names as well.
        shelf: where shipped ones stand: priors if empty, or "separators".

    Raises:
        ModelError: there is none; the shipped names are listed.
    """
    folder = Path(name_or_path)
    if os.path.exists(folder / CONFIG):
        return folder
    shipped, names = _shipped(shelf), shipped_names(shelf)
    if str(name_or_path) in names:
        return shipped / str(name_or_path)
    if os.path.isdir(folder):
        raise ModelError(folder, f"is not a model folder: it has no {CONFIG}")
    if str(name_or_path).count("/") == 1 and not os.path.isdir(folder.parent):
        name, _, at = str(name_or_path).partition("@")
        return hub.download(name, revision or at or None, list(FILES))
    others = shipped_names("" if shelf else "separators")
    if str(name_or_path) in others:
        raise ModelError(name_or_path, "is a prior, and no separator" if shelf else "is a separator, and no prior")
    near = difflib.get_close_matches(str(name_or_path), names, 1)
    hint = f"did you mean {near[0]!r}?" if near else "give a model folder or one of: " + ", ".join(names)
    raise ModelError(name_or_path, f"no such model; {hint}")


def find_any(name_or_path: str) -> Path:
    """The folder of a prior or a separator: see `find`."""
    return find(name_or_path, shelf="separators" if name_or_path in shipped_names("separators") else "")


def shipped_names(shelf: str = "") -> list[str]:
    """Names of the models of a shelf, see `find`, that are part of the package."""
    return sorted(path.parent.name for path in _shipped(shelf).glob(f"*/{CONFIG}"))


def _shipped(shelf: str) -> Path:
    return Path(str(resources.files("audiovae") / "pretrained")) / shelf


def model_hash(config: Mapping[str, Any], tensors: Tensors) -> str:
    """SHA-256 that identifies sizes and weights: the `config_sha256` that `write` writes."""
    return str(_serialise(config, tensors)[1]["config_sha256"])


def read_config(folder: Path) -> dict[str, Any]:
    """Read and verify config.json.

    Raises:
        ModelError: missing, damaged, or of a newer format.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
        version, digest = config["format_version"], config["config_sha256"]
        if type(version) is not int:
            raise TypeError("format_version")
    except OSError as error:
        raise ModelError(path, "is missing; copy the whole model folder") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(path, "is damaged or not from audiovae; copy or train the model again") from error
    if version > FORMAT_VERSION:
        raise ModelError(path, _NEWER.format(found=version, known=FORMAT_VERSION))
    if digest != _digest_of_fields(config):
        raise ModelError(path, "is damaged: its fields do not match their SHA-256; copy or train the model again")
    return config


def read_card(folder: Path) -> str | None:
    """README.md of a model folder, or None."""
    try:
        return (folder / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _replace(path: Path, content: bytes) -> None:
    with atomic_path(path, durable=True) as temporary:
        temporary.write_bytes(content)


def _digest(content: bytes) -> str:
    with suppress(safetensors.SafetensorError, ValueError):  # damaged: no digest is its own
        content = _single(content)
    return hashlib.sha256(content).hexdigest()


def _single(content: bytes) -> bytes:
    """A file of tensors with those of half precision in single precision."""
    if b'"F16"' not in content[: 8 + int.from_bytes(content[:8], "little")]:  # the header, after its length
        return content
    tensors = safetensors.torch.load(content)
    return safetensors.torch.save({name: t.float() if t.dtype == torch.half else t for name, t in tensors.items()})


def _digest_in_config(folder: Path) -> Any:
    try:
        return read_config(folder)["tensors_sha256"]
    except (ModelError, KeyError):
        return None


def _serialise(config: Mapping[str, Any], tensors: Tensors) -> tuple[bytes, dict[str, Any]]:
    content = safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    fields = {"format_version": FORMAT_VERSION, **config, "tensors_sha256": _digest(content)}
    return content, {**fields, "config_sha256": _digest_of_fields(fields)}


def _digest_of_fields(config: dict[str, Any]) -> str:
    fields = {name: value for name, value in config.items() if name != "config_sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
