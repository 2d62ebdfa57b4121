"""Enhancement: the M-step, the energy, batches, level, the oracle, and real speech out of noise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_prior
from torch import Tensor

from audiovae import STFT, AudioVAE
from audiovae.errors import AudiovaeError
from audiovae.level import active_level
from audiovae.metrics import si_sdr
from audiovae.models import MODELS, DynamicVAE
from audiovae.models.vae import VAE
from audiovae.separation import (
    METHODS,
    Enhancer,
    EStep,
    LatentEnergy,
    Mixture,
    NMFNoise,
    NoiseModel,
    PointEstimate,
    SlowNoise,
    StationaryNoise,
    enhance_file,
    enhancer,
    files,
)
from audiovae.separation.energy import gradient
from audiovae.separation.enhancement import m_step
from audiovae.separation.mixture import quiet_spectrum, spectrogram_level
from audiovae.settings import DynamicVAESettings

RATE = 16000
NOISES = {"slow": SlowNoise, "nmf": NMFNoise, "stationary": StationaryNoise}
every_noise = pytest.mark.parametrize("noise", NOISES)


def dynamic_prior() -> AudioVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(64, 16)
        vae = DynamicVAE(stft.n_freqs, DynamicVAESettings(latent_dim=4, width=16, dilations=(1, 2), prior_width=8, prior_dilations=(1,)))
        x = stft(torch.randn(RATE))
        vae.calibrate(x.real.square() + x.imag.square())
        for parameter in vae.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return AudioVAE(stft, vae, RATE).eval()


def recordings(prior: AudioVAE, *n_samples: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    waves = [torch.randn(n, generator=generator) * torch.linspace(0.2, 1, n) for n in n_samples]
    return [prior.stft(wave) for wave in waves]


def mixture_of(n_frames: int = 30, n_freqs: int = 9, n_recordings: int = 2, padding: int = 0) -> Mixture:
    generator = torch.Generator().manual_seed(1)
    powers = [torch.randn(n_frames - 5 * i, n_freqs, generator=generator).square() * 3 + 0.1 for i in range(n_recordings)]
    return Mixture.of(powers, torch.ones(n_recordings), list(range(n_recordings)), padding)


@every_noise
@pytest.mark.parametrize("n_samples", [1, 3])
def test_an_m_step_never_increases_its_objective_for_fixed_samples(noise: str, n_samples: int) -> None:
    mixture = mixture_of()
    energy = LatentEnergy(build_prior().vae, mixture)
    speech = torch.rand(n_samples, *mixture.power.shape, generator=torch.Generator().manual_seed(2)) * 2
    model = NOISES[noise](mixture)

    def objective() -> float:
        variance = energy.mixture_variance(speech).double()
        return float(((torch.log(variance) + mixture.power / variance).sum(-1) * mixture.inside).mean(0).sum())

    energy.noise = model.variance()
    before = first = objective()
    for _ in range(30):
        m_step(model, energy, speech)
        after = objective()
        assert after <= before + 1e-6 * abs(before)
        before = after
    assert before < first - 1


def test_nmf_updates_are_the_published_ones() -> None:
    """One recording and one sample, written out with loops of NumPy: W, then H with the new V, then the columns' scale."""
    mixture = mixture_of(n_recordings=1)
    model = NMFNoise(mixture, rank=3)
    speech = torch.rand(1, *mixture.power.shape, generator=torch.Generator().manual_seed(2))
    energy = LatentEnergy(build_prior().vae, mixture)
    w, h = model._spectra[0].double().numpy(), model._activations[0].double().numpy().T
    p, v = mixture.power[0].double().numpy().T, speech[0, 0].double().numpy().T
    total = v + w @ h + 1e-6
    w = w * np.sqrt(((p / total**2) @ h.T) / ((1 / total) @ h.T))
    total = v + w @ h + 1e-6
    h = h * np.sqrt((w.T @ (p / total**2)) / (w.T @ (1 / total)))
    m_step(model, energy, speech)
    np.testing.assert_allclose(model.variance()[0].numpy().T, w @ h + 1e-6, rtol=1e-4)


