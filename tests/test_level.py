"""Level and bounds of a recording against loops in the test, librosa, and properties."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, speech_like
from mixtures import noisy, white
from numpy.typing import NDArray

from audiovae import STFT
from audiovae.level import (
    FramePower,
    LevelMeter,
    RumbleSplitter,
    active_level,
    spectrogram_level,
    split_rumble,
    trim_bounds,
    without_rumble,
)
from audiovae.stft import power

LENGTHS = (1, 2, 255, 256, 257, 1023, 1024, 5000, 40000)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def brute_force_level(wave: NDArray[np.floating], rate: int = RATE) -> float:
    """The definition: RMS of frames of 64 ms under a squared sine, those within 30 dB of the loudest, a quarter
    apart."""
    channels = np.atleast_2d(wave).astype(np.float64)
    hop = max(1, round(rate * 0.064 / 4))
    weights = [math.sin(math.pi * (n + 0.5) / (4 * hop)) ** 2 for n in range(4 * hop)]
    powers = []
    for t in range(1 + channels.shape[1] // hop):
        total = 0.0
        for n, weight in enumerate(weights):
            place = t * hop + n - 2 * hop
            if 0 <= place < channels.shape[1]:
                total += weight * float(np.mean(channels[:, place] ** 2))
        powers.append(total / sum(weights))
    active = [power for power in powers if power >= max(powers) * 1e-3]
    return math.sqrt(sum(active) / len(active))


def bursts(seed: int = 0) -> NDArray[np.float32]:
    """Half a second of speech-like bursts, with leading and trailing near-silence."""
    return np.concatenate(
        [1e-5 * noise(3000, seed=seed), speech_like(0.5, 120, seed), 1e-5 * noise(2100, seed=seed + 1)]
    )


WAVES = {
    "one sample": noise(1),
    "short": noise(100),
    "one frame": noise(1024),
    "noise": noise(3000),
    "bursts": bursts()[::2],
    "two channels": noise(2, 2500) * np.float32([[1.0], [0.1]]),
    "constant": np.full(2000, 0.25, np.float32),
    "a click in silence": np.eye(1, 3000, 1500, dtype=np.float32)[0],
}


@pytest.mark.parametrize("name", WAVES)
@pytest.mark.parametrize("rate", [4000, 16000])
def test_the_level_is_that_of_the_definition(name: str, rate: int) -> None:
    assert active_level(WAVES[name], rate, rumble=False) == pytest.approx(
        brute_force_level(WAVES[name], rate), rel=1e-9
    )


def test_the_frames_are_those_of_the_default_stft_at_16_khz(speech: torch.Tensor) -> None:
    """Parseval: the energy of a frame's spectrum, both halves, is n_fft times that of the windowed frame."""
    power = STFT()(speech.double()).abs().square()
    energy = (power[:, 0] + power[:, -1] + 2 * power[:, 1:-1].sum(-1)) / 1024
    frames = energy / 512  # the squared sine window sums up to half its length
    active = frames[frames >= frames.max() * 1e-3]
    assert active_level(speech.numpy(), RATE, rumble=False) == pytest.approx(float(active.mean().sqrt()), rel=1e-6)


def test_the_level_of_noise_is_its_rms() -> None:
    """Over 60 s; the first and the last frame, half empty, pull it down by less than 1 part in 1000."""
    assert active_level(0.1 * noise(60 * RATE), RATE) == pytest.approx(0.1, rel=5e-3)


def test_pauses_do_not_lower_the_level() -> None:
    burst = noise(RATE)
    padded = np.concatenate([np.zeros(3 * RATE, np.float32), burst, np.zeros(5 * RATE, np.float32)])
    assert active_level(padded, RATE) == pytest.approx(active_level(burst, RATE), rel=0.03)
    assert float(np.sqrt(np.mean(padded**2))) < 0.4  # the plain RMS does


@pytest.mark.parametrize("gain", [2.0**-30, 2.0**-3, 2.0, 2.0**30])
def test_the_level_is_homogeneous_to_the_last_bit_for_powers_of_two(gain: float) -> None:
    for seed in range(3):
        assert active_level(np.float32(gain) * bursts(seed), RATE) == gain * active_level(bursts(seed), RATE)


@pytest.mark.parametrize("gain", [1e-6, 0.1, 3.7, 1e3, -1.0])
def test_the_level_is_homogeneous(gain: float) -> None:
    wave = bursts().astype(np.float64)
    assert active_level(gain * wave, RATE) == pytest.approx(abs(gain) * active_level(wave, RATE), rel=1e-6)


