"""A long file is packed as a short one is, in constant memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import speech_like

from audiovae import audio
from audiovae.corpora.prepare import _written
from audiovae.corpora.signal import Signal
from audiovae.settings import PrepareSettings


def store(path: Path, seconds: float, rate: int, n_channels: int = 1, offset: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    waves = np.stack([speech_like(seconds, 110 + 40 * i, rate=rate) for i in range(n_channels)], axis=1)
    silence = np.zeros((rate // 2, n_channels))
    soundfile.write(path, offset + 0.2 * np.concatenate([silence, waves, silence]), rate)
    return path


@pytest.mark.parametrize(("rate", "n_channels"), [(16000, 1), (22050, 2), (8000, 1)])
@pytest.mark.parametrize(("speed", "trim", "offset"), [(1.0, True, 0.0), (0.9, True, 0.3), (1.0, False, 0.0)])
def test_what_is_read_again_for_each_pass_is_packed_like_what_is_held(
    rate: int, n_channels: int, speed: float, trim: bool, offset: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path / "x.wav", 21, rate, n_channels, offset)
    settings = PrepareSettings(trim=trim)
    monkeypatch.setattr(audio, "_HELD_SAMPLES", 2**40)
    held = Signal.of(path, speed, settings)
    monkeypatch.setattr(audio, "_HELD_SAMPLES", 0)
    again = Signal.of(path, speed, settings)
    samples = np.concatenate(list(again.packed()))
    assert np.array_equal(samples, np.concatenate(list(held.packed())))
    assert (again.scale, again.level) == (held.scale, held.level)
    seconds = (21 if trim else 22) / (speed if rate != 16000 or speed != 1.0 else 1.0)
    assert len(samples) == again.n_samples == pytest.approx(16000 * seconds, abs=2048)
    assert np.abs(samples).max() == 32767


def test_a_file_that_is_cut_between_the_passes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "_HELD_SAMPLES", 0)
    path = store(tmp_path / "x.wav", 45, 16000)
    measured = Signal.of(path, 1.0, PrepareSettings())
    path.write_bytes(path.read_bytes()[:800000])
    with open(tmp_path / "samples", "w+b") as file:
        file.write(b"before")
        reason, digest = _written(measured, file)
    assert str(reason).startswith("is truncated")
    assert (digest, (tmp_path / "samples").read_bytes()) == ("", b"before")


def test_the_memory_of_prepare_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Of two long files, at another rate than the corpus."""
    code = "import resource, sys; from audiovae.corpora.prepare import prepare\n"
    code += "for folder in sys.argv[1:]:\n    prepare(folder, folder + '-packed')\n"
    code += "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    folders = [tmp_path / seconds for seconds in ("50", "400")]
    for folder in folders:
        store(folder / "a" / "x.flac", 50, 22050)
        wave, rate = soundfile.read(folder / "a" / "x.flac", dtype="int16")
        soundfile.write(folder / "a" / "x.flac", np.tile(wave, int(folder.name) // 50), rate)
    told = subprocess.run([sys.executable, "-c", code, *folders], check=True, capture_output=True).stdout
    before, after = map(int, told.split())
    assert after - before < 12 * 1024  # KiB: the samples alone are 26 MB more
