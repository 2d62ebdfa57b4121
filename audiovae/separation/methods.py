"""The methods by name. Their options were chosen on mixtures of tuning speakers, see recipes/enhancement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.errors import AudiovaeError
from audiovae.prior import AudioVAE
from audiovae.separation.em import EMSettings, MakeSpatial, Separator
from audiovae.separation.filters import Filters, least_squares
from audiovae.separation.inference.e_step import EStep
from audiovae.separation.inference.markov_chain import MarkovChain
from audiovae.separation.inference.point_estimate import PointEstimate
from audiovae.separation.inference.variational import FreePosterior
from audiovae.separation.iva import image_start, iva
from audiovae.separation.sources.deep import DeepSettings, DeepSource
from audiovae.separation.sources.envelope import Envelope
from audiovae.separation.sources.floor import Floor
from audiovae.separation.sources.nmf import NMF
from audiovae.separation.sources.slow import SlowBands
from audiovae.separation.sources.source import MakeSource
from audiovae.separation.sources.stationary import Stationary
from audiovae.separation.spatial.demixing import Demixing
from audiovae.separation.spatial.full_rank import full_rank
from audiovae.separation.spatial.joint_diagonal import JointDiagonal
from audiovae.separation.starts import even_start, quiet_start
from audiovae.settings import MethodName, NoiseName, RoomMethodName
from audiovae.stft import STFT, Front

PRIOR_WEIGHT, ANNEALING = 12.0, 4.0  # the first at a hop of a quarter: see `LatentEnergy` and `EMSettings`
GAIN_DEVIATION, COLOUR_DEVIATION = 0.2, 0.6
TOLERANCE = 0.5  # nats per frame
_LONGEST_PADDING = 64  # frames; a recurrence forgets within these what follows the end of a recording

ROOM_RANK, ROOM_ITERATIONS = 8, 100


@dataclass(frozen=True)
class Method:
    """An algorithm with its options.

    Attributes:
        e_step: makes a fresh E-step.
        n_iterations: of EM, at most.
        n_m_steps: updates of the noise in each.
        prior: the shipped one that it is best with.
    """

    e_step: Callable[[], EStep]
    n_iterations: int
    n_m_steps: int = 3
    prior: str = "speech-16k-separation"


METHODS: dict[MethodName, Method] = {
    "peem": Method(partial(PointEstimate, step=0.25, momentum=0.82, refresh=8), 13),
    "vem": Method(partial(FreePosterior, deviation=0.03), 20),
    "mcem": Method(MarkovChain, 30),
    "langevin": Method(partial(MarkovChain, "langevin", n_burn=0, n_keep=4, step=0.006), 20),
    "mala": Method(partial(MarkovChain, "mala", n_burn=4, n_keep=4, step=0.01), 20),
    "fast": Method(partial(PointEstimate, step=0.5, momentum=0.6, refresh=8), 4, prior="speech-16k-fast"),
}

NOISES: dict[NoiseName, Callable[[int, int], MakeSource]] = {
    "slow": lambda rank, n_steps: partial(SlowBands, rank=rank, n_steps=n_steps),
    "nmf": lambda rank, n_steps: partial(NMF, rank=rank, n_steps=n_steps),
    "stationary": lambda rank, n_steps: partial(Stationary, n_steps=n_steps),
}


def enhancer(
    prior: AudioVAE,
    method: MethodName = "peem",
    noise: NoiseName = "slow",
    rank: int = 8,
    condition: Tensor | None = None,
    mixed_precision: bool | None = None,
) -> Separator:
    """Speech out of noise: one microphone, a deep source of clean speech and a model of noise.

    Args:
        prior: of clean speech.
        method: one of METHODS.
        noise: one of NOISES: bands that change slowly, NMF, or one spectrum for the whole recording.
        rank: components of a slow or NMF noise.
        condition: labels of the speech, for a conditional prior: `[label]`, or `[candidate, label]` to choose from;
            default all.
        mixed_precision: see `DeepSettings`; None: where the processor multiplies bfloat16.

    Raises:
        ValueError: an unknown name.
        AudiovaeError: a prior that cannot be used so.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
    chosen = METHODS[method]
    mixed = multiplies_bfloat16(prior.device) if mixed_precision is None else mixed_precision
    speech = DeepSource.of(
        prior, chosen.e_step, DeepSettings(PRIOR_WEIGHT, GAIN_DEVIATION, COLOUR_DEVIATION, mixed), condition
    )
    settings = EMSettings(chosen.n_iterations, ANNEALING, TOLERANCE, min(prior.vae.lookahead, _LONGEST_PADDING))
    return Separator(prior.front, [speech, NOISES[noise](rank, chosen.n_m_steps)], [quiet_start], settings=settings)


