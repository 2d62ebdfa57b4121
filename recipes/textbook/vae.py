"""First: a variational autoencoder of digits, 64-200-10, and what goes wrong when its loss is averaged over pixels.

    python recipes/textbook/vae.py -o vae

Writes pictures of generated, reconstructed and interpolated digits, the latent plane of a VAE with two dimensions, and
curves of the loss as articles write it by mistake (cross-entropy averaged over pixels, KL summed) and mended.

Reference: D. Kingma and M. Welling, "Auto-encoding variational Bayes", ICLR 2014.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from digits import N_TRAIN, digits, draw, options, plt, train
from numpy.typing import NDArray

from audiovae import ArrayCorpus, ArrayVAE, FrameVAE, FrameVAESettings, elbo
from audiovae.cli.progress import print_table


def model_of(latent_dim: int) -> ArrayVAE:
    """The article's: one hidden layer with ReLU each way, sigmoid means, scale exp(log variance / 2)."""
    sizes = FrameVAESettings(
        data="array", likelihood="bernoulli", latent_dim=latent_dim, hidden=(200,), residual=False, activation="relu",
        posterior_scale="exp",
    )  # fmt: skip
    return ArrayVAE(FrameVAE(64, sizes))


def main() -> None:
    given = options(__doc__)
    pictures, shown = digits()
    corpus, test = ArrayCorpus(pictures[:N_TRAIN]), pictures[N_TRAIN:]
    models, rows = {}, []
    for name, latent_dim, reduction in [("vae", 10, "sum"), ("plane", 2, "sum"), ("averaged", 10, "mean")]:
        models[name] = model_of(latent_dim)
        train(models[name], corpus, given.output / name, given.steps, reduction=reduction)
        terms = elbo(models[name].vae, torch.from_numpy(test))
        cross_entropy, kl = -terms.log_likelihood.mean(), terms.kl.mean()
        rows.append([name, reduction, f"{cross_entropy:.2f}", f"{kl:.2f}", f"{-cross_entropy - kl:.2f}"])
    print_table(["model", "over pixels", "cross-entropy", "KL", "bound (nats per digit)"], rows)
    vae = models["vae"]
    draw(torch.cat([vae.sample(1) for _ in range(50)]), given.output / "generated.png", 10)
    both = np.concatenate([test[:10], vae.reconstruct(test[:10]), models["averaged"].reconstruct(test[:10])])
    draw(both, given.output / "reconstructed.png", 10, ["digit", "VAE", "averaged"])
    ends = vae.encode(test[:10]).latents[:, 0]
    shares = torch.linspace(0, 1, 9)[:, None]
    between = torch.cat([ends[i] + shares * (ends[i + 1] - ends[i]) for i in range(0, 10, 2)])
    draw(vae.decode(between), given.output / "interpolated.png", 9)
    draw_plane(models["plane"], test, shown[N_TRAIN:], given.output / "plane.png")
    draw_curves(given.output, ["vae", "averaged"])


def draw_plane(model: ArrayVAE, test: NDArray[np.float32], shown: list[str], path: Path) -> None:
    """Where the digits of the test lie in two latent dimensions, and what the decoder draws there."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    where = model.encode(test).latents[:, 0].numpy()
    points = left.scatter(*where.T, c=[int(digit) for digit in shown], cmap="tab10", s=8)
    figure.colorbar(points, ax=left, label="digit")
    at = torch.linspace(-2.5, 2.5, 15)
    grid = model.decode(torch.cartesian_prod(-at, at).flip(-1)).reshape(15, 15, 8, 8)
    right.imshow(grid.permute(0, 2, 1, 3).reshape(120, 120).numpy(), cmap="gray_r", extent=(-2.5, 2.5, -2.5, 2.5))
    left.set(xlabel="first latent", ylabel="second latent", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(folder: Path, names: list[str]) -> None:
    """The KL by step: averaged over pixels it weighs 64 times too much, and the posterior collapses."""
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for name in names:
        step, _, kl = np.loadtxt(folder / name / "training" / "trace.csv", delimiter=",", skiprows=1, ndmin=2).T
        axis.plot(step, kl, label=name)
    axis.set(xlabel="step", ylabel="KL (nats per digit)")
    axis.legend()
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
