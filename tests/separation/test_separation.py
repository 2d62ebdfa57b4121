"""Sources of a recording of several microphones, at the level of waves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import RATE, speech_like
from mixtures import reverberant
from torch import Tensor

import audiovae
from audiovae import STFT
from audiovae.errors import AudiovaeError
from audiovae.metrics import si_sdr
from audiovae.separation import fast_mnmf2, separate
from audiovae.settings import RoomMethodName
from audiovae.stft import Front

METHOD: RoomMethodName = "fastmnmf2"  # needs no prior


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_sorted_by_loudness_and_sum_to_the_recording(dtype: torch.dtype) -> None:
    wave = reverberant(1.0, 3).to(dtype)
    images = separate(wave, RATE, 3, METHOD)
    assert images.shape == (4, *wave.shape)  # the noise is last
    assert images.dtype == dtype
    assert (images.sum(0) - wave).abs().max() <= 1e-5 * wave.abs().max()
    energies = images[:3].square().sum((1, 2))
    assert (energies.diff() <= 0).all()
    assert energies[-1] > 1e-4 * energies[0]


def test_voices_in_a_dry_room_come_apart() -> None:
    """Two voices that speak at times of their own, each weaker and a few samples later at one of two microphones."""
    one, two = (torch.from_numpy(speech_like(2, pitch, seed)).double() for seed, pitch in enumerate((100, 157)))
    two = two.roll(4800)
    truth = torch.stack([torch.stack([one, 0.4 * one.roll(2)]), torch.stack([0.3 * two.roll(3), two])])
    wave = truth.sum(0)
    images = separate(wave, RATE, 2, METHOD)

    def gain(n: int, k: int) -> float:
        """In dB, of the image k over the mixture at the first microphone."""
        reference = truth[n, 0].numpy()
        return si_sdr(reference, images[k, 0].numpy()) - si_sdr(reference, wave[0].numpy())

    assert max(gain(0, 0) + gain(1, 1), gain(0, 1) + gain(1, 0)) / 2 > 10  # 29 here


def test_a_seed_repeats_it_and_another_does_not() -> None:
    wave = reverberant(0.5, 2).float()
    first, again, other = (separate(wave, RATE, 2, METHOD, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3 * wave.abs().max()


def test_what_space_cannot_part_is_refused() -> None:
    with pytest.raises(AudiovaeError, match="at least two channels, got one"):
        separate(torch.randn(1, 4000), RATE, 2)


def test_an_array_of_any_rate_comes_apart_into_arrays_of_that_rate_and_says_how_far_it_is() -> None:
    wave = np.random.default_rng(0).standard_normal((2, 12001))  # 24 kHz: a third of it lies above the prior's band
    told: list[float] = []
    images = audiovae.separate(wave, 24000, 1, "fast", progress=told.append)
    assert isinstance(images, np.ndarray)
    assert images.shape == (2, 2, 12001)
    np.testing.assert_allclose(images.sum(0), wave, atol=1e-5)
    above = np.abs(np.fft.rfft(images))[..., 8500 * 12001 // 24000 :]
    assert above[0].max() < 0.02 * above[1].max()
    assert told[-1] == 1
    assert 0 < told[0] < 1
    assert sorted(told) == told


def test_a_wave_that_is_none_is_refused() -> None:
    broken = np.zeros((2, 4000))
    broken[1, 123] = np.inf
    with pytest.raises(ValueError, match="holds 1 samples that are NaN or infinite, the first at sample 123; repair"):
        audiovae.separate(broken, RATE, 2, METHOD)
    with pytest.raises(ValueError, match=r"channels stand before the samples, .* shape \[4000, 2\]: transpose it"):
        audiovae.enhance(np.zeros((4000, 2)), RATE)


def test_a_prior_of_the_users_own_takes_the_place_of_the_shipped_one() -> None:
    wave = np.random.default_rng(1).standard_normal(8000).astype(np.float32)
    shipped = audiovae.enhance(wave, RATE, "fast")
    own = audiovae.AudioVAE.from_pretrained("speech-16k-fast")
    np.testing.assert_array_equal(audiovae.enhance(wave, RATE, "fast", prior=own), shipped)
    with torch.no_grad():
        own.vae.observation.bias += 2
    assert np.abs(audiovae.enhance(wave, RATE, "fast", prior=own) - shipped).max() > 1e-3


REFUSED = {
    "n_sources must be a whole number above 0, got 0": lambda wave: audiovae.separate(wave, RATE, 0, METHOD),
    "the sample rate must be a whole number of Hz above 0, got 0": lambda wave: audiovae.enhance(wave, 0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_arguments_that_are_none_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message](np.random.default_rng(0).standard_normal((2, 4000)))


def silent(wave: Tensor) -> Tensor:
    return 0 * wave


def dead(wave: Tensor) -> Tensor:
    return wave * torch.tensor([0.0, 1.0])[:, None]


def twice(wave: Tensor) -> Tensor:
    return wave[[0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("damage", [silent, dead, twice])
def test_silence_a_dead_microphone_and_mono_in_stereo_give_finite_images(damage: object, dtype: torch.dtype) -> None:
    assert callable(damage)
    wave = damage(reverberant(0.4, 2).to(dtype)).to(dtype)
    images = separate(wave, RATE, 2, METHOD)
    assert torch.isfinite(images).all()
    assert (images.sum(0) - wave).abs().max() <= 1e-5 * wave.abs().max()
    assert images.abs().max() <= 10 * wave.abs().max()


def test_recordings_side_by_side_come_out_as_alone() -> None:
    stft = STFT(512, 128, "hann").double()
    xs = [stft(reverberant(s, 2, seed=i)).movedim(0, -1) for i, s in enumerate((0.4, 0.3))]
    run = fast_mnmf2(Front(stft, RATE), 2, rank=3, n_iterations=8)
    for found, x, seed in zip(run(xs, [1, 2]), xs, [1, 2], strict=True):
        (alone,) = run([x], [seed])
        np.testing.assert_allclose(found.images, alone.images, atol=1e-8 * float(x.abs().max()))
