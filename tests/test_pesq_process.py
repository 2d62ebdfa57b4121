"""PESQ, whose C code ends its process on recordings of many utterances."""

from __future__ import annotations

import numpy as np
import pytest

from audiovae.metrics import NotScored, pesq

pytest.importorskip("pesq")


def utterances(n: int) -> np.ndarray:
    """`[sample]`, 0.9 s each."""
    noise = np.random.default_rng(0).standard_normal((n, 6400)) * np.sin(np.arange(6400) / 13)
    return np.pad(0.3 * noise, ((0, 0), (0, 8000))).ravel().astype(np.float32)


def test_more_utterances_than_it_takes_are_a_reason_and_no_crash() -> None:
    wave = utterances(60)
    with pytest.raises(NotScored, match=r"PESQ failed .*cannot take more than 50 utterances"):
        pesq(wave, wave + np.float32(0.01) * np.random.default_rng(1).standard_normal(len(wave)).astype(np.float32))


def test_what_is_longer_than_it_is_made_for_is_not_scored() -> None:
    wave = np.ones(16000 * 121, np.float32)
    with pytest.raises(NotScored, match="longer than 120 s"):
        pesq(wave, wave)
