"""Speakers out of a room by name. The options were chosen on mixtures of tuning speakers, see recipes/rooms."""

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
from audiovae.separation.inference.amortised import Amortised
from audiovae.separation.inference.e_step import EStep
from audiovae.separation.inference.point_estimate import PointEstimate
from audiovae.separation.iva import HIGHEST_HZ, Images, bins_below, image_start, iva, told_by
from audiovae.separation.methods import GAIN_DEVIATION, LONGEST_PADDING, METHODS, enhancer, multiplies_bfloat16
from audiovae.separation.neural.separators import NeuralSeparator
from audiovae.separation.sources.deep import DeepSettings, DeepSource
from audiovae.separation.sources.envelope import Envelope
from audiovae.separation.sources.floor import Floor
from audiovae.separation.sources.nmf import NMF
from audiovae.separation.sources.source import MakeSource
from audiovae.separation.spatial.demixing import Demixing
from audiovae.separation.spatial.full_rank import full_rank
from audiovae.separation.spatial.joint_diagonal import JointDiagonal
from audiovae.separation.starts import even_start
from audiovae.settings import RoomMethodName
from audiovae.stft import STFT, Front
from audiovae.waves import Array, at_rate, like, recording_of

ROOM_RANK, ROOM_ITERATIONS = 8, 100
_AMORTISED_UPDATES, _REFINING_UPDATES = 20, 6  # of space, after a learnt separator's encoder and in each iteration


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
        spatial: makes the spatial model of so many sources, the last of which is the noise; None: that of a separator
            which is learnt from mixtures.
        source: makes each source without a prior, for its front; None: a deep one.
        settings: how long.
        starts: windows of independent vector analysis in seconds, each a start; none: sources that do not differ yet.
        filters: windows in seconds, and taps, of the least squares at the end.
        window: of the STFT of sources without a prior, in seconds.
        e_step, prior_weight: of a deep source.
        prior: the shipped one that it is best with; of a learnt separator the separator itself.
    """

    spatial: Callable[[int], MakeSpatial] | None
    source: Callable[[Front], MakeSource] | None = None
    settings: EMSettings = EMSettings(12, 2.0, spatial_steps=2, warm_up=5)
    starts: tuple[float, ...] = (0.512,)
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


def _envelope(front: Front) -> MakeSource:
    return partial(Envelope, n_counted=bins_below(front, HIGHEST_HZ))


def _nmf(rank: int) -> Callable[[Front], MakeSource]:
    return lambda front: partial(NMF, rank=rank, together=True, first_steps=20)


ROOM_METHODS: dict[RoomMethodName, RoomMethod] = {
    "deep": RoomMethod(
        _joint,
        settings=EMSettings(10, 2.0, spatial_steps=2, warm_up=3, audition=2),
        starts=(0.512, 0.256),
        filters=((0.256, 3),),
        prior_weight=6.0,
        prior="speech-16k-rooms",
    ),
    "fast": RoomMethod(
        _joint,
        settings=EMSettings(4, 2.0, spatial_steps=2, warm_up=3),
        filters=((0.256, 3),),
        e_step=partial(PointEstimate, step=0.5, momentum=0.6, refresh=8),
        prior_weight=6.0,
        prior="speech-16k-rooms",
    ),
    "neural": RoomMethod(
        None,
        settings=EMSettings(4, 2.0),
        filters=((0.256, 3),),
        e_step=partial(PointEstimate, step=0.5, momentum=0.6, refresh=8),
        prior_weight=6.0,
        prior="rooms-16k-neural",
    ),
    "iva": RoomMethod(_demixing, _envelope, EMSettings(5), window=0.512),
    "ilrma": RoomMethod(_demixing, _nmf(2), EMSettings(30)),
    "fastmnmf2": RoomMethod(_joint_over_frequency, _nmf(8), EMSettings(60)),
    "fastmnmf2-dp": RoomMethod(_joint_over_frequency, prior="speech-16k-fast"),
    "fca": RoomMethod(_full, _nmf(8), EMSettings(30)),
    "fca-dp": RoomMethod(_full, prior="speech-16k-fast"),
    "mvae": RoomMethod(_demixing, prior="speech-16k-fast"),
}


def separator(
    n_sources: int,
    method: RoomMethodName = "deep",
    prior: AudioVAE | NeuralSeparator | None = None,
    sample_rate: int = 16000,
    condition: Tensor | None = None,
    refine: int = 0,
) -> Separator:
    """Speakers out of a room; the last source of what it finds is the noise.

    A lone speaker stands beside a noise that comes from somewhere, by NMF, and what is as strong everywhere; but for a
    learnt separator, which knows the latter alone.

    Args:
        n_sources: how many speakers there are.
        method: one of ROOM_METHODS.
        prior: of clean speech, for the deep methods; for "neural" a separator that is learnt from mixtures.
        sample_rate: of the mixtures, for the others, in Hz.
        condition: labels of the speech, for a conditional prior: see `DeepSource`.
        refine: iterations after what a learnt separator says; 0: the latents are those that it infers, and space is
            fitted to them.

    Raises:
        ValueError: an unknown name, no prior where one is needed, or another model in its place; labels for a learnt
            separator, or a negative number of iterations.
        AudiovaeError: a prior that cannot be used so; more sources than a learnt separator tells apart.
    """
    if method not in ROOM_METHODS:
        raise ValueError(f"method must be one of {', '.join(ROOM_METHODS)}, got {method!r}")
    chosen = ROOM_METHODS[method]
    if chosen.spatial is None:
        if not isinstance(prior, NeuralSeparator):
            raise ValueError(f"the method {method!r} needs a separator that is learnt from mixtures")
        if condition is not None or refine < 0:
            raise ValueError(f"the method {method!r} knows no labels, and refine is 0 or more, got {refine}")
        return _learnt(prior, n_sources, refine)
    if isinstance(prior, NeuralSeparator) or refine:
        raise ValueError(f"a learnt separator, and refine, are for the method 'neural', not {method!r}")
    if chosen.source is not None:
        front, settings = _hann(chosen.window, sample_rate), chosen.settings
        source = chosen.source(front)
    elif prior is None:
        raise ValueError(f"the method {method!r} needs a prior")
    else:
        deep = DeepSettings(chosen.prior_weight, GAIN_DEVIATION, mixed_precision=multiplies_bfloat16(prior.device))
        source, front = DeepSource.of(prior, chosen.e_step, deep, condition), prior.front
        settings = replace(chosen.settings, padding=min(prior.vae.lookahead, LONGEST_PADDING))
    rate, alone = front.sample_rate, n_sources == 1
    n_directions = 2 if alone else n_sources  # a noise comes from somewhere too
    found = [iva(_hann(seconds, rate), n_directions) for seconds in chosen.starts]
    if alone:
        found = _speech_first(prior, found[0]) if prior is not None else found
    filters = [least_squares(_samples(seconds, rate), n_taps) for seconds, n_taps in chosen.filters]
    return Separator(
        front,
        [*[source] * n_sources, *[_nmf(ROOM_RANK)(front)] * alone, Floor],
        [image_start(front, images, n_more=1) for images in found] or [even_start(n_directions + 1)],
        chosen.spatial(n_directions + 1),
        settings,
        Filters(front, filters) if filters else None,
        n_noises=1 + alone,
    )


def _learnt(model: NeuralSeparator, n_sources: int, refine: int) -> Separator:
    """The sources of a learnt separator, as its encoder finds them, or better by some iterations."""
    model.check_sources(n_sources)
    chosen, deep = ROOM_METHODS["neural"], DeepSettings(ROOM_METHODS["neural"].prior_weight, GAIN_DEVIATION)
    source = DeepSource.of(model.prior, chosen.e_step if refine else Amortised, deep)
    settings = replace(
        chosen.settings,
        n_iterations=max(1, refine),
        spatial_steps=_REFINING_UPDATES if refine else _AMORTISED_UPDATES,
        padding=min(model.lookahead, LONGEST_PADDING),
    )
    filters = [least_squares(_samples(seconds, model.sample_rate), n_taps) for seconds, n_taps in chosen.filters]
    return Separator(
        model.front,
        [*[source] * n_sources, Floor],
        [model.beginning(n_sources)],
        partial(model.space, n_sources=n_sources + 1),
        settings,
        Filters(model.front, filters),
    )


def _speech_first(prior: AudioVAE, found: Images) -> list[Images]:
    """Starts of a speaker and a noise from one place: told by one microphone, and by directions in either order."""
    shipped = METHODS["fast"].prior
    is_alike = (prior.sample_rate, prior.level_rule) == (16000, "active")  # as those shipped: they hear the same
    one_microphone = AudioVAE.from_pretrained(shipped, prior.device) if is_alike else prior
    return [told_by(enhancer(one_microphone, "fast")), found, lambda mixture: found(mixture).flip(0)]


def shipped_model(
    method: RoomMethodName, device: torch.device | str, name: str | None = None
) -> AudioVAE | NeuralSeparator | None:
    """The prior, or the learnt separator, that a method uses; None where it needs none.

    Args:
        name: of another one, or its folder.

    Raises:
        ModelError: no such model.
    """
    chosen = ROOM_METHODS[method]
    if chosen.prior is None:
        return None
    if chosen.spatial is None:
        return NeuralSeparator.from_pretrained(name or chosen.prior, device)
    return AudioVAE.from_pretrained(name or chosen.prior, device)


def _hann(seconds: float, sample_rate: int) -> Front:
    """A window of so long, with a hop of a quarter."""
    n_fft = _samples(seconds, sample_rate)
    return Front(STFT(n_fft, n_fft // 4, "hann"), sample_rate)


def _samples(seconds: float, sample_rate: int) -> int:
    """A window's length, of which a quarter is a whole number."""
    return 4 * round(seconds * sample_rate / 4)


