"""Bounds on log p(x) of models whose log p(x) is known: in closed form, or integrated on a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, Independent, MultivariateNormal, Normal, kl_divergence

from audiovae import ELBO, STFT, VAE, AudioVAE, ComplexNormal, FrameVAE, FrameVAESettings, elbo
from audiovae.errors import TrainingError
from audiovae.models import MODELS, Conditions, Factor, Inference
from audiovae.models.latents import Gaussian, standard_normal
from audiovae.models.vae import in_every_frame
from audiovae.objectives import (
    ACTIVE_NATS,
    Objective,
    collapse_warning,
    free_bits,
    importance_weighted_bound,
    importance_weighted_surrogate,
    kl_per_dimension,
    training_loss,
)
from audiovae.settings import ModelSettings, TrainingSettings
from audiovae.stft import power
from audiovae.training.loop import beta, own_past

DOUBLE = torch.float64
Z_LIMIT = 5.0  # a test of a mean fails by chance once in two million
N_FREQS = 6


def z_score(draws: Tensor, expected: Tensor | float) -> Tensor:
    """How many standard errors the mean over the first dimension is from what is expected."""
    return (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))


@dataclass(frozen=True)
class Scale(ModelSettings):
    """Settings of the toys: their posterior is the exact one at 1 and wrong elsewhere."""

    factor: float = 1.0


class Toy(VAE):
    """What the toys do as models of sound do."""

    def calibrate(self, power: Tensor) -> None:
        raise NotImplementedError

    def past(self, power: Tensor) -> None:
        return None

    def mean_path(
        self, power: Tensor, condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, None]:
        raise NotImplementedError

    def log_psd(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def log_likelihood(self, latents: Tensor, power: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.likelihood(latents).base_dist.summed_log_prob_of_power(power)  # type: ignore[attr-defined]


class LinearGaussianVAE(Toy):
    """z ~ N(0, I), x | z ~ N(W z + b, s2 I) on real bins, with the posterior N(exact mean + offset, factor^2 exact
    variance).

    The columns of W are orthogonal, so the exact posterior factorises. Encoders see |x|^2 alone: the toy is used on
    positive x, where the root of it is x.
    """

    frames_are_independent = True
    noise = 0.3

    def __init__(self, settings: Scale = Scale(), offset: float = 0.0) -> None:
        super().__init__()
        self.n_freqs, self.latent_dim, self.settings = N_FREQS, 2, settings
        self.latents, self.conditions = Gaussian(2), Conditions({})
        self.offset = offset
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(N_FREQS, 2, dtype=DOUBLE, generator=generator))[0]
        self.weight = basis * torch.tensor([1.5, 0.4], dtype=DOUBLE)
        self.bias = torch.full((N_FREQS,), 10.0, dtype=DOUBLE)

    def exact_posterior(self, x: Tensor) -> Independent:
        precision = 1 + self.weight.square().sum(0) / self.noise**2
        loc = (x - self.bias) @ self.weight / self.noise**2 / precision
        return Independent(Normal(loc, precision.rsqrt().expand_as(loc)), 1)

    def infer(self, power: Tensor, condition: Tensor | None = None, mean: bool = False) -> Inference:
        exact = self.exact_posterior(power.sqrt())
        posterior = Independent(Normal(exact.mean + self.offset, exact.stddev * self.settings.factor), 1)
        latents = posterior.mean if mean else posterior.rsample()
        return Inference(latents, (Factor(posterior, self.prior(latents)),))

    def prior(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> Distribution:
        return Independent(Normal(torch.zeros_like(latents), torch.ones_like(latents)), 1)

    def likelihood(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> Distribution:
        return Independent(OnRealPart(latents @ self.weight.T + self.bias, self.noise), 1, validate_args=False)

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Tensor:
        return torch.randn(n_frames, 2, dtype=DOUBLE)

    def log_evidence(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(N_FREQS, dtype=DOUBLE)
        return MultivariateNormal(self.bias, covariance).log_prob(x)


class OnRealPart(Distribution):
    """Real Gaussians, evaluated at the real part of complex values; a power is the square of a positive one."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, loc: Tensor, scale: float) -> None:
        self.normal = Normal(loc, scale)
        super().__init__(loc.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.normal.log_prob(value.real)

    def summed_log_prob_of_power(self, power: Tensor) -> Tensor:
        return self.normal.log_prob(power.sqrt()).sum(-1)


class GammaFamily(Gaussian):
    """Only its name is looked at: the toy makes its distributions by itself."""

    name = "gamma"


class ConjugateVAE(Toy):
    """lambda ~ Gamma(a, b), x_f | lambda ~ N_C(0, 1 / lambda) for all bins: the posterior is Gamma(a + n_freqs, b + sum
    |x|^2).

    A likelihood as that of the real models, so every bound can be computed. `settings.factor` multiplies both
    parameters
    of the posterior: the right mean, the wrong spread.
    """

    frames_are_independent = True
    a, b = 2.5, 1.5

    def __init__(self, settings: Scale = Scale()) -> None:
        super().__init__()
        self.n_freqs, self.latent_dim, self.settings = N_FREQS, 1, settings
        self.latents, self.conditions = GammaFamily(1), Conditions({})

    def exact_posterior(self, power: Tensor) -> Independent:
        rate = self.b + power.sum(-1, keepdim=True)
        return Independent(Gamma(torch.full_like(rate, self.a + N_FREQS), rate), 1)

    def infer(self, power: Tensor, condition: Tensor | None = None, mean: bool = False) -> Inference:
        exact = self.exact_posterior(power).base_dist
        posterior = Independent(Gamma(exact.concentration * self.settings.factor, exact.rate * self.settings.factor), 1)
        latents = posterior.mean if mean else posterior.rsample()
        return Inference(latents, (Factor(posterior, self.prior(latents)),))

    def prior(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> Distribution:
        return Independent(Gamma(torch.tensor([self.a], dtype=DOUBLE), torch.tensor([self.b], dtype=DOUBLE)), 1)

    def likelihood(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> Distribution:
        return Independent(ComplexNormal((1 / latents).expand(*latents.shape[:-1], N_FREQS)), 1)

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def log_evidence(self, power: Tensor) -> Tensor:
        """The integral of prod_f (lambda / pi) exp(-lambda |x_f|^2) over the Gamma prior."""
        a, b = self.a, self.b
        total = power.sum(-1)
        constant = a * math.log(b) - math.lgamma(a) + math.lgamma(a + N_FREQS) - N_FREQS * math.log(math.pi)
        return constant - (a + N_FREQS) * torch.log(b + total)


def real_frames(n_frames: int = 4) -> Tensor:
    """Frames drawn from the linear model, as complex numbers; all are positive."""
    torch.manual_seed(0)
    vae = LinearGaussianVAE()
    x = vae.likelihood(vae.generate(n_frames)).base_dist.normal.sample()  # type: ignore[attr-defined]
    assert (x > 0).all()
    return x.to(torch.complex128)


def complex_frames(n_frames: int = 4, n_freqs: int = N_FREQS) -> Tensor:
    return torch.randn(n_frames, n_freqs, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))


def test_the_linear_toy_has_the_evidence_that_its_parts_integrate_to() -> None:
    """The reference itself: log p(x) = log p(x | z) + log p(z) - log q(z | x) at any z, for the exact posterior."""
    vae, x = LinearGaussianVAE(), real_frames()
    inference = vae.infer(power(x))
    log_joint = vae.likelihood(inference.latents).log_prob(x) + inference.factors[0].prior.log_prob(inference.latents)
    torch.testing.assert_close(
        log_joint - inference.factors[0].posterior.log_prob(inference.latents), vae.log_evidence(x.real)
    )


def test_the_elbo_is_the_evidence_at_the_exact_posterior() -> None:
    torch.manual_seed(1)
    vae, x = LinearGaussianVAE(), real_frames()
    bound = elbo(vae, power(x).expand(20000, -1, -1)).bound
    assert bound.shape == (20000, 4)
    assert (z_score(bound, vae.log_evidence(x.real)).abs() < Z_LIMIT).all()


@pytest.mark.parametrize(("factor", "offset"), [(0.5, 0.0), (2.0, 0.0), (1.0, 0.3), (0.8, -0.1)])
def test_elsewhere_the_elbo_falls_below_the_evidence_by_the_divergence_of_the_posteriors(
    factor: float, offset: float
) -> None:
    torch.manual_seed(2)
    vae, x = LinearGaussianVAE(Scale(factor=factor), offset), real_frames()
    gap = kl_divergence(vae.infer(power(x)).factors[0].posterior, vae.exact_posterior(x.real))
    assert (gap > 0.03).all()
    bound = elbo(vae, power(x).expand(20000, -1, -1)).bound
    assert (z_score(bound, vae.log_evidence(x.real) - gap).abs() < Z_LIMIT).all()
    assert (z_score(bound, vae.log_evidence(x.real)) < -Z_LIMIT).all()


@pytest.mark.parametrize("factor", [1.0, 0.4, 2.5])
def test_the_elbo_of_a_circular_likelihood_is_the_evidence_less_the_divergence(factor: float) -> None:
    torch.manual_seed(3)
    vae, x = ConjugateVAE(Scale(factor=factor)), complex_frames().expand(20000, -1, -1)
    bound = elbo(vae, power(x)).bound
    gap = kl_divergence(vae.infer(power(x[0])).factors[0].posterior, vae.exact_posterior(power(x[0])))
    assert (gap > 0.05).all() == (factor != 1)
    assert (z_score(bound, vae.log_evidence(power(x[0])) - gap).abs() < Z_LIMIT).all()


def test_the_terms_of_the_elbo_are_likelihood_and_divergence() -> None:
    """By hand, for the latents that the model draws."""
    vae, x = small_vae(), complex_frames(5, 9).to(torch.complex64)
    torch.manual_seed(4)
    terms = elbo(vae, power(x))
    torch.manual_seed(4)
    inference = vae.infer(power(x))
    variance = vae.likelihood(inference.latents).variance
    expected = -(math.log(math.pi) + variance.log() + x.abs().square() / variance).sum(-1)
    torch.testing.assert_close(terms.log_likelihood, expected)
    loc, scale = inference.factors[0].posterior.mean, inference.factors[0].posterior.stddev
    torch.testing.assert_close(terms.kl, 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(-1))
    torch.testing.assert_close(terms.bound, terms.log_likelihood - terms.kl)


def test_a_bound_is_the_likelihood_less_the_divergence() -> None:
    terms = ELBO(torch.tensor([1.0, -2.0]), torch.tensor([0.25, 3.0]))
    assert terms.bound.tolist() == [0.75, -5.0]


def test_the_log_likelihood_of_a_power_is_that_of_its_spectrogram() -> None:
    vae, x = small_vae(), complex_frames(5, 9).to(torch.complex64)
    z = torch.randn(5, 3)
    torch.testing.assert_close(vae.log_likelihood(z, power(x)), vae.likelihood(z).log_prob(x))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bound", [elbo, lambda vae, x: importance_weighted_bound(vae, x, 2)])
def test_a_complex_spectrogram_is_refused_where_its_power_is_meant(bound: Callable[[VAE, Tensor], object]) -> None:
    with pytest.raises(ValueError, match=r"got a complex spectrogram; give them audiovae\.stft\.power\(spectrogram\)"):
        bound(small_vae(), complex_frames(5, 9).to(torch.complex64))


def test_the_gradient_of_the_elbo_is_that_of_finite_differences() -> None:
    """Along a random direction of all weights, in double precision, the noise being the same in every evaluation."""
    vae, x = small_vae().double(), complex_frames(3, 9)
    weights = torch.nn.utils.parameters_to_vector(vae.parameters())
    direction = torch.randn(len(weights), dtype=DOUBLE, generator=torch.Generator().manual_seed(6))

    def bound(step: float) -> Tensor:
        torch.manual_seed(6)
        torch.nn.utils.vector_to_parameters((weights + step * direction).detach(), vae.parameters())
        return elbo(vae, power(x)).bound.sum()

    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(bound(0), list(vae.parameters()))])
    slope = float((bound(1e-5) - bound(-1e-5)).detach() / 2e-5)
    assert abs(slope) > 1
    assert float(gradient.detach() @ direction) == pytest.approx(slope, rel=1e-6)


