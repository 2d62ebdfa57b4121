"""Where expectation maximisation begins: a first guess of every source's PSD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.separation.mixture import Mixture

_OVERSUBTRACTION = (
    3.0  # of the quiet spectrum, in the first guess of the speech: rather too little than noise taken for speech
)
_SMALLEST_FIRST_GAIN = 0.1
_QUANTILE, _QUANTILE_FRAMES = 0.1, 5  # of the power averaged over so many frames: what speech leaves free
_WINDOW_FRAMES, _STRIDE_FRAMES = 256, 64  # four seconds, in which every bin is free of speech at times, a second apart


@dataclass(frozen=True)
class Beginning:
    """The first state of sources and space.

    Attributes:
        psds: of each source, as far as it is known.
        space: what the spatial model begins with; None: its own default.
    """

    psds: Sequence[Float[Tensor, "recording frame freq"]]
    space: Any = None


Start = Callable[[Mixture], Beginning]


def quiet_start(mixture: Mixture) -> Beginning:
    """Speech and noise: the noise is the quiet spectrum, followed over time; the speech what spectral subtraction
    leaves.
    """
    quiet = torch.full_like(mixture.power, VARIANCE_FLOOR)
    for i, (power, inside, state) in enumerate(zip(mixture.power, mixture.inside, mixture.states, strict=True)):
        n_frames = int(inside.sum())
        first = state[1] if state else None
        quiet[i, :n_frames] = quiet_track(power[:n_frames], None if first is None else first + VARIANCE_FLOOR)
        quiet[i, n_frames:] = quiet[i, n_frames - 1]
    gain = 1 - _OVERSUBTRACTION * quiet / mixture.power.clamp(min=1e-12)
    return Beginning([mixture.power * gain.clamp(min=_SMALLEST_FIRST_GAIN).square(), quiet])


def even_start(n_sources: int) -> Start:
    """Every source has the same share of the mean power of its recording: they part by their random numbers and in
    space.
    """

    def start(mixture: Mixture) -> Beginning:
        mean = mixture.mean_over_frames(mixture.power.movedim(-1, 0)).mT / n_sources + VARIANCE_FLOOR
        return Beginning([mean.unsqueeze(1).expand_as(mixture.power)] * n_sources)

    return start


def quiet_track(
    power: Float[Tensor, "frame freq"], first: Float[Tensor, " freq"] | None = None
) -> Float[Tensor, "frame freq"]:
    """The quiet spectrum of windows of four seconds, and between their centres along a straight line.

    Args:
        first: the spectrum at the beginning, where that is known.
    """
    n_frames = len(power)
    centres = list(range(0, n_frames + _STRIDE_FRAMES - 1, _STRIDE_FRAMES))
    starts = [max(0, min(centre - _WINDOW_FRAMES // 2, n_frames - _WINDOW_FRAMES)) for centre in centres]
    of_window = {start: quiet_spectrum(power[start : start + _WINDOW_FRAMES]) for start in set(starts)}
    spectra = torch.stack([of_window[start] for start in starts])
    if first is not None:
        spectra[0] = first
    if len(spectra) == 1:
        return spectra.expand(n_frames, -1)
    place = torch.arange(n_frames, device=power.device) / _STRIDE_FRAMES
    before = place.floor().long()
    share = (place - before).unsqueeze(-1).to(power.dtype)
    return torch.lerp(spectra[before], spectra[(before + 1).clamp(max=len(spectra) - 1)], share)


def quiet_spectrum(power: Float[Tensor, "frame freq"]) -> Float[Tensor, " freq"]:
    """The mean power of a recording's noise, from a low quantile over time of the power averaged over a few frames.

    The average of n independent |x|^2 of variance s is s / n times a Gamma(n) variable, whose quantile is divided out;
    neighbouring frames overlap, and count as half.

    Reference: R. Martin, "Noise power spectral density estimation based on optimal smoothing and minimum statistics",
        IEEE Trans. SAP 9(5), 2001 (the idea).
    """
    from scipy.stats import gamma

    reach = _QUANTILE_FRAMES // 2
    padded = functional.pad(power.mT.unsqueeze(1), (reach, reach), mode="replicate")  # [freq, 1, frame]
    smooth = functional.avg_pool1d(padded, _QUANTILE_FRAMES, 1).squeeze(1)
    n = _QUANTILE_FRAMES / 2
    return torch.quantile(smooth, _QUANTILE, dim=-1) / float(gamma.ppf(_QUANTILE, n, scale=1 / n)) + VARIANCE_FLOOR
