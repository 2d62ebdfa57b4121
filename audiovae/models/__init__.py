"""The models: each a `VAE`, one a file, found by the name that a saved model's config carries."""

from typing import Any

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
from audiovae.settings import MODEL_SETTINGS

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

__all__ = ["MODELS", "VAE", "Conditions", "Factor", "Inference", *MODELS]
