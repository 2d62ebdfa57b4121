"""VonMisesFisher, PowerSpherical, SphereUniform and LogDirichlet against quadrature, SciPy, mpmath and Monte Carlo."""

from __future__ import annotations

import math
from functools import lru_cache

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch.autograd import gradcheck
from torch.distributions import Dirichlet, Distribution, Independent, kl_divergence
from torch.nn.functional import normalize

from audiovae.distributions.log_dirichlet import LogDirichlet
from audiovae.distributions.power_spherical import PowerSpherical
from audiovae.distributions.von_mises_fisher import AroundDirection, SphereUniform, VonMisesFisher, uniform_directions

DOUBLE = torch.float64
DIMS = (2, 3, 8, 64, 256)
CONCENTRATIONS = (1e-3, 1e-1, 1.0, 10.0, 1e3, 1e5)
Z_LIMIT = 5.0  # a test of a mean fails by chance once in two million

on_sphere = pytest.mark.parametrize("kind", [VonMisesFisher, PowerSpherical])
all_dims = pytest.mark.parametrize("dim", DIMS)
all_concentrations = pytest.mark.parametrize("concentration", CONCENTRATIONS)


def z_score(draws: torch.Tensor, expected: torch.Tensor | float) -> torch.Tensor:
    """How many standard errors the mean over the first dimension is from what is expected."""
    return (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))


def direction(dim: int, dtype: torch.dtype = DOUBLE, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)), dim=0).to(dtype)


# Angles from 0 to pi for the trapezoidal rule, ever closer at both ends: exact to rounding also where a density
# is narrow there.
STEPS = np.linspace(-40, 40, 40_001)
ANGLES, SUPPLEMENTS = np.pi * scipy.special.expit(STEPS), np.pi * scipy.special.expit(-STEPS)
ONE_MINUS_COS = 2 * np.sin(ANGLES / 2) ** 2
LOG_LENGTHS = np.log(ANGLES * SUPPLEMENTS / np.pi * (STEPS[1] - STEPS[0]))


