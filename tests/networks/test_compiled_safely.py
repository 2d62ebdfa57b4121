"""A compiled recurrence is code: it comes from a folder that nobody else can write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from audiovae.networks import recurrence


def planted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library under the name that is looked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("CXX", "/nonexistent/compiler")
    names: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(recurrence.subprocess, "run", lambda command, **_: names.append(command[-1]) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recurrence._build()
    library = cache / "audiovae" / Path(names[0]).name
    library.write_bytes(b"planted")
    library.chmod(0o755)
    return library


def test_a_folder_of_ones_own_is_made_private_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        library = planted(tmp_path, monkeypatch)
    finally:
        os.umask(before)
    assert library.parent.stat().st_mode & 0o777 == 0o700
    assert recurrence._build() == library


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    library = planted(tmp_path, monkeypatch)
    library.parent.chmod(mode)
    with pytest.raises(RuntimeError, match=r"audiovae is not yours alone to write: chmod go-w it"):
        recurrence._build()


def test_a_library_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = planted(tmp_path, monkeypatch)
    library.chmod(0o777)
    with pytest.raises(RuntimeError, match=r"\.so is not yours alone to write"):
        recurrence._build()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("whose", ["folder", "library"])
def test_what_belongs_to_another_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    library = planted(tmp_path, monkeypatch)
    os.chown(library if whose == "library" else library.parent, 12345, 12345)
    with pytest.raises(RuntimeError, match="is not yours alone to write"):
        recurrence._build()
