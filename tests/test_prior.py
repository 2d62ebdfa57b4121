"""AudioVAE: levels, bounds and silence, against the formulas that it promises."""

from __future__ import annotations

import math
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, build_prior, speech_like
from torch import Tensor
from torch.distributions import kl_divergence

from audiovae import STFT, AudioVAE, ComplexNormal, DynamicVAE, DynamicVAESettings, FrameVAE, FrameVAESettings
from audiovae.errors import LatentError
from audiovae.level import active_level
from audiovae.phase import griffin_lim
from audiovae.prior import check_choice
from audiovae.stft import power

GAINS = (1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3)


def wave(seconds: float = 0.6, seed: int = 0) -> Tensor:
    """Speech-like, with a root mean square of 1 over its active frames, about."""
    sound = torch.from_numpy(speech_like(seconds, 110 + 20 * seed, seed))
    return sound / sound.square().mean().sqrt()


ODD_WAVES = {
    "silence": torch.zeros(3000),
    "one sample": torch.ones(1),
    "one sample of silence": torch.zeros(1),
    "direct current": torch.full((3000,), 0.5),
    "faint": 1e-8 * wave(),
    "full scale": torch.sign(wave()),
    "a click": (torch.arange(3000) == 1500).float(),
    "half silence": torch.cat([torch.zeros(4000), wave()]),
    "nearly nothing": 1e-30 * wave(),
    "large": 1e12 * wave(),
}


# Level ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", GAINS)
def test_resynthesis_follows_the_level(gain: float, prior: AudioVAE) -> None:
    """resynthesize(a x) == a resynthesize(x), within rounding."""
    expected = prior.resynthesize(wave()).detach()
    torch.testing.assert_close(
        prior.resynthesize(gain * wave()) / gain, expected, rtol=0, atol=2e-5 * float(expected.abs().max())
    )


def test_resynthesis_of_real_speech_follows_the_level(speech: Tensor, prior: AudioVAE) -> None:
    expected = prior.resynthesize(speech).detach()
    for gain in GAINS:
        again = prior.resynthesize(gain * speech) / gain
        torch.testing.assert_close(again, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("gain", [2.0**-20, 2.0**10])
def test_griffin_lim_follows_the_level(gain: float, prior: AudioVAE) -> None:
    """From the same random phase. Its iterations enlarge rounding errors, so the gains are powers of two."""
    results = []
    for factor in (1.0, gain):
        torch.manual_seed(0)
        results.append(prior.resynthesize(factor * wave(), phase="griffin-lim").detach() / factor)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-3 * float(results[0].abs().max()))


@pytest.mark.parametrize("gain", [1e-12, 1e15])
def test_griffin_lim_gives_sound_at_any_level(gain: float, prior: AudioVAE) -> None:
    waves = [prior.resynthesize(factor * wave(), phase="griffin-lim").detach() / factor for factor in (1.0, gain)]
    loudness = [float(x.square().mean().sqrt()) for x in waves]
    assert loudness[1] == pytest.approx(loudness[0], rel=0.2)


