"""Training speed of the classic size, 513-128-16-128-513, on one thread: fit() against its parts, and its step against
matrix products.

    OMP_NUM_THREADS=1 python benchmarks/training.py

Prints the time per batch of 4096 frames of: the matrix products alone (forward, weight gradients, input gradients but
the first layer's); the bare optimiser step (power in, weights changed); STFT and power of the same frames; a whole run
of `fit` of 500 steps with its default settings (set-up, batches, STFT, step, averaging, clipping, trace, validation,
checkpoint, saved model), each the median of several rounds that are interleaved, so that a drift of the machine's speed
touches all of them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from audiovae import STFT, AudioVAE, FrameVAE, FrameVAESettings, PackedCorpus, TrainingSettings, fit, power
from audiovae.cli.progress import print_table
from audiovae.corpora.packed import Header, Utterance, write_index
from audiovae.objectives import Objective, training_loss

BATCH, STEPS, ROUNDS = 4096, 500, 3
CLASSIC = FrameVAESettings(latent_dim=16, hidden=(128,), residual=False, activation="tanh")
SEGMENT = TrainingSettings().segment_frames
LAYERS = [(513, 128), (128, 32), (16, 128), (128, 513)]  # encoder, its two heads as one, decoder


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stft = STFT()
    waves = torch.randn(BATCH // SEGMENT, (SEGMENT - 1) * stft.hop_length + stft.n_fft)
    parts = {
        "matrix products": matrix_products(),
        "log of the power": lambda frame_power=power(stft.frames(waves)): torch.log(frame_power + 1e-6),
        "likelihood, forward and backward": likelihood(power(stft.frames(waves))),
        "optimiser (fused Adam)": optimiser(),
        "bare step": bare_step(power(stft.frames(waves))),
        "STFT and power": lambda: power(stft.frames(waves)),
    }
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "packed")
        fit_step(corpus, Path(folder), steps=1)  # imports
        times: dict[str, list[float]] = {name: [] for name in [*parts, "fit"]}
        for part in parts.values():
            part()
        for _ in range(ROUNDS):
            for name, part in parts.items():
                times[name].append(clock(part))
            times["fit"].append(fit_step(corpus, Path(folder)))
    ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    spread = {name: f"{1e3 * min(values):.2f} to {1e3 * max(values):.2f}" for name, values in times.items()}
    rows = [[name, f"{ms[name]:.2f}", spread[name], f"{BATCH / ms[name]:.0f} k"] for name in times]
    print_table(
        ["part", "ms per batch", "range", "frames per second"],
        rows,
        f"{BATCH} frames a step, 1 thread, {ROUNDS} rounds",
    )
    speed = [a / b for a, b in zip(times["matrix products"], times["bare step"], strict=True)]
    share = [f / (a + b) for f, a, b in zip(times["fit"], times["bare step"], times["STFT and power"], strict=True)]
    print(
        f"bare step: {statistics.median(speed):.0%} of the speed of its matrix products ({min(speed):.0%} to "
        f"{max(speed):.0%}); asked: 75 %"
    )
    print(
        f"fit: {statistics.median(share):.2f} times bare step + STFT and power ({min(share):.2f} to {max(share):.2f}); "
        "asked: at most 1.15"
    )


def clock(part: Callable[[], object], repeats: int = 10) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        part()
    return (time.perf_counter() - begin) / repeats


def matrix_products() -> Callable[[], object]:
    inputs = [torch.randn(BATCH, n_in) for n_in, _ in LAYERS]
    weights = [torch.randn(n_in, n_out) for n_in, n_out in LAYERS]
    gradients = [torch.randn(BATCH, n_out) for _, n_out in LAYERS]
    forward = [torch.empty(BATCH, n_out) for _, n_out in LAYERS]
    of_weights = [torch.empty(n_out, n_in) for n_in, n_out in LAYERS]
    of_inputs = [torch.empty(BATCH, n_in) for n_in, _ in LAYERS]

    def run() -> None:
        for i in range(len(LAYERS)):
            torch.mm(inputs[i], weights[i], out=forward[i])
            torch.mm(gradients[i].T, inputs[i], out=of_weights[i])
            if i > 0:
                torch.mm(gradients[i], weights[i].T, out=of_inputs[i])

    return run


def likelihood(frame_power: torch.Tensor) -> Callable[[], object]:
    from audiovae.distributions import ComplexNormal

    frame_power = frame_power.flatten(0, 1)
    output = torch.randn(BATCH, 513, requires_grad=True)

    def run() -> None:
        output.grad = None
        ComplexNormal(log_variance=output, floor=1e-6, validate_args=False).summed_log_prob_of_power(
            frame_power
        ).mean().backward()

    return run


def new_model() -> tuple[FrameVAE, torch.optim.Optimizer]:
    vae = FrameVAE(513, CLASSIC)
    return vae, torch.optim.AdamW(vae.parameters(), lr=1e-4, fused=True)


def optimiser() -> Callable[[], object]:
    vae, adam = new_model()
    for parameter in vae.parameters():
        parameter.grad = torch.randn_like(parameter)
    return adam.step


def bare_step(frame_power: torch.Tensor) -> Callable[[], object]:
    vae, adam = new_model()
    vae.calibrate(frame_power.flatten(0, 1))

    def run() -> None:
        loss = training_loss(vae, frame_power, None, Objective())[0]
        adam.zero_grad()
        loss.backward()
        adam.step()

    return run


def write_corpus(folder: Path) -> PackedCorpus:
    """Ten minutes of noise: what is in the samples does not change the speed."""
    folder.mkdir()
    rate, n = 16000, 10 * 16000
    samples = np.random.default_rng(0).integers(-20000, 20000, 60 * n, dtype=np.int16)
    samples.tofile(folder / "samples.int16")
    utterances = [
        Utterance(str(i), str(i), "train" if i else "validation", i * n, n, 1 / 32767, 0.35, 0, 0, "")
        for i in range(60)
    ]
    write_index(folder, Header(rate, True, "folder", "noise"), utterances, [])
    return PackedCorpus(folder)


def fit_step(corpus: PackedCorpus, folder: Path, steps: int = STEPS) -> float:
    """Seconds per step of a whole run: set-up, validation, checkpoints and the saved model included."""
    prior = AudioVAE(STFT(), FrameVAE(513, CLASSIC), 16000)
    begin = time.perf_counter()
    fit(prior, corpus, corpus, folder / f"run-{time.monotonic_ns()}", TrainingSettings(steps=steps, batch_frames=BATCH))
    return (time.perf_counter() - begin) / steps


if __name__ == "__main__":
    main()
