"""What a file holds above the prior's highest frequency: kept where speech is, and nothing below changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, speech_like
from numpy.typing import NDArray

from audiovae import STFT, AudioVAE, audio
from audiovae.cli.main import main
from audiovae.files.recording import Recording
from audiovae.metrics import si_sdr
from audiovae.separation import METHODS, blocks, enhance, enhance_file, enhancer, files
from audiovae.separation.upper_band import UpperBand, reaches_above
from audiovae.stft import Front, power

Wave = NDArray[np.floating]
FRONT = Front(STFT(), RATE)
SILENT_DB = -300.0


def between(wave: Wave, rate: int, lowest: float, highest: float = np.inf) -> Wave:
    spectrum = np.fft.rfft(wave)
    hz = np.fft.rfftfreq(wave.shape[-1], 1 / rate)
    return np.fft.irfft(np.where((hz >= lowest) & (hz < highest), spectrum, 0), wave.shape[-1])


def level_db(wave: Wave) -> float:
    return float(10 * np.log10(np.mean(np.square(wave)) + 10 ** (SILENT_DB / 10)))


def hiss(seconds: float, rate: int, seed: int = 0) -> Wave:
    return np.random.default_rng(seed).standard_normal(round(seconds * rate))


def fricatives(seconds: float, rate: int) -> Wave:
    """Hiss above 3 kHz, a tenth of a second in three."""
    sounding = np.arange(round(seconds * rate)) / rate % 0.3 < 0.1
    return 0.1 * sounding * between(hiss(seconds, rate, 1), rate, 3000)


def stored(path: Path, wave: Wave, rate: int) -> Path:
    """`[sample]` or `[channel, sample]`."""
    soundfile.write(path, wave.T, rate, subtype="FLOAT")
    return path


def upper_speech(path: Path, speech: Wave, noise: Wave, rate: int, cuts: tuple[int, ...] = ()) -> Wave:
    """That of a file `[channel, sample]`, by what is below in speech and noise, `[sample]`, in stretches that end at
    these frames.
    """
    recording = Recording.open(FRONT, path)
    below = [
        power(
            FRONT.stft(torch.from_numpy(audio.resample(part.astype(np.float32), rate, RATE) / (recording.level or 1)))
        )
        for part in (speech, noise)
    ]
    upper, n_left, taken = UpperBand(recording), len(speech), []
    for start, end in zip((0, *cuts), (*cuts, len(below[0])), strict=True):
        last = end == len(below[0])
        upper.push(below[0][start:end], below[1].mean(0).expand(end - start, -1), last)
        taken.append(upper.take(n_left if last else (end - 1) * FRONT.stft.hop_length * rate // RATE))
        n_left -= taken[-1].shape[1]
    return np.concatenate(taken, axis=1)


@pytest.mark.parametrize("rate", [22050, 44100, 48000, 96000])
def test_speech_comes_out_of_noise_in_one_stretch_or_several(tmp_path: Path, rate: int) -> None:
    speech, noise = fricatives(6, rate), 0.05 * hiss(6, rate)
    path = stored(tmp_path / "x.wav", speech + noise, rate)
    truth = between(speech, rate, 8000, 24000)
    before = si_sdr(truth, between(speech + noise, rate, 8000, 24000))
    whole, cut = (between(upper_speech(path, speech, noise, rate, cuts)[0], rate, 8000) for cuts in ((), (230,)))
    assert si_sdr(truth, whole) > before + 4
    assert abs(level_db(whole) - level_db(truth)) < 2
    assert si_sdr(whole, cut) > 20


def test_noise_alone_goes_and_clean_speech_stays(tmp_path: Path) -> None:
    speech, noise, rate = fricatives(6, 48000), 0.05 * hiss(6, 48000), 48000
    gone = upper_speech(stored(tmp_path / "noise.wav", noise, rate), 1e-3 * speech, noise, rate)
    assert level_db(gone) < level_db(between(noise, rate, 8000)) - 15
    kept = upper_speech(stored(tmp_path / "speech.wav", speech, rate), speech, 1e-3 * noise, rate)[0]
    assert si_sdr(between(speech, rate, 8000), between(kept, rate, 8000)) > 25
    heard = audio.resample(audio.resample(speech.astype(np.float32), rate, RATE), RATE, rate) + kept
    crossing = (between(wave, rate, 7000, 8200) for wave in (speech, heard))
    assert si_sdr(*crossing) > 20


def test_cracks_that_below_nobody_took_for_noise_go(tmp_path: Path) -> None:
    rate, speech = 48000, fricatives(6, 48000)
    cracks = np.zeros_like(speech)
    cracks[rate // 5 :: rate // 10 * 3] = 3.0  # between the fricatives
    path = stored(tmp_path / "x.wav", speech + cracks, rate)
    truth = between(speech, rate, 8000)
    before = si_sdr(truth, between(speech + cracks, rate, 8000))
    found = between(upper_speech(path, speech + cracks, 1e-3 * hiss(6, rate), rate)[0], rate, 8000)
    assert si_sdr(truth, found) > before + 6


def test_a_band_with_hardly_any_noise_is_no_worse_for_it(tmp_path: Path) -> None:
    rate, time = 48000, np.arange(6 * 48000) / 48000
    speech = fricatives(6, rate) * 10 ** (-1.1 * (time % 1.5))  # some are fainter than others
    below = between(fricatives(6, rate) * 10 ** (-1.1 * (1.5 - time % 1.5)), rate, 0, 8000)  # where others are
    noise = 1e-3 * hiss(6, rate)
    path = stored(tmp_path / "x.wav", below + between(speech, rate, 8000) + noise, rate)
    truth = between(speech, rate, 9000)
    before = si_sdr(truth, between(speech + noise, rate, 9000))
    after = si_sdr(truth, between(upper_speech(path, below, noise, rate)[0], rate, 9000))
    assert after > before - 0.5


def test_where_nothing_is_nothing_comes(tmp_path: Path) -> None:
    rate, noise = 48000, 0.01 * hiss(3, 48000)
    for name, sound in {"to 7 kHz": between(noise, rate, 0, 7000), "silence": 0 * noise}.items():
        found = upper_speech(stored(tmp_path / f"{name}.wav", sound, rate), sound, noise, rate)
        assert level_db(between(found, rate, 7800)) < max(level_db(sound) - 60, SILENT_DB + 1)


def test_channels_share_one_gain(tmp_path: Path) -> None:
    speech, noise, rate = fricatives(3, 44100), 0.05 * hiss(3, 44100), 44100
    path = stored(tmp_path / "x.wav", np.stack([1.5, -0.5])[:, None] * (speech + noise), rate)
    left, right = upper_speech(path, speech, noise, rate)
    np.testing.assert_allclose(left, -3 * right, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "front_rate", "reaches"),
    [
        (16000, 16000, False),
        (8000, 16000, False),
        (16001, 16000, True),
        (44100, 16000, True),
        (48000, 48000, False),
        (96000, 48000, False),
        (16000, 8000, True),
    ],
)
def test_it_is_there_where_the_file_holds_more_than_the_prior_hears(
    tmp_path: Path, rate: int, front_rate: int, reaches: bool
) -> None:
    path = stored(tmp_path / "x.wav", 0.1 * hiss(0.2, rate), rate)
    assert reaches_above(Recording.open(Front(STFT(), front_rate), path)) == reaches


@pytest.mark.parametrize(
    ("rate", "n_samples"),
    [(44100, 60000), (48000, 48000), (16001, 20000), (192000, 200000), (44100, 1), (48000, 700)],
)
def test_of_files_the_parts_sum_to_the_whole_and_below_nothing_changes(
    prior: AudioVAE, tmp_path: Path, rate: int, n_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", 30)
    monkeypatch.setattr(blocks, "OVERLAP_FRAMES", 10)
    seconds = n_samples / rate
    noisy = (speech_like(seconds, 120, 0, rate) + 0.03 * hiss(seconds, rate)) * np.array([[1.0], [0.5]])
    source = stored(tmp_path / "x.wav", noisy.astype(np.float32), rate)
    run = enhancer(prior, "fast", mixed_precision=False)
    enhance_file(run, source, tmp_path / "speech.wav", tmp_path / "rest.wav")
    speech, rest = (soundfile.read(tmp_path / f"{name}.wav", always_2d=True)[0].T for name in ("speech", "rest"))
    np.testing.assert_allclose(speech + rest, noisy, atol=1e-5)
    if n_samples < 1000:
        return
    monkeypatch.setattr(files, "reaches_above", lambda recording: False)
    enhance_file(run, source, tmp_path / "without.wav")
    without = soundfile.read(tmp_path / "without.wav", always_2d=True)[0].T
    change = speech - without
    assert level_db(between(change, rate, 0, 7000)) < level_db(between(without, rate, 0, 7000)) - 50
    if rate in (44100, 48000):
        assert level_db(between(change, rate, 8000)) > level_db(between(noisy, rate, 8000)) - 20


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("enhance --method fast", "whose gain follows from what was found below"),
        ("resynthesize", "which the output lacks"),
    ],
)
def test_verbs_say_what_they_do_with_it(
    model_folder: Path, tmp_path: Path, verb: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [stored(tmp_path / f"{rate}.wav", speech_like(0.3, 120, 0, rate), rate) for rate in (16000, 48000)]
    command = f"{verb} {' '.join(map(str, sources))} -o {tmp_path}/out --model {model_folder} --device cpu"
    assert main(command.split()) == 0
    assert f"1 of 2 files: sound above 8000 Hz, {said}" in capsys.readouterr().err


def test_a_wave_is_enhanced_as_its_file_is(tmp_path: Path) -> None:
    rate = 48000
    noise = np.random.default_rng(0).standard_normal((2, 2 * rate)).astype(np.float32)
    time = np.arange(2 * rate) / rate
    wave = 0.01 * noise + 0.2 * noise[::-1] * (np.sin(2 * np.pi * 2 * time) > 0).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", wave.T, rate, subtype="FLOAT")
    prior = AudioVAE.from_pretrained(METHODS["fast"].prior)
    enhance_file(enhancer(prior, "fast"), tmp_path / "in.wav", tmp_path / "out.wav")
    expected = soundfile.read(tmp_path / "out.wav", dtype="float32")[0].T
    found = enhance(wave, rate, "fast")
    assert found.shape == wave.shape
    above = [np.fft.rfft(x)[:, 10000 * 2 :] for x in (expected, found)]
    assert np.linalg.norm(above[0]) > 1
    assert np.linalg.norm(above[1] - above[0]) < 0.05 * np.linalg.norm(above[0])
