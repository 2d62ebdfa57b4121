"""Updates of spatial models against others' forms of them.

OMP_NUM_THREADS=1 python benchmarks/spatial.py [FREQS FRAMES MICROPHONES]

Full-rank covariances: expectation maximisation as in textbooks against `FullRank` and `FullRankPair`. Each form runs in
a process of its own: milliseconds of processor time of one update (the least of several), and the memory that it adds
at its peak.

OMP_NUM_THREADS=1 python benchmarks/spatial.py MIXTURE [PAIRS]

FastMNMF2 of two sources, 100 iterations, against that of pyroomacoustics from the same start on a sound file: seconds
of processor time in pairs, one after the other, the median of their ratios, and how far the images are apart.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from audiovae import STFT
from audiovae.level import spectrogram_level
from audiovae.separation import NMF, EMSettings, JointDiagonal, Mixture, Separator, even_start
from audiovae.separation.sources.source import MakeSource
from audiovae.separation.spatial.full_rank import FullRank, FullRankPair
from audiovae.stft import Front, power

N_SOURCES, N_RUNS = 2, 5
RANK, N_ITERATIONS = 8, 100


def textbook(x: Tensor, psds: Tensor, h: Tensor) -> Tensor:
    """E-step: the posterior second moments of all images in all bins; M-step: their mean over lambda."""
    images = psds[..., None, None] * h.unsqueeze(1)  # [source, frame, freq, channel, channel]
    precision = torch.linalg.inv(images.sum(0))
    y = precision @ x.unsqueeze(-1)
    moments = images + images @ (y @ y.mH - precision) @ images
    return (moments / psds[..., None, None]).mean(1)


def measured(form: str, n_freqs: int, n_frames: int, n_channels: int) -> tuple[float, float, Tensor]:
    """Milliseconds, megabytes, and the covariances after one update."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_frames, n_freqs, n_channels, generator=generator, dtype=torch.complex128)
    psds = 0.1 + torch.rand(N_SOURCES, n_frames, n_freqs, generator=generator, dtype=torch.float64)
    root = torch.randn(N_SOURCES, n_freqs, n_channels, 2 * n_channels, generator=generator, dtype=torch.complex128)
    begun = root @ root.mH / n_channels
    mixture = Mixture.of([x], torch.ones(1, dtype=torch.float64), [0])
    kind = FullRankPair if form == "FullRankPair" else FullRank
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = float("inf")
    for _ in range(N_RUNS):
        space = kind(mixture, begun.unsqueeze(1), N_SOURCES)
        start = time.process_time()
        if form == "textbook":
            space.h = textbook(x, psds, space.h[:, 0]).unsqueeze(1)
        else:
            space.update(list(psds[:, None, None]))
        best = min(best, time.process_time() - start)
    return 1e3 * best, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, space.h


def fast_mnmf2(mixture: str, n_pairs: int) -> None:
    torch.set_num_threads(1)
    samples, sample_rate = soundfile.read(mixture)
    for n_fft in (1024, 4096):
        stft = STFT(n_fft, n_fft // 4, "hann").double()
        x = stft(torch.from_numpy(samples.T.copy()))
        x = (x / spectrogram_level(power(x).mean(0), stft.window, sample_rate)).permute(1, 2, 0)
        single = Front(STFT(n_fft, n_fft // 4, "hann"), sample_rate), x.to(torch.complex64)
        ours(*single, n_iterations=2)  # what only the first call does
        times = []
        for _ in range(n_pairs):
            (expected, of_theirs), (found, of_ours) = timed(partial(theirs, x)), timed(partial(ours, *single))
            times.append((of_theirs / of_ours, of_theirs, of_ours))
        ratio, of_theirs, of_ours = (statistics.median(column) for column in zip(*times, strict=True))
        apart = [
            float((images - expected).abs().square().sum() / expected.abs().square().sum()) ** 0.5
            for images in (ours(Front(stft, sample_rate), x), found)
        ]
        print(
            f"FastMNMF2, n_fft {n_fft}: {of_ours:.2f} s, pyroomacoustics {of_theirs:.2f} s, {ratio:.1f} times as fast, "
            f"images apart by {apart[0]:.0e} (float64) and {apart[1]:.0e} (float32)"
        )


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def theirs(x: Tensor) -> Tensor:
    from pyroomacoustics import bss

    np.random.seed(0)
    found = bss.fastmnmf2(x.numpy().copy(), N_SOURCES, N_ITERATIONS, RANK, mic_index=0)
    return torch.from_numpy(found).movedim(-1, 0)


def ours(front: Front, x: Tensor, n_iterations: int = N_ITERATIONS) -> Tensor:
    """From the random numbers of `theirs`."""
    np.random.seed(0)
    activations = np.random.rand(N_SOURCES, RANK, x.shape[0])
    spectra = np.random.rand(N_SOURCES, x.shape[1], RANK)

    def source(n: int) -> MakeSource:
        def make(mixture: Mixture, first: Tensor) -> NMF:
            made = NMF(mixture, first, RANK, together=True)
            made.spectra = torch.from_numpy(spectra[n : n + 1]).to(first)
            made.activations = torch.from_numpy(activations[n : n + 1]).mT.to(first)
            return made

        return make

    space: Any = partial(JointDiagonal, n_sources=N_SOURCES)
    separator = Separator(
        front, [source(n) for n in range(N_SOURCES)], [even_start(N_SOURCES)], space, EMSettings(n_iterations)
    )
    return separator([x], levels=[1.0])[0].images[..., 0]


def full_rank(sizes: list[int]) -> None:
    reference = None
    for form in ("textbook", "FullRank", "FullRankPair"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            milliseconds, megabytes, h = pool.apply(measured, (form, *sizes))
        reference = reference or (milliseconds, megabytes, h)
        times, memory = milliseconds / reference[0], megabytes / reference[1]
        apart = float((h - reference[2]).abs().max() / reference[2].abs().max())
        print(
            f"{form:13} {milliseconds:6.0f} ms ({times:.2f}) {megabytes:6.0f} MB ({memory:.2f}), apart by {apart:.0e}"
        )


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].isdigit():
        fast_mnmf2(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 5)
    else:
        full_rank([int(size) for size in sys.argv[1:]] or [513, 376, 4])
