"""Filters with long windows at the end, against least squares by another library and against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import RATE, speech_like
from mixtures import reverberant
from torch import Tensor

from audiovae import STFT
from audiovae.separation import Mixture
from audiovae.separation.filters import Filters, least_squares, wiener
from audiovae.stft import Front

WINDOW = 128


def of(waves: list[Tensor]) -> Mixture:
    """Recordings at the level 1, with their waves."""
    stft = STFT(WINDOW, WINDOW // 4, "hann").double()
    spectrograms = [stft(wave).movedim(0, -1) for wave in waves]
    return Mixture.of(spectrograms, torch.ones(len(waves), dtype=torch.float64), [0] * len(waves), waves=waves)


def error(found: Tensor, truth: Tensor) -> Tensor:
    """In dB of the truth."""
    return 10 * torch.log10((found - truth).square().sum((-2, -1)) / truth.square().sum((-2, -1)))


@pytest.mark.parametrize("n_taps", [1, 3])
def test_least_squares_are_those_of_another_library(n_taps: int) -> None:
    """With a ridge of 1e-4 of the mean power of what the filter sees, as rows of a longer system."""
    wave = reverberant(0.1, 2)
    mixture = of([wave])
    estimates = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 1, *wave.shape)))
    found = least_squares(WINDOW, n_taps)(mixture, estimates)
    stft = STFT(WINDOW, WINDOW // 4, "hann").double()
    x, target = stft(wave).numpy(), stft(estimates[:, 0]).numpy()  # [channel, frame, freq], [source, ...]
    n_frames = x.shape[1]
    filtered = np.empty_like(target)
    for f in range(x.shape[2]):
        seen = np.zeros((n_frames, n_taps * 2), dtype=complex)
        for tap in range(n_taps):
            seen[tap:, 2 * tap : 2 * tap + 2] = x[:, : n_frames - tap, f].T
        ridge = 1e-4 * (np.abs(seen) ** 2).sum() / seen.shape[1]
        longer = np.concatenate([seen, ridge**0.5 * np.eye(seen.shape[1])])
        for n in range(2):
            for channel in range(2):
                wanted = np.concatenate([target[n, channel, :, f], np.zeros(seen.shape[1])])
                filtered[n, channel, :, f] = seen @ np.linalg.lstsq(longer, wanted, rcond=None)[0]
    expected = stft.inverse(torch.from_numpy(filtered), wave.shape[-1])
    torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=1e-8 * float(expected.abs().max()))


def images(n_samples: int) -> Tensor:
    """Of two sources and noise at three microphones, as if recorded in a small room: `[source, channel, sample]`."""
    generator = np.random.default_rng(1)
    found = 0.002 * generator.standard_normal((3, 3, n_samples))
    for n, pitch in enumerate((95, 140)):
        voice = speech_like(n_samples / RATE + 0.01, pitch, n)[:n_samples]
        for channel in range(3):
            found[n, channel] = np.convolve(voice, generator.standard_normal(12))[:n_samples]
    return torch.from_numpy(found)


@pytest.mark.parametrize("make", [lambda: wiener(512), lambda: least_squares(512, 2)], ids=["wiener", "least squares"])
def test_from_the_true_images_come_filters_that_give_them_back(make: object) -> None:
    """A batch of two lengths: each as it is alone."""
    truths = [images(8000), images(6000)]
    waves = [truth.sum(0) for truth in truths]
    estimates = torch.zeros(2, 2, 3, 8000, dtype=torch.float64)
    for i, truth in enumerate(truths):
        estimates[:, i, :, : truth.shape[-1]] = truth[:2]
    filtered = make()(of(waves), estimates)  # type: ignore[operator]
    for i, truth in enumerate(truths):
        n_samples = truth.shape[-1]
        found = filtered[:, i, :, :n_samples]
        mixed = waves[i].expand(2, -1, -1)
        assert (error(found, truth[:2]) < error(mixed, truth[:2]) - 8).all()
        alone = make()(of([waves[i]]), estimates[:, i : i + 1, :, :n_samples])[:, 0]  # type: ignore[operator]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)
        assert (filtered[:, i, :, n_samples:] == 0).all()


def test_filtered_images_sum_to_the_mixture_and_the_last_is_the_rest() -> None:
    truth = images(6000)
    front = Front(STFT(WINDOW, WINDOW // 4, "hann").double(), RATE)
    mixture = of([truth.sum(0)])
    begun = front.stft(truth).movedim(1, -1).unsqueeze(1)  # [source, recording, frame, freq, channel]
    found = Filters(front, [least_squares(512, 1), least_squares(256, 2)])(mixture, begun)
    torch.testing.assert_close(found.sum(0), mixture.spectrogram)
    waves = truth[:2].unsqueeze(1)
    for make in (least_squares(512, 1), least_squares(256, 2)):
        waves = make(mixture, waves)
    torch.testing.assert_close(found[:2, 0], front.stft(waves[:, 0]).movedim(1, -1))
