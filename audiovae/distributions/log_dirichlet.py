"""The logarithm of a Dirichlet variable: a latent on the simplex whose small entries do not underflow."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints, register_kl, transform_to

from audiovae.distributions.concentration import within_range


class _LogSimplex(constraints.Constraint):
    """Finite vectors y along the last axis whose exponentials sum to one."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        tolerance = max(1e-4, 8 * torch.finfo(value.dtype).eps)
        return torch.isfinite(value).all(-1) & (value.logsumexp(-1).abs() <= tolerance)


class _ToLogSimplex(Transform):
    """The log-ratios y_k - y_K, k < K, to y. By these the density of y is taken: the Jacobian is one."""

    domain = constraints.real_vector
    codomain = _LogSimplex()
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ToLogSimplex)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 1)).log_softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1] - y[..., -1:]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x[..., 0])

    def forward_shape(self, shape: Any) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Any) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


@transform_to.register(_LogSimplex)
@biject_to.register(_LogSimplex)
def _to_log_simplex(constraint: _LogSimplex) -> Transform:
    return _ToLogSimplex()


class LogDirichlet(Distribution):
    """Distribution of y = log z for z ~ Dirichlet(a): log p(y) = sum_k a_k y_k - log B(a), on vectors with logsumexp(y)
    = 0.

    log B(a) = sum_k log Gamma(a_k) - log Gamma(a_0), a_0 = sum_k a_k. The density is the Dirichlet's over z_1..z_{K-1}
    times z_1 ... z_K, the Jacobian of the softmax: that of the log-ratios y_k - y_K, k < K, with respect to Lebesgue
    measure, the same whichever entry is the reference. It is bounded for every a, where the Dirichlet's is infinite at
    the corners for a_k < 1. As z underflows for small a, work with y as far as possible.

    Args:
        concentration: a, `[..., K]` with K at least 2; below `SMALLEST_CONCENTRATION` an entry counts as this and above
            `LARGEST_CONCENTRATION` as that, with a gradient of zero.

    Raises:
        ValueError: fewer than two entries, or one that is not positive and finite.

    Reference: J. Aitchison, "The statistical analysis of compositional data", Chapman and Hall, 1986; M. Figurnov, S.
        Mohamed, A. Mnih, "Implicit reparameterization gradients", NeurIPS 2018.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"concentration": constraints.positive}
    support = _LogSimplex()
    has_rsample = True

    def __init__(self, concentration: Tensor, validate_args: bool | None = None) -> None:
        if concentration.ndim == 0 or concentration.shape[-1] < 2:
            raise ValueError(
                f"LogDirichlet needs at least 2 entries, got a concentration of shape {tuple(concentration.shape)}"
            )
        if self._validate_args if validate_args is None else validate_args:
            right = torch.isfinite(concentration) & (concentration > 0)
            if not torch._is_all_true(right):
                raise ValueError(
                    "the concentration of LogDirichlet must be positive and finite, got "
                    f"{float(concentration[~right][0])}"
                )
        self._given = concentration
        super().__init__(concentration.shape[:-1], concentration.shape[-1:], validate_args=validate_args)

    @property
    def concentration(self) -> Tensor:
        return within_range(self._given)

    @property
    def mean(self) -> Tensor:
        """E[y_k] = psi(a_k) - psi(a_0)."""
        a = self.concentration.double()
        return (torch.digamma(a) - torch.digamma(a.sum(-1, keepdim=True))).to(self.concentration.dtype)

    @property
    def variance(self) -> Tensor:
        """Var[y_k] = psi'(a_k) - psi'(a_0)."""
        a = self.concentration.double()
        trigamma = torch.special.polygamma(1, a) - torch.special.polygamma(1, a.sum(-1, keepdim=True))
        return trigamma.to(self.concentration.dtype)

    @property
    def mean_probabilities(self) -> Tensor:
        """E[z_k] = a_k / a_0."""
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    @property
    def mode(self) -> Tensor:
        """Where the density of y is largest: z_k = a_k / a_0."""
        return self.mean_probabilities.log()

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> LogDirichlet:
        new, shape = self._get_checked_instance(LogDirichlet, _instance), torch.Size(batch_shape)
        new._given = self._given.expand(*shape, -1)
        super(LogDirichlet, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        return f"LogDirichlet(concentration: {tuple(self._given.shape)})"

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparameterised samples: normalised logarithms of Gamma variables.

        A Gamma(a) variable is a Gamma(a + 1) one times U^(1/a), U uniform: its logarithm does not underflow.
        """
        a = self.concentration.double().expand(self._extended_shape(torch.Size(sample_shape)))
        log_gamma = torch._standard_gamma(a + 1).log() - torch.empty_like(a).exponential_() / a
        return log_gamma.log_softmax(-1).to(self.concentration.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats of y = log z over log-ratios, see above.

        Raises:
            ValueError: a value that is not finite or whose exponentials do not sum to one.
        """
        if self._validate_args:
            self._validate_sample(value)
        a = self.concentration.double()
        log_beta = torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))
        return ((a * value).sum(-1) - log_beta).to(self.concentration.dtype)

    def entropy(self) -> Tensor:
        """-E[log p(y)] = log B(a) - sum_k a_k (psi(a_k) - psi(a_0)), in nats."""
        a = self.concentration.double()
        total = a.sum(-1, keepdim=True)
        log_beta = torch.lgamma(a).sum(-1) - torch.lgamma(total).squeeze(-1)
        expected = (a * (torch.digamma(a) - torch.digamma(total))).sum(-1)
        return (log_beta - expected).to(self.concentration.dtype)


def _divergence(a: Tensor, b: Tensor) -> Tensor:
    """lgamma(b) - lgamma(a) - (b - a) psi(a) >= 0, which convexity of lgamma makes zero at b = a only."""
    return torch.lgamma(b) - torch.lgamma(a) - (b - a) * torch.digamma(a)


@register_kl(LogDirichlet, LogDirichlet)
def _kl_log_dirichlet(p: LogDirichlet, q: LogDirichlet) -> Tensor:
    if p.event_shape != q.event_shape:
        raise ValueError(f"KL divergence between LogDirichlet of {p.event_shape[0]} and of {q.event_shape[0]} entries")
    a, b = p.concentration.double(), q.concentration.double()
    parts, total = _divergence(a, b).sum(-1), _divergence(a.sum(-1), b.sum(-1))
    return (parts - total).to(p.concentration.dtype)
