"""The zero-mean circular complex Student-t, a likelihood of STFT coefficients with heavier tails than the Gaussian."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

from audiovae.distributions.complex_normal import LOG_PI, ComplexNormal, complex_type

_LARGEST_EXPONENT = 60.0  # exp of it times any degrees of freedom is finite in float32


class ComplexStudentT(Distribution):
    """Zero-mean circular complex Student-t with df degrees of freedom and scale s, independent over its batch.

    log p(x) = -log(pi) - log(s) - (df/2 + 1) log(1 + 2 |x|^2 / (df s)), a density over the plane (real, imaginary):
    that of the bivariate real Student-t of scale matrix (s/2) I. It is N_C(0, s) divided by the square root of an
    independent chi-squared variable over its df degrees of freedom, N_C(0, s) itself as df goes to infinity, and the
    complex Cauchy distribution at df = 1. The scale is a power, E|x|^2 = s df / (df - 2).

    Args:
        df: degrees of freedom > 0, a number or any shape; it may be learned.
        scale: s > 0, any shape.
        log_scale: its logarithm, instead of it; what a decoder gives, and exact where the scale overflows.
        floor: smallest scale, below which a given one counts as this.

    Raises:
        ValueError: none or both of scale and log_scale, a scale that is not positive, or degrees of freedom that are
            not positive and finite.

    Reference: S. Kotz and S. Nadarajah, "Multivariate t distributions and their applications", Cambridge University
        Press, 2004; K. Yoshii, K. Itoyama, M. Goto, "Student's t nonnegative matrix factorization and positive
        semidefinite tensor factorization for single-channel audio source separation", ICASSP 2016.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "df": constraints.positive,
        "log_scale": constraints.real,
    }
    support = ComplexNormal.support
    has_rsample = True

    def __init__(
        self, df: Any, scale: Any = None, log_scale: Any = None, floor: float = 0.0, validate_args: bool | None = None
    ) -> None:
        if (scale is None) == (log_scale is None):
            raise ValueError(
                "ComplexStudentT takes either scale or log_scale, got " + ("neither" if scale is None else "both")
            )
        wide, given = broadcast_all(df, scale if log_scale is None else log_scale)
        self._df = torch.as_tensor(
            df, dtype=wide.dtype, device=wide.device
        )  # most often a single number: cheaper than its expansion
        if self._validate_args if validate_args is None else validate_args:
            right = torch.isfinite(self._df) & (self._df > 0)
            if not torch._is_all_true(right):
                raise ValueError(
                    "the degrees of freedom of ComplexStudentT must be positive and finite, got "
                    f"{float(self._df[~right][0])}"
                )
            if log_scale is None and not torch._is_all_true(given > 0):
                raise ValueError(f"the scale of ComplexStudentT must be positive, got {float(given[~(given > 0)][0])}")
        self._given = given.log() if log_scale is None else given
        self._log_floor = math.log(floor) if floor > 0 else -math.inf
        super().__init__(self._given.shape, validate_args=validate_args)

    @property
    def df(self) -> Tensor:
        return self._df.expand(self._batch_shape)

    @property
    def log_scale(self) -> Tensor:
        return self._given.clamp(min=self._log_floor) if self._log_floor > -math.inf else self._given

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @property
    def variance(self) -> Tensor:
        """E|x|^2 = s df / (df - 2), infinite for df <= 2."""
        heavy = self.df <= 2
        return (self.scale * self.df / (self.df - 2).masked_fill(heavy, 1.0)).masked_fill(heavy, math.inf)

    @property
    def stddev(self) -> Tensor:
        """sqrt(E|x|^2)."""
        return self.variance.sqrt()

    @property
    def mean(self) -> Tensor:
        """Zero; for df <= 1, where no expectation exists, the centre all the same."""
        return torch.zeros_like(self._given, dtype=complex_type(self._given.dtype))

    @property
    def mode(self) -> Tensor:
        return self.mean

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> ComplexStudentT:
        new, shape = self._get_checked_instance(ComplexStudentT, _instance), torch.Size(batch_shape)
        new._df, new._given, new._log_floor = self._df, self._given.expand(shape), self._log_floor
        super(ComplexStudentT, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        return f"ComplexStudentT(log_scale: {tuple(self._given.shape)})"

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparameterised samples, with gradients for scale and degrees of freedom."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=complex_type(self._given.dtype), device=self._given.device)
        half = (self._df / 2).expand(shape)
        single = half.float() if half.dtype.itemsize == 2 else half  # torch draws no Gamma variables of half precision
        log_deviation = (self.log_scale + half.log() - torch._standard_gamma(single).log().to(half.dtype)) / 2
        return log_deviation.exp() * noise

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
        log_scale = self.log_scale
        half = self._df / 2
        power, log_weight = torch.broadcast_tensors(power, -half.log() - log_scale)
        log1p_exp = _Log1pExp if torch.compiler.is_compiling() else _ForwardLog1pExp
        return -LOG_PI - log_scale - (half + 1) * log1p_exp.apply(power, log_weight)

    def summed_log_prob_of_power(self, power: Tensor) -> Tensor:
        """`log_prob_of_power(power).sum(-1)`."""
        return self.log_prob_of_power(power).sum(-1)

    def entropy(self) -> Tensor:
        """1 + 2/df + log(pi) + log(s), in nats."""
        return 1 + 2 / self._df + LOG_PI + self.log_scale


class _Log1pExp(torch.autograd.Function):
    """log(1 + power exp(log_weight)) for power >= 0: finite, with finite derivatives, at zero and where exp
    overflows.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(power: Tensor, log_weight: Tensor) -> Tensor:
        return torch.nn.functional.softplus(power.log() + log_weight, threshold=40)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        power, log_weight = ctx.saved_tensors
        slope = gradients[0] / (power + _weight(-log_weight))
        return slope, power * slope


class _ForwardLog1pExp(_Log1pExp):
    """The same with its derivative in forward mode, which torch.func.hessian takes and torch.compile cannot trace."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        power, log_weight = ctx.saved_tensors
        of_power, of_log_weight = (0.0 if tangent is None else tangent for tangent in tangents)
        return (of_power + power * of_log_weight) / (power + _weight(-log_weight))


def _weight(log_weight: Tensor) -> Tensor:
    largest = 8.0 if log_weight.dtype == torch.float16 else _LARGEST_EXPONENT
    return torch.exp(log_weight.clamp(-largest, largest))