@pytest.mark.parametrize("shape", [(1,), (5000,), (3, 777)])
def test_silence_has_level_zero(shape: tuple[int, ...]) -> None:
    assert active_level(np.zeros(shape, np.float32), RATE) == 0.0


def test_the_channels_of_a_recording_share_the_mean_of_their_powers() -> None:
    wave = bursts()
    assert active_level(np.stack([wave, wave, wave]), RATE) == pytest.approx(active_level(wave, RATE), rel=1e-6)
    half = active_level(np.stack([wave, 0 * wave]), RATE)
    assert half == pytest.approx(active_level(wave, RATE) / math.sqrt(2), rel=1e-6)


def test_a_meter_of_blocks_gives_the_level_of_the_whole() -> None:
    generator = np.random.default_rng(3)
    for n_channels, length in ((1, 1), (1, 5000), (2, 40000), (8, 3001)):
        wave = noise(n_channels, length)
        for longest in (1, 300, 20000):
            if longest == 1 and length > 5000:
                continue
            meter, start = LevelMeter(RATE), 0
            while start < length:
                size = int(generator.integers(0 if longest > 1 else 1, longest + 1))
                meter.push(wave[:, start : start + size])
                start += size
            assert meter.finish() == pytest.approx(active_level(wave, RATE, rumble=False), rel=1e-12)


@pytest.mark.parametrize("rate", [1000, 8000, 11025, 16000, 44100, 192000])
def test_any_rate_has_a_level(rate: int) -> None:
    """A sine fills its frames whatever their length: RMS 1 / sqrt(2)."""
    time = np.arange(max(200, 2 * rate)) / rate
    wave = np.sin(2 * np.pi * 0.237 * rate * time)
    assert active_level(wave, rate) == pytest.approx(math.sqrt(0.5), rel=0.05)


@pytest.mark.parametrize("length", LENGTHS)
def test_there_is_one_frame_more_than_whole_hops(length: int) -> None:
    meter = FramePower(np.ones(1024))
    meter.push(noise(length))
    assert len(meter.finish()) == 1 + length // 256


# Trimming ------------------------------------------------------------------------------------------------------------


def librosa_bounds(wave: NDArray[np.floating]) -> tuple[int, int]:
    return tuple(int(bound) for bound in librosa.effects.trim(wave, top_db=30)[1])  # type: ignore[return-value]