@pytest.mark.parametrize("gain", [1e-6, 0.1, 1e3])
def test_latents_do_not_depend_on_the_level_and_carry_it(gain: float, prior: AudioVAE) -> None:
    latents, louder = prior.encode(wave()), prior.encode(gain * wave())
    torch.testing.assert_close(louder.posterior.mean, latents.posterior.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(louder.level, gain * latents.level, rtol=1e-5, atol=0)
    torch.testing.assert_close(prior.decode(louder), gain**2 * prior.decode(latents), rtol=1e-3, atol=0)
    assert latents.n_samples == len(wave())


def test_the_level_is_that_of_the_active_frames(prior: AudioVAE) -> None:
    waves = torch.stack([wave(), 3 * wave(seed=1)])
    expected = torch.tensor([active_level(row, RATE) for row in waves.numpy()], dtype=torch.float32)
    torch.testing.assert_close(prior.measure_level(waves), expected)
    torch.testing.assert_close(prior.encode(waves).level, expected)
    assert prior.measure_level(waves.reshape(1, 2, 1, -1)).shape == (1, 2, 1)
    assert prior.measure_level(torch.zeros(2, 100)).tolist() == [0, 0]


def peaked(prior: AudioVAE) -> AudioVAE:
    """The same prior with the other rule of levels."""
    return AudioVAE(prior.stft, prior.vae, prior.sample_rate, "peak").eval()


def test_the_level_of_a_prior_with_the_rule_peak_is_the_largest_sample(prior: AudioVAE, tmp_path: Path) -> None:
    other = peaked(prior)
    waves = torch.stack([wave(), -3 * wave(seed=1)])
    torch.testing.assert_close(other.measure_level(waves), waves.abs().amax(-1))
    assert other.measure_level(waves, channels=True).tolist() == [float(waves.abs().max())] * 2
    spectrogram, _ = other.analyse(waves[1])
    torch.testing.assert_close(spectrogram, prior.stft(waves[1] / waves[1].abs().max()))
    torch.testing.assert_close(other.resynthesize(4 * waves), 4 * other.resynthesize(waves))
    assert other.measure_level(torch.zeros(9000)).item() == 0
    other.save_pretrained(tmp_path)
    assert AudioVAE.from_pretrained(tmp_path).level_rule == "peak"
    assert AudioVAE.from_pretrained(tmp_path).model_hash() == other.model_hash() != prior.model_hash()
    assert "level_rule" not in prior.config()  # whose hash is that of before there were rules


@pytest.mark.usefixtures("unchecked")
def test_another_rule_of_levels_is_refused(prior: AudioVAE) -> None:
    with pytest.raises(ValueError, match="level_rule must be one of active, peak, got 'rms'"):
        AudioVAE.from_config({**prior.config(), "level_rule": "rms"})


def test_a_given_level_is_used_for_all_channels(prior: AudioVAE) -> None:
    """Channels of one recording keep their balance: a loud one and a faint one are divided by the same number."""
    channels = torch.stack([wave(), 0.01 * wave(seed=1)])
    level = active_level(channels.numpy(), RATE)
    together = prior.resynthesize(channels, level=level)
    for row, channel in zip(together, channels, strict=True):
        torch.testing.assert_close(row, prior.resynthesize(channel, level=level), atol=1e-5, rtol=0)
    apart = prior.resynthesize(channels)
    assert (apart[1] - together[1]).abs().max() > 0.05 * apart[1].abs().max()
    assert prior.encode(channels, level).level.tolist() == pytest.approx([level, level])
    assert torch.equal(prior.resynthesize(channels, level=torch.tensor([level, level])), together)


# Formulas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1.0, 0.05])
def test_resynthesis_is_the_magnitude_of_the_model_with_the_phase_of_the_wave(level: float, prior: AudioVAE) -> None:
    x = wave()
    spectrogram = prior.stft(x)
    posterior = prior.vae.infer(power(spectrogram) / level**2).factors[0].posterior
    psd = prior.vae.likelihood(posterior.mean).variance * level**2
    torch.testing.assert_close(prior.decode(prior.encode(x, level)), psd, rtol=1e-3, atol=0)
    expected = prior.stft.inverse(psd.sqrt() * torch.polar(torch.ones_like(psd), spectrogram.angle()), len(x))
    torch.testing.assert_close(prior.resynthesize(x, level=level), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("level", [None, 1.0, 0.05])
def test_the_bound_is_that_of_the_wave_as_it_is(level: float | None) -> None:
    """By hand, in double precision: the density of the unscaled STFT under the PSD at the wave's level, less the
    divergence.
    """
    prior, x = build_prior().double(), wave().double()
    used = active_level(x.numpy(), RATE) if level is None else level
    spectrogram = prior.stft(x)
    torch.manual_seed(0)
    inference = prior.vae.infer(power(spectrogram) / used**2)
    likelihood = ComplexNormal(prior.vae.likelihood(inference.latents).variance * used**2)
    expected = likelihood.log_prob(spectrogram).sum(-1) - kl_divergence(
        inference.factors[0].posterior, inference.factors[0].prior
    )
    torch.manual_seed(0)
    actual = prior.log_likelihood(x, level=level)
    assert actual.shape == (prior.stft.n_frames(len(x)),)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("gain", [10.0, 0.1, 1e-6, 1e3])
def test_scaling_a_wave_moves_its_bound_by_the_jacobian(gain: float, n_samples: int) -> None:
    """By -2 n_freqs log(a) a frame, exactly: in double precision, with the same random numbers."""
    prior, x = build_prior().double(), wave().double()
    bounds = []
    for factor in (1.0, gain):
        torch.manual_seed(1)
        bounds.append(prior.log_likelihood(factor * x, n_samples))
    expected = torch.full_like(bounds[0], -2 * 513 * math.log(gain))
    torch.testing.assert_close(bounds[1] - bounds[0], expected, rtol=0, atol=1e-6)


def test_more_samples_tighten_the_bound(prior: AudioVAE) -> None:
    torch.manual_seed(2)
    x = wave()
    bounds = [
        torch.stack([prior.log_likelihood(x, n_samples).mean().detach() for _ in range(20)]) for n_samples in (1, 8)
    ]
    assert bounds[1].min() > bounds[0].max()


def test_the_bound_needs_a_sample(prior: AudioVAE) -> None:
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        prior.log_likelihood(wave(), 0)


def test_the_mean_of_the_posterior_and_samples_of_it_can_be_decoded(prior: AudioVAE) -> None:
    x = wave()
    latents = prior.encode(x)
    assert torch.equal(prior.decode(latents), prior.decode(latents, "mean"))
    torch.manual_seed(3)
    sampled = prior.decode(latents, "sample")
    torch.manual_seed(3)
    z = latents.posterior.rsample()
    torch.testing.assert_close(sampled, prior.vae.likelihood(z).variance * latents.level**2)
    assert (sampled - prior.decode(latents)).abs().max() > 0
    torch.manual_seed(4)
    first = prior.resynthesize(x, latents="sample")
    assert not torch.equal(first, prior.resynthesize(x, latents="sample"))
    assert torch.equal(prior.resynthesize(x), prior.resynthesize(x))


def test_sampling_draws_spectra_of_the_prior(prior: AudioVAE) -> None:
    torch.manual_seed(5)
    psd = prior.sample(40)
    assert psd.shape == (40, 513)
    torch.manual_seed(5)
    torch.testing.assert_close(psd, prior.vae.likelihood(torch.randn(40, 8)).variance)
    with pytest.raises(ValueError, match="n_frames must be at least 1, got 0"):
        prior.sample(0)


# Shapes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
def test_waves_have_any_leading_dimensions(shape: tuple[int, ...], prior: AudioVAE) -> None:
    x = wave(0.2).expand(*shape, -1)
    n_frames = prior.stft.n_frames(x.shape[-1])
    assert prior.resynthesize(x).shape == x.shape
    assert prior.log_likelihood(x).shape == (*shape, n_frames)
    latents = prior.encode(x)
    assert latents.posterior.mean.shape == (*shape, n_frames, 8)
    assert latents.level.shape == shape
    assert prior.decode(latents).shape == (*shape, n_frames, 513)


@pytest.mark.parametrize("gains", [(1.0, 1.0, 1.0), (1.0, 1e-6, 1e3), (0.0, 1.0, 0.0)])
def test_a_batch_gives_what_its_members_give(gains: tuple[float, ...], prior: AudioVAE) -> None:
    """Members of very different levels, silent ones among them."""
    waves = torch.stack([gain * wave(seed=i) for i, gain in enumerate(gains)])
    together, latents = prior.resynthesize(waves), prior.encode(waves)
    for i, member in enumerate(waves):
        torch.testing.assert_close(
            together[i], prior.resynthesize(member), rtol=0, atol=2e-5 * max(gains[i], 1e-30) * 10
        )
        torch.testing.assert_close(latents.posterior.mean[i], prior.encode(member).posterior.mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 1023, 1024, 1025, 5000])
def test_the_length_is_kept(length: int, prior: AudioVAE) -> None:
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(length))
    assert prior.resynthesize(x).shape == (2, length)
    assert prior.encode(x).n_samples == length


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 5000])
def test_griffin_lim_keeps_the_length(length: int, prior: AudioVAE) -> None:
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(length))
    y = prior.resynthesize(x, phase="griffin-lim")
    assert y.shape == (2, length)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize(("n_fft", "hop_length"), [(1024, 256), (512, 100), (64, 16)])
