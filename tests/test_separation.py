"""The methods of enhancement, each by its name: batches, seeds, the oracle, and real speech out of noise."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from conftest import build_prior
from torch import Tensor

from audiovae import STFT, AudioVAE
from audiovae.level import spectrogram_level
from audiovae.metrics import si_sdr
from audiovae.models import DynamicVAE
from audiovae.models.vae import VAE
from audiovae.separation import (
    METHODS,
    Draws,
    Enhancer,
    EStep,
    LatentEnergy,
    Mixture,
    NoiseModel,
    enhancer,
)
from audiovae.settings import DynamicVAESettings

RATE = 16000


def dynamic_prior() -> AudioVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(64, 16)
        vae = DynamicVAE(
            stft.n_freqs,
            DynamicVAESettings(latent_dim=4, width=16, dilations=(1, 2), prior_width=8, prior_dilations=(1,)),
        )
        x = stft(torch.randn(RATE))
        vae.calibrate(x.real.square() + x.imag.square())
        for parameter in vae.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return AudioVAE(stft, vae, RATE).eval()


def recordings(prior: AudioVAE, *n_samples: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    waves = [torch.randn(n, generator=generator) * torch.linspace(0.2, 1, n) for n in n_samples]
    return [prior.stft(wave) for wave in waves]


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

    def draws(self) -> Draws:
        return Draws(self.latents[None])


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
        from audiovae.models.vae import Factor, Inference

        z = torch.zeros_like(power)
        return Inference(z, (Factor(standard_normal(z), standard_normal(z)),))

    def prior(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> object:  # type: ignore[override]
        from audiovae.models.latents import standard_normal

        return standard_normal(latents)

    def likelihood(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> object:  # type: ignore[override]
        from torch.distributions import Independent

        from audiovae import ComplexNormal

        return Independent(ComplexNormal(log_variance=latents), 1)

    def log_likelihood(self, latents: Tensor, power: Tensor, condition: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def past(self, power: Tensor) -> None: ...

    def mean_path(
        self, power: Tensor, condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, None]:
        raise NotImplementedError

    def log_psd(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        return latents

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


GAINS_DB = {"peem": 4.0, "vem": 3.0, "mcem": 3.0, "langevin": 3.0, "mala": 3.0, "fast": 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_real_speech_comes_out_of_steady_noise(speech: Tensor, method: str) -> None:
    prior = AudioVAE.from_pretrained(METHODS[method].prior)
    clean = speech[: 2 * RATE]
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(3)) * clean.std() * 10 ** (-5 / 20)
    noisy = clean + noise
    result = enhancer(prior, method, mixed_precision=False)([prior.stft(noisy)])[0]
    estimate = prior.stft.inverse(result.images[0], len(clean))
    gain = si_sdr(clean.numpy(), estimate.numpy()) - si_sdr(clean.numpy(), noisy.numpy())
    assert gain > GAINS_DB[method]
