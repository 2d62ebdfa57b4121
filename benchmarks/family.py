"""Speed of every member of the family on one thread: training, resynthesis and free-running generation.

    OMP_NUM_THREADS=1 python benchmarks/family.py [CONFIG.yaml...] [--json FILE]      (default: all of
    recipes/speech_prior/family)

For each configuration: weights; frames per second of its training step (power in, weights changed: 128 sequences of 50
frames, float32); seconds per second of sound for resynthesis (10 s, posterior mean, original phase) and for generating
the PSD of 10 s, on its own past where it needs one. Then, for RVAE and DKF, the training step beside the same bricks
with the latents given, so that nothing steps through time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from audiovae import DKF, MODELS, RVAE, STFT, VAE, AudioVAE
from audiovae.cli.progress import print_table
from audiovae.models.latents import normal_from_outputs, standard_normal
from audiovae.networks.lstm import shift
from audiovae.objectives import Objective, training_loss
from audiovae.training.memory import keep_freed_memory

SEQUENCES, FRAMES, RATE, SECONDS, ROUNDS = 128, 50, 16000, 10, 5
CONFIGS = Path(__file__).parents[1] / "recipes" / "speech_prior" / "family"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", type=Path, default=sorted(CONFIGS.glob("*.yaml")))
    parser.add_argument("--json", type=Path, help="also write the first table to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as fit does
    rows = [[config.stem, *measure(yaml.safe_load(config.read_text()))] for config in options.configs]
    print_table(
        ["configuration", "weights", "training, frames/s", "resynthesis, RTF", "generation, RTF"],
        rows,
        f"1 thread; {SEQUENCES} x {FRAMES} frames a step, median of {ROUNDS}; RTF of {SECONDS} s",
    )
    if options.json:
        options.json.write_text(json.dumps({name: values for name, *values in rows}, indent=1))
    rows = []
    for name, model, bricks in (("RVAE", RVAE, rvae_bricks), ("DKF", DKF, dkf_bricks)):
        torch.manual_seed(0)
        frame_power = noise_power()
        vae = model(513)
        vae.calibrate(frame_power.flatten(0, 1))
        whole, given = interleaved(training_step(vae, frame_power), bricks_step(vae, bricks(vae, frame_power)))
        n = SEQUENCES * FRAMES
        rows.append([name, f"{n / whole:.0f}", f"{n / given:.0f}", f"{given / whole:.0%}"])
    print_table(["model", "training, frames/s", "bricks with given z, frames/s", "ratio (asked: 60 %)"], rows)


def measure(config: dict[str, Any]) -> list[str]:
    torch.manual_seed(0)
    model, settings = MODELS[config["type"]]
    sizes = {name: tuple(v) if isinstance(v, list) else v for name, v in config.get("vae", {}).items()}
    vae = model(513, settings(**sizes))
    frame_power = noise_power()
    vae.calibrate(frame_power.flatten(0, 1))
    (seconds,) = interleaved(training_step(vae, frame_power))
    prior = AudioVAE(STFT(), vae.eval(), RATE)
    wave = torch.randn(SECONDS * RATE)
    with torch.no_grad():
        (resynthesis,) = interleaved(lambda: prior.resynthesize(wave, level=1.0))
        try:
            (generation,) = interleaved(lambda: prior.sample(prior.stft.n_frames(SECONDS * RATE)))
            generated = f"{generation / SECONDS:.4f}"
        except ValueError:  # an autoencoder
            generated = "n/a"
    weights = sum(parameter.numel() for parameter in vae.parameters())
    return [f"{weights:,}", f"{SEQUENCES * FRAMES / seconds:.0f}", f"{resynthesis / SECONDS:.4f}", generated]


def noise_power() -> Tensor:
    return torch.randn(SEQUENCES, FRAMES, 513, 2).square().sum(-1)


def interleaved(*parts: Callable[[], object]) -> list[float]:
    """Median seconds of each, in turns, after one round that does not count."""
    times: list[list[float]] = [[] for _ in parts]
    for i in range(1 + ROUNDS):
        for part, seconds in zip(parts, times, strict=True):
            begin = time.perf_counter()
            part()
            if i:
                seconds.append(time.perf_counter() - begin)
    return [statistics.median(seconds) for seconds in times]


def training_step(vae: VAE, frame_power: Tensor) -> Callable[[], object]:
    return optimised(vae, lambda: training_loss(vae, frame_power, None, Objective())[0])


def bricks_step(vae: VAE, loss: Callable[[], Tensor]) -> Callable[[], object]:
    return optimised(vae, loss)


def optimised(vae: VAE, loss: Callable[[], Tensor]) -> Callable[[], object]:
    adam = torch.optim.AdamW(vae.parameters(), lr=1e-5, fused=True)
    vae.train()

    def run() -> None:
        adam.zero_grad()
        loss().backward()
        adam.step()

    return run


def rvae_bricks(vae: RVAE, frame_power: Tensor) -> Callable[[], Tensor]:
    """The step of an RVAE whose posterior sees a given path: its LSTM over z runs as one call."""
    z = torch.randn(SEQUENCES, FRAMES, vae.latent_dim)
    cell = vae.recurrence.lstm
    assert cell is not None
    zeros = z.new_zeros(1, SEQUENCES, cell.hidden_size)
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)

    def loss() -> Tensor:
        drive = vae.to_drive(vae.encoder(vae.log_power(frame_power)))
        states = torch.lstm(shift(z), (zeros, zeros), weights, True, 1, 0.0, True, False, True)[0]
        posterior = normal_from_outputs(drive + vae.recurrence.mixer(states))
        latents = posterior.rsample()
        kl = torch.distributions.kl_divergence(posterior, standard_normal(latents))
        return (kl - vae.log_likelihood(latents, frame_power)).mean()

    return loss


def dkf_bricks(vae: DKF, frame_power: Tensor) -> Callable[[], Tensor]:
    """The step of a DKF whose posterior sees a given path: its layers over z run as one call each."""
    z = torch.randn(SEQUENCES, FRAMES, vae.latent_dim)

    def loss() -> Tensor:
        drive = vae.to_drive(vae.encoder(vae.features(vae.log_power(frame_power))))
        hidden = shift(z)
        for layer in vae.recurrence.layers_in:
            hidden = torch.tanh(layer(hidden))
        hidden = drive + vae.recurrence.mixer(hidden)
        for layer in vae.recurrence.layers_out:
            hidden = layer(torch.tanh(hidden))
        posterior = normal_from_outputs(hidden)
        latents = posterior.rsample()
        kl = torch.distributions.kl_divergence(posterior, vae.prior(latents))
        return (kl - vae.log_likelihood(latents, frame_power)).mean()

    return loss


if __name__ == "__main__":
    main()
