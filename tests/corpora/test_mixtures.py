"""Mixtures drawn for training: what they are made of, and that they follow from seed, step and rank. Takes 5 s."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RATE, make_tone_folder
from mixtures import bank_of

from audiovae import CorpusError, PackedCorpus, PrepareSettings, prepare
from audiovae.corpora.mixtures import BANK, MixtureCorpus, MixtureSampler, RoomBank
from audiovae.settings import MixtureSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> RoomBank:
    return bank_of(tmp_path_factory.mktemp("bank"))


def corpus(packed: Path, bank: RoomBank, **settings: object) -> MixtureCorpus:
    return MixtureCorpus(PackedCorpus(packed), bank, MixtureSettings(**settings))


def test_a_draw_follows_from_seed_step_and_rank_alone(packed: Path, bank: RoomBank) -> None:
    sampler = MixtureSampler(corpus(packed, bank), "train", 4000, CPU)
    first, of_first = sampler.draw(3, 5, 7)
    assert first.shape == (3, 3, 4000)
    assert len(of_first) == 6
    again, _ = MixtureSampler(corpus(packed, bank), "train", 4000, CPU).draw(3, 5, 7)
    assert torch.equal(first, again)
    for key in ((6, 7, 0), (5, 8, 0), (5, 7, 1)):
        assert not torch.equal(first, sampler.draw(3, *key)[0])


def test_speakers_differ_and_stand_in_one_split(packed: Path, bank: RoomBank) -> None:
    mixed = corpus(packed, bank)
    for split in ("train", "validation"):
        _, utterances = MixtureSampler(mixed, split, 2000, CPU).draw(20, 0, 0)
        assert {u.split for u in utterances} == {split}
        pairs = zip(utterances[::2], utterances[1::2], strict=True)
        assert all(one.speaker != other.speaker for one, other in pairs)
    assert not {*bank.split("train")} & {*bank.split("validation")}


def test_a_mixture_is_speech_through_the_responses_and_noise_at_its_snr(packed: Path, tmp_path: Path) -> None:
    """With one room whose responses are a delay and a gain, images can be told without a transform."""
    responses = np.zeros((2, 2, 2, 8), np.float16)
    responses[:, 0, 0, 0], responses[:, 0, 1, 3] = 1.0, 0.5  # source 0
    responses[:, 1, 0, 1], responses[:, 1, 1, 0] = 1.0, 0.25  # source 1
    bank = bank_of(tmp_path, responses)
    mixed = corpus(packed, bank, n_sources=1, n_channels=2, level_db=0.0, snr_db=(100.0, 100.0))
    waves, _ = MixtureSampler(mixed, "train", 6000, CPU).draw(40, 0, 0)
    found = set()
    for wave in waves.double().numpy():
        for gain, delay in ((0.5, 3), (2.0, -3), (0.25, -1), (4.0, 1)):
            early, late = (wave[0], wave[1]) if delay >= 0 else (wave[1], wave[0])
            ratio = gain if delay >= 0 else 1 / gain
            error = late[abs(delay) :] - ratio * early[: len(early) - abs(delay)]
            if np.abs(error).max() < 2e-3 * np.abs(late).max():
                found.add((gain, delay))
        assert np.square(wave[0]).mean() == pytest.approx(1.0, rel=1e-3)  # at the first microphone
    assert len(found) == 4  # both places, either order of the microphones

    noisy = corpus(packed, bank, n_sources=1, n_channels=2, level_db=0.0, snr_db=(0.0, 0.0))
    with_noise, _ = MixtureSampler(noisy, "train", 6000, CPU).draw(40, 0, 0)
    noise = with_noise - waves  # the same draw but for the loudness of its noise
    snr_db = 10 * torch.log10(waves.square().mean((1, 2)) / noise.square().mean((1, 2)))
    assert torch.allclose(snr_db, torch.zeros(40), atol=0.3)  # power of 12,000 numbers


def test_the_rooms_past_is_heard_at_the_beginning(packed: Path, tmp_path: Path) -> None:
    responses = np.zeros((2, 1, 2, 1000), np.float16)
    responses[..., 999] = 1.0  # nothing but an echo
    mixed = corpus(packed, bank_of(tmp_path, responses), n_sources=1, n_channels=2, snr_db=(100.0, 100.0))
    waves, _ = MixtureSampler(mixed, "train", 12000, CPU).draw(8, 0, 0)
    assert (waves[..., :900].square().mean(-1) > 1e-4).all()


def test_levels_differ_by_as_much_as_asked(packed: Path, tmp_path: Path) -> None:
    """All microphones stand at one place."""
    responses = np.zeros((2, 2, 2, 8), np.float16)
    responses[..., 0] = 1.0
    bank = bank_of(tmp_path, responses)
    for spread in (0.0, 6.0):
        mixed = corpus(packed, bank, n_channels=2, level_db=spread, snr_db=(100.0, 100.0))
        waves, _ = MixtureSampler(mixed, "train", 8000, CPU).draw(200, 0, 0)
        power = waves.square().mean((1, 2))  # of the sum of two sources of power 10^(level / 10)
        low, high = 2 * 10 ** (-spread / 10), 2 * 10 ** (spread / 10)
        assert power.min() > 0.7 * low
        assert power.max() < 1.4 * high
        assert (power.std() > 0.3) == bool(spread)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_sources": 3}, "has 2 places and 3 microphones a room, and mixtures of 3 sources at 3 are asked for"),
        ({"n_channels": 4}, "mixtures of 2 sources at 4 are asked for"),
    ],
)
def test_a_bank_that_is_too_small_is_refused(
    packed: Path, bank: RoomBank, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        corpus(packed, bank, **settings)


def test_what_is_no_bank_or_does_not_fit_is_refused(
    packed: Path, tmp_path: Path, tone_folder: Callable[..., Path]
) -> None:
    with pytest.raises(CorpusError, match=r"is no finished bank of rooms \(.* is missing\); run"):
        RoomBank(tmp_path)
    (tmp_path / BANK).write_text("{")
    with pytest.raises(CorpusError, match="is damaged; make the bank again"):
        RoomBank(tmp_path)
    other = bank_of(tmp_path / "other", rate=8000)
    with pytest.raises(CorpusError, match=r"has 8000 Hz, and .* 16000; make both at one rate"):
        corpus(packed, other)
    flat = bank_of(tmp_path / "flat")
    np.save(flat.folder / "responses.npy", np.zeros((4, 3), np.float16))
    with pytest.raises(CorpusError, match="is no bank of 16-bit responses"):
        RoomBank(flat.folder)
    prepare(make_tone_folder(tmp_path / "one", n_speakers=1), tmp_path / "lone", PrepareSettings(validation=0.0))
    with pytest.raises(CorpusError, match=r"has 1 speakers in the split 'train', and a mixture needs 2"):
        MixtureSampler(corpus(tmp_path / "lone", bank_of(tmp_path / "rooms")), "train", 1000, CPU)


def test_what_mixtures_depend_on_changes_the_fingerprint(packed: Path, bank: RoomBank, tmp_path: Path) -> None:
    prints = {
        corpus(packed, bank).fingerprint(),
        corpus(packed, bank, level_db=1.0).fingerprint(),
        corpus(packed, bank_of(tmp_path, seed=1)).fingerprint(),
    }
    assert len(prints) == 3
    assert corpus(packed, RoomBank(bank.folder)).fingerprint() in prints
    assert "2 speakers at 3 microphones in 9 simulated rooms, drawn from 12 rec" in corpus(packed, bank).description
    assert json.loads((bank.folder / BANK).read_text())["sample_rate"] == RATE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_sources": 0}, "n_sources must be at least 1, got 0"),
        ({"n_channels": 1}, "n_channels must be at least 2, got 1"),
        ({"level_db": -1.0}, "level_db must be from 0 to 100, got -1.0"),
        ({"snr_db": (30.0, 20.0)}, "snr_db must be two numbers from -100 to 100, the smaller first"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureSettings(**settings)
