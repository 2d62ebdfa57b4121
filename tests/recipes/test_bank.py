"""The bank of rooms that separators are trained in: what it holds, and that a run which stops goes on. Takes 1 s."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import load_script

from audiovae.corpora.mixtures import RoomBank

pytest.importorskip("pyroomacoustics")
SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "neural_fca" / "bank.py"
SMALL = ["--n_sources", "2", "--n_mics", "3", "--rt60_s", "[0.2,0.25]", "--sample_rate", "8000"]


@pytest.fixture(scope="module")
def bank() -> ModuleType:
    return load_script(SCRIPT)


def test_a_bank_holds_rooms_that_differ_and_goes_on_where_it_stopped(bank: ModuleType, tmp_path: Path) -> None:
    bank.main([str(tmp_path / "whole"), "--n_sets", "3", *SMALL])
    whole = RoomBank(tmp_path / "whole")
    assert whole.responses.shape == (3, 2, 3, 3200)
    assert whole.sample_rate == 8000
    assert np.abs(whole.responses).max((1, 2, 3)).tolist() == [1.0] * 3
    assert not np.array_equal(whole.responses[0], whole.responses[1])
    first = np.abs(whole.responses[0, 0].astype(np.float32)).argmax(-1)  # of the direct sound, at 10 cm at most
    assert first.max() - first.min() <= 0.1 / 343 * 8000 + 1
    loud, late = (
        np.square(whole.responses.astype(np.float64))[..., part].mean() for part in (slice(400), slice(1600, None))
    )
    assert late < 1e-4 * loud  # RT60 is at most a quarter of a second

    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "bank.json").write_text((tmp_path / "whole" / "bank.json").read_text())
    written = np.array(whole.responses[0]).tobytes()
    (parts / "responses.part").write_bytes(written + written[:100])  # stopped within the second
    bank.main([str(parts), "--n_sets", "3", *SMALL])
    assert np.array_equal(RoomBank(parts).responses, whole.responses)
    assert sorted(path.name for path in parts.iterdir()) == ["bank.json", "responses.npy"]


def test_a_folder_of_other_settings_is_refused(bank: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bank.json").write_text(json.dumps({"n_sets": 1}))
    with pytest.raises(SystemExit, match="holds a bank of other settings; give another folder"):
        bank.main([str(tmp_path), "--n_sets", "2", *SMALL])
    with pytest.raises(SystemExit, match="n_mics must be from 2 to 8, got 1"):
        bank.main([str(tmp_path / "other"), "--n_mics", "1"])
