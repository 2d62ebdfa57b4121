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
    from audiovae.models import VAE as VAE
    from audiovae.models import FrameVAE as FrameVAE
    from audiovae.objectives import ELBO as ELBO
    from audiovae.objectives import elbo as elbo
    from audiovae.prior import AudioVAE as AudioVAE
    from audiovae.prior import Latents as Latents
    from audiovae.settings import FrameVAESettings as FrameVAESettings
    from audiovae.settings import PrepareSettings as PrepareSettings
    from audiovae.settings import STFTSettings as STFTSettings
    from audiovae.settings import TrainingSettings as TrainingSettings
    from audiovae.stft import STFT as STFT
    from audiovae.training.loop import fit as fit

_HOMES = {
    "AudioVAE": "prior", "ComplexNormal": "distributions", "ELBO": "objectives", "FrameVAE": "models", "FrameVAESettings": "settings",
    "Latents": "prior", "PackedCorpus": "corpora.packed", "PrepareSettings": "settings", "STFT": "stft", "STFTSettings": "settings",
    "TrainingSettings": "settings", "VAE": "models", "elbo": "objectives", "fit": "training.loop", "prepare": "corpora.prepare",
}  # fmt: skip

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'audiovae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"audiovae.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