def small_vae(latent_dim: int = 3, n_freqs: int = 9, seed: int = 0) -> FrameVAE:
    """A frame-wise VAE whose decoder depends on its latents, and whose posterior is neither prior nor point."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = FrameVAE(n_freqs, FrameVAESettings(latent_dim=latent_dim, hidden=(16,)))
        with torch.no_grad():
            vae.decoder[-1].weight.mul_(10)
            vae.encoder[-1].weight.mul_(10)
        return vae.eval().requires_grad_()


# Importance weighting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [1, 2, 10])
def test_with_the_exact_posterior_every_importance_weight_is_the_evidence(n_samples: int) -> None:
    vae, x = ConjugateVAE(), complex_frames()
    torch.testing.assert_close(importance_weighted_bound(vae, power(x), n_samples), vae.log_evidence(power(x)))


def test_the_importance_weighted_bound_of_one_sample_is_the_elbo_in_expectation() -> None:
    torch.manual_seed(7)
    vae, x = ConjugateVAE(Scale(factor=0.3)), complex_frames(2)
    gap = kl_divergence(vae.infer(power(x)).factors[0].posterior, vae.exact_posterior(power(x)))
    draws = importance_weighted_bound(vae, power(x).expand(20000, -1, -1), 1)
    assert (z_score(draws, vae.log_evidence(power(x)) - gap).abs() < Z_LIMIT).all()


def test_the_importance_weighted_bound_rises_with_its_samples_to_the_evidence() -> None:
    torch.manual_seed(8)
    vae, x = ConjugateVAE(Scale(factor=0.2)), complex_frames(1).expand(4000, -1, -1)
    evidence = vae.log_evidence(power(x[0]))
    bounds = [importance_weighted_bound(vae, power(x), n_samples) for n_samples in (1, 2, 5, 20, 100)]
    for fewer, more in itertools.pairwise(bounds):
        assert (z_score(more - fewer, 0) > Z_LIMIT).all()
    assert all((z_score(bound, evidence) < Z_LIMIT).all() for bound in bounds)
    torch.testing.assert_close(bounds[-1].mean(0), evidence, atol=0.01, rtol=0)
    assert (bounds[0].mean(0) < evidence - 0.2).all()


def test_both_bounds_are_below_the_evidence_integrated_on_a_grid_and_the_weighted_one_reaches_it() -> None:
    """A real model with one latent dimension: log of the integral of p(x | z) p(z) over z by the rule of trapezia."""
    vae, x = small_vae(latent_dim=1).double().requires_grad_(False), complex_frames(3, 9)
    vae.encoder[-1].weight.mul_(0.1)
    vae.encoder[-1].bias[1] = 1.0  # a spread of 1.3, broad enough for importance sampling
    grid = torch.linspace(-12, 12, 4801, dtype=DOUBLE)[:, None, None]  # [grid, frame, latent]
    log_joint = vae.likelihood(grid).log_prob(x) + Normal(0.0, 1.0).log_prob(grid[..., 0])
    evidence = torch.trapezoid(log_joint.exp(), dx=24 / 4800, dim=0).log()
    torch.manual_seed(9)
    many = power(x).expand(2000, -1, -1)
    bound = elbo(vae, many).bound
    assert (z_score(bound, evidence) < -Z_LIMIT).all()
    weighted = importance_weighted_bound(vae, many, 200)
    assert (weighted.mean(0) > bound.mean(0)).all()
    assert (z_score(weighted, evidence) < Z_LIMIT).all()
    torch.testing.assert_close(weighted.mean(0), evidence, atol=0.02, rtol=0)
    assert (evidence - bound.mean(0) > 0.02).any()  # or the comparison would say nothing


@pytest.mark.parametrize("n_samples", [0, -3])
def test_an_importance_weighted_bound_needs_a_sample(n_samples: int) -> None:
    with pytest.raises(ValueError, match=f"n_samples must be at least 1, got {n_samples}"):
        importance_weighted_bound(ConjugateVAE(), power(complex_frames()), n_samples)


# Divergence per dimension --------------------------------------------------------------------------------------------


def test_the_divergences_of_the_dimensions_are_those_of_gaussians_and_add_up() -> None:
    vae, frames = small_vae(), power(complex_frames(12, 9)).float().reshape(3, 4, 9)
    kl = kl_per_dimension(vae, frames)
    posterior = vae.infer(frames).factors[0].posterior
    loc, variance = posterior.mean, posterior.variance
    torch.testing.assert_close(kl, 0.5 * (loc.square() + variance - 1 - variance.log()).mean((0, 1)))
    torch.testing.assert_close(kl.sum(), elbo(vae, frames).kl.mean())


ACTIVITY = [
    # latent dimensions, active ones, and the collapse that is reported
    (16, 0, "0 of 16 latent dimensions"),
    (16, 1, "1 of 16 latent dimensions"),
    (16, 2, None),
    (16, 16, None),
    (64, 3, "3 of 64 latent dimensions"),
    (64, 4, None),
    (2, 2, None),
    (1, 0, "0 of 1 latent dimensions"),
    (1, 1, None),
]


@pytest.mark.parametrize(("n_dimensions", "n_active", "reported"), ACTIVITY)
def test_a_collapsed_posterior_is_reported_with_a_remedy(
    n_dimensions: int, n_active: int, reported: str | None
) -> None:
    kl = torch.full((n_dimensions,), 0.5 * ACTIVE_NATS)
    kl[:n_active] = 2.0
    warning = collapse_warning(kl)
    if reported is None:
        assert warning is None
    else:
        assert warning is not None
        assert "posterior has collapsed" in warning
        assert reported in warning
        assert "lower beta" in warning


def test_a_model_that_ignores_its_input_is_reported_as_collapsed() -> None:
    vae = small_vae(latent_dim=8).requires_grad_(False)
    frames = power(complex_frames(20, 9)).float()
    assert collapse_warning(kl_per_dimension(vae, frames)) is None
    vae.encoder[-1].weight.zero_()
    vae.encoder[-1].bias.zero_()
    low, high = -10.0, 10.0
    for _ in range(40):  # the bias that makes the spread 1, as the prior's, whatever the link between the two
        vae.encoder[-1].bias[8:] = (low + high) / 2
        above = bool(vae.infer(frames).factors[0].posterior.stddev.mean() > 1)
        low, high = (low, (low + high) / 2) if above else ((low + high) / 2, high)
    assert "0 of 8" in str(collapse_warning(kl_per_dimension(vae, frames)))


# Powers --------------------------------------------------------------------------------------------------------------


def test_a_power_is_the_squared_modulus_with_a_gradient_at_zero() -> None:
    x = torch.tensor([0j, 1 + 2j, -3j], dtype=torch.complex128, requires_grad=True)
    assert power(x).tolist() == [0.0, 5.0, 9.0]
    (gradient,) = torch.autograd.grad(power(x).sum(), x)
    torch.testing.assert_close(gradient, 2 * x.detach())


# Sequences: weights of whole sequences -------------------------------------------------------------------------------

N_STEPS = 4


class ChainVAE(LinearGaussianVAE):
    """z_t | z_{t-1} ~ N(0.8 z_{t-1}, 0.6^2 I) from z_0 = 0, x_t | z_t as in the linear toy; all of it is one Gaussian.

    The posterior is a product over frames: the exact marginals with another spread, so never the exact one.
    """

    frames_are_independent = False

    def joint(self) -> tuple[Tensor, Tensor]:
        """Covariance of the stacked z, and the matrix from them to the stacked mean of x."""
        steps = torch.tensor(
            [[0.8 ** (t - s) if s <= t else 0.0 for s in range(N_STEPS)] for t in range(N_STEPS)], dtype=DOUBLE
        )
        eye = torch.eye(N_STEPS, dtype=DOUBLE)
        return torch.kron(0.36 * steps @ steps.T, torch.eye(2, dtype=DOUBLE)), torch.kron(eye, self.weight.contiguous())

    def exact_posterior_of_sequence(self, x: Tensor) -> MultivariateNormal:
        covariance, matrix = self.joint()
        precision = covariance.inverse() + matrix.T @ matrix / self.noise**2
        loc = torch.linalg.solve(precision, (matrix.T @ (x - self.bias).flatten(-2)[..., None] / self.noise**2))[..., 0]
        return MultivariateNormal(loc, precision_matrix=precision)

    def infer(self, power: Tensor, condition: Tensor | None = None, mean: bool = False) -> Inference:
        exact = self.exact_posterior_of_sequence(power.sqrt())
        loc, scale = (
            value.unflatten(-1, (N_STEPS, 2))
            for value in (exact.mean + self.offset, exact.stddev * self.settings.factor)
        )
        posterior = Independent(Normal(loc, scale), 1)
        latents = posterior.mean if mean else posterior.rsample()
        return Inference(latents, (Factor(posterior, self.prior(latents)),))

    def prior(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> Distribution:
        before = torch.nn.functional.pad(latents, (0, 0, 1, 0))[..., :-1, :]
        return Independent(Normal(0.8 * before, torch.full_like(latents, 0.6)), 1)

    def log_evidence(self, x: Tensor) -> Tensor:
        covariance, matrix = self.joint()
        total = matrix @ covariance @ matrix.T + self.noise**2 * torch.eye(N_STEPS * N_FREQS, dtype=DOUBLE)
        return MultivariateNormal(self.bias.repeat(N_STEPS), total).log_prob(x.flatten(-2))


class SharedVAE(LinearGaussianVAE):
    """One v ~ N(0, I) for the whole sequence, x_t | v as in the linear toy: its posterior from all frames is known."""

    frames_are_independent = False

    def exact_posterior(self, x: Tensor) -> Independent:
        precision = 1 + x.shape[-2] * self.weight.square().sum(0) / self.noise**2
        loc = (x - self.bias).sum(-2) @ self.weight / self.noise**2 / precision
        return Independent(Normal(loc, precision.rsqrt().expand_as(loc)), 1)

    def infer(self, power: Tensor, condition: Tensor | None = None, mean: bool = False) -> Inference:
        exact = self.exact_posterior(power.sqrt())
        posterior = Independent(Normal(exact.mean + self.offset, exact.stddev * self.settings.factor), 1)
        v = posterior.mean if mean else posterior.rsample()
        return Inference(in_every_frame(v, power.shape[-2]), (Factor(posterior, standard_normal(v), per_frame=False),))

    def prior(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> Distribution:
        return standard_normal(latents[..., :0])

    def log_evidence(self, x: Tensor) -> Tensor:
        n = x.shape[-2]
        weight = self.weight.repeat(n, 1)
        covariance = weight @ weight.T + self.noise**2 * torch.eye(n * N_FREQS, dtype=DOUBLE)
        return MultivariateNormal(self.bias.repeat(n), covariance).log_prob(x.flatten(-2))


def test_a_chain_misses_its_evidence_by_the_divergence_from_the_exact_posterior_and_weights_make_it_up() -> None:
    """Of whole sequences: divergences along sampled paths and weights of sequences against closed forms."""
    torch.manual_seed(10)
    vae, x = ChainVAE(), real_frames()
    exact = vae.exact_posterior_of_sequence(x.real)
    marginals = MultivariateNormal(exact.mean, torch.diag(exact.variance))
    evidence, gap = vae.log_evidence(x.real), kl_divergence(marginals, exact)
    assert gap > 0.1
    many = power(x).expand(4000, -1, -1)
    bound = elbo(vae, many).bound.sum(-1)
    assert abs(float(z_score(bound, evidence - gap))) < Z_LIMIT
    one, several = importance_weighted_bound(vae, many, 1), importance_weighted_bound(vae, many, 30)
    assert torch.equal(several, several[:, :1].expand_as(several))  # every frame has an equal share
    assert abs(float(z_score(one.sum(-1), evidence - gap))) < Z_LIMIT
    assert float(z_score(several.sum(-1), evidence)) < Z_LIMIT
    assert float(several.sum(-1).mean()) == pytest.approx(float(evidence), abs=0.1 * float(gap))


def test_a_latent_of_the_sequence_is_paid_once() -> None:
    torch.manual_seed(11)
    x = real_frames()
    evidence = SharedVAE().log_evidence(x.real)
    for n_samples in (1, 3):  # the exact posterior: every weight is the evidence
        weighted = importance_weighted_bound(SharedVAE(), power(x), n_samples)
        torch.testing.assert_close(weighted, (evidence / 4).expand(4))
    vae = SharedVAE(Scale(factor=2.0))
    inference = vae.infer(power(x))
    (factor,) = inference.factors
    gap = kl_divergence(factor.posterior, vae.exact_posterior(x.real))
    terms = elbo(vae, power(x).expand(20000, -1, -1))
    assert factor.prior is not None
    torch.testing.assert_close(terms.kl, (kl_divergence(factor.posterior, factor.prior) / 4).expand(20000, 4))
    assert abs(float(z_score(terms.bound.sum(-1), evidence - gap))) < Z_LIMIT


# Training's gradient of the weighted bound ---------------------------------------------------------------------------

SAMPLED: dict[str, tuple[str, dict[str, Any]]] = {
    "frames": ("FrameVAE", {"hidden": (6,)}),
    "frames, power spherical": ("FrameVAE", {"hidden": (6,), "latent": "power-spherical"}),
    "frames, Dirichlet": ("FrameVAE", {"hidden": (6,), "latent": "dirichlet"}),
    "frames, labels": ("FrameVAE", {"hidden": (6,), "labels": {"class": ("a", "b")}}),
    "an autoregressive prior": (
        "DynamicVAE",
        {"width": 6, "prior_width": 6, "dilations": (1,), "prior_dilations": (1,)},
    ),
    "teacher forcing": ("STORN", {"width": 6, "features": 6}),
    "a latent of the sequence": (
        "SequenceVAE",
        {"n_frames": 8, "width": 6, "hidden": 8, "blocks": 1, "kernel_size": 3},
    ),
    "a latent of the sequence on a sphere": (
        "SequenceVAE",
        {"n_frames": 8, "width": 6, "hidden": 8, "blocks": 1, "kernel_size": 3, "latent": "power-spherical"},
    ),
    "labels per frame": (
        "LabelVAE",
        {"width": 6, "pool": False, "halvings": 0, "dropout": 0.0, "labels": {"class": ("a", "b")}},
    ),
}
ENCODERS = ("encoder", "to_latents", "to_posterior")


def sampled_model(case: str) -> VAE:
    name, settings = SAMPLED[case]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model_class, settings_class = MODELS[name]
        vae = model_class(
            5,
            settings_class(latent_dim=3 if "spher" in str(settings) or "dirichlet" in str(settings) else 2, **settings),
        )
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return vae.double()


def gradients(vae: VAE, bound: Callable[[], Tensor], n_draws: int) -> dict[str, Tensor]:
    """Of draws of a bound, along three random directions in the weights of the encoder and of all else: `[draw,
    direction]`.
    """
    named = dict(vae.named_parameters())
    groups = {
        "encoder": [parameter for key, parameter in named.items() if key.startswith(ENCODERS)],
        "rest": [parameter for key, parameter in named.items() if not key.startswith(ENCODERS)],
    }
    generator = torch.Generator().manual_seed(3)
    directions = {
        group: [[torch.randn(p.shape, dtype=DOUBLE, generator=generator) for p in parameters] for _ in range(3)]
        for group, parameters in groups.items()
    }
    found: dict[str, list[list[float]]] = {"encoder": [], "rest": []}
    for _ in range(n_draws):
        vae.zero_grad()
        bound().backward()
        for group, parameters in groups.items():
            pairs = [zip(parameters, direction, strict=True) for direction in directions[group]]
            found[group].append(
                [sum(float((p.grad * d).sum()) for p, d in pair if p.grad is not None) for pair in pairs]
            )
    return {group: torch.tensor(values, dtype=DOUBLE) for group, values in found.items()}


def plain_bound(vae: VAE, x: Tensor, n_samples: int, condition: Tensor | None) -> Tensor:
    """Log-mean-exp of the weights by the definition, to be differentiated as it is."""
    log_weights = []
    for _ in range(n_samples):
        inference = vae.infer(x, condition)
        log_weight = vae.log_likelihood(inference.latents, x, condition)
        (factor,) = inference.factors
        assert factor.prior is not None
        z = inference.latents if factor.per_frame else inference.latents[..., 0, :]
        log_ratio = factor.prior.log_prob(z) - factor.posterior.log_prob(z)
        if vae.frames_are_independent:
            log_weight = log_weight + log_ratio
        else:
            log_weight = log_weight.sum(-1) + (log_ratio.sum(-1) if factor.per_frame else log_ratio)
        log_weights.append(log_weight)
    return torch.logsumexp(torch.stack(log_weights), 0) - math.log(n_samples)


@pytest.mark.parametrize("case", SAMPLED)
def test_the_doubly_reparameterised_gradient_is_that_of_the_bound_in_expectation(case: str) -> None:
    """Against the plain gradient of the same bound: 30 means over 300 copies of a sequence each, for encoder and all
    else.
    """
    vae, n_copies, n_samples = sampled_model(case), 300, 4
    assert vae.factorised_posterior
    x = power(complex_frames(3, 5)).expand(n_copies, 3, 5)
    condition = None
    if vae.conditions.labels:
        condition = torch.eye(2, dtype=DOUBLE)[[0, 1, 1]].expand(n_copies, 3, 2)
    torch.manual_seed(12)
    with torch.no_grad():
        value = torch.stack(
            [importance_weighted_surrogate(vae, x, n_samples, condition).sum(-1).mean() for _ in range(30)]
        )
        expected = torch.stack(
            [plain_bound(vae, x, n_samples, condition).reshape(n_copies, -1).sum(-1).mean() for _ in range(30)]
        )
    assert abs(value.mean() - expected.mean()) < Z_LIMIT * torch.sqrt((value.var() + expected.var()) / 30)
    ours = gradients(vae, lambda: importance_weighted_surrogate(vae, x, n_samples, condition).sum() / n_copies, 30)
    plain = gradients(vae, lambda: plain_bound(vae, x, n_samples, condition).sum() / n_copies, 30)
    for group in ours:
        error = torch.sqrt((ours[group].var(0) + plain[group].var(0)) / 30)
        assert ((ours[group].mean(0) - plain[group].mean(0)).abs() < Z_LIMIT * error).all(), group
        assert (plain[group].mean(0).abs() > 3 * error).any(), group  # or the comparison would say nothing


def test_the_doubly_reparameterised_gradient_of_an_encoder_varies_less_with_many_samples() -> None:
    """The plain one's ratio of mean to deviation falls with the samples; T. Rainforth et al., ICML 2018."""
    vae = sampled_model("frames")
    x = power(complex_frames(3, 5))
    torch.manual_seed(13)
    ours = gradients(vae, lambda: importance_weighted_surrogate(vae, x, 32).sum(), 40)["encoder"]
    plain = gradients(vae, lambda: plain_bound(vae, x.expand(1, 3, 5), 32, None).sum(), 40)["encoder"]
    assert (ours.var(0) < 0.3 * plain.var(0)).all()