@lru_cache
def angular(kind: type, dim: int, concentration: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Statistic T(angle), masses of the angle, and log of the integral of exp(k T) sin(angle)^(dim-2) over it."""
    statistic = 1 - ONE_MINUS_COS if kind is VonMisesFisher else np.log(2 * np.sin(SUPPLEMENTS / 2) ** 2)
    log_mass = concentration * statistic + (dim - 2) * np.log(np.sin(np.minimum(ANGLES, SUPPLEMENTS))) + LOG_LENGTHS
    log_total = scipy.special.logsumexp(log_mass)
    return statistic, np.exp(log_mass - log_total), log_total


def log_area(dim: int) -> float:
    """Of the unit sphere of R^dim."""
    return math.log(2 * math.pi ** (dim / 2)) - scipy.special.gammaln(dim / 2)


def expected_kl(kind: type, dim: int, concentration: float) -> float:
    """sum p log(p / uniform) on the grid; log(p / uniform) = k T - log of the mean of exp(k T) over the sphere."""
    statistic, masses, log_total = angular(kind, dim, concentration)
    return float(masses @ (concentration * statistic - (log_total - (log_area(dim) - log_area(dim - 1)))))


def expectation(kind: type, dim: int, concentration: float, values: np.ndarray) -> float:
    return float(angular(kind, dim, concentration)[1] @ values)


def slope_of_expectation(kind: type, dim: int, concentration: float, values: np.ndarray) -> float:
    """d E[values] / dk = Cov(values, T)."""
    statistic, masses, _ = angular(kind, dim, concentration)
    return float(masses @ ((values - masses @ values) * (statistic - masses @ statistic)))


@on_sphere
@all_dims
@all_concentrations
def test_the_kl_and_its_gradient_are_those_of_a_quadrature_over_the_angle(
    kind: type, dim: int, concentration: float
) -> None:
    k = torch.tensor(concentration, dtype=DOUBLE, requires_grad=True)
    kl = kl_divergence(kind(direction(dim), k), SphereUniform(dim))
    kl.backward()
    assert kl.item() == pytest.approx(expected_kl(kind, dim, concentration), rel=1e-6, abs=1e-9)
    statistic = angular(kind, dim, concentration)[0]
    assert k.grad.item() == pytest.approx(
        concentration * slope_of_expectation(kind, dim, concentration, statistic), rel=1e-5
    )


@all_dims
@all_concentrations
def test_the_von_mises_fisher_has_the_bessel_functions_of_fifty_digits(dim: int, concentration: float) -> None:
    """Also where I_n(k) is far below the smallest float, and the KL is 2e-9."""
    with mpmath.workdps(50):
        k, order = mpmath.mpf(concentration), mpmath.mpf(dim) / 2 - 1
        first, second = mpmath.besseli(order, k), mpmath.besseli(order + 1, k)
        length = second / first
        log_constant = order * mpmath.log(k) - mpmath.mpf(dim) / 2 * mpmath.log(2 * mpmath.pi) - mpmath.log(first)
        log_sphere = mpmath.log(2 * mpmath.pi ** (mpmath.mpf(dim) / 2) / mpmath.gamma(mpmath.mpf(dim) / 2))
        kl = float(k * length + log_constant + log_sphere)
        slope = float(k * (1 - length**2 - (dim - 1) * length / k))
        density_at_mode, length = float(log_constant + k), float(length)
    mu, k = direction(dim), torch.tensor(concentration, dtype=DOUBLE, requires_grad=True)
    distribution = VonMisesFisher(mu, k)
    assert (distribution.mean @ mu).item() == pytest.approx(length, rel=1e-10)
    assert distribution.log_prob(mu).item() == pytest.approx(density_at_mode, rel=1e-11, abs=1e-10)
    actual = kl_divergence(distribution, SphereUniform(dim))
    actual.backward()
    assert actual.item() == pytest.approx(kl, rel=1e-7)
    assert k.grad.item() == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("dim", [*DIMS, 130])
@all_concentrations
def test_the_second_derivatives_of_the_von_mises_fisher_are_those_of_fifty_digits(
    dim: int, concentration: float
) -> None:
    """Of the KL, A' + k A'', and of the log density at the mode, -A'. At d = 3 and k = 5 the KL's is -0.0384."""
    with mpmath.workdps(50):
        k, order = mpmath.mpf(concentration), mpmath.mpf(dim) / 2 - 1
        length = mpmath.besseli(order + 1, k) / mpmath.besseli(order, k)
        slope = 1 - length**2 - (dim - 1) * length / k
        bend = -2 * length * slope - (dim - 1) * (slope / k - length / k**2)
    mu, k = direction(dim), torch.tensor(concentration, dtype=DOUBLE, requires_grad=True)
    distribution = VonMisesFisher(mu, k)
    for value, expected in (
        (kl_divergence(distribution, SphereUniform(dim)), slope + concentration * bend),
        (distribution.entropy(), -slope - concentration * bend),
        (distribution.log_prob(mu), -slope),
    ):
        (first,) = torch.autograd.grad(value, k, create_graph=True)
        (second,) = torch.autograd.grad(first, k)
        assert second.item() == pytest.approx(float(expected), rel=1e-6)


def test_the_second_derivative_of_a_divergence_has_the_sign_and_size_of_its_closed_form() -> None:
    """For d = 3, A = coth(k) - 1/k."""
    k = torch.tensor(5.0, dtype=DOUBLE, requires_grad=True)
    closed = k * (1 / torch.tanh(k) - 1 / k) - torch.log(torch.sinh(k) / k)
    for value in (closed, kl_divergence(VonMisesFisher(direction(3), k), SphereUniform(3))):
        (first,) = torch.autograd.grad(value, k, create_graph=True)
        assert torch.autograd.grad(first, k)[0].item() == pytest.approx(-0.0383653, abs=1e-7)


@pytest.mark.parametrize("dim", [2, 3, 8, 64])
@pytest.mark.parametrize("concentration", [0.5, 20.0, 500.0])
def test_the_von_mises_fisher_has_the_density_and_entropy_of_scipy(dim: int, concentration: float) -> None:
    mu, points = (
        direction(dim),
        normalize(torch.randn(20, dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)), dim=-1),
    )
    distribution = VonMisesFisher(mu, torch.tensor(concentration, dtype=DOUBLE))
    reference = scipy.stats.vonmises_fisher(mu.numpy(), concentration)
    torch.testing.assert_close(
        distribution.log_prob(points), torch.from_numpy(reference.logpdf(points.numpy())), rtol=1e-9, atol=1e-9
    )
    assert float(distribution.entropy()) == pytest.approx(float(reference.entropy()), rel=1e-9)


@on_sphere
@all_dims
@all_concentrations
def test_the_density_of_a_direction_is_that_of_its_angle_over_the_circles_area(
    kind: type, dim: int, concentration: float
) -> None:
    """Hence it integrates to one over the sphere."""
    mu, other = direction(dim), direction(dim, seed=1)
    other = normalize(other - (other @ mu) * mu, dim=0)
    angles = torch.tensor([0.0, 1e-3, 0.3, 1.5, 3.0], dtype=DOUBLE)
    points = angles.cos()[:, None] * mu + angles.sin()[:, None] * other
    log_total = angular(kind, dim, concentration)[2]
    statistic = angles.cos() if kind is VonMisesFisher else angles.cos().log1p()
    expected = concentration * statistic - log_total - log_area(dim - 1)
    torch.testing.assert_close(
        kind(mu, torch.tensor(concentration, dtype=DOUBLE)).log_prob(points), expected, rtol=1e-7, atol=1e-5
    )


