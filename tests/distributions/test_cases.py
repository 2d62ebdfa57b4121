"""What torch asks of its own distributions, in one table with a row for each class and one for each KL divergence."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import (
    Distribution,
    Gamma,
    Normal,
    TransformedDistribution,
    biject_to,
    kl,
    kl_divergence,
    transform_to,
)
from torch.func import grad, hessian, vmap
from torch.nn.functional import normalize, pad

import audiovae.distributions
from audiovae.distributions import (
    ComplexNormal,
    ComplexStudentT,
    LogDirichlet,
    LogPowerNormal,
    Point,
    PowerSpherical,
    ScaledBernoulli,
    SphereUniform,
    SteppedCategorical,
    VonMisesFisher,
)
from audiovae.distributions.von_mises_fisher import AroundDirection

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
]
DOUBLE = torch.float64
Z_LIMIT = 5.0  # a test of a mean fails by chance once in two million
BATCH = 3


def over_the_plane(distribution: Distribution) -> Tensor:
    """In polar coordinates, over u = log |x|^2: the area is pi exp(u) du."""
    u = torch.linspace(-60, 60, 4001, dtype=DOUBLE).unsqueeze(-1)
    density = distribution.log_prob((u / 2).exp().to(torch.complex128)).exp()
    return (density * math.pi * u.exp()).sum(0) * float(u[1] - u[0])


def over_the_sphere(distribution: Distribution) -> Tensor:
    """In three dimensions, over the height and the longitude: the area is their product's."""
    height, longitude = torch.meshgrid(
        torch.linspace(-1, 1, 4001, dtype=DOUBLE), torch.arange(64, dtype=DOUBLE) * math.pi / 32, indexing="ij"
    )
    height = (height[1:] + height[:-1]) / 2
    radius = (1 - height.square()).sqrt()
    z = torch.stack([height, radius * longitude[1:].cos(), radius * longitude[1:].sin()], -1)
    return distribution.log_prob(z.reshape(-1, 1, 3)).exp().sum(0) * (2 / 4000) * (math.pi / 32)


def over_log_ratios(distribution: Distribution) -> Tensor:
    ratio = torch.linspace(-80, 40, 601, dtype=DOUBLE)
    y = biject_to(distribution.support)(torch.cartesian_prod(ratio, ratio))
    return distribution.log_prob(y.unsqueeze(1)).exp().sum(0) * float(ratio[1] - ratio[0]) ** 2


def over_zero_and_one(distribution: Distribution) -> Tensor:
    return distribution.log_prob(torch.tensor([[0.0], [1.0]], dtype=DOUBLE)).exp().sum(0)


def over_three_steps(distribution: Distribution) -> Tensor:
    return distribution.log_prob(torch.tensor([[0.0], [0.5], [1.0]], dtype=DOUBLE)).exp().sum(0)


def over_the_line(distribution: Distribution) -> Tensor:
    u = torch.linspace(-20, 20, 2001, dtype=DOUBLE).unsqueeze(-1)
    return distribution.log_prob(u).exp().sum(0) * float(u[1] - u[0])


@dataclass(frozen=True)
class Case:
    """A class, how to make it of free parameters, and what it has.

    Attributes:
        build: from a class and the parameters, each `[batch, ...]`.
        total: integral of its density over all values, `[batch]`; None where it has no density.
        outside: a value that it refuses, if it checks values.
        variance: whether `variance` is that of its values, rather than a PSD.
        gamma: whether samples need torch's Gamma ones, which do not know the meta device.
    """

    kind: type[Distribution]
    build: Callable[..., Distribution]
    parameters: tuple[Tensor, ...]
    total: Callable[[Distribution], Tensor] | None
    outside: Tensor | None = None
    variance: bool = True
    gamma: bool = False

    def made(self, *parameters: Tensor, **options: object) -> Distribution:
        return self.build(self.kind, *(parameters or self.parameters), **options)


def row(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=DOUBLE)


