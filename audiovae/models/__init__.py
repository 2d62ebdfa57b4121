"""The models: each a `VAE`, one a file, found by the name that a saved model's config carries."""

from typing import Any

import torch

from audiovae.models.autoencoder import Autoencoder
from audiovae.models.conditions import Conditions
from audiovae.models.context_vae import ContextVAE
from audiovae.models.dkf import DKF
from audiovae.models.dsae import DSAE
from audiovae.models.dynamic_vae import DynamicVAE
from audiovae.models.frame_vae import FrameVAE
from audiovae.models.label_vae import LabelVAE
from audiovae.models.rvae import RVAE
from audiovae.models.sequence_vae import SequenceVAE
from audiovae.models.srnn import SRNN
from audiovae.models.storn import STORN
from audiovae.models.vae import VAE, Factor, Inference
from audiovae.models.vrnn import VRNN
from audiovae.settings import MODEL_SETTINGS, ModelSettings

# Class and settings by class name. A new model costs one file, its settings, and its name here.
MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    model.__name__: (model, MODEL_SETTINGS[model.__name__])
    for model in (
        FrameVAE,
        Autoencoder,
        ContextVAE,
        DynamicVAE,
        SequenceVAE,
        LabelVAE,
        RVAE,
        DKF,
        DSAE,
        STORN,
        VRNN,
        SRNN,
    )
}

_MOST_WEIGHTS = 2**28  # a gigabyte


def build(kind: str, n_freqs: int, settings: ModelSettings) -> Any:
    """An untrained model.

    Raises:
        ValueError: sizes that make no network, or one of more than 2^28 weights.
    """
    model = MODELS[kind][0]
    with torch.device("meta"):  # counts and allocates nothing
        n_weights = sum(weight.numel() for weight in model(n_freqs, settings).parameters())
    if n_weights > _MOST_WEIGHTS:
        raise ValueError(
            f"a {kind} of these sizes has {n_weights / 1e6:.0f} million weights, more than fit; choose less"
        )
    return model(n_freqs, settings)


__all__ = ["MODELS", "VAE", "Conditions", "Factor", "Inference", "build", *MODELS]
