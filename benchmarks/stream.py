"""The stream's pace, state and quality.

    OMP_NUM_THREADS=1 python benchmarks/stream.py [--prior speech-16k-live] [--seconds 600]
    OMP_NUM_THREADS=1 python benchmarks/stream.py --pairs CLEAN NOISY

Blocks of one hop on one thread: real-time factor, median, 99.9th percentile and longest block, by the wall and by the
thread's own time (on a machine with other jobs, the wall's tells of these); memory and kept bytes at the beginning and
the end; the SI-SDR of the same noisy sound, repeated. With --pairs, scores of the pairs from their first sample on, one
row for every look-ahead.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from audiovae import AudioVAE, audio
from audiovae.metrics import METRICS, WAVE_METRICS, si_sdr, summarise
from audiovae.separation import stream

RATE = 16000
PERIOD = 20  # seconds of noisy speech that are repeated
SCORED = ("si_sdr", "pesq", "estoi")

Wave = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="speech-16k-live")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--lookaheads", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=Path, nargs=2, metavar=("CLEAN", "NOISY"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    prior = AudioVAE.from_pretrained(options.prior)
    if options.pairs:
        quality(prior, *options.pairs, options.lookaheads)
    else:
        pace(prior, options.seconds)


def pace(prior: AudioVAE, seconds: int) -> None:
    """Of a period of bursts of harmonics in white noise, which any machine has, over and over."""
    generator = np.random.default_rng(0)
    t = np.arange(PERIOD * RATE) / RATE
    voiced = np.sin(2 * np.pi * 2 * t) > 0
    clean = 0.02 * voiced * sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 30))
    noisy = (clean + 0.005 * generator.standard_normal(len(t))).astype(np.float32)
    one, hop = stream(prior), prior.stft.hop_length
    walls, owns, scores, sizes, spoken = [], [], [], [], []
    n_hops = len(noisy) // hop
    for number in range(seconds * RATE // (n_hops * hop)):
        for block in noisy[: n_hops * hop].reshape(-1, hop):
            wall, own = time.perf_counter(), time.thread_time()
            spoken.append(one.push(block))
            owns.append(time.thread_time() - own)
            walls.append(time.perf_counter() - wall)
        made = np.concatenate(spoken)[-n_hops * hop :]
        late = np.roll(clean[: n_hops * hop], one.latency)
        scores.append(float(si_sdr(late[RATE:], made[RATE:])))
        spoken = []
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sizes.append((len(pickle.dumps(one)), memory))
        if number % 6 == 0:
            print(f"{(number + 1) * PERIOD} s: SI-SDR {scores[-1]:.2f} dB, {memory:.1f} MB, {sizes[-1][0]} bytes kept")
    for name, values in (("wall", walls), ("thread", owns)):
        ms = 1000 * np.array(values)
        print(
            f"{name}: real-time factor {ms.mean() / 1000 * RATE / hop:.3f}, median {np.median(ms):.2f} ms, 99.9th "
            f"percentile {np.quantile(ms, 0.999):.2f} ms, longest {ms.max():.2f} ms, a block {1000 * hop / RATE:g} ms"
        )
    print(f"after {seconds} s: {sizes[-1][0] - sizes[0][0]} bytes and {sizes[-1][1] - sizes[0][1]:.1f} MB more")


def quality(prior: AudioVAE, clean: Path, noisy: Path, lookaheads: list[int]) -> None:
    names = sorted(path.name for path in clean.iterdir())
    pairs = [[audio.read(folder / name, RATE)[0][0] for folder in (clean, noisy)] for name in names]
    total = sum(len(given) for _, given in pairs) / RATE
    print("look-ahead | latency (ms) | " + " | ".join(METRICS[name].title for name in SCORED) + " | real-time factor")
    print(f"noisy | | {scores([(reference, given) for reference, given in pairs])} |")
    for lookahead in lookaheads:
        own = time.thread_time()
        made = []
        for reference, given in pairs:
            one = stream(prior, lookahead=lookahead)
            made.append((reference, np.concatenate([one.push(given), one.flush()])[one.latency :]))
        own = time.thread_time() - own
        print(f"{lookahead} | {1000 * one.latency / RATE:g} | {scores(made)} | {own / total:.3f}", flush=True)


def scores(pairs: list[tuple[Wave, Wave]]) -> str:
    functions = {name: WAVE_METRICS[name].function for name in SCORED}
    rows = [{name: f(*pair) for name, f in functions.items() if f} for pair in pairs]
    return " | ".join(str(value) for value in summarise(rows).values())


if __name__ == "__main__":
    main()
