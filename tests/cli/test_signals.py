"""The command line ended by Ctrl-C, SIGTERM and kill, alone and in several processes; and locks between commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovae.locks import locked_file, locked_folder

COMMAND = [sys.executable, "-m", "audiovae"]
STATUS = {signal.SIGINT: (130, "audiovae: interrupted\n"), signal.SIGTERM: (143, "audiovae: terminated\n")}


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Two recordings that take a while."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        soundfile.write(folder / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(16000 * 150), 16000)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def begun(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not folder.exists() or not any("partial" in name for name in names(folder)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_the_end_of(group: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        states = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, of_group, *_ = path.read_text().rpartition(") ")[2].split()
                states += [state] if int(of_group) == group else []
        if not set(states) - {"Z"}:
            return
        time.sleep(0.05)
    pytest.fail("processes live on")


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_at_work_it_leaves_one_line_its_status_and_nothing_else(
    sounds: Path, tmp_path: Path, number: signal.Signals, jobs: str
) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, "resynthesize", str(sounds), "-o", str(out), "--jobs", jobs, "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    begun(out, process)
    os.killpg(process.pid, number)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error) == STATUS[number]
    assert not any("partial" in name or "lock" in name for name in names(out))
    wait_for_the_end_of(process.pid)


def test_what_a_worker_leaves_that_hears_nothing_is_swept(sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, "resynthesize", str(sounds), "-o", str(out), "--jobs", "2", "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    begun(out, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(workers) == 2
    for worker in workers:
        os.kill(int(worker), signal.SIGSTOP)
    process.terminate()
    assert process.wait(60) == 143
    assert names(out) == []
    wait_for_the_end_of(process.pid)


def test_after_a_kill_the_workers_end_and_the_next_run_sweeps(sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, "resynthesize", str(sounds), "-o", str(out), "--jobs", "2", "--quiet"]
    process = subprocess.Popen(command, start_new_session=True)
    begun(out, process)
    process.kill()
    process.wait()
    wait_for_the_end_of(process.pid)
    for path in out.glob("*.wav"):
        path.unlink()
    for name in "ab":
        soundfile.write(sounds / f"{name}.wav", np.zeros(1600), 16000)
    assert subprocess.run(command, check=False).returncode == 0
    assert names(out) == ["a.wav", "b.wav"]


@pytest.mark.parametrize("number", STATUS)
def test_while_it_starts_it_leaves_one_line_at_most(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "audiovae"
    script.write_text("import sys\nfrom audiovae.__main__ import main\nsys.exit(main())\n")
    for delay in (0.1, 0.15, 0.2, 0.3, 0.5, 0.8):
        process = subprocess.Popen([sys.executable, script, "info", "nothing"], stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        if process.returncode == 2:  # it has come to its end
            continue
        if process.returncode == -number:  # the interpreter itself had not begun
            assert "audiovae/cli" not in error, f"after {delay} s"
        else:
            assert (process.returncode, error) == STATUS[number], f"after {delay} s"


def test_an_ignored_signal_stays_ignored(model_folder: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = subprocess.Popen(
        [*COMMAND, "info", str(model_folder)], stdout=subprocess.PIPE, text=True, preexec_fn=ignore
    )
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert "FrameVAE" in process.communicate(timeout=60)[0]
    assert process.returncode == 0


def run(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def short(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        soundfile.write(folder / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    return folder


def test_machines_that_fill_one_folder_leave_each_other_their_files(short: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked_file(out / "a.wav"):
        status, text, error = run("resynthesize", short, "-o", out, "--quiet")
        assert status == 1
        assert f"a.wav: process {os.getpid()} on " in error
        assert len(error.splitlines()) == 1
        assert [name for name in names(out) if name.endswith(".wav")] == ["b.wav"]
        shutil.rmtree(out / "enhanced", ignore_errors=True)
    out = tmp_path / "enhanced"
    with locked_file(out / "a.wav"):
        status, text, error = run("enhance", short, "-o", out, "--method", "fast", "--resume", "--json", "--quiet")
        assert (status, error) == (0, "")
        a, b = json.loads(text)
        assert a["skipped"]
        assert "has been at work on it since" in a["locked"]
        assert Path(b["output"]).exists()
    status, text, error = run("enhance", short, "-o", out, "--method", "fast", "--resume", "--quiet")
    assert (status, names(out)) == (0, ["a.wav", "b.wav"])


def test_a_report_that_another_process_writes_is_left_to_it(short: Path, tmp_path: Path) -> None:
    report = tmp_path / "pages" / "r.html"
    with locked_file(report):
        status, _, error = run("evaluate", short, "--report", report, "--quiet")
        assert status == 2
        assert f"r.html: process {os.getpid()} on " in error
        assert len(error.splitlines()) == 1
    assert not report.parent.exists()
    with locked_file(report):
        (lock,) = report.parent.iterdir()
        fields = json.loads(lock.read_text())
    report.parent.mkdir()
    lock.write_text(json.dumps({**fields, "machine": "0" * 8, "host": "far"}))
    assert "r.html: process" in run("evaluate", short, "--report", report)[2]
    assert run("evaluate", short / "a.wav", "--report", report, "--break-lock", "--quiet")[0] == 0
    assert names(report.parent) == ["r.html"]


def test_a_report_on_nothing_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    assert run("evaluate", tmp_path / "a.wav", "--report", tmp_path / "pages" / "r.html")[0] == 2
    assert names(tmp_path) == ["a.wav"]


def test_a_foreign_lock_is_broken_on_demand(short: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    with locked_folder(out):
        fields = json.loads((out / ".audiovae.lock").read_text())
    (out / ".audiovae.lock").write_text(json.dumps({**fields, "machine": "0" * 8, "host": "far"}))
    status, _, error = run("prepare", short, out, "--quiet")
    assert status == 2
    assert "on far has been at work on it since" in error
    assert run("prepare", short, out, "--quiet", "--break-lock")[0] == 0
    assert names(out) == ["index.jsonl", "samples.int16"]


def test_a_card_commands_no_terminal(model_folder: Path) -> None:
    (model_folder / "README.md").write_text("# Größe\n\x1b]0;owned\x07\x1b[2J\tend\r\n")
    status, text, _ = run("info", model_folder)
    assert status == 0
    assert "# Größe\n]0;owned[2J\tend\n" in text
    assert not any(ord(c) < 32 and c not in "\n\t" for c in text)