@pytest.mark.parametrize("length", [*LENGTHS, 511, 512, 513, 2048, 16383, 16384, 16385])
@pytest.mark.parametrize("shape", ["noise", "fade", "burst"])
def test_trimming_is_that_of_librosa(length: int, shape: str) -> None:
    wave = noise(length, seed=length)
    if shape == "fade":  # over 80 dB
        wave *= np.logspace(-4, 0, length, dtype=np.float32)
    if shape == "burst":
        wave *= np.where(np.abs(np.arange(length) - length // 2) < length // 8 + 1, 1, 1e-3).astype(np.float32)
    assert trim_bounds(wave) == librosa_bounds(wave)


def test_trimming_real_speech_is_that_of_librosa(data: Path) -> None:
    """With and without pauses around it."""
    files = sorted((data / "librispeech-mini").rglob("*.flac"))[::40]
    assert files
    n_trimmed = 0
    for path in files:
        wave, _ = soundfile.read(path, dtype="float32")
        for padded in (wave, np.pad(wave, (7001, 12345)), wave[: len(wave) // 3]):
            assert trim_bounds(padded) == librosa_bounds(padded), path.name
            n_trimmed += trim_bounds(padded) != (0, len(padded))
    assert n_trimmed > len(files)


def test_trimming_does_not_depend_on_the_level() -> None:
    wave = bursts()
    expected = trim_bounds(wave)
    assert expected[0] > 1500
    assert expected[1] < len(wave)
    for gain in (1e-9, 1e-3, 1e3):
        assert trim_bounds(gain * wave.astype(np.float64)) == expected


@pytest.mark.parametrize("shape", [(1,), (5000,), (2, 5000)])
def test_silence_is_trimmed_to_nothing(shape: tuple[int, ...]) -> None:
    assert trim_bounds(np.zeros(shape, np.float32)) == (0, 0)


def test_the_channels_of_a_recording_are_trimmed_together() -> None:
    wave = np.zeros((2, 20000), np.float32)
    wave[0, 5000:8000] = noise(3000)
    wave[1, 12000:15000] = noise(3000, seed=1)
    start, end = trim_bounds(wave)
    assert 5000 - 2048 < start <= 5000
    assert 15000 <= end < 15000 + 2048


SETTINGS: list[dict[str, Any]] = [
    {},
    {"n_fft": 512, "hop_length": 128},
    {"window": "hann"},
    {"n_fft": 1000, "hop_length": 250},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_level_of_a_spectrogram_is_that_of_the_wave(settings: dict[str, Any]) -> None:
    stft = STFT(**settings)
    for wave in (0.02 * white(3 * RATE), noisy(3), torch.from_numpy(speech_like(3, 120, 2))):
        found = spectrogram_level(power(stft(wave)), stft.window, RATE)
        assert float(found) == pytest.approx(active_level(wave.numpy(), RATE), rel=0.03)


def test_the_level_of_the_spectrogram_of_speech_is_that_of_the_wave(speech: torch.Tensor) -> None:
    stft = STFT()
    found = spectrogram_level(power(stft(speech)), stft.window, RATE)
    assert float(found) == pytest.approx(active_level(speech.numpy(), RATE), rel=0.01)


def test_the_level_of_the_spectrogram_of_silence_is_0() -> None:
    stft = STFT()
    assert float(spectrogram_level(power(stft(torch.zeros(4000))), stft.window, RATE)) == 0


# Rumble --------------------------------------------------------------------------------------------------------------

RATES = [1000, 8000, 11025, 16000, 44100, 48000]


def tone(frequency: float, rate: int, seconds: float = 3.0) -> NDArray[np.float32]:
    return np.cos(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate + 1).astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("frequency", "left_db"), [(0.1, -90), (10, -60), (20, -50), (40, -40)])
def test_a_tone_below_50_hz_is_rumble(rate: int, frequency: float, left_db: float) -> None:
    wave = tone(frequency, rate)
    left = (wave - split_rumble(wave, rate))[rate:-rate]
    assert np.sqrt(np.mean(left**2)) < 10 ** (left_db / 20)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("share", [0.0583, 0.083, 0.119, 0.31])
def test_a_tone_above_50_hz_is_none(rate: int, share: float) -> None:
    rumble = split_rumble(tone(max(60, share * rate), rate), rate)[rate:-rate]
    assert np.abs(rumble).max() < 3e-3


@pytest.mark.parametrize("rate", RATES)
def test_an_offset_has_no_ends(rate: int) -> None:
    offset = np.full((2, 3 * rate), 0.5, np.float32)
    assert np.abs(offset - split_rumble(offset, rate)).max() < 3e-4


@pytest.mark.parametrize("length", [1, 2, 7, 15999, 16000, 16001, 50011])
def test_rumble_does_not_depend_on_the_blocks(length: int) -> None:
    wave = noise(2, length) + 3
    expected = split_rumble(wave, RATE)
    generator = np.random.default_rng(1)
    for longest in (500, 20000):
        splitter, start, parts = RumbleSplitter(RATE, 2), 0, []
        while start < length:
            size = int(generator.integers(0, longest + 1))
            parts.append(splitter.push(wave[:, start : start + size]))
            start += size
        parts.append(splitter.finish())
        waves, rumbles = (np.concatenate(half, axis=1) for half in zip(*parts, strict=True))
        assert np.array_equal(waves, wave)
        np.testing.assert_allclose(rumbles, expected, atol=2e-5)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_neither_level_nor_trimming_hears_dc_and_rumble(rate: int) -> None:
    wave = 0.05 * speech_like(2, 120, rate=rate)
    expected, above = active_level(wave, rate), wave - split_rumble(wave, rate)
    for added in (0.5, -0.05, 0.01 * tone(20, rate, 2), 0.02 * tone(3, rate, 2)):
        dirty = (wave + added).astype(np.float32)
        assert active_level(dirty, rate) == pytest.approx(expected, rel=0.05)
        heard = without_rumble(dirty[None], rate)
        assert np.abs(np.subtract(trim_bounds(heard.above[0]), trim_bounds(above))).max() <= 2048
        np.testing.assert_allclose(heard.wave + heard.excess, dirty[None], atol=1e-7)
        left = np.sqrt(np.mean(split_rumble(heard.wave, rate) ** 2))
        assert left < 1.1 * 10 ** (-15 / 20) * expected


def test_quiet_rumble_is_left_to_the_last_bit() -> None:
    wave = (0.05 * speech_like(2, 120) + 1e-4)[None].astype(np.float32)
    heard = without_rumble(wave, RATE)
    assert np.array_equal(heard.wave, wave)
    assert not heard.excess.any()


@pytest.mark.parametrize("value", [1.0, 1e-3, 0.1234567, 1e-30])
def test_a_mere_offset_is_silence(value: float) -> None:
    wave = np.full((1, 3 * RATE), value, np.float32)
    assert active_level(wave, RATE) < 1e-3 * value
