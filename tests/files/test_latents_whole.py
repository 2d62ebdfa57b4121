"""Files of latents that nothing wrote are refused before their claims fill the memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiovae.errors import ModelError
from audiovae.files import LatentsFile

GOOD = LatentsFile(torch.zeros(1, 3, 2), {"loc": torch.zeros(1, 3, 2)}, {}, 0.5, 16000, 700, "m" * 64)
REFUSED = "is not a latents file, or a damaged one; encode the sound again"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    GOOD.save(tmp_path / "x.npz")
    return tmp_path / "x.npz"


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, entry in content.items():
            archive.writestr(name, entry)


def array(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


def test_what_was_written_is_read(path: Path) -> None:
    loaded = LatentsFile.load(path)
    assert (loaded.level, loaded.sample_rate, loaded.n_samples, loaded.model) == (0.5, 16000, 700, "m" * 64)
    assert torch.equal(loaded.latents, GOOD.latents)


@pytest.mark.parametrize(
    "shape", ["(1, 3000000000000, 2)", "(99999999999999999999999999, 1, 1)", "(1, 1000000, 3)", "(-1, 3, 2)"]
)
def test_a_header_that_claims_more_than_there_is_allocates_nothing(
    path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = members(path)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    content["latents.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24)
    write(path, content)
    if "-1" not in shape:
        monkeypatch.setattr(np, "load", None)  # it is not even asked
    with pytest.raises(ModelError, match=REFUSED):
        LatentsFile.load(path)


def test_what_unfolds_is_refused(path: Path) -> None:
    write(path, {**members(path), "latents.npy": array(np.zeros((1, 10**6, 2), np.float32))}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match=REFUSED):
        LatentsFile.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("sample_rate", value) for value in (0, -1, 10**12, 16000.0, "x", [16000])],
        *[("n_samples", value) for value in (0, -700, 700.0, [700])],
        *[("level", value) for value in (-1.0, np.nan, np.inf, 1e300, 1, "x", [0.5])],
        *[("n_arrays", value) for value in (1, 3, 2.0)],
        *[("model", value) for value in (3, ["m"])],
        ("latents", np.full((1, 3, 2), np.nan, np.float32)),
        ("latents", np.zeros((1, 3, 2))),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(path: Path, name: str, value: Any) -> None:
    write(path, {**members(path), f"{name}.npy": array(value)})
    with pytest.raises(ModelError, match=REFUSED):
        LatentsFile.load(path)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-30], lambda b: b[:100], lambda b: b"", lambda b: b"x" * 999, lambda b: b[:200] + b[210:]]
)
def test_a_damaged_file_is_refused(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError, match=REFUSED):
        LatentsFile.load(path)