VECTORS = torch.randn(BATCH, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
CASES = (
    Case(ComplexNormal, lambda kind, v, **o: kind(log_variance=v, **o), (row(-1, 0, 2),), over_the_plane, row(1, 1, 1)),
    Case(
        ComplexStudentT,
        lambda kind, df, v, **o: kind(df, log_scale=v, **o),
        (row(3, 5, 9), row(-1, 0, 2)),
        over_the_plane,
        row(1, 1, 1),
        gamma=True,
    ),
    Case(
        LogDirichlet,
        lambda kind, a, **o: kind(a, **o),
        (VECTORS.exp() + 0.3,),
        over_log_ratios,
        torch.zeros(BATCH, 3, dtype=DOUBLE),
        gamma=True,
    ),
    Case(
        LogPowerNormal,
        lambda kind, u, **_: kind(u, u.new_tensor(1.5), u.new_tensor(2.0)),
        (row(-1, 0, 2),),
        over_the_line,
        variance=False,
    ),
    Case(Point, lambda kind, u, **o: kind(u, **o), (VECTORS,), None),
    Case(
        PowerSpherical,
        lambda kind, h, k, **o: kind(normalize(h, dim=-1), k, **o),
        (VECTORS, row(0.5, 3, 20)),
        over_the_sphere,
        VECTORS,
        gamma=True,
    ),
    Case(
        ScaledBernoulli,
        lambda kind, logits, **_: kind(logits, logits.new_tensor(-3.0), logits.new_tensor(8.0)),
        (row(-1, 0.1, 2),),
        over_zero_and_one,
        variance=False,
    ),
    Case(
        SphereUniform,
        lambda kind, like, **o: kind(3, like.shape, like.dtype, like.device, **o),
        (row(0, 0, 0),),
        over_the_sphere,
        VECTORS,
    ),
    Case(
        SteppedCategorical,
        lambda kind, logits, **o: kind(logits, **o),
        (VECTORS,),
        over_three_steps,
        row(1.5, -0.1, -1),
    ),
    Case(
        VonMisesFisher,
        lambda kind, h, k, **o: kind(normalize(h, dim=-1), k, **o),
        (VECTORS, row(0.5, 3, 20)),
        over_the_sphere,
        VECTORS,
        gamma=True,
    ),
)
BY_KIND = {case.kind: case for case in CASES}
KLS = (
    (ComplexNormal, ComplexNormal),
    (LogDirichlet, LogDirichlet),
    (PowerSpherical, SphereUniform),
    (PowerSpherical, VonMisesFisher),
    (SphereUniform, PowerSpherical),
    (SphereUniform, SphereUniform),
    (SphereUniform, VonMisesFisher),
    (VonMisesFisher, SphereUniform),
    (VonMisesFisher, VonMisesFisher),
)

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind.__name__)
every_density = pytest.mark.parametrize(
    "case", [case for case in CASES if case.total], ids=lambda case: case.kind.__name__
)
every_kl = pytest.mark.parametrize("kinds", KLS, ids=lambda kinds: "-".join(kind.__name__ for kind in kinds))


def own_classes() -> set[type[Distribution]]:
    """All that can be instantiated, of all modules of the package, whether or not its `__all__` names them."""
    modules = [
        importlib.import_module(f"audiovae.distributions.{module.name}")
        for module in pkgutil.iter_modules(audiovae.distributions.__path__)
    ]
    found = {thing for module in modules for thing in vars(module).values() if inspect.isclass(thing)}
    return {
        kind
        for kind in found
        if issubclass(kind, Distribution) and kind.__module__.startswith("audiovae.") and not inspect.isabstract(kind)
    }


def pair(kinds: tuple[type[Distribution], type[Distribution]]) -> tuple[Case, Case, tuple[Tensor, ...]]:
    """Cases and parameters of p and of a q that is another one."""
    p, q = (BY_KIND[kind] for kind in kinds)
    return p, q, (*p.parameters, *(parameter.roll(1, 0) for parameter in q.parameters))


