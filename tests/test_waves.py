"""Waves: resampling on their device."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from scipy.signal import firwin, lfilter

from audiovae.audio import resample, resampled_length
from audiovae.waves import at_rate, resample_on_device

needs_torchaudio = pytest.mark.skipif(find_spec("torchaudio") is None, reason="torchaudio is not installed")


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_that_is_none_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match=f"the sample rate must be a whole number of Hz above 0, got {rate}"):
        at_rate(torch.zeros(10), rate, 16000)


@needs_torchaudio
@pytest.mark.parametrize(("rate", "new_rate"), [(48000, 16000), (44100, 16000), (16000, 44100), (8000, 16000)])
def test_on_a_device_a_wave_is_resampled_as_on_the_cpu(rate: int, new_rate: int) -> None:
    noise = np.random.default_rng(0).standard_normal((2, rate // 2 + 1))
    wave = lfilter(firwin(401, 0.85 * min(1, new_rate / rate)), 1, noise).astype(np.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = resample_on_device(torch.from_numpy(wave).to(device), rate, new_rate).numpy(force=True)
    assert found.shape == (2, resampled_length(wave.shape[1], rate, new_rate))
    inner = slice(2000 * new_rate // rate, -2000 * new_rate // rate)  # at its ends the filters differ
    expected = resample(wave, rate, new_rate)[:, inner]
    assert np.linalg.norm(found[:, inner] - expected) < 10 ** (-75 / 20) * np.linalg.norm(expected)
