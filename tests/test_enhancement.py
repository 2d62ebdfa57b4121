"""Speech out of noise: inference against brute force and properties, and sound files whose parts sum to the whole."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
import torch
from audiovae.separation.energy import gradient
from audiovae.separation.enhancement import EStep
from audiovae.separation.m_step import update_colour, update_gain, update_noise
from audiovae.separation.noise import bands
from conftest import RATE, build_prior, speech_like
from numpy.typing import NDArray
from torch import Tensor

from audiovae import STFT, AudioVAE
from audiovae.audio import resample
from audiovae.cli.main import main
from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.errors import AudiovaeError
from audiovae.level import active_level, spectrogram_level
from audiovae.metrics import si_sdr
from audiovae.models import MODELS, DynamicVAE, FrameVAE
from audiovae.separation import (
    METHODS,
    Draws,
    Enhancer,
    FreePosterior,
    LatentEnergy,
    MarkovChain,
    Mixture,
    NMFNoise,
    NoiseModel,
    PointEstimate,
    Separation,
    SlowNoise,
    StationaryNoise,
    enhance_file,
    enhancer,
    files,
)
from audiovae.separation.mixture import quiet_spectrum, quiet_track
from audiovae.settings import DynamicVAESettings, FrameVAESettings, MethodName, NoiseName
from audiovae.stft import power

E_STEPS: dict[str, Callable[[], EStep]] = {
    "point estimate": PointEstimate,
    "free posterior": FreePosterior,
    "metropolis": partial(MarkovChain, n_burn=3, n_keep=4),
    "mala": partial(MarkovChain, "mala", n_burn=3, n_keep=4, step=0.01),
}
NOISES: dict[str, Callable[[Mixture], NoiseModel]] = {"slow": SlowNoise, "nmf": NMFNoise, "stationary": StationaryNoise}
TENTH_OF_A_DB = 10 ** (0.1 / 20) - 1
METHODS_TESTED = {"peem": 3.0, "fast": 1.0}  # dB that a method must gain at 5 dB


def white(n_samples: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32))


def noisy(seconds: float, seed: int = 0, snr_db: float = 5.0) -> Tensor:
    """Bursts of tones in white noise."""
    clean = torch.from_numpy(speech_like(seconds, 110 + 17 * seed, seed))
    noise = white(len(clean), seed)
    return clean + noise * clean.square().mean().sqrt() / noise.square().mean().sqrt() * 10 ** (-snr_db / 20)


def make_alive(prior: AudioVAE) -> AudioVAE:
    """Its spectra depend on its latents, and these on the sound, as in no untrained prior."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.vae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return prior


