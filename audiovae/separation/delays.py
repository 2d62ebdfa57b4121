"""Which row is whose at every frequency: by the delays with which a source reaches the microphones."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from audiovae.stft import Front

_LONGEST_SECONDS = 2e-3  # between two microphones, 70 cm apart
_FINER = 8  # than a sample
_CORE_HZ = (300.0, 2000.0)  # where rows are in order at first: below, the phases tell little, and above they are faint
_LOWEST_HZ = 100.0
_SMOOTH_HZ = 400.0  # rooms move the phases of single frequencies; what changes places does so over a band
_ROUNDS = 3
_STAY = 0.02  # for every pair of microphones: where directions tell nothing, rows stay


def order_by_delays(
    columns: Complex[Tensor, "recording freq channel source"], front: Front
) -> Int[Tensor, "recording freq source"]:
    """The row of each source at every frequency, as far as directions tell.

    The direct sound of source n reaches microphone m later than microphone 0 by tau_nm, so that the phase of a_nmf /
    a_n0f is about -2 pi f tau_nm, at all frequencies alike. From the order in which the rows stand in the middle of
    speech come first delays; from these an order of every band; from that better delays, and so on. Sources are told
    apart by nothing else: neither by their places nor by those of the microphones, which may stand up to 70 cm from the
    first one.

    Args:
        columns: a_nf, the ways from the sources to the microphones, at any scale.
        front: STFT and rate.

    Reference: H. Sawada, S. Araki, R. Mukai, S. Makino, "Grouping separated frequency components by estimating
        propagation model parameters in frequency-domain blind source separation", IEEE TASLP 15(5), 2007 (the model).
    """
    n_sources, n_freqs = columns.shape[-1], columns.shape[1]
    hz = torch.arange(n_freqs, device=columns.device) * front.sample_rate / front.stft.n_fft
    ratios = columns[..., 1:, :] * columns[..., :1, :].conj()
    phases = ratios / ratios.abs().clamp(min=torch.finfo(ratios.dtype).tiny)  # [recording, freq, channel - 1, source]
    chosen = torch.arange(n_sources, device=columns.device).expand(*columns.shape[:2], -1)
    stay = _STAY / n_sources * phases.shape[2] * torch.eye(n_sources, dtype=hz.dtype, device=hz.device)
    reach = round(_SMOOTH_HZ * front.stft.n_fft / front.sample_rate)
    used = (hz >= _CORE_HZ[0]) & (hz <= _CORE_HZ[1])
    for _ in range(_ROUNDS):
        agreement = _agreement(phases, _delays(_in_order(phases, chosen), used, front), hz)
        chosen = _assigned(_smoothed(agreement + stay, reach))
        used = hz >= _LOWEST_HZ
    return chosen


def _delays(
    phases: Complex[Tensor, "recording freq pair source"], used: Tensor, front: Front
) -> Float[Tensor, "recording pair source"]:
    """In seconds, where the sum over frequencies is largest: the generalised cross-correlation with phase transform."""
    n = _FINER * front.stft.n_fft
    correlation = torch.fft.irfft(phases * used[:, None, None], n, dim=1)
    longest = min(round(_LONGEST_SECONDS * front.sample_rate * _FINER), n // 2 - 1)
    lags = torch.arange(-longest, longest + 1, device=phases.device)
    return lags[correlation[:, lags].argmax(1)] / (_FINER * front.sample_rate)


def _agreement(
    phases: Complex[Tensor, "recording freq pair source"], delays: Tensor, hz: Float[Tensor, " freq"]
) -> Float[Tensor, "recording freq row source"]:
    """Of every row's phases with every source's delays: sum_m cos(phase + 2 pi f tau)."""
    angles = 2 * torch.pi * hz[:, None, None] * delays.unsqueeze(1)
    return torch.einsum("rfpn,rfpk->rfnk", phases, torch.polar(torch.ones_like(angles), angles).to(phases.dtype)).real


def _in_order(phases: Tensor, order: Tensor) -> Tensor:
    return phases.gather(-1, order.unsqueeze(-2).expand_as(phases))


def _smoothed(
    agreement: Float[Tensor, "recording freq row source"], reach: int
) -> Float[Tensor, "recording freq row source"]:
    window = torch.hann_window(2 * reach + 3, periodic=False, dtype=agreement.dtype, device=agreement.device)[1:-1]
    values = agreement.movedim(1, -1)
    flat = functional.conv1d(values.reshape(-1, 1, values.shape[-1]), window[None, None], padding=reach)
    return flat.reshape(values.shape).movedim(-1, 1)


def _assigned(agreement: Float[Tensor, "recording freq row source"]) -> Int[Tensor, "recording freq source"]:
    """The row of each source, all different, so that they agree most together."""
    costs = -agreement.mT.flatten(0, 1).numpy(force=True)  # [recording x freq, source, row]
    rows = np.stack([linear_sum_assignment(cost)[1] for cost in costs])
    return torch.from_numpy(rows).to(agreement.device).reshape(*agreement.shape[:2], -1)
