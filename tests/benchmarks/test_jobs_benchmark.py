"""A few kills and a poisoned file over shards and over ray: the benchmark, made small."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.xdist_group("two_processes")
@pytest.mark.parametrize(("way", "library"), [("shards", "pebble"), ("ray", "ray")])
def test_killed_at_random_all_rows_are_there_once_and_all_bytes_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, library: str
) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    jobs = importlib.import_module("jobs")
    options = argparse.Namespace(files=6, kills=2, poisoned=1, seconds=2.0, seed=1, way=way, shards=2)
    (row,) = jobs.kills(tmp_path, options)  # which checks them
    assert row[0].startswith(way)
    assert row[1] == "2"
    sys.modules.pop("jobs")
