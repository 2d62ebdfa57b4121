"""Recordings of several microphones as files: parts that sum up, blocks in order, side by side, broken ones."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE
from numpy.typing import NDArray

from audiovae import audio
from audiovae.errors import AudioError, AudiovaeError
from audiovae.metrics import si_sdr
from audiovae.separation import RoomFile, Separator, TakenApart, blocks, separate_file, separate_files, separator
from audiovae.separation.directions import steered
from audiovae.stft import STFT, Front

SPEED = 343.0  # m/s


def room_images(seconds: float = 3.0, n_channels: int = 3, seed: int = 0, rate: int = RATE) -> NDArray[np.float64]:
    """Two sources that come and go, the second half as loud, with delays of their own: `[source, sample, channel]`."""
    generator = np.random.default_rng(seed)
    n_samples = round(seconds * rate)
    images = np.zeros((2, n_samples, n_channels))
    for source, period in enumerate((0.35, 0.5)):
        on = np.arange(n_samples) // round(period * rate) % 2 == source
        wave = 0.1 / (1 + source) * generator.standard_normal(n_samples) * np.where(on, 1.0, 0.05)
        for channel in range(n_channels):
            delay = (0, 4)[source] + (3, -1)[source] * channel
            images[source, :, channel] = (1 - 0.15 * channel) * np.roll(wave, delay)
    return images + 1e-4 * generator.standard_normal(images.shape)


def stored(path: Path, images: NDArray[np.floating], rate: int = RATE, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, images.sum(0) if images.ndim == 3 else images, rate, subtype=subtype)
    return path


def quick(n_iterations: int = 10, rate: int = RATE, kind: type[Separator] = Separator) -> Separator:
    usual = separator(2, "iva", sample_rate=rate)
    settings = replace(usual.settings, n_iterations=n_iterations)
    return kind(usual.front, usual.sources, usual.starts, usual.spatial, settings, usual.finish)


def targets(folder: Path, stem: str = "x") -> list[Path]:
    return [folder / f"{stem}-{name}.wav" for name in ("1", "2", "noise")]


def read(paths: list[Path]) -> NDArray[np.int64]:
    """In steps of 16 bits, `[file, sample, channel]`."""
    return np.stack([soundfile.read(path, dtype="int16", always_2d=True)[0] for path in paths]).astype(np.int64)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds make four blocks."""
    monkeypatch.setattr(blocks, "BLOCK_SECONDS", 1.5)
    monkeypatch.setattr(blocks, "OVERLAP_SECONDS", 0.5)