def divergence(kinds: tuple[type[Distribution], type[Distribution]], **options: object) -> Callable[..., Tensor]:
    p, q, _ = pair(kinds)
    n = len(p.parameters)
    return lambda *given: kl_divergence(p.made(*given[:n], **options), q.made(*given[n:], **options))


def quantities(case: Case, **options: object) -> dict[str, Callable[..., Tensor]]:
    """What is differentiated, vmapped and compiled, as functions of the parameters."""
    torch.manual_seed(0)
    value = case.made().sample()
    found = {
        "mean": lambda *given: (
            torch.view_as_real(mean) if (mean := case.made(*given, **options).mean).is_complex() else mean
        ),
        "variance": lambda *given: case.made(*given, **options).variance,
    }
    if case.total:
        found["log_prob"] = lambda *given: case.made(*given, **options).log_prob(value)
        found["entropy"] = lambda *given: case.made(*given, **options).entropy()
    return found


def leaves(parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(parameter.clone().requires_grad_() for parameter in parameters)


def depends(function: Callable[..., Tensor], given: tuple[Tensor, ...]) -> bool:
    return function(*given).requires_grad


def test_every_class_has_a_row() -> None:
    assert own_classes() == set(BY_KIND)
    assert {kind.__name__ for kind in BY_KIND} == set(audiovae.distributions.__all__)


def test_every_divergence_between_two_of_them_has_a_row() -> None:
    found = set()
    for p in BY_KIND:
        for q in BY_KIND:
            try:
                kl_divergence(BY_KIND[p].made(), BY_KIND[q].made())
            except NotImplementedError:
                continue
            found.add((p, q))
    assert found == set(KLS)
    own = [types for types in kl._KL_REGISTRY if any(t.__module__.startswith("audiovae.") for t in types)]
    for types in own:
        assert any(issubclass(p, types[0]) and issubclass(q, types[1]) for p, q in KLS)


@every
def test_shapes_and_types(case: Case) -> None:
    distribution = case.made()
    event = distribution.event_shape
    assert distribution.batch_shape == (BATCH,)
    for shape in ((), (2,), (4, 2)):
        value = distribution.sample(shape)
        assert value.shape == (*shape, BATCH, *event)
        assert not value.requires_grad
        if distribution.has_rsample:
            assert distribution.rsample(shape).shape == value.shape
        if case.total:
            assert distribution.log_prob(value).shape == (*shape, BATCH)
            assert distribution.log_prob(value).dtype == DOUBLE
    assert distribution.mean.shape == distribution.mode.shape == (BATCH, *event)
    assert distribution.variance.shape == distribution.stddev.shape == (BATCH, *event)
    assert distribution.sample((0,)).shape == (0, BATCH, *event)
    if case.total:
        assert distribution.entropy().shape == (BATCH,)


@every
def test_parameters_broadcast(case: Case) -> None:
    first, *others = case.parameters
    distribution = case.made(first.unsqueeze(1), *others)
    shape = (BATCH, BATCH if others else 1)
    assert distribution.batch_shape == shape
    for i in range(BATCH):
        for j in range(shape[1]):
            one = case.made(first[i], *(parameter[j] for parameter in others))
            torch.testing.assert_close(one.mean, distribution.mean[i, j])
            if case.total:
                value = one.sample()
                torch.testing.assert_close(one.log_prob(value), distribution.log_prob(value)[i, j])


@every
def test_expand_keeps_a_subclass_and_the_numbers(case: Case) -> None:
    kind = type("Mine", (case.kind,), {})
    distribution = case.build(kind, *case.parameters)
    larger = distribution.expand((2, BATCH))
    assert type(larger) is kind
    assert larger.batch_shape == (2, BATCH)
    assert larger.event_shape == distribution.event_shape
    assert larger.expand((5, 2, BATCH)).sample((4,)).shape == (4, 5, 2, BATCH, *larger.event_shape)
    torch.testing.assert_close(larger.mean, distribution.mean.expand_as(larger.mean))
    if case.total:
        value = larger.sample()
        torch.testing.assert_close(larger.log_prob(value), distribution.log_prob(value))
        torch.testing.assert_close(larger.entropy(), distribution.entropy().expand(2, BATCH))
    assert case.made(validate_args=False).expand((2, BATCH))._validate_args is False
    other = type("Other", (kind,), {"__init__": lambda self, *given, **options: kind.__init__(self, *given, **options)})
    with pytest.raises(NotImplementedError, match="must also define a custom"):
        case.build(other, *case.parameters).expand((2, BATCH))


@every
def test_both_derivatives_are_those_of_finite_differences(case: Case) -> None:
    for name, function in quantities(case).items():
        given = leaves(case.parameters)
        if depends(function, given):
            assert gradcheck(function, given), name
            assert gradgradcheck(function, given), name


@every_kl
def test_divergences_have_both_derivatives_of_finite_differences(
    kinds: tuple[type[Distribution], type[Distribution]],
) -> None:
    function, given = divergence(kinds), leaves(pair(kinds)[2])
    if depends(function, given):
        assert gradcheck(function, given)
        assert gradgradcheck(function, given)


@every_density
def test_the_density_integrates_to_one(case: Case) -> None:
    torch.testing.assert_close(case.total(case.made()), torch.ones(BATCH, dtype=DOUBLE), rtol=1e-4, atol=0)


def z_scores(draws: Tensor, expected: Tensor) -> Tensor:
    """How many standard errors the mean over the first dimension is from what is expected; 0 where all are equal."""
    return (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)) + 1e-12)


