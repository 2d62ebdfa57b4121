"""Distributions on the unit sphere of R^d: the uniform one, what those around a direction share, and the von
Mises-Fisher.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints, register_kl, transform_to

from audiovae.distributions.concentration import within_range


def log_surface(dim: int) -> float:
    """Logarithm of the surface of the unit sphere in R^dim: log 2 + (dim/2) log(pi) - log Gamma(dim/2)."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def uniform_directions(shape: Any, dtype: torch.dtype | None, device: Any) -> Tensor:
    """Vectors of unit length along the last axis, uniform over directions."""
    noise = torch.randn(torch.Size(shape), dtype=dtype, device=device)
    noise = noise.masked_fill(noise == 0, 1.0)  # single-precision noise is exactly zero once in 2^24
    return noise / torch.linalg.vector_norm(noise, dim=-1, keepdim=True)


class _Sphere(constraints.Constraint):
    """Vectors of unit length along the last axis."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        tolerance = max(1e-4, 8 * torch.finfo(value.dtype).eps)
        return (torch.linalg.vector_norm(value, dim=-1) - 1).abs() <= tolerance


sphere = _Sphere()


class _ToSphere(Transform):
    """x / |x|, from the space around a sphere to it. Many vectors have one direction: it has no inverse and no
    Jacobian, and its `inv` gives back the point itself. The zero vector has no direction and stays.
    """

    domain = constraints.real_vector
    codomain = sphere

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ToSphere)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y


@transform_to.register(_Sphere)
def _transform_to_sphere(constraint: _Sphere) -> Transform:
    return _ToSphere()


@biject_to.register(_Sphere)
def _biject_to_sphere(constraint: _Sphere) -> Transform:
    raise NotImplementedError(
        "no bijection takes real vectors to the sphere: transform_to(sphere) gives x / |x|, which many x share"
    )


class SphereUniform(Distribution):
    """Uniform distribution on the unit sphere of R^dim: log p(z) = -log S.

    Args:
        dim: number of coordinates, at least 2.
        batch_shape: shape of the batch.
        dtype: of the samples; the default one of torch if not given.
        device: of the samples.

    Raises:
        ValueError: fewer than two coordinates.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = sphere
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: Any = (),
        dtype: torch.dtype | None = None,
        device: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        if dim < 2:
            raise ValueError(f"SphereUniform needs at least 2 dimensions, got {dim}")
        self.dim = dim
        self._zero = torch.zeros((), dtype=dtype, device=device)
        super().__init__(torch.Size(batch_shape), torch.Size((dim,)), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self._zero.expand(self._extended_shape())

    @property
    def mode(self) -> Tensor:
        """Not a number, as for torch's Uniform: no direction is above another."""
        return self.mean + math.nan

    @property
    def variance(self) -> Tensor:
        """1 / dim for each coordinate."""
        return self.mean + 1 / self.dim

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> SphereUniform:
        new = self._get_checked_instance(SphereUniform, _instance)
        new.dim, new._zero = self.dim, self._zero
        super(SphereUniform, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        return f"SphereUniform(dim: {self.dim}, batch_shape: {tuple(self._batch_shape)})"

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return uniform_directions(self._extended_shape(torch.Size(sample_shape)), self._zero.dtype, self._zero.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """-log S for every value.

        Raises:
            ValueError: a value that is not of unit length.
        """
        if self._validate_args:
            self._validate_sample(value)
        return self.entropy().expand(torch.broadcast_shapes(value.shape[:-1], self._batch_shape)).neg()

    def entropy(self) -> Tensor:
        """Log S, in nats."""
        return (self._zero + log_surface(self.dim)).expand(self._batch_shape)


class AroundDirection(Distribution, ABC):
    """What distributions on the unit sphere share whose density is log p(z) = k T(mu.z) - log M(k) - log S.

    S is the surface of the sphere and M(k) = E[exp(k T)] for a uniform z, so that the KL divergence to the uniform
    distribution is k E[T] - log M(k), with derivative k Var[T]. The angle between z and mu is drawn in double precision
    by `_draw`, and z = cos(angle) mu + sin(angle) s with s a uniform direction orthogonal to mu, by a Householder
    reflection. The gradient with respect to k is that of implicit reparameterisation, d angle / dk = -(dF/dk) / f with
    F and f the distribution function and density of the angle; it is exact and needs no correction for rejections
    behind a sample. All of it has derivatives of any order, by torch.func too; under vmap samples take
    `randomness="different"`, and torch.compile draws those with gradients outside of its graph.

    Args:
        loc: mu, of unit length along its last axis, `[..., dim]` with dim at least 2.
        concentration: k, `[...]`; below `SMALLEST_CONCENTRATION` it counts as this and above `LARGEST_CONCENTRATION` as
            that, with a gradient of zero.

    Raises:
        ValueError: fewer than two dimensions, a mu that is not of unit length, a k that is negative or not finite.

    Reference: M. Figurnov, S. Mohamed, A. Mnih, "Implicit reparameterization gradients", NeurIPS 2018.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "concentration": constraints.nonnegative,
    }
    support = sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Any, validate_args: bool | None = None) -> None:
        name = type(self).__name__
        if loc.ndim == 0 or loc.shape[-1] < 2:
            raise ValueError(f"{name} needs a loc of at least 2 dimensions, got one of shape {tuple(loc.shape)}")
        given = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        if self._validate_args if validate_args is None else validate_args:
            right = torch.isfinite(given) & (given >= 0)
            if not torch._is_all_true(right):
                raise ValueError(
                    f"the concentration of {name} must be finite and not negative, got {float(given[~right][0])}"
                )
            right = sphere.check(loc)
            if not torch._is_all_true(right):
                length = float(torch.linalg.vector_norm(loc[~right][0]))
                raise ValueError(f"loc of {name} must be of unit length, got a vector of length {length:.6g}")
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], given.shape)
        self.dim = loc.shape[-1]
        self.loc = loc.expand(*batch_shape, self.dim)
        self._given = given.expand(batch_shape)
        super().__init__(batch_shape, self.loc.shape[-1:], validate_args=validate_args)

    @staticmethod
    @abstractmethod
    def _statistic(squared_distance: Tensor) -> Tensor:
        """T, which falls with the distance: a function of |z - mu|^2 = 2 - 2 mu.z, as 1 - mu.z has lost its digits near
        mu.
        """

    @staticmethod
    @abstractmethod
    def _moments(concentration: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Log M(k) and E[T], its derivative."""

    @staticmethod
    @abstractmethod
    def _draw(concentration: Tensor, dim: int) -> Tensor:
        """An angle between z and mu for each entry of a vector of concentrations."""

    @staticmethod
    @abstractmethod
    def _cosine(concentration: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of mu.z."""

    @property
    def mean(self) -> Tensor:
        """E[z] = E[mu.z] mu, which is shorter than mu."""
        length, _ = self._cosine(self.concentration.double(), self.dim)
        return length.to(self.loc.dtype).unsqueeze(-1) * self.loc

    @property
    def variance(self) -> Tensor:
        """Of each coordinate: Var[mu.z] along mu and E[1 - (mu.z)^2] / (d - 1) in each direction across it."""
        length, along = (t.unsqueeze(-1) for t in self._cosine(self.concentration.double(), self.dim))
        across = (1 - along - length.square()) / (self.dim - 1)
        return (across + (along - across) * self.loc.double().square()).to(self.loc.dtype)

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def concentration(self) -> Tensor:
        return within_range(self._given)

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> AroundDirection:
        new, shape = self._get_checked_instance(AroundDirection, _instance), torch.Size(batch_shape)
        new.dim, new.loc, new._given = self.dim, self.loc.expand(*shape, self.dim), self._given.expand(shape)
        super(AroundDirection, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        return f"{type(self).__name__}(loc: {tuple(self.loc.shape)}, concentration: {tuple(self._batch_shape)})"

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparameterised samples, with the whole gradient with respect to loc and concentration."""
        shape = self._extended_shape(torch.Size(sample_shape))
        draw = partial(uniform_directions, (*shape[:-1], self.dim - 1), self.loc.dtype, self.loc.device)
        # The angle is drawn first, as always for a seed; but where vmap draws many, a direction is what tells it so.
        first_drawn = draw() if torch._C._are_functorch_transforms_active() else None
        angle = _Angle.apply(self.concentration.double().expand(shape[:-1]), first_drawn, self.dim, type(self))
        direction = draw() if first_drawn is None else first_drawn
        along, across = angle.cos().to(self.loc.dtype).unsqueeze(-1), angle.sin().to(self.loc.dtype).unsqueeze(-1)
        # Of the two reflections that take +e1 or -e1 to mu, the one whose normal mu + sign e1 is long.
        first, others = self.loc[..., :1], self.loc[..., 1:]
        sign = torch.where(first >= 0, 1.0, -1.0).to(first.dtype)
        normal = torch.cat([first + sign, others], -1)
        start = torch.cat([-sign * along, across * direction], -1)
        return start - 2 * (normal * start).sum(-1, keepdim=True) / normal.square().sum(-1, keepdim=True) * normal

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats with respect to the surface of the sphere.

        Raises:
            ValueError: a value that is not of unit length.
        """
        if self._validate_args:
            self._validate_sample(value)
        k = self.concentration.double()
        log_partition, _ = self._moments(k, self.dim)
        statistic = self._statistic((value - self.loc).double().square().sum(-1))
        return (k * statistic - log_partition - log_surface(self.dim)).to(self.loc.dtype)

    def kl_to_uniform(self) -> Tensor:
        """KL divergence to the uniform distribution in nats, in double precision."""
        k = self.concentration.double()
        log_partition, expected = self._moments(k, self.dim)
        return k * expected - log_partition

    def entropy(self) -> Tensor:
        """Log S minus the KL divergence to the uniform distribution, in nats."""
        return (log_surface(self.dim) - self.kl_to_uniform()).to(self.loc.dtype)


_NODES, _WEIGHTS = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(32))
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2  # over the interval from 0 to 1
_NEGLIGIBLE = 36.0  # a density exp(-36) times another one, 2e-16, does not count
_BISECTIONS = 8


class _Angle(torch.autograd.Function):
    """Angles to mu for given concentrations, with their implicit derivative, a function of angle and concentration
    that can be differentiated again. The direction tells only whether vmap draws one sample or many.
    """

    @staticmethod
    def forward(concentration: Tensor, direction: Tensor | None, dim: int, kind: type[AroundDirection]) -> Tensor:
        return kind._draw(concentration.reshape(-1), dim).view(concentration.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        concentration, _, ctx.dim, ctx.kind = inputs
        ctx.save_for_backward(concentration, output)
        ctx.save_for_forward(concentration, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        concentration, angle = ctx.saved_tensors
        return gradients[0] * _angle_slope(angle, concentration, ctx.dim, ctx.kind), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        concentration, angle = ctx.saved_tensors
        return tangents[0] * _angle_slope(angle, concentration, ctx.dim, ctx.kind)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        concentration: Tensor,
        direction: Tensor | None,
        dim: int,
        kind: type[AroundDirection],
    ) -> tuple[Tensor, int]:
        if info.randomness != "different":
            raise RuntimeError(f'samples of {kind.__name__} under vmap need randomness="different"')
        if in_dims[0] is None:
            concentration = concentration.expand(info.batch_size, *concentration.shape)
        else:
            concentration = concentration.movedim(in_dims[0], 0)
        return _Angle.apply(concentration, None, dim, kind), 0


def _angle_slope(angle: Tensor, concentration: Tensor, dim: int, kind: type[AroundDirection]) -> Tensor:
    """Derivative of an angle in k, -(dF/dk) / f, by Gauss-Legendre quadrature.

    dF/dk is the integral of (T - E[T]) f from 0 to the angle or, with the other sign, from the angle to pi. On one of
    the two T - E[T] keeps its sign, so that nothing cancels. The interval ends where the density is negligible.
    """

    def log_density_and_statistic(angle: Tensor) -> tuple[Tensor, Tensor]:
        statistic = kind._statistic(4 * (angle / 2).sin().square())
        log_density = k * statistic
        return log_density + (dim - 2) * angle.sin().log() if dim > 2 else log_density, statistic

    k, angle = concentration.unsqueeze(-1), angle.unsqueeze(-1)
    _, expected = kind._moments(k, dim)
    log_density, statistic = log_density_and_statistic(angle)
    room = torch.where(statistic > expected, -angle, math.pi - angle)
    low, high = torch.full_like(room, -40.0), torch.zeros_like(room)  # log2 of a part of the room
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = log_density - log_density_and_statistic(angle + room * torch.exp2(middle))[0] > _NEGLIGIBLE
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    room = room * torch.exp2(high)
    log_densities, statistics = log_density_and_statistic(angle + room * _NODES.to(angle.device))
    integrand = (statistics - expected) * torch.exp(log_densities - log_density)
    return (room * integrand) @ _WEIGHTS.to(angle.device)


class VonMisesFisher(AroundDirection):
    """Von Mises-Fisher distribution on the unit sphere of R^d: log p(z) = k mu.z + log C_d(k).

    log C_d(k) = (d/2 - 1) log k - (d/2) log(2 pi) - log I_{d/2-1}(k) with I the modified Bessel function. The mean is
    A_d(k) mu with A_d(k) = I_{d/2}(k) / I_{d/2-1}(k), and the KL divergence to the uniform distribution k A_d(k) + log
    C_d(k) + log S, with derivative k A_d'(k). All of these are in double precision inside and neither overflow,
    underflow nor cancel. See `AroundDirection` for the arguments and errors.

    Reference: K. Mardia and P. Jupp, "Directional statistics", Wiley, 2000; T. Davidson et al., "Hyperspherical
        variational auto-encoders", UAI 2018.
    """

    @staticmethod
    def _statistic(squared_distance: Tensor) -> Tensor:
        return 1 - squared_distance / 2

    @staticmethod
    def _moments(concentration: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        log_partition, expected, _ = _differentiable_bessel_terms(concentration, dim)
        return log_partition, expected

    @staticmethod
    def _cosine(concentration: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """A_d(k) and A_d'(k)."""
        _, length, slope = _differentiable_bessel_terms(concentration, dim)
        return length, slope

    @staticmethod
    def _draw(concentration: Tensor, dim: int) -> Tensor:
        """Rejection from a transformed Beta variable, written with two Gamma variables so that neither 1 - w nor 1 + w
        cancels.

        Reference: A. Wood, "Simulation of the von Mises Fisher distribution", Communications in Statistics 23(1), 1994.
        """
        m = dim - 1
        root = torch.sqrt(4 * concentration.square() + m * m)
        b = m / (2 * concentration + root)
        a = (m + 2 * concentration + root) / 4
        largest = m * math.log(m) - 4 * a * b / (1 + b)
        angle = torch.empty_like(concentration)
        left = torch.arange(len(concentration), device=concentration.device)
        while len(left):
            above, below = torch._standard_gamma(concentration.new_full((2, len(left)), m / 2))
            angle[left] = 2 * torch.atan(
                torch.sqrt(b[left] * above / below)
            )  # tan^2 of the half angle is (1 - w) / (1 + w)
            t = 2 * a[left] * b[left] * (above + below) / (below + b[left] * above)
            log_uniform = -torch.empty_like(t).exponential_()
            left = left[m * t.log() - t - largest[left] < log_uniform]
        return angle


class _BesselTerms(torch.autograd.Function):
    """`_bessel_terms`, each of which has the next one as its derivative: all but the last, whose own follows from
    A' = 1 - A^2 - (d-1) A / k. As the saved results are differentiable themselves, so are the derivatives.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(concentration: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        return _bessel_terms(concentration, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        concentration, ctx.dim = inputs
        ctx.save_for_backward(concentration, *output[1:])
        ctx.save_for_forward(concentration, *output[1:])

    @staticmethod
    def _slopes(ctx: Any) -> tuple[Tensor, Tensor, Tensor]:
        k, length, slope = ctx.saved_tensors
        return length, slope, (ctx.dim - 1) * (length / k - slope) / k - 2 * length * slope

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        a, b, c = _BesselTerms._slopes(ctx)
        return gradients[0] * a + gradients[1] * b + gradients[2] * c, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = _BesselTerms._slopes(ctx)
        return tangents[0] * a, tangents[0] * b, tangents[0] * c


def _differentiable_bessel_terms(concentration: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    if torch.compiler.is_compiling():  # which traces no function with a forward derivative
        return _bessel_terms(concentration, dim)
    return _BesselTerms.apply(concentration, dim)


_ORDER_OF_EXPANSION = 64  # four terms of the expansion leave an error of 2e-11 at this order


def _bessel_terms(concentration: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log I_n(k) - log(its first term in k), A_d(k) = I_{n+1}(k) / I_n(k), and A_d'(k), with n = dim/2 - 1.

    The first is log(Gamma(n+1) (2/k)^n I_n(k)) = -log C_d(k) - log S, the logarithm of E[exp(k mu.z)] for a uniform z:
    0 at k = 0, where I_n(k) itself underflows. Orders of 64 or more have a uniform expansion; lower ones follow by
    steps down, I_{n-1} / I_n = 2n/k + I_{n+1} / I_n, which damp the errors of the ratio and of its derivative.

    Reference: F. Olver et al., "NIST digital library of mathematical functions", 10.41.3 and 10.29.1.
    """
    k = concentration
    order = dim / 2 - 1
    steps = max(0, math.ceil(_ORDER_OF_EXPANSION - order))
    n = order + steps
    z = k / n
    s = torch.sqrt(1 + z * z)
    p = 1 / s
    h = z * z / (1 + s)  # s - 1
    correction, correction_1, correction_2 = _expansion(p, n)
    p_1 = -z * p**3 / n
    p_2 = -(p**3) * (1 - 3 * (z * p) ** 2) / n**2
    log_ratio = n * (h - torch.log1p(h / 2)) - s.log() / 2 + correction
    ratio = z / (1 + s) - z * p * p / (2 * n) + correction_1 * p_1
    slope = p / (1 + s) / n - (p * p - 2 * (z * p * p) ** 2) / (2 * n * n) + correction_2 * p_1**2 + correction_1 * p_2
    for _ in range(steps):
        log_ratio = log_ratio + torch.log1p(k * ratio / (2 * n))
        ratio = 1 / (2 * n / k + ratio)
        slope = ratio.square() * (2 * n / k.square() - slope)
        n -= 1
    return log_ratio, ratio, slope


def _expansion(p: Tensor, order: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithm of the sum over j of u_j(p) / order^j minus its value at p = 1, and its first two derivatives in p."""
    coefficients = {
        1: (1 / 8) / order,
        2: (1 / 16) / order**2,
        3: (-5 / 24) / order + (25 / 384) / order**3,
        4: (-3 / 8) / order**2 + (13 / 128) / order**4,
        5: (-531 / 640) / order**3,
        6: (5 / 16) / order**2 - (71 / 32) / order**4,
        7: (221 / 128) / order**3,
        8: (531 / 64) / order**4,
        9: (-1105 / 1152) / order**3,
        10: (-339 / 32) / order**4,
        12: (565 / 128) / order**4,
    }
    value, first, second = (torch.zeros_like(p) for _ in range(3))
    for power in range(12, -1, -1):  # Horner's scheme
        second = second * p + 2 * first
        first = first * p + value
        value = value * p + coefficients.get(power, 0.0)
    return value - sum(coefficients.values()), first, second


def _shape_of_kl(p: AroundDirection | SphereUniform, q: AroundDirection | SphereUniform) -> torch.Size:
    if p.dim != q.dim:
        raise ValueError(f"KL divergence between spheres of different dimensions: {p.dim} and {q.dim}")
    return torch.broadcast_shapes(p.batch_shape, q.batch_shape)


@register_kl(SphereUniform, SphereUniform)
def _kl_between_sphere_uniforms(p: SphereUniform, q: SphereUniform) -> Tensor:
    return p._zero.expand(_shape_of_kl(p, q))


@register_kl(AroundDirection, SphereUniform)
def _kl_to_sphere_uniform(p: AroundDirection, q: SphereUniform) -> Tensor:
    return p.kl_to_uniform().to(p.loc.dtype).expand(_shape_of_kl(p, q))


@register_kl(SphereUniform, AroundDirection)
def _kl_from_sphere_uniform(p: SphereUniform, q: AroundDirection) -> Tensor:
    """It is log M(k) - k E[T], with E[T] that of the uniform distribution, k = 0."""
    k = q.concentration.double()
    _, expected = q._moments(torch.zeros_like(k), q.dim)
    return (q._moments(k, q.dim)[0] - k * expected).to(q.loc.dtype).expand(_shape_of_kl(p, q))


@register_kl(AroundDirection, VonMisesFisher)
def _kl_to_von_mises_fisher(p: AroundDirection, q: VonMisesFisher) -> Tensor:
    """KL(p, uniform) + log M(k) - k E[mu.z] for the mu and k of q, where E[z] is that of p."""
    shape = _shape_of_kl(p, q)
    k = q.concentration.double()
    length, _ = p._cosine(p.concentration.double(), p.dim)
    squared_distance = (p.loc.double() - q.loc.double()).square().sum(-1)  # of the two mu: 2 - 2 mu.mu
    at_one_direction = p.kl_to_uniform() + q._moments(k, q.dim)[0] - k * length
    return (at_one_direction + k * length * squared_distance / 2).to(p.loc.dtype).expand(shape)