@pytest.fixture(scope="module")
def dynamic() -> AudioVAE:
    """With context in encoder, decoder and prior; short frames."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(n_fft=256, hop_length=64)
        sizes = DynamicVAESettings(latent_dim=4, width=16, dilations=(1, 2), prior_width=8, prior_dilations=(1,))
        vae = DynamicVAE(stft.n_freqs, sizes)
        vae.calibrate(power(stft(torch.randn(2 * RATE))))
        return make_alive(AudioVAE(stft, vae, RATE).eval())


@pytest.fixture(scope="module")
def frame() -> AudioVAE:
    return make_alive(build_prior())


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def priors(frame: AudioVAE, dynamic: AudioVAE, name: str) -> AudioVAE:
    return {"frame": frame, "dynamic": dynamic}[name]


def mixture_of(powers: list[Tensor], seeds: list[int] | None = None, padding: int = 0) -> Mixture:
    return Mixture.of(powers, torch.ones(len(powers), dtype=powers[0].dtype), seeds or [0] * len(powers), padding)


def random_power(n_frames: int, n_freqs: int, seed: int = 0) -> Tensor:
    """Of bursts of 10 frames above a floor that tilts over frequency."""
    generator = np.random.default_rng(seed)
    mean = np.linspace(3, 0.3, n_freqs) * (1 + 20 * (np.arange(n_frames) // 10 % 2))[:, None]
    return torch.from_numpy(mean * generator.exponential(size=(n_frames, n_freqs)))


# Inference -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("e_step", E_STEPS)
def test_the_images_sum_to_the_mixture_by_a_gain_from_0_to_1(frame: AudioVAE, e_step: str, noise: str) -> None:
    x = frame.stft(noisy(0.5))
    (found,) = Enhancer(frame, E_STEPS[e_step], NOISES[noise], n_iterations=3)([x])
    assert found.wiener.shape == x.shape
    assert found.images.shape == found.psds.shape == (2, *x.shape)
    assert found.latents.shape[1:] == (len(x), 8)
    assert found.gain.shape == (len(x),)
    assert found.objective.shape == (3,)
    assert not found.converged
    assert torch.isfinite(found.objective).all()
    assert ((found.wiener >= 0) & (found.wiener <= 1)).all()
    assert found.wiener.std() > 0.01  # it does something
    assert (found.images.sum(0) - x).abs().max() <= 1e-6 * x.abs().max()
    assert torch.equal(found.images[0], found.wiener * x)
    if len(found.latents) == 1:
        assert torch.allclose(found.wiener, found.psds[0] / found.psds.sum(0), rtol=1e-5)
    with torch.no_grad():
        speech = frame.psd(found.latents).mean(0) * spectrogram_level(power(x), frame.stft.window).square()
    assert torch.allclose(found.psds[0], speech, rtol=1e-4)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_a_louder_mixture_has_louder_parts_and_the_same_gain(frame: AudioVAE, noise: str, scale: float) -> None:
    x = frame.stft(noisy(0.5))
    run = Enhancer(frame, PointEstimate, NOISES[noise], n_iterations=3)
    (one,), (other,) = run([x]), run([scale * x])
    assert torch.allclose(other.wiener, one.wiener, rtol=1e-3)
    assert (other.images - scale * one.images).abs().max() <= 1e-3 * scale * one.images.abs().max()
    assert torch.allclose(other.psds, scale**2 * one.psds, rtol=1e-2)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("e_step", E_STEPS)
@pytest.mark.parametrize("kind", ["frame", "dynamic"])
def test_a_recording_comes_out_as_it_would_alone(
    frame: AudioVAE, dynamic: AudioVAE, kind: str, e_step: str, noise: str
) -> None:
    """Whatever stands beside it, is louder, or longer: by less than the reach of the model, by one frame, or by
    much."""
    prior = priors(frame, dynamic, kind)
    hop = prior.stft.hop_length
    spectrograms = [
        gain * prior.stft(noisy(2, seed)[: hop * n])
        for seed, (n, gain) in enumerate([(24, 1.0), (30, 50.0), (31, 1), (55, 0.1)])
    ]
    seeds = [3, 1, 4, 1]
    run = Enhancer(prior, E_STEPS[e_step], NOISES[noise], n_iterations=3)
    for found, x, seed in zip(run(spectrograms, seeds), spectrograms, seeds, strict=True):
        (alone,) = run([x], [seed])
        if found.acceptance is not None:  # whether a proposal is accepted may hang on the last digit
            assert (found.images - alone.images).norm() < TENTH_OF_A_DB * alone.images.norm()
            continue
        assert (found.wiener - alone.wiener).abs().max() < 1e-4
        assert (found.images - alone.images).abs().max() < 1e-4 * x.abs().max()
        assert torch.allclose(found.psds, alone.psds, rtol=1e-3)
        assert torch.allclose(found.latents, alone.latents, atol=1e-3)
        assert torch.allclose(found.objective, alone.objective, rtol=1e-4, atol=1e-2)


def test_the_prior_weighs_more_at_first_and_nothing_stops_before_it_has_its_weight(frame: AudioVAE) -> None:
    weights = []

    class Still:
        def begin(self, energy: LatentEnergy, latents: Tensor) -> None:
            self.energy, self.latents = energy, latents

        def draws(self) -> Draws:
            weights.append(self.energy.prior_weight)
            return Draws(self.latents.unsqueeze(0))

    x = frame.stft(noisy(0.5))
    (found,) = Enhancer(frame, Still, StationaryNoise, n_iterations=8, prior_weight=2.0, annealing=5.0, tolerance=1e9)(
        [x]
    )
    assert weights == [10.0, 8.0, 6.0, 4.0, 2.0]  # in a straight line over the first half
    assert found.converged
    weights.clear()
    Enhancer(frame, Still, StationaryNoise, n_iterations=8, prior_weight=2.0, tolerance=1e9)([x])
    assert weights == [2.0, 2.0]


def test_a_named_method_stops_when_it_is_done(frame: AudioVAE) -> None:
    (found,) = enhancer(frame, "peem", mixed_precision=False)([frame.stft(torch.full((1,), 0.5))])
    assert found.converged
    assert len(found.objective) < METHODS["peem"].n_iterations


@pytest.mark.parametrize("method", ["peem", "fast"])
def test_a_method_brings_its_own_prior(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = AudioVAE.from_pretrained

    def spy(name: Any, *rest: Any) -> AudioVAE:
        asked.append(name)
        return load(name, *rest)

    monkeypatch.setattr(AudioVAE, "from_pretrained", spy)
    stored(tmp_path / "in.wav", noisy(0.3)[:, None].numpy(), RATE, "PCM_16")
    assert main(["enhance", str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav"), "--method", method]) == 0
    assert asked == [{"peem": "speech-16k-separation", "fast": "speech-16k-fast"}[method]]


def test_no_recording_gives_no_separation(frame: AudioVAE) -> None:
    assert Enhancer(frame, PointEstimate)([]) == []


def test_a_recording_stops_by_itself_as_it_would_alone(dynamic: AudioVAE) -> None:
    spectrograms = [dynamic.stft(noisy(0.4, 0, snr_db=20)), dynamic.stft(white(3000)), dynamic.stft(torch.zeros(2000))]
    run = Enhancer(dynamic, PointEstimate, StationaryNoise, n_iterations=30, tolerance=0.02)
    together = run(spectrograms)
    assert len({len(found.objective) for found in together}) > 1
    for found, x in zip(together, spectrograms, strict=True):
        (alone,) = run([x])
        assert len(found.objective) == len(alone.objective)
        assert found.converged == alone.converged
        assert found.converged == (abs(float(found.objective[-1] - found.objective[-2])) < 0.02)
        assert (found.wiener - alone.wiener).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("e_step", "noise"), [("point estimate", "nmf"), ("metropolis", "slow"), ("free posterior", "stationary")]
)
def test_the_seed_makes_the_result_and_nothing_else_random_does(frame: AudioVAE, e_step: str, noise: str) -> None:
    x = frame.stft(noisy(0.4))
    run = Enhancer(frame, E_STEPS[e_step], NOISES[noise], n_iterations=2)
    (first,) = run([x], [5])
    torch.manual_seed(99)
    state = torch.get_rng_state()
    (again,), (other,) = run([x], [5]), run([x], [6])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.wiener, again.wiener)
    assert (first.wiener - other.wiener).abs().max() > 1e-5


def test_what_is_given_is_used_instead_of_being_measured(frame: AudioVAE) -> None:
    """With the level and the quiet spectrum that it would find by itself, and with the quiet spectrum of something
    else.
    """
    x = 0.01 * frame.stft(noisy(0.5))
    run = Enhancer(frame, PointEstimate, n_iterations=3)
    level = float(spectrogram_level(power(x), frame.stft.window))
    quiet = quiet_spectrum(power(x) / level**2) * level**2
    (alone,), (given,) = run([x]), run([x], levels=[level], quiet=[quiet])
    assert torch.allclose(given.wiener, alone.wiener, atol=1e-3)
    once = Enhancer(frame, PointEstimate, n_iterations=1, n_m_steps=1)
    (usual,), (louder,) = once([x]), once([x], levels=[level], quiet=[30 * quiet])
    assert (louder.psds[1] > 1.5 * usual.psds[1]).float().mean() > 0.9


@pytest.mark.parametrize("n_frames", [1, 2, 3])
@pytest.mark.parametrize("noise", NOISES)
def test_a_few_frames_are_enough(dynamic: AudioVAE, noise: str, n_frames: int) -> None:
    x = dynamic.stft(white(2000))[:n_frames]
    (found,) = Enhancer(dynamic, PointEstimate, NOISES[noise], n_iterations=2)([x])
    assert torch.isfinite(found.wiener).all()
    assert (found.images.sum(0) - x).abs().max() <= 1e-6 * x.abs().max()


def test_a_condition_says_what_the_speech_is() -> None:
    prior = make_alive(build_prior(labels={"digit": ("0", "1")}))
    x = prior.stft(noisy(0.4))
    zero, one = (
        Enhancer(prior, PointEstimate, n_iterations=2, condition=prior.condition(digit=digit))([x])[0] for digit in "01"
    )
    assert (zero.wiener - one.wiener).abs().max() > 1e-3


# The M-step ----------------------------------------------------------------------------------------------------------


def mean_misfit(p: Tensor, speech: Tensor, noise: Tensor) -> float:
    variance = speech.numpy() + noise.numpy()
    return float((np.log(variance) + p.numpy() / variance).sum() / len(speech))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("name", NOISES)
def test_no_update_of_the_noise_makes_its_objective_worse(prior: AudioVAE, name: str, n_samples: int) -> None:
    p = random_power(40, 17)
    mixture = mixture_of([p])
    energy = LatentEnergy(prior.vae, mixture)
    speech = torch.from_numpy(np.random.default_rng(1).gamma(0.3, 5.0, (n_samples, 1, 40, 17)))
    noise = NOISES[name](mixture)
    trace = [mean_misfit(mixture.power, speech, noise.variance())]
    for _ in range(30):
        update_noise(noise, energy, speech)
        assert torch.equal(energy.noise, noise.variance())
        trace.append(mean_misfit(mixture.power, speech, noise.variance()))
    steps = np.diff(trace)
    assert steps.max() <= 1e-10 * abs(trace[0])
    assert trace[0] - trace[-1] > 10  # nats: it does get better


@pytest.mark.usefixtures("double")
def test_an_update_of_nmf_is_that_of_the_formula(prior: AudioVAE) -> None:
    """Multiplicative updates with the square root, W before H, each with the variance of its moment; a loop over all
    entries.
    """
    n_frames, n_freqs, rank = 12, 5, 3
    p = random_power(n_frames, n_freqs)
    mixture = mixture_of([p], padding=4)
    energy = LatentEnergy(prior.vae, mixture)
    noise = NMFNoise(mixture, rank)
    v = np.random.default_rng(1).gamma(0.3, 5.0, (2, n_frames, n_freqs))
    speech = torch.zeros(2, 1, n_frames + 4, n_freqs)
    speech[:, 0, :n_frames] = torch.from_numpy(v)
    w, h = noise._spectra[0].numpy().copy(), noise._activations[0, :n_frames].numpy().copy()

    def ratios() -> tuple[NDArray[Any], NDArray[Any]]:
        variance = v + h @ w.T + VARIANCE_FLOOR
        return (p.numpy() / variance**2).mean(0), (1 / variance).mean(0)

    for _ in range(3):
        update_noise(noise, energy, speech)
        up, down = ratios()
        new = w.copy()
        for f in range(n_freqs):
            for k in range(rank):
                new[f, k] *= np.sqrt(
                    sum(up[t, f] * h[t, k] for t in range(n_frames))
                    / sum(down[t, f] * h[t, k] for t in range(n_frames))
                )
        w = new
        up, down = ratios()
        new = h.copy()
        for t in range(n_frames):
            for k in range(rank):
                new[t, k] *= np.sqrt(
                    sum(up[t, f] * w[f, k] for f in range(n_freqs)) / sum(down[t, f] * w[f, k] for f in range(n_freqs))
                )
        h = new
        found = noise.variance()[0].numpy()
        np.testing.assert_allclose(found[:n_frames], h @ w.T + VARIANCE_FLOOR, rtol=1e-9)
        assert (found > 0).all()


@pytest.mark.usefixtures("double")
def test_the_noise_alone_is_fitted_by_its_mean_power(prior: AudioVAE) -> None:
    """Without speech a stationary noise has one optimum, the mean over time; a slow one of constant power that too."""
    p = random_power(40, 17)
    for name in ("stationary", "slow"):
        given = p if name == "stationary" else torch.linspace(1, 5, 17).expand(40, 17).clone()
        mixture = mixture_of([given])
        mixture = replace(mixture, quiet=0.1 * mixture.quiet)  # the slow noise keeps half of it
        energy, noise = LatentEnergy(prior.vae, mixture), NOISES[name](mixture)
        for _ in range(300):
            update_noise(noise, energy, torch.zeros(1, 1, 40, 17))
        assert torch.allclose(noise.variance()[0], given.mean(0).expand(40, 17), rtol=1e-3), name


@pytest.mark.parametrize(
    "make", [partial(SlowNoise, rank=0), partial(NMFNoise, rank=0), partial(SlowNoise, bump_frames=0)]
)
def test_no_component_is_refused(make: Callable[[Mixture], NoiseModel]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make(mixture_of([random_power(5, 4)]))


# What is measured before ---------------------------------------------------------------------------------------------


def test_the_quiet_track_follows_a_noise_that_rises_and_starts_where_it_is_told() -> None:
    power_ = np.random.default_rng(0).exponential(size=(1000, 40)) * np.where(np.arange(1000) < 500, 1.0, 30.0)[:, None]
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


@pytest.mark.parametrize(
    "settings", [{}, {"n_fft": 512, "hop_length": 128}, {"window": "hann"}, {"n_fft": 1000, "hop_length": 250}]
)
def test_the_level_of_a_spectrogram_is_that_of_the_wave(settings: dict[str, Any]) -> None:
    stft = STFT(**settings)
    for wave in (0.02 * white(3 * RATE), noisy(3), torch.from_numpy(speech_like(3, 120, 2))):
        found = spectrogram_level(power(stft(wave)), stft.window)
        assert float(found) == pytest.approx(active_level(wave.numpy(), RATE), rel=0.03)


def test_the_level_of_the_spectrogram_of_speech_is_that_of_the_wave(speech: Tensor) -> None:
    stft = STFT()
    found = spectrogram_level(power(stft(speech)), stft.window)
    assert float(found) == pytest.approx(active_level(speech.numpy(), RATE), rel=1e-4)  # the frames are the same


def test_silence_has_level_0_and_is_not_divided_by_it(prior: AudioVAE) -> None:
    p = power(prior.stft(torch.zeros(4000)))
    level = spectrogram_level(p, prior.stft.window)
    assert float(level) == 0
    assert float(Mixture.of([p], level[None], [0]).level) == 1


# Energy --------------------------------------------------------------------------------------------------------------


def energy_of(prior: AudioVAE) -> tuple[LatentEnergy, Tensor, list[int]]:
    """In float64, of two recordings with padding, a gain and a noise that are not one."""
    vae = copy.deepcopy(prior.vae).double()
    lengths = [9, 6]
    mixture = mixture_of([100 * random_power(n, vae.n_freqs, seed) for seed, n in enumerate(lengths)], padding=3)
    energy = LatentEnergy(vae, mixture, prior_weight=2.5)
    generator = torch.Generator().manual_seed(0)
    shape = mixture.inside.shape
    energy.gain = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
    energy.noise = 10 * (0.5 + torch.rand(*shape, vae.n_freqs, generator=generator, dtype=torch.float64))
    return energy, torch.randn(2, *shape, vae.latent_dim, generator=generator, dtype=torch.float64), lengths


@pytest.mark.parametrize("kind", ["frame", "dynamic"])
def test_the_energy_is_the_sum_of_the_formula(frame: AudioVAE, dynamic: AudioVAE, kind: str) -> None:
    energy, latents, lengths = energy_of(priors(frame, dynamic, kind))
    found = energy(latents).detach().numpy()
    assert found.shape == latents.shape[:-1]
    for sample in range(2):
        for recording, n_frames in enumerate(lengths):
            z = latents[sample, recording].clone()
            z[n_frames:] = 0
            with torch.no_grad():
                v = energy.vae.likelihood(z).variance.numpy()
                log_prior = energy.vae.prior(z).log_prob(z).numpy()
            for t in range(n_frames):
                total = 0.0
                for f in range(v.shape[1]):
                    variance = float(energy.gain[recording, t]) * v[t, f] + float(energy.noise[recording, t, f])
                    total += np.log(variance) + float(energy.mixture.power[recording, t, f]) / variance
                assert found[sample, recording, t] == pytest.approx(total - 2.5 * log_prior[t], rel=1e-10)
            assert (found[sample, recording, n_frames:] == 0).all()


@pytest.mark.parametrize("kind", ["frame", "dynamic"])
def test_the_gradient_is_that_of_finite_differences_and_zero_in_the_padding(
    frame: AudioVAE, dynamic: AudioVAE, kind: str
) -> None:
    energy, latents, lengths = energy_of(priors(frame, dynamic, kind))
    values, slope = gradient(energy, latents)
    assert torch.equal(values, energy(latents).detach())
    assert not slope.requires_grad
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        direction = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = energy(latents + 1e-5 * direction).sum(), energy(latents - 1e-5 * direction).sum()
        assert float((slope * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-5)
    for recording, n_frames in enumerate(lengths):
        assert (slope[:, recording, n_frames:] == 0).all()
        assert (slope[:, recording, :n_frames] != 0).any(-1).all()


@pytest.mark.parametrize("kind", ["frame", "dynamic"])
def test_point_estimates_go_down_the_energy(frame: AudioVAE, dynamic: AudioVAE, kind: str) -> None:
    energy, latents, lengths = energy_of(priors(frame, dynamic, kind))
    e_step = PointEstimate(n_steps=30)
    start = energy.masked(latents[0])
    e_step.begin(energy, start)
    (found,) = e_step.draws().latents
    with torch.no_grad():
        assert (energy(found).sum(-1) < energy(start).sum(-1)).all()
    for recording, n_frames in enumerate(lengths):
        assert (found[recording, n_frames:] == 0).all()


@pytest.mark.parametrize("kind", ["frame", "dynamic"])
def test_the_slope_is_the_gradient_of_the_energy(frame: AudioVAE, dynamic: AudioVAE, kind: str) -> None:
    energy, latents, _ = energy_of(priors(frame, dynamic, kind))
    energy.colour = 0.5 + torch.rand(
        energy.colour.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    expected = gradient(energy, latents)[1]
    assert expected.abs().mean() > 1
    assert torch.allclose(energy.slope(latents), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["frame", "dynamic"])
def test_the_curvature_is_the_fisher_information_and_the_precision_of_the_prior(
    frame: AudioVAE, dynamic: AudioVAE, kind: str
) -> None:
    """sum_f (d log V_f / d z_j)^2 by automatic differentiation of the whole, against the mean over many signs."""
    energy, latents, lengths = energy_of(priors(frame, dynamic, kind))
    z = energy.masked(latents[0])
    jacobian = torch.func.jacrev(lambda z: torch.log(energy.mixture_variance(energy.speech(z)))[0, : lengths[0]])(z)[
        :, :, 0
    ].detach()
    with torch.no_grad():
        precision = 2.5 / energy.vae.prior(z).variance[0]
    generator = torch.Generator().manual_seed(0)
    n_draws = 400
    total = torch.zeros_like(z)
    for _ in range(n_draws):
        signs = 1.0 - 2 * torch.randint(0, 2, energy.noise.shape, generator=generator)
        total += energy.curvature(z, signs.double())
    found = (total / n_draws)[0, : lengths[0]]
    fisher = jacobian.square().sum((0, 1))[: lengths[0]]
    assert fisher.mean() > 0.05 * precision.mean()  # else nothing is tested
    assert torch.allclose(
        found - precision[: lengths[0]], fisher, rtol=0.4
    )  # each has a deviation of at most sqrt(2 / 400)
    assert float((found - precision[: lengths[0]]).sum() / fisher.sum()) == pytest.approx(1, abs=0.03)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [{"n_steps": 0}, {"refresh": 0}, {"step": 0.0}, {"trust": -1.0}, {"momentum": 1.0}])
def test_a_point_estimate_refuses_what_cannot_move(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive and momentum from 0 to below 1"):
        PointEstimate(**wrong)


@pytest.mark.parametrize("deviation", [0.2, 3.0])
def test_an_update_of_the_gain_lowers_its_objective_down_to_the_best_gain(frame: AudioVAE, deviation: float) -> None:
    """mean_r sum_f log V + P / V + 2.5 (log g)^2 / (2 deviation^2), and its minimum by a search over all gains."""
    energy, latents, _ = energy_of(frame)
    with torch.no_grad():
        speech = energy.speech(latents)

    def objective(log_gain: Tensor) -> Tensor:
        variance = log_gain.exp().unsqueeze(-1) * speech + energy.noise
        misfit = (torch.log(variance) + energy.mixture.power / variance).sum(-1).mean(0)
        return misfit + 2.5 * log_gain.square() / (2 * deviation**2)

    values = []
    for _ in range(200):
        values.append(objective(energy.gain.log()))
        update_gain(energy, speech, deviation)
    trace = torch.stack(values)[:, energy.mixture.inside]
    assert trace.diff(dim=0).max() < 1e-9 * trace.abs().max()
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    best = (
        torch.stack([objective(torch.full_like(energy.gain, float(u))) for u in grid])
        .min(0)
        .values[energy.mixture.inside]
    )
    assert (trace[-1] - best).abs().max() < 1e-2
    assert (energy.gain[~energy.mixture.inside] == 1).all()


def test_an_update_of_the_colour_finds_the_microphone(frame: AudioVAE) -> None:
    """Speech of a known variance under a known filter, in little noise: exactly where the filter is a line between the
    bands' centres.
    """
    energy, latents, _ = energy_of(frame)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        speech = energy.speech(latents[:1])
    shape = bands(20, speech.shape[-1], speech.device).double()
    colour = (shape @ torch.randn(20, generator=generator, dtype=torch.float64)).exp()
    energy.gain = torch.ones_like(energy.gain)
    energy.noise = 1e-6 * torch.ones_like(energy.noise)
    energy.mixture = replace(energy.mixture, power=speech[0] * colour + energy.noise)
    trace, log_colour = [], torch.zeros(2, 20, dtype=torch.float64)
    for _ in range(100):
        variance = energy.mixture_variance(speech)
        trace.append(((torch.log(variance) + energy.mixture.power / variance).sum(-1) * energy.mixture.inside).sum())
        log_colour = update_colour(energy, speech, 100.0, log_colour)
    assert (torch.stack(trace).diff() < 1e-6 * abs(trace[0])).all()
    assert torch.allclose(energy.colour, colour.expand_as(energy.colour), rtol=0.05)
    update_colour(energy, speech, 1e-3, log_colour)
    assert torch.allclose(energy.colour, torch.ones_like(energy.colour), atol=0.01)  # where the prior holds it


@pytest.fixture(scope="module")
def labelled() -> AudioVAE:
    """Speech of the label "low" has its power in the lower half of the spectrum, that of "high" in the upper."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(n_fft=256, hop_length=64)
        vae = FrameVAE(stft.n_freqs, FrameVAESettings(hidden=(16,), latent_dim=2, labels={"where": ("low", "high")}))
        vae.calibrate(power(stft(torch.randn(2 * RATE))))
        n_freqs = stft.n_freqs
        half = torch.where(torch.arange(n_freqs) < n_freqs // 2, 3.0, -3.0)

        class Halves(torch.nn.Module):
            def forward(self, joined: Tensor) -> Tensor:
                z, y = joined[..., :2], joined[..., 2:]
                return z[..., :1] + (y[..., :1] - y[..., 1:]) * half

        vae.decoder = Halves()
        return AudioVAE(stft, vae, RATE).eval()


def test_an_unknown_label_is_the_one_that_explains_the_recording(labelled: AudioVAE) -> None:
    vae = labelled.vae
    generator = torch.Generator().manual_seed(0)
    spectrograms, expected = [], ["low", "high", "high"]
    for i, where in enumerate(expected):
        z = torch.randn(60, 2, generator=generator)
        with torch.no_grad():
            clean = vae.likelihood(z, labelled.condition(where=where)).variance
        noise = 0.1 * clean.mean()
        x = torch.randn(2, 60 + i, vae.n_freqs, generator=generator)
        v = torch.nn.functional.pad(clean, (0, 0, 0, i)) + noise
        spectrograms.append(torch.complex(*x) * (v / 2).sqrt())
    found = Enhancer(labelled, PointEstimate, n_iterations=5)(spectrograms)
    for separation, x, where in zip(found, spectrograms, expected, strict=True):
        assert separation.condition is not None
        assert torch.equal(separation.condition, labelled.condition(where=where))
        (told,) = Enhancer(labelled, PointEstimate, n_iterations=5, condition=labelled.condition(where=where))([x])
        assert torch.allclose(
            separation.wiener, told.wiener, atol=1e-4
        )  # the trial leaves no trace, not even in the random numbers
        runs = [
            Enhancer(labelled, PointEstimate, n_iterations=3, condition=y)([x])[0].objective[-1]
            for y in vae.conditions.every()
        ]
        assert torch.equal(vae.conditions.every()[int(torch.stack(runs).argmin())], separation.condition)


# Refusals ------------------------------------------------------------------------------------------------------------

SIZES: dict[str, dict[str, Any]] = {
    "FrameVAE": {"hidden": (8,)}, "Autoencoder": {"hidden": (8,)}, "ContextVAE": {"width": 8, "dilations": (1,)},
    "DynamicVAE": {"width": 8, "dilations": (1,), "prior_width": 8, "prior_dilations": (1,)},
    "SequenceVAE": {"n_frames": 64, "width": 8, "hidden": 8, "blocks": 1}, "LabelVAE": {"width": 8, "blocks": 1},
    "RVAE": {"width": 8}, "DKF": {"width": 8, "features": 8, "emission": (8,)}, "STORN": {"width": 8, "features": 8},
    "VRNN": {"width": 8, "features": 8}, "SRNN": {"width": 8, "features": 8},
    "DSAE": {"sequence_dim": 4, "width": 8, "emission": (8,)},
}  # fmt: skip


def untrained(name: str, **settings: Any) -> AudioVAE:
    if name == "LabelVAE":
        settings["labels"] = {"digit": ("0", "1")}
    model, kind = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(n_fft=256, hop_length=64)
        vae = model(
            stft.n_freqs, kind(**{**({} if name == "Autoencoder" else {"latent_dim": 4}), **SIZES[name], **settings})
        )
        vae.calibrate(power(stft(torch.randn(RATE))))
        return AudioVAE(stft, vae, RATE).eval()


def test_every_model_is_known_here() -> None:
    assert SIZES.keys() == MODELS.keys()


REFUSED = [
    ("LabelVAE", {}, "LabelVAE predicts labels"),
    ("STORN", {}, "STORN needs past clean speech"),
    ("VRNN", {}, "VRNN needs past clean speech"),
    ("SRNN", {}, "SRNN needs past clean speech"),
    ("FrameVAE", {"likelihood": "bernoulli"}, "the likelihood 'bernoulli' is no density"),
    ("FrameVAE", {"likelihood": "squared-error"}, "the likelihood 'squared-error' is no density"),
    ("Autoencoder", {}, "the likelihood 'squared-error' is no density"),
    ("Autoencoder", {"likelihood": "complex-gaussian"}, "Autoencoder has no prior on its latents"),
]


@pytest.mark.parametrize(("name", "settings", "reason"), REFUSED)
def test_a_prior_that_has_no_psd_of_latents_alone_is_refused_with_the_reason(
    name: str, settings: dict[str, Any], reason: str
) -> None:
    given = untrained(name, **settings)
    with pytest.raises(AudiovaeError, match=reason):
        Enhancer(given, PointEstimate)
    with pytest.raises(AudiovaeError, match=reason):
        enhancer(given)


USABLE = [
    ("FrameVAE", {}), ("FrameVAE", {"likelihood": "complex-student-t"}), ("ContextVAE", {}), ("DynamicVAE", {}),
    ("RVAE", {}),
    ("RVAE", {"causal": False}), ("DKF", {}), ("SRNN", {"own_past": True}), ("SequenceVAE", {}), ("DSAE", {}),
]  # fmt: skip


@pytest.mark.parametrize("e_step", ["point estimate"])
@pytest.mark.parametrize(("name", "settings"), USABLE)
def test_any_other_prior_is_used_or_refused_before_any_sound(name: str, settings: dict[str, Any], e_step: str) -> None:
    """Recurrences forget what follows a recording within the padding, nearly."""
    given = make_alive(untrained(name, **settings))
    try:
        run = Enhancer(given, E_STEPS[e_step], n_iterations=2)
    except AudiovaeError:
        assert name in ("SequenceVAE", "DSAE")
        return
    spectrograms = [given.stft(noisy(1)[: 64 * n]) for n in (20, 40)]
    for found, x in zip(run(spectrograms), spectrograms, strict=True):
        assert (found.wiener - run([x])[0].wiener).abs().max() < 5e-3
        assert (found.images.sum(0) - x).abs().max() <= 1e-6 * x.abs().max()


@pytest.mark.usefixtures("unchecked")
def test_unknown_names_are_refused_with_the_known_ones(prior: AudioVAE) -> None:
    with pytest.raises(ValueError, match=r"method must be one of peem, .*fast, got 'pem'"):
        enhancer(prior, "pem")
    with pytest.raises(ValueError, match="noise must be one of slow, nmf, stationary, got 'pink'"):
        enhancer(prior, noise="pink")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        Enhancer(prior, PointEstimate, n_iterations=0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_by_its_name(dynamic: AudioVAE, method: str) -> None:
    x = dynamic.stft(noisy(0.3))
    (found,) = enhancer(dynamic, method, mixed_precision=False)([x])
    assert (found.images.sum(0) - x).abs().max() <= 1e-6 * x.abs().max()
    (mixed,) = enhancer(dynamic, method, mixed_precision=True)([x])
    assert mixed.wiener.dtype == mixed.psds.dtype == torch.float32
    assert (mixed.wiener - found.wiener).abs().mean() < 0.05


# Real speech ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> AudioVAE:
    return AudioVAE.from_pretrained("speech-16k")


def in_noise(clean: Tensor, colour: str, snr_db: float = 5.0) -> Tensor:
    spectrum = torch.fft.rfft(white(len(clean), 7))
    if colour == "pink":
        spectrum = spectrum / torch.arange(1, len(spectrum) + 1).sqrt()
    noise = torch.fft.irfft(spectrum, len(clean))
    return clean + noise * clean.square().mean().sqrt() / noise.square().mean().sqrt() * 10 ** (-snr_db / 20)


@pytest.mark.parametrize("colour", ["white", "pink"])
@pytest.mark.parametrize("method", METHODS_TESTED)
def test_speech_comes_out_of_noise(shipped: AudioVAE, speech: Tensor, method: str, colour: str) -> None:
    mixture = in_noise(speech, colour)
    (found,) = enhancer(shipped, method, mixed_precision=False)([shipped.stft(mixture)])
    enhanced = shipped.stft.inverse(found.images[0], len(speech))
    before, after = (si_sdr(speech.numpy(), wave.numpy()) for wave in (mixture, enhanced))
    assert before == pytest.approx(5, abs=0.2)
    assert after - before > METHODS_TESTED[method]


# Files ---------------------------------------------------------------------------------------------------------------


class Fixed(Enhancer):
    """Stands for inference: gains that are known, one for each call, constant over a block."""

    def __init__(self, prior: AudioVAE, gains: list[float]) -> None:
        super().__init__(prior, PointEstimate)
        self.gains, self.quiet, self.lengths = gains, [], []  # type: ignore[var-annotated]

    def __call__(self, spectrograms: Any, seeds: Any = None, levels: Any = None, quiet: Any = None) -> list[Separation]:
        (x,) = spectrograms
        gain = self.gains[min(len(self.quiet), len(self.gains) - 1)]
        self.quiet.append(quiet[0])
        self.lengths.append(len(x))
        noise = torch.arange(len(x)).float()[:, None].expand(x.shape) + 1000 * len(self.quiet)
        wiener = torch.full(x.shape, gain)
        images = torch.stack([wiener * x, x - wiener * x])
        return [
            Separation(
                wiener,
                images,
                torch.stack([noise, noise]),
                torch.zeros(1, len(x), 8),
                torch.ones(len(x)),
                torch.ones(2),
                False,
            )
        ]


def stored(path: Path, wave: NDArray[np.floating], rate: int = RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


def two_channels(seconds: float, rate: int) -> NDArray[np.float64]:
    left, right = (0.3 * noisy(seconds, seed).numpy() for seed in range(2))
    wave = resample(np.stack([left, left + 0.2 * right]), RATE, rate)
    return wave.T.astype(np.float64)


SOUNDS: dict[str, tuple[Callable[[], NDArray[np.floating]], int, str]] = {
    "silence": (lambda: np.zeros((RATE, 1)), RATE, "PCM_16"),
    "clipped a little": (lambda: (2 * noisy(1)[:, None].numpy()).clip(-1, 1), RATE, "PCM_16"),
    "clipped": (lambda: (20 * noisy(1)[:, None].numpy()).clip(-1, 1), RATE, "PCM_16"),
    "8 kHz": (lambda: resample(0.3 * noisy(1)[None].numpy(), RATE, 8000).T, 8000, "PCM_16"),
    "48 kHz, 24 bits, stereo": (lambda: two_channels(1, 48000), 48000, "PCM_24"),
    "float": (lambda: two_channels(1, 44100), 44100, "FLOAT"),
    "a single sample": (lambda: np.full((1, 1), 0.5), RATE, "PCM_16"),
    "odd length": (lambda: 0.3 * noisy(1)[:8191, None].numpy(), 11025, "PCM_16"),
}  # fmt: skip
STEP = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-23, "FLOAT": 2.0**-22}


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("method", ["peem", "fast"])
def test_speech_and_residual_of_a_file_are_like_it_and_sum_to_it(
    frame: AudioVAE, tmp_path: Path, name: str, method: str
) -> None:
    make, rate, subtype = SOUNDS[name]
    source = stored(tmp_path / "in.wav", make(), rate, subtype)
    done = enhance_file(enhancer(frame, method), source, tmp_path / "out.wav", tmp_path / "rest.wav")
    given, of_source = soundfile.info(source), soundfile.read(source)[0]
    parts = []
    for path in (tmp_path / "out.wav", tmp_path / "rest.wav"):
        info = soundfile.info(path)
        parts.append(soundfile.read(path)[0])
        assert (info.samplerate, info.frames, info.channels) == (given.samplerate, given.frames, given.channels)
        assert (info.format, info.subtype) == (given.format, given.subtype)
        assert np.isfinite(parts[-1]).all()
    assert done.residual is not None
    held = (
        np.abs(parts[1]) < 1 - 2 * STEP[subtype]
    )  # elsewhere the residual itself is beyond full scale, and said to be
    assert held.all() or (name.startswith("clipped") and done.residual.clips)
    assert held.mean() > 0.97
    assert np.abs(parts[0] + parts[1] - of_source)[held].max() <= STEP[subtype] * (1 + 1e-6)
    assert 1 < len(done.objective) <= METHODS[method].n_iterations
    assert np.isfinite(done.objective).all()
    if not of_source.any():
        assert not parts[0].any()


def test_speech_and_residual_of_a_clipped_file_sum_to_it_where_the_speech_is_beyond_full_scale(
    frame: AudioVAE, tmp_path: Path
) -> None:
    """A gain of one, through the resampler: it overshoots what was clipped."""
    wave = np.sign(np.sin(2 * np.pi * 440 * np.arange(44100) / 44100))[:, None]
    source = stored(tmp_path / "in.wav", wave, 44100)
    done = enhance_file(Fixed(frame, [1.0]), source, tmp_path / "out.wav", tmp_path / "rest.wav")
    assert done.speech.peak > 1.01
    parts = [soundfile.read(tmp_path / f"{part}.wav")[0] for part in ("out", "rest")]
    assert np.abs(sum(parts) - soundfile.read(source)[0]).max() <= 2.0**-15 * (1 + 1e-6)


def test_the_channels_share_one_gain(frame: AudioVAE, tmp_path: Path) -> None:
    """That of their mean power: of each channel's own there would be two."""
    wave = two_channels(1, RATE).astype(np.float32)
    wave[:, 1] *= 0.1
    source = stored(tmp_path / "in.wav", wave, RATE, "FLOAT")
    run = enhancer(frame, mixed_precision=False)
    enhance_file(run, source, tmp_path / "out.wav")
    channels = frame.stft(torch.from_numpy(wave.T.copy()))
    level = active_level(wave.T, RATE)
    (shared,) = run([power(channels).mean(0).sqrt().to(channels.dtype)], [0], [level])
    expected = frame.stft.inverse(shared.wiener * channels, len(wave)).numpy()
    found = soundfile.read(tmp_path / "out.wav", dtype="float32")[0].T
    for i in range(2):
        assert si_sdr(expected[i], found[i]) > 40
        assert np.std(found[i]) == pytest.approx(np.std(expected[i]), rel=1e-2)
    enhance_file(
        run, stored(tmp_path / "both.wav", wave[:, [0, 0]] * [[1.0, 0.125]], RATE, "FLOAT"), tmp_path / "ratio.wav"
    )
    left, right = soundfile.read(tmp_path / "ratio.wav")[0].T
    np.testing.assert_allclose(right, 0.125 * left, atol=1e-6)
    assert left.std() > 1e-3


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_FRAMES", 60)
    monkeypatch.setattr(files, "OVERLAP_FRAMES", 20)


@pytest.mark.usefixtures("short")
def test_blocks_of_one_gain_leave_no_seam(frame: AudioVAE, tmp_path: Path) -> None:
    wave = 0.3 * noisy(4).numpy()
    source = stored(tmp_path / "in.wav", wave, RATE, "FLOAT")
    run = Fixed(frame, [0.3])
    enhance_file(run, source, tmp_path / "out.wav")
    assert len(run.lengths) > 3
    assert min(run.lengths) >= 60
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], 0.3 * wave, atol=1e-5)