def prior_of(vae: VAE) -> AudioVAE:
    return AudioVAE(STFT(2 * vae.n_freqs - 2, vae.n_freqs - 1), vae, 8000)


@pytest.mark.parametrize("name", ["RVAE", "DKF", "VRNN", "SRNN", "DSAE"])
def test_a_path_whose_posterior_depends_on_itself_has_no_such_gradient(name: str) -> None:
    model_class, _ = MODELS[name]
    with pytest.raises(
        ValueError,
        match=r"importance_samples above 1 needs a q\(z \| x\) whose factors do not depend on each other's draws, "
        rf"as they do in {name}",
    ):
        importance_weighted_surrogate(model_class(5), torch.ones(3, 5), 2)
    with pytest.raises(
        TrainingError,
        match=r"importance_samples above 1 needs a q\(z \| x\) whose factors do not depend on each other's draws, "
        rf"as they do in {name}",
    ):
        prior_of(model_class(5)).check(TrainingSettings(importance_samples=2))


def test_a_point_has_no_importance_weights() -> None:
    vae = MODELS["Autoencoder"][0](5)
    with pytest.raises(ValueError, match="Autoencoder has no posterior density, so no importance weights"):
        importance_weighted_bound(vae, torch.ones(3, 5), 2)
    with pytest.raises(TrainingError, match="importance"):
        prior_of(vae).check(TrainingSettings(importance_samples=2))


