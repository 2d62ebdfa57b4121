"""The demo: what it says to do next can be done, it helps, and it empties nobody's folder."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from conftest import load_script

from audiovae import AudioVAE, metrics
from audiovae.cli.main import main

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    return load_script(DEMO)


def test_the_commands_at_the_end_run_in_their_order(
    demo: ModuleType,
    prior: AudioVAE,
    toy_corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "WAVE_METRICS", {"si_sdr": metrics.METRICS["si_sdr"]})  # the others take seconds
    folder = tmp_path / "my demo"
    for voice, speaker in zip((*demo.HELD_OUT, "other"), sorted(toy_corpus_folder.iterdir()), strict=False):
        shutil.copytree(speaker, folder / "speech" / voice)
    prior.save_pretrained(folder / "model")
    demo.write_noisy(folder / "speech" / demo.HELD_OUT[1] / "0.wav", folder / "noisy.wav")
    shorter = {"train": ["--training.steps", "2"], "enhance": ["--method", "fast", "--model", str(folder / "model")]}
    for commands in demo.next_steps(folder).values():
        for command in commands:
            program, *given = shlex.split(command)
            assert program.endswith("audiovae")
            assert Path(program).is_file()
            assert main([*given, *shorter.get(given[0], [])]) == 0
    made = ("enhanced.wav", "enhanced.html", "sample.wav", "my-packed", "my-model/config.json", "mine.html")
    assert all((folder / name).exists() for name in made)


def test_the_noisy_file_has_noise_of_the_level_that_is_said(demo: ModuleType, tmp_path: Path) -> None:
    clean = 0.1 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / "clean.wav", clean, 16000, "FLOAT")
    demo.write_noisy(tmp_path / "clean.wav", tmp_path / "noisy.wav")
    noise = soundfile.read(tmp_path / "noisy.wav")[0] - clean
    assert 20 * np.log10(np.linalg.norm(clean) / np.linalg.norm(noise)) == pytest.approx(demo.NOISY_SNR_DB, abs=0.01)


def test_it_helps_and_leaves_the_folders_of_others(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("precious")
    for given, status in (("--help", 0), ("photos", 2)):
        done = subprocess.run(
            [sys.executable, DEMO, given], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == status
        assert ("usage: demo.py" in done.stdout) == (status == 0)
        assert ("photos holds something else than a demo; name a new folder" in done.stderr) == (status == 2)
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "one.jpg"]