@pytest.mark.usefixtures("short")
def test_the_gain_of_one_block_fades_into_the_next_along_a_line(frame: AudioVAE, tmp_path: Path) -> None:
    """And the noise at the end of one is where the next one's begins."""
    wave = 0.3 * noisy(4).numpy()
    source = stored(tmp_path / "in.wav", wave, RATE, "FLOAT")
    run = Fixed(frame, [0.2, 0.8, 0.1, 0.9, 0.5])
    enhance_file(run, source, tmp_path / "out.wav")
    x = frame.stft(torch.from_numpy(wave))
    gains = torch.zeros(len(x))
    for i, n_frames in enumerate(run.lengths):
        start = 40 * i
        for t in range(n_frames):
            share = min(t / 19, 1.0) if i else 1.0
            gains[start + t] += share * (run.gains[min(i, 4)] - gains[start + t])
    assert start + n_frames == len(x)
    expected = frame.stft.inverse(gains[:, None] * x, len(wave)).numpy()
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], expected, atol=1e-5)
    assert run.quiet[0] is None
    for i, quiet in enumerate(run.quiet[1:], start=1):
        last = torch.arange(run.lengths[i - 1] - 20, run.lengths[i - 1]).float().mean()
        assert torch.allclose(quiet, last + 1000 * i)


