"""The errors that a user can cause, each one line that names the object and the remedy."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path

STANDARD_INPUT, STANDARD_OUTPUT = "standard input", "standard output"
_LONGEST_NAME = 400  # of a file, in a message: no file system has a longer one, though a path may be


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
        return f"{_shortened(named(self.path))}: {self.reason}"


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


def named(path: str | Path) -> str:
    """A path as it is told: a temporary file that stands for a standard stream by the name of that."""
    path = Path(path)
    is_stream = path.stem in (STANDARD_INPUT, STANDARD_OUTPUT) and path.parent.suffix == ".partial"
    return path.stem if is_stream else str(path)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME // 2]}...{text[-_LONGEST_NAME // 2 :]}"


def asks_for_tracebacks() -> bool:
    """Is the environment variable AUDIOVAE_TRACEBACK set?"""
    return os.environ.get("AUDIOVAE_TRACEBACK", "0") not in ("", "0")


def unexpected(error: Exception, what: str | None = None) -> AudiovaeError:
    """One line on an error that nobody foresaw, which AUDIOVAE_TRACEBACK=1 shows the place of.

    Args:
        what: was worked on.
    """
    if asks_for_tracebacks():
        traceback.print_exception(error, file=sys.stderr)
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError) or "allocate memory" in reason or "out of memory" in reason:
        line = "not enough memory; free some, or give less at a time or smaller sizes"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        line = f"cannot be written to the end ({error.strerror}); check the free space"
    elif isinstance(error, OSError) and error.filename and error.strerror:
        line = f"cannot be used ({error.strerror}); check the name and its permissions"
    elif "inline_container" in reason:  # torch.save
        line = "a checkpoint cannot be written to the end; check the free space"
    else:
        line = f"internal error: {type(error).__name__}: {reason} (details: AUDIOVAE_TRACEBACK=1)"
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)):
        what = os.fsdecode(error.filename)
    return AudiovaeError(f"{_shortened(what)}: {line}" if what else line)