# The loss of training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FrameVAE", "RVAE", "VRNN", "STORN", "Autoencoder"])
def test_scheduled_sampling_is_refused_where_there_is_nothing_to_schedule(name: str) -> None:
    with pytest.raises(
        TrainingError, match=rf"scheduled_sampling is for models that feed on past frames .*, not {name}"
    ):
        prior_of(MODELS[name][0](5)).check(TrainingSettings(scheduled_sampling=(0.2, 0.8)))
    with pytest.raises(TrainingError, match="not SRNN"):
        prior_of(MODELS["SRNN"][0](5)).check(TrainingSettings(scheduled_sampling=(0.2, 0.8)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"importance_samples": 5, "beta": 0.5},
            "importance_samples above 1 trains a bound of its own: leave beta at 1",
        ),
        (
            {"importance_samples": 5, "beta_warmup": 0.5},
            "importance_samples above 1 .* without beta_warmup or free_bits",
        ),
        ({"importance_samples": 5, "free_bits": 0.5}, "importance_samples above 1 .* without beta_warmup or free_bits"),
        ({"importance_samples": 0}, "importance_samples must be positive, got 0"),
        ({"free_bits": -0.1}, "free_bits must not be negative, got -0.1"),
        ({"beta_cycles": 0}, "beta_cycles must be positive, got 0"),
        ({"scheduled_sampling": (0.5,)}, r"scheduled_sampling must be two rising shares of the steps, got \(0.5,\)"),
        ({"scheduled_sampling": (0.8, 0.3)}, "scheduled_sampling must be two rising shares"),
        ({"scheduled_sampling": (0.3, 1.5)}, "scheduled_sampling must be two rising shares"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**settings)