def test_a_long_file_in_blocks_is_nearly_that_at_once(
    shipped: AudioVAE, speech: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = 0.5 * in_noise(speech, "white").numpy()
    source = stored(tmp_path / "in.wav", wave, RATE, "FLOAT")
    run = enhancer(shipped, mixed_precision=False)
    enhance_file(run, source, tmp_path / "whole.wav")
    monkeypatch.setattr(files, "BLOCK_FRAMES", 60)
    monkeypatch.setattr(files, "OVERLAP_FRAMES", 20)
    enhance_file(run, source, tmp_path / "blocks.wav")
    whole, blocks = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("whole", "blocks"))
    assert np.isfinite(blocks).all()
    assert si_sdr(whole, blocks) > 12
    assert si_sdr(speech.numpy(), blocks) > si_sdr(speech.numpy(), wave) + 3


@pytest.mark.parametrize("gain", [1.0, 0.4])
def test_what_lies_above_the_highest_frequency_of_the_prior_is_residual(
    frame: AudioVAE, tmp_path: Path, gain: float
) -> None:
    time = np.arange(48000) / 48000
    low, high = 0.3 * np.sin(2 * np.pi * 1000 * time), 0.2 * np.sin(2 * np.pi * 12000 * time)
    source = stored(tmp_path / "in.wav", low + high, 48000, "FLOAT")
    enhance_file(Fixed(frame, [gain]), source, tmp_path / "out.wav", tmp_path / "rest.wav")
    middle = slice(4800, -4800)  # the tones begin and end with a click
    out, rest = (soundfile.read(tmp_path / f"{name}.wav")[0][middle] for name in ("out", "rest"))
    np.testing.assert_allclose(out, gain * low[middle], atol=2e-3)
    np.testing.assert_allclose(rest, (1 - gain) * low[middle] + high[middle], atol=2e-3)


