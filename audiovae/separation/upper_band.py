"""What a recording holds above the highest frequency of a prior, freed of noise by what was found below."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional

from audiovae import audio
from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.files.recording import Recording
from audiovae.separation.blocks import OVERLAP_FRAMES
from audiovae.separation.sources.factors import root
from audiovae.separation.starts import quiet_track
from audiovae.settings import LARGEST_SIZE
from audiovae.stft import STFT, StreamingAnalysis, StreamingSynthesis, power

HIGHEST_HZ = 24000  # above which nothing is speech
_HOP_SECONDS = 0.016  # that of the shipped priors, for whose frames `quiet_track` was made; the window is two of them
_CHUNK_FRAMES = 256  # that are transformed at once
_CROSSING = (0.925, 0.975)  # of the prior's highest frequency: between these the resampler falls from 1 to 0
_BAND_HZ, _N_BELOW = 400.0, 6  # width of a band above; bands below, of the upper three quarters of the prior's
_TOLD_BELOW = (0.25, 0.96)
_N_UPDATES, _LEAST_SHARE, _LOUDEST = 10, 0.2, 10.0  # the last: of a band above, beside one below, for speech
_DEVIATION_DB, _DEGREES = 6.0, 3  # of Student's t, the speech around what the bands below say: it may be missed there
_LOWEST, _HIGHEST, _GRID = -3, 6, 19  # levels that are tried, in these deviations
_LASTING, _BURST = 3, 20.0  # frames that speech lasts for; power beside what lasts, of a crack that is none
_CRACKLING = (-16.0, -10.0)  # dB of the energy that is in cracks: below the first they are plosives
_FAINT, _LEAST_HEARD = 0.1, 0.4  # a quantile of the power heard beside the noise, and what it is where that is right
_SPARED = (-26.0, -18.0)  # dB of a band's energy that would be taken away: below the first nothing is
_INDEPENDENT = 0.6  # share of the bins of a band that count: neighbours overlap
_STRIDE = 3  # bins, of which one tells the quiet spectrum: enough for a band, and most of the time


class UpperBand:
    """The speech of a recording above the prior's highest frequency, up to 24 kHz.

    In bands of 400 Hz the speech there is a sum of bands of the speech below, v_tb = sum_k a_tk w_kb, the weights its
    own of each recording: fricatives follow the highest of them. So is the noise there of the noise below, whatever its
    model, and a fifth of the quiet spectrum besides. All weights are fitted to the recording by multiplicative updates;
    then every band of every frame may lie about v by itself, and its gain is the mean of s / (s + n) over the
    posterior of s. Channels share one gain. In a long file, what one stretch ends with is where the next begins.

    Three rules keep what is not known below from harm. Where a recording crackles, what is far louder than all that
    lasts for three frames around it is noise. The noise is about as loud as the faintest tenth of the frames at most.
    And a band of which little would be taken away is left as it is.

    Feed it what was found below, and take as many samples as this reaches.

    Args:
        recording: of a higher rate than its front end's, see `reaches_above`.
        blocks: its waves, `[channel, sample]`; default those of its file.
    """

    def __init__(self, recording: Recording, blocks: Iterator[audio.Wave] | None = None) -> None:
        self._info, self._front = recording.info, recording.front
        self._level = recording.level or 1.0
        rate, device = self._info.sample_rate, self._front.device
        hop_length = min(next_fast_len(max(1, round(_HOP_SECONDS * rate)), real=True), LARGEST_SIZE // 2)
        self._stft = STFT(2 * hop_length, hop_length).to(device)
        hz = torch.arange(self._stft.n_freqs, dtype=torch.float64) * rate / self._stft.n_fft
        start, end = (share * self._front.sample_rate / 2 for share in _CROSSING)
        self._first, self._last = int((hz < start).sum()), int((hz <= HIGHEST_HZ).sum())
        hz = hz[self._first : self._last]
        quarter = (hz - start).div(end - start).clamp(max=1) * (math.pi / 2)
        self._crossing = quarter.sin().square().float().to(device)
        n_bands = max(1, round(float(hz[-1] - hz[0]) / _BAND_HZ))
        self._band_of = (torch.arange(len(hz), device=device) * n_bands) // len(hz)
        in_band = functional.one_hot(self._band_of, n_bands).float()
        self._n_told = _INDEPENDENT * in_band.sum(0)
        self._mean, self._sparse_mean = (part / part.sum(0) for part in (in_band, in_band[::_STRIDE]))  # [bin, band]
        self._blocks = audio.blocks(self._info, _CHUNK_FRAMES * hop_length) if blocks is None else blocks
        self._analysis, self._synthesis = StreamingAnalysis(self._stft), StreamingSynthesis(self._stft)
        self._n_frames = self._stft.n_frames(self._info.n_samples)
        self._n_done = self._n_below = 0
        self._pending = torch.zeros(self._info.n_channels, 0, len(hz), dtype=torch.complex64, device=device)
        self._ready = np.zeros((self._info.n_channels, 0), np.float32)
        self._quiet: Tensor | None = None  # at the end of what is done
        self._weights: tuple[Tensor, Tensor] | None = None  # of the speech and the noise there

    def push(self, speech: Float[Tensor, "below freq"], noise: Float[Tensor, "below freq"], last: bool) -> None:
        """The next frames below.

        Args:
            speech: its power at unit level.
            noise: its variance.
            last: none follow.

        Raises:
            AudioError: the file cannot be read.
        """
        hop, below_hop = (
            stft.hop_length / rate
            for stft, rate in ((self._stft, self._info.sample_rate), (self._front.stft, self._front.sample_rate))
        )
        start, self._n_below = self._n_below, self._n_below + len(speech)
        end = self._n_frames if last else min(self._n_frames, math.ceil(self._n_below * below_hop / hop) + 1)
        self._analyse(end)
        x, self._pending = self._pending.tensor_split([end - self._n_done], dim=1)
        if x.shape[1]:
            times = torch.arange(self._n_done, end, dtype=torch.float64) * (hop / below_hop)
            at = (times.round().long() - start).clamp(0, len(speech) - 1).to(x.device)
            gain = self._gain(power(x).mean(0) / self._level**2, _bands_below(speech)[at], _bands_below(noise)[at])
            self._n_done = end
            self._synthesise(x * (gain[:, self._band_of] * self._crossing))
        if last:
            self._add(self._synthesis.finish(self._info.n_samples))

    def take(self, n_samples: int) -> audio.Wave:
        """The next samples, `[channel, sample]`, at the file's rate and level."""
        taken, self._ready = self._ready[:, :n_samples], self._ready[:, n_samples:]
        return taken

    def _gain(
        self,
        heard: Float[Tensor, "frame bin"],
        speech: Float[Tensor, "frame below"],
        noise: Float[Tensor, "frame below"],
    ) -> Float[Tensor, "frame band"]:
        """From 0 to 1, what makes speech of that which is heard, from the power of both and the noise below."""
        track = quiet_track(heard[:, ::_STRIDE], self._quiet)
        self._quiet = track[-1]
        heard, quiet = heard @ self._mean, track @ self._sparse_mean
        whole, crack = heard, _cracks(heard) * heard
        heard = whole - crack
        least = _LEAST_SHARE * quiet
        begin = _even((heard - quiet).clamp(min=0), speech), _even(quiet, noise)
        of_speech, of_noise = before = self._weights or begin
        for _ in range(_N_UPDATES):
            of_speech = _updated(of_speech, speech, heard, noise @ of_noise + least).clamp(max=_LOUDEST)
            of_noise = _updated(of_noise, noise, heard, speech @ of_speech + least)
        before = before if self._weights else (of_speech, of_noise)  # from these to the new ones, along a straight line
        share = (torch.arange(len(heard), device=heard.device) / OVERLAP_FRAMES).clamp(max=1).unsqueeze(-1)
        self._weights = of_speech, of_noise
        s, n = (torch.lerp(a @ w, a @ v, share) for a, w, v in zip((speech, noise), before, self._weights, strict=True))
        s = torch.where(crack > 0, torch.minimum(s, _BURST * _lasting(heard)), s)
        n = _no_louder(n + least, heard)
        return _sparing(_posterior_gain(whole, s + VARIANCE_FLOOR, n + crack, self._n_told), whole)

    def _analyse(self, n_frames: int) -> None:
        """Until so many frames of the file were seen."""
        while self._n_done + self._pending.shape[1] < n_frames:
            block = next(self._blocks, None)
            frames = self._analysis.finish() if block is None else self._analysis.push(self._on_device(block))
            self._pending = torch.cat([self._pending, frames[..., self._first : self._last]], dim=1)

    def _on_device(self, block: audio.Wave) -> Tensor:
        return torch.from_numpy(block).to(self._front.device)

    def _synthesise(self, frames: Complex[Tensor, "channel frame bin"]) -> None:
        for chunk in frames.split(_CHUNK_FRAMES, dim=1):
            self._add(self._synthesis.push(functional.pad(chunk, (self._first, self._stft.n_freqs - self._last))))

    def _add(self, wave: Float[Tensor, "channel sample"]) -> None:
        self._ready = np.concatenate([self._ready, wave.numpy(force=True)], axis=1)


