"""What tests of spatial models share: small mixtures, covariances and PSDs of random numbers."""

from __future__ import annotations

from typing import Any

import torch
from mixtures import random_spectrogram, reverberant
from torch import Tensor

from audiovae.separation import Mixture

N_FREQS, LENGTHS = 5, [9, 6]


def mixture_of(n_channels: int, dtype: torch.dtype = torch.complex128, n_frames: list[int] = LENGTHS) -> Mixture:
    """Two recordings with padding, each with a level of its own."""
    spectrograms = [random_spectrogram(n, N_FREQS, n_channels, seed).to(dtype) for seed, n in enumerate(n_frames)]
    return Mixture.of(spectrograms, torch.tensor([1.0, 2.0], dtype=dtype.to_real()), [0, 0], padding=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)


def positive(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 + 3 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive_definite(*shape: int, seed: int = 5) -> Tensor:
    """`[*shape, channel]` and a last axis of as many."""
    root = normal(*shape, 2 * shape[-1], seed=seed)
    return root @ root.mH / shape[-1]


def psds_of(mixture: Mixture, *n_draws: int) -> list[Tensor]:
    shape = mixture.power.shape
    return [positive(n, *shape, seed=10 + i) for i, n in enumerate(n_draws)]


def begun(mixture: Mixture, n_sources: int) -> Tensor:
    """Covariances of random numbers."""
    n_recordings, _, n_freqs, n_channels = mixture.spectrogram.shape
    return positive_definite(n_sources, n_recordings, n_freqs, n_channels)


def without_phase(rows: Tensor) -> Tensor:
    """Rows of which the first entry is positive."""
    return rows * (rows[..., :1].conj() / rows[..., :1].abs())


def _band_limited(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(x)
    spectrum[:, spectrum.shape[1] // 2 :] = 0
    return torch.fft.irfft(spectrum, x.shape[1])


DAMAGE: dict[str, Any] = {
    "silence": lambda x: 0 * x,
    "a dead microphone": lambda x: x * torch.tensor([1.0, 0.0, 1.0])[:, None],
    "a microphone twice": lambda x: x[[0, 0, 1]],
    "silence at the end": lambda x: x * (torch.arange(x.shape[1]) < x.shape[1] // 3),
    "microphones at 160 dB of each other": lambda x: x * torch.tensor([1.0, 1e-4, 1e4])[:, None],
    "a single sample": lambda x: x[:, :1],
    "a click": lambda x: torch.nn.functional.one_hot(torch.tensor(999), x.shape[1]).expand(3, -1) * 1.0,
}
MORE_DAMAGE: dict[str, Any] = {
    **DAMAGE,
    "anechoic, without noise": lambda x: torch.stack(
        [0.9**m * x[0].roll(m) + 0.8**m * x[1].roll(-m) for m in range(3)]
    ),
    "a single source": lambda x: reverberant(x.shape[1] / 16000, 3, 1),
    "half the band": _band_limited,
    "clipped": lambda x: x.clamp(-0.1 * x.abs().max(), 0.1 * x.abs().max()),
}
