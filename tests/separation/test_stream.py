"""Enhancement while it is heard: cuts, state, latency, levels, rates, and what is refused; its parts by themselves."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from conftest import RATE, speech_like
from mixtures import make_alive, untrained
from numpy.typing import NDArray
from scipy.signal import resample_poly

from audiovae import AudioVAE
from audiovae.errors import AudiovaeError
from audiovae.level import active_level, split_rumble
from audiovae.metrics import si_sdr
from audiovae.models import DynamicVAE
from audiovae.separation import stream
from audiovae.separation.stream_network import CausalNetwork
from audiovae.separation.stream_noise import BandLevels, QuietNoise
from audiovae.separation.stream_rates import StreamingResampler
from audiovae.separation.stream_speech import LiveLevel, LiveSpeech

Wave = NDArray[np.float32]


@pytest.fixture(scope="module")
def live() -> AudioVAE:
    """An untrained causal prior of short frames (256 / 64)."""
    return make_alive(untrained("DynamicVAE", causal=True, dilations=(1, 2), prior_dilations=(1, 2)))


def sound(seconds: float = 0.25, n_channels: int | None = None) -> Wave:
    """Speech-like sound in noise."""
    clean = speech_like(seconds, 120)
    shape = clean.shape if n_channels is None else (n_channels, len(clean))
    return (0.1 * clean + 0.01 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def through(live: AudioVAE, wave: Wave, cuts: list[int], **options: object) -> Wave:
    """All that comes out of a stream, without what stands before the wave."""
    one = stream(live, **options)  # type: ignore[arg-type]
    pieces = [one.push(piece) for piece in np.split(wave, cuts, axis=-1)]
    assert [piece.shape for piece in pieces] == [piece.shape for piece in np.split(wave, cuts, axis=-1)]
    return np.concatenate([*pieces, one.flush()], axis=-1)[..., one.latency :]


CUTS = {
    "hops": list(range(64, 4000, 64)), "samples": list(range(1, 400)), "odd": list(range(37, 4000, 371)),
    "two": [2321], "nothing between": [100, 100, 3000, 3000],
}  # fmt: skip


@pytest.mark.parametrize("rate", [RATE, 44100, 8000])
@pytest.mark.parametrize("name", CUTS)
def test_what_comes_out_does_not_depend_on_the_cuts(name: str, rate: int, live: AudioVAE) -> None:
    wave = sound()
    whole = through(live, wave, [], sample_rate=rate)
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(through(live, wave, CUTS[name], sample_rate=rate), whole, atol=1e-6)


def test_nothing_that_is_kept_grows(live: AudioVAE) -> None:
    one, wave = stream(live, sample_rate=48000), np.tile(sound(1.0), 3)
    sizes = []
    for block in np.split(wave, 100):
        one.push(block)
        sizes.append(len(pickle.dumps(one)))
    assert max(sizes[50:]) - min(sizes[50:]) < 2 * 4 * 480 + 1000  # what waits for the end of its hop, and numbers


@pytest.mark.parametrize("lookahead", [0, 1, 2])
@pytest.mark.parametrize(("rate", "extra"), [(RATE, 0.0), (48000, 0.008), (44100, 0.008), (8000, 0.008)])
def test_the_latency_is_that_of_the_window_and_the_lookahead(
    rate: int, extra: float, lookahead: int, live: AudioVAE
) -> None:
    """Where what comes out is most like what went in; nothing comes sooner."""
    one = stream(live, sample_rate=rate, lookahead=lookahead, level=1e3)
    at_least = (256 + 64 * lookahead) / RATE
    assert at_least <= one.latency / rate <= at_least + extra + 1 / rate
    wave = sound()
    spoken = np.concatenate([one.push(wave), one.flush()])
    assert not spoken[: one.latency - rate // 500].any() or rate != RATE
    lags = np.correlate(spoken, wave, "valid")
    assert int(lags.argmax()) == one.latency


@pytest.mark.parametrize("factor", [1e-5, 1e-2, 1e2])
def test_the_level_makes_no_difference(factor: float, live: AudioVAE) -> None:
    wave = sound()
    plain = through(live, wave, [])
    again = through(live, (factor * wave).astype(np.float32), [])
    assert np.square(again / factor - plain).sum() < 1e-6 * np.square(plain).sum()


def test_a_level_that_is_given_is_taken(live: AudioVAE) -> None:
    wave = sound()
    plain, scaled, other = (
        through(live, factor * wave, [], level=level) / factor for factor, level in ((1, 0.1), (4, 0.4), (4, 0.1))
    )
    np.testing.assert_allclose(scaled, plain, atol=1e-6)
    assert np.abs(other - plain).max() > 1e-3


def test_channels_share_one_gain(live: AudioVAE) -> None:
    wave = sound(n_channels=2)
    together = through(live, wave, [], n_channels=2)
    swapped = through(live, wave[::-1].copy(), [], n_channels=2)
    np.testing.assert_allclose(swapped[::-1], together, atol=1e-6)
    alike = through(live, np.stack([wave[0], 2 * wave[0]]), [], n_channels=2)
    np.testing.assert_allclose(alike[1], 2 * alike[0], rtol=1e-3, atol=1e-6)


def test_silence_stays_silent_and_what_follows_is_finite(live: AudioVAE) -> None:
    wave = np.concatenate([np.zeros(4000, np.float32), sound(0.25), np.zeros(4000, np.float32)])
    spoken = through(live, wave, [])
    assert not spoken[: 4000 - 256].any()
    assert np.isfinite(spoken).all()
    assert np.abs(spoken[4000:8000]).max() > 1e-3
    assert np.abs(spoken[-3000:]).max() < 1e-6


def test_full_scale_and_beyond_is_finite(live: AudioVAE) -> None:
    for factor in (1e15, 1e-20):
        assert np.isfinite(through(live, (factor * sound(0.2)).astype(np.float32), [])).all()


def test_a_block_with_a_nan_is_refused_and_the_stream_goes_on(live: AudioVAE) -> None:
    wave = sound(0.25)
    one = stream(live)
    first = one.push(wave[:1000])
    with pytest.raises(ValueError, match=r"the wave holds 1 samples that are NaN or infinite, the first at sample 3"):
        one.push(np.array([0, 0, 0, np.nan], np.float32))
    rest = [one.push(wave[1000:]), one.flush()]
    np.testing.assert_array_equal(np.concatenate([first, *rest])[one.latency :], through(live, wave, [1000]))


def test_tensors_come_back_as_tensors(live: AudioVAE) -> None:
    wave = torch.from_numpy(sound(0.1))
    spoken = stream(live).push(wave)
    assert isinstance(spoken, torch.Tensor)
    assert spoken.dtype == wave.dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookahead": 9}, "lookahead must be from 0 to 8 frames, got 9"),
        ({"level": 0.0}, "level must be positive, got 0.0"),
        ({"n_channels": 0}, "sample_rate and n_channels must be positive, got 16000 and 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str, live: AudioVAE) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        stream(live, **options)  # type: ignore[arg-type]


def test_blocks_of_another_shape_are_refused(live: AudioVAE) -> None:
    with pytest.raises(ValueError, match=re.escape("blocks of shape [2, sample], got [9]")):
        stream(live, n_channels=2).push(np.zeros(9, np.float32))


@pytest.mark.usefixtures("unchecked")
def test_another_method_is_refused(live: AudioVAE) -> None:
    with pytest.raises(ValueError, match="method must be one of fast, got 'peem'"):
        stream(live, "peem")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["DynamicVAE", "FrameVAE"])
def test_a_prior_that_sees_the_future_is_refused(name: str) -> None:
    with pytest.raises(AudiovaeError, match="a stream needs a DynamicVAE that sees no future"):
        stream(untrained(name))


def test_the_shipped_prior_takes_noise_from_real_speech(speech: torch.Tensor) -> None:
    """White noise at 5 dB, scored from the first sample on."""
    clean = speech.numpy() - split_rumble(speech.numpy(), RATE)
    noise = clean.std() * 10 ** (-5 / 20) * np.random.default_rng(0).standard_normal(len(clean))
    noisy = (clean + noise).astype(np.float32)
    spoken = through(AudioVAE.from_pretrained("speech-16k-live"), noisy, [])
    assert si_sdr(clean, spoken) > si_sdr(clean, noisy) + 4


# Its parts -----------------------------------------------------------------------------------------------------------


def test_the_network_and_its_gradient_are_those_of_torch(live: AudioVAE) -> None:
    vae = live.vae
    assert isinstance(vae, DynamicVAE)
    inputs = torch.randn(9, vae.latent_dim, generator=torch.Generator().manual_seed(0))
    of_outputs = torch.randn(5, vae.n_freqs, generator=torch.Generator().manual_seed(1))
    given = inputs.clone().requires_grad_()
    expected = vae.decoder(given)
    (slope,) = torch.autograd.grad(expected[4:], given, of_outputs)
    network = CausalNetwork(vae.decoder)
    first = network.forward(inputs[:6].numpy(), network.start())
    made = network.forward(inputs[4:].numpy(), network.after(first, 4))
    np.testing.assert_allclose(made.outputs, expected[4:].detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.backward(of_outputs.numpy(), made), slope[4:], rtol=1e-4, atol=1e-5)


def test_steps_lower_the_energy_of_the_window(live: AudioVAE) -> None:
    """By the energy of the offline methods, of the window alone."""
    vae = live.vae
    generator = np.random.default_rng(0)
    noise = np.full(vae.n_freqs, 0.1, np.float32)
    energies = []
    for n_steps in (0, 10):
        speech = LiveSpeech(live, 4, n_steps)
        heard = generator.exponential(1.0, (4, vae.n_freqs)).astype(np.float32)
        generator = np.random.default_rng(0)
        for frame in heard:
            speech.push(frame, noise, 1.0)
            psd = speech.infer(noise, 1.0)
        z, variance = torch.from_numpy(speech._latents), psd + noise
        log_prior = float(vae.prior(z).log_prob(z).detach().sum())
        energies.append(float((np.log(variance) + heard / variance).sum()) - 12 * log_prior)
    assert energies[1] < energies[0] - 1


def test_the_noise_is_that_of_the_pauses(live: AudioVAE) -> None:
    """White noise, and 30 dB louder for an eighth of the time; to 3 dB, on the loud side."""
    generator = torch.Generator().manual_seed(0)
    wave = torch.randn(64 * 500, generator=generator).reshape(-1, 2000)
    wave[::8] *= 30
    frames = live.stft(wave.flatten()).abs().square().numpy()
    noise = QuietNoise(frames.shape[1], 0.016)
    for frame in frames:
        noise.push(frame)
    over = noise.spectrum[1:-1].mean() / float(live.stft.window.square().sum())
    assert 0.9 < over < 2.0


def test_bands_reach_the_level_that_is_heard() -> None:
    levels = BandLevels(65, 8, deviation=2.0, stiffness=1.0, forgetting=0.9)
    for _ in range(60):
        levels.update(np.ones(65, np.float32), (3.0 / levels.factor).astype(np.float32))
    np.testing.assert_allclose(levels.factor, 3.0, rtol=0.1)


def test_the_level_is_that_of_the_recording_heard_so_far(live: AudioVAE) -> None:
    wave = (0.3 * speech_like(2.0, 120)).astype(np.float32)
    wave[:8000] *= 1e-3  # is silence beside the rest
    level = LiveLevel(live)
    for frame in live.stft(torch.from_numpy(wave)).abs().square().numpy():
        found = level.push(frame)
    assert np.sqrt(found) == pytest.approx(active_level(wave, RATE), rel=0.1)


@pytest.mark.parametrize(("rate", "new_rate"), [(48000, 16000), (16000, 44100), (8000, 16000), (16000, 8000)])
def test_resampling_is_that_of_scipy_up_to_the_filter(rate: int, new_rate: int) -> None:
    """Below 80 % of the lower Nyquist frequency, where both filters are flat."""
    t = np.arange(rate // 4) / rate
    wave = sum(np.sin(2 * np.pi * f * t + f) for f in (100, 1234, 0.4 * min(rate, new_rate)))[None]
    one = StreamingResampler(rate, new_rate, 1)
    found = one.push(wave)
    expected = resample_poly(wave, new_rate // np.gcd(rate, new_rate), rate // np.gcd(rate, new_rate), axis=1)
    inside = slice(new_rate // 50, found.shape[1] - new_rate // 50)
    np.testing.assert_allclose(found[:, inside], expected[:, : found.shape[1]][:, inside], atol=1e-2)
    assert one.delay <= 0.004
    assert expected.shape[1] - found.shape[1] <= np.ceil(one.delay * new_rate)


def test_resampling_keeps_out_what_lies_above() -> None:
    t = np.arange(12000) / 48000
    found = StreamingResampler(48000, 16000, 1).push(np.sin(2 * np.pi * 8200 * t)[None])
    assert np.abs(found[:, 200:]).max() < 1e-3