@every
def test_samples_have_the_mean_variance_and_entropy(case: Case) -> None:
    torch.manual_seed(1)
    distribution = case.made()
    draws = distribution.sample((10_000,))
    centred = draws - distribution.mean
    assert z_scores(draws, distribution.mean).abs().max() < Z_LIMIT
    if case.variance:
        kept = distribution.df > 4 if isinstance(distribution, ComplexStudentT) else slice(None)
        assert z_scores(centred.abs().square(), distribution.variance)[kept].abs().max() < Z_LIMIT
    if case.total:
        surprise = -distribution.log_prob(draws)
        assert z_scores(surprise, distribution.entropy()).abs().max() < Z_LIMIT


@every_density
def test_no_sample_is_denser_than_the_mode(case: Case) -> None:
    torch.manual_seed(2)
    distribution = case.made()
    if case.kind is SphereUniform:
        assert distribution.mode.isnan().all()
        return
    assert (distribution.log_prob(distribution.sample((500,))) <= distribution.log_prob(distribution.mode)).all()


@every_kl
def test_divergences_are_the_mean_log_ratio_of_samples(
    kinds: tuple[type[Distribution], type[Distribution]],
) -> None:
    torch.manual_seed(3)
    p, q, given = pair(kinds)
    n = len(p.parameters)
    first, second = p.made(*given[:n]), q.made(*given[n:])
    draws = first.sample((10_000,))
    ratios = first.log_prob(draws) - second.log_prob(draws)
    found = kl_divergence(first, second)
    assert z_scores(ratios, found).abs().max() < Z_LIMIT
    assert (found >= 0).all()
    wide = kl_divergence(first.expand((4, 1, BATCH)), second.expand((2, BATCH)))
    torch.testing.assert_close(wide, found.expand(4, 2, BATCH))
    if p is q:
        torch.testing.assert_close(kl_divergence(first, p.made()), torch.zeros(BATCH, dtype=DOUBLE), rtol=0, atol=1e-9)


