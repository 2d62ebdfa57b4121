"""Pauses in a noisy recording: zeros, a closed gate, a fade. They say nothing of the noise around them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import RATE, speech_like
from mixtures import mixture_of, noisy, white
from torch import Tensor

from audiovae import AudioVAE
from audiovae.metrics import si_sdr
from audiovae.separation import METHODS, Stationary, enhancer, quiet_start
from audiovae.separation.starts import quiet_spectrum, quiet_track
from audiovae.settings import NoiseName
from audiovae.stft import STFT, power

PLACES = {"beginning": 0, "middle": 2 * RATE, "end": 5 * RATE}


def with_pause(wave: Tensor, at: int, seconds: float, gain: float = 0.0) -> tuple[Tensor, Tensor]:
    """A pause, in which white noise goes on at a gain, put into a wave; and which samples are the wave's."""
    n = round(seconds * RATE)
    pause = gain * white(n, 7)
    mine = torch.ones(len(wave) + n, dtype=torch.bool)
    mine[at : at + n] = False
    return torch.cat([wave[:at], pause, wave[at:]]), mine


def spectrum_of(wave: Tensor) -> Tensor:
    return power(STFT()(wave))[:, 1:-1]


@pytest.mark.parametrize("seconds", [0.25, 1.0, 6.0])
@pytest.mark.parametrize("gain", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("place", PLACES)
def test_a_pause_of_any_length_has_its_own_quiet_track_and_the_rest_has_the_noises(
    place: str, gain: float, seconds: float
) -> None:
    """White noise of variance one has the sum of the squared window, 512, as its PSD."""
    wave, _ = with_pause(white(5 * RATE), PLACES[place], seconds, gain)
    track = quiet_track(spectrum_of(wave))
    first, last = PLACES[place] // 256, (PLACES[place] + round(seconds * RATE)) // 256
    inside = torch.arange(len(track))
    inside = (inside > first + 4) & (inside < last - 4)
    outside = torch.ones_like(inside)
    outside[max(0, first - 4) : last + 5] = False
    rest = track[outside].mean(-1) / 512
    assert rest.min() > 0.8
    assert rest.max() < 1.2
    assert track[inside].mean() < 2 * gain**2 * 512 + 1e-4


def test_several_pauses_a_fade_and_levels_of_them_are_told_from_the_noise() -> None:
    wave = white(8 * RATE)
    envelope = torch.ones_like(wave)
    envelope[: RATE // 2] = 10 ** torch.linspace(-3, 0, RATE // 2)
    for second, gain in ((2, 0.0), (4, 1e-2), (6, 0.05)):
        envelope[second * RATE : second * RATE + RATE // 2] = gain
    track = quiet_track(spectrum_of(wave * envelope))
    loud = envelope[::256][: len(track)] == 1
    assert track[: len(loud)][loud].mean(-1).median() == pytest.approx(512, rel=0.15)
    for second, gain in ((2, 0.0), (4, 1e-2), (6, 0.05)):
        middle = track[round((second + 0.25) * RATE / 256)].mean()
        assert middle < 2 * gain**2 * 512 + 1e-4


def test_what_goes_on_in_the_loudest_band_is_no_pause_of_the_noise() -> None:
    """A hum over all of it, and a faint hiss that ends: what is there all along is the noise."""
    hum = 0.3 * torch.sin(2 * torch.pi * 100 * torch.arange(6 * RATE) / RATE)
    hiss = 1e-2 * white(6 * RATE)
    hiss[5 * RATE :] *= 1e-2
    track = quiet_track(spectrum_of(hum + hiss))
    assert track[250:, 100:].mean() < 0.1 * 512 * 1e-4  # whose windows reach the end


@pytest.mark.parametrize("begins", [2, 4])
def test_noise_that_begins_under_speech_is_found_where_it_is(begins: int) -> None:
    """White noise of 0.05 from then on, under tones that are clean before it."""
    wave = torch.from_numpy(speech_like(6.0, 120, 1))
    late = 0.05 * white(len(wave))
    late[: begins * RATE] = 0
    track = quiet_track(spectrum_of(wave + late))[:, 1:-1]
    edge = begins * RATE // 256
    expected = torch.tensor(512 * 0.05**2)
    assert track[edge + 8 :].median() == pytest.approx(float(expected), rel=0.3)
    assert track[: edge - 100].mean(0).median() < 0.1 * expected


@pytest.mark.parametrize("floor_db", [-50, -40, -30])
def test_faint_noise_between_words_is_the_noise_and_no_pause(floor_db: int) -> None:
    """Bursts of tones with gaps between them over a steady floor: the quiet spectrum is the floor's all along."""
    clean = torch.from_numpy(speech_like(6.0, 120, 1))
    gain = float(clean.square().mean().sqrt()) * 10 ** (floor_db / 20)
    p = spectrum_of(clean + gain * white(len(clean)))
    floor = 512 * (gain**2 + 1e-6)  # and that of `speech_like`
    assert quiet_track(p).mean(0).median() == pytest.approx(floor, rel=0.5)


def test_the_noise_at_the_end_of_a_block_is_not_handed_on_where_that_was_a_pause() -> None:
    p = spectrum_of(white(5 * RATE))
    plain = quiet_track(p)
    assert torch.equal(quiet_track(p, torch.full_like(p[0], 1e-4)), plain)
    assert torch.equal(quiet_track(p, plain[0] / 2)[0], plain[0] / 2)


@pytest.mark.parametrize("n_frames", [1, 64, 65, 66, 128, 129, 257])
def test_the_track_of_a_constant_power_is_constant_to_its_last_frame(n_frames: int) -> None:
    track = quiet_track(torch.full((n_frames, 40), 3.0))
    assert torch.equal(track, track[:1].expand_as(track))
    assert track[0, 0] > 3


@pytest.mark.parametrize("n_frames", [1, 2, 5, 18, 300])
def test_recordings_of_any_length_have_a_track(n_frames: int) -> None:
    p = spectrum_of(white(5 * RATE))[:n_frames]
    assert quiet_track(p).shape == p.shape
    silent = quiet_track(torch.zeros_like(p))
    assert torch.equal(silent, quiet_spectrum(torch.zeros_like(p)).expand_as(p))


def test_a_recording_with_a_pause_begins_beside_others_as_it_does_alone() -> None:
    powers = [spectrum_of(with_pause(white(n * RATE), 0, 1.0)[0]).double() for n in (3, 5)]
    together = quiet_start(mixture_of(powers, padding=2)).psds
    for i, p in enumerate(powers):
        alone = quiet_start(mixture_of([p])).psds
        for both, one in zip(together, alone, strict=True):
            assert torch.allclose(both[i, : len(p)], one[0], rtol=1e-10)


def test_the_one_spectrum_of_a_stationary_noise_is_that_of_what_sounds() -> None:
    p = spectrum_of(with_pause(white(3 * RATE), RATE, 6.0)[0]).double()
    mixture = mixture_of([p])
    source = Stationary(mixture, quiet_track(p).unsqueeze(0))
    assert source.variance()[0, 0].mean() == pytest.approx(512, rel=0.1)
    for _ in range(20):
        source.update_factors(lambda: (mixture.power / source.variance().square(), 1 / source.variance()))
    assert source.variance()[0, 0].mean() == pytest.approx(512, rel=0.1)


@pytest.fixture(scope="module")
def fast() -> AudioVAE:
    return AudioVAE.from_pretrained(METHODS["fast"].prior)


def enhanced(prior: AudioVAE, wave: Tensor, noise: NoiseName) -> Tensor:
    spectrogram, level = prior.analyse(wave)
    (found,) = enhancer(prior, "fast", noise)([spectrogram.unsqueeze(-1)], levels=[float(level > 0)])
    return prior.stft.inverse(found.images[0, ..., 0], len(wave)) * level


@pytest.mark.parametrize("seconds", [0.5, 4.0])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("noise", ["slow", "nmf", "stationary"])
def test_noise_is_taken_away_as_without_the_pause(fast: AudioVAE, noise: NoiseName, place: str, seconds: float) -> None:
    wave, clean = noisy(5.0), torch.from_numpy(speech_like(5.0, 110, 0))
    score = partial(si_sdr, clean.numpy())
    plain = score(enhanced(fast, wave, noise).numpy())
    paused, mine = with_pause(wave, PLACES[place], seconds)
    out = enhanced(fast, paused, noise)
    assert score(out[mine].numpy()) > plain - 1.5
    assert out[~mine][2048:-2048].abs().max() < 1e-3 * out.abs().max()
    assert plain > score(wave.numpy()) + 3
