"""The contract of a variational autoencoder on the power spectrogram."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.models.conditions import Conditions
from audiovae.models.latents import LatentFamily
from audiovae.settings import ModelSettings

EVERYTHING = 2**40  # a context beyond any file


@dataclass(frozen=True)
class Inference:
    """What an encoder says of a spectrogram: one path of latents, and the distributions along it.

    A model with a latent vector for the whole sequence holds that in the last coordinates of `latents`, the same in every
    frame, and its distributions apart; `posterior` and `prior` then are those of the other coordinates.

    Attributes:
        latents: one path z ~ q(z | x), reparameterised, `[..., frame, latent]`.
        posterior: q(z_t | ...) along that path, batch `[..., frame]`, event `[latent]`.
        prior: p(z_t | ...) along that path, of the same shape (or one that broadcasts to it).
        sequence_posterior, sequence_prior: of the vector of the whole sequence, batch `[...]`, event `[latent]`.
    """

    latents: Float[Tensor, "*batch frame latent"]
    posterior: Distribution
    prior: Distribution
    sequence_posterior: Distribution | None = None
    sequence_prior: Distribution | None = None

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*samples_and_batch frame latent"]:
        """Latents drawn anew, each frame from its posterior along this path."""
        drawn = self.posterior.rsample(torch.Size(sample_shape))
        if self.sequence_posterior is None:
            return drawn
        return with_sequence(drawn, self.sequence_posterior.rsample(torch.Size(sample_shape)))


def with_sequence(
    latents: Float[Tensor, "*batch frame latent"], sequence: Float[Tensor, "*batch sequence"]
) -> Float[Tensor, "*batch frame both"]:
    """The latents of every frame, followed by those of the whole sequence."""
    return torch.cat([latents, sequence.unsqueeze(-2).expand(*latents.shape[:-1], -1)], dim=-1)


class VAE(nn.Module, ABC):
    """p(x, z) = p(x | z) p(z) with the amortised posterior q(z | x), x being an STFT at unit level.

    Encoders take the power |x|^2, which is all that a separator has of a source. Leading dimensions are free: one sequence
    `[frame, freq]` is as good as a batch of them.

    Attributes:
        n_freqs: number of frequency bins.
        latent_dim: width of a frame's latents, those of the whole sequence included.
        settings: the dataclass that the model was built from, which its saved config holds.
        latents: their family.
        conditions: the labels y that condition the model; empty for most.
        needs_past: does p(x_t | ...) see past x? Such a model cannot be plugged into a separator.
        frames_are_independent: do frames factorise, given x in the posterior and always in prior and likelihood? Their
            importance weights then are per frame, else per sequence.
        factorised_posterior: is q(z | x) a product of factors none of which depends on what another one drew?
        context: how many frames to each side a frame's result may depend on; what lies further away makes no difference
            (or, in a recurrence, next to none). EVERYTHING: a sequence must be seen at once.
        lookahead: frames after its own that a frame's posterior, given x, or its PSD, given z, depends on.
        longest: frames of the longest sequence that the model takes; None: any.
        predicts: what the likelihood is of: the "sound", or its "label".
        own_past: share of the frames that see the model's own past predictions while it trains; see `needs_past`.
    """

    n_freqs: int
    latent_dim: int
    settings: ModelSettings
    latents: LatentFamily
    conditions: Conditions
    needs_past: bool = False
    frames_are_independent: bool = False
    factorised_posterior: bool = True
    context: int = 0
    lookahead: int = 0
    longest: int | None = None
    predicts: str = "sound"
    own_past: float | None = None

    @property
    def is_density(self) -> bool:
        """Is the likelihood a density of the complex STFT, so that bounds in nats compare with those of other models?"""
        return self.predicts == "sound" and self.settings.likelihood in ("complex-gaussian", "complex-student-t")

    @abstractmethod
    def calibrate(self, power: Float[Tensor, "frame freq"]) -> None:
        """Set constants that come from data, such as the mean spectrum, before training."""

    @abstractmethod
    def infer(self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False) -> Inference:
        """Draw one path of latents given the power of every frame.

        Args:
            condition: labels, `[..., label]` or `[..., frame, label]`, see `Conditions`.
            mean: follow the centre of every posterior instead of a sample of it.
        """

    @abstractmethod
    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        """p(z_t | z_{<t}) (for some, given past x too) along a path of latents: batch `[..., frame]`, event `[latent]`."""

    @abstractmethod
    def likelihood(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        """p(x | z): batch `[..., frame]`, event `[freq]`; its `variance` is the PSD.

        Args:
            past: power of the true x, of which frame t sees what is before t: teacher forcing. Without it a model that
                needs the past runs freely, on its own predictions. Others ignore it.
        """

    @abstractmethod
    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        """Ancestral sampling: latents of `n_frames` frames from p(z)."""
