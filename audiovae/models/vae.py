"""The contract of a variational autoencoder on the power spectrogram."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution


@dataclass(frozen=True)
class Inference:
    """What an encoder says of a spectrogram.

    Attributes:
        latents: one reparameterised path z ~ q(z | x), `[..., frame, latent]`.
        posterior: q(z_t | ...) along that path, batch `[..., frame]`, event `[latent]`.
        prior: p(z_t | ...) along that path, of the same shape (or one that broadcasts to it).
    """

    latents: Float[Tensor, "*batch frame latent"]
    posterior: Distribution
    prior: Distribution


class VAE(nn.Module, ABC):
    """p(x, z) = p(x | z) p(z) with the amortised posterior q(z | x), x being an STFT at unit level.

    Encoders take the power |x|^2, which is all that a separator has of a source.

    Attributes:
        n_freqs: number of frequency bins.
        latent_dim: number of latent dimensions per frame.
        settings: the dataclass that the model was built from, which its saved config holds.
        needs_past: does p(x_t | ...) see past x? Such a model cannot be plugged into a separator.
    """

    n_freqs: int
    latent_dim: int
    settings: Any
    needs_past: bool

    @abstractmethod
    def calibrate(self, power: Float[Tensor, "frame freq"]) -> None:
        """Set constants that come from data, such as the mean spectrum, before training."""

    @abstractmethod
    def infer(self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None) -> Inference:
        """Draw one path of latents given the power of every frame."""

    @abstractmethod
    def likelihood(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        """p(x | z): batch `[..., frame]`, event `[freq]`; its `variance` is the PSD."""

    @abstractmethod
    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        """Ancestral sampling: latents of `n_frames` frames from p(z)."""
