"""The command that takes speakers out of a room."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import RATE
from mixtures import frame_prior

from audiovae.audio import read_comment
from audiovae.cli.main import main
from audiovae.metrics import si_sdr

GAIN_DB = 10.0
COMMON = "--method iva"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Two sources that come and go at three microphones, with gains and delays of their own: `mix.wav`, in the working
    folder, and one file for each microphone in `ch`; gives the images.
    """
    generator = np.random.default_rng(0)
    delays = [[0, 3, 5], [4, 1, 0]]
    images = np.zeros((2, 2 * RATE, 3), np.float32)
    for source, seconds in enumerate((0.35, 0.5)):
        on = np.arange(2 * RATE) // round(seconds * RATE) % 2 == source
        wave = 0.1 * generator.standard_normal(2 * RATE) * np.where(on, 1.0, 0.05)
        for channel, delay in enumerate(delays[source]):
            images[source, delay:, channel] = (1 - 0.15 * channel) * wave[: len(wave) - delay]
    images += 1e-4 * generator.standard_normal(images.shape).astype(np.float32)
    monkeypatch.chdir(tmp_path)
    soundfile.write("mix.wav", images.sum(0), RATE)
    Path("ch").mkdir()
    for channel in range(3):
        soundfile.write(f"ch/mix_CH{9 + channel}.wav", images.sum(0)[:, channel], RATE)  # 9, 10, 11
    return images


def separate(command: str, method: str = COMMON) -> int:
    try:
        return main(shlex.split(f"separate {command} {method}"))
    except SystemExit as leave:
        return int(leave.code or 0)


def contents() -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def read(path: str) -> np.ndarray:
    return soundfile.read(path, dtype="int16", always_2d=True)[0].astype(np.int64)


