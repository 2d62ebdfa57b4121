"""`-` is the standard input and the standard output: the bytes of files, through pipes and the console script."""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, speech_like

from audiovae.cli.main import main
from audiovae.locks import Owner

SCRIPT = Path(sys.executable).with_name("audiovae")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def console(*arguments: str, given: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [SCRIPT, *arguments], input=given, capture_output=True, check=False, env=ONE_THREAD, **options
    )  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, a recording, and a place for temporary files."""
    soundfile.write(tmp_path / "a.wav", speech_like(1.5, 120), RATE)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setitem(ONE_THREAD, "TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    assert model_folder == tmp_path / "model"
    return tmp_path


@pytest.mark.parametrize(
    "command",
    ["enhance --method fast --noise stationary", "resynthesize", "resynthesize --phase griffin-lim"],
)
def test_a_pipe_in_and_a_pipe_out_carry_the_bytes_of_files(command: str, here: Path) -> None:
    verb, *options = command.split()
    options += ["--model", "model"]
    name = "standard input.wav"  # by which random numbers go
    (here / "a.wav").rename(here / name)
    assert main([verb, name, "-o", "out.wav", "--quiet", *options]) == 0
    done = console(verb, "-", "-o", "-", *options, given=(here / name).read_bytes())
    assert done.returncode == 0, done.stderr
    assert done.stdout == (here / "out.wav").read_bytes()
    assert not any((here / "temporary").iterdir())


def test_latents_go_through_a_pipe_too(here: Path) -> None:
    encoded = console("encode", "-", "-o", "-", "--model", "model", given=(here / "a.wav").read_bytes())
    decoded = console("decode", "-", "-o", "-", "--model", "model", given=encoded.stdout)
    assert decoded.returncode == 0, decoded.stderr
    assert main(["encode", "a.wav", "-o", "standard input.npz", "--model", "model"]) == 0
    assert main(["decode", "standard input.npz", "-o", "b.wav", "--model", "model"]) == 0
    assert decoded.stdout == (here / "b.wav").read_bytes()


def test_any_container_comes_in_and_wav_goes_out_with_all_that_is_told_on_the_error_stream(here: Path) -> None:
    soundfile.write(here / "a.flac", 0.9 * speech_like(1, 120, rate=8000), 8000, subtype="PCM_24")
    done = console("resynthesize", "-", "-o", "-", "--model", "model", given=(here / "a.flac").read_bytes())
    assert done.returncode == 0
    assert re.fullmatch(
        rb"audiovae: standard output: 1 file, 1\.0 s of sound in [0-9.]+ s, real-time factor [0-9.e-]+ without the "
        rb"start, 1 resampled from 8000 to 16000 Hz\n",
        done.stderr,
    )
    wave, rate = soundfile.read(io.BytesIO(done.stdout))
    assert (rate, len(wave)) == (8000, 8000)
    assert done.stdout[:4] == b"RIFF"
    assert main(["resynthesize", "a.flac", "-o", "a-out.wav", "--model", "model"]) == 0
    assert done.stdout == (here / "a-out.wav").read_bytes()


def test_a_page_and_a_residual_stand_beside_the_standard_streams(here: Path) -> None:
    options = ["--method", "fast", "--model", "model", "--residual", "rest.wav", "--report", "page.html"]
    done = console("enhance", "-", "-o", "-", *options, given=(here / "a.wav").read_bytes())
    assert done.returncode == 0, done.stderr
    wave, rest = soundfile.read(io.BytesIO(done.stdout))[0], soundfile.read(here / "rest.wav")[0]
    np.testing.assert_allclose(wave + rest, soundfile.read(here / "a.wav")[0], atol=1e-4)
    page = (here / "page.html").read_text()
    assert "standard input, enhanced" in page
    assert str(here) not in page


def test_scores_name_the_standard_input(here: Path) -> None:
    done = console("score", "-", "--json", "--model", "model", given=(here / "a.wav").read_bytes())
    assert done.returncode == 0
    assert b'"file": "standard input"' in done.stdout


def test_separated_sources_stand_in_a_folder(here: Path) -> None:
    wave = np.random.default_rng(0).standard_normal((4000, 2)) * 0.1
    soundfile.write(here / "two.wav", wave, RATE)
    done = console("separate", "-", "-o", "out", "--quiet", "--method", "iva", given=(here / "two.wav").read_bytes())
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        "standard input-1.wav",
        "standard input-2.wav",
        "standard input-noise.wav",
    ]


def test_a_reader_that_leaves_is_no_error(here: Path) -> None:
    soundfile.write(here / "long.wav", speech_like(20, 120), RATE)  # more than a pipe holds
    command = f"{shlex.quote(str(SCRIPT))} resynthesize - -o - --model model < long.wav; echo $? > status"
    done = subprocess.run(f"( {command} ) | head -c 10", shell=True, capture_output=True, env=ONE_THREAD, check=True)
    assert len(done.stdout) == 10
    assert done.stderr == b""
    assert (here / "status").read_text() == "0\n"
    assert not any((here / "temporary").iterdir())


def test_a_full_standard_output_is_told(here: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [SCRIPT, "sample", "-o", "-", "--model", "model"], stdout=full, stderr=subprocess.PIPE, env=ONE_THREAD,
            check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == b"audiovae: the standard output cannot be written (No space left on device)\n"


def test_a_terminal_is_refused(here: Path) -> None:
    outside, terminal = pty.openpty()
    done = [
        subprocess.run([SCRIPT, *arguments.split()], env=ONE_THREAD, stderr=subprocess.PIPE, check=False, **streams)
        for arguments, streams in (
            ("score - --model model", {"stdin": terminal}),
            ("sample -o - --model model", {"stdout": terminal}),
        )
    ]  # type: ignore[call-overload]
    os.close(outside)
    os.close(terminal)
    for one, stream, verb in zip(done, ("input", "output"), ("score", "sample"), strict=True):
        assert one.returncode == 2
        assert one.stderr.startswith(f"audiovae: {verb}: ".encode())
        assert f"is the standard {stream}, which is a terminal; ".encode() in one.stderr


REFUSED = [
    ("score -", "the standard input is empty; pipe a file into it, or name one"),
    ("score - -", "score: - is the standard input, which is read once and alone; give nothing else with it"),
    ("encode a.wav - -o x", "encode: - is the standard input, which is read once and alone"),
    ("resynthesize a.wav b.wav -o -", "-o - takes one file, got 2; give a folder"),
    ("resynthesize a.wav b.wav -o x.wav", "-o x.wav is one file, and there are 2 inputs; give a folder"),
    ("encode a.wav b.wav -o x.npz", "-o x.npz is one file, and there are 2 inputs; give a folder"),
    ("separate a.wav -o x.wav", "-o x.wav is one file, and several files are made of each input; give a folder"),
    (
        "enhance a.wav b.wav -o x --residual y.flac",
        "--residual y.flac is one file, and there are 2 inputs; give a folder",
    ),
    ("enhance a.wav b.wav -o x --report p.html", "--report p.html is one file, and there are 2 inputs; give a folder"),
    ("separate a.wav -o -", "separate: -o - is for what is one file; give a folder"),
    ("decode a.npz -o - --json", "decode: -o - and --json both want the standard output; give one of them"),
    ("enhance - -o b.wav --resume", "enhance: --resume goes by files that stay, and - is none; leave it out"),
    ("enhance a.wav -o - --shard 1/2", "enhance: --shard and --ray go by files that all processes see, and - is none"),
    ("enhance a.wav -o b.wav --residual -", "enhance: --residual must name a file or folder; - is for inputs and -o"),
    ("enhance a.wav -o b.wav --report -", "enhance: --report must name a file or folder; - is for inputs and -o"),
    ("enhance missing.wav -o -", "missing.wav: no such file"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(
    command: str, message: str, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.isatty", lambda descriptor: False)
    before = {path.name for path in here.iterdir()}
    try:
        status = main([*command.split(), *([] if command.startswith("separate") else ["--model", "model"])])
    except SystemExit as left:
        status = int(str(left.code))
    told = capfd.readouterr()
    assert status == 2
    assert told.out == ""
    assert message in told.err
    assert told.err.count("\n") == 1
    assert {path.name for path in here.iterdir()} == before
    assert not any((here / "temporary").iterdir())


def test_bad_sound_is_told_of_the_standard_input(here: Path) -> None:
    done = console("enhance", "-", "-o", "-", "--model", "model", given=b"This is not sound.\n" * 40)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"audiovae: standard input: is not a sound file, or a damaged one; ")


def test_what_a_killed_process_left_goes(here: Path) -> None:
    me = Owner.me()
    left = here / "temporary" / f".{me.machine}.{me.boot}.{me.space}.1.0.{me.process}.partial"
    left.mkdir()
    (left / "standard input.wav").write_bytes(bytes(100))
    done = console("score", "-", "--quiet", "--model", "model", given=(here / "a.wav").read_bytes())
    assert done.returncode == 0, done.stderr
    assert not left.exists()