def reaches_above(recording: Recording) -> bool:
    """Does the file have room for speech that its blocks lack?"""
    return recording.front.sample_rate < min(recording.info.sample_rate, 2 * HIGHEST_HZ)


def _bands_below(power: Float[Tensor, "frame freq"]) -> Float[Tensor, "frame below"]:
    start, end = (round(share * power.shape[-1]) for share in _TOLD_BELOW)
    return functional.adaptive_avg_pool1d(power[:, start : max(end, start + 1)], _N_BELOW)


def _even(power: Float[Tensor, "frame band"], below: Float[Tensor, "frame below"]) -> Float[Tensor, "below band"]:
    """Weights by which every band below tells as much of the mean."""
    return power.mean(0) / below.mean(0).clamp(min=VARIANCE_FLOOR).unsqueeze(-1) / _N_BELOW


def _updated(
    weights: Float[Tensor, "below band"],
    below: Float[Tensor, "frame below"],
    heard: Float[Tensor, "frame band"],
    rest: Float[Tensor, "frame band"],
) -> Float[Tensor, "below band"]:
    """One multiplicative update, see `ShallowSource`."""
    precision = 1 / (below @ weights + rest + VARIANCE_FLOOR)
    return weights * root(below.mT @ (heard * precision.square()), below.mT @ precision)


