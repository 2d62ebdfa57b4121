"""Pictures of spectrograms, latents and their information."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

RANGE_DB = 80.0  # below the loudest bin: black


def decibels(powers: list[Float[Tensor, "frame freq"]]) -> list[NDArray[np.float64]]:
    """Powers in dB below the loudest bin of all of them, at least -80."""
    loudest = max(float(power.max()) for power in powers) or 1.0
    floor = 10 ** (-RANGE_DB / 10)
    return [10 * torch.log10((power / loudest).clamp(min=floor)).double().numpy(force=True) for power in powers]


def decibel_image(powers: list[Float[Tensor, "frame freq"]]) -> NDArray[np.uint8]:
    """Spectrograms one above the other on one scale, `[3, height, width]`, low frequencies at the bottom."""
    from matplotlib import colormaps

    stacked = np.concatenate([image.T[::-1] for image in decibels(powers)])
    colours = colormaps["magma"](1 + stacked / RANGE_DB)[..., :3]
    return (255 * colours).astype(np.uint8).transpose(2, 0, 1)