@every
def test_samples_are_in_the_support_and_other_values_are_refused(case: Case) -> None:
    distribution = case.made()
    inside = distribution.support.check(distribution.sample((20,)))
    assert inside.shape == (20, BATCH)
    assert inside.all()
    if case.outside is not None:
        assert not distribution.support.check(case.outside).any()
        with pytest.raises(ValueError, match="within the support"):
            distribution.log_prob(case.outside)
        case.made(validate_args=False).log_prob(
            case.outside + 0j if case.kind.__name__.startswith("Complex") else case.outside
        )


@every
def test_a_support_is_reached_from_real_vectors_or_refused_by_name(case: Case) -> None:
    support = case.made().support
    free = torch.randn(BATCH, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(4))
    refused = {"_Complex": (transform_to, biject_to), "_Sphere": (biject_to,)}.get(type(support).__name__, ())
    for registry in (transform_to, biject_to):
        if registry in refused:
            with pytest.raises(NotImplementedError, match=r"sphere|Complex"):
                registry(support)
            continue
        transform = registry(support)
        value = transform(free)
        assert support.check(value).all()
        if registry is biject_to:
            torch.testing.assert_close(transform.inv(value), free)


def test_the_transforms_of_the_sphere_and_of_the_simplex() -> None:
    sphere, simplex = SphereUniform.support, LogDirichlet.support
    torch.testing.assert_close(transform_to(sphere)(VECTORS), normalize(VECTORS, dim=-1))
    assert transform_to(sphere) == transform_to(sphere)
    assert biject_to(simplex) == transform_to(simplex) != transform_to(sphere)
    with pytest.raises(NotImplementedError, match="no bijection takes real vectors to the sphere"):
        biject_to(sphere)
    to_simplex = biject_to(simplex)
    assert to_simplex(VECTORS).shape == to_simplex.forward_shape(VECTORS.shape) == (BATCH, 4)
    assert to_simplex.inverse_shape((BATCH, 4)) == VECTORS.shape
    ratios = Normal(torch.zeros(2, dtype=DOUBLE), 1.0)
    y = TransformedDistribution(ratios, to_simplex)
    value = y.sample((5,))
    assert simplex.check(value).all()
    torch.testing.assert_close(y.log_prob(value), ratios.log_prob(value[:, :-1] - value[:, -1:]).sum(-1))