def test_free_bits_by_hand() -> None:
    """Dimensions of 0.1, 0.5 and 2 nats with a floor of 0.3 cost 0.3 + 0.5 + 2; without dimensions the floor is of
    their sum.
    """
    divergences = torch.tensor([0.1, 0.5, 2.0])
    loc = (2 * divergences).sqrt()[None].requires_grad_()  # KL of N(loc, 1) from N(0, 1)
    normals = [Independent(Normal(mean, torch.ones(1, 3)), 1) for mean in (loc, torch.zeros(1, 3))]
    counted = torch.ones(1, dtype=torch.bool)
    cost = free_bits(Inference(loc, (Factor(*normals),)), 0.3, counted)
    assert float(cost.detach()) == pytest.approx(2.8)
    torch.testing.assert_close(torch.autograd.grad(cost, loc)[0], loc.detach() * torch.tensor([[0.0, 1.0, 1.0]]))
    for total, expected in ((0.5, 0.9), (0.9, 0.9), (1.7, 1.7)):
        joint = [
            MultivariateNormal(torch.tensor([[mean, 0.0, 0.0]]), torch.eye(3)) for mean in (math.sqrt(2 * total), 0.0)
        ]
        assert float(free_bits(Inference(loc, (Factor(*joint),)), 0.3, counted)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["FrameVAE", "DynamicVAE", "SequenceVAE", "DSAE", "RVAE"])
