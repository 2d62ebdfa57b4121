"""Second: the conditional VAE, both ways: draw a digit given its label, and tell the label of a digit.

    python recipes/textbook/conditional.py -o conditional

The generator p(x | z, y) with q(z | x, y) and p(z) draws every digit with the same latents in a column, and tells
labels by comparing bounds; the predictor p(y | x, z) with q(z | x, y) and p(z | x), or N(0, I) in its place, tells
them directly.

Reference: K. Sohn, H. Lee, X. Yan, "Learning structured output representation using deep conditional generative
    models", NeurIPS 2015; D. Kingma et al., "Semi-supervised learning with deep generative models", NeurIPS 2014 (M2).
"""

from __future__ import annotations

import torch
from digits import LABELS, N_TRAIN, digits, draw, options, train
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

    rows = [["generator p(x | z, y)", f"{bound:.2f}", share(by_bound, true)]]
    for name, standard_prior in {"predictor": False, "predictor_standard": True}.items():
        predicts = predictor(standard_prior)
        label_bound = train(ArrayVAE(predicts), corpus, given.output / name, given.steps)
        drawn_from = "N(0, I)" if standard_prior else "p(z | x)"
        by_prediction = predicts.predict(test, _DRAWS)[:, 0]
        rows.append([f"predictor p(y | x, z), z ~ {drawn_from}", f"{label_bound:.2f}", share(by_prediction, true)])
    print_table(["model", "held-out bound (nats)", f"right of {len(true)}"], rows)


def share(scores: Tensor, true: Tensor) -> str:
    """How many labels the scores `[item, label]` tell."""
    return f"{(scores.argmax(-1) == true).double().mean():.1%}"


if __name__ == "__main__":
    main()
