"""Large arrays without page faults."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Let this process reuse large arrays instead of giving each back to the system at once.

    glibc asks the system for every array of some megabytes anew, which zeroes its pages at first touch: up to a fifth
    of a training step of recurrent models. Elsewhere (another C library) nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
