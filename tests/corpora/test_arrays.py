"""A corpus of arrays: what it takes and refuses, and that segments lie within one array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiovae import ArrayCorpus
from audiovae.corpora.batches import SegmentSampler
from audiovae.errors import CorpusError


def numbered(lengths: list[int]) -> list[np.ndarray]:
    """Arrays whose frames hold the item and the place within it, over 100."""
    return [np.stack([np.full(n, i), np.arange(n)], axis=1) / 100 for i, n in enumerate(lengths)]


def test_segments_are_consecutive_frames_of_one_array_and_all_are_drawn() -> None:
    corpus = ArrayCorpus(numbered([5, 3, 9]), validation=0.0)
    segments, items = SegmentSampler(corpus, "train", 3, torch.device("cpu")).draw(500, seed=0, step=0)
    assert segments.shape == (500, 3, 2)
    drawn = (100 * segments).round().int()
    assert all(f"item {int(segment[0, 0])}" == item.id for segment, item in zip(drawn, items, strict=True))
    assert (drawn[:, :, 0] == drawn[:, :1, 0]).all()
    assert (drawn[:, 1:, 1] - drawn[:, :-1, 1] == 1).all()
    assert {(int(s[0, 0]), int(s[0, 1])) for s in drawn} == {
        (i, start) for i, n in enumerate([5, 3, 9]) for start in range(n - 2)
    }


def test_a_numpy_file_is_the_corpus_of_its_array(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((20, 2, 4), np.float32)
    np.save(tmp_path / "x.npy", x)
    labels = {"kind": ["a", "b"] * 10}
    from_file, from_array = ArrayCorpus(tmp_path / "x.npy", labels), ArrayCorpus(iter(x), labels)
    assert from_file.fingerprint() == from_array.fingerprint() != ArrayCorpus(x).fingerprint()
    assert from_file.description == "18 arrays, 36 frames of 4"
    assert [len(from_file.split(name)) for name in ("train", "validation")] == [18, 2]
    assert from_file.classes("kind") == ("a", "b")
    for u in from_file.utterances:
        np.testing.assert_array_equal(from_file.wave(u), x[int(u.id.removeprefix("item "))])


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ([], {}, "the arrays: hold no array"),
    (np.zeros((3, 8, 8, 1)), {}, r"item 0 has \[8, 8, 1\]; an image is one frame of all its pixels"),
    (np.full((3, 1, 4), 16.0), {}, r"must be in \[0, 1\], and item 0 goes from 16 to 16: scale it"),
    (np.full((3, 1, 4), np.nan), {}, "item 0 goes from nan"),
    ([np.zeros((1, 4)), np.zeros((1, 5))], {}, r"have \[4, 5\] bins"),
    (np.zeros((3, 1, 4)), {"labels": {"digit": ["1", "2"]}}, "are 3, and the label 'digit' has 2 classes"),
]


@pytest.mark.parametrize(("arrays", "options", "message"), REFUSED)
def test_what_is_no_corpus_is_refused_with_the_remedy(arrays: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        ArrayCorpus(arrays, **options)


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name, message in [
        ("text.npy", "is no NumPy file of numbers"),
        ("objects.npy", "is no NumPy file of numbers"),
        ("several.npz", "holds several arrays by name"),
        ("absent.npy", "cannot be read"),
    ]:
        with pytest.raises(CorpusError, match=message):
            ArrayCorpus(tmp_path / name)
    with pytest.raises(CorpusError, match="have no label 'voice'; they have digit"):
        ArrayCorpus(np.zeros((2, 1, 3)), {"digit": "12"}).classes("voice")
