"""ComplexNormal against SciPy, Monte Carlo, finite differences and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from audiovae import ComplexNormal

DOUBLE = torch.float64
VARIANCES = (1e-12, 1e-3, 0.5, 1.0, 7.0, 1e6)
Z_LIMIT = 5.0  # a test of a mean fails by chance once in two million


def draw_points(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def z_score(draws: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many standard errors the mean over the first dimension is from what is expected."""
    return (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))


@pytest.mark.parametrize("parameter", ["variance", "log_variance"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_density_is_that_of_two_real_gaussians_of_half_the_variance(variance: float, parameter: str) -> None:
    points = math.sqrt(variance) * torch.cat([draw_points(50), torch.zeros(1, dtype=torch.complex128)])
    given = {"variance": variance, "log_variance": math.log(variance)}[parameter]
    distribution = ComplexNormal(**{parameter: torch.tensor(given, dtype=DOUBLE)})
    reference = scipy.stats.multivariate_normal([0, 0], variance / 2 * np.eye(2), allow_singular=True)
    expected = torch.from_numpy(reference.logpdf(torch.view_as_real(points).numpy()))
    torch.testing.assert_close(distribution.log_prob(points), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", [0.2, 3.0])
def test_the_density_integrates_to_one_over_the_plane(variance: float) -> None:
    grid = torch.linspace(-8, 8, 401, dtype=DOUBLE) * math.sqrt(variance)
    plane = torch.complex(*torch.meshgrid(grid, grid, indexing="ij"))
    mass = ComplexNormal(torch.tensor(variance, dtype=DOUBLE)).log_prob(plane).exp().sum() * (grid[1] - grid[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("log_variance", [200.0, -200.0])
@pytest.mark.parametrize("validate_args", [None, False])
def test_a_log_variance_is_exact_where_the_variance_leaves_the_range(
    log_variance: float, validate_args: bool | None
) -> None:
    """exp(200) is beyond single precision, and so is exp(-200). At the centre the density is 1 / (pi variance)."""
    distribution = ComplexNormal(log_variance=torch.tensor(log_variance), validate_args=validate_args)
    assert float(distribution.log_prob(torch.tensor(0j))) == pytest.approx(-math.log(math.pi) - log_variance)
    assert float(distribution.entropy()) == pytest.approx(1 + math.log(math.pi) + log_variance)


@pytest.mark.parametrize("variance", [1e-6, 1.0, 1e6])
def test_scaling_a_value_moves_its_density_by_the_jacobian(variance: float) -> None:
    """log p(a x; a^2 variance) = log p(x; variance) - 2 log a."""
    points = math.sqrt(variance) * draw_points(20)
    for a in (1e-6, 0.1, 3.0, 1e5):
        scaled = ComplexNormal(torch.tensor(a * a * variance, dtype=DOUBLE)).log_prob(a * points)
        expected = ComplexNormal(torch.tensor(variance, dtype=DOUBLE)).log_prob(points) - 2 * math.log(a)
        torch.testing.assert_close(scaled, expected, rtol=1e-10, atol=1e-10)


def test_the_density_does_not_depend_on_the_phase() -> None:
    points, turned = draw_points(20), draw_points(20) * torch.exp(torch.tensor(1.234j, dtype=torch.complex128))
    distribution = ComplexNormal(torch.tensor(2.0, dtype=DOUBLE))
    torch.testing.assert_close(distribution.log_prob(points), distribution.log_prob(turned))


def test_the_density_of_a_power_is_that_of_its_value() -> None:
    points = draw_points(20)
    distribution = ComplexNormal(torch.linspace(0.1, 5, 20, dtype=DOUBLE))
    torch.testing.assert_close(distribution.log_prob_of_power(points.abs() ** 2), distribution.log_prob(points))


SHAPES = [((4, 7), (4, 7)), ((7,), (4, 7)), ((4, 7), (7,)), ((1, 7), (3, 4, 7)), ((3, 1, 7), (4, 7))]


@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize(("parameters", "values"), SHAPES)
def test_the_summed_density_is_the_sum_of_the_densities(
    parameters: tuple[int, ...], values: tuple[int, ...], floor: float
) -> None:
    """Also where parameters and values broadcast, as everywhere in torch.distributions."""
    generator = torch.Generator().manual_seed(3)
    log_variance = torch.randn(parameters, dtype=DOUBLE, generator=generator).requires_grad_()
    power = torch.rand(values, dtype=DOUBLE, generator=generator).requires_grad_()
    distribution = ComplexNormal(log_variance=log_variance, floor=floor)
    summed, expected = distribution.summed_log_prob_of_power(power), distribution.log_prob_of_power(power).sum(-1)
    torch.testing.assert_close(summed, expected)
    weights = torch.randn(expected.shape, dtype=DOUBLE, generator=generator)
    of_summed = torch.autograd.grad((weights * summed).sum(), (log_variance, power))
    of_expected = torch.autograd.grad((weights * expected).sum(), (log_variance, power))
    for actual, reference in zip(of_summed, of_expected, strict=True):
        torch.testing.assert_close(actual, reference)


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_the_summed_density_has_both_derivatives_of_finite_differences(floor: float) -> None:
    """A floor of 0.3 lies between the variances."""
    log_variance = torch.tensor([[-3.0, -0.4, 0.7], [2.0, -1.3, 0.1]], dtype=DOUBLE, requires_grad=True)
    power = torch.tensor([[0.0, 1.0, 0.2], [3.0, 0.0, 1e-3]], dtype=DOUBLE, requires_grad=True)

    def summed(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return ComplexNormal(log_variance=parameter, floor=floor).summed_log_prob_of_power(value)

    assert gradcheck(summed, (log_variance, power))
    assert gradcheck(lambda parameter: summed(parameter, power.detach()), (log_variance,))
    assert gradcheck(lambda value: summed(log_variance.detach(), value), (power,))
    assert gradgradcheck(summed, (log_variance, power))


def test_the_summed_density_can_be_differentiated_twice_over_one_graph() -> None:
    log_variance = torch.tensor([0.5, -1.0], requires_grad=True)
    total = ComplexNormal(log_variance=log_variance, floor=1e-3).summed_log_prob_of_power(torch.tensor([1.0, 2.0]))
    (first,) = torch.autograd.grad(total, log_variance, retain_graph=True)
    (second,) = torch.autograd.grad(total, log_variance)
    torch.testing.assert_close(first, torch.tensor([1.0, 2.0]) * torch.exp(-log_variance.detach()) - 1)
    torch.testing.assert_close(second, first)


def test_the_summed_density_leaves_its_inputs_as_they_are() -> None:
    log_variance, power = torch.randn(3, 4), torch.rand(3, 4)
    copies = log_variance.clone(), power.clone()
    ComplexNormal(log_variance=log_variance.requires_grad_(), floor=0.5).summed_log_prob_of_power(
        power
    ).sum().backward()
    assert torch.equal(log_variance, copies[0])
    assert torch.equal(power, copies[1])


@pytest.mark.parametrize("parameter", ["variance", "log_variance"])
def test_a_variance_below_the_floor_counts_as_the_floor(parameter: str) -> None:
    given = torch.tensor([1e-9, 1e-6, 1e-3, 5.0], dtype=DOUBLE)
    floored = ComplexNormal(**{parameter: given if parameter == "variance" else given.log()}, floor=1e-4)
    raised = ComplexNormal(torch.tensor([1e-4, 1e-4, 1e-3, 5.0], dtype=DOUBLE))
    points = draw_points(4)
    torch.testing.assert_close(floored.variance, raised.variance)
    torch.testing.assert_close(floored.log_prob(points), raised.log_prob(points))
    torch.testing.assert_close(floored.entropy(), raised.entropy())
    torch.testing.assert_close(floored.expand((2, 4)).log_prob(points), raised.log_prob(points).expand(2, 4))
    other = ComplexNormal(torch.ones(4, dtype=DOUBLE))
    torch.testing.assert_close(kl_divergence(floored, other), kl_divergence(raised, other))


@pytest.mark.parametrize("x", [0.0, 1e-3, 1.0 + 2.0j, -3.0j])
@pytest.mark.parametrize("log_variance", [-3.0, 0.0, 4.0])
def test_gradients_are_those_of_finite_differences(x: complex, log_variance: float) -> None:
    value = torch.tensor([x], dtype=torch.complex128, requires_grad=True)
    parameter = torch.tensor([log_variance], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda v, p: ComplexNormal(log_variance=p).log_prob(v), (value, parameter))
    variance = torch.tensor([math.exp(log_variance)], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda v, p: ComplexNormal(p).log_prob(v), (value, variance))
    assert gradcheck(lambda p: ComplexNormal(p).entropy(), (variance,))
    assert gradcheck(
        lambda p: kl_divergence(ComplexNormal(p), ComplexNormal(torch.tensor(0.7, dtype=DOUBLE))), (variance,)
    )
    assert gradcheck(
        lambda q: kl_divergence(ComplexNormal(torch.tensor(0.7, dtype=DOUBLE)), ComplexNormal(q)), (variance,)
    )


def test_the_second_derivative_at_zero_is_minus_two_over_the_variance() -> None:
    """Squaring abs() gives 0 or NaN there. d2/da2 of -(a^2 + b^2)/v is -2/v, and the mixed one is 0."""
    variance = 0.3

    def log_density(plane: torch.Tensor) -> torch.Tensor:
        return ComplexNormal(torch.tensor(variance, dtype=DOUBLE)).log_prob(torch.complex(plane[0], plane[1]))

    for point in (torch.zeros(2, dtype=DOUBLE), torch.tensor([0.4, -1.0], dtype=DOUBLE)):
        hessian = torch.autograd.functional.hessian(log_density, point)
        torch.testing.assert_close(hessian, -2 / variance * torch.eye(2, dtype=DOUBLE))


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_entropy_is_that_of_two_real_gaussians(variance: float) -> None:
    expected = 2 * scipy.stats.norm(scale=math.sqrt(variance / 2)).entropy()
    assert float(ComplexNormal(torch.tensor(variance, dtype=DOUBLE)).entropy()) == pytest.approx(expected, rel=1e-12)


def test_the_entropy_is_minus_the_mean_log_density_of_samples() -> None:
    torch.manual_seed(0)
    distribution = ComplexNormal(torch.tensor([0.01, 1.0, 300.0], dtype=DOUBLE))
    surprise = -distribution.log_prob(distribution.sample((20000,)))
    assert (z_score(surprise, distribution.entropy()).abs() < Z_LIMIT).all()


@pytest.mark.parametrize(("p", "q"), [(1.0, 2.0), (2.0, 1.0), (1e-3, 1.0), (5.0, 0.5)])
def test_the_divergence_is_the_mean_log_ratio_of_samples(p: float, q: float) -> None:
    torch.manual_seed(1)
    first, second = (ComplexNormal(torch.tensor(v, dtype=DOUBLE)) for v in (p, q))
    draws = first.sample((20000,))
    assert abs(z_score(first.log_prob(draws) - second.log_prob(draws), kl_divergence(first, second))) < Z_LIMIT


@pytest.mark.parametrize(("p", "q"), [(1.0, 2.0), (2.0, 1.0), (1e-3, 1.0), (5.0, 0.5), (1e8, 1e-8)])
def test_the_divergence_is_that_of_two_real_gaussians(p: float, q: float) -> None:
    reals = [Normal(torch.zeros(2, dtype=DOUBLE), torch.full((2,), math.sqrt(v / 2), dtype=DOUBLE)) for v in (p, q)]
    expected = kl_divergence(*reals).sum()
    actual = kl_divergence(*(ComplexNormal(torch.tensor(v, dtype=DOUBLE)) for v in (p, q)))
    torch.testing.assert_close(actual, expected)


def itakura_saito(power: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    return power / variance - (power / variance).log() - 1


def test_the_divergence_is_that_of_itakura_and_saito() -> None:
    p, q = torch.rand(2, 30, dtype=DOUBLE, generator=torch.Generator().manual_seed(2)) + 0.01
    torch.testing.assert_close(kl_divergence(ComplexNormal(p), ComplexNormal(q)), itakura_saito(p, q))


def test_the_log_likelihood_ratio_is_the_divergence_of_itakura_and_saito() -> None:
    points = draw_points(30)
    power, variance = points.abs().square(), torch.linspace(0.1, 4, 30, dtype=DOUBLE)
    ratio = ComplexNormal(power).log_prob(points) - ComplexNormal(variance).log_prob(points)
    torch.testing.assert_close(ratio, itakura_saito(power, variance))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_divergence_is_never_negative_and_zero_only_to_itself(dtype: torch.dtype) -> None:
    """Also where p and q differ in the last bits alone, and at the ends of the range."""
    variances = torch.logspace(-30, 30, 121, dtype=dtype)
    itself = ComplexNormal(variances)
    assert torch.equal(kl_divergence(itself, itself), torch.zeros_like(variances))
    steps = torch.tensor([-1e-3, -1e-5, -1e-7, 1e-7, 1e-5, 1e-3], dtype=dtype)[:, None]
    assert (kl_divergence(ComplexNormal(variances * (1 + steps)), itself) >= 0).all()
    log_variance = torch.linspace(-20, 20, 1001, dtype=dtype)
    assert (
        kl_divergence(ComplexNormal(log_variance=log_variance), ComplexNormal(torch.ones((), dtype=dtype))) >= 0
    ).all()
    assert (kl_divergence(ComplexNormal(2 * variances), itself) > 0.3).all()


def test_the_divergence_of_nearly_equal_variances_is_half_their_squared_log_ratio() -> None:
    """In single precision, where exp(r) - r - 1 would be rounding alone, of either sign."""
    log_ratio = torch.tensor([-1e-3, -1e-4, -1e-5, -1e-6, 1e-6, 1e-5, 1e-4, 1e-3])
    divergence = kl_divergence(ComplexNormal(log_variance=log_ratio), ComplexNormal(log_variance=torch.zeros(8)))
    assert (divergence >= 0).all()
    torch.testing.assert_close(divergence[[0, 1, 6, 7]], log_ratio[[0, 1, 6, 7]].square() / 2, rtol=0.01, atol=0)


def test_samples_have_the_moments_of_a_circular_gaussian() -> None:
    """E x = 0, E |x|^2 = variance, E x^2 = 0 (circular), E |x|^4 = 2 variance^2 (Gaussian)."""
    torch.manual_seed(3)
    variance = torch.tensor([0.01, 1.0, 400.0], dtype=DOUBLE)
    draws = ComplexNormal(variance).rsample((40000,))
    assert draws.shape == (40000, 3)
    power = draws.abs().square()
    for moment, expected in (
        (draws.real, 0 * variance), (draws.imag, 0 * variance), (power, variance), (power.square(),
        2 * variance.square()),
        (draws.square().real, 0 * variance), (draws.square().imag, 0 * variance),
    ):  # fmt: skip
        assert (z_score(moment, expected).abs() < Z_LIMIT).all()


def test_samples_are_gaussian_in_both_parts_and_uniform_in_phase() -> None:
    torch.manual_seed(4)
    draws = ComplexNormal(torch.tensor(3.0, dtype=DOUBLE)).sample((5000,)).numpy()
    for part in (draws.real, draws.imag):
        assert scipy.stats.kstest(part, scipy.stats.norm(scale=math.sqrt(1.5)).cdf).pvalue > 1e-4
    assert scipy.stats.kstest(np.angle(draws), scipy.stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-4


def test_samples_carry_the_gradient_of_their_scale() -> None:
    """x = sqrt(v) e, so d|x|^2/dv = |x|^2 / v; a sample that is only drawn has none."""
    variance = torch.tensor([0.5, 2.0, 8.0], dtype=DOUBLE, requires_grad=True)
    draw = ComplexNormal(variance).rsample()
    (gradient,) = torch.autograd.grad(draw.abs().square().sum(), variance)
    torch.testing.assert_close(gradient, (draw.abs().square() / variance).detach())
    assert not ComplexNormal(variance).sample().requires_grad


def test_moments_are_those_of_the_parameter() -> None:
    variance = torch.tensor([0.5, 4.0], dtype=DOUBLE)
    for distribution in (ComplexNormal(variance), ComplexNormal(log_variance=variance.log())):
        torch.testing.assert_close(distribution.variance, variance)
        torch.testing.assert_close(distribution.log_variance, variance.log())
        torch.testing.assert_close(distribution.stddev, variance.sqrt())
        assert torch.equal(distribution.mean, torch.zeros(2, dtype=torch.complex128))
        assert torch.equal(distribution.mode, torch.zeros(2, dtype=torch.complex128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types_follow_those_of_torch(dtype: torch.dtype) -> None:
    distribution = ComplexNormal(torch.ones(2, 3, dtype=dtype))
    assert isinstance(distribution, Distribution)
    assert distribution.has_rsample
    assert (distribution.batch_shape, distribution.event_shape) == ((2, 3), ())
    draws = distribution.sample((5, 4))
    assert (draws.shape, draws.dtype) == ((5, 4, 2, 3), dtype.to_complex())
    assert (distribution.log_prob(draws).shape, distribution.log_prob(draws).dtype) == ((5, 4, 2, 3), dtype)
    assert distribution.log_prob(draws[0, 0, 0]).shape == (2, 3)
    assert Independent(distribution, 1).log_prob(draws).shape == (5, 4, 2)
    assert distribution.sample().shape == (2, 3)


def test_numbers_are_taken_as_parameters() -> None:
    assert float(ComplexNormal(2.0).log_prob(torch.tensor(0j))) == pytest.approx(-math.log(2 * math.pi))
    assert float(ComplexNormal(log_variance=0.0).entropy()) == pytest.approx(1 + math.log(math.pi))


@pytest.mark.parametrize("parameter", ["variance", "log_variance"])
def test_an_expanded_distribution_is_the_same_in_every_place(parameter: str) -> None:
    distribution = ComplexNormal(**{parameter: torch.tensor([0.5, 2.0], dtype=DOUBLE)})
    expanded = distribution.expand((3, 2))
    assert isinstance(expanded, ComplexNormal)
    assert expanded.batch_shape == (3, 2)
    points = draw_points(6).reshape(3, 2)
    assert torch.equal(expanded.log_prob(points), distribution.log_prob(points))
    assert torch.equal(expanded.variance, distribution.variance.expand(3, 2))
    assert torch.equal(
        Independent(distribution, 1).expand((3,)).log_prob(points), distribution.log_prob(points).sum(-1)
    )


def test_an_expanded_distribution_still_checks_its_values() -> None:
    """As those of torch do: expand keeps the setting of validation."""
    with pytest.raises(ValueError, match="support"):
        ComplexNormal(1.0).expand((2,)).log_prob(torch.tensor([0j, math.nan + 0j]))
    unchecked = ComplexNormal(1.0, validate_args=False).expand((2,))
    assert unchecked.log_prob(torch.tensor([0j, math.nan + 0j])).isnan().tolist() == [False, True]


REFUSED_PARAMETERS = [
    ({}, "either variance or log_variance, got neither"),
    ({"variance": 1.0, "log_variance": 0.0}, "either variance or log_variance, got both"),
    ({"variance": torch.tensor([1.0, 0.0])}, "parameter variance.*invalid values"),
    ({"variance": torch.tensor([1.0, -2.0])}, "parameter variance.*invalid values"),
    ({"variance": torch.tensor(math.nan)}, "parameter variance.*invalid values"),
    ({"log_variance": torch.tensor(math.nan)}, "parameter log_variance.*invalid values"),
]


@pytest.mark.parametrize(("parameters", "message"), REFUSED_PARAMETERS)
def test_a_bad_parameter_is_refused_by_name(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        ComplexNormal(**parameters)


REFUSED_VALUES = [torch.tensor([1.0]), torch.tensor([math.nan + 0j]), torch.tensor([complex(0, math.inf)])]


@pytest.mark.parametrize("value", REFUSED_VALUES)
def test_a_value_that_is_not_a_finite_complex_number_is_refused(value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="within the support"):
        ComplexNormal(torch.ones(1)).log_prob(value)


def test_a_value_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not broadcastable|must match"):
        ComplexNormal(torch.ones(3)).log_prob(torch.zeros(2, dtype=torch.complex64))


def test_the_printed_form_names_its_parameter() -> None:
    assert "variance" in repr(ComplexNormal(torch.ones(2)))
    assert "variance" in repr(ComplexNormal(log_variance=torch.ones(2)))


def test_the_divergence_of_independent_bins_is_their_sum() -> None:
    p, q = torch.rand(2, 4, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(5)) + 0.1
    joint = kl_divergence(Independent(ComplexNormal(p), 1), Independent(ComplexNormal(q), 1))
    torch.testing.assert_close(joint, itakura_saito(p, q).sum(-1))
