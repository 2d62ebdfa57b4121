"""Who is at work on what: locks, temporary names, and what becomes of those of the dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from audiovae import locks
from audiovae.atomic import atomic_path
from audiovae.errors import PathError
from audiovae.locks import LockedError, Owner, break_lock, locked_file, locked_folder

HOLD = """
import sys, time
from pathlib import Path
from audiovae.atomic import atomic_path
from audiovae.locks import locked_file, locked_folder
hold, path = getattr(sys.modules[__name__], sys.argv[1]), Path(sys.argv[2])
with hold(path), atomic_path((path if hold is locked_file else path / "x").with_suffix(".wav")) as temporary:
    temporary.write_bytes(b"half")
    print("held", flush=True)
    time.sleep(600)
"""


def holder(kind: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate()


@pytest.mark.parametrize(("kind", "lock"), [("locked_file", locked_file), ("locked_folder", locked_folder)])
def test_what_a_living_process_holds_is_refused_and_what_a_dead_one_held_is_taken(
    tmp_path: Path, kind: str, lock: type[locked_file]
) -> None:
    path = tmp_path / "deep" / "a"
    process = holder(kind, path)
    with (
        pytest.raises(LockedError, match=rf"a: process {process.pid} on .* has been at work on it since 2.*break-lock"),
        lock(path),
    ):
        pass
    break_lock(path)  # which is for other machines alone
    with pytest.raises(LockedError), lock(path):
        pass
    end(process)
    locks._swept.clear()
    with lock(path):
        left = [name for *_, names in os.walk(tmp_path) for name in names]
        assert len(left) == 1  # this lock; what the dead was writing is gone
    assert [name for *_, names in os.walk(tmp_path) for name in names] == []


def test_files_of_one_folder_are_locked_each_by_itself(tmp_path: Path) -> None:
    a, b = tmp_path / "a.wav", tmp_path / "b.wav"
    with locked_file(a), locked_file(b), locked_folder(tmp_path), pytest.raises(LockedError), locked_file(a):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_is_taken_by_force_alone(tmp_path: Path) -> None:
    lock = tmp_path / ".audiovae.lock"
    with locked_folder(tmp_path):
        fields = json.loads(lock.read_text())
    lock.write_text(json.dumps({**fields, "machine": "0" * 8, "host": "far", "process": 1}))
    locks._swept.clear()
    with pytest.raises(LockedError, match=r"process 1 on far has been at work on it since"), locked_folder(tmp_path):
        pass
    break_lock(tmp_path)
    with locked_folder(tmp_path):
        pass
    assert not lock.exists()


@pytest.mark.parametrize("change", [{"boot": "0" * 8}, {"start": 1}, {"process": 2**22 + 1}])
def test_an_earlier_boot_another_start_and_no_process_are_dead(tmp_path: Path, change: dict[str, object]) -> None:
    lock = tmp_path / ".audiovae.lock"
    with locked_folder(tmp_path):
        fields = json.loads(lock.read_text())
    assert not Owner.me().is_dead
    lock.write_text(json.dumps({**fields, **change}))
    with locked_folder(tmp_path):
        assert json.loads(lock.read_text())["process"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff"])
def test_a_lock_that_was_never_signed_is_taken(tmp_path: Path, content: bytes) -> None:
    lock = tmp_path / ".audiovae.lock"
    lock.write_bytes(content)
    os.utime(lock, (time.time() - 60, time.time() - 60))
    with locked_folder(tmp_path):
        assert json.loads(lock.read_text())["process"] == os.getpid()


def test_a_signal_while_a_lock_is_signed_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt), locked_file(tmp_path / "a.wav"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_lock_is_refused_and_the_first_one_stays(tmp_path: Path) -> None:
    with locked_file(tmp_path / "a.wav"):
        before = list(tmp_path.iterdir())
        with pytest.raises(LockedError, match="has been at work on it"), locked_file(tmp_path / "a.wav"):
            pass
        assert list(tmp_path.iterdir()) == before != []


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    end(holder("locked_folder", tmp_path))
    program = """
import sys, time
from pathlib import Path
from audiovae.locks import LockedError, locked_folder
while not Path(sys.argv[1] + ".go").exists():
    pass
try:
    with locked_folder(Path(sys.argv[1])):
        print("got it", flush=True)
        time.sleep(2)
except LockedError:
    pass
"""
    many = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    time.sleep(1)
    Path(f"{tmp_path}.go").touch()
    assert "".join(process.communicate()[0] for process in many) == "got it\n"


@pytest.mark.parametrize("n_bytes", [243, 250, 255])
def test_every_name_that_a_file_can_have_can_be_written(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / ("ä" * 100 + "a" * (n_bytes - 204) + ".wav")
    assert len(os.fsencode(path.name)) == n_bytes
    with locked_file(path), atomic_path(path) as temporary:
        assert temporary.suffix == ".wav"
        temporary.write_text("all")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["all"]


def test_a_name_that_no_file_can_have_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="cannot be written"), atomic_path(tmp_path / ("a" * 300)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_lies_in_wait_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap, victim = tmp_path / ".trap.wav", tmp_path / "victim"
    victim.write_text("precious")
    trap.symlink_to(victim)
    monkeypatch.setattr("audiovae.atomic.temporary_path", lambda path: trap)
    with pytest.raises(PathError, match="cannot be written"), atomic_path(tmp_path / "a.wav") as temporary:
        temporary.write_text("owned")
    assert victim.read_text() == "precious"
