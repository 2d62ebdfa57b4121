"""Simulated rooms: files that sum up, acoustics by formulas, and sets that do not depend on how they were made."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from conftest import load_script, make_tone_folder

import audiovae

ROOT, SPEED = Path(__file__).resolve().parents[2], 343.0  # m/s, pyroomacoustics' default
SCRIPT = ROOT / "recipes/rooms/rooms.py"
SHORT = ["--n_mixtures", "3", "--duration_s", "0.4", "--shortest_s", "0.3", "--rt60_s", "[0.2, 0.25]"]


rooms = load_script(SCRIPT)
Make = Callable[..., Path]


@pytest.fixture
def make(packed: Path, tmp_path: Path) -> Make:
    def make(name: str, *options: str, corpus: Path = packed) -> Path:
        rooms.main([str(corpus), "-o", str(tmp_path / name), *SHORT, *options])
        return tmp_path / name

    return make


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    folder = tmp_path / "noises"
    folder.mkdir()
    for k in range(2):
        wave = np.random.default_rng(k).standard_normal(3000).astype(np.float32) / 10
        soundfile.write(folder / f"{k}.wav", wave, 22050)
    return folder


def samples(path: Path) -> np.ndarray:
    """`[microphone, sample]` in steps of 16 bits."""
    assert soundfile.info(path).subtype == "PCM_16"
    return soundfile.read(path, dtype="int16", always_2d=True)[0].T.astype(int)


def lines(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "mixtures.json").read_text())


def power_db(wave: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wave, dtype=float).mean()))


def of_room(**changes: object) -> object:
    mixture = rooms.Mixture(
        "mix_00.flac", ["a"], ["a"], [0.0], [6.0, 5.0, 3.0], 0.3, [[3.0, 2.5, 1.5], [3.1, 2.5, 1.5]],
        [[4.0, 3.5, 1.4]], None, [0.0], 30.0, None, None,
    )  # fmt: skip
    return dataclasses.replace(mixture, **changes)


def test_images_and_noise_sum_to_the_mixture(make: Make, noises: Path) -> None:
    options = ("--n_sources", "2", "--noise_snr_db", "[5, 5]", "--noise", str(noises), "--angle_deg", "[30, 180]")
    folder = make("set", *options)
    for i, line in enumerate(lines(folder)):
        mixture = samples(folder / str(line["mixture"]))
        images = [samples(folder / f"image_{i:02d}_{k}.flac") for k in range(2)]
        noise = samples(folder / f"noise_{i:02d}.flac")
        assert mixture.shape == (4, 6400)
        assert np.abs(mixture).max() == pytest.approx(2**14, abs=3)
        np.testing.assert_array_equal(sum(images) + noise, mixture)
        assert power_db(images[0][0]) == pytest.approx(power_db(images[1][0]), abs=0.05)
        assert power_db(sum(images)) - power_db(noise) == pytest.approx(5, abs=0.2)  # and a little white noise
        assert len(np.unique(np.round(line["sources_m"], 6), axis=0)) == 3


def test_white_noise_and_levels_are_as_asked_for(make: Make) -> None:
    folder = make("set", "--sensor_snr_db", "[12, 20]", "--level_db", "[-3, 3]")
    for i, line in enumerate(lines(folder)):
        images = [samples(folder / f"image_{i:02d}_{k}.flac") for k in range(2)]
        noise = samples(folder / str(line["mixture"])) - sum(images)
        assert 12 <= line["sensor_snr_db"] <= 20
        assert power_db(sum(images)) - power_db(noise) == pytest.approx(line["sensor_snr_db"], abs=0.02)
        levels = line["levels_db"]
        assert power_db(images[0][0]) - power_db(images[1][0]) == pytest.approx(levels[0] - levels[1], abs=0.02)
        assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.05


@pytest.mark.parametrize("rt60_s", [0.2, 0.3, 0.4])
def test_sound_decays_by_60_db_in_the_reverberation_time(rt60_s: float) -> None:
    """By Schroeder's backward integral between -5 and -25 dB."""
    response = rooms.impulse_responses(of_room(rt60_s=rt60_s), 16000)[0][0]
    decay_db = 10 * np.log10(np.cumsum(np.square(response)[::-1])[::-1] / np.square(response).sum())
    part = (decay_db < -5) & (decay_db > -25)
    slope = np.polyfit(np.flatnonzero(part) / 16000, decay_db[part], 1)[0]
    assert -60 / slope == pytest.approx(rt60_s, rel=0.2)


