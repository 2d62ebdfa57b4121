"""Our training steps against the published ones, in one run on one thread.

    OMP_NUM_THREADS=1 python benchmarks/published.py [--rounds 7]

The published step is written down here from what is known of the DVAE collection: frames first, power in, LSTMs and
dense layers of PyTorch, each latent vector inferred from the one before it in a loop in Python, Itakura-Saito distance
and KL as sums, plain Adam. Ours has the same sizes (513 bins, 16 latents, LSTMs of 128), 128 sequences of 50 frames.
Times are of the processor, not of the clock, so that other jobs count less; the steps are taken in turns.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from family import FRAMES, SEQUENCES, noise_power, training_step
from torch import Tensor, nn

from audiovae import DKF, RVAE, FrameVAE, FrameVAESettings
from audiovae.cli.progress import print_table
from audiovae.training.memory import keep_freed_memory

N_FREQS, LATENT, WIDTH = 513, 16, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as fit does
    torch.manual_seed(0)
    power = noise_power()
    classic = FrameVAESettings(latent_dim=LATENT, hidden=(WIDTH,), residual=False, activation="tanh")
    pairs = {
        "VAE": (FrameVAE(N_FREQS, classic), PublishedVAE()),
        "RVAE": (RVAE(N_FREQS), PublishedRVAE()),
        "DKF": (DKF(N_FREQS), PublishedDKF()),
    }
    rows = []
    for name, (vae, published) in pairs.items():
        vae.calibrate(power.flatten(0, 1))
        ours, theirs = in_turns(training_step(vae, power), published_step(published, power), options.rounds)
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        speed = [f"{SEQUENCES * FRAMES / statistics.median(seconds):.0f}" for seconds in (ours, theirs)]
        rows.append(
            [name, *speed, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"],
        )
    print_table(
        ["model", "frames/s, ours", "published", "times", "range"],
        rows,
        f"1 thread; {SEQUENCES} x {FRAMES} frames a step, medians of {options.rounds} turns",
    )


def in_turns(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Processor seconds of each, after one round that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(1 + rounds):
        for step, seconds in zip((ours, theirs), times, strict=True):
            begin = time.process_time()
            step()
            if i:
                seconds.append(time.process_time() - begin)
    return times


def published_step(model: nn.Module, power: Tensor) -> Callable[[], object]:
    adam = torch.optim.Adam(model.parameters(), lr=1e-5)
    x = power.transpose(0, 1).contiguous()  # frames first

    def run() -> None:
        log_variance, (mean, spread, prior_mean, prior_spread) = model(x)
        ratio = x / log_variance.exp()
        distance = (ratio - ratio.log() - 1).sum()
        divergence = -0.5 * (
            spread - prior_spread - ((mean - prior_mean).square() + spread.exp()) / prior_spread.exp() + 1
        )
        loss = (distance + divergence.sum()) / (SEQUENCES * FRAMES)
        adam.zero_grad()
        loss.backward()
        adam.step()

    return run


def dense(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())))


def drawn(mean: Tensor, spread: Tensor) -> Tensor:
    return mean + torch.exp(0.5 * spread) * torch.randn_like(mean)


class PublishedVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.spread = dense(N_FREQS, WIDTH), nn.Linear(WIDTH, LATENT), nn.Linear(WIDTH, LATENT)
        self.decoder = nn.Sequential(*dense(LATENT, WIDTH), nn.Linear(WIDTH, N_FREQS))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden = self.encoder(x)
        mean, spread = self.mean(hidden), self.spread(hidden)
        return self.decoder(drawn(mean, spread)), (mean, spread, torch.zeros_like(mean), torch.zeros_like(mean))


class PublishedRVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_z, self.up = nn.LSTM(N_FREQS, WIDTH), nn.LSTM(LATENT, WIDTH), nn.LSTM(LATENT, WIDTH)
        self.mean, self.spread = nn.Linear(2 * WIDTH, LATENT), nn.Linear(2 * WIDTH, LATENT)
        self.to_spectrum = nn.Linear(WIDTH, N_FREQS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        seen = self.of_x(x.flip(0))[0].flip(0)
        z = x.new_zeros(x.shape[1], LATENT)
        state = (x.new_zeros(1, x.shape[1], WIDTH), x.new_zeros(1, x.shape[1], WIDTH))
        means, spreads, path = [], [], []
        for t in range(len(x)):
            _, state = self.of_z(z.unsqueeze(0), state)
            hidden = torch.cat([seen[t], state[0].squeeze(0)], -1)
            means.append(self.mean(hidden))
            spreads.append(self.spread(hidden))
            z = drawn(means[-1], spreads[-1])
            path.append(z)
        mean, spread = torch.stack(means), torch.stack(spreads)
        return self.to_spectrum(self.up(torch.stack(path))[0]), (
            mean, spread, torch.zeros_like(mean), torch.zeros_like(mean),
        )  # fmt: skip


class PublishedDKF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.of_x, self.of_z = dense(N_FREQS, 256), nn.LSTM(256, WIDTH), dense(LATENT, 32, WIDTH)
        self.head, self.mean, self.spread = dense(WIDTH, 32), nn.Linear(32, LATENT), nn.Linear(32, LATENT)
        self.gate = nn.Sequential(nn.Linear(LATENT, LATENT), nn.ReLU(), nn.Linear(LATENT, LATENT), nn.Sigmoid())
        self.proposal = nn.Sequential(nn.Linear(LATENT, LATENT), nn.ReLU(), nn.Linear(LATENT, LATENT))
        self.linear = nn.Linear(LATENT, LATENT)
        self.variance = nn.Sequential(nn.ReLU(), nn.Linear(LATENT, LATENT), nn.Softplus())
        self.decoder = nn.Sequential(*dense(LATENT, 32, 64, 128, 256), nn.Linear(256, N_FREQS))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        seen = self.of_x(self.features(x).flip(0))[0].flip(0)
        z, means, spreads, path = x.new_zeros(x.shape[1], LATENT), [], [], []
        for t in range(len(x)):
            hidden = self.head(0.5 * (seen[t] + self.of_z(z)))
            means.append(self.mean(hidden))
            spreads.append(self.spread(hidden))
            z = drawn(means[-1], spreads[-1])
            path.append(z)
        latents = torch.stack(path)
        before = torch.cat([torch.zeros_like(latents[:1]), latents[:-1]])
        gate, proposal = self.gate(before), self.proposal(before)
        prior_mean = (1 - gate) * self.linear(before) + gate * proposal
        prior_spread = self.variance(proposal).log()
        return self.decoder(latents), (torch.stack(means), torch.stack(spreads), prior_mean, prior_spread)


if __name__ == "__main__":
    main()
