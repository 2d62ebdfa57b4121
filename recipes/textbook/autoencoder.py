"""Third: autoencoders, 64-32-64: a code of ReLUs that keeps a digit, takes noise from it, and shows what is strange.

    python recipes/textbook/autoencoder.py -o autoencoder

One linear layer with ReLU to the code and one with sigmoid back. The plain one is trained by `fit`; the denoising one
sees noisy pictures and is scored on clean ones, in a loop of ten lines. A third one has seen no 4.
"""

from __future__ import annotations

import numpy as np
import torch
from digits import N_TRAIN, digits, draw, options, train
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from audiovae import ArrayCorpus, ArrayVAE, Autoencoder, AutoencoderSettings
from audiovae.cli.progress import print_table

_LEFT_OUT = "4"


def autoencoder() -> ArrayVAE:
    torch.manual_seed(0)
    sizes = AutoencoderSettings(data="array", likelihood="bernoulli", latent_dim=32, hidden=(), code_activation="relu")
    return ArrayVAE(Autoencoder(64, sizes))


def train_to_denoise(model: ArrayVAE, clean: Tensor, deviation: float, steps: int) -> None:
    """-log p(x | z) of clean x with z the code of noisy x."""
    model.calibrate(clean)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        x = clean[torch.randint(len(clean), (128,))]
        loss = -model.vae.log_likelihood(model.encode(noisy(x, deviation)).latents, x).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.eval().requires_grad_(False)


def noisy(x: Tensor, deviation: float) -> Tensor:
    return (x + deviation * torch.randn(x.shape)).clamp(0, 1)


def error(x: Tensor, y: Tensor) -> NDArray[np.float32]:
    """Mean squared error of every picture."""
    return (x - y).square().mean((-1, -2)).numpy()


def roc_auc(strange: NDArray[np.float32], usual: NDArray[np.float32]) -> float:
    ranks = rankdata(np.concatenate([strange, usual]))[: len(strange)]
    return float((ranks.sum() - len(strange) * (len(strange) + 1) / 2) / (len(strange) * len(usual)))


def main() -> None:
    given = options(__doc__)
    pictures, shown = digits()
    clean, test = torch.from_numpy(pictures[:N_TRAIN]), torch.from_numpy(pictures[N_TRAIN:])
    plain = autoencoder()
    train(plain, ArrayCorpus(pictures[:N_TRAIN]), given.output / "plain", given.steps)
    rows = [["0.0", "plain", "0.0000", f"{error(plain.reconstruct(test), test).mean():.4f}"]]
    drawn = [test[:10]]
    for deviation in (0.1, 0.3):
        denoising = autoencoder()
        train_to_denoise(denoising, clean, deviation, given.steps)
        x = noisy(test, deviation)
        for name, model in {"plain": plain, "denoising": denoising}.items():
            after = error(model.reconstruct(x), test).mean()
            rows.append([f"{deviation}", name, f"{error(x, test).mean():.4f}", f"{after:.4f}"])
        drawn += [x[:10], denoising.reconstruct(x[:10])]
    print_table(["noise", "autoencoder", "error before", "error after"], rows)
    names = ["clean", "noise 0.1", "denoised", "noise 0.3", "denoised"]
    draw(torch.cat(drawn), given.output / "denoised.png", 10, names)

    known = np.array([digit != _LEFT_OUT for digit in shown])
    without = autoencoder()
    train(without, ArrayCorpus(pictures[:N_TRAIN][known[:N_TRAIN]]), given.output / "without", given.steps)
    errors = error(without.reconstruct(test), test)
    usual = errors[known[N_TRAIN:]]
    noise = torch.rand(100, 1, 64)
    strange = {
        f"a {_LEFT_OUT}, never seen": errors[~known[N_TRAIN:]],
        "noise": error(without.reconstruct(noise), noise),
    }
    print_table(["strange", "ROC-AUC"], [[name, f"{roc_auc(of, usual):.3f}"] for name, of in strange.items()])


if __name__ == "__main__":
    main()