@every
def test_copies_are_the_same(case: Case) -> None:
    distribution = case.made()
    for twin in (pickle.loads(pickle.dumps(distribution)), copy.deepcopy(distribution)):
        assert type(twin) is case.kind
        assert repr(twin) == repr(distribution)
        assert twin.batch_shape == distribution.batch_shape
        torch.testing.assert_close(twin.mean, distribution.mean, rtol=0, atol=0)
        if case.total:
            value = distribution.sample()
            torch.testing.assert_close(twin.log_prob(value), distribution.log_prob(value), rtol=0, atol=0)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_rounding_away(case: Case, dtype: torch.dtype) -> None:
    """Values are of the parameters' type, as those of torch's Normal; torch has no complex bfloat16."""
    rounding = 16 * torch.finfo(dtype).eps
    exact = case.made()
    half = case.made(*(parameter.to(dtype) for parameter in case.parameters))
    torch.manual_seed(5)
    value = half.sample((50,))
    complex_values = exact.mean.is_complex()
    if not (complex_values and dtype is torch.bfloat16):
        assert value.dtype == (dtype.to_complex() if complex_values else dtype)
    assert half.support.check(value).all()
    found = {"mean": (half.mean, exact.mean), "variance": (half.variance, exact.variance)}
    if case.total:
        same = value.to(torch.complex128) if complex_values else value.double()
        if exact.event_shape and case.kind is not LogDirichlet:
            same = normalize(same, dim=-1)
        found["entropy"] = (half.entropy(), exact.entropy())
        found["log_prob"] = (half.log_prob(value), case.made(validate_args=False).log_prob(same))
    for name, (actual, expected) in found.items():
        if not (complex_values and dtype is torch.bfloat16):
            assert actual.dtype == (dtype.to_complex() if expected.is_complex() else dtype), name
        torch.testing.assert_close(
            actual.to(expected.dtype), expected, rtol=rounding, atol=40 * rounding if name == "log_prob" else rounding
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_power_of_zero_has_a_finite_density_at_any_variance_in_half_precision(dtype: torch.dtype) -> None:
    log_variance = torch.tensor([-80.0, -12.0, 0.0, 12.0, 80.0], dtype=dtype, requires_grad=True)
    for distribution in (ComplexNormal(log_variance=log_variance), ComplexStudentT(4.0, log_scale=log_variance)):
        values = distribution.log_prob_of_power(torch.zeros(5, dtype=dtype))
        torch.testing.assert_close(values, -math.log(math.pi) - log_variance, rtol=0.01, atol=0.01)
        assert torch.autograd.grad(values.sum(), log_variance)[0].isfinite().all()


@every
def test_on_the_meta_device_shapes_are_found_without_numbers(case: Case) -> None:
    """As for torch's Normal, unchecked; as torch's Gamma, those that draw Gamma variables have no samples there."""
    made = case.made(*(parameter.to("meta") for parameter in case.parameters), validate_args=False)
    exact = case.made()
    found = {"mean": made.mean, "variance": made.variance, "mode": made.mode}
    if case.total:
        value = exact.sample().to("meta")
        found |= {"log_prob": made.log_prob(value), "entropy": made.entropy()}
        if hasattr(made, "summed_log_prob_of_power"):
            assert made.summed_log_prob_of_power(value.abs()).shape == ()
    for name, tensor in found.items():
        assert tensor.is_meta, name
        assert tensor.shape == exact.mean.shape if name in ("mean", "variance", "mode") else (BATCH,), name
    if case.gamma:
        try:
            Gamma(*torch.ones(2, 3, device="meta"), validate_args=False).sample()
        except NotImplementedError:  # newer versions of torch have samples of it there
            with pytest.raises(NotImplementedError, match="Meta"):
                made.sample()
    else:
        assert made.sample((2,)).is_meta
        assert made.sample((2,)).shape == (2, *exact.sample().shape)


@every
def test_vmap_grad_and_hessian_are_those_of_autograd(case: Case) -> None:
    """Checked parameters and values included, as for torch's Normal."""
    for name, function in quantities(case).items():
        expected = function(*case.parameters)
        if name != "log_prob":
            torch.testing.assert_close(vmap(function)(*case.parameters), expected)
        check_transforms(function, case.parameters, name)
    if case.total:
        value = case.made().sample()
        found = vmap(lambda value, *given: case.made(*given).log_prob(value))(value, *case.parameters)
        torch.testing.assert_close(found, case.made().log_prob(value))


@every_kl
def test_vmap_grad_and_hessian_of_divergences(kinds: tuple[type[Distribution], type[Distribution]]) -> None:
    function, given = divergence(kinds), pair(kinds)[2]
    torch.testing.assert_close(vmap(function)(*given), function(*given))
    check_transforms(function, given, "kl")


def check_transforms(function: Callable[..., Tensor], parameters: tuple[Tensor, ...], name: str) -> None:
    def total(*given: Tensor) -> Tensor:
        return function(*given).sum()

    given = leaves(parameters)
    if not depends(function, given):
        return
    arguments = tuple(range(len(given)))
    expected = torch.autograd.grad(total(*given), given, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(grad(total, arguments)(*parameters), expected, msg=lambda text: f"{name}: {text}")
    blocks = torch.autograd.functional.hessian(total, parameters)
    torch.testing.assert_close(hessian(total, arguments)(*parameters), blocks, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("kind", [ComplexNormal, ComplexStudentT])
def test_summed_densities_go_through_the_transforms_too(kind: type[Distribution]) -> None:
    case = BY_KIND[kind]
    power = torch.rand(5, BATCH, dtype=DOUBLE)
    check_transforms(lambda *given: case.made(*given).summed_log_prob_of_power(power), case.parameters, "summed")


@every
def test_samples_under_vmap_need_a_kind_of_randomness(case: Case) -> None:
    """As for torch's Normal."""
    if case.kind is Point:
        return

    def draw(*given: Tensor) -> Tensor:
        return case.made(*given).sample((4,))

    with pytest.raises(RuntimeError, match="random"):
        vmap(draw)(*case.parameters)
    drawn = vmap(draw, randomness="different")(*case.parameters)
    assert drawn.shape == (BATCH, 4, *case.made().event_shape)
    assert case.made().support.check(drawn).all()


@pytest.mark.parametrize("kind", [VonMisesFisher, PowerSpherical])
def test_directions_under_vmap_are_independent_also_of_one_distribution(kind: type[Distribution]) -> None:
    torch.manual_seed(6)
    distribution = kind(row(0, 0, 1), row(5.0)[0])
    drawn = vmap(lambda _: distribution.rsample(), randomness="different")(torch.zeros(4000))
    assert len(drawn[:, 2].unique()) == 4000  # each has an angle of its own
    assert z_scores(drawn, distribution.mean).abs().max() < Z_LIMIT
    same = vmap(lambda _: distribution.rsample(), randomness="same")(torch.zeros(3))
    assert torch.equal(same[0], same[2])
    with pytest.raises(RuntimeError, match=f'samples of {kind.__name__} under vmap need randomness="different"'):
        vmap(lambda k: kind(row(0, 0, 1), k).rsample(), randomness="same")(row(1, 2))


def check_compiled(function: Callable[..., object], parameters: tuple[Tensor, ...]) -> None:
    """In one graph, and the gradients too."""
    torch._dynamo.reset()
    given, again = leaves(parameters), leaves(parameters)
    found, expected = torch.compile(function, fullgraph=True, backend="eager")(*given), function(*again)
    torch.testing.assert_close(found, expected)
    parts = [(f.sum(), e.sum()) for f, e in zip(found, expected, strict=True) if e.requires_grad]
    if parts:
        slopes = [
            torch.autograd.grad(sum(totals), to, allow_unused=True, materialize_grads=True)
            for totals, to in zip(zip(*parts, strict=True), (given, again), strict=True)
        ]
        torch.testing.assert_close(*slopes)


def compile_all() -> None:
    for case in CASES:
        if case.kind is VonMisesFisher:  # of 128 dimensions, which take fewer steps to trace; of three below
            case = replace(case, parameters=(pad(VECTORS, (0, 125)), *case.parameters[1:]))
        functions = list(quantities(case, validate_args=False).values())
        if hasattr(case.kind, "summed_log_prob_of_power"):
            functions.append(lambda *given, case=case: case.made(*given).summed_log_prob_of_power(torch.ones(4, BATCH)))
        if not issubclass(case.kind, AroundDirection):
            functions.append(
                lambda *given, case=case: case.made(*given).support.check(case.made(*given).sample((2,))).all().double()
            )
        check_compiled(
            lambda *given, functions=functions: [function(*given) for function in functions], case.parameters
        )
    for kinds in [kinds for kinds in KLS if kinds[0] is kinds[1]]:  # the others are made of the same parts
        function = divergence(kinds, validate_args=False)
        check_compiled(lambda *given, function=function: [function(*given)], pair(kinds)[2])
    case = BY_KIND[VonMisesFisher]
    torch._dynamo.reset()
    assert case.made().support.check(torch.compile(draw_directions, backend="eager")(*leaves(case.parameters))).all()
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"custom jvp[\s\S]*VonMisesFisher"):
        torch.compile(draw_directions, fullgraph=True, backend="eager")(*leaves(case.parameters))


def draw_directions(*given: Tensor) -> Tensor:
    return BY_KIND[VonMisesFisher].made(*given, validate_args=False).rsample()


def test_compiled_functions_are_the_same_in_one_graph_but_for_samples_on_the_sphere() -> None:
    """In a process of its own, as torch.compile cannot see through the checks of annotations that the tests add."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    compile_all()