def test_griffin_lim_finds_a_wave_of_the_magnitude(n_fft: int, hop_length: int) -> None:
    """Of a real sound's magnitude: the spectral convergence of the first random phase is about 0.7, and ends below
    0.2."""
    torch.manual_seed(6)
    stft = STFT(n_fft, hop_length)
    magnitude = stft(wave()).abs()
    found = griffin_lim(stft, magnitude, len(wave()))
    assert float((stft(found).abs() - magnitude).norm() / magnitude.norm()) < 0.2


def test_griffin_lim_is_as_near_to_the_magnitude_as_that_of_librosa() -> None:
    """Also of a wave with an offset: the signs of its lowest bin are those of all frames or of none."""
    stft = STFT()
    sound = wave()[: 256 * (len(wave()) // 256)]  # whole hops, of which both make as many frames
    for offset, factor in ((0.0, 1.4), (0.05, 1.0)):
        magnitude = stft(sound + offset).abs()
        options = {"n_iter": 64, "hop_length": 256, "window": stft.window.numpy(), "length": len(sound)}
        far = torch.zeros(2)
        for seed in range(5):
            torch.manual_seed(seed)
            np.random.seed(seed)
            theirs = torch.from_numpy(librosa.griffinlim(magnitude.mT.numpy(), **options))
            for i, found in enumerate((griffin_lim(stft, magnitude, len(sound)), theirs)):
                far[i] += (stft(found).abs() - magnitude).norm()
        assert far[0] < factor * far[1], f"at an offset of {offset}"


# Arrays --------------------------------------------------------------------------------------------------------------


def test_a_loaded_prior_answers_arrays_with_arrays_that_can_be_written(model_folder: Path, tmp_path: Path) -> None:
    loaded, heard = AudioVAE.from_pretrained(model_folder), wave()
    again = loaded.resynthesize(heard)
    soundfile.write(tmp_path / "tensor.wav", again, loaded.sample_rate)  # needs no gradient
    array = loaded.resynthesize(heard.numpy().astype(np.float64))
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, again.numpy())
    torch.manual_seed(0)
    bound = loaded.log_likelihood(heard)
    torch.manual_seed(0)
    assert np.array_equal(loaded.log_likelihood(heard.numpy()), bound.numpy())
    assert loaded.measure_level(heard.numpy()) == loaded.measure_level(heard).numpy()
    assert torch.equal(loaded.decode(loaded.encode(heard.numpy())), loaded.decode(loaded.encode(heard)))
    assert loaded.resynthesize(heard.clone().requires_grad_()).requires_grad  # where the wave needs one


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["resynthesize", "encode", "log_likelihood", "analyse", "measure_level"])
def test_a_wave_with_a_sample_that_is_no_number_is_refused(method: str, value: float, prior: AudioVAE) -> None:
    broken = wave().expand(2, -1).clone()
    broken[1, 77:80] = value
    for given in (broken, broken.numpy()):
        with pytest.raises(ValueError, match="holds 3 samples that are NaN or infinite, the first at sample 77"):
            getattr(prior, method)(given)


