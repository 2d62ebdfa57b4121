"""Updates of full-rank covariances: expectation maximisation as in textbooks against `FullRank` and `FullRankPair`.

OMP_NUM_THREADS=1 python benchmarks/spatial.py [FREQS FRAMES MICROPHONES]

Each form runs in a process of its own: milliseconds of processor time of one update (the least of several), and the
memory that it adds at its peak.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time

import torch
from torch import Tensor

from audiovae.separation import Mixture
from audiovae.separation.spatial.full_rank import FullRank, FullRankPair

N_SOURCES, N_RUNS = 2, 5


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


if __name__ == "__main__":
    sizes = [int(size) for size in sys.argv[1:]] or [513, 376, 4]
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
