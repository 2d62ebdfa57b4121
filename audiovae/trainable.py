"""What `fit` needs of whatever it trains, and how a `VAE` gives it."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from audiovae import hub, saved
from audiovae.errors import ModelError, TrainingError
from audiovae.models import VAE
from audiovae.objectives import (
    ELBO,
    Objective,
    check_importance_training,
    collapse_warning,
    counted_frames,
    elbo,
    kl_per_dimension,
    training_loss,
)
from audiovae.saved import Origin
from audiovae.settings import LevelName, TrainingSettings

_ANY_SIZE = 10_000  # of a model, that fits into any memory

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
        sample_rate: of its waves, in Hz; 0 of a model of arrays, whose samples are frames.
        n_channels: of its waves; None: any number.
        labels: names and classes of the labels that condition it; empty for most.
        kind: what it is called in the card of a saved model.
        purpose: what it is for, in a word or two of that card.
        unit: of its ELBO, as in "nats per frame".
        level_rule: of what recordings are divided by, see `audiovae.level`.
        origin: the saved model that its weights are from, if any.
    """

    sample_rate: int
    level_rule: LevelName = "active"
    n_channels: int | None = 1
    purpose: str = "audio prior"
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

    def require_gradients(self) -> None:
        """Ask for the gradient of every weight that is trained."""
        self.requires_grad_()

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


class TrainableVAE(Trainable, ABC):
    """A `VAE` of sound or of arrays: what all of them are trained, saved and loaded by.

    Attributes:
        vae: the model of the frames.
    """

    vae: VAE

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainableVAE:
        """The untrained model that a config describes, see `config`.

        Raises:
            KeyError, TypeError, ValueError: it describes none.
        """

    @classmethod
    def _load(
        cls, name_or_path: str | Path, device: str | torch.device | None, revision: str | None = None
    ) -> TrainableVAE:
        """Load a shipped model by name, a saved one from its folder, or one of the hub, ready for inference.

        Its weights need no gradient (what it is given may); `fit` trains them all the same, and `requires_grad_()` asks
        for it.

        Raises:
            ModelError: no such model, or its files are damaged, incomplete or from a newer version.
        """
        folder = saved.find(name_or_path, revision)
        config, tensors = saved.read(folder)
        if "separator" in config:
            raise ModelError(folder, "is a separator that is learnt from mixtures, and no prior")
        try:
            check_sizes([config["vae"], config.get("stft"), config.get("n_freqs")], tensors)
            model = cls.from_config(config)
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise saved.misfit(folder, error) from error
        model.origin = saved.Origin(folder.resolve().name, config["config_sha256"], saved.read_card(folder))
        return model.to(device or "cpu").eval().requires_grad_(False)

    def model_hash(self) -> str:
        """SHA-256 that identifies sizes and weights: the `config_sha256` of a saved prior, which latents carry."""
        return saved.model_hash(self.config(), self.state_dict())

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Write `config.json`, `model.safetensors` and the model card `README.md`.

        Args:
            card: default that of the model which the weights are from, if any: its data, licence and attribution.
        """
        if card is None and self.origin is not None:
            card = self.origin.card
        what = f"{self.sample_rate} Hz" if self.sample_rate else "Arrays in [0, 1]"
        short = f"# An audiovae prior\n\n{what}, {self.kind}. Nothing else was recorded when it was saved.\n"
        saved.write(folder, self.config(), self.state_dict(), short if card is None else card)

    def push_to_hub(self, repository: str, private: bool = False, revision: str | None = None) -> str:
        """Save the model, and upload it to the Hugging Face hub; see `audiovae.hub.push`.

        Returns:
            the address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push(Path(folder), repository, list(saved.FILES), private, revision)

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    def condition(self, /, **labels: str) -> Float[Tensor, " label"]:
        """The condition of one class for every label, on the device: `prior.condition(digit="7", speaker="theo")`.

        Raises:
            ConditionError: a label is missing or unknown, or has no such class.
        """
        return self.vae.conditions.encode(**labels).to(self.device)

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        return self.vae.conditions.labels

    @property
    def kind(self) -> str:
        return type(self.vae).__name__

    @property
    def unit(self) -> str:
        return "nats per frame" if self.vae.is_density else "per frame (no density: it compares with no other model's)"

    def calibrate(self, observed: Inexact[Tensor, "segment frame freq"]) -> None:
        self.vae.calibrate(observed[counted_frames(self.vae, observed)])

    def loss(
        self, observed: Inexact[Tensor, "segment frame freq"], condition: Tensor | None, objective: Objective
    ) -> Float[Tensor, 2]:
        return training_loss(self.vae, observed, condition, objective)

    def elbo(self, observed: Inexact[Tensor, "segment frame freq"], condition: Tensor | None) -> ELBO:
        """Of the frames that count, `[frame]`."""
        terms, counted = elbo(self.vae, observed, condition), counted_frames(self.vae, observed)
        return ELBO(terms.log_likelihood[counted], terms.kl[counted])

    def check(self, settings: TrainingSettings) -> None:
        if settings.scheduled_sampling and self.vae.own_past is None:
            raise TrainingError(
                "scheduled_sampling is for models that feed on past frames and can learn to do without (SRNN with "
                f"own_past), not {self.kind}"
            )
        if settings.importance_samples > 1:
            try:
                check_importance_training(self.vae)
            except ValueError as error:
                raise TrainingError(str(error)) from error
        if settings.reduction != "sum" and not self.vae.has_psd:
            raise TrainingError(f"reduction is over the bins of a frame, and {self.kind} predicts labels: leave it out")
        if settings.equaliser_db and self.vae.settings.data == "array":
            raise TrainingError("equaliser_db is of sound, and the model is one of arrays: leave it at 0")

    def warning(self, observed: Inexact[Tensor, "segment frame freq"], condition: Tensor | None) -> str | None:
        return collapse_warning(kl_per_dimension(self.vae, observed, condition)) if self.vae.has_prior else None


def check_sizes(described: Sequence[Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for sizes beyond all that the tensors have: they would fill the memory before they are told."""
    largest = max([_ANY_SIZE, *(4 * size for tensor in tensors.values() for size in tensor.shape)])
    pending = list(described)
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, int) and abs(value) > largest:
            raise ValueError(f"a size of {value}, and the tensors have none above {largest // 4}")
