"""What the files compute, before it is exported: against NumPy, SciPy and the library. Ten seconds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import RATE, speech_like
from mixtures import make_alive, untrained
from scipy.special import exp1

from audiovae import AudioVAE
from audiovae.export.graphs import DFT, Resynthesis, ShortTime
from audiovae.export.probes import Probes
from audiovae.export.step import StreamStep, exponential_integral
from audiovae.separation import stream, stream_speech


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("n_fft", [2, 17, 256, 400, 1023, 1024])
def test_two_small_matrices_are_the_dft(n_fft: int) -> None:
    dft, frames = DFT(n_fft), torch.randn(3, n_fft, generator=torch.Generator().manual_seed(0))
    real, imag = dft(frames)
    expected = np.fft.rfft(frames.double().numpy())
    np.testing.assert_allclose(real + 1j * imag, expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(dft.inverse(real, imag), frames, atol=1e-5)
    spectrum = torch.randn(2, 2, dft.n_freqs, generator=torch.Generator().manual_seed(1)).double()
    again = np.fft.irfft(spectrum[0] + 1j * spectrum[1], n_fft)  # imaginary parts of DC and Nyquist do not count
    np.testing.assert_allclose(dft.inverse(*spectrum.float()), again, atol=1e-5)


@pytest.mark.parametrize("n_samples", [1, 63, 64, 1000])
def test_the_stft_in_real_numbers_is_the_stft(n_samples: int, frame: AudioVAE) -> None:
    wave = torch.randn(2, n_samples, generator=torch.Generator().manual_seed(0))
    short_time = ShortTime(frame.stft)
    real, imag = short_time(wave)
    expected = frame.stft(wave)
    torch.testing.assert_close(torch.complex(real, imag), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(short_time.inverse(real, imag, n_samples), wave, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rumble", "level", "most"), [(0.0, 0.05, 1e-5), (0.0, 0.0, 5e-3), (0.3, 0.05, 2e-4), (0.3, 0.0, 0.03)]
)
def test_resynthesis_is_that_of_the_library(rumble: float, level: float, most: float) -> None:
    """With a given level; and where level and rumble are measured, which it does in other ways, nearly."""
    prior = AudioVAE.from_pretrained("speech-16k-live")
    tone = rumble * np.sin(2 * np.pi * 20 * np.arange(RATE) / RATE)
    wave = torch.from_numpy((0.1 * speech_like(1.0, 120) + tone).astype(np.float32))
    found = Resynthesis(prior)(wave[None], torch.tensor([level]))[0]
    assert relative(found, prior.resynthesize(wave, level=level or None)) < most


def test_silence_is_resynthesised_as_silence(frame: AudioVAE) -> None:
    assert not Resynthesis(frame)(torch.zeros(1, 500), torch.zeros(1)).any()


def test_the_exponential_integral_is_that_of_scipy() -> None:
    x = torch.logspace(-6, 1.9, 500)
    np.testing.assert_allclose(exponential_integral(x), exp1(x.double().numpy()), rtol=1e-6)


def test_the_signs_are_those_of_numpy() -> None:
    probes, generator = Probes(4, 129), np.random.default_rng(0)
    state = probes.start
    for n in (1, 2, 3, *[4] * 20, 1, 3):
        signs, state = probes(state, torch.tensor([n]))
        np.testing.assert_array_equal(signs[4 - n :], 2 * generator.integers(0, 2, (n, 129), np.int8) - 1)


@pytest.mark.parametrize("lookahead", [0, 5])
def test_steps_are_the_stream_of_the_library(lookahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a whole sound, with shorter steps of the latents: at their own length rounding grows from frame to frame,
    so that the first frames alone are alike.
    """
    prior = make_alive(untrained("DynamicVAE", causal=True, dilations=(1, 2), prior_dilations=(1, 2)))
    wave = (0.1 * speech_like(0.2, 120) + 0.01 * np.random.default_rng(0).standard_normal(3200)).astype(np.float32)
    for length, n_alike in ((stream_speech.STEP, 8), (0.1, None)):
        monkeypatch.setattr(stream_speech, "STEP", length)
        live = stream(prior, lookahead=lookahead)
        expected = np.concatenate([live.push(wave), live.flush()])[live.latency :]
        step = StreamStep(prior, lookahead)
        state, spoken = step.start(), []
        padded = np.concatenate([wave, np.zeros(64 * step.n_early, np.float32)])
        for samples in torch.from_numpy(padded).split(64):
            speech, state = step(samples, state)
            spoken.append(speech)
        found = torch.cat(spoken)[64 * step.n_early :].numpy()
        assert (step.latency, len(found)) == (live.latency, len(expected))
        end = None if n_alike is None else 64 * n_alike
        error = np.linalg.norm((found - expected)[:end]) / np.linalg.norm(expected[:end])
        assert error < 1e-4, length
