"""How many speak: from the directions that sound comes from at a window as long as a room's reverberation."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.stft import STFT
from audiovae.waves import recording_of

_WINDOW_SECONDS = 1.024  # most of what a room adds to a speaker is then one direction of each frequency
_LOWEST_HZ, _HIGHEST_HZ = 300.0, 6000.0  # a small array is blind below, and speech is faint above
_HEARD = 1e-5  # of the loudest frequency's power
_SHARES_DB = (-15.6, -19.8)  # of the second and third direction in the power, above which they are speakers'


def count_sources(wave: Float[Tensor | np.ndarray, "channel sample"], sample_rate: int) -> int:
    """The number of sources in a recording of several microphones, from 1 to 3.

    The second (third) speaker is there if the second (third) eigenvalue of the spatial covariance is more than so many
    dB of their sum, in the mean over frequencies. The shares lie between what was found on mixtures of one, two and
    three speakers in rooms (recipes/rooms); a noise from one place counts as a source.

    Raises:
        ValueError: a single channel, a sample that is NaN or infinite, or channels that stand last.

    Reference: M. Wax, T. Kailath, "Detection of signals by information theoretic criteria", IEEE Trans. ASSP 33(2),
        1985 (eigenvalues tell the number; their criteria count reverberation as well).
    """
    wave = recording_of(wave)
    if len(wave) < 2:
        raise ValueError("the number of sources is told by several microphones, and this recording has one")
    n_fft = 4 * round(_WINDOW_SECONDS * sample_rate / 4)
    x = STFT(n_fft, n_fft // 4, "hann").to(wave)(wave).permute(2, 0, 1)  # [freq, channel, frame]
    hz = torch.arange(len(x), device=wave.device) * sample_rate / n_fft
    power = torch.linalg.eigvalsh((x @ x.mH).to(torch.complex128)).flip(-1).clamp(min=0.0)
    told = (hz > _LOWEST_HZ) & (hz < _HIGHEST_HZ) & (power[:, 0] > _HEARD * power[:, 0].max())
    if not told.any():
        return 1
    shares = power[told] / power[told].sum(-1, keepdim=True)
    of_directions = 10 * torch.log10(shares.clamp(min=torch.finfo(torch.float32).tiny)).mean(0)
    n_sources = 1
    for share_db, least_db in zip(of_directions[1:].tolist(), _SHARES_DB, strict=False):
        if share_db <= least_db:
            break
        n_sources += 1
    return n_sources
