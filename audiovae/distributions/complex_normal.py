"""The zero-mean circular complex Gaussian, the likelihood of an STFT coefficient given its variance."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl
from torch.distributions.utils import broadcast_all

LOG_PI = math.log(math.pi)
EULER_GAMMA = 0.5772156649015329  # E[log |x|^2] = log variance - gamma

# The one floor of the toolkit: added to the power on the way in, smallest variance on the way out. At unit level the
# mean power of a bin is a few hundred, and the rounding of 16-bit recordings lies near 1e-5.
VARIANCE_FLOOR = 1e-6

_LARGEST_EXPONENT = 80.0  # exp of it is finite in float32, so that a power of zero counts as zero at any variance


def complex_type(dtype: torch.dtype) -> torch.dtype:
    """As `dtype.to_complex()`, which torch.compile cannot trace."""
    return torch.promote_types(dtype, torch.complex32)


class _Complex(constraints.Constraint):
    """Finite complex numbers."""

    def check(self, value: Tensor) -> Tensor:
        return torch.isfinite(value) if value.is_complex() else torch.zeros_like(value, dtype=torch.bool)


class ComplexNormal(Distribution):
    """Zero-mean circular complex Gaussian N_C(0, variance), independent over its batch.

    log p(x) = -log(pi) - log(variance) - |x|^2 / variance, a density over the plane (real, imaginary): the real and the
    imaginary part are independent real Gaussians of half the variance each. The log-likelihood ratio
    log N_C(x; 0, |x|^2) - log N_C(x; 0, variance) is the Itakura-Saito divergence d_IS(|x|^2, variance) =
    |x|^2/variance - log(|x|^2/variance) - 1, and `kl_divergence(p, q)` is d_IS(p.variance, q.variance).

    Args:
        variance: E|x|^2 > 0, any shape.
        log_variance: its logarithm, instead of it; what a decoder gives, and exact where the variance overflows.
        floor: smallest variance, below which a given one counts as this.

    Raises:
        ValueError: none or both of the two, or a variance that is not positive.

    Reference: F. Neeser and J. Massey, "Proper complex random processes with applications to information theory", IEEE
        Trans. IT 39(4), 1993; C. Fevotte, N. Bertin, J.-L. Durrieu, "Nonnegative matrix factorization with the
        Itakura-Saito divergence", Neural Computation 21(3), 2009.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"log_variance": constraints.real}
    support = _Complex()
    has_rsample = True

    def __init__(
        self, variance: Any = None, log_variance: Any = None, floor: float = 0.0, validate_args: bool | None = None
    ) -> None:
        if (variance is None) == (log_variance is None):
            raise ValueError(
                "ComplexNormal takes either variance or log_variance, got "
                + ("neither" if variance is None else "both")
            )
        (given,) = broadcast_all(variance if log_variance is None else log_variance)
        checked = self._validate_args if validate_args is None else validate_args
        if checked and log_variance is None and not torch._is_all_true(given > 0):
            raise ValueError(
                f"Expected parameter variance of ComplexNormal to be positive, but found invalid values:\n{given}"
            )
        self._given = given.log() if log_variance is None else given
        self._log_floor = math.log(floor) if floor > 0 else -math.inf
        super().__init__(self._given.shape, validate_args=validate_args)

    @property
    def log_variance(self) -> Tensor:
        return self._given.clamp(min=self._log_floor) if self._log_floor > -math.inf else self._given

    @property
    def variance(self) -> Tensor:
        """E|x|^2, the power spectral density where x is an STFT."""
        return self.log_variance.exp()

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self._given, dtype=complex_type(self._given.dtype))

    @property
    def mode(self) -> Tensor:
        return self.mean

    @property
    def stddev(self) -> Tensor:
        """sqrt(E|x|^2)."""
        return self.variance.sqrt()

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> ComplexNormal:
        new, shape = self._get_checked_instance(ComplexNormal, _instance), torch.Size(batch_shape)
        new._given, new._log_floor = self._given.expand(shape), self._log_floor
        super(ComplexNormal, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        return f"ComplexNormal(log_variance: {tuple(self._given.shape)})"

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparameterised samples: sqrt(variance) times a complex standard normal."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=complex_type(self._given.dtype), device=self._given.device)
        return self.stddev * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats of complex values; its gradient is finite at zero.

        Raises:
            ValueError: a value that is not complex or not finite.
        """
        if self._validate_args:
            self._validate_sample(value)
        return self.log_prob_of_power(value.real.square() + value.imag.square())

    def log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob(x)` given power = |x|^2, which is all that it depends on: still a density over the complex
        plane.
        """
        log_variance = self.log_variance
        largest = min(_LARGEST_EXPONENT, math.log(torch.finfo(log_variance.dtype).max) - 1)
        return -LOG_PI - log_variance - power * torch.exp((-log_variance).clamp(max=largest))

    def summed_log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob_of_power(power).sum(-1)` at a third of its cost: what training calls.

        Under torch.func, torch.compile and on meta tensors it is that sum itself.
        """
        if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling() or power.is_meta:
            return self.log_prob_of_power(power).sum(-1)
        given, power = torch.broadcast_tensors(self._given, power)
        return _SummedLogProb.apply(given, power, self._log_floor)

    def entropy(self) -> Tensor:
        """1 + log(pi) + log(variance), in nats."""
        return 1 + LOG_PI + self.log_variance


_CACHED = 2**17  # numbers that stay in a processor's own cache while several passes go over them


def _rows(array: Tensor, at_once: int) -> tuple[Tensor, ...]:
    return array.reshape(-1, array.shape[-1]).split(at_once)


class _SummedLogProb(torch.autograd.Function):
    """sum over the last axis of -log(pi) - v - power exp(-v), v = max(log_variance, log_floor), in as few passes as can
    be.

    An array of frames by bins is too large for the cache: every pass that makes a new one costs as much as a small
    matrix product. This one makes a single array, which is the gradient with respect to v already.
    """

    @staticmethod
    def forward(ctx: Any, log_variance: Tensor, power: Tensor, log_floor: float) -> Tensor:
        ctx.log_floor, ctx.floored = log_floor, False
        slope = torch.empty_like(log_variance)
        total = log_variance.new_empty(log_variance.shape[:-1])
        rows_at_once = (
            max(1, _CACHED // log_variance.shape[-1]) if log_variance.device.type == "cpu" else max(1, total.numel())
        )
        for work, v, p, out in zip(
            *(_rows(t, rows_at_once) for t in (slope, log_variance, power, total.unsqueeze(-1))), strict=True
        ):
            torch.neg(v, out=work)
            if log_floor > -math.inf and bool(work.amax() > -log_floor):
                work.clamp_(max=-log_floor)
                ctx.floored = True
            torch.sum(work, -1, keepdim=True, out=out)  # minus the sum of v
            if log_floor == -math.inf:
                work.clamp_(max=_LARGEST_EXPONENT)
            work.exp_().mul_(p)
            out.sub_(work.sum(-1, keepdim=True)).sub_(power.shape[-1] * LOG_PI)
            work.sub_(1)
        ctx.save_for_backward(log_variance, power)
        ctx.slope = slope
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        log_variance, power = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-1)
        slope, ctx.slope = ctx.slope, None  # used up below
        of_power = None
        if slope is None or torch.is_grad_enabled() or ctx.needs_input_grad[1]:  # a second pass or a second derivative
            precision = torch.exp(-log_variance.clamp(min=ctx.log_floor))
            slope = power * precision - 1
            of_power = -precision * gradient
        of_log_variance = slope * gradient if torch.is_grad_enabled() else slope.mul_(gradient)
        if ctx.floored:
            of_log_variance = of_log_variance.masked_fill(log_variance < ctx.log_floor, 0.0)
        return of_log_variance, of_power, None


@register_kl(ComplexNormal, ComplexNormal)
def _kl_complex_normal(p: ComplexNormal, q: ComplexNormal) -> Tensor:
    log_ratio = p.log_variance - q.log_variance
    return torch.expm1(log_ratio) - log_ratio