@torch.no_grad()
def enhance(
    wave: Float[Tensor, "*channel sample"], sample_rate: int, method: MethodName = "peem", seed: int = 0
) -> Float[Tensor, "*channel sample"]:
    """The speech of a noisy wave by a method and its own shipped prior; channels share one gain.

    It comes out as of `enhance_file`: an offset and loud rumble are no speech, see `AudioVAE.analyse`.

    Raises:
        AudiovaeError: another rate than the prior's.
    """
    prior = AudioVAE.from_pretrained(METHODS[method].prior, wave.device)
    if sample_rate != prior.sample_rate:
        raise AudiovaeError(f"the prior hears {prior.sample_rate} Hz, and the wave has {sample_rate} Hz; resample it")
    channels = torch.atleast_2d(wave)
    spectrogram, level = prior.analyse(channels, channels=True)
    (found,) = enhancer(prior, method)([spectrogram.movedim(0, -1)], [seed], [float(level[0] > 0)])
    speech = prior.stft.inverse(found.images[0].movedim(-1, 0), wave.shape[-1]) * level.unsqueeze(-1)
    return speech.reshape(wave.shape)


def fast_mnmf2(front: Front, n_sources: int, rank: int = ROOM_RANK, n_iterations: int = ROOM_ITERATIONS) -> Separator:
    """FastMNMF2: sources by NMF, covariances that one matrix diagonalises, from random numbers. Needs no prior.

    Reference: see `JointDiagonal`.
    """
    return Separator(
        front,
        [partial(NMF, rank=rank, together=True)] * n_sources,
        [even_start(n_sources)],
        partial(JointDiagonal, n_sources=n_sources),
        EMSettings(n_iterations),
    )


@dataclass(frozen=True)
class RoomMethod:
    """Sources out of a room by name: a pair of a source and a spatial model, and what begins and ends it.

    Attributes:
        spatial: makes the spatial model of so many sources, the last of which is the noise.
        source: makes each source without a prior; None: a deep one.
        settings: how long.
        starts: windows of independent vector analysis, in seconds, each a start, of which that of the lowest objective
            counts; none: sources that do not differ yet.
        filters: windows in seconds, and taps, of the least squares at the end.
        window: of the STFT of sources without a prior, in seconds.
        e_step, prior_weight: of a deep source.
        prior: the shipped one that it is best with.
    """

    spatial: Callable[[int], MakeSpatial]
    source: MakeSource | None = None
    settings: EMSettings = EMSettings(12, 2.0, spatial_steps=2, warm_up=5)
    starts: tuple[float, ...] = (0.512, 0.256)
    filters: tuple[tuple[float, int], ...] = ()
    window: float = 0.256
    e_step: Callable[[], EStep] = partial(PointEstimate, step=0.25, momentum=0.82, refresh=8)
    prior_weight: float = 18.0
    prior: str | None = None

    def least_channels(self, n_sources: int) -> int:
        """Microphones that so many sources need: a demixing matrix has as many rows."""
        return max(2, n_sources if self.starts or self.spatial is _demixing else 2)


def _joint(n: int) -> MakeSpatial:
    return partial(JointDiagonal, n_sources=n, per_frequency=True, white=(n - 1,))


def _joint_over_frequency(n: int) -> MakeSpatial:
    return partial(JointDiagonal, n_sources=n, white=(n - 1,))


def _full(n: int) -> MakeSpatial:
    return partial(full_rank, n_sources=n, white=(n - 1,))


def _demixing(n: int) -> MakeSpatial:
    return partial(Demixing, n_sources=n - 1)


