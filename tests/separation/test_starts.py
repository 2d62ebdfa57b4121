"""Where inference begins: the quiet spectrum of a recording, followed over time, and first guesses of sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import RATE
from mixtures import mixture_of, random_power, white

from audiovae import AudioVAE
from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.separation import even_start, quiet_start
from audiovae.separation.starts import quiet_spectrum, quiet_track
from audiovae.stft import power


def test_the_quiet_track_follows_a_noise_that_rises_and_starts_where_it_is_told() -> None:
    rise = np.where(np.arange(1000) < 500, 1.0, 30.0)[:, None]
    power_ = np.random.default_rng(0).exponential(size=(1000, 40)) * rise
    track = quiet_track(torch.from_numpy(power_))
    assert track.shape == (1000, 40)
    assert torch.allclose(track[:300].mean(0), quiet_spectrum(torch.from_numpy(power_[:500])), rtol=0.3)
    assert track[700:].mean() == pytest.approx(30 * float(track[:300].mean()), rel=0.05)
    first = torch.full((40,), 7.0, dtype=torch.float64)
    told = quiet_track(torch.from_numpy(power_), first)
    assert torch.equal(told[0], first)
    assert torch.equal(told[64:], track[64:])
    short = torch.from_numpy(power_[:30])
    assert torch.allclose(quiet_track(short), quiet_spectrum(short).expand(30, -1))


@pytest.mark.parametrize("gain", [1e-2, 1.0])
def test_the_quiet_spectrum_of_white_noise_is_its_variance_whatever_bursts_in(prior: AudioVAE, gain: float) -> None:
    """The sum of the squared window, but for DC and Nyquist."""
    p = power(prior.stft(gain * white(60 * RATE)))[:, 1:-1]
    found = quiet_spectrum(p)
    expected = gain**2 * float(prior.stft.window.square().sum())
    assert (found / expected - 1).abs().max() < 0.25
    assert float(found.mean()) == pytest.approx(expected, rel=0.15)
    p[1000:1030] *= 1e6
    assert torch.allclose(quiet_spectrum(p), found, rtol=0.05)


@pytest.mark.parametrize("n_frames", [1, 2, 63, 64, 65, 66, 127, 128, 129, 193, 257, 321])
def test_every_frame_of_the_quiet_track_is_worked_out(n_frames: int) -> None:
    """Memory that nobody wrote to holds NaN here; of a noise that never changes all frames are about the same."""
    power_ = torch.from_numpy(np.random.default_rng(0).exponential(1.0, (n_frames, 65)))
    torch.use_deterministic_algorithms(True)
    try:
        track = quiet_track(power_)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.isfinite(track).all()
    assert (track.mean(-1) / track.mean()).log10().abs().max() < 0.3


def test_speech_begins_as_what_spectral_subtraction_leaves_and_noise_as_the_quiet_track() -> None:
    """The gain 1 - 3 q / P, at least a tenth, entry by entry; the track goes on into the padding as it ended."""
    powers = [random_power(n, 6, n) for n in (30, 20)]
    speech, noise = quiet_start(mixture_of(powers, padding=2)).psds
    assert speech.shape == noise.shape == (2, 32, 6)
    for i, p in enumerate(powers):
        track = quiet_track(p)
        assert torch.allclose(noise[i, : len(p)], track)
        assert torch.allclose(noise[i, len(p) :], track[-1].expand(32 - len(p), -1))
        gains = [max(0.1, 1 - 3 * float(q) / float(x)) for q, x in zip(track.flatten(), p.flatten(), strict=True)]
        assert len(set(gains)) > 10
        expected = p * torch.tensor(gains, dtype=torch.float64).view_as(p).square()
        assert torch.allclose(speech[i, : len(p)], expected)


def test_an_even_start_gives_each_source_its_share_of_the_mean_power() -> None:
    powers = [random_power(n, 6, n) for n in (30, 20)]
    psds = even_start(3)(mixture_of(powers, padding=2)).psds
    assert len(psds) == 3
    for psd in psds:
        for i, p in enumerate(powers):
            assert torch.allclose(psd[i], (p.mean(0) / 3 + VARIANCE_FLOOR).expand(32, -1))
