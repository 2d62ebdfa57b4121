"""Where expectation maximisation begins: a first guess of every source's PSD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
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

_FAR_DB, _NEARLY_ALL = 10.0, 0.8  # a pause is so much quieter than the noise around it, at this share of the bands
_SURELY_SOUNDING, _SILENT_DB = 0.25, 60.0  # share of a window that is no pause, but for frames so far below its loudest
_RUN_FRAMES, _RUN_STRIDE = 96, 8  # a second and a half, in which noise may show that the windows around it pass over
_STEADY_DB, _RAISED_DB = 3.0, 6.0  # between quantiles of a run that holds noise alone; above the track around it
_N_BANDS, _HEARD_DB = 32, 70.0  # in which pauses are looked for; weaker than the loudest by more: not heard


@dataclass(frozen=True)
class Beginning:
    """The first state of sources and space.

    Attributes:
        psds: of each source, as far as it is known.
        space: what the spatial model begins with; None: its own default.
        levels: of each source in the mixture, where the PSDs are at unit level each and tell the sources apart: the
            spatial model then begins with the covariances that masks by these PSDs tell.
        latents: of each deep source, the first ones, where they are known; else its prior's encoder gives them from the
            PSD.
    """

    psds: Sequence[Float[Tensor, "recording frame freq"]]
    space: Any = None
    levels: Float[Tensor, "source recording"] | None = None
    latents: Sequence[Float[Tensor, "recording frame latent"]] = ()

    @classmethod
    def of_recordings(cls, beginnings: Sequence[Beginning]) -> Beginning:
        """Side by side, the first recording of the first one, the second of the second, and so on.

        Raises:
            ValueError: one begins with a space of its own, whose recordings cannot be told apart.
        """
        if any(beginning.space is not None for beginning in beginnings):
            raise ValueError("starts with a space of their own cannot be put side by side")
        of_sources = zip(*(beginning.psds for beginning in beginnings), strict=True)
        psds = [torch.stack([psd[i] for i, psd in enumerate(parts)]) for parts in of_sources]
        levels = [beginning.levels for beginning in beginnings]
        known = [level[:, i] for i, level in enumerate(levels) if level is not None]
        return cls(psds, levels=torch.stack(known, 1) if known else None)


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

    Pauses, which say nothing of the noise around them, have a quiet spectrum of their own.

    Args:
        first: the spectrum at the beginning, where that is known; only for frames that are about as loud.
    """
    n_frames, averages = len(power), _averaged(power)
    centres = range(0, n_frames + _STRIDE_FRAMES, _STRIDE_FRAMES)  # the last at or beyond the end
    starts = [max(0, min(centre - _WINDOW_FRAMES // 2, n_frames - _WINDOW_FRAMES)) for centre in centres]
    of_window = {start: _quiet_of_frames(averages[start : start + _WINDOW_FRAMES]) for start in set(starts)}
    track = torch.empty_like(averages)
    for centre, left, right in zip(centres, starts, starts[1:], strict=False):
        end = min(centre + _STRIDE_FRAMES, n_frames)
        before, after = (of_window[start][centre - start : end - start] for start in (left, right))
        if centre == 0 and first is not None:
            before = _told(before, first)
        share = torch.arange(end - centre, device=power.device, dtype=power.dtype) / _STRIDE_FRAMES
        track[centre:end] = torch.lerp(before, after, share.unsqueeze(-1))
    return _raised(track, averages)


def quiet_spectrum(power: Float[Tensor, "frame freq"]) -> Float[Tensor, " freq"]:
    """The mean power of a recording's noise, from a low quantile over time of the power averaged over a few frames.

    The average of n independent |x|^2 of variance s is s / n times a Gamma(n) variable, whose quantile is divided out;
    neighbouring frames overlap, and count as half.

    Reference: R. Martin, "Noise power spectral density estimation based on optimal smoothing and minimum statistics",
        IEEE Trans. SAP 9(5), 2001 (the idea).
    """
    return _quiet_of_averages(_averaged(power))


def _quiet_of_frames(averages: Float[Tensor, "frame freq"]) -> Float[Tensor, "frame freq"]:
    """The quiet spectrum of a window at its frames: that of all but the pauses, and at these their own."""
    pause = _pauses(averages)
    quiet = _quiet_of_averages(averages[~pause]).repeat(len(averages), 1)
    if pause.any():
        quiet[pause] = _quiet_of_frames(averages[pause])
    return quiet


def _raised(track: Float[Tensor, "frame freq"], averages: Float[Tensor, "frame freq"]) -> Float[Tensor, "frame freq"]:
    """The track with noise that begins or ends within its windows, as under speech that is clean elsewhere.

    Noise alone is steady for a good part of a run in a band: low quantiles of its level lie near each other, and those
    of speech do not. Where such bands are far above the track, and as a whole above all of it, they are raised.
    """
    n = min(_RUN_FRAMES, len(track))
    width = max(1, track.shape[-1] // _N_BANDS)
    runs = functional.avg_pool1d(averages, width, width).unfold(0, n, _RUN_STRIDE)  # [run, band, frame]
    around = functional.avg_pool1d(track, width, width).unfold(0, n, _RUN_STRIDE).mean(-1)
    lowest = runs.topk(1 + int(0.2 * (n - 1)), largest=False).values
    low, level, high = lowest[..., int(0.05 * (n - 1))], lowest[..., int(_QUANTILE * (n - 1))], lowest[..., -1]
    found = (high < low * 10 ** (_STEADY_DB / 10)) & (level > around * 10 ** (_RAISED_DB / 10))
    found &= ((level * found).sum(-1) > around.sum(-1) * 10 ** (_RAISED_DB / 10)).unsqueeze(-1)
    raised = track.clone()
    for i in found.any(-1).nonzero().flatten().tolist():
        run = slice(i * _RUN_STRIDE, i * _RUN_STRIDE + n)
        where = functional.pad(found[i].repeat_interleave(width), (0, track.shape[-1] - width * found.shape[-1]))
        quiet = _quiet_of_averages(averages[run])
        raised[run] = torch.where(where, torch.maximum(raised[run], quiet), raised[run])
    return raised


def _told(quiet: Float[Tensor, "frame freq"], first: Float[Tensor, " freq"]) -> Float[Tensor, "frame freq"]:
    """The first spectrum, but where one of the two is a pause's beside the other."""
    bands = _in_bands(torch.cat([first.unsqueeze(0), quiet]))
    differs = _far_below(bands[1:], bands[:1]) | _far_below(bands[:1], bands[1:])
    return torch.where(differs.unsqueeze(-1), quiet, first)


def _pauses(averages: Float[Tensor, "frame freq"]) -> Bool[Tensor, " frame"]:
    """Which frames are far quieter than the quietest of the others, at nearly all frequencies?

    The loudest quarter of those within 60 dB of the loudest is none. A frame joins those if it is not far below their
    own low quantile, and so on until none joins. Down from speech to the noise in its gaps every level occurs, so that
    these join; nothing leads from noise down to a pause.
    """
    bands = _in_bands(averages)
    level = bands.mean(-1)
    sounding = level >= torch.quantile(level[level >= level.max() - _SILENT_DB], 1 - _SURELY_SOUNDING)
    while True:
        others = bands[sounding]
        low = others.kthvalue(1 + int(_QUANTILE * (len(others) - 1)), 0).values
        joined = sounding | ~_far_below(bands, low)
        if torch.equal(joined, sounding):
            return ~sounding
        sounding = joined


def _in_bands(power: Float[Tensor, "frame freq"]) -> Float[Tensor, "frame band"]:
    """The level of about 32 bands in dB, without those that are hardly ever heard, such as above what was sampled."""
    width = max(1, power.shape[-1] // _N_BANDS)
    bands = 10 * torch.log10(functional.avg_pool1d(power, width, width) + VARIANCE_FLOOR)
    mean = bands.mean(0)
    return bands[:, mean > mean.max() - _HEARD_DB]


def _far_below(bands: Float[Tensor, "_ band"], low: Float[Tensor, "*_ band"]) -> Bool[Tensor, " frame"]:
    """In nearly all bands, and in their sum: where the loudest go on, the rest is no measure of the noise's pauses."""
    as_a_whole = 10 * torch.log10((10 ** (bands / 10)).sum(-1) / (10 ** (low / 10)).sum(-1))
    return ((bands < low - _FAR_DB).double().mean(-1) >= _NEARLY_ALL) & (as_a_whole < -_FAR_DB)


def _averaged(power: Float[Tensor, "frame freq"]) -> Float[Tensor, "frame freq"]:
    reach = _QUANTILE_FRAMES // 2
    padded = functional.pad(power.mT.unsqueeze(1), (reach, reach), mode="replicate")  # [freq, 1, frame]
    return functional.avg_pool1d(padded, _QUANTILE_FRAMES, 1).squeeze(1).mT


def _quiet_of_averages(averages: Float[Tensor, "frame freq"]) -> Float[Tensor, " freq"]:
    from scipy.stats import gamma

    place, n = _QUANTILE * (len(averages) - 1), _QUANTILE_FRAMES / 2
    lowest = averages.mT.topk(min(len(averages), int(place) + 2), largest=False).values  # faster than torch.quantile
    quantile = torch.lerp(lowest[:, int(place)], lowest[:, -1], place - int(place))
    return quantile / float(gamma.ppf(_QUANTILE, n, scale=1 / n)) + VARIANCE_FLOOR
