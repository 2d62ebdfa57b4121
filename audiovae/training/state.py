"""All of a training run that a checkpoint must hold, beside the settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

TraceRow = tuple[int, float, float]  # step, mean loss and mean KL since the row before

_AVERAGING_START = 10.0  # the average forgets faster at first: decay (1 + step) / (10 + step), at most the one set


class TrainingState:
    """Weights, their average, optimiser, best weights, patience and trace. Batches and noise follow from seed and step.

    Attributes:
        step: optimiser steps taken.
        saved_step: step of the last checkpoint written.
        best: copy of the weights with the best validation ELBO, on the CPU; None before the first validation.
        waited: validations since then.
        trace: rows of the loss trace.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
        self._model = model
        self._optimizer = optimizer
        self._weights: list[Tensor] = list(model.parameters())
        self._average = [weight.detach().clone() for weight in self._weights]
        self._interval = torch.zeros(2, dtype=torch.float64, device=device)
        self.step = self.saved_step = self.best_step = self.waited = 0
        self.best: dict[str, Tensor] | None = None
        self.best_elbo = self.last_elbo = -math.inf
        self.trace: list[TraceRow] = []

    @torch.no_grad()
    def advance(self, losses: Tensor, averaging: float) -> None:
        """Count a step: its losses (loss, KL) join the trace, its weights the average."""
        self._interval += losses
        decay = min(averaging, (1 + self.step) / (_AVERAGING_START + self.step))
        torch._foreach_lerp_(self._average, [weight.detach() for weight in self._weights], 1 - decay)
        self.step += 1

    def close_interval(self, n_steps: int) -> TraceRow:
        """The mean losses of the last `n_steps` steps, appended to the trace."""
        loss, kl = (self._interval / n_steps).tolist()
        self._interval.zero_()
        self.trace.append((self.step, loss, kl))
        return self.trace[-1]

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the block, the model has the averaged weights."""
        with torch.no_grad():
            raw = [weight.detach().clone() for weight in self._weights]
            torch._foreach_copy_(self._weights, self._average)
            try:
                yield
            finally:
                torch._foreach_copy_(self._weights, raw)

    def score(self, elbo: float) -> bool:
        """Take note of a validation of the weights as they are; True if they are the best so far."""
        self.last_elbo = elbo
        if not elbo > self.best_elbo:
            self.waited += 1
            return False
        self.best_elbo, self.best_step, self.waited = elbo, self.step, 0
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in self._model.state_dict().items()}
        return True

    def checkpoint(self) -> dict[str, Any]:
        """Everything as tensors and plain numbers."""
        self.saved_step = self.step
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {
            **numbers,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average,
            "interval": self._interval,
            "best": self.best,
            "trace": self.trace,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go back to where `checkpoint` was taken.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is not of such a state.
        """
        for name in _NUMBERS:
            if type(checkpoint[name]) is not type(getattr(self, name)):
                raise TypeError(name)
            setattr(self, name, checkpoint[name])
        if not 0 <= self.best_step <= self.step == self.saved_step:
            raise ValueError(f"step {self.step}")
        self._model.load_state_dict(checkpoint["model"])
        self._optimizer.load_state_dict(checkpoint["optimizer"])
        for average, saved in zip(self._average, checkpoint["average"], strict=True):
            average.copy_(saved)
        self._interval.copy_(checkpoint["interval"])
        self.best = checkpoint["best"]
        self.trace = [(int(step), float(loss), float(kl)) for step, loss, kl in checkpoint["trace"]]


_NUMBERS = ("step", "saved_step", "best_step", "best_elbo", "last_elbo", "waited")