# Silence and other odd sound -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD_WAVES)
def test_odd_sound_is_finite_forward_and_backward(name: str, prior: AudioVAE) -> None:
    for function in (
        prior.resynthesize,
        prior.log_likelihood,
        lambda x: prior.log_likelihood(x, 3),
        lambda x: prior.decode(prior.encode(x)),
        lambda x: prior.resynthesize(x, latents="sample"),
    ):
        x = ODD_WAVES[name].clone().requires_grad_()
        result = function(x)
        assert torch.isfinite(result).all()
        gradients = torch.autograd.grad(result.mean(), [x, *prior.parameters()], allow_unused=True)
        assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
        assert gradients[0] is not None


@pytest.mark.parametrize("length", [1, 100, 5000])
@pytest.mark.parametrize("phase", ["original", "griffin-lim"])
def test_silence_stays_silent(phase: str, length: int, prior: AudioVAE) -> None:
    assert torch.equal(prior.resynthesize(torch.zeros(2, length), phase), torch.zeros(2, length))  # type: ignore[arg-type]
    assert prior.encode(torch.zeros(length)).level == 0
    assert not prior.decode(prior.encode(torch.zeros(length))).any()


def test_silence_is_scored_at_level_one(prior: AudioVAE) -> None:
    silence = torch.zeros(1000)
    torch.manual_seed(7)
    measured = prior.log_likelihood(silence)
    torch.manual_seed(7)
    torch.testing.assert_close(measured, prior.log_likelihood(silence, level=1.0))


def test_a_wave_in_double_precision_is_processed_by_a_model_in_single_precision(prior: AudioVAE) -> None:
    """As sound files are often read."""
    x = wave().double()
    torch.testing.assert_close(prior.resynthesize(x).double(), prior.resynthesize(wave()).double(), atol=1e-4, rtol=0)


def test_a_model_in_double_precision_does_everything() -> None:
    prior, x = build_prior().double(), wave().double()
    assert prior.resynthesize(x).dtype == torch.float64
    torch.testing.assert_close(prior.resynthesize(x), build_prior().resynthesize(wave()).double(), atol=1e-3, rtol=0)
    assert prior.sample(3).dtype == torch.float64


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_model_of_another_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="the STFT gives 257 frequency bins and the VAE expects 513"):
        AudioVAE(STFT(512, 128), FrameVAE(513), RATE)


