"""The command that takes recordings of several microphones apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE

from audiovae.cli.main import main
from audiovae.metrics import si_sdr

GAIN_DB = 10.0


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Two sources that come and go at three microphones, with gains and delays of their own: `mix.wav`; gives the
    images.
    """
    generator = np.random.default_rng(0)
    delays = [[0, 3, 5], [4, 1, 0]]
    images = np.zeros((2, 3 * RATE, 3), np.float32)
    for source, seconds in enumerate((0.35, 0.5)):
        on = np.arange(3 * RATE) // round(seconds * RATE) % 2 == source
        wave = 0.1 * generator.standard_normal(3 * RATE) * np.where(on, 1.0, 0.05)
        for channel, delay in enumerate(delays[source]):
            images[source, delay:, channel] = (1 - 0.15 * channel) * wave[: len(wave) - delay]
    images += 1e-4 * generator.standard_normal(images.shape).astype(np.float32)
    soundfile.write(tmp_path / "mix.wav", images.sum(0), RATE, "FLOAT")
    monkeypatch.chdir(tmp_path)
    return images


def test_sources_come_apart_one_file_each_and_sum_to_the_mixture(room: np.ndarray) -> None:
    assert main(["separate", "mix.wav", "-o", "out", "--sources", "2", "--quiet"]) == 0
    found = [soundfile.read(f"out/mix-{n}.wav", dtype="float32")[0] for n in (1, 2)]
    mixture = soundfile.read("mix.wav", dtype="float32")[0]
    assert np.abs(found[0] + found[1] - mixture).max() < 1e-5
    assert np.square(found[0]).sum() >= np.square(found[1]).sum()  # the loudest first
    before = [si_sdr(image[:, 0], mixture[:, 0]) for image in room]
    orders = [[si_sdr(room[k][:, 0], found[order[k]][:, 0]) for k in range(2)] for order in ((0, 1), (1, 0))]
    assert max(map(np.mean, orders)) > np.mean(before) + GAIN_DB
    info = soundfile.info("out/mix-1.wav")
    assert (info.samplerate, info.frames, info.channels, info.subtype) == (RATE, 3 * RATE, 3, "FLOAT")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("separate mono.wav -o out", "needs at least two channels and two sources, got 1 and 2"),
        ("separate mix.wav -o out --sources 1", "needs at least two channels and two sources, got 3 and 1"),
        ("separate none.wav -o out", "none.wav: no such file"),
        ("separate mix.wav -o kept", "kept/mix-2.wav: exists already; --overwrite replaces it"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_in_one_line(
    room: np.ndarray, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    soundfile.write("mono.wav", room[0, :, 0], RATE)
    Path("kept").mkdir()
    Path("kept/mix-2.wav").write_text("precious")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
