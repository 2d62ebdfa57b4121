"""Where expectation maximisation begins: a first guess of every source's PSD."""

from __future__ import annotations

import itertools
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
    return _track(_smooth(power), first)


def _track(smooth, first):
    sounding = _sounding(smooth)
    if sounding.all():
        return _plain_track(smooth, first)
    track = torch.empty_like(smooth)
    track[sounding] = _plain_track(smooth[sounding], first)
    track[~sounding] = _track(smooth[~sounding], None)
    return track

def _windows(n_frames):
    centres = list(range(0, n_frames + _STRIDE_FRAMES - 1, _STRIDE_FRAMES))
    return [max(0, min(centre - _WINDOW_FRAMES // 2, n_frames - _WINDOW_FRAMES)) for centre in centres]

def _sounding(smooth):
    sounding = torch.zeros(len(smooth), dtype=torch.bool)
    starts = _windows(len(smooth))
    for start in sorted(set(starts)):
        sl = slice(start, start + _WINDOW_FRAMES)
        sounding[sl] |= RULE(smooth[sl])
    return sounding

def _plain_track(smooth, first):
    n_frames = len(smooth)
    starts = _windows(n_frames)
    of_window = {start: _quiet(smooth[start : start + _WINDOW_FRAMES]) for start in set(starts)}
    spectra = torch.stack([of_window[start] for start in starts])
    if first is not None:
        spectra[0] = first
    if len(spectra) == 1:
        return spectra.expand(n_frames, -1)
    place = torch.arange(n_frames, device=smooth.device) / _STRIDE_FRAMES
    before = place.floor().long()
    share = (place - before).unsqueeze(-1).to(smooth.dtype)
    return torch.lerp(spectra[before], spectra[(before + 1).clamp(max=len(spectra) - 1)], share)

import os
X=float(os.environ.get('PX','10')); SHARE=float(os.environ.get('PSHARE','.5')); NEAR=float(os.environ.get('PNEAR','.8')); COUNT=[0,0]; GQ=float(os.environ.get('PGQ','.1'))
def RULE(smooth):
    n = max(1, smooth.shape[1] // 32)
    bands = 10*torch.log10(functional.avg_pool1d(smooth, n, n)+1e-20)
    loud = bands.mean(0); heard = loud > loud.max()-70
    bands = bands[:, heard]
    level = bands.mean(1)
    T=len(level)
    sounding = level >= level.sort(descending=True).values[min(T-1,int(SHARE*T))]
    COUNT[0]+=1
    while True:
        COUNT[1]+=1
        rest = bands[sounding]
        quiet = rest.kthvalue(max(1, round(GQ*len(rest))), 0).values
        over = bands - quiet
        k=max(1,round(NEAR*over.shape[1]))
        more = sounding | (over.kthvalue(k, 1).values > -X)
        if more.sum() == sounding.sum(): return more
        sounding = more


def quiet_spectrum(power: Float[Tensor, "frame freq"]) -> Float[Tensor, " freq"]:
    return _quiet(_smooth(power))


def _smooth(power):
    reach = _QUANTILE_FRAMES // 2
    padded = functional.pad(power.mT.unsqueeze(1), (reach, reach), mode="replicate")  # [freq, 1, frame]
    return functional.avg_pool1d(padded, _QUANTILE_FRAMES, 1).squeeze(1).mT


def _quiet(smooth):
    from scipy.stats import gamma
    n = _QUANTILE_FRAMES / 2
    return torch.quantile(smooth, _QUANTILE, dim=0) / float(gamma.ppf(_QUANTILE, n, scale=1 / n)) + VARIANCE_FLOOR
