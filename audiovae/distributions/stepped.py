"""A categorical distribution over evenly spaced numbers: what a pixel of so many greys is."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints


class SteppedCategorical(Distribution):
    """x in {0, 1 / (K - 1), 2 / (K - 1), ..., 1} with the probabilities softmax(logits); a value between two of them
    counts as the nearer one.

    Args:
        logits: `[..., K]`, K at least 2.

    Raises:
        ValueError: fewer than two logits.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real_vector}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        if logits.shape[-1] < 2:
            raise ValueError(
                f"a stepped categorical needs two values or more, got logits of shape {list(logits.shape)}"
            )
        self.logits = logits
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def values(self) -> Tensor:
        """All that x can be, `[K]`."""
        return torch.linspace(0, 1, self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)

    @property
    def probs(self) -> Tensor:
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        return (self.probs * self.values).sum(-1)

    @property
    def mode(self) -> Tensor:
        return self.logits.argmax(-1).to(self.logits.dtype) / (self.logits.shape[-1] - 1)

    @property
    def variance(self) -> Tensor:
        return (self.probs * (self.values - self.mean.unsqueeze(-1)).square()).sum(-1)

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> SteppedCategorical:
        new, shape = self._get_checked_instance(SteppedCategorical, _instance), torch.Size(batch_shape)
        new.logits = self.logits.expand(*shape, -1)
        super(SteppedCategorical, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            rows = self.probs.expand(*shape, -1).reshape(-1, self.logits.shape[-1])
            drawn = torch.multinomial(rows, 1).reshape(shape)
        return drawn.to(self.logits.dtype) / (self.logits.shape[-1] - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats."""
        if self._validate_args:
            self._validate_sample(value)
        last = self.logits.shape[-1] - 1
        step = (value * last).round().clamp(0, last).long()
        shape = torch.broadcast_shapes(step.shape, self.batch_shape)
        log_probs = self.logits.log_softmax(-1).expand(*shape, -1)
        return log_probs.gather(-1, step.expand(shape).unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """In nats."""
        return -(self.probs * self.logits.log_softmax(-1)).sum(-1)
