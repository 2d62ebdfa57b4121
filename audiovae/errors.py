"""The errors that a user can cause, each one line that names the object and the remedy."""

from __future__ import annotations

from pathlib import Path


class AudiovaeError(Exception):
    """What the command line reports in one line and leaves with exit status 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which goes the way of Ctrl-C."""


class PathError(AudiovaeError):
    """Something is wrong with a file or folder.

    Attributes:
        path: the file or folder.
        reason: what is wrong and what to do about it, without the path.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class AudioError(PathError):
    """A sound file cannot be read or written."""


class ModelError(PathError):
    """A saved model, or a latents file, cannot be used."""


class CorpusError(PathError):
    """A corpus cannot be prepared or read."""


class TrainingError(AudiovaeError):
    """Training cannot start, continue or go on."""


class ConditionError(AudiovaeError, ValueError):
    """A condition is missing, or is none of the model's."""


class LatentError(AudiovaeError, ValueError):
    """Latents that a decoder cannot take."""
