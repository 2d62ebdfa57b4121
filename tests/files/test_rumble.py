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
from audiovae.files import Recording, resynthesize_file
from audiovae.metrics import NotScored, normalise, si_sdr

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
