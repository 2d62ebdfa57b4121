"""audiovae enhance --stream - -o -: pipes in which speech comes out while the sound comes in."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, speech_like
from mixtures import make_alive, untrained

from audiovae import AudioVAE
from audiovae.cli.live import Form
from audiovae.cli.main import main
from audiovae.errors import AudiovaeError
from audiovae.separation import stream

SCRIPT = Path(sys.executable).with_name("audiovae")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "model"
    prior = make_alive(untrained("DynamicVAE", causal=True, dilations=(1, 2), prior_dilations=(1, 2)))
    prior.save_pretrained(folder)
    return folder


def wav(wave: np.ndarray, subtype: str, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.T, rate, subtype, format="WAV")
    return buffer.getvalue()


def enhanced(model: Path, wave: np.ndarray, rate: int = RATE) -> np.ndarray:
    one = stream(AudioVAE.from_pretrained(model), sample_rate=rate, n_channels=len(wave))
    return np.concatenate([one.push(wave.astype(np.float32)), one.flush()], axis=1)[:, one.latency :]


def test_a_wav_is_answered_while_it_is_spoken(model: Path) -> None:
    """The first half of the speech comes before the second half of the sound goes in; 16 bits stay 16 bits."""
    wave = 0.3 * speech_like(1.0, 120)[None]
    content = wav(wave, "PCM_16")
    given, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    command = [SCRIPT, "enhance", "--stream", "-", "-o", "-", "--model", str(model)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ONE_THREAD, bufsize=0
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdin.write(content[: 44 + RATE])
        early = b""
        while len(early) < 44 + RATE - 2 * 1024:
            early += run.stdout.read(4096)
        run.stdin.write(content[44 + RATE :])
        run.stdin.close()
        spoken, said = early + run.stdout.read(), run.stderr.read().decode()
    assert run.returncode == 0, said
    assert "16000 Hz, speech comes after 20.0 ms" in said
    assert spoken[:4] == b"RIFF"
    found, rate = soundfile.read(io.BytesIO(spoken), dtype="float32")
    assert (rate, len(found)) == (RATE, len(given))
    np.testing.assert_allclose(found, enhanced(model, given[None])[0], atol=1.01 / 2**16)


@pytest.mark.parametrize("raw", [True, False])
def test_floats_of_two_channels_at_another_rate_come_back_as_they_went(raw: bool, model: Path) -> None:
    wave = (0.3 * np.stack([speech_like(0.3, f, rate=44100) for f in (120, 150)])).astype(np.float32)
    content = wave.T.tobytes() if raw else wav(wave, "FLOAT", 44100)
    options = ["--raw", "44100,f32,2"] if raw else []
    done = subprocess.run(
        [SCRIPT, "enhance", "--stream", "-", "-o", "-", "--quiet", "--model", str(model), *options],
        input=content, capture_output=True, check=True, env=ONE_THREAD,
    )  # fmt: skip
    assert not done.stderr
    head = 0 if raw else 44
    found = np.frombuffer(done.stdout[head:], np.float32).reshape(-1, 2).T
    np.testing.assert_allclose(found, enhanced(model, wave, 44100), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.wav", "-o", "-"], "--stream goes from the standard input to the standard output: --stream - -o -"),
        (["-", "-o", "out.wav"], "--stream goes from the standard input"),
        (["-", "-o", "-", "--json"], "--stream makes sound alone, in one way; leave out --json"),
        (["-", "-o", "-", "--report", "r"], "--stream makes sound alone, in one way; leave out --report"),
        (["-", "-o", "-", "--method", "vem"], "--stream has one method, fast; leave out --method"),
        (["-", "-o", "-", "--method", "peem"], "--stream has one method, fast; leave out --method"),
        (["-", "-o", "-", "--seed", "1"], "leave out --seed"),
        (["-", "-o", "-", "--break-lock"], "leave out --break-lock"),
    ],
)
def test_what_is_no_pipe_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["enhance", "--stream", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["raw", "lookahead"])
def test_what_is_of_a_stream_alone_is_refused_of_files(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["enhance", "a.wav", "-o", "out", f"--{option}", "1"])
    assert f"--{option} is of --stream; leave it out, or stream: --stream - -o -" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content + b"LIST\4\0\0\0four", ""),
        (lambda content: content[: -RATE // 2], "the standard input ended 0.25 s before what its header says\n"),
        (lambda content: content[:-1], "the standard input ended 0.00 s before what its header says\n"),
    ],
)
def test_a_stream_ends_where_its_samples_do(
    change: Callable[[bytes], bytes], said: str, model: Path, tmp_path: Path
) -> None:
    """Chunks behind the samples are no sound, and what a header promises and is not there is told."""
    wave = (0.3 * speech_like(0.5, 120)[None]).astype(np.float32)
    content = change(wav(wave, "PCM_16"))
    (tmp_path / "in").write_bytes(content)
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as target:
        command = [SCRIPT, "enhance", "--stream", "-", "-o", "-", "--method", "fast", "--model", str(model)]
        done = subprocess.run(command, stdin=source, stdout=target, stderr=subprocess.PIPE, check=True, env=ONE_THREAD)
    assert done.stderr.decode().partition("\n")[2] == (f"audiovae: {said}" if said else "")
    whole = min(len(content) - 44, 2 * wave.shape[1]) // 2 * 2
    assert (tmp_path / "out").stat().st_size == 44 + whole


@pytest.mark.parametrize("text", ["0", "16000,s24", "16000,s16,0", "x", "16000,,2,2"])
def test_a_raw_form_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(
        AudiovaeError, match=re.escape(f"--raw must be RATE, RATE,f32 or RATE,s16,CHANNELS, got {text!r}")
    ):
        Form.raw(text)


@pytest.mark.parametrize(
    "content", [b"", b"fLaC" * 9, wav(np.zeros((1, 9)), "PCM_24"), wav(np.zeros((1, 9)), "FLOAT")[:20]]
)
def test_other_sound_is_refused(content: bytes) -> None:
    with pytest.raises(AudiovaeError, match="the standard input is no WAV of 16-bit or 32-bit float samples"):
        Form.of_header(io.BytesIO(content).read)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_headers_are_understood(subtype: str) -> None:
    """Of libsndfile, with chunks before the samples, and our own."""
    buffer = io.BytesIO(wav(np.zeros((3, 9)), subtype, 44100))
    form = Form.of_header(buffer.read)
    kind = "s16" if subtype == "PCM_16" else "f32"
    assert form == Form(44100, 3, kind, 9 * form.frame_bytes)
    assert len(buffer.read()) >= 9 * form.frame_bytes
    assert Form.of_header(io.BytesIO(form.header()).read) == Form(44100, 3, kind)


def test_sixteen_bits_are_cut_at_full_scale() -> None:
    samples = np.frombuffer(Form(8000).encoded(np.array([[2.0, -2.0, 0.5]], np.float32)), "<i2")
    assert samples.tolist() == [2**15 - 1, -(2**15), 2**14]
