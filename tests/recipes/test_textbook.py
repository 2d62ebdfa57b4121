"""The textbook's scripts run, and leave the pictures and models that they promise."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from audiovae import ArrayVAE

TEXTBOOK = Path(__file__).resolve().parents[2] / "recipes" / "textbook"
LEFT = {
    "vae": ({"generated", "reconstructed", "interpolated", "plane", "curves"}, {"vae", "plane", "averaged"}),
    "conditional": ({"by_label"}, {"generator", "predictor", "predictor_standard"}),
    "autoencoder": ({"denoised"}, {"plain", "without"}),
}


def test_every_script_is_tested() -> None:
    assert {path.stem for path in TEXTBOOK.glob("*.py")} == {*LEFT, "digits"}


@pytest.mark.parametrize("name", LEFT)
def test_a_script_leaves_its_pictures_and_models(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(TEXTBOOK))
    monkeypatch.setattr(sys, "argv", [name, "-o", str(tmp_path), "--steps", "50"])
    runpy.run_path(str(TEXTBOOK / f"{name}.py"), run_name="__main__")
    sys.modules.pop("digits")
    pictures, models = LEFT[name]
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == models
    for model in models:
        assert ArrayVAE.from_pretrained(tmp_path / model).vae.n_freqs == 64
    assert "nan" not in capsys.readouterr().out