def test_the_seed_of_a_file_makes_its_result(frame: AudioVAE, tmp_path: Path) -> None:
    source = stored(tmp_path / "in.wav", 0.3 * noisy(0.5).numpy())
    made = []
    for seed in (1, 1, 2):
        enhance_file(enhancer(frame, "fast", "nmf"), source, tmp_path / "out.wav", seed=seed)
        made.append((tmp_path / "out.wav").read_bytes())
    assert made[0] == made[1] != made[2]


# Command line --------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `model`, `in/a.wav` and `in/b.wav`."""
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("ab"):
        stored(tmp_path / "in" / f"{name}.wav", 0.3 * noisy(0.4, seed).numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def audiovae(command: str) -> int:
    try:
        return main(command.split())
    except SystemExit as leave:
        return int(leave.code or 0)


def assert_sum(*names: str) -> None:
    out, rest, given = (soundfile.read(name)[0] for name in names)
    assert np.abs(out + rest - given).max() <= 2.0**-15 * (1 + 1e-6)


def test_the_command_writes_speech_and_residual(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audiovae("enhance in -o out --residual rest --method fast --model model --json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["file"], row["output"], row["residual"]) for row in rows] == [
        (f"in/{name}.wav", f"out/{name}.wav", f"rest/{name}.wav") for name in "ab"
    ]
    assert all(len(row["objective"]) == 4 for row in rows)
    for name in "ab":
        assert_sum(f"out/{name}.wav", f"rest/{name}.wav", f"in/{name}.wav")
    assert audiovae("enhance in/a.wav -o one.wav --residual two.wav --method fast --model model --quiet") == 0
    assert Path("one.wav").read_bytes() == Path("out/a.wav").read_bytes()
    assert Path("two.wav").read_bytes() == Path("rest/a.wav").read_bytes()


def test_the_options_of_the_command_are_those_of_python(here: Path, prior: AudioVAE) -> None:
    options = "--method peem --noise nmf --rank 3 --seed 4 --precision 32-true"
    assert audiovae(f"enhance in/a.wav -o cli.wav {options} --model model --quiet") == 0
    enhance_file(enhancer(prior, "peem", "nmf", 3, mixed_precision=False), "in/a.wav", "python.wav", seed=4)
    assert Path("cli.wav").read_bytes() == Path("python.wav").read_bytes()
    enhance_file(enhancer(prior, "peem", "nmf", 8, mixed_precision=False), "in/a.wav", "other.wav", seed=4)
    assert Path("cli.wav").read_bytes() != Path("other.wav").read_bytes()


def test_every_name_of_a_method_has_its_options() -> None:
    assert tuple(METHODS) == get_args(MethodName)
    assert tuple(NOISES) == get_args(NoiseName)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method pem", "peem"),
        ("--noise pink", "slow"),
        ("--rank 0", "rank"),
        ("--precision 16", "bf16-mixed"),
        ("--residual kept.wav", "kept.wav: exists already; --overwrite replaces it"),
        ("--residual out.wav", "out.wav"),
        ("--residual in/a.wav", "is the input itself"),
        ("--residual rest.xyz", "rest.xyz"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    Path("kept.wav").write_text("precious")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert audiovae(f"enhance in/a.wav -o out.wav --model model {options}") == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1, output.err
    assert message in output.err
    if options == "--method pem":
        assert all(name in output.err for name in METHODS)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_an_existing_residual_is_replaced_where_that_is_asked_for(here: Path) -> None:
    Path("kept.wav").write_text("precious")
    assert (
        audiovae("enhance in/a.wav -o out.wav --residual kept.wav --overwrite --method fast --model model --quiet") == 0
    )
    assert_sum("out.wav", "kept.wav", "in/a.wav")


def test_the_residuals_of_several_files_go_into_a_folder_of_any_name(here: Path) -> None:
    """As their speech does."""
    assert audiovae("enhance in -o out.v1 --residual rest.v1 --method fast --model model --quiet") == 0
    for name in "ab":
        assert_sum(f"out.v1/{name}.wav", f"rest.v1/{name}.wav", f"in/{name}.wav")


def test_a_prior_that_cannot_be_used_is_refused_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untrained("VRNN").save_pretrained("vrnn")
    capsys.readouterr()
    assert audiovae("enhance in/a.wav -o out.wav --model vrnn") == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1
    assert "VRNN needs past clean speech" in output.err
    assert not Path("out.wav").exists()
