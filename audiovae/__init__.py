"""Audio VAEs: train a prior on recordings alone, then encode, resynthesise and score sound with it.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiovae.corpora.packed import PackedCorpus as PackedCorpus
    from audiovae.corpora.prepare import prepare as prepare
    from audiovae.distributions import ComplexNormal as ComplexNormal
    from audiovae.distributions import ComplexStudentT as ComplexStudentT
    from audiovae.distributions import LogDirichlet as LogDirichlet
    from audiovae.distributions import PowerSpherical as PowerSpherical
    from audiovae.distributions import SphereUniform as SphereUniform
    from audiovae.distributions import VonMisesFisher as VonMisesFisher
    from audiovae.models import DKF as DKF
    from audiovae.models import DSAE as DSAE
    from audiovae.models import RVAE as RVAE
    from audiovae.models import SRNN as SRNN
    from audiovae.models import STORN as STORN
    from audiovae.models import VAE as VAE
    from audiovae.models import VRNN as VRNN
    from audiovae.models import Autoencoder as Autoencoder
    from audiovae.models import Conditions as Conditions
    from audiovae.models import ContextVAE as ContextVAE
    from audiovae.models import DynamicVAE as DynamicVAE
    from audiovae.models import FrameVAE as FrameVAE
    from audiovae.models import Inference as Inference
    from audiovae.models import LabelVAE as LabelVAE
    from audiovae.models import SequenceVAE as SequenceVAE
    from audiovae.objectives import ELBO as ELBO
    from audiovae.objectives import elbo as elbo
    from audiovae.objectives import importance_weighted_bound as importance_weighted_bound
    from audiovae.objectives import label_log_probs as label_log_probs
    from audiovae.prior import AudioVAE as AudioVAE
    from audiovae.prior import Latents as Latents
    from audiovae.settings import AutoencoderSettings as AutoencoderSettings
    from audiovae.settings import ContextVAESettings as ContextVAESettings
    from audiovae.settings import DKFSettings as DKFSettings
    from audiovae.settings import DSAESettings as DSAESettings
    from audiovae.settings import DynamicVAESettings as DynamicVAESettings
    from audiovae.settings import FrameVAESettings as FrameVAESettings
    from audiovae.settings import LabelVAESettings as LabelVAESettings
    from audiovae.settings import PrepareSettings as PrepareSettings
    from audiovae.settings import RVAESettings as RVAESettings
    from audiovae.settings import SequenceVAESettings as SequenceVAESettings
    from audiovae.settings import SRNNSettings as SRNNSettings
    from audiovae.settings import STFTSettings as STFTSettings
    from audiovae.settings import STORNSettings as STORNSettings
    from audiovae.settings import TrainingSettings as TrainingSettings
    from audiovae.settings import VRNNSettings as VRNNSettings
    from audiovae.stft import STFT as STFT
    from audiovae.training.loop import fit as fit

_NAMES = {
    "corpora.packed": (
        "PackedCorpus",
    ),
    "corpora.prepare": (
        "prepare",
    ),
    "distributions": (
        "ComplexNormal", "ComplexStudentT", "LogDirichlet", "PowerSpherical", "SphereUniform", "VonMisesFisher",
    ),
    "models": (
        "VAE", "Autoencoder", "Conditions", "ContextVAE", "DKF", "DSAE", "DynamicVAE", "FrameVAE", "Inference", "LabelVAE", "RVAE",
        "SRNN", "STORN", "SequenceVAE", "VRNN",
    ),
    "objectives": (
        "ELBO", "elbo", "importance_weighted_bound", "label_log_probs",
    ),
    "prior": (
        "AudioVAE", "Latents",
    ),
    "settings": (
        "AutoencoderSettings", "ContextVAESettings", "DKFSettings", "DSAESettings", "DynamicVAESettings", "FrameVAESettings",
        "LabelVAESettings", "PrepareSettings", "RVAESettings", "SRNNSettings", "STFTSettings", "STORNSettings", "SequenceVAESettings",
        "TrainingSettings", "VRNNSettings",
    ),
    "stft": (
        "STFT",
    ),
    "training.loop": (
        "fit",
    ),
}  # fmt: skip

_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'audiovae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"audiovae.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
