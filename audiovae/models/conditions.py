"""Labels that condition a model: digits, speakers, or whatever a corpus carries."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from audiovae.errors import ConditionError


class Conditions:
    """Names and classes of labels, and the vectors that stand for them.

    A condition is a vector of one block per label, each a distribution over its classes: one-hot for a known label,
    anything on the simplex for a soft one, which has a gradient.

    Args:
        labels: classes by name.

    Raises:
        ValueError: a label with less than two classes, or with one twice.
    """

    def __init__(self, labels: Mapping[str, Sequence[str]]) -> None:
        self.labels = {name: tuple(classes) for name, classes in labels.items()}
        for name, classes in self.labels.items():
            if len(set(classes)) < 2 or len(set(classes)) != len(classes):
                raise ValueError(f"label {name!r} needs at least two different classes, got {list(classes)}")
        self.n_classes = [len(classes) for classes in self.labels.values()]
        self.size = sum(self.n_classes)

    def encode(self, /, **given: str) -> Float[Tensor, " label"]:
        """The one-hot condition of one class for every label.

        Raises:
            ConditionError: a label is missing or unknown, or has no such class.
        """
        for name in given:
            if name not in self.labels:
                near = difflib.get_close_matches(name, self.labels, 1)
                raise ConditionError(
                    f"unknown label {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"this model {self}")
                )
        blocks = []
        for name, classes in self.labels.items():
            if name not in given:
                raise ConditionError(f"the label {name!r} is missing; this model {self}")
            if str(given[name]) not in classes:
                raise ConditionError(f"{name} {given[name]!r} is unknown; known are {_listed(classes)}")
            blocks.append(functional.one_hot(torch.tensor(classes.index(str(given[name]))), len(classes)).float())
        return torch.cat(blocks) if blocks else torch.zeros(0)

    def every(self) -> Float[Tensor, "combination label"]:
        """The conditions of all combinations of classes, the last label running fastest."""
        grid = torch.cartesian_prod(*(torch.arange(n) for n in self.n_classes)).reshape(-1, len(self.n_classes))
        return torch.cat(
            [functional.one_hot(column, n).float() for column, n in zip(grid.T, self.n_classes, strict=True)], dim=-1
        )

    def names(self, condition: Float[Tensor, " label"]) -> dict[str, str]:
        """The likeliest class of every label."""
        blocks = condition.split(self.n_classes)
        return {
            name: classes[int(block.argmax())]
            for (name, classes), block in zip(self.labels.items(), blocks, strict=True)
        }

    def join(
        self, features: Float[Tensor, "*batch frame feature"], condition: Tensor | None
    ) -> Float[Tensor, "*batch frame joined"]:
        """Features of frames, each followed by its condition; just the features where the model has no labels.

        Raises:
            ConditionError: see `check`.
        """
        if not self.labels:
            if condition is not None:
                raise ConditionError("a condition was given to a model without labels")
            return features
        return torch.cat([features, self.per_frame(condition, features)], dim=-1)

    def per_frame(
        self, condition: Tensor | None, like: Float[Tensor, "*batch frame feature"]
    ) -> Float[Tensor, "*batch frame label"]:
        """The condition of every frame, `[..., frame, label]`, for one per sequence or per frame.

        Raises:
            ConditionError: see `check`; or its shape fits neither sequences nor frames.
        """
        condition = self.check(condition).to(like.dtype)
        *batch, n_frames, _ = like.shape
        per_frame = condition.ndim == like.ndim and condition.shape[-2] == n_frames
        try:
            if per_frame:
                return condition.expand(*batch, n_frames, -1)
            return condition.unsqueeze(-2).expand(*batch, n_frames, -1)
        except RuntimeError as error:
            raise ConditionError(
                f"a condition of shape {list(condition.shape)} fits neither {batch} sequences nor their {n_frames} "
                "frames"
            ) from error

    def of_sequence(
        self, condition: Tensor | None, batch: Sequence[int], like: Float[Tensor, "*batch frame feature"]
    ) -> Float[Tensor, "*batch 1 label"] | None:
        """The condition of whole sequences, `[..., 1, label]`; None where the model has no labels.

        Raises:
            ConditionError: see `check`; or it is none of `batch` sequences.
        """
        if not self.labels:
            self.join(like, condition)  # refuses one
            return None
        condition = self.check(condition).to(like.dtype)
        try:
            return condition.expand(*batch, self.size).unsqueeze(-2)
        except RuntimeError as error:
            raise ConditionError(
                f"a condition of shape {list(condition.shape)} fits no {list(batch)} sequences"
            ) from error

    def check(self, condition: Tensor | None) -> Tensor:
        """The condition, if it is one of this model.

        Raises:
            ConditionError: it is missing, of another size, negative, not finite, or does not sum to one for every
                label.
        """
        if condition is None:
            raise ConditionError(f"a condition is missing: this model {self}")
        if condition.shape[-1] != self.size:
            raise ConditionError(f"a condition has {self.size} entries ({self}), got {condition.shape[-1]}")
        if torch.compiler.is_exporting():  # a graph has no numbers that could be wrong
            return condition
        for (name, _), block in zip(self.labels.items(), condition.detach().split(self.n_classes, dim=-1), strict=True):
            off = (block.sum(-1) - 1).abs()
            if not bool((block >= 0).all() & (off < 1e-3).all()):
                worst = float(off.max())
                raise ConditionError(
                    f"the classes of {name!r} must be non-negative and sum to 1, got a sum that is {worst:.3g} off or "
                    "a negative entry"
                )
        return condition

    def __str__(self) -> str:
        if not self.labels:
            return "has no labels"
        return "is conditioned on " + " and ".join(
            f"{name} ({_listed(classes)})" for name, classes in self.labels.items()
        )


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(classes[:12]) + (f", ... ({len(classes)} in all)" if len(classes) > 12 else "")