def test_the_log_area_of_the_smallest_sphere_is_that_of_two_points() -> None:
    assert log_area(1) == pytest.approx(math.log(2))


@on_sphere
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_kl_is_positive_and_grows_with_the_concentration(kind: type, dtype: torch.dtype) -> None:
    k = torch.logspace(-3, 5, 400, dtype=dtype)
    for dim in DIMS:
        kl = kl_divergence(kind(direction(dim, dtype), k), SphereUniform(dim))
        assert bool((kl > 0).all())
        assert bool((kl.diff() > 0).all())
        assert float(kl[0]) < 2e-6


@on_sphere
@all_dims
def test_single_precision_loses_no_more_than_rounding(kind: type, dim: int) -> None:
    k = torch.logspace(-3, 5, 50).requires_grad_()
    double = k.detach().double().requires_grad_()
    mu = direction(dim, torch.float32)
    point = normalize(mu + 0.01 * direction(dim, torch.float32, seed=2), dim=0)
    for result in ("kl", "mean", "entropy", "log_prob"):
        values, gradients = [], []
        for parameter, loc, value in ((k, mu, point), (double, mu.double(), point.double())):
            distribution = kind(loc, parameter)
            found = {
                "kl": lambda q=distribution: kl_divergence(q, SphereUniform(dim)),
                "mean": lambda q=distribution: q.mean.sum(-1),
                "entropy": lambda q=distribution: q.entropy(),
                "log_prob": lambda q=distribution, v=value: q.log_prob(v),
            }[result]()
            values.append(found.detach().double())
            gradients.append(torch.autograd.grad(found.sum(), parameter)[0].double())
        assert distribution.log_prob(value).dtype == DOUBLE
        torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=2e-6)


@on_sphere
@pytest.mark.parametrize("dim", [2, 5, 200])
def test_densities_kls_and_means_have_the_gradients_of_finite_differences(kind: type, dim: int) -> None:
    mu, k = direction(dim), torch.tensor([0.01, 0.7, 30.0], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda k: kl_divergence(kind(mu, k), SphereUniform(dim)), k)
    assert gradcheck(lambda k: kind(mu, k).mean.sum(-1), k)
    assert gradcheck(lambda k: kind(mu, k).log_prob(direction(dim, seed=3)), k)
    assert gradcheck(lambda k: kind(mu, k).entropy(), k)