@torch.no_grad()
def separate(
    wave: Float[Array, "channel sample"],
    sample_rate: int,
    n_sources: int,
    method: RoomMethodName = "deep",
    seed: int = 0,
    progress: Callable[[float], None] = lambda done: None,
) -> Float[Array, "source channel sample"]:
    """Images of the sources of a recording of several microphones, the loudest first, and the noise last; they sum to
    it.

    Args:
        wave: an array or a tensor of any rate; a method with a prior hears it at the prior's, and what it has above is
            the noise's.
        sample_rate: of the wave, in Hz.
        progress: called now and then with the share that is done, from 0 to 1.

    Raises:
        AudiovaeError: a single channel.
        ValueError: no such method or rate, no number of sources, a sample that is NaN or infinite, or channels that
            stand last.
    """
    whole = recording_of(wave)
    if method not in ROOM_METHODS:
        raise ValueError(f"method must be one of {', '.join(ROOM_METHODS)}, got {method!r}")
    if not (isinstance(n_sources, int) and n_sources > 0):
        raise ValueError(f"n_sources must be a whole number above 0, got {n_sources!r}")
    if whole.ndim < 2 or len(whole) < 2:
        raise AudiovaeError("separation in space needs at least two channels, got one; enhance() takes one")
    prior = shipped_model(method, whole.device)
    rate = sample_rate if prior is None else prior.sample_rate
    heard = at_rate(whole if prior is None else whole.float(), sample_rate, rate)
    separates = separator(n_sources, method, prior, rate)
    stft = separates.front.stft.to(heard.device, heard.dtype)
    (found,) = separates([stft(heard).movedim(0, -1)], [seed], waves=[heard], progress=progress)
    images = stft.inverse(found.images.movedim(-1, 1), heard.shape[-1])
    order = images[:n_sources].square().sum((1, 2)).argsort(descending=True)
    images = at_rate(torch.cat([images[order], images[n_sources:]]), rate, sample_rate)[..., : wave.shape[-1]]
    if rate != sample_rate:
        images[-1] += whole - images.sum(0)
    return like(images, wave)
