"""Where a source is, seen from an array of microphones whose geometry is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from audiovae.stft import Front

_SPEED = 343.0  # of sound, in m/s
_LOWEST_HZ, _HIGHEST_HZ = 200.0, 4000.0
_ON_A_LINE = 1e-3  # of the array's extent


@dataclass(frozen=True)
class Steered:
    """How much of a source's image comes from each direction of the horizontal plane.

    Attributes:
        response: at azimuths of 0, 1, ..., 359 degrees, from -1 to 1.
        azimuth_deg: where it is largest, from the x axis towards the y axis.
        mirrored_deg: what a line of microphones cannot tell from that; None for other arrays.
    """

    response: Float[Tensor, 360]
    azimuth_deg: int
    mirrored_deg: int | None


def steered(image: Float[Tensor, "channel _"], positions: Float[np.ndarray, "channel 3"], front: Front) -> Steered:
    """Steered response power with phase transform: the mean over frequencies from 200 Hz to 4 kHz and over pairs of
    microphones of the cosine between the cross spectrum's phase and that of a plane wave from each azimuth, at the
    height of the array.

    Frequencies count by the power that the image has there.

    Args:
        image: of the source at all microphones.
        positions: of the microphones in metres.
        front: STFT and rate of the image.

    Reference: J. H. DiBiase, "A high-accuracy, low-latency technique for talker localization in reverberant
        environments using microphone arrays", PhD thesis, Brown University, 2000.
    """
    x = front.stft(image).movedim(0, -1)  # [frame, freq, channel]
    hz = torch.arange(x.shape[1], device=x.device) * front.sample_rate / front.stft.n_fft
    x = x[:, (hz >= _LOWEST_HZ) & (hz <= _HIGHEST_HZ)].to(torch.complex128)
    hz = hz[(hz >= _LOWEST_HZ) & (hz <= _HIGHEST_HZ)].double()
    cross = torch.einsum("tfm,tfn->fmn", x, x.conj())
    weight = torch.einsum("fmm->f", cross).real.sqrt()
    phase = cross / cross.abs().clamp(min=torch.finfo(torch.float64).tiny)
    first, second = torch.triu_indices(x.shape[-1], x.shape[-1], 1, device=x.device)

    places = torch.as_tensor(np.asarray(positions, np.float64), device=x.device)
    azimuth = torch.deg2rad(torch.arange(360, device=x.device, dtype=torch.float64))
    towards = torch.stack([azimuth.cos(), azimuth.sin(), torch.zeros_like(azimuth)])  # from the array to the source
    earlier = (places[first] - places[second]) @ towards / _SPEED  # seconds, [pair, azimuth]
    of_pairs = phase[:, first, second] * weight.unsqueeze(-1)
    turned = torch.exp(-2j * torch.pi * hz[:, None, None] * earlier)
    response = torch.einsum("fp,fpa->a", of_pairs, turned).real / (weight.sum() * len(first)).clamp(min=1e-12)
    best = int(response.argmax())
    return Steered(response.float().cpu(), best, _mirrored(np.asarray(positions, np.float64), best))


def _mirrored(positions: NDArray[np.float64], azimuth_deg: int) -> int | None:
    """The direction on the other side of a line of microphones."""
    flat = positions[:, :2] - positions[:, :2].mean(0)
    _, extents, axes = np.linalg.svd(flat)
    if extents[-1] > _ON_A_LINE * extents[0]:
        return None
    along = np.degrees(np.arctan2(axes[0, 1], axes[0, 0]))
    return round(2 * along - azimuth_deg) % 360
