"""The methods by name. Their options were chosen on mixtures of tuning speakers, see recipes/enhancement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from audiovae.prior import AudioVAE
from audiovae.separation.e_step import EStep
from audiovae.separation.enhancement import Enhancer
from audiovae.separation.mixture import Mixture
from audiovae.separation.noise import NMFNoise, NoiseModel, SlowNoise, StationaryNoise
from audiovae.separation.point_estimate import PointEstimate
from audiovae.separation.sampling import MarkovChain
from audiovae.separation.variational import FreePosterior
from audiovae.settings import MethodName, NoiseName

PRIOR_WEIGHT, ANNEALING = 12.0, 4.0  # the first at a hop of a quarter: see `LatentEnergy` and `Enhancer`
GAIN_DEVIATION, COLOUR_DEVIATION = 0.2, 0.6
TOLERANCE = 0.5  # nats per frame


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


def enhancer(
    prior: AudioVAE, method: MethodName = "peem", noise: NoiseName = "slow", rank: int = 8, condition: Tensor | None = None,
    mixed_precision: bool | None = None,
) -> Enhancer:  # fmt: skip
    """An `Enhancer` by the names of its parts.

    Args:
        prior: of clean speech.
        method: one of METHODS.
        noise: bands that change slowly, NMF, or one spectrum for the whole recording.
        rank: components of a slow or NMF noise.
        condition: labels of the speech, for a conditional prior.
        mixed_precision: see `Enhancer`; None: where the processor multiplies bfloat16.

    Raises:
        ValueError: an unknown name.
        AudiovaeError: a prior that cannot be used so.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    noises: dict[NoiseName, Callable[[Mixture], NoiseModel]] = {
        "slow": partial(SlowNoise, rank=rank),
        "nmf": partial(NMFNoise, rank=rank),
        "stationary": StationaryNoise,
    }
    if noise not in noises:
        raise ValueError(f"noise must be one of {', '.join(noises)}, got {noise!r}")
    chosen = METHODS[method]
    mixed = multiplies_bfloat16(prior.device) if mixed_precision is None else mixed_precision
    return Enhancer(
        prior, chosen.e_step, noises[noise], chosen.n_iterations, chosen.n_m_steps, PRIOR_WEIGHT, GAIN_DEVIATION, COLOUR_DEVIATION,
        ANNEALING, TOLERANCE, condition, mixed,
    )  # fmt: skip


def multiplies_bfloat16(device: torch.device) -> bool:
    """Has the device instructions for products of bfloat16, without which mixed precision is slower than single?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
