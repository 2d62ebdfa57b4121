"""What the scripts beside it share: the digits of scikit-learn, one frame of 64 pixels each, and pictures of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from audiovae import ArrayCorpus, ArrayVAE, TrainingSettings, fit

mpl.use("Agg")
import matplotlib.pyplot as plt

BATCH = 128
N_TRAIN = 1500  # of 1797; the last ones, other writers' for the most part, are for testing
LABELS = {"digit": tuple("0123456789")}


def options(description: str | None) -> argparse.Namespace:
    """The options of a script, its threads and its seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for models and pictures")
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return given


def digits() -> tuple[NDArray[np.float32], list[str]]:
    """All digits, `[item, 1, pixel]` in [0, 1], and what they show."""
    pixels, shown = load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32)[:, None], [str(digit) for digit in shown]


def train(
    model: ArrayVAE,
    corpus: ArrayCorpus,
    folder: Path,
    steps: int,
    at_epoch: Callable[[int], None] = lambda epoch: None,
    **settings: object,
) -> float:
    """Fit a model; its best bound, in nats per picture, on the pictures that were held out.

    Args:
        at_epoch: called after every epoch with its number, the model being that of the last step.
    """
    epoch = -(-len(corpus.split("train")) // BATCH)  # in steps
    chosen = TrainingSettings(steps=steps, batch_frames=BATCH, segment_frames=1, log_every=epoch, **settings)  # type: ignore[arg-type]

    def progress(now: Any) -> None:
        if now.step % epoch == 0 and now.elbo is None:
            at_epoch(now.step // epoch)

    return fit(model, corpus, corpus, folder, chosen, overwrite=True, progress=progress).elbo


def draw(pictures: Tensor | NDArray[np.float32], path: Path, columns: int, titles: Sequence[str] = ()) -> None:
    """A grid of pictures `[item, ..., pixel]`, row by row; `titles` of the rows."""
    grid = np.asarray(pictures).reshape(-1, columns, 8, 8)
    figure, axes = plt.subplots(
        len(grid), columns, figsize=(0.6 * columns, 0.6 * len(grid)), squeeze=False, layout="constrained"
    )
    for i, row in enumerate(axes):
        for axis, picture in zip(row, grid[i], strict=True):
            axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        if titles:
            row[0].set_ylabel(titles[i], rotation=0, ha="right", va="center", fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