ROOM_METHODS: dict[RoomMethodName, RoomMethod] = {
    "deep": RoomMethod(_joint, filters=((0.256, 3),), prior_weight=9.0, prior="speech-16k-rooms"),
    "fast": RoomMethod(
        _joint,
        settings=EMSettings(4, 2.0, spatial_steps=2, warm_up=3),
        starts=(0.512,),
        filters=((0.256, 3),),
        e_step=partial(PointEstimate, step=0.5, momentum=0.6, refresh=8),
        prior_weight=9.0,
        prior="speech-16k-rooms",
    ),
    "iva": RoomMethod(_demixing, Envelope, EMSettings(40), starts=(), window=0.512),
    "ilrma": RoomMethod(_demixing, partial(NMF, rank=2, first_steps=20), EMSettings(30)),
    "fastmnmf2": RoomMethod(_joint_over_frequency, partial(NMF, rank=8, together=True, first_steps=20), EMSettings(60)),
    "fastmnmf2-dp": RoomMethod(_joint_over_frequency, prior="speech-16k-fast"),
    "fca": RoomMethod(_full, partial(NMF, rank=8, together=True, first_steps=20), EMSettings(30)),
    "fca-dp": RoomMethod(_full, prior="speech-16k-fast"),
    "mvae": RoomMethod(_demixing, prior="speech-16k-fast"),
}


def separator(
    n_sources: int,
    method: RoomMethodName = "deep",
    prior: AudioVAE | None = None,
    sample_rate: int = 16000,
    condition: Tensor | None = None,
) -> Separator:
    """Speakers out of a room; the last source of what it finds is the noise.

    Args:
        n_sources: how many speakers there are.
        method: one of ROOM_METHODS.
        prior: of clean speech, for the deep methods.
        sample_rate: of the mixtures, for the others, in Hz.
        condition: labels of the speech, for a conditional prior: see `DeepSource`.

    Raises:
        ValueError: an unknown name, or no prior where one is needed.
        AudiovaeError: a prior that cannot be used so.
    """
    if method not in ROOM_METHODS:
        raise ValueError(f"method must be one of {', '.join(ROOM_METHODS)}, got {method!r}")
    chosen = ROOM_METHODS[method]
    if chosen.source is not None:
        n_fft = _samples(chosen.window, sample_rate)
        source, front, settings = chosen.source, Front(STFT(n_fft, n_fft // 4, "hann"), sample_rate), chosen.settings
    elif prior is None:
        raise ValueError(f"the method {method!r} needs a prior")
    else:
        deep = DeepSettings(chosen.prior_weight, GAIN_DEVIATION, mixed_precision=multiplies_bfloat16(prior.device))
        source, front = DeepSource.of(prior, chosen.e_step, deep, condition), prior.front
        settings = replace(chosen.settings, padding=min(prior.vae.lookahead, _LONGEST_PADDING))
    rate = front.sample_rate
    starts = [image_start(front, iva(_samples(seconds, rate), n_sources), n_more=1) for seconds in chosen.starts]
    filters = [least_squares(_samples(seconds, rate), n_taps) for seconds, n_taps in chosen.filters]
    return Separator(
        front,
        [*[source] * n_sources, Floor],
        starts or [even_start(n_sources + 1)],
        chosen.spatial(n_sources + 1),
        settings,
        Filters(front, filters) if filters else None,
    )


def _samples(seconds: float, sample_rate: int) -> int:
    """A window's length, of which a quarter is a whole number."""
    return 4 * round(seconds * sample_rate / 4)


@torch.no_grad()
def separate(
    wave: Float[Tensor, "channel sample"],
    sample_rate: int,
    n_sources: int,
    method: RoomMethodName = "deep",
    seed: int = 0,
) -> Float[Tensor, "source channel sample"]:
    """Images of the sources of a recording of several microphones, the loudest first, and the noise last; they sum to
    it.

    Raises:
        AudiovaeError: a single channel, fewer than two sources, or another rate than the prior's.
    """
    if len(wave) < 2 or n_sources < 2:
        raise AudiovaeError(
            f"separation in space needs at least two channels and two sources, got {len(wave)} and {n_sources}"
        )
    name = ROOM_METHODS[method].prior
    prior = None if name is None else AudioVAE.from_pretrained(name, wave.device)
    if prior is not None and sample_rate != prior.sample_rate:
        raise AudiovaeError(f"the prior hears {prior.sample_rate} Hz, and the wave has {sample_rate} Hz; resample it")
    separates = separator(n_sources, method, prior, sample_rate)
    stft = separates.front.stft.to(wave.device, wave.dtype)
    (found,) = separates([stft(wave).movedim(0, -1)], [seed], waves=[wave])
    images = stft.inverse(found.images.movedim(-1, 1), wave.shape[-1])
    order = images[:n_sources].square().sum((1, 2)).argsort(descending=True)
    return torch.cat([images[order], images[n_sources:]])


def multiplies_bfloat16(device: torch.device) -> bool:
    """Has the device instructions for products of bfloat16, without which mixed precision is slower than single?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