def test_the_direct_path_is_as_late_and_as_loud_as_it_is_long() -> None:
    mixture = of_room()
    source = np.array(mixture.sources_m[0])
    for mic, response in zip(mixture.mics_m, rooms.impulse_responses(mixture, 16000)[0], strict=True):
        distance = np.linalg.norm(source - mic)
        fine = np.fft.irfft(np.fft.rfft(response[:120]), 120 * 16) * 16  # between samples
        assert np.abs(fine).argmax() / 16 / 16000 == pytest.approx(distance / SPEED, abs=0.15 / 16000)
        assert np.abs(fine).max() == pytest.approx(1 / distance, rel=0.05)


def test_an_image_is_its_dry_source_in_the_room_of_its_line(make: Make) -> None:
    """In which the direct path to microphone 0 has gain 1."""
    folder = make("set")
    for i, line in enumerate(lines(folder)):
        responses = rooms.impulse_responses(rooms.Mixture(**line), 16000)
        for k, (response, position) in enumerate(zip(responses, line["sources_m"], strict=True)):
            distance = np.linalg.norm(np.subtract(position, line["mics_m"][0]))
            dry = samples(folder / f"dry_{i:02d}_{k}.flac")[0]
            expected = np.stack([np.convolve(dry, distance * of_mic)[: len(dry)] for of_mic in response])
            image = samples(folder / f"image_{i:02d}_{k}.flac")
            assert np.abs(image - expected).max() < 8  # what rounding the dry source adds up to
            assert np.abs(image).max() > 1000


def test_a_set_is_the_same_with_more_processes_after_a_stop_and_in_a_longer_one(
    make: Make, packed: Path, tmp_path: Path
) -> None:
    folder = make("one")
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, str(SCRIPT), str(packed), "-o", str(tmp_path / "two"), *SHORT, "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()} == written
    for name in ("mix_01.flac", "image_01_1.flac", "mixtures.json"):
        (folder / name).unlink()
    (folder / "mix_00.flac").write_bytes(b"finished")
    make("one")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {**written, "mix_00.flac": b"finished"}
    longer = make("one", "--n_mixtures", "4")
    assert lines(longer)[:3] == json.loads(written["mixtures.json"])
    assert (longer / "image_03_1.flac").exists()


