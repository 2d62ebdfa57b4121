"""Training into a log file tells now and then how it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert "ELBO" not in lines[0]  # there is none yet
    assert lines[-1].startswith("audiovae: step 4 of 4: loss ")
    assert "  validation ELBO " in lines[-1]
    assert main([*command, "--training.batch_frames=64", "--overwrite", "--quiet"]) == 0
    assert "step 1" not in capsys.readouterr().err
