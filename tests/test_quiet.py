"""What libraries in C write to the standard streams."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from audiovae.quiet import output_is_ours, quiet


def test_what_others_write_to_the_output_goes_to_the_error_stream(capfd: pytest.CaptureFixture[str]) -> None:
    with output_is_ours():
        os.write(1, b"connected\n")
    os.write(1, b"result\n")
    assert capfd.readouterr() == ("result\n", "connected\n")


def test_nothing_reaches_the_error_stream(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        os.write(2, b"no home\n")
        os.write(1, b"result\n")
    os.write(2, b"told\n")
    assert capfd.readouterr() == ("result\n", "told\n")


@pytest.mark.parametrize("guarded", [output_is_ours, quiet])
def test_streams_may_be_closed(guarded: Callable[[], AbstractContextManager[None]]) -> None:
    kept = [os.dup(1), os.dup(2)]
    try:
        os.close(1)
        os.close(2)
        with guarded():
            pass
    finally:
        for stream, copy in enumerate(kept, 1):
            os.dup2(copy, stream)
            os.close(copy)