def test_sources_come_apart_one_file_each_and_sum_to_the_mixture(room: np.ndarray) -> None:
    command = [sys.executable, "-m", "audiovae", *shlex.split(f"separate mix.wav -o out --json --quiet {COMMON}")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (row,) = json.loads(done.stdout)
    names = [f"out/mix-{name}.wav" for name in ("1", "2", "noise")]
    assert row["output"] == names
    assert {path.as_posix() for path in Path("out").iterdir()} == set(names)
    found, mixture = [read(name) for name in names], read("mix.wav")
    assert np.abs(sum(found) - mixture).max() <= 3  # a step of 16 bits each
    energy = [np.square(part / 2**15).mean() for part in found]
    assert energy[0] >= energy[1] > energy[2]
    assert row["levels_db"] == pytest.approx(10 * np.log10(energy), abs=0.05)
    before = [si_sdr(image[:, 0], mixture[:, 0] / 2**15) for image in room]
    orders = [[si_sdr(room[k][:, 0], found[order[k]][:, 0] / 2**15) for k in range(2)] for order in ((0, 1), (1, 0))]
    assert max(map(np.mean, orders)) > np.mean(before) + GAIN_DB
    info = soundfile.info("out/mix-1.wav")
    assert (info.samplerate, info.frames, info.channels, info.subtype) == (RATE, 2 * RATE, 3, "PCM_16")


@pytest.mark.parametrize("names", ["ch/mix_CH{}.wav", "'c*/*_CH{}.wav'"])
def test_one_file_a_microphone_is_the_file_of_all_byte_for_byte(room: np.ndarray, names: str) -> None:
    assert separate("mix.wav -o out --quiet") == 0
    assert separate(f"{names} -o apart --quiet") == 0
    made = contents()
    apart = {path.replace("_CH", ""): content for path, content in made.items() if path.startswith("apart")}
    prefix = "apart/ch/" if "*" in names else "apart/"
    assert apart == {path.replace("out/", prefix): made[path] for path in made if path.startswith("out/")}
    assert len(apart) == 3


def test_a_prior_takes_part_and_pages_tell_where_sources_are(
    room: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    frame_prior(labels={"digit": ("0", "1")}).save_pretrained("model")
    mics = [[0, 0, 1], [0.06, 0.0, 1], [0.0, 0.06, 1]]
    Path("mixtures.json").write_text(json.dumps([{"mixture": "mix.wav", "mics_m": mics}]))
    deep = "--method fastmnmf2-dp --model model --label digit=1"
    assert separate("mix.wav -o out --report page.html --geometry mixtures.json --json", deep) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["report"] == "page.html"
    assert len(row["azimuth_deg"]) == 2
    assert row["labels"] == [{"digit": "1"}] * 2
    parts = sum(read(path) for path in row["output"])
    assert np.abs(parts - read("mix.wav")).max() <= 3
    assert "--sources 2 --method fastmnmf2-dp --seed 0 --label digit=1, model " in read_comment("out/mix-1.wav")
    page = Path("page.html").read_text()
    assert page.count("<audio") == 4
    assert "Method fastmnmf2-dp; prior model." in page
    for azimuth, level in zip(row["azimuth_deg"], row["levels_db"], strict=False):
        assert f"<td>{level:.1f} dB</td><td>{azimuth}°</td>" in page
    Path("two.json").write_text(json.dumps(mics[:2]))
    assert separate("mix.wav -o out2 --geometry two.json", deep) == 2
    assert "mix.wav: has 3 channels, and two.json 2 microphones" in capsys.readouterr().err
    for text, message in (("{", "no list of microphones"), ('[{"mixture": "a.wav", "mics_m": []}]', "says nothing of")):
        Path("bad.json").write_text(text)
        assert separate("mix.wav -o out2 --geometry bad.json", deep) == 2
        assert message in capsys.readouterr().err
    assert not Path("out2").exists()


def test_many_in_any_batch_and_resumed_where_they_were_stopped(
    room: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, wave, rate in (
        ("a", room.sum(0), RATE),
        ("b", room.sum(0)[: int(1.5 * RATE)], RATE),
        ("deep/c", room.sum(0)[:, :2], RATE),
        ("d", room.sum(0)[:RATE], 8000),
    ):
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(f"in/{name}.wav", wave, rate)
    made: dict[str, Any] = {}
    for batch in (1, 3):
        assert separate(f"in -o out{batch} --batch {batch} --json --quiet") == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["file"] for row in rows] == [f"in/{name}.wav" for name in ("a", "b", "d", "deep/c")]
        made[str(batch)] = [read(path) for row in rows for path in row["output"]]
    for one, other in zip(made["1"], made["3"], strict=True):
        np.testing.assert_allclose(one, other, atol=33)
    first = {path: content for path, content in contents().items() if path.startswith("out3")}
    assert len(first) == 12
    Path("out3/a-1.wav").unlink()  # appears last: what stands without it is left from a run that was stopped
    assert separate("in -o out3 --batch 3 --resume --json") == 0
    output = capsys.readouterr()
    assert [row.get("skipped", False) for row in json.loads(output.out)] == [False, True, True, True]
    assert {path: content for path, content in contents().items() if path.startswith("out3")} == first
    assert separate("in -o out3") == 2
    assert capsys.readouterr().err.count("exists already; --overwrite replaces it, --resume makes only what is") == 4
    assert separate("in -o out3 --resume --seed 3") == 2
    assert "out3/a-1.wav: was made by audiovae separate --sources 2 --method iva --seed 0;" in capsys.readouterr().err
    Path("out3/b-2.wav").unlink()
    assert separate("in/b.wav -o out3 --resume") == 2
    assert "out3/b-1.wav: exists already, but out3/b-2.wav does not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("mono.wav -o out", "mono.wav: has 1 channel, and sources in space need two or more microphones; name files"),
        ("mono.wav -o out --sources 1", "take one voice out of noise with: audiovae enhance"),
        ("mix.wav -o out --sources 4", "mix.wav: has 3 channels, and the method needs 4; give fewer --sources"),
        ("mix.wav -o out --sources 0", "sources: expected a number from 1 to 99 or auto, got 0"),
        ("none.wav -o out", "none.wav: no such file"),
        ("mix.wav -o kept", "kept/mix-2.wav: exists already; --overwrite replaces it"),
        ("mix.wav -o out --model speech-16k", "--method iva has no prior; leave --model out"),
        ("mix.wav -o out --label digit=7", "--method iva has no prior; leave --label out"),
        ("mix.wav -o out --resume --overwrite", "--resume keeps what --overwrite replaces"),
        ("'ch/none{}.wav' -o out", "ch/none{}.wav: no file has a number in the place of {}"),
        ("'ch/{}_{}.wav' -o out", "{} stands for the number of the microphone, once"),
        ("'ch/odd{}.wav' -o out", "ch/odd2.wav: has 4000 samples, and ch/odd1.wav has 32000"),
        ("'ch/mix-{}.wav' -o ch --overwrite", "ch/mix-1.wav: is the input itself"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_in_one_line(
    room: np.ndarray, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    soundfile.write("mono.wav", room[0, :, 0], RATE)
    for name, n in (("odd1", 32000), ("odd2", 4000), ("mix-1", 4000), ("mix-2", 4000)):
        soundfile.write(f"ch/{name}.wav", room[0, :n, 0], RATE)
    Path("kept").mkdir()
    Path("kept/mix-2.wav").write_text("precious")
    before = contents()
    assert separate(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert contents() == before


def test_one_source_of_several_microphones_is_speech_beside_noise(room: np.ndarray) -> None:
    assert separate("mix.wav -o out --sources 1 --quiet") == 0
    assert {path.name for path in Path("out").iterdir()} == {"mix-1.wav", "mix-noise.wav"}
    assert np.abs(read("out/mix-1.wav") + read("out/mix-noise.wav") - read("mix.wav")).max() <= 2


@pytest.mark.parametrize(("recording", "name"), [("mix.wav", "mix"), ("ch/mix_CH{}.wav", "mix_CH")])
def test_counted_sources_have_a_file_each_and_the_number_is_said(
    room: np.ndarray, recording: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert separate(f"{recording} -o out --sources auto") == 0
    assert f"audiovae: {recording}: sources counted: 2" in capsys.readouterr().err
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{name}-{n}.wav" for n in (1, 2, "noise")]
    soundfile.write("mono.wav", soundfile.read("mix.wav")[0][:, 0], RATE)
    assert separate("mono.wav -o out --sources auto") == 2
    assert "audiovae enhance" in capsys.readouterr().err


def test_what_takes_no_part_is_said(room: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    wave = soundfile.read("mix.wav")[0]
    wave[:, 1] = 0
    soundfile.write("dead.wav", wave, RATE)
    assert separate("dead.wav -o out --json") == 0
    told = capsys.readouterr()
    assert "audiovae: dead.wav: no sound from microphone 2: left out" in told.err
    assert json.loads(told.out)[0]["without_sound"] == [2]
    times = np.arange(len(wave)) / RATE
    soundfile.write("rumble.wav", 0.1 * wave[:, [0, 2]] + 0.5 * np.sin(2 * np.pi * 20 * times)[:, None], RATE)
    assert separate("rumble.wav -o out") == 0
    assert "rumble.wav: what lies below 50 Hz is" in capsys.readouterr().err
