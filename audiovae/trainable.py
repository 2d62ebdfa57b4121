"""What `fit` needs of whatever it trains, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from audiovae.objectives import ELBO, Objective
from audiovae.saved import Origin
from audiovae.settings import TrainingSettings

Equaliser = Callable[[int], Float[Tensor, "segment 1 freq"]]  # power gains of each segment in so many bins


@dataclass(frozen=True)
class Illustration:
    """Of one recording, by name.

    Attributes:
        powers: spectrograms and the like over the whole recording, `[frame, freq]` each.
        waves: sounds, `[sample]` each.
        kl: of every latent dimension, in nats per frame; None where that says nothing.
    """

    powers: Mapping[str, Float[Tensor, "frame freq"]]
    waves: Mapping[str, Float[Tensor, " sample"]]
    kl: Float[Tensor, " latent"] | None


class Trainable(nn.Module, ABC):
    """A model with an ELBO. Waves are `[segment, ..., sample]`; what it observes of them is its own business.

    Attributes:
        sample_rate: of its waves, in Hz.
        labels: names and classes of the labels that condition it; empty for most.
        kind: what it is called in the card of a saved model.
        unit: of its ELBO, as in "nats per frame".
        origin: the saved model that its weights are from, if any.
    """

    sample_rate: int
    origin: Origin | None = None

    @property
    @abstractmethod
    def labels(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    @abstractmethod
    def kind(self) -> str: ...

    @property
    @abstractmethod
    def unit(self) -> str: ...

    @abstractmethod
    def segment_samples(self, n_frames: int) -> int:
        """Samples of a segment of `n_frames` frames."""

    @abstractmethod
    def observe(self, waves: Float[Tensor, "segment *channel sample"], equaliser: Equaliser | None = None) -> Tensor:
        """What the model is trained on, in its own precision, one entry per segment.

        Args:
            equaliser: what is heard is that of another microphone.
        """

    @abstractmethod
    def calibrate(self, observed: Tensor) -> None:
        """Set constants that come from data before training."""

    @abstractmethod
    def loss(self, observed: Tensor, condition: Tensor | None, objective: Objective) -> Float[Tensor, 2]:
        """What a training step lowers, and the KL alone, means over frames, in nats."""

    @abstractmethod
    def elbo(self, observed: Tensor, condition: Tensor | None) -> ELBO:
        """What validation raises."""

    @abstractmethod
    def check(self, settings: TrainingSettings) -> None:
        """Raises TrainingError where the model cannot be trained so."""

    @abstractmethod
    def warning(self, observed: Tensor, condition: Tensor | None) -> str | None:
        """What the user should know of the trained model, such as a collapsed posterior."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """All but the weights that tells it from other models, as JSON can hold it: the config of a saved model."""

    @abstractmethod
    def illustrate(self, wave: Float[Tensor, "*channel sample"], condition: Tensor | None) -> Illustration:
        """What there is to see and to hear of one recording."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Write the model and its card."""