def test_the_loss_is_likelihood_and_weighted_divergence_and_a_tiny_floor_changes_nothing(name: str) -> None:
    """A latent of the sequence is paid like any other, also with free bits."""
    torch.manual_seed(0)
    model_class, _ = MODELS[name]
    vae, x = model_class(5), torch.rand(2, 8, 5) + 0.1
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    losses = []
    for nats in (0.0, 1e-7):
        torch.manual_seed(1)
        losses.append(training_loss(vae, x, None, Objective(beta=0.7, free_bits=nats)).detach())
    torch.manual_seed(1)
    terms = elbo(vae, x)
    expected = torch.stack([0.7 * terms.kl.mean() - terms.log_likelihood.mean(), terms.kl.mean()]).detach()
    assert expected[1] > 0.01
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(losses[1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["FrameVAE", "DynamicVAE", "SequenceVAE", "DSAE", "RVAE"])
def test_frames_of_exact_zeros_weigh_nothing_in_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model_class, _ = MODELS[name]
    vae, x = model_class(5), torch.rand(3, 8, 5) + 0.1
    x[0, 2:5], x[1] = 0.0, 0.0  # a pause, and a segment that is nothing else
    losses = []
    for nats in (0.0, 1e-7):
        torch.manual_seed(1)
        losses.append(training_loss(vae, x, None, Objective(beta=0.7, free_bits=nats)).detach())
    torch.manual_seed(1)
    terms, sounds = elbo(vae, x), x.any(-1)
    kl, log_likelihood = terms.kl[sounds].mean(), terms.log_likelihood[sounds].mean()
    expected = torch.stack([0.7 * kl - log_likelihood, kl]).detach()
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(losses[1], expected, atol=1e-4, rtol=1e-4)
    assert terms.log_likelihood.mean().item() > 1 + log_likelihood.item()  # what it would be otherwise
    silence = training_loss(vae, torch.zeros(2, 8, 5), None, Objective(free_bits=1e-7))
    assert silence.tolist() == pytest.approx([0, 0], abs=1e-5)
    silence[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["FrameVAE", "ContextVAE", "DynamicVAE"])
def test_frames_of_exact_zeros_count_in_no_importance_weighted_bound(name: str) -> None:
    """By one sample, whose weight is p(x, z) / q(z | x)."""
    torch.manual_seed(0)
    model_class, _ = MODELS[name]
    vae, x = model_class(5), torch.rand(2, 8, 5) + 0.1
    x[0, 2:5] = 0.0
    sounds = x.any(-1)
    torch.manual_seed(1)
    found = importance_weighted_surrogate(vae, x, 1)[sounds].mean()
    torch.manual_seed(1)
    (factor,) = (inference := vae.infer(x.expand(1, *x.shape))).factors
    z = inference.latents
    assert factor.prior is not None
    weights = vae.log_likelihood(z, x[None]) + factor.prior.log_prob(z) - factor.posterior.log_prob(z)
    torch.testing.assert_close(found, weights[0][sounds].mean())
    torch.manual_seed(1)
    loss = training_loss(vae, x, None, Objective(importance_samples=2))
    torch.manual_seed(1)
    torch.testing.assert_close(loss[0], -importance_weighted_surrogate(vae, x, 2)[sounds].mean())
    assert (importance_weighted_bound(vae, x, 64)[sounds].mean() - found).abs() < 1  # nats; a zero frame has 60


def test_dimensions_below_the_floor_have_no_gradient_of_divergence() -> None:
    vae, x = small_vae(), power(complex_frames(5, 9)).float()
    torch.manual_seed(2)
    loss = training_loss(vae, x, None, Objective(free_bits=1e3))
    of_loss = torch.autograd.grad(loss[0], list(vae.encoder.parameters()))
    torch.manual_seed(2)
    of_likelihood = torch.autograd.grad(-elbo(vae, x).log_likelihood.mean(), list(vae.encoder.parameters()))
    for ours, theirs in zip(of_loss, of_likelihood, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert float(loss[0].detach()) == pytest.approx(
        3e3, abs=500
    )  # three dimensions at a thousand nats, and the likelihood


@pytest.mark.parametrize(
    ("cycles", "step", "expected"),
    [(1, 0, 0.0), (1, 25, 0.4), (1, 50, 0.8), (1, 99, 0.8), (2, 0, 0.0), (2, 10, 0.32), (2, 25, 0.8), (2, 49, 0.8),
    (2, 50, 0.0),
     (2, 60, 0.32), (4, 24, 0.8), (4, 25, 0.0), (4, 30, 0.32), (4, 99, 0.8)],
)  # fmt: skip
def test_beta_starts_again_in_each_cycle(cycles: int, step: int, expected: float) -> None:
    """Of 100 steps with a warm-up over half of each cycle, to 0.8."""
    settings = TrainingSettings(steps=100, beta=0.8, beta_warmup=0.5, beta_cycles=cycles)
    assert beta(settings, step) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (30, 0.0), (40, 0.2), (55, 0.5), (80, 1.0), (99, 1.0)])
def test_a_model_changes_over_to_its_own_past_linearly(step: int, expected: float) -> None:
    assert own_past(TrainingSettings(steps=100, scheduled_sampling=(0.3, 0.8)), step) == pytest.approx(expected)
    assert own_past(TrainingSettings(steps=100), step) == 1.0