def draw(
    kind: type, dim: int, concentration: float, n: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples, their direction, and a concentration of each of them that requires a gradient."""
    torch.manual_seed(seed)
    mu, k = direction(dim, seed=seed + 5), torch.full((n,), concentration, dtype=DOUBLE, requires_grad=True)
    return kind(mu, k).rsample(), mu, k


@on_sphere
@all_dims
@all_concentrations
def test_samples_have_the_moments_of_the_density_and_the_gradients_of_the_moments(
    kind: type, dim: int, concentration: float
) -> None:
    """The gradients of the samples average to the derivatives of E[mu.z] and E[(mu.z)^2]; those of the accepted
    proposals alone, without the derivative of the probability of acceptance, do not.
    """
    n = 2000 if dim < 256 else 500
    z, mu, k = draw(kind, dim, concentration, n)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(n, dtype=DOUBLE), rtol=1e-12, atol=0)
    distance = (z - mu).square().sum(-1) / 2  # 1 - mu.z
    for power in (1, 2):
        values = ONE_MINUS_COS**power
        draws = distance**power
        (slopes,) = torch.autograd.grad(draws.sum(), k, retain_graph=True)
        assert abs(float(z_score(draws.detach(), expectation(kind, dim, concentration, values)))) < Z_LIMIT
        assert abs(float(z_score(slopes, slope_of_expectation(kind, dim, concentration, values)))) < Z_LIMIT
    mean = kind(mu, torch.tensor(concentration, dtype=DOUBLE)).mean
    assert float(z_score(z.detach(), mean).abs().max()) < Z_LIMIT


@pytest.mark.parametrize("concentration", [0.01, 2.0, 300.0, 1e5])
def test_the_gradient_of_a_sample_on_the_ordinary_sphere_is_that_of_the_closed_form(concentration: float) -> None:
    """For d = 3 the distribution function of w = mu.z can be inverted: w = 1 + log(u + (1-u) exp(-2k)) / k."""
    z, mu, k = draw(VonMisesFisher, 3, concentration, 200)
    (slopes,) = torch.autograd.grad((z @ mu).sum(), k)
    w = (1 - (z.detach() - mu).square().sum(-1) / 2).requires_grad_(False)
    ends = torch.exp(-2 * k.detach())
    u = (torch.exp(k.detach() * (w - 1)) - ends) / (1 - ends)
    inverse = 1 + torch.log(u + (1 - u) * torch.exp(-2 * k)) / k
    torch.testing.assert_close(inverse.detach(), w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slopes, torch.autograd.grad(inverse.sum(), k)[0], rtol=1e-6, atol=1e-12)


def test_the_second_derivative_of_a_sample_on_the_ordinary_sphere_is_that_of_the_closed_form() -> None:
    z, mu, k = draw(VonMisesFisher, 3, 2.0, 200)
    (slopes,) = torch.autograd.grad((z @ mu).sum(), k, create_graph=True)
    (bends,) = torch.autograd.grad(slopes.sum(), k)
    w = (z @ mu).detach()
    ends = torch.exp(-2 * k.detach())
    u = (torch.exp(k.detach() * (w - 1)) - ends) / (1 - ends)
    inverse = 1 + torch.log(u + (1 - u) * torch.exp(-2 * k)) / k
    (expected,) = torch.autograd.grad(inverse.sum(), k, create_graph=True)
    torch.testing.assert_close(bends, torch.autograd.grad(expected.sum(), k)[0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("dim", "concentration"), [(2, 0.5), (3, 20.0), (8, 100.0)])
def test_the_second_derivative_of_a_power_spherical_sample_is_that_of_its_quantile(
    dim: int, concentration: float
) -> None:
    """Of (1 + mu.z)/2 with the quantile function of the Beta distribution from SciPy, differentiated numerically."""
    z, mu, k = draw(PowerSpherical, dim, concentration, 30)
    s = (1 + z @ mu) / 2
    (slopes,) = torch.autograd.grad(s.sum(), k, create_graph=True)
    (bends,) = torch.autograd.grad(slopes.sum(), k)
    b, step = (dim - 1) / 2, 0.02 * concentration
    rank = scipy.stats.beta.cdf(s.detach().numpy(), b + concentration, b)
    values = [scipy.stats.beta.ppf(rank, b + concentration + change, b) for change in (-step, 0, step)]
    expected = (values[0] - 2 * values[1] + values[2]) / step**2
    np.testing.assert_allclose(bends.numpy(), expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("dim", "concentration"), [(2, 0.5), (3, 20.0), (8, 1e3), (64, 5.0), (256, 100.0)])
def test_the_gradient_of_a_power_spherical_sample_is_that_of_the_beta_distribution(
    dim: int, concentration: float
) -> None:
    """-(dF/dk) / f with the distribution function of (1 + mu.z)/2 from SciPy, differentiated numerically."""
    z, mu, k = draw(PowerSpherical, dim, concentration, 30)
    s = (1 + z @ mu) / 2
    (slopes,) = torch.autograd.grad(s.sum(), k)
    b, step, s = (dim - 1) / 2, 1e-4 * concentration, s.detach().numpy()
    rise = scipy.stats.beta.cdf(s, b + concentration + step, b) - scipy.stats.beta.cdf(s, b + concentration - step, b)
    expected = -rise / (2 * step) / scipy.stats.beta.pdf(s, b + concentration, b)
    np.testing.assert_allclose(slopes.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@on_sphere
@pytest.mark.parametrize("dim", [2, 3, 16])
def test_samples_follow_the_density_as_a_whole(kind: type, dim: int) -> None:
    """Kolmogorov-Smirnov; a right sampler fails once in a million."""
    z, mu, _ = draw(kind, dim, 3.0, 5000, seed=1)
    cumulative = np.cumsum(angular(kind, dim, 3.0)[1])
    angles = torch.acos((z.detach() @ mu).clamp(-1, 1)).numpy()
    assert scipy.stats.kstest(angles, lambda x: np.interp(x, ANGLES, cumulative)).pvalue > 1e-6


@on_sphere
@pytest.mark.parametrize("dim", [2, 3, 10])
def test_the_gradient_in_the_direction_is_that_of_the_mean(kind: type, dim: int) -> None:
    """E[c.z] = A c.mu with mu = h / |h|, whose derivative in h is A (c - (c.mu) mu) / |h|."""
    torch.manual_seed(3)
    c, h = direction(dim, seed=8), (3 * direction(dim, seed=9)).repeat(4000, 1).requires_grad_()
    k = torch.tensor(4.0, dtype=DOUBLE)
    z = kind(normalize(h, dim=-1), k).rsample()
    (slopes,) = torch.autograd.grad((z @ c).sum(), h)
    mu = direction(dim, seed=9)
    length = kind(mu, k).mean @ mu
    assert float(z_score(slopes, length * (c - (c @ mu) * mu) / 3).abs().max()) < Z_LIMIT


@on_sphere
@all_dims
@pytest.mark.parametrize("concentration", [1e-3, 10.0, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_samples_have_unit_length_whatever_the_direction(
    kind: type, dim: int, concentration: float, dtype: torch.dtype
) -> None:
    """The first axis itself included, either way, and directions a rounding error away from it."""
    torch.manual_seed(0)
    axis = torch.eye(dim, dtype=dtype)[0]
    nearly = axis + 1e-7 * direction(dim, dtype)
    mu = torch.stack([axis, -axis, nearly / nearly.norm(), axis.roll(1), direction(dim, dtype)]).requires_grad_()
    k = torch.tensor(concentration, dtype=dtype, requires_grad=True)
    z = kind(mu, k).rsample((20,))
    assert z.shape == (20, 5, dim)
    assert z.dtype == dtype
    assert (z.norm(dim=-1) - 1).abs().max().item() < 16 * torch.finfo(dtype).eps
    if concentration == 1e5:
        assert (z - mu).norm(dim=-1).max().item() < 8 * math.sqrt(dim / 1e5)
    for gradient in torch.autograd.grad((z * direction(dim, dtype)).sum(), (mu, k)):
        assert bool(torch.isfinite(gradient).all())


@on_sphere
def test_concentrations_out_of_range_count_as_the_nearest_in_it(kind: type) -> None:
    mu = direction(6, torch.float32)
    k = torch.tensor([0.0, 1e-30, 1e-3, 1e5, 1e20, 3e38], requires_grad=True)
    distribution = kind(mu, k)
    assert torch.equal(distribution.concentration.detach(), torch.tensor([1e-3, 1e-3, 1e-3, 1e5, 1e5, 1e5]))
    z, kl = distribution.rsample((3,)), kl_divergence(distribution, SphereUniform(6))
    total = (
        z[..., 0].sum()
        + kl.sum()
        + distribution.log_prob(z.detach()).sum()
        + distribution.mean.sum()
        + distribution.entropy().sum()
    )
    (gradient,) = torch.autograd.grad(total, k)
    assert bool(torch.isfinite(torch.cat([z.flatten(), kl, gradient])).all())
    assert torch.equal(gradient == 0, torch.tensor([True, True, False, False, True, True]))


@on_sphere
def test_the_density_is_finite_at_the_opposite_of_the_direction(kind: type) -> None:
    mu = direction(5, torch.float32)
    k = torch.tensor([1e-3, 10.0, 1e5], requires_grad=True)
    opposite = (-mu).requires_grad_()
    values = kind(mu, k).log_prob(opposite)
    assert bool(torch.isfinite(values).all())
    for gradient in torch.autograd.grad(values.sum(), (k, opposite)):
        assert bool(torch.isfinite(gradient).all())


@on_sphere
def test_one_seed_gives_one_sample(kind: type) -> None:
    distribution = kind(direction(7, torch.float32), torch.full((50,), 3.0))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(distribution.rsample((4,)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@on_sphere
def test_shapes_broadcast_and_expand(kind: type) -> None:
    distribution = kind(direction(4, torch.float32), torch.rand(3, 1) + 1)
    assert (distribution.batch_shape, distribution.event_shape) == ((3, 1), (4,))
    larger = distribution.expand((2, 3, 5))
    assert isinstance(larger, kind)
    assert larger.batch_shape == (2, 3, 5)
    z = larger.rsample((6,))
    assert z.shape == (6, 2, 3, 5, 4)
    torch.testing.assert_close(larger.log_prob(z), distribution.log_prob(z))
    assert larger.mean.shape == larger.mode.shape == (2, 3, 5, 4)
    assert kl_divergence(larger, SphereUniform(4)).shape == (2, 3, 5)
    assert kl_divergence(distribution, SphereUniform(4, (7, 1, 5))).shape == (7, 3, 5)
    assert kl_divergence(Independent(larger, 1), Independent(SphereUniform(4, (2, 3, 5)), 1)).shape == (2, 3)
    assert kind(direction(4, torch.float32), 2.0).rsample().shape == (4,)
    assert kind(torch.zeros(0, 4), torch.zeros(0)).rsample().shape == (0, 4)
    assert torch.equal(distribution.mode, distribution.loc)
    assert repr(distribution) == f"{kind.__name__}(loc: (3, 1, 4), concentration: (3, 1))"
    expected = SphereUniform(4).entropy() - kl_divergence(distribution, SphereUniform(4))
    torch.testing.assert_close(distribution.entropy(), expected)


@on_sphere
def test_one_graph_gives_two_losses(kind: type) -> None:
    k = torch.tensor(2.0, requires_grad=True)
    distribution = kind(direction(4, torch.float32), k)
    distribution.rsample().sum().backward()
    kl_divergence(distribution, SphereUniform(4)).backward()
    assert k.grad.item() != 0


@on_sphere
def test_wrong_parameters_and_values_are_refused(kind: type) -> None:
    mu = torch.tensor([0.6, 0.8])
    for wrong, named in ((math.nan, "nan"), (math.inf, "inf"), (-0.5, "-0.5")):
        with pytest.raises(
            ValueError, match=rf"concentration of {kind.__name__} must be finite and not negative, got {named}"
        ):
            kind(mu, torch.tensor([1.0, wrong]))
    with pytest.raises(ValueError, match=rf"loc of {kind.__name__} must be of unit length, got a vector of length 2"):
        kind(torch.stack([mu, 2 * mu]), 1.0)
    with pytest.raises(ValueError, match="got a vector of length nan"):
        kind(mu * math.nan, 1.0)
    for shape in ((1,), (), (3, 1)):
        with pytest.raises(ValueError, match=rf"{kind.__name__} needs a loc of at least 2 dimensions"):
            kind(torch.ones(shape), 1.0)
    with pytest.raises(ValueError, match="within the support"):
        kind(mu, 1.0).log_prob(2 * mu)
    with pytest.raises(ValueError, match="spheres of different dimensions: 2 and 3"):
        kl_divergence(kind(mu, 1.0), SphereUniform(3))
    kind(2 * mu, -1.0, validate_args=False)


@pytest.mark.parametrize("dim", DIMS)
def test_the_uniform_distribution_has_the_area_and_moments_of_the_sphere(dim: int) -> None:
    torch.manual_seed(0)
    prior = SphereUniform(dim, (2000,), dtype=DOUBLE)
    z = prior.rsample()
    assert z.dtype == DOUBLE
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(2000, dtype=DOUBLE))
    assert float(z_score(z, prior.mean[0]).abs().max()) < Z_LIMIT
    assert float(z_score(z.square()[:, :-1], 1 / dim).abs().max()) < Z_LIMIT
    torch.testing.assert_close(prior.log_prob(z), torch.full((2000,), -log_area(dim), dtype=DOUBLE))
    torch.testing.assert_close(prior.entropy(), torch.full((2000,), log_area(dim), dtype=DOUBLE))


def test_the_uniform_distribution_broadcasts_expands_and_refuses() -> None:
    prior = SphereUniform(3).expand((4, 2))
    assert prior.rsample((5,)).shape == (5, 4, 2, 3)
    assert prior.log_prob(torch.tensor([1.0, 0.0, 0.0])).shape == (4, 2)
    assert prior.mean.shape == (4, 2, 3)
    assert float(SphereUniform(3).log_prob(torch.tensor([1.0, 0.0, 0.0]))) == pytest.approx(-math.log(4 * math.pi))
    assert repr(prior) == "SphereUniform(dim: 3, batch_shape: (4, 2))"
    with pytest.raises(ValueError, match="SphereUniform needs at least 2 dimensions, got 1"):
        SphereUniform(1)
    with pytest.raises(ValueError, match="within the support"):
        prior.log_prob(torch.ones(3))


def test_noise_of_zero_still_has_a_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single-precision noise is exactly zero now and then, and 0 / 0 once would end a training."""
    monkeypatch.setattr(torch, "randn", torch.zeros)
    torch.testing.assert_close(uniform_directions((5, 1), torch.float32, None).norm(dim=-1), torch.ones(5))


def test_what_the_two_share_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        AroundDirection(torch.tensor([1.0, 0.0]), 1.0)


# Dirichlet distribution in logarithms


def draw_concentrations(n_entries: int, low: float, high: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(
        math.log(low) + math.log(high / low) * torch.rand(n_entries, dtype=DOUBLE, generator=generator)
    ).clamp(low, high)


def exact_kl(a: torch.Tensor, b: torch.Tensor) -> float:
    """KL(Dirichlet(a), Dirichlet(b)) with thirty digits."""
    with mpmath.workdps(30):
        a, b = ([mpmath.mpf(x) for x in c.tolist()] for c in (a, b))
        total, other_total = sum(a), sum(b)
        kl = (
            mpmath.loggamma(total)
            - mpmath.loggamma(other_total)
            + sum(map(mpmath.loggamma, b))
            - sum(map(mpmath.loggamma, a))
        )
        return float(kl + sum((x - y) * (mpmath.digamma(x) - mpmath.digamma(total)) for x, y in zip(a, b, strict=True)))


RANGES = ((1e-3, 1e-3), (1e-3, 1e-1), (0.1, 10.0), (1e-3, 1e5), (1e4, 1e5), (1e5, 1e5))


@pytest.mark.parametrize("n_entries", [2, 5, 256])
@pytest.mark.parametrize("of_p", RANGES)
@pytest.mark.parametrize("change", [1e-8, 1e-3, 3.0])
def test_the_dirichlet_kl_is_that_of_thirty_digits(n_entries: int, of_p: tuple[float, float], change: float) -> None:
    """From two distributions that are the same but for rounding to very different ones."""
    a = draw_concentrations(n_entries, *of_p)
    b = (
        a * torch.exp(change * torch.randn(n_entries, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)))
    ).clamp(1e-3, 1e5)
    for p, q in ((a, b), (b, a)):
        kl = kl_divergence(LogDirichlet(p), LogDirichlet(q))
        assert kl.item() == pytest.approx(exact_kl(p, q), rel=1e-9, abs=2e-7)
        p, q = p.float(), q.float()
        single, double = (
            kl_divergence(LogDirichlet(p), LogDirichlet(q)),
            kl_divergence(LogDirichlet(p.double()), LogDirichlet(q.double())),
        )
        assert float(single) == pytest.approx(float(double), rel=1e-6)
        assert float(single) > -1e-6


@pytest.mark.parametrize("n_entries", [2, 7, 100])
def test_the_dirichlet_kl_and_its_gradient_are_those_of_torch_in_double_precision(n_entries: int) -> None:
    a, b = (draw_concentrations(n_entries, 0.05, 50, seed).requires_grad_() for seed in (0, 1))
    actual, expected = kl_divergence(LogDirichlet(a), LogDirichlet(b)), kl_divergence(Dirichlet(a), Dirichlet(b))
    torch.testing.assert_close(actual, expected)
    for ours, theirs in zip(torch.autograd.grad(actual, (a, b)), torch.autograd.grad(expected, (a, b)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_dirichlet_kl_has_the_gradient_of_finite_differences() -> None:
    a, b = (draw_concentrations(6, 0.01, 30, seed).view(2, 3).requires_grad_() for seed in (2, 3))
    assert gradcheck(lambda a, b: kl_divergence(LogDirichlet(a), LogDirichlet(b)), (a, b))
    assert gradcheck(lambda a: LogDirichlet(a).entropy(), a)
    assert gradcheck(lambda a: LogDirichlet(a).log_prob(torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE).log()), a)


def test_the_dirichlet_kl_vanishes_between_equals_only() -> None:
    for n_entries in (2, 30, 256):
        for low, high in RANGES:
            a = draw_concentrations(n_entries, low, high).float()
            assert float(kl_divergence(LogDirichlet(a), LogDirichlet(a.clone()))) == 0
            other = torch.where(torch.arange(n_entries) == 0, 1.5 * a, a).clamp(max=9e4)
            assert float(kl_divergence(LogDirichlet(a), LogDirichlet(other))) > 0


@pytest.mark.parametrize("a", [(0.05, 0.4), (1.0, 1.0), (3.0, 0.7), (40.0, 90.0)])
def test_of_two_entries_the_density_and_kl_are_those_of_a_quadrature_over_the_log_ratio(a: tuple[float, float]) -> None:
    """The density is one with respect to Lebesgue measure over y_1 - y_2, where that of the Beta distribution is
    infinite.
    """
    ratio = torch.linspace(-700, 700, 200_001, dtype=DOUBLE)
    y = torch.stack([ratio, torch.zeros_like(ratio)], -1).log_softmax(-1)
    p, q = LogDirichlet(torch.tensor(a, dtype=DOUBLE)), LogDirichlet(torch.tensor((2.0, 0.3), dtype=DOUBLE))
    masses = p.log_prob(y).exp() * (ratio[1] - ratio[0])
    assert float(masses.sum()) == pytest.approx(1, abs=1e-9)
    expected = float((masses * (p.log_prob(y) - q.log_prob(y))).sum())
    assert float(kl_divergence(p, q)) == pytest.approx(expected, abs=1e-9)
    assert float(p.entropy()) == pytest.approx(-float((masses * p.log_prob(y)).sum()), abs=1e-8)
    torch.testing.assert_close(p.mean, (masses[:, None] * y).sum(0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n_entries", [2, 3, 20])
def test_the_density_is_that_of_scipy_times_the_product_of_the_entries(n_entries: int) -> None:
    a = draw_concentrations(n_entries, 0.2, 20)
    z = scipy.stats.dirichlet(np.full(n_entries, 2.0)).rvs(10, random_state=0)
    expected = [scipy.stats.dirichlet(a.numpy()).logpdf(point) + np.log(point).sum() for point in z]
    torch.testing.assert_close(
        LogDirichlet(a).log_prob(torch.from_numpy(np.log(z))), torch.tensor(expected, dtype=DOUBLE)
    )


@pytest.mark.parametrize("of_p", [*RANGES, (1.0, 1.0)])
@pytest.mark.parametrize("n_entries", [2, 8])
def test_dirichlet_samples_have_the_moments_and_their_gradients(n_entries: int, of_p: tuple[float, float]) -> None:
    """E[z] = a / a_0, E[y] = psi(a) - psi(a_0), and the derivatives of both in the first entry of a."""
    torch.manual_seed(1)
    n = 5000
    a = draw_concentrations(n_entries, *of_p)
    given = a.repeat(n, 1).requires_grad_()
    y = LogDirichlet(given).rsample()
    z, total = y.exp(), a.sum()
    assert y.logsumexp(-1).abs().max().item() < 1e-12
    occurs = a / total > 1e-2  # a mean of values that hardly ever differ from zero is not normally distributed
    assert float(z_score(z.detach(), a / total)[occurs].abs().max()) < Z_LIMIT
    torch.testing.assert_close(LogDirichlet(a).mean_probabilities, a / total)
    expected = torch.from_numpy(scipy.special.digamma(a.numpy()) - scipy.special.digamma(float(total)))
    torch.testing.assert_close(LogDirichlet(a).mean, expected, rtol=1e-9, atol=1e-12)
    assert float(z_score(y.detach(), expected).abs().max()) < Z_LIMIT
    for entry in (0, n_entries - 1):
        slopes = torch.autograd.grad(y[:, entry].sum(), given, retain_graph=True)[0][:, 0]
        of_entry = scipy.special.polygamma(1, float(a[0])) if entry == 0 else 0.0
        assert abs(float(z_score(slopes, of_entry - scipy.special.polygamma(1, float(total))))) < Z_LIMIT


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("concentration", [1e-3, 1e-2, 1e5])
def test_samples_of_many_entries_stay_finite_where_probabilities_underflow(
    concentration: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    a = torch.full((20, 256), concentration, dtype=dtype, requires_grad=True)
    distribution = LogDirichlet(a)
    y = distribution.rsample()
    assert y.dtype == dtype
    assert bool((y.exp() == 0).any()) == (concentration < 1)
    assert y.logsumexp(-1).abs().max().item() < 1e-6
    values = distribution.log_prob(y)
    (gradient,) = torch.autograd.grad(values.sum() + y.sum() / 256, a)
    for tensor in (y, values, gradient):
        assert bool(torch.isfinite(tensor).all())


def test_dirichlet_concentrations_out_of_range_count_as_the_nearest_in_it() -> None:
    a = torch.tensor([1e-30, 1e-3, 1e5, 1e30], requires_grad=True)
    distribution = LogDirichlet(a)
    assert torch.equal(distribution.concentration.detach(), torch.tensor([1e-3, 1e-3, 1e5, 1e5]))
    kl = kl_divergence(distribution, LogDirichlet(torch.ones(4)))
    (gradient,) = torch.autograd.grad(kl + distribution.rsample()[0] + distribution.mean.sum(), a)
    assert bool(torch.isfinite(gradient).all())
    assert torch.equal(gradient == 0, torch.tensor([True, False, False, True]))


def test_dirichlet_shapes_seeds_and_mode() -> None:
    a = torch.tensor([[0.5, 2.0, 7.5], [1.0, 1.0, 2.0]])
    distribution = LogDirichlet(a)
    assert (distribution.batch_shape, distribution.event_shape) == ((2,), (3,))
    larger = distribution.expand((4, 2))
    y = larger.rsample((5,))
    assert y.shape == (5, 4, 2, 3)
    torch.testing.assert_close(larger.log_prob(y), distribution.log_prob(y))
    assert kl_divergence(larger, LogDirichlet(torch.ones(3))).shape == (4, 2)
    assert bool((distribution.log_prob(distribution.mode) > distribution.log_prob(y)).all())
    torch.testing.assert_close(distribution.mode.exp(), a / a.sum(-1, keepdim=True))
    assert repr(distribution) == "LogDirichlet(concentration: (2, 3))"
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(distribution.rsample())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_wrong_dirichlet_parameters_and_values_are_refused() -> None:
    for wrong, named in ((math.nan, "nan"), (math.inf, "inf"), (0.0, "0.0"), (-2.0, "-2.0")):
        with pytest.raises(
            ValueError, match=rf"concentration of LogDirichlet must be positive and finite, got {named}"
        ):
            LogDirichlet(torch.tensor([1.0, wrong]))
    for shape in ((1,), (), (3, 1)):
        with pytest.raises(ValueError, match="LogDirichlet needs at least 2 entries"):
            LogDirichlet(torch.ones(shape))
    for value in (torch.zeros(2), torch.tensor([0.0, -math.inf]), torch.tensor([0.5, 0.5])):
        with pytest.raises(ValueError, match="within the support"):
            LogDirichlet(torch.ones(2)).log_prob(value)
    with pytest.raises(ValueError, match="KL divergence between LogDirichlet of 2 and of 3 entries"):
        kl_divergence(LogDirichlet(torch.ones(2)), LogDirichlet(torch.ones(3)))


def test_all_of_them_are_distributions_with_reparameterised_samples() -> None:
    for kind in (VonMisesFisher, PowerSpherical, SphereUniform, LogDirichlet):
        assert issubclass(kind, Distribution)
        assert kind.has_rsample