@pytest.mark.parametrize("rate", [RATE, 22050])
def test_files_sum_to_the_mixture_with_its_rumble_the_loudest_first(tmp_path: Path, rate: int) -> None:
    images = room_images(rate=rate)[::-1]  # the quieter is the first
    hum = 0.2 * np.sin(2 * np.pi * 20 * np.arange(images.shape[1]) / rate) + 0.05
    source = stored(tmp_path / "x.wav", images.sum(0) + hum[:, None], rate)
    done = separate_file(quick(), source, targets(tmp_path / "out"))
    assert [writer.path for writer in done.sources] == targets(tmp_path / "out")
    parts, mixture = read(targets(tmp_path / "out")), read([source])[0]
    assert np.abs(parts.sum(0) - mixture).max() <= len(parts)  # one step each
    infos = [audio.inspect(path) for path in targets(tmp_path / "out")]
    assert {(i.sample_rate, i.n_samples, i.n_channels, i.subtype) for i in infos} == {(rate, len(mixture), 3, "PCM_16")}
    energy = np.square(parts / 2**15).mean((1, 2))
    assert energy[0] > 1.5 * energy[1]
    assert done.levels_db == pytest.approx(10 * np.log10(energy), abs=0.01)
    above = parts[-1, rate // 4 : -rate // 4, 0] / 2**15 - hum[rate // 4 : -rate // 4]
    assert above.std() < 0.4 * hum.std()  # the hum is in the noise
    for n, image in enumerate(images[::-1]):
        if rate == RATE:
            assert si_sdr(image[:, 0], parts[n, :, 0] / 2**15) > 5  # what is left of the hum is 15 dB down


class Swapping(Separator):
    """Every second block has its sources the other way round."""

    calls = 0

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        found = super().__call__(*arguments, **more)
        Swapping.calls += 1
        if Swapping.calls % 2:
            return found
        return [replace(one, images=one.images[[1, 0, 2]]) for one in found]


@pytest.mark.usefixtures("short_blocks")
def test_sources_keep_their_order_over_blocks_that_swap_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = room_images(5.0)
    source = stored(tmp_path / "x.wav", images)
    monkeypatch.setattr(Swapping, "calls", 0)
    separate_file(quick(), source, targets(tmp_path / "usual"))
    separate_file(quick(kind=Swapping), source, targets(tmp_path / "swapped"))
    assert Swapping.calls == 4
    parts = read(targets(tmp_path / "swapped"))
    np.testing.assert_array_equal(parts, read(targets(tmp_path / "usual")))
    assert np.abs(parts.sum(0) - read([source])[0]).max() <= len(parts)
    for start in range(0, 5 * RATE, RATE):  # each second has its own block or two
        for image, part in zip(images, parts, strict=False):
            assert si_sdr(image[start : start + RATE, 0], part[start : start + RATE, 0] / 2**15) > 3


def test_sources_that_are_silent_where_blocks_overlap_are_known_by_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "OVERLAP_SECONDS", 0.5)
    generator = np.random.default_rng(0)
    images = np.zeros((3, 3, 4 * RATE), np.float32)
    for n, image in enumerate(images):
        wave = generator.standard_normal(4 * RATE)
        for channel in range(3):
            image[channel] = np.roll(wave, (n - 1) * 2 * channel)
    images[1:, :, 3 * RATE // 2 : 5 * RATE // 2] = 0  # in the middle, the first is heard alone
    half, overlap = 2 * RATE, RATE // 4
    for order in itertools.permutations(range(3)):
        chain = blocks.Chain(RATE)
        left, right = (images + 0.02 * generator.standard_normal(images.shape) for _ in range(2))  # what is not perfect
        parts = [chain.push(torch.from_numpy(left[..., : half + overlap]).float(), False)]
        parts.append(chain.push(torch.from_numpy(right[list(order)][..., half - overlap :]).float(), True))
        assert (torch.cat(parts, -1) - torch.from_numpy(images)).abs().max() < 0.2


@pytest.mark.usefixtures("short_blocks")
def test_no_block_is_longer_than_two(tmp_path: Path) -> None:
    longest: list[int] = []

    class Spy(Separator):
        def __call__(self, spectrograms: Any, seeds: Any, waves: Any = None) -> Any:
            longest.append(max(wave.shape[1] for wave in waves))
            return super().__call__(spectrograms, seeds, waves=waves)

    separate_file(quick(1, kind=Spy), stored(tmp_path / "x.wav", room_images(8.0)), targets(tmp_path / "out"))
    assert max(longest) < 2 * 1.5 * RATE
    assert len(longest) == 1 + int((8 - 3) / 1.0) + 1


@pytest.mark.usefixtures("short_blocks")
def test_a_batch_equals_its_members_and_minds_no_broken_one(tmp_path: Path) -> None:
    sources = [
        stored(tmp_path / "a.wav", room_images(3.0)),
        stored(tmp_path / "b.wav", room_images(4.5, 2, 1)),
        stored(tmp_path / "mono.wav", room_images(1.0).sum(0)[:, 0]),
        stored(tmp_path / "c.wav", room_images(2.0, 3, 2)),
        stored(tmp_path / "cut.wav", room_images(2.0)),
    ]
    os.truncate(sources[4], 3000)
    run = quick()
    for name in "abc":
        separate_file(run, tmp_path / f"{name}.wav", targets(tmp_path / "alone", name))
    seconds: list[float] = []
    files = [RoomFile(source, targets(tmp_path / "out", source.stem), seed=i) for i, source in enumerate(sources)]
    done = separate_files(run, files, progress=seconds.append)
    assert [type(one) for one in done] == [TakenApart, TakenApart, AudioError, TakenApart, AudioError]
    assert sum(seconds) == pytest.approx(3.0 + 4.5 + 2.0)
    for name in "abc":
        together, alone = read(targets(tmp_path / "out", name)), read(targets(tmp_path / "alone", name))
        np.testing.assert_allclose(together, alone, atol=33)  # 1e-3 of full scale
    assert len(list((tmp_path / "out").iterdir())) == 9  # nothing half done


def test_what_runs_along_writes_nothing_and_the_first_block_is_kept_where_asked(tmp_path: Path) -> None:
    source = stored(tmp_path / "x.wav", room_images(2.0))
    along, done = separate_files(
        quick(), [RoomFile(source, None), RoomFile(source, targets(tmp_path), keep_first=True)]
    )
    assert along is None
    assert isinstance(done, TakenApart)
    assert done.first is not None
    assert done.first.separation is not None
    assert len(done.objective) == 10
    torch.testing.assert_close(done.first.images.sum(0), done.first.mixture)
    shown = done.first.images[0].T.numpy() * done.first.recording.level
    np.testing.assert_allclose(shown, read(targets(tmp_path))[0] / 2**15, atol=2**-15)


def test_an_interrupt_leaves_no_half_file_and_what_stood_there(tmp_path: Path) -> None:
    source = stored(tmp_path / "x.wav", room_images(1.0))
    targets(tmp_path)[0].write_text("of before")

    def interrupt(seconds: float) -> None:
        assert len([path for path in tmp_path.iterdir() if "partial" in path.name]) == 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        separate_files(quick(1), [RoomFile(source, targets(tmp_path))], progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"x.wav", "x-1.wav"}
    assert targets(tmp_path)[0].read_text() == "of before"


@pytest.mark.parametrize("name", ["dead", "twice", "silence", "offset", "clipped", "band", "pause"])
def test_odd_recordings_come_out_whole(tmp_path: Path, name: str) -> None:
    x = room_images(2.0).sum(0)
    band = np.fft.rfft(x, axis=0)
    band[len(band) // 4 :] = 0
    odd = {
        "dead": x * np.array([1, 0, 1]),
        "twice": x[:, [0, 0, 1]],
        "silence": 0 * x,
        "offset": 0 * x + 0.1,
        "clipped": np.clip(20 * x, -1, 1),
        "band": np.fft.irfft(band, axis=0),
        "pause": x * (np.arange(len(x)) < RATE)[:, None],
    }
    source = stored(tmp_path / "x.wav", odd[name])
    done = separate_file(quick(), source, targets(tmp_path / "out"))
    parts, mixture = read(targets(tmp_path / "out")), read([source])[0]
    if not any(writer.clips for writer in done.sources):
        assert np.abs(parts.sum(0) - mixture).max() <= len(parts)
    assert done.without_sound == ((2,) if name == "dead" else ())
    if name == "dead":
        assert not parts[:2, :, 1].any()
    if name in ("silence", "offset"):
        assert not parts[:2].any() or np.abs(parts[:2]).max() <= 1


def test_one_microphone_and_too_few_are_refused_with_the_remedy(tmp_path: Path) -> None:
    mono = stored(tmp_path / "x.wav", room_images(1.0).sum(0)[:, 0])
    with pytest.raises(AudioError, match=r"x\.wav: has 1 channel, and sources in space need two or more microphones"):
        separate_file(quick(), mono, targets(tmp_path / "out"))
    two = stored(tmp_path / "y.wav", room_images(1.0, 2))
    (done,) = separate_files(quick(), [RoomFile(two, targets(tmp_path / "out"))], least_channels=3)
    assert isinstance(done, AudiovaeError)
    assert "y.wav: has 2 channels, and the method needs 3" in str(done)
    half_dead = stored(tmp_path / "z.wav", room_images(1.0).sum(0) * np.array([1, 0, 0]))
    with pytest.raises(AudioError, match="has 1 channel with sound, and the method needs 2"):
        separate_file(quick(), half_dead, targets(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*"))


def test_microphones_in_files_of_their_own_are_read_as_one(tmp_path: Path) -> None:
    x = room_images(1.0).sum(0)
    paths = [stored(tmp_path / f"{c}.wav", x[:, c]) for c in range(3)]
    whole = stored(tmp_path / "whole.wav", x)
    info = audio.inspect_together(paths, "all.wav")
    assert (info.path, info.n_channels, info.n_samples) == (Path("all.wav"), 3, RATE)
    found = np.concatenate(list(audio.blocks(info, 5000)), axis=1)
    np.testing.assert_array_equal(found, audio.read(whole)[0])
    longer = stored(tmp_path / "longer.wav", np.concatenate([x, x[:10]])[:, 0])
    with pytest.raises(AudioError, match=r"longer\.wav: has 16010 samples, and .*0\.wav has 16000; microphones"):
        audio.inspect_together([*paths, longer], "all.wav")
    slower = stored(tmp_path / "slower.wav", x[:, 0], 8000)
    with pytest.raises(AudioError, match=r"slower\.wav: has 8000 Hz, and .*0\.wav has 16000"):
        audio.inspect_together([*paths, slower], "all.wav")


@pytest.mark.parametrize("azimuth", [0, 77, 201, 340])
def test_a_plane_wave_comes_from_where_it_comes_from(azimuth: int) -> None:
    positions = 0.05 * np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0.0]]) + np.array([2.0, 3.0, 1.5])
    towards = np.array([np.cos(np.deg2rad(azimuth)), np.sin(np.deg2rad(azimuth)), 0])
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(RATE))
    turn = np.exp(2j * np.pi * np.fft.rfftfreq(RATE, 1 / RATE)[:, None] * (positions @ towards) / SPEED)
    image = torch.from_numpy(np.fft.irfft(spectrum[:, None] * turn, axis=0).T.copy()).float()
    found = steered(image, positions, Front(STFT(), RATE))
    assert abs((found.azimuth_deg - azimuth + 180) % 360 - 180) <= 1
    assert found.response[found.azimuth_deg] > 0.9
    assert found.mirrored_deg is None


def test_a_line_of_microphones_does_not_tell_its_sides_apart() -> None:
    image = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)).expand(3, -1)
    positions = np.array([[0.0, 0, 1], [0.0, 0.1, 1], [0.0, 0.2, 1]])  # broadside: from -x or x
    found = steered(image, positions, Front(STFT(), RATE))
    assert {found.azimuth_deg, found.mirrored_deg} == {0, 180}
