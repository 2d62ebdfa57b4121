"""ArrayVAE: a VAE of arrays in [0, 1], images or scaled spectrograms, with no STFT, level or rate around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.errors import AudiovaeError, TrainingError
from audiovae.models import VAE, Inference, build
from audiovae.objectives import counted_frames, elbo, importance_weighted_bound, kl_by_dimension
from audiovae.settings import settings_from_config, settings_to_config
from audiovae.trainable import Equaliser, Illustration, TrainableVAE
from audiovae.waves import Array, like


class ArrayVAE(TrainableVAE):
    """A VAE, conditional VAE or autoencoder of arrays `[..., frame, freq]` in [0, 1]: what is trained, saved and used.

    An image is one frame of all its pixels. Arrays go to the model as they are, tensors on its device or NumPy arrays,
    which are answered with arrays.

    Args:
        vae: a model whose settings have `data="array"`.

    Raises:
        ValueError: a model of sound.
    """

    sample_rate = 0

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        if vae.settings.data != "array":
            raise ValueError("an ArrayVAE holds a model of arrays: give its settings data='array'")
        self.vae = vae

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device | None = None) -> ArrayVAE:
        """Load a saved model from its folder, ready for inference: see `AudioVAE.from_pretrained`.

        Raises:
            ModelError: no such model, one of sound, or its files are damaged, incomplete or from a newer version.
        """
        return cast(ArrayVAE, cls._load(path, device))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ArrayVAE:
        if "stft" in config:
            raise ValueError("it is a model of sound: AudioVAE.from_pretrained loads it")
        kind = config["vae"]["type"]
        return cls(build(kind, config["n_freqs"], settings_from_config(kind, config["vae"]["settings"])))

    def config(self) -> dict[str, Any]:
        return {
            "n_freqs": self.vae.n_freqs,
            "vae": {"type": self.kind, "settings": settings_to_config(self.vae.settings)},
        }

    def encode(self, x: Float[Tensor | np.ndarray, "*batch frame freq"], condition: Tensor | None = None) -> Inference:
        """Infer the posterior of every frame, along the path of its centres: tensors, whatever x is.

        Raises:
            ValueError: an array of another width, or with numbers outside [0, 1].
        """
        return self.vae.infer(self._tensor(x), condition, mean=True)

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None
    ) -> Float[Tensor, "*batch frame freq"]:
        """The mean of p(x | z).

        Raises:
            AudiovaeError: the model gives labels, not arrays.
        """
        if not self.vae.has_psd:
            raise AudiovaeError(f"{self.kind} predicts labels: it decodes no array")
        return self.vae.likelihood(latents, condition).mean

    def reconstruct(
        self, x: Float[Array, "*batch frame freq"], condition: Tensor | None = None
    ) -> Float[Array, "*batch frame freq"]:
        """Encode and decode: the mean of p(x | z) at the posterior's centre.

        Raises:
            ValueError: see `encode`.
            AudiovaeError: see `decode`.
        """
        return like(self.decode(self.encode(x, condition).latents, condition), x)

    def log_likelihood(
        self, x: Float[Array, "*batch frame freq"], n_samples: int = 1, condition: Tensor | None = None
    ) -> Float[Array, "*batch frame"]:
        """The ELBO of every frame in nats, or with more samples the importance-weighted bound.

        It bounds log p(x) as the likelihood scores x: for a Bernoulli that is a probability of binary arrays alone.

        Raises:
            ValueError: see `encode`.
        """
        tensor = self._tensor(x)
        if n_samples == 1:
            return like(elbo(self.vae, tensor, condition).bound, x)
        return like(importance_weighted_bound(self.vae, tensor, n_samples, condition), x)

    def sample(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame freq"]:
        """The mean of p(x | z) in `n_frames` frames whose latents are drawn from the prior."""
        if n_frames < 1:
            raise ValueError(f"n_frames must be at least 1, got {n_frames}")
        return self.decode(self.vae.generate(n_frames, condition), condition)

    def _tensor(self, x: Float[Tensor | np.ndarray, "*batch frame freq"]) -> Float[Tensor, "*batch frame freq"]:
        weight = next(self.vae.parameters())
        x = torch.as_tensor(x).to(weight.device, weight.dtype)
        if x.shape[-1] != self.vae.n_freqs:
            raise ValueError(f"the model expects frames of {self.vae.n_freqs} numbers, got shape {list(x.shape)}")
        if not ((x >= 0) & (x <= 1)).all():  # NaN neither
            raise ValueError(f"arrays must be in [0, 1], got {float(x.min()):.3g} to {float(x.max()):.3g}; scale them")
        return x

    # Training, see `Trainable`

    def segment_samples(self, n_frames: int) -> int:
        return n_frames

    def observe(
        self, waves: Float[Tensor, "segment frame freq"], equaliser: Equaliser | None = None
    ) -> Float[Tensor, "segment frame freq"]:
        """The arrays as they are: the front end is the identity."""
        if waves.shape[-1] != self.vae.n_freqs:
            raise TrainingError(f"the corpus has frames of {waves.shape[-1]} numbers, the model of {self.vae.n_freqs}")
        return waves.to(next(self.vae.parameters()).dtype)

    def illustrate(self, wave: Float[Tensor, "frame freq"], condition: Tensor | None) -> Illustration:
        if not self.vae.has_prior:
            return Illustration({}, {}, None)
        wave = wave[: self.vae.longest]
        return Illustration({}, {}, kl_by_dimension(self.encode(wave, condition), counted_frames(self.vae, wave)))
