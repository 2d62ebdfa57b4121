"""Second: the conditional VAE, both ways: draw a digit given its label, and tell the label of a digit.

    python recipes/textbook/conditional.py -o conditional

The generator p(x | z, y) with q(z | x, y) and p(z) draws every digit with the same latents in a column, and tells
labels by comparing bounds; the predictor p(y | x, z) with q(z | x, y) and p(z | x), or N(0, I) in its place, tells
them directly: by epoch, too.

Reference: K. Sohn, H. Lee, X. Yan, "Learning structured output representation using deep conditional generative
    models", NeurIPS 2015; D. Kingma et al., "Semi-supervised learning with deep generative models", NeurIPS 2014 (M2).
"""

from __future__ import annotations

import torch
from digits import LABELS, N_TRAIN, digits, draw, options, plt, train
from torch import Tensor

from audiovae import ArrayCorpus, ArrayVAE, FrameVAE, FrameVAESettings, LabelVAE, LabelVAESettings, label_log_probs
from audiovae.cli.progress import print_table

_DRAWS = 20


def generator() -> ArrayVAE:
    """Two hidden layers each way, and softplus for the posterior's scale."""
    sizes = FrameVAESettings(
        data="array", likelihood="bernoulli", labels=LABELS, latent_dim=10, hidden=(200, 100), residual=False,
        activation="relu", posterior_scale="softplus",
    )  # fmt: skip
    return ArrayVAE(FrameVAE(64, sizes))


def predictor(standard_prior: bool) -> LabelVAE:
    """One decision for every picture: no frame sees another."""
    sizes = LabelVAESettings(
        data="array", labels=LABELS, latent_dim=10, width=64, kernel_size=1, blocks=1, halvings=0, pool=False,
        standard_prior=standard_prior,
    )  # fmt: skip
    return LabelVAE(64, sizes)


def main() -> None:
    given = options(__doc__)
    pictures, shown = digits()
    corpus = ArrayCorpus(pictures[:N_TRAIN], {"digit": shown[:N_TRAIN]})
    test = torch.from_numpy(pictures[N_TRAIN:])
    true = torch.tensor([int(digit) for digit in shown[N_TRAIN:]])

    model = generator()
    bound = train(model, corpus, given.output / "generator", given.steps)
    latents = model.vae.generate(10, model.condition(digit="0"))
    drawn = [model.decode(latents, model.condition(digit=digit)) for digit in LABELS["digit"]]
    draw(torch.cat(drawn), given.output / "by_label.png", 10, LABELS["digit"])
    _, by_bound = label_log_probs(model.vae, test, _DRAWS)

    rows = [["generator p(x | z, y)", f"{bound:.2f}", f"{share(by_bound, true):.1%}"]]
    curves = {}
    for name, standard_prior in {"predictor": False, "predictor_standard": True}.items():
        predicts = predictor(standard_prior)
        drawn_from = "N(0, I)" if standard_prior else "p(z | x)"
        curve = curves[drawn_from] = AccuracyByEpoch(predicts, test, true)
        label_bound = train(ArrayVAE(predicts), corpus, given.output / name, given.steps, curve)
        told = share(predicts.predict(test, _DRAWS)[:, 0], true)
        rows.append([f"predictor p(y | x, z), z ~ {drawn_from}", f"{label_bound:.2f}", f"{told:.1%}"])
    print_table(["model", "held-out bound (nats)", f"right of {len(true)}"], rows)
    epochs = [epoch for epoch in (1, 2, 5, 10, 20, 50, 100, 150) if epoch <= len(curve.shares)]
    print_table(
        ["predictor by epoch, z from", *map(str, epochs)],
        [[name, *(f"{of.shares[epoch - 1]:.1%}" for epoch in epochs)] for name, of in curves.items()],
    )
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for name, of in curves.items():
        axis.plot(range(1, len(of.shares) + 1), of.shares, label=f"z ~ {name}")
    axis.set(xlabel="epoch", ylabel="share of labels told")
    axis.legend()
    figure.savefig(given.output / "by_epoch.png", dpi=110)


class AccuracyByEpoch:
    """How many labels a predictor tells after every epoch, by its weights of that step, with one draw of z each."""

    def __init__(self, predicts: LabelVAE, test: Tensor, true: Tensor) -> None:
        self._predicts, self._test, self._true = predicts, test, true
        self.shares: list[float] = []

    def __call__(self, epoch: int) -> None:
        self._predicts.eval()  # no dropout
        with torch.random.fork_rng():  # training draws what it would have drawn
            self.shares.append(share(self._predicts.predict(self._test)[:, 0], self._true))
        self._predicts.train()


def share(scores: Tensor, true: Tensor) -> float:
    """How many labels the scores `[item, label]` tell."""
    return float((scores.argmax(-1) == true).double().mean())


if __name__ == "__main__":
    main()
