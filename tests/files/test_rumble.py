"""A prior hears neither offset nor rumble, and both come back in what is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_prior, speech_like

from audiovae import AudioVAE, audio
from audiovae.errors import ModelError
from audiovae.evaluation import bound
from audiovae.files import Recording, encode_file, resynthesize_file
from audiovae.metrics import NotScored, normalise, si_sdr
from audiovae.separation import METHODS, enhance, enhance_file, enhancer
from audiovae.stft import power

RATE = 16000


def dirty(rate: int, dc: float) -> np.ndarray:
    """Speech of an RMS of about 0.02 on each of two channels, `[sample, channel]`."""
    time = np.arange(2 * rate) / rate
    speech = np.stack([0.3 * speech_like(2, pitch, rate=rate) for pitch in (120, 150)], axis=1)
    return speech + dc * (1 + 0.5 * np.sin(2 * np.pi * 4 * time))[:, None]


@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize("dc", [0.02, 0.4])
def test_offset_and_rumble_come_back(rate: int, dc: float, tmp_path: Path) -> None:
    prior = build_prior()
    speech = dirty(rate, 0)
    for name, wave in (("clean", speech), ("dirty", dirty(rate, dc))):
        soundfile.write(tmp_path / f"{name}.wav", wave, rate, subtype="FLOAT")
        resynthesize_file(prior, tmp_path / f"{name}.wav", tmp_path / f"{name}-out.wav")
    clean, other = (audio.read(tmp_path / f"{name}-out.wav")[0].T for name in ("clean", "dirty"))
    added = dirty(rate, dc) - speech
    inner = slice(rate // 4, -rate // 4)
    assert np.abs(other - clean - added)[inner].max() < 0.15 * np.abs(speech).max()
    level = Recording.open(prior.front, tmp_path / "dirty.wav").level
    assert level == pytest.approx(Recording.open(prior.front, tmp_path / "clean.wav").level, rel=0.05)


def stored(path: Path, wave: np.ndarray) -> torch.Tensor:
    """A float file of `[sample, channel]`, and its wave `[channel, sample]`."""
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return torch.from_numpy(wave.T.astype(np.float32).copy())


@pytest.mark.parametrize("dc", [0.0, 0.4, -0.4])
def test_a_wave_is_heard_as_its_file_is(dc: float, tmp_path: Path) -> None:
    """At an offset of 20 times the RMS too, and it comes back."""
    prior = build_prior()
    wave = stored(tmp_path / "in.wav", dirty(RATE, dc)[:, :1])[0]
    encoded, of_file = prior.encode(wave), encode_file(prior, tmp_path / "in.wav")
    assert float(encoded.level) == pytest.approx(of_file.level, rel=1e-4)
    torch.testing.assert_close(encoded.inference.latents, of_file.latents[0], atol=2e-3, rtol=0)
    resynthesize_file(prior, tmp_path / "in.wav", tmp_path / "out.wav")
    expected = audio.read(tmp_path / "out.wav")[0][0]
    again = prior.resynthesize(wave).numpy(force=True)
    assert si_sdr(expected - dc, again - dc) > 40
    assert again.mean() == pytest.approx(dc, abs=2e-3)
    heard = torch.from_numpy(audio.read_heard(tmp_path / "in.wav", RATE)[0][0])
    with torch.no_grad():
        bounds = [torch.manual_seed(0) and prior.log_likelihood(one).mean().item() for one in (wave, heard)]
    assert bounds[0] == pytest.approx(bounds[1], abs=1)


def test_the_channels_of_a_wave_lose_their_own_rumble() -> None:
    prior, clean = build_prior(), torch.from_numpy(dirty(RATE, 0).T.astype(np.float32).copy())
    offsets = torch.tensor([[0.4], [-0.1]])
    expected, level = prior.analyse(clean, channels=True)
    found, same = prior.analyse((clean + offsets).expand(3, 2, -1), channels=True)
    assert found.shape == (3, *expected.shape)
    assert torch.allclose(same, level.expand(3, 2), rtol=1e-3)
    quiet = power(found[1] - expected)[:, 20:-20].mean((1, 2))  # what stays of the offsets is 15 dB below the level
    assert (quiet < 0.2 * power(expected).mean((1, 2))).all()
    as_it_is, _ = prior.analyse(clean + offsets, level=level)  # as a piece of a stream, whose level is known
    torch.testing.assert_close(as_it_is, prior.stft((clean + offsets) / level.unsqueeze(-1)))


def test_a_prior_hears_a_mere_offset() -> None:
    prior = build_prior()
    offset = torch.full((RATE,), 0.25)
    torch.testing.assert_close(prior.resynthesize(offset), offset, atol=1e-4, rtol=0)


def test_speech_of_a_wave_with_an_offset_is_that_of_its_file(tmp_path: Path) -> None:
    noise = 0.005 * np.random.default_rng(0).standard_normal((2 * RATE, 2))
    prior = AudioVAE.from_pretrained(METHODS["fast"].prior)
    wave = stored(tmp_path / "in.wav", dirty(RATE, 0.4) + noise)
    enhance_file(enhancer(prior, "fast"), tmp_path / "in.wav", tmp_path / "out.wav")
    expected, found = audio.read(tmp_path / "out.wav")[0], enhance(wave, RATE, "fast").numpy()
    assert found.shape == expected.shape
    for of_file, of_wave in zip(expected, found, strict=True):
        assert si_sdr(of_file, of_wave) > 25
        assert abs(of_wave.mean()) < 0.02  # the offset is no speech


def test_a_mere_offset_comes_back_as_it_is(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.full(3 * RATE, 0.25), RATE)
    resynthesize_file(build_prior(), tmp_path / "x.wav", tmp_path / "y.wav")
    assert np.abs(audio.read(tmp_path / "y.wav")[0] - 0.25).max() < 1e-3


def test_digital_silence_inside_does_not_count(tmp_path: Path) -> None:
    prior = build_prior()
    wave = speech_like(2, 120)[None].astype(np.float32)
    pause = np.zeros((1, 2 * RATE), np.float32)
    with_pause = normalise(np.concatenate([wave[:, :RATE], pause, wave[:, RATE:]], axis=1), RATE)
    alone = normalise(wave, RATE)
    assert with_pause[:, : RATE // 2] == pytest.approx(alone[:, : RATE // 2], rel=0.05)
    torch.manual_seed(0)
    expected = bound(prior, alone)
    found = bound(prior, with_pause)
    assert "silent_frames" not in expected
    assert found["silent_frames"] == pytest.approx(2 * RATE / prior.stft.hop_length, abs=6)
    assert found["bound"] == pytest.approx(expected["bound"], abs=0.05 * abs(expected["bound"]) + 20)
    with pytest.raises(NotScored, match="silent"):
        bound(prior, pause)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_si_sdr_of_what_is_not_finite_is_not_scored(value: float) -> None:
    wave = speech_like(1, 120)
    broken = wave.copy()
    broken[100] = value
    with pytest.raises(NotScored, match="the estimate holds samples that are NaN or infinite"):
        si_sdr(wave, broken)
    with pytest.raises(NotScored, match="the reference holds samples that are NaN or infinite"):
        si_sdr(broken, wave)


def test_a_model_with_nan_weights_is_refused(tmp_path: Path) -> None:
    prior = build_prior()
    with torch.no_grad():
        next(iter(prior.vae.parameters())).view(-1)[3] = torch.nan
    prior.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds weights that are NaN or infinite \(vae\..*\); train the model again"):
        AudioVAE.from_pretrained(tmp_path)
