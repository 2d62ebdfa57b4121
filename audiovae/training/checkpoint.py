"""The state of a training run on disk: written atomically, two of them kept, nothing but tensors and numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from audiovae.atomic import atomic_path
from audiovae.errors import TrainingError

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the newest checkpoint and keep the one before."""
    newest = folder / NEWEST
    with atomic_path(newest, durable=True) as temporary:
        torch.save(state, temporary)
        if newest.exists():
            os.replace(newest, folder / PREVIOUS)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint on the CPU, or None where there is none.

    Raises:
        TrainingError: there are checkpoints, but none can be read.
    """
    paths = [path for path in (folder / NEWEST, folder / PREVIOUS) if path.exists()]
    for path in paths:
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception:
            continue
    if paths:
        raise TrainingError(f"{paths[0]}: no checkpoint can be read; --overwrite starts anew")
    return None
