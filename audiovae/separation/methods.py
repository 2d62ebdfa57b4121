"""The methods by name. Their options were chosen on mixtures of tuning speakers, see recipes/enhancement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.audio import AudioInfo
from audiovae.files import Recording
from audiovae.prior import AudioVAE
from audiovae.separation.em import EMSettings, Separator
from audiovae.separation.inference.e_step import EStep
from audiovae.separation.inference.markov_chain import MarkovChain
from audiovae.separation.inference.point_estimate import PointEstimate
from audiovae.separation.inference.variational import FreePosterior
from audiovae.separation.sources.deep import DeepSettings, DeepSource
from audiovae.separation.sources.nmf import NMF
from audiovae.separation.sources.slow import SlowBands
from audiovae.separation.sources.source import MakeSource
from audiovae.separation.sources.stationary import Stationary
from audiovae.separation.starts import quiet_start
from audiovae.separation.upper_band import UpperBand, reaches_above
from audiovae.settings import MethodName, NoiseName
from audiovae.stft import power
from audiovae.waves import Array, at_rate, like, recording_of

PRIOR_WEIGHT, ANNEALING = 12.0, 4.0  # the first at a hop of a quarter: see `LatentEnergy` and `EMSettings`
GAIN_DEVIATION, COLOUR_DEVIATION = 0.2, 0.6
TOLERANCE = 0.5  # nats per frame
LONGEST_PADDING = 64  # frames; a recurrence forgets within these what follows the end of a recording


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
    settings = EMSettings(chosen.n_iterations, ANNEALING, TOLERANCE, min(prior.vae.lookahead, LONGEST_PADDING))
    return Separator(prior.front, [speech, NOISES[noise](rank, chosen.n_m_steps)], [quiet_start], settings=settings)


@torch.no_grad()
def enhance(
    wave: Float[Array, "*channel sample"],
    sample_rate: int,
    method: MethodName = "peem",
    seed: int = 0,
    progress: Callable[[float], None] = lambda done: None,
    prior: AudioVAE | None = None,
) -> Float[Array, "*channel sample"]:
    """The speech of a noisy wave; channels share one gain.

    It comes out as of `enhance_file`: an offset and loud rumble are no speech, see `AudioVAE.analyse`. All of it is
    worked on at once: about a minute at a time is a matter of memory, longer ones are for `enhance_file`.

    Args:
        wave: an array or a tensor of any rate; a method hears it at its prior's. For what it has above see
            `UpperBand`.
        sample_rate: of the wave, in Hz.
        progress: called now and then with the share that is done, from 0 to 1.
        prior: one of yours, on the device of the wave; by default the shipped one of the method.

    Raises:
        ValueError: no such method or rate, a sample that is NaN or infinite, or channels that stand last.
    """
    whole = recording_of(wave)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    prior = AudioVAE.from_pretrained(METHODS[method].prior, whole.device) if prior is None else prior
    channels = at_rate(torch.atleast_2d(whole), sample_rate, prior.sample_rate)
    spectrogram, level = prior.analyse(channels, channels=True)
    separates = enhancer(prior, method)
    (found,) = separates([spectrogram.movedim(0, -1)], [seed], [float(level[0] > 0)], progress=progress)
    speech = prior.stft.inverse(found.images[0].movedim(-1, 0), channels.shape[-1]) * level.unsqueeze(-1)
    speech = at_rate(speech, prior.sample_rate, sample_rate)[..., : wave.shape[-1]]
    given = torch.atleast_2d(whole).numpy(force=True).astype(np.float32)
    info = AudioInfo(Path("wave"), sample_rate, given.shape[1], len(given), "WAV", "FLOAT")
    recording = Recording(prior.front, info, float(level[0]))
    if reaches_above(recording):
        upper = UpperBand(recording, iter([given]))
        upper.push(power(found.images[0]).mean(-1), found.psds[1], last=True)
        speech = speech + torch.from_numpy(upper.take(wave.shape[-1])).to(speech)
    return like(speech.reshape(wave.shape), wave)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Has the device instructions for products of bfloat16, without which mixed precision is slower than single?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