def _lasting(power: Float[Tensor, "frame band"]) -> Float[Tensor, "frame band"]:
    """What lasts: of all runs of three frames that hold a frame, the least power of the one where that is largest.

    Reference: the opening of J. Serra, "Image analysis and mathematical morphology", Academic Press 1982.
    """
    before = functional.pad(-power.mT, (_LASTING - 1, 0), value=-math.inf)
    least = -functional.max_pool1d(before, _LASTING, 1)  # of the run that ends here
    return functional.max_pool1d(functional.pad(least, (0, _LASTING - 1), value=-math.inf), _LASTING, 1).mT


def _cracks(heard: Float[Tensor, "frame band"]) -> Float[Tensor, "frame 1"]:
    """The share of a frame that is a crack: what is far above the power that lasts around it, where cracks are much of
    all that is heard.
    """
    power = heard.mean(1, keepdim=True)
    share = (1 - _BURST * _lasting(power) / power.clamp(min=VARIANCE_FLOOR)).clamp(min=0)
    return share * _between(_CRACKLING, (share * power).sum() / power.sum().clamp(min=VARIANCE_FLOOR))


def _between(decibels: tuple[float, float], share: Tensor) -> Tensor:
    """From 0, for a share of energy of the first number of dB, to 1 for the second."""
    least, most = decibels
    return ((10 * torch.log10(share.clamp(min=VARIANCE_FLOOR)) - least) / (most - least)).clamp(0, 1)


def _no_louder(noise: Float[Tensor, "frame band"], heard: Float[Tensor, "frame band"]) -> Float[Tensor, "frame band"]:
    """The noise, turned down in bands where it is far above what is heard in a tenth of the frames: pauses are noise
    alone. Digital silence tells nothing.
    """
    beside = torch.where(heard > VARIANCE_FLOOR, heard / noise.clamp(min=VARIANCE_FLOOR), torch.nan)
    return noise * (beside.nanquantile(_FAINT, 0) / _LEAST_HEARD).nan_to_num(1.0).clamp(max=1)


def _sparing(gain: Float[Tensor, "frame band"], heard: Float[Tensor, "frame band"]) -> Float[Tensor, "frame band"]:
    """The gain, nearer to 1 in bands where it takes little away: there it could do more harm than good."""
    taken = ((1 - gain).square() * heard).sum(0) / heard.sum(0).clamp(min=VARIANCE_FLOOR)
    return 1 - _between(_SPARED, taken) * (1 - gain)


def _posterior_gain(
    heard: Float[Tensor, "frame band"],
    speech: Float[Tensor, "frame band"],
    noise: Float[Tensor, "frame band"],
    n_told: Float[Tensor, " band"],
) -> Float[Tensor, "frame band"]:
    """The mean of s / (s + n) over the posterior of s: its log by Student's t around that of `speech`, the power heard
    about Gamma(n_told, (s + n) / n_told).
    """
    places = torch.linspace(_LOWEST, _HIGHEST, _GRID, device=heard.device)[:, None, None]
    level = speech * 10 ** (places * _DEVIATION_DB / 10)
    variance = level + noise
    misfit = n_told * (torch.log(variance) + heard / variance)
    misfit += (_DEGREES + 1) / 2 * torch.log1p(places.square() / _DEGREES)
    return (torch.softmax(-misfit, 0) * level / variance).sum(0)
