"""Separators of rooms by name: how many speak, which start goes on, one speaker beside a noise."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from conftest import RATE
from mixtures import reverberant, white
from numpy.typing import NDArray
from torch import Tensor

from audiovae import STFT, AudioVAE
from audiovae.metrics import si_sdr
from audiovae.separation import (
    NMF,
    Beginning,
    EMSettings,
    Floor,
    JointDiagonal,
    Mixture,
    Separator,
    count_sources,
    image_start,
    separator,
)
from audiovae.separation.starts import Start
from audiovae.stft import Front, power


def in_a_room(n_sources: int, n_channels: int = 4, seed: int = 0) -> Tensor:
    """White sources through random responses of 2 ms, and a little noise at every microphone: `[source + 1, channel,
    sample]`.
    """
    rng = np.random.default_rng(seed)
    sources = rng.standard_normal((n_sources, 4 * RATE))
    responses = rng.standard_normal((n_sources, n_channels, 32)) * np.exp(-np.arange(32) / 8)
    images = [
        [np.convolve(s, h)[: 4 * RATE] for h in of_source] for s, of_source in zip(sources, responses, strict=True)
    ]
    noise = 0.03 * rng.standard_normal((1, n_channels, 4 * RATE))
    return torch.from_numpy(np.concatenate([images, noise])).float()


def convolved(sources: NDArray[np.float64], responses: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[source, channel, sample]`."""
    pairs = zip(sources, responses, strict=True)
    return np.array([[np.convolve(source, h)[: len(source)] for h in of_source] for source, of_source in pairs])


# How many speak ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_sources", [1, 2, 3])
def test_sources_are_counted_at_any_level_in_any_order_of_microphones(n_sources: int) -> None:
    wave = in_a_room(n_sources).sum(0)
    assert count_sources(wave, RATE) == n_sources
    assert count_sources(1e-4 * wave[[2, 0, 3, 1]], RATE) == n_sources


def test_silence_is_one_source_and_a_single_channel_is_refused() -> None:
    assert count_sources(torch.zeros(3, RATE), RATE) == 1
    with pytest.raises(ValueError, match="told by several microphones, and this recording has one"):
        count_sources(torch.zeros(1, RATE), RATE)


# Starts --------------------------------------------------------------------------------------------------------------

STFT_OF_TESTS = STFT(256, 64, "hann")


def start_of(images: list[Tensor]) -> Start:
    """PSDs of these images of each recording, `[source, channel, sample]`."""

    def start(mixture: Mixture) -> Beginning:
        psds = mixture.power.new_full((2, *mixture.power.shape), 1e-3)
        for i, of_recording in enumerate(images):
            found = power(STFT_OF_TESTS(of_recording / mixture.level[i])).mean(1)
            psds[:, i, : found.shape[1]] += found
        return Beginning([*psds, torch.zeros_like(mixture.power)], levels=mixture.level.new_ones(3, len(mixture.level)))

    return start


def rooms_of(starts: list[Start], audition: int) -> Separator:
    return Separator(
        Front(STFT_OF_TESTS, RATE),
        [*[partial(NMF, rank=4, first_steps=5)] * 2, Floor],
        starts,
        partial(JointDiagonal, n_sources=3, per_frequency=True, white=(2,)),
        EMSettings(6, spatial_steps=2, warm_up=1, audition=audition),
    )


def test_every_recording_goes_on_from_the_start_that_is_best_for_it() -> None:
    """One start knows the sources of the first recording, another those of the second."""
    parts = [torch.stack([reverberant(0.5, 3, 1, seed), reverberant(0.5, 3, 1, seed + 7)]).float() for seed in (1, 2)]
    waves = [part.sum(0) + 0.01 * torch.stack([white(part.shape[-1], c) for c in range(3)]) for part in parts]
    same = [torch.stack([wave, wave]) / 2 for wave in waves]
    first, second = start_of([parts[0], same[1]]), start_of([same[0], parts[1]])
    xs = [STFT_OF_TESTS(wave).movedim(0, -1) for wave in waves]
    found = rooms_of([second, first], 2)(xs, waves=waves)
    for i, start in enumerate((first, second)):
        alone = rooms_of([start], 0)(xs, waves=waves)[i]
        assert torch.allclose(found[i].images, alone.images, atol=1e-4 * float(xs[i].abs().max()))