@pytest.mark.parametrize("rate", [0, -16000])
def test_a_rate_that_is_none_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match=f"sample_rate must be positive, got {rate}"):
        AudioVAE(STFT(16, 4), FrameVAE(9, FrameVAESettings(latent_dim=2, hidden=(4,))), rate)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_choice_is_refused(prior: AudioVAE) -> None:
    with pytest.raises(ValueError, match="phase must be 'original' or 'griffin-lim', got 'random'"):
        prior.resynthesize(wave(), phase="random")  # type: ignore[arg-type]
    for call in (prior.resynthesize, lambda x, latents: prior.decode(prior.encode(x), latents)):
        with pytest.raises(ValueError, match="latents must be 'mean' or 'sample', got 'mode'"):
            call(wave(), latents="mode")
    with pytest.raises(ValueError, match="latents must be 'mean' or 'sample', got 'mode'"):
        check_choice("mode")


@pytest.mark.parametrize("method", ["resynthesize", "encode", "log_likelihood"])
def test_a_wave_without_samples_is_refused(method: str, prior: AudioVAE) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        getattr(prior, method)(torch.zeros(0))


def test_the_device_is_that_of_the_weights(prior: AudioVAE) -> None:
    assert prior.device == next(prior.parameters()).device == torch.device("cpu")
    if torch.cuda.is_available():
        on_gpu = build_prior().to("cuda")
        assert on_gpu.device.type == "cuda"
        torch.testing.assert_close(
            on_gpu.resynthesize(wave().cuda()).cpu(), prior.resynthesize(wave()), atol=1e-3, rtol=0
        )


def test_the_global_random_state_is_left_alone_by_what_is_deterministic(prior: AudioVAE) -> None:
    """The mean needs no random number, but `infer` may draw a path; the result must not depend on it."""
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append((prior.resynthesize(wave()), prior.encode(wave()).posterior.mean))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert np.isfinite(results[0][0].numpy(force=True)).all()


def test_the_channels_of_a_recording_share_one_level(prior: AudioVAE) -> None:
    """That of their mean power: a power ratio of 98 between two microphones stays what it is."""
    loud = wave()
    recordings = torch.stack([torch.stack([loud, loud / 98**0.5]), torch.stack([loud / 3, 0 * loud])])
    apart, own = prior.analyse(recordings)
    together, level = prior.analyse(recordings, channels=True)
    assert together.shape == apart.shape
    for i, channels in enumerate(recordings):
        expected = active_level(channels.numpy(), prior.sample_rate)
        assert torch.allclose(level[i], torch.full((2,), expected))
    ratio = power(together[0, 0]).sum() / power(together[0, 1]).sum()
    assert float(ratio) == pytest.approx(98, rel=1e-4)
    assert float(power(apart[0, 0]).sum() / power(apart[0, 1]).sum()) == pytest.approx(1, rel=1e-3)
    assert float(own[0, 0] / own[0, 1]) == pytest.approx(98**0.5, rel=1e-4)
    single, of_single = prior.analyse(loud[None], channels=True)
    assert torch.equal(single, prior.analyse(loud[None])[0])
    assert of_single.shape == (1,)


def test_a_wave_without_channels_shares_nothing(prior: AudioVAE) -> None:
    with pytest.raises(ValueError, match=r"channels stand before the samples, and the wave has shape \[4000\]"):
        prior.analyse(torch.ones(4000), channels=True)


@pytest.mark.parametrize("rate", [500, 2**20])
def test_a_prior_of_any_rate_that_can_be_made_loads_again(prior: AudioVAE, rate: int, tmp_path: Path) -> None:
    AudioVAE(prior.stft, prior.vae, rate).save_pretrained(tmp_path)
    assert AudioVAE.from_pretrained(tmp_path).sample_rate == rate


@pytest.mark.parametrize("growth", [3e6, 1e3], ids=["of latents", "of the spectrum"])
def test_a_prior_that_runs_away_when_it_is_sampled_says_so(growth: float) -> None:
    stft = STFT(128, 64)
    torch.manual_seed(0)
    vae = DynamicVAE(stft.n_freqs, DynamicVAESettings(latent_dim=2, width=8, prior_width=8))
    prior = AudioVAE(stft, vae, 8000)
    with torch.no_grad():
        for network in (vae.transition, vae.decoder):
            network[-1].weight.normal_(0, growth)
    with pytest.raises(LatentError, match=r"runs away: of 200 frames .* beyond all numbers; sample fewer"):
        prior.sample(200)