def test_the_energy_is_the_sum_that_it_says_and_its_gradient_agrees_with_differences() -> None:
    prior = dynamic_prior().double()
    mixture = mixture_of(12, prior.stft.n_freqs, 2, padding=3)
    mixture = Mixture(mixture.power.double(), mixture.inside, mixture.level, mixture.generators, mixture.quiet)
    energy = LatentEnergy(prior.vae, mixture, prior_weight=3.0)
    energy.noise, energy.gain = mixture.power * 0.5 + 0.2, torch.full_like(mixture.power[..., 0], 0.7)
    z = torch.randn(*mixture.inside.shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    per_frame, slope = gradient(energy, z)
    alone = z[1, :7]  # the second recording has 7 frames; what follows it is zero for the model
    variance = 0.7 * prior.psd(torch.cat([alone, torch.zeros(8, 4, dtype=torch.float64)]))[:7] + energy.noise[1, :7]
    expected = (torch.log(variance) + mixture.power[1, :7] / variance).sum(-1) - 3.0 * prior.vae.prior(alone).log_prob(alone)
    torch.testing.assert_close(per_frame[1, :7], expected)
    assert (per_frame[1, 7:] == 0).all()
    assert (slope[1, 7:] == 0).all()
    for place in ((0, 3, 1), (1, 6, 2)):
        step = torch.zeros_like(z)
        step[place] = 1e-5
        difference = (energy(z + step).sum() - energy(z - step).sum()) / 2e-5
        torch.testing.assert_close(slope[place], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior", [build_prior(), dynamic_prior()], ids=["frame-wise", "context"])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_members_and_images_sum_to_the_mixture(prior: AudioVAE, method: str) -> None:
    """Sampled methods too: random numbers belong to a recording."""
    xs = recordings(prior, 3000, 5000, 4000)
    separate = enhancer(prior, method, mixed_precision=False)
    separate.n_iterations = 2
    together = separate(xs, seeds=[5, 6, 7])
    for x, seed, one in zip(xs, [5, 6, 7], together, strict=True):
        alone = separate([x], seeds=[seed])[0]
        tolerance = 1e-4 * float(x.abs().max())
        torch.testing.assert_close(one.images, alone.images, rtol=0, atol=tolerance)
        torch.testing.assert_close(one.images.sum(0), x, rtol=0, atol=1e-6 * float(x.abs().max()))
        torch.testing.assert_close(one.objective, alone.objective, rtol=1e-4, atol=1e-3)
        assert ((one.wiener >= 0) & (one.wiener <= 1)).all()


@every_noise
def test_scaling_the_input_scales_the_output(noise: str) -> None:
    prior = build_prior()
    (x,) = recordings(prior, 8000)
    separate = enhancer(prior, "peem", cast("object", noise), mixed_precision=False)  # type: ignore[arg-type]
    separate.n_iterations = 2
    reference = separate([x])[0].images
    for scale in (1e-4, 1e3):
        torch.testing.assert_close(separate([scale * x])[0].images / scale, reference, rtol=0, atol=1e-3 * float(x.abs().max()))


def test_a_seed_repeats_a_result_and_another_one_does_not() -> None:
    prior = build_prior()
    (x,) = recordings(prior, 8000)
    separate = enhancer(prior, "mcem", "nmf", mixed_precision=False)
    separate.n_iterations = 2
    first, again, other = (separate([x], seeds=[seed])[0].wiener for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


class Known(NoiseModel):
    """A noise whose variance is known."""

    def __init__(self, mixture: Mixture, variance: Tensor) -> None:
        self._variance = variance / mixture.level.square()

    def variance(self) -> Tensor:
        return self._variance

    def update(self, statistics: object) -> None:
        pass


class Oracle:
    """Latents that are the log variance of the speech themselves."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def begin(self, energy: LatentEnergy, latents: Tensor) -> None: ...

    def samples(self) -> Tensor:
        return self.latents[None]


class LogVarianceVAE(VAE):
    """v = exp(z): a prior that says what it is told."""

    frames_are_independent = True

    def __init__(self, like: VAE) -> None:
        super().__init__()
        self.n_freqs = self.latent_dim = like.n_freqs
        self.settings, self.latents, self.conditions = like.settings, like.latents, like.conditions

    def calibrate(self, power: Tensor) -> None: ...

    def infer(self, power: Tensor, condition: Tensor | None = None, mean: bool = False) -> object:  # type: ignore[override]
        from audiovae.models.latents import standard_normal
        from audiovae.models.vae import Inference

        z = torch.zeros_like(power)
        return Inference(z, standard_normal(z), standard_normal(z))

    def prior(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> object:  # type: ignore[override]
        from audiovae.models.latents import standard_normal

        return standard_normal(latents)

    def likelihood(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> object:  # type: ignore[override]
        from torch.distributions import Independent

        from audiovae import ComplexNormal

        return Independent(ComplexNormal(log_variance=latents), 1)

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Tensor:
        return torch.zeros(n_frames, self.n_freqs)


def test_perfect_variances_give_the_oracle_wiener_filter() -> None:
    like = build_prior()
    prior = AudioVAE(like.stft, LogVarianceVAE(like.vae), RATE)
    generator = torch.Generator().manual_seed(8)
    speech, noise = (like.stft(torch.randn(6000, generator=generator) * scale) for scale in (1.0, 0.5))
    powers = [x.abs().square() + 1e-9 for x in (speech, noise)]
    level = spectrogram_level((speech + noise).abs().square(), like.stft.window)
    latents = (powers[0] / level.square()).log()[None]

    def known(mixture: Mixture) -> NoiseModel:
        return Known(mixture, powers[1][None])

    e_step = cast(EStep, Oracle(latents))
    result = Enhancer(prior, lambda: e_step, known, n_iterations=1)([speech + noise])[0]
    torch.testing.assert_close(result.wiener, powers[0] / (powers[0] + powers[1]), rtol=1e-3, atol=1e-4)


def test_the_quiet_spectrum_is_the_variance_of_steady_noise_and_does_not_hear_a_burst() -> None:
    """White noise of unit variance has sum(window^2) in every bin; the median over the bins of a quantile over 20 s."""
    stft, wave = STFT(), torch.randn(20 * RATE, generator=torch.Generator().manual_seed(9))
    steady = quiet_spectrum(stft(wave).abs().square())
    assert float((steady / stft.window.square().sum()).median()) == pytest.approx(1.0, abs=0.1)
    wave[2 * RATE : 4 * RATE] *= 30
    assert float((quiet_spectrum(stft(wave).abs().square()) / steady).median()) == pytest.approx(1.0, abs=0.1)


def test_the_level_of_a_spectrogram_is_that_of_its_wave() -> None:
    stft, wave = STFT(), torch.randn(RATE, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.001, 1, RATE)
    level = spectrogram_level(stft(wave).abs().square(), stft.window)
    assert float(level) == pytest.approx(active_level(wave.numpy(), RATE), rel=0.02)
    assert float(spectrogram_level(torch.zeros(5, 513), stft.window)) == 0


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("STORN", {}, "needs past clean speech"),
        ("VRNN", {}, "needs past clean speech"),
        ("SRNN", {}, "needs past clean speech"),
        ("LabelVAE", {"labels": {"digit": ("0", "1")}, "predict": "digit"}, "predicts labels"),
        ("FrameVAE", {"likelihood": "bernoulli"}, "no density of the STFT"),
        ("Autoencoder", {"likelihood": "complex-gaussian"}, "has no prior on its latents"),
    ],
)
def test_a_prior_that_cannot_separate_is_refused_with_the_reason(name: str, options: dict[str, object], reason: str) -> None:
    model, of_settings = MODELS[name]
    settings = of_settings(**{key: value for key, value in options.items() if key in of_settings.__dataclass_fields__})
    prior = AudioVAE(STFT(64, 16), model(33, settings), RATE)
    with pytest.raises(AudiovaeError, match=reason):
        enhancer(prior)


def test_unknown_names_and_sizes_are_refused() -> None:
    prior = build_prior()
    with pytest.raises(ValueError, match=r"method must be one of peem, .* got 'magic'"):
        enhancer(prior, "magic")
    with pytest.raises(ValueError, match="n_iterations and n_m_steps must be at least 1, got 0 and 2"):
        Enhancer(prior, PointEstimate, n_iterations=0)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        NMFNoise(mixture_of(), rank=0)
    with pytest.raises(ValueError, match=r"learning_rate positive, got 2 and 0\.0"):
        PointEstimate(learning_rate=0.0)


def test_it_stops_when_the_objective_does_not_move() -> None:
    prior = build_prior()
    xs = recordings(prior, 8000, 4000)
    separate = Enhancer(prior, partial(PointEstimate, n_steps=2), n_iterations=50, tolerance=5.0)
    results = separate(xs)
    assert all(result.converged and len(result.objective) < 50 for result in results)
    assert all(abs(float(r.objective[-1] - r.objective[-2])) < 5.0 for r in results)


GAINS_DB = {"peem": 4.0, "vem": 3.0, "mcem": 3.0, "langevin": 3.0, "mala": 3.0, "fast": 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_real_speech_comes_out_of_steady_noise(speech: Tensor, method: str) -> None:
    prior = AudioVAE.from_pretrained("speech-16k")
    clean = speech[: 2 * RATE]
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(3)) * clean.std() * 10 ** (-5 / 20)
    noisy = clean + noise
    result = enhancer(prior, method, mixed_precision=False)([prior.stft(noisy)])[0]
    estimate = prior.stft.inverse(result.images[0], len(clean))
    gain = si_sdr(clean.numpy(), estimate.numpy()) - si_sdr(clean.numpy(), noisy.numpy())
    assert gain > GAINS_DB[method]


# ---------------------------------------------------------------------------------------------------------------------
# Sound files


def write(path: Path, seconds: float, rate: int, channels: int, subtype: str, gain: float = 0.1) -> np.ndarray:
    wave = gain * np.random.default_rng(3).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, wave, rate, subtype)
    return soundfile.read(path, always_2d=True)[0]


@pytest.mark.parametrize(
    ("seconds", "rate", "channels", "subtype", "gain"),
    [
        (1.0, 16000, 1, "PCM_16", 0.0), (1.0, 16000, 1, "PCM_16", 3.0), (0.7, 8000, 1, "PCM_16", 0.1),
        (0.6, 48000, 2, "PCM_24", 0.1), (1e-4, 16000, 1, "FLOAT", 0.1),
    ],
    ids=["silence", "clipped", "8 kHz", "48 kHz stereo", "one sample"],
)  # fmt: skip
def test_odd_files_become_sound_of_the_same_shape_that_sums_to_them(
    tmp_path: Path, seconds: float, rate: int, channels: int, subtype: str, gain: float
) -> None:
    source = write(tmp_path / "in.wav", seconds, rate, channels, subtype, gain)
    separate = enhancer(build_prior(), "fast", mixed_precision=False)
    enhance_file(separate, tmp_path / "in.wav", tmp_path / "out.wav", tmp_path / "rest.wav")
    parts = [soundfile.read(tmp_path / name, always_2d=True) for name in ("out.wav", "rest.wav")]
    assert all(part.shape == source.shape and other == rate for part, other in parts)
    assert soundfile.info(tmp_path / "out.wav").subtype == subtype
    step = {"PCM_16": 2**-15, "PCM_24": 2**-23, "FLOAT": 1e-6}[subtype]
    held = np.maximum(np.abs(parts[0][0]), np.abs(parts[1][0])) < 1 - step  # what exceeds full scale is cut at it, and said
    assert held.mean() > 0.95
    np.testing.assert_allclose((parts[0][0] + parts[1][0])[held], source[held], rtol=0, atol=1.01 * step)


def test_stereo_shares_one_gain_and_the_level_comes_back(tmp_path: Path) -> None:
    wave = write(tmp_path / "mono.wav", 1.0, RATE, 1, "FLOAT")
    soundfile.write(tmp_path / "in.wav", np.concatenate([wave, -0.25 * wave], 1), RATE, "FLOAT")
    soundfile.write(tmp_path / "soft.wav", 1e-3 * np.concatenate([wave, -0.25 * wave], 1), RATE, "FLOAT")
    separate = enhancer(build_prior(), "fast", mixed_precision=False)
    for name in ("in", "soft"):
        enhance_file(separate, tmp_path / f"{name}.wav", tmp_path / f"{name}-out.wav")
    loud, soft = (soundfile.read(tmp_path / f"{name}-out.wav")[0] for name in ("in", "soft"))
    np.testing.assert_allclose(loud[:, 1], -0.25 * loud[:, 0], atol=1e-6)
    np.testing.assert_allclose(1e3 * soft, loud, atol=1e-4 * np.abs(loud).max())


def test_what_the_prior_cannot_hear_goes_to_the_residual(tmp_path: Path) -> None:
    """A tone of 12 kHz in a file of 48 kHz, for a prior of 16 kHz."""
    tone = 0.1 * np.sin(2 * np.pi * 12000 * np.arange(48000) / 48000)
    soundfile.write(tmp_path / "in.wav", tone, 48000, "FLOAT")
    enhance_file(enhancer(build_prior(), "fast", mixed_precision=False), tmp_path / "in.wav", tmp_path / "out.wav", tmp_path / "rest.wav")
    out, rest = (soundfile.read(tmp_path / name)[0] for name in ("out.wav", "rest.wav"))
    steady = slice(2000, -2000)  # it begins and ends with a click
    assert np.square(out[steady]).mean() < 1e-6 * np.square(tone).mean()
    np.testing.assert_allclose(rest[steady], tone[steady], atol=1e-4)


def test_a_long_file_is_taken_in_blocks_that_fade_and_carry_the_noise_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speech: Tensor
) -> None:
    """Blocks of half a second sound nearly as one whole: their difference is 15 dB below the noise that is taken away."""
    clean = speech.numpy().astype(np.float64)
    noisy = clean + np.random.default_rng(1).standard_normal(len(clean)) * clean.std() * 0.5
    soundfile.write(tmp_path / "in.wav", noisy, RATE, "FLOAT")
    separate = enhancer(AudioVAE.from_pretrained("speech-16k"), "peem", mixed_precision=False)
    carried: list[bool] = []
    inner = separate.__class__.__call__

    def spy(self: Enhancer, *arguments: object) -> object:
        carried.append(cast("list[object]", arguments[3])[0] is not None)
        return inner(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Enhancer, "__call__", spy)
    enhance_file(separate, tmp_path / "in.wav", tmp_path / "whole.wav")
    monkeypatch.setattr(files, "BLOCK_FRAMES", 80)
    monkeypatch.setattr(files, "OVERLAP_FRAMES", 20)
    enhance_file(separate, tmp_path / "in.wav", tmp_path / "blocks.wav")
    whole, blocks = (soundfile.read(tmp_path / name)[0] for name in ("whole.wav", "blocks.wav"))
    assert carried == [False, False, True, True]
    assert si_sdr(clean, whole) > si_sdr(clean, noisy) + 3
    assert si_sdr(clean, blocks) > si_sdr(clean, whole) - 1.5