def test_starts_with_a_space_of_their_own_cannot_be_put_side_by_side() -> None:
    with pytest.raises(ValueError, match="space of their own"):
        Beginning.of_recordings([Beginning([], space=1), Beginning([])])


def test_of_recordings_takes_each_from_its_own_beginning() -> None:
    levels = torch.arange(6.0).view(3, 2)
    psds = [[torch.full((2, 1, 1), 10.0 * k + n) for n in range(3)] for k in range(2)]
    beginnings = [Beginning(of_one, levels=levels + 100 * k) for k, of_one in enumerate(psds)]
    both = Beginning.of_recordings(beginnings)
    assert [psd.flatten().tolist() for psd in both.psds] == [[n, 10 + n] for n in range(3)]
    assert both.levels is not None
    assert both.levels.tolist() == [[2 * n, 101 + 2 * n] for n in range(3)]


def test_images_tell_psds_at_unit_level_though_the_first_microphone_is_dead() -> None:
    wave = torch.stack([torch.zeros(RATE), white(RATE, 1), 2 * white(RATE, 2)])
    mixture = Mixture.of([STFT_OF_TESTS(wave).movedim(0, -1)], torch.ones(1), [0], waves=[wave])
    images = torch.stack([0.8 * wave, 0.2 * wave]).unsqueeze(1)  # [source, recording, channel, sample]
    begun = image_start(Front(STFT_OF_TESTS, RATE), lambda seen: images, n_more=1)(mixture)
    assert begun.levels is not None
    expected = (wave.square().sum(0).mean() / 3).sqrt()  # but for what lies below 50 Hz: 0.6 % of white noise
    torch.testing.assert_close(begun.levels[:2, 0] / expected, torch.tensor([0.8, 0.2]), rtol=0.03, atol=0)
    torch.testing.assert_close(begun.psds[0], begun.psds[1])
    torch.testing.assert_close(begun.psds[0] * begun.levels[0].square(), 0.64 * mixture.power)


def test_images_for_a_prior_with_the_rule_peak_are_divided_by_their_peaks() -> None:
    wave = torch.stack([white(RATE, 1), 2 * white(RATE, 2)])
    mixture = Mixture.of([STFT_OF_TESTS(wave).movedim(0, -1)], torch.ones(1), [0], waves=[wave])
    images = torch.stack([0.8 * wave, 0.2 * wave]).unsqueeze(1)
    begun = image_start(Front(STFT_OF_TESTS, RATE, "peak"), lambda seen: images)(mixture)
    assert begun.levels is not None
    torch.testing.assert_close(begun.levels[:, 0], torch.tensor([0.8, 0.2]) * wave.abs().max())
    torch.testing.assert_close(begun.psds[1] * begun.levels[1].square(), 0.04 * mixture.power)


# One speaker ---------------------------------------------------------------------------------------------------------


def test_a_lone_speaker_comes_out_of_a_noise_from_one_place(speech: Tensor) -> None:
    """By what two microphones tell of directions: better by far than the mixture, and the two parts sum to it."""
    rng = np.random.default_rng(3)
    source = speech[: 3 * RATE].double().numpy()
    source = source / source.std()
    noise = rng.standard_normal(len(source))
    responses = rng.standard_normal((2, 3, 24)) * np.exp(-np.arange(24) / 6)
    images = np.array(
        [[np.convolve(s, h)[: len(s)] for h in of] for s, of in zip((source, noise), responses, strict=True)]
    )
    wave = torch.from_numpy(images.sum(0) + 0.01 * rng.standard_normal(images.shape[1:])).float()
    run = separator(1, "fast", AudioVAE.from_pretrained("speech-16k-rooms"))
    stft = run.front.stft
    (found,) = run([stft(wave).movedim(0, -1)], waves=[wave])
    assert len(found.images) == len(found.psds) == len(found.sources) == 2
    back = stft.inverse(found.images.movedim(-1, 1), wave.shape[1])
    assert (back.sum(0) - wave).abs().max() <= 1e-4 * wave.abs().max()
    before, after = (si_sdr(images[0, 0], part[0].double().numpy()) for part in (wave, back[0]))
    assert after > before + 8
