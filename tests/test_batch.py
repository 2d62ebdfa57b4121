"""Batches below the command line: each input fails or succeeds by itself, and nothing is printed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from audiovae import AudioVAE
from audiovae.batch import WORK_SECONDS, Item, Result, Row, Workers, run_batch, run_groups
from audiovae.errors import AudiovaeError, PathError

NAMES = ["a.wav", "deep/b.wav", "c.wav"]
ITEMS = [Item(Path("in", name), name) for name in NAMES]


def length(prior: AudioVAE | None, item: Item) -> Row:
    if item.name == "deep/b.wav":
        raise PathError(item.source, "is broken;\n  restore it")
    return {"length": len(item.name), "prior": prior is not None}


def draw(prior: AudioVAE | None, item: Item) -> Row:
    assert prior is not None
    return {"drawn": torch.rand(1).item(), "rate": prior.sample_rate}


def count(prior: AudioVAE | None, items: list[Item]) -> list[Result]:
    if len(items) == 1:
        raise AudiovaeError("too few")
    return [{"together": len(items)} for _ in items]


def slow_count(prior: AudioVAE | None, items: list[Item]) -> list[Result]:
    time.sleep(0.2)
    return count(prior, items)


def timeless(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != WORK_SECONDS} for row in rows]


def test_an_item_that_fails_is_told_and_the_others_are_done(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[Row] = []
    rows = run_batch(ITEMS, length, Workers(model=None), told=told.append)
    assert told == rows
    assert timeless(rows) == [
        {"file": "in/a.wav", "length": 5, "prior": False},
        {"file": "in/deep/b.wav", "error": "in/deep/b.wav: is broken; restore it"},
        {"file": "in/c.wav", "length": 5, "prior": False},
    ]
    assert capfd.readouterr() == ("", "")


def test_groups_fail_as_a_whole_where_their_work_does() -> None:
    rows = run_groups([ITEMS[:2], ITEMS[2:]], slow_count, Workers(model=None))
    assert rows[0][WORK_SECONDS] == rows[1][WORK_SECONDS] >= 0.1  # shared evenly
    assert WORK_SECONDS not in rows[2]
    assert timeless(rows) == [
        {"file": "in/a.wav", "together": 2},
        {"file": "in/deep/b.wav", "together": 2},
        {"file": "in/c.wav", "error": "too few"},
    ]


def test_random_numbers_follow_from_seed_and_name_alone(model_folder: Path) -> None:
    def drawn(items: list[Item], jobs: int, seed: int = 0) -> dict[str, float]:
        rows = run_batch(items, draw, Workers(str(model_folder), jobs=jobs), seed)
        assert {row["rate"] for row in rows} == {16000}
        return {row["file"]: row["drawn"] for row in rows}

    alone = drawn(ITEMS, jobs=1)
    assert list(alone) == [str(item.source) for item in ITEMS]
    assert len(set(alone.values())) == 3
    assert drawn(ITEMS[::-1], jobs=2) == alone
    assert not set(drawn(ITEMS, jobs=1, seed=1).values()) & set(alone.values())


def test_a_missing_model_or_device_is_refused_before_the_work() -> None:
    with pytest.raises(AudiovaeError, match="nowhere: no such model"):
        run_batch(ITEMS, draw, Workers("nowhere", jobs=2))
    with pytest.raises(AudiovaeError, match="--device warp: no such device here; use cpu or auto"):
        run_batch(ITEMS, draw, Workers("speech-16k", device="warp"))
