"""The models: each a `VAE`, one a file, found by the name that a saved model's config carries."""

from typing import Any

from audiovae.models.frame_vae import FrameVAE
from audiovae.models.vae import VAE, Inference
from audiovae.settings import FrameVAESettings

# Class and settings by class name. A new model costs one file and one line here.
MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "FrameVAE": (FrameVAE, FrameVAESettings),
}

__all__ = ["MODELS", "VAE", "FrameVAE", "Inference"]