def test_halves_share_no_sound_and_copies_at_other_speeds_are_left_out(make: Make, tmp_path: Path) -> None:
    settings = audiovae.PrepareSettings(validation=0.25, speeds=(0.9,))
    audiovae.prepare(make_tone_folder(tmp_path / "toy", n_speakers=4, n_files=1), tmp_path / "speeds", settings)
    corpus = audiovae.PackedCorpus(tmp_path / "speeds")
    lengths = {utterance.id: utterance.n_samples // 2 / 16000 for utterance in corpus.split("train")}
    assert any(name.endswith("@0.9") for name in lengths)
    for half in ("first", "second"):
        folder = make(half, "--half", half, "--n_mixtures", "8", corpus=tmp_path / "speeds")
        for line in lines(folder):
            for name, start in zip(line["recordings"], line["starts_s"], strict=True):
                assert not name.endswith("@0.9")
                assert start + 0.4 <= lengths[name] if half == "first" else start >= lengths[name]
    waves = {utterance.id: corpus.wave(utterance) for utterance in corpus.split("train")}
    line = lines(tmp_path / "second")[0]
    start = round(16000 * line["starts_s"][0])
    taken = waves[line["recordings"][0]][start : start + 6400]
    assert np.corrcoef(taken, samples(tmp_path / "second/dry_00_0.flac")[0])[0, 1] > 0.9999


def test_a_short_recording_is_played_again(make: Make) -> None:
    folder = make("set", "--duration_s", "2", "--half", "first", "--n_mixtures", "1")
    dry = samples(folder / "dry_00_0.flac")[0].astype(float)
    lag = 6000 + np.argmax([np.corrcoef(dry[:8000], dry[lag : lag + 8000])[0, 1] for lag in range(6000, 16000)])
    np.testing.assert_array_equal(dry[lag:], dry[: len(dry) - lag])


@pytest.mark.parametrize(("array", "spacing"), [("line", 0.05), ("circle", 0.075)])
def test_an_array_has_its_size(make: Make, array: str, spacing: float) -> None:
    """Six microphones on a circle are as far apart as its radius."""
    n_mics = 4 if array == "line" else 6
    folder = make("set", "--array", array, "--n_mics", str(n_mics), "--aperture_m", "0.15", "--n_mixtures", "1")
    mics = np.array(lines(folder)[0]["mics_m"])
    np.testing.assert_allclose(np.linalg.norm(np.diff(mics, axis=0), axis=1), spacing)
    assert samples(folder / "mix_00.flac").shape[0] == n_mics


def test_sources_stand_as_far_and_as_far_apart_as_asked_for(make: Make) -> None:
    folder = make("set", "--n_sources", "3", "--angle_deg", "[60, 180]", "--sample_rate", "8000")
    for line in lines(folder):
        centre, sources = np.mean(line["mics_m"], axis=0), np.array(line["sources_m"])
        away = sources - centre
        assert np.all((np.linalg.norm(away, axis=1) >= 1) & (np.linalg.norm(away, axis=1) <= 1.5))
        flat = away[:, :2] / np.linalg.norm(away[:, :2], axis=1, keepdims=True)
        cosines = (flat @ flat.T)[np.triu_indices(3, 1)]
        assert np.rad2deg(np.arccos(cosines.max())) == pytest.approx(line["angle_deg"])
        assert line["angle_deg"] >= 60
        assert np.all(sources >= 0.5 - 1e-9)
        assert np.all(sources[:, :2] <= np.array(line["room_m"])[:2] - 0.5)
        assert len(set(line["speakers"])) == 3
    assert soundfile.info(folder / "mix_00.flac").samplerate == 8000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n_sources", "5"], "n_sources must be from 1 to 4, got 5"),
        (["--n_mics", "1"], "n_mics must be from 2 to 8, got 1"),
        (["--duration_s", "0"], "duration_s must be positive, got 0"),
        (["--distance_m", "[2, 1]"], "distance_m must be two positive numbers, the smaller first, got 2"),
        (["--sensor_snr_db", "[0, 200]"], "sensor_snr_db must be two numbers from -100 to 100"),
        (["--height_m", "[2, 2]"], "height_m must be at least 2.1, got 2"),
        (["--distance_m", "[0.3, 1]"], "distance_m must be at least 0.40, .* got 0.3"),
        (["--rt60_s", "[0.05, 0.1]"], "rt60_s cannot be as short as 0.05 in the largest room"),
        (["--angle_deg", "[170, 180]", "--n_sources", "3"], "no place for 3 sources: angle_deg"),
        (["--distance_m", "[9, 9]"], r"no place for 2 sources: .* distance_m \(9"),
        (["--noise_snr_db", "[5, 5]"], "noise_snr_db and --noise need each other"),
        (["--sample_rate", "48000"], "sample_rate must be at most that of the corpus, 16000, got 48000"),
        (["--split", "test"], "n_sources is 2, but split 'test' has 0 speakers"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(make: Make, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        make("set", *options)
    assert not (tmp_path / "set").exists()


def test_a_folder_of_another_set_is_refused(make: Make) -> None:
    make("set", "--n_mixtures", "1")
    with pytest.raises(SystemExit, match="holds mixtures of other settings"):
        make("set", "--n_mixtures", "1", "--seed", "9")


def test_noise_that_cannot_be_used_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "noises").mkdir()
    options = ("--noise_snr_db", "[5, 5]", "--angle_deg", "[30, 180]", "--noise", str(tmp_path / "noises"))
    with pytest.raises(SystemExit, match="has no sound file"):
        make("set", *options)
    soundfile.write(tmp_path / "noises/0.wav", np.zeros(3000), 16000)
    with pytest.raises(SystemExit, match="is silent; leave it out"):
        make("set", *options)


@pytest.mark.parametrize("path", sorted(SCRIPT.parent.glob("*.yaml")), ids=lambda path: path.name)
def test_a_set_of_the_recipe_has_places_for_its_mixtures(path: Path) -> None:
    settings = rooms.RoomSettings(**yaml.safe_load(path.read_text()))
    n_sources = settings.n_sources + (settings.noise_snr_db is not None)
    room = np.array([settings.length_m[0], settings.width_m[0], settings.height_m[0]])
    for seed in range(5):
        mics, sources, _ = rooms.place(settings, room, n_sources, np.random.default_rng(seed))
        assert (len(mics), len(sources)) == (settings.n_mics, n_sources)
