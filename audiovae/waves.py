"""Waves as they are given: tensors, or NumPy arrays, which are answered with arrays."""

from __future__ import annotations

import importlib.util
import logging
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.audio import resample

Array = TypeVar("Array", Tensor, np.ndarray)


def tensor_of(wave: Tensor | np.ndarray, device: torch.device | None = None) -> Tensor:
    """A tensor as it is; of an array a copy in single precision.

    Args:
        device: of the copy.

    Raises:
        ValueError: a sample is NaN or infinite.
    """
    if isinstance(wave, np.ndarray):
        wave = torch.from_numpy(np.array(wave, np.float32)).to(device)
    finite = wave.isfinite()
    if not finite.all():
        places = (~finite).nonzero()
        raise ValueError(
            f"the wave holds {len(places)} samples that are NaN or infinite, the first at sample {int(places[0, -1])}; "
            "repair it or leave it out"
        )
    return wave


def recording_of(wave: Tensor | np.ndarray) -> Tensor:
    """`tensor_of` a recording, `[sample]` or `[..., channel, sample]`.

    Raises:
        ValueError: no array or tensor, or more channels than samples, as of a reader that puts them last; see
            `tensor_of`, too.
    """
    if not isinstance(wave, (Tensor, np.ndarray)):
        raise ValueError(
            f"a wave is an array or a tensor, got {type(wave).__name__}; soundfile.read makes one of a file"
        )
    if wave.ndim > 1 and wave.shape[-2] > wave.shape[-1]:
        raise ValueError(f"channels stand before the samples, and the wave has shape {list(wave.shape)}: transpose it")
    return tensor_of(wave)


def at_rate(wave: Tensor, rate: int, new_rate: int) -> Tensor:
    """A wave `[..., sample]` at another rate: see `audiovae.audio.resample`. Has no gradient.

    What lies on another device than the CPU stays there if torchaudio is installed.

    Raises:
        ValueError: a rate that is no whole number above 0.
    """
    if not (isinstance(rate, (int, np.integer)) and rate > 0):
        raise ValueError(f"the sample rate must be a whole number of Hz above 0, got {rate!r}")
    if rate == new_rate:
        return wave
    logging.getLogger("audiovae").info("a wave of %d Hz is resampled to %d Hz", rate, new_rate)
    if wave.device.type != "cpu" and importlib.util.find_spec("torchaudio") is not None:
        return resample_on_device(wave, rate, new_rate)
    return torch.from_numpy(resample(wave.float().numpy(force=True), rate, new_rate)).to(wave)


@torch.no_grad()
def resample_on_device(wave: Float[Tensor, "*batch sample"], rate: int, new_rate: int) -> Tensor:
    """`audiovae.audio.resample` by torchaudio, on the device of the wave: both are the same to -75 dB up to 0.85 of the
    lower Nyquist frequency.
    """
    from torchaudio.functional import resample as resample_tensor

    return resample_tensor(
        wave, rate, new_rate, lowpass_filter_width=64, rolloff=0.95, resampling_method="sinc_interp_kaiser"
    )


def like(result: Tensor, wave: Array) -> Array:
    """A result as what it is the result of: an array where that is one."""
    return cast(Array, result.numpy(force=True) if isinstance(wave, np.ndarray) else result)
