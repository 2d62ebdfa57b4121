"""The state of a training run on disk: written atomically, two of them kept, nothing but tensors and numbers.

The file is PyTorch's, a zip archive whose comment is the SHA-256 of all before it, by which it is verified.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
from pathlib import Path
from typing import Any

import torch

from audiovae.atomic import atomic_path
from audiovae.errors import TrainingError

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_DIGEST_BYTES = 64


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the newest checkpoint and keep the one before."""
    newest = folder / NEWEST
    archive = io.BytesIO()
    torch.save(state, archive)
    content = archive.getvalue()[:-2] + struct.pack("<H", _DIGEST_BYTES)  # the length of the comment, zero before
    with atomic_path(newest, durable=True) as temporary:
        temporary.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
        if newest.exists():
            os.replace(newest, folder / PREVIOUS)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint on the CPU, or None where there is none.

    Raises:
        TrainingError: there are checkpoints, but all are damaged.
    """
    paths = [path for path in (folder / NEWEST, folder / PREVIOUS) if path.exists()]
    for path in paths:
        state = _read(path)
        if state is None:
            continue
        if path != paths[0]:
            logging.getLogger("audiovae").warning(
                "%s is damaged; training goes on from the one before, of step %s", paths[0], state.get("step")
            )
        return state
    if paths:
        raise TrainingError(f"{paths[0]}: no checkpoint can be read; --overwrite starts anew")
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """None where it is not as it was written."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-_DIGEST_BYTES]).hexdigest().encode() != content[-_DIGEST_BYTES:]:
            return None
        return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception:  # those of an archive that somebody else wrote are many
        return None
