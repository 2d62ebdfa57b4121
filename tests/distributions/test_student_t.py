"""ComplexStudentT against SciPy, the complex Gaussian, quadrature, Monte Carlo and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Independent

from audiovae.distributions.complex_normal import ComplexNormal
from audiovae.distributions.complex_student_t import ComplexStudentT

DOUBLE = torch.float64
Z_LIMIT = 5.0  # a test of a mean fails by chance once in two million
DFS = (0.3, 1.0, 2.0, 4.0, 30.0)


def draw_points(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def z_score(draws: torch.Tensor, expected: torch.Tensor | float) -> torch.Tensor:
    """How many standard errors the mean over the first dimension is from what is expected."""
    return (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))


@pytest.mark.parametrize("parameter", ["scale", "log_scale"])
@pytest.mark.parametrize("df", DFS)
@pytest.mark.parametrize("scale", [1e-12, 0.5, 1e6])
def test_the_density_is_that_of_the_bivariate_real_student_t_of_half_the_scale(
    df: float, scale: float, parameter: str
) -> None:
    points = math.sqrt(scale) * torch.cat(
        [draw_points(50), 100 * draw_points(50), torch.zeros(1, dtype=torch.complex128)]
    )
    given = {"scale": scale, "log_scale": math.log(scale)}[parameter]
    distribution = ComplexStudentT(df, **{parameter: torch.tensor(given, dtype=DOUBLE)})
    reference = scipy.stats.multivariate_t([0, 0], scale / 2 * np.eye(2), df, allow_singular=True)
    expected = torch.from_numpy(reference.logpdf(torch.view_as_real(points).numpy()))
    torch.testing.assert_close(distribution.log_prob(points), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("df", DFS)
def test_the_density_integrates_to_one_over_the_plane_and_to_its_entropy(df: float) -> None:
    """In polar coordinates, over u = log |x|^2: the area is pi exp(u) du."""
    distribution = ComplexStudentT(torch.tensor(df, dtype=DOUBLE), torch.tensor(3.0, dtype=DOUBLE))
    u = torch.linspace(-50, 350, 100_001, dtype=DOUBLE)
    log_density = distribution.log_prob_of_power(u.exp())
    masses = torch.exp(log_density + math.log(math.pi) + u) * (u[1] - u[0])
    assert float(masses.sum()) == pytest.approx(1, abs=1e-10)
    assert float(-(masses * log_density).sum()) == pytest.approx(float(distribution.entropy()), abs=1e-8)


def test_many_degrees_of_freedom_give_the_complex_gaussian() -> None:
    variance = torch.tensor([1e-3, 1.0, 50.0])
    power = variance * torch.tensor([[0.0], [0.1], [1.0], [30.0]])
    student, gaussian = ComplexStudentT(1e6, variance), ComplexNormal(variance)
    torch.testing.assert_close(
        student.log_prob_of_power(power), gaussian.log_prob_of_power(power), rtol=1e-5, atol=1e-3
    )
    double = ComplexStudentT(1e6, variance.double()).log_prob_of_power(power.double())
    torch.testing.assert_close(student.log_prob_of_power(power).double(), double, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(student.variance, gaussian.variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(student.entropy(), gaussian.entropy(), rtol=1e-5, atol=1e-5)


def test_the_variance_is_infinite_up_to_two_degrees_of_freedom() -> None:
    df = torch.tensor([1.0, 2.0, 2.5, 4.0, 100.0], dtype=DOUBLE, requires_grad=True)
    distribution = ComplexStudentT(df, torch.tensor(3.0, dtype=DOUBLE))
    expected = torch.tensor([math.inf, math.inf, 15.0, 6.0, 3 * 100 / 98], dtype=DOUBLE)
    torch.testing.assert_close(distribution.variance.detach(), expected)
    torch.testing.assert_close(distribution.stddev.detach(), expected.sqrt())
    (gradient,) = torch.autograd.grad(distribution.variance[2:].sum(), df)
    torch.testing.assert_close(gradient, torch.cat([torch.zeros(2, dtype=DOUBLE), -6 / (df.detach()[2:] - 2) ** 2]))
    assert torch.equal(distribution.mean, torch.zeros(5, dtype=torch.complex128))
    assert torch.equal(distribution.mode, distribution.mean)


@pytest.mark.parametrize("df", [0.5, 3.0, 1e6])
@pytest.mark.parametrize("log_scale", [-1e4, -200.0, -30.0, 0.0, 30.0, 200.0, 1e4])
def test_densities_and_gradients_are_finite_at_any_power_and_scale(log_scale: float, df: float) -> None:
    """exp(200) is beyond single precision, and so is exp(-200)."""
    power = torch.tensor([0.0, 1e-45, 1e-20, 1.0, 1e6, 1e12], requires_grad=True)
    parameters = torch.full((6,), log_scale, requires_grad=True), torch.full((6,), df, requires_grad=True)
    values = ComplexStudentT(parameters[1], log_scale=parameters[0]).log_prob_of_power(power)
    assert bool(torch.isfinite(values).all())
    assert float(values[0].detach()) == pytest.approx(-math.log(math.pi) - log_scale, rel=1e-6)
    gradients = torch.autograd.grad(values.sum(), (power, *parameters))
    for gradient in gradients:
        assert bool(torch.isfinite(gradient).all())
    torch.testing.assert_close(values[3:].detach(), expected_values(power[3:], log_scale, df), rtol=1e-4, atol=1e-4)
    ratio = torch.sigmoid(power.detach()[3:].double().log() + math.log(2 / df) - log_scale)
    torch.testing.assert_close(gradients[1][3:], ((df / 2 + 1) * ratio - 1).float(), rtol=1e-4, atol=1e-5)
    summed = ComplexStudentT(parameters[1], log_scale=parameters[0]).summed_log_prob_of_power(power)
    torch.testing.assert_close(summed, values.sum())


def expected_values(power: torch.Tensor, log_scale: float, df: float) -> torch.Tensor:
    """log p(x) from SciPy's logistic function in double precision."""
    odds = np.log(power.detach().double().numpy()) + math.log(2 / df) - log_scale
    return torch.from_numpy(-math.log(math.pi) - log_scale + (df / 2 + 1) * scipy.special.log_expit(-odds)).float()


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_densities_have_both_derivatives_of_finite_differences(floor: float) -> None:
    """In degrees of freedom, scale and power. A floor of 0.3 lies between the scales."""
    df = torch.tensor([0.5, 80.0], dtype=DOUBLE, requires_grad=True)
    log_scale = torch.tensor([[-3.0, -0.4], [2.0, -1.3]], dtype=DOUBLE, requires_grad=True)
    power = torch.tensor([[0.01, 1.0], [50.0, 0.2]], dtype=DOUBLE, requires_grad=True)

    def summed(df: torch.Tensor, log_scale: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
        return ComplexStudentT(df, log_scale=log_scale, floor=floor).summed_log_prob_of_power(power)

    assert gradcheck(summed, (df, log_scale, power))
    assert gradgradcheck(summed, (df, log_scale, power))
    assert gradcheck(lambda df, v: ComplexStudentT(df, log_scale=v).entropy(), (df, log_scale))


def test_the_summed_density_can_be_differentiated_twice_over_one_graph() -> None:
    log_scale, power = torch.randn(300, 200, requires_grad=True), torch.rand(300, 200)
    total = ComplexStudentT(3.0, log_scale=log_scale).summed_log_prob_of_power(power)
    weights = torch.randn(300)
    (first,) = torch.autograd.grad(total, log_scale, weights, retain_graph=True)
    (second,) = torch.autograd.grad(total, log_scale, weights)
    values = ComplexStudentT(3.0, log_scale=log_scale).log_prob_of_power(power)
    (expected,) = torch.autograd.grad(values.sum(-1), log_scale, weights)
    torch.testing.assert_close(total, values.sum(-1))
    for gradient in (first, second):
        torch.testing.assert_close(gradient, expected)


def test_the_gradient_at_a_power_of_zero_is_its_limit() -> None:
    power = torch.tensor([0.0, 1e-12], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(
        ComplexStudentT(4.0, torch.tensor(2.0, dtype=DOUBLE)).log_prob_of_power(power).sum(), power
    )
    torch.testing.assert_close(slope, torch.full((2,), -0.75, dtype=DOUBLE))
    value = torch.tensor(0j, requires_grad=True)
    (slope,) = torch.autograd.grad(ComplexStudentT(4.0, torch.tensor(2.0)).log_prob(value), value)
    assert slope == 0


@pytest.mark.parametrize(
    ("df", "scale", "power"),
    [((), (4, 7), (4, 7)), ((7,), (4, 1), (3, 4, 7)), ((4, 1), (7,), (7,)), ((4, 7), (), (1,))],
)
def test_degrees_of_freedom_scales_and_powers_broadcast(
    df: tuple[int, ...], scale: tuple[int, ...], power: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.rand(shape, dtype=DOUBLE, generator=generator) + 0.5 for shape in (df, scale, power)]
    distribution = ComplexStudentT(given[0], given[1])
    assert distribution.batch_shape == torch.broadcast_shapes(df, scale)
    assert distribution.df.shape == distribution.log_scale.shape == distribution.mean.shape == distribution.batch_shape
    values = distribution.log_prob_of_power(given[2])
    whole = torch.broadcast_tensors(*given)
    expected = torch.stack(
        [ComplexStudentT(d, s).log_prob_of_power(p) for d, s, p in zip(*(t.flatten() for t in whole), strict=True)]
    )
    torch.testing.assert_close(values, expected.view(whole[0].shape))
    torch.testing.assert_close(distribution.summed_log_prob_of_power(given[2]), values.sum(-1))


@pytest.mark.parametrize("parameter", ["scale", "log_scale"])
def test_a_scale_below_the_floor_counts_as_the_floor(parameter: str) -> None:
    given = torch.tensor([1e-9, 1e-6, 1e-3, 5.0], dtype=DOUBLE)
    distribution = ComplexStudentT(3.0, **{parameter: given.log() if parameter == "log_scale" else given}, floor=1e-3)
    expected = ComplexStudentT(3.0, given.clamp(min=1e-3))
    torch.testing.assert_close(distribution.scale, expected.scale)
    power = torch.tensor([0.0, 1.0, 1e-4, 2.0], dtype=DOUBLE)
    torch.testing.assert_close(distribution.log_prob_of_power(power), expected.log_prob_of_power(power))
    torch.testing.assert_close(
        distribution.expand((2, 4)).log_prob_of_power(power)[1], expected.log_prob_of_power(power)
    )


@pytest.mark.parametrize("df", [1.0, 3.0, 12.0, 1e6])
def test_samples_follow_the_density_with_any_phase(df: float) -> None:
    """|x|^2 / s is F distributed with 2 and df degrees of freedom; a right sampler fails once in a million."""
    torch.manual_seed(0)
    samples = ComplexStudentT(torch.tensor(df, dtype=DOUBLE), torch.tensor(2.5, dtype=DOUBLE)).rsample((20_000,))
    assert samples.dtype == torch.complex128
    assert scipy.stats.kstest(samples.abs().square().numpy() / 2.5, scipy.stats.f(2, df).cdf).pvalue > 1e-6
    assert scipy.stats.kstest(samples.angle().numpy(), scipy.stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-6


def test_samples_have_the_gradients_of_the_expected_log_power() -> None:
    """E[log |x|^2] = log s + log(df/2) - gamma - psi(df/2); the samples' gradients average to its derivatives."""
    torch.manual_seed(0)
    for df in (0.7, 3.0, 40.0):
        given = torch.full((20_000,), df, dtype=DOUBLE, requires_grad=True)
        log_scale = torch.full((20_000,), 0.4, dtype=DOUBLE, requires_grad=True)
        log_power = 2 * ComplexStudentT(given, log_scale=log_scale).rsample().abs().log()
        of_df, of_scale = torch.autograd.grad(log_power.sum(), (given, log_scale))
        expected = 0.4 + math.log(df / 2) - np.euler_gamma - scipy.special.digamma(df / 2)
        assert abs(float(z_score(log_power.detach(), expected))) < Z_LIMIT
        assert abs(float(z_score(of_df, 1 / df - scipy.special.polygamma(1, df / 2) / 2))) < Z_LIMIT
        torch.testing.assert_close(of_scale, torch.ones_like(of_scale))


def test_maximum_likelihood_finds_the_degrees_of_freedom() -> None:
    """The expected score is zero at the truth."""
    torch.manual_seed(0)
    truth = ComplexStudentT(torch.tensor(5.0, dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE))
    power = truth.rsample((20_000,)).abs().square()
    df, log_scale = (torch.full((20_000,), value, dtype=DOUBLE, requires_grad=True) for value in (5.0, math.log(2.0)))
    for score in torch.autograd.grad(
        ComplexStudentT(df, log_scale=log_scale).log_prob_of_power(power).sum(), (df, log_scale)
    ):
        assert abs(float(z_score(score, 0.0))) < Z_LIMIT


def test_seeds_shapes_and_precision() -> None:
    distribution = ComplexStudentT(4, torch.tensor([0.5, 2.0]))
    assert distribution.df.dtype == torch.float32
    assert repr(distribution) == "ComplexStudentT(log_scale: (2,))"
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(distribution.rsample((3,)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert (draws[0].shape, draws[0].dtype) == ((3, 2), torch.complex64)
    larger = distribution.expand((5, 2))
    assert larger.rsample().shape == (5, 2)
    torch.testing.assert_close(Independent(larger, 1).log_prob(draws[0][0]), larger.log_prob(draws[0][0]).sum(-1))
    double = ComplexStudentT(4, distribution.scale.double()).log_prob(draws[0].to(torch.complex128))
    torch.testing.assert_close(distribution.log_prob(draws[0]).double(), double, rtol=1e-5, atol=1e-5)


def test_wrong_parameters_and_values_are_refused() -> None:
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match="either scale or log_scale, got neither"):
        ComplexStudentT(3.0)
    with pytest.raises(ValueError, match="either scale or log_scale, got both"):
        ComplexStudentT(3.0, one, one)
    for wrong, named in ((0.0, "0.0"), (-1.0, "-1.0"), (math.nan, "nan"), (math.inf, "inf")):
        with pytest.raises(
            ValueError, match=f"degrees of freedom of ComplexStudentT must be positive and finite, got {named}"
        ):
            ComplexStudentT(torch.tensor([2.0, wrong]), one)
    for wrong, named in ((0.0, "0.0"), (-2.0, "-2.0"), (math.nan, "nan")):
        with pytest.raises(ValueError, match=f"scale of ComplexStudentT must be positive, got {named}"):
            ComplexStudentT(3.0, torch.tensor([1.0, wrong]))
    with pytest.raises(ValueError, match="log_scale"):
        ComplexStudentT(3.0, log_scale=torch.tensor(math.nan))
    for value in (one, torch.tensor(complex(math.nan, 0)), torch.tensor(complex(0, math.inf))):
        with pytest.raises(ValueError, match="within the support"):
            ComplexStudentT(3.0, one).log_prob(value)
    ComplexStudentT(-3.0, -one, validate_args=False)
