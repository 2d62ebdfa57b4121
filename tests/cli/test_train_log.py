"""Training into a log file tells now and then how it goes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audiovae import PackedCorpus
from audiovae.cli.main import main


def test_without_a_terminal_steps_are_plain_lines(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiovae.cli.train._PLAIN_SECONDS", 0.0)
    command = ["train", str(packed), "-o", str(tmp_path / "model"), "--vae.hidden=[8]", "--vae.latent_dim=2"]
    command += ["--training.steps=4", "--training.validate_every=3", "--training.log_every=1"]
    assert main([*command, "--training.batch_frames=64"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("audiovae: step")]
    assert lines[0].startswith("audiovae: step 1 of 4: loss ")
    assert "NLL" not in lines[0]  # there is none yet
    assert lines[-1].startswith("audiovae: step 4 of 4: loss ")
    assert "  validation NLL + KL " in lines[-1]
    assert main([*command, "--training.batch_frames=64", "--overwrite", "--quiet"]) == 0
    assert "step 1" not in capsys.readouterr().err


def test_the_signs_of_all_numbers_are_those_of_evaluate(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = ["train", str(packed), "-o", str(tmp_path / "model"), "--vae.hidden=[8]", "--vae.latent_dim=2"]
    command += ["--training.steps=4", "--training.validate_every=2", "--training.batch_frames=64"]
    assert main(command) == 0
    printed = capsys.readouterr()
    of_line = re.search(r"validation NLL \+ KL (-?[0-9.]+) nats per frame, the lowest", printed.out)
    assert of_line is not None, printed.out
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"Validation NLL + KL (minus the ELBO): {of_line[1]} nats per frame" in card
    board = EventAccumulator(str(tmp_path / "model" / "training"))
    board.Reload()
    nll, kl, both = (
        np.array([event.value for event in board.Scalars(f"validation/{name}")])
        for name in ("nll", "kl", "nll_plus_kl")
    )
    np.testing.assert_allclose(nll + kl, both, rtol=1e-5)
    assert both.min() == pytest.approx(float(of_line[1]), abs=0.06)


def test_prepare_and_train_end_with_how_much_and_how_long(
    tone_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, packed = tone_folder(tmp_path / "sound", n_speakers=3), tmp_path / "packed"
    n_files = len(list(folder.rglob("*.*")))
    assert main(["prepare", str(folder), str(packed)]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"audiovae: {packed}: {n_files} files, [0-9.]+ s of sound in [0-9.]+ s", last), last
    assert main(["prepare", str(folder), str(packed)]) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith(f": 0 files of {n_files}, {n_files} kept that were there")
    command = ["train", str(packed), "-o", str(tmp_path / "model"), "--vae.hidden=[8]", "--vae.latent_dim=2"]
    assert main([*command, "--training.steps=2", "--training.batch_frames=64"]) == 0
    train = PackedCorpus(packed).split("train")
    seconds = sum(u.n_samples for u in train) / 16000
    last = capsys.readouterr().err.splitlines()[-1]
    begin = f"audiovae: {tmp_path / 'model'}: {len(train)} files, {seconds:.1f} s of sound in "
    assert last.startswith(begin), last
