"""Arrays in [0, 1] through the models: against plain PyTorch twins of the same weights and noise, and known numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from audiovae import (
    STFT,
    ArrayCorpus,
    ArrayVAE,
    AudioVAE,
    Autoencoder,
    AutoencoderSettings,
    FrameVAE,
    FrameVAESettings,
    Objective,
    TrainingSettings,
    fit,
    label_log_probs,
    training_loss,
)
from audiovae.errors import CorpusError, ModelError, TrainingError
from audiovae.models import MODELS
from audiovae.objectives import kl

DIGITS = {"digit": tuple("0123456789")}
ARRAY = {"data": "array", "likelihood": "bernoulli", "residual": False, "activation": "relu"}


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


# Twins ---------------------------------------------------------------------------------------------------------------

SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda log_variance: (log_variance / 2).exp(),
    "softplus": functional.softplus,
    "softplus-floor": lambda h: functional.softplus(h) + 1e-6,
    "softplus-variance": lambda h: functional.softplus(h).sqrt(),
}


class Twin(nn.Module):
    """The article's VAE, plain: linear layers with ReLU, cross-entropy and KL summed over pixels and dimensions."""

    def __init__(self, n: int, hidden: tuple[int, ...], latent: int, scale: str, labels: int = 0) -> None:
        super().__init__()
        sizes = [n + labels, *hidden]
        self.down = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.loc, self.spread = nn.Linear(sizes[-1], latent), nn.Linear(sizes[-1], latent)
        sizes = [latent + labels, *reversed(hidden), n]
        self.up = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.scale = SCALES[scale]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = torch.cat([x, y], -1)
        for layer in self.down:
            h = layer(h).relu()
        loc, scale = self.loc(h), self.scale(self.spread(h))
        h = torch.cat([loc + scale * torch.randn(loc.shape), y], -1)
        for layer in list(self.up)[:-1]:
            h = layer(h).relu()
        cross_entropy = functional.binary_cross_entropy_with_logits(self.up[-1](h), x, reduction="sum")
        information = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum()
        return (cross_entropy + information) / len(x)


@torch.no_grad()
def give_weights(twin: Twin, vae: FrameVAE) -> None:
    """The weights of a twin, in ours: loc and spread are one layer, the last bias belongs to the likelihood."""
    *down, heads = linear_layers(vae.encoder)
    for ours, theirs in zip(down + linear_layers(vae.decoder)[:-1], [*twin.down, *list(twin.up)[:-1]], strict=True):
        ours.load_state_dict(theirs.state_dict())
    heads.weight.copy_(torch.cat([twin.loc.weight, twin.spread.weight]))
    heads.bias.copy_(torch.cat([twin.loc.bias, twin.spread.bias]))
    linear_layers(vae.decoder)[-1].weight.copy_(twin.up[-1].weight)
    vae.observation.bias.copy_(twin.up[-1].bias)


FORMS = [
    *[(64, (200,), 10, scale, 0) for scale in SCALES],
    (784, (200,), 10, "exp", 0),
    (64, (), 10, "exp", 0),  # a linear VAE
    (64, (64, 32), 10, "softplus", 10),  # the conditional one
]


@pytest.mark.parametrize(("n", "hidden", "latent", "scale", "labels"), FORMS)
def test_loss_and_gradients_are_those_of_a_plain_twin(
    n: int, hidden: tuple[int, ...], latent: int, scale: Any, labels: int
) -> None:
    torch.manual_seed(0)
    twin = Twin(n, hidden, latent, scale, labels)
    settings = FrameVAESettings(
        latent_dim=latent, hidden=hidden, posterior_scale=scale, labels=DIGITS if labels else {}, **ARRAY
    )
    vae = FrameVAE(n, settings)
    give_weights(twin, vae)
    x, y = pictures(32, n), functional.one_hot(torch.arange(32) % max(1, labels), labels or 1).float()[:, :labels]
    torch.manual_seed(1)
    expected = twin(x, y)
    torch.manual_seed(1)
    loss = training_loss(vae, x[:, None], y if labels else None, Objective())[0]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    expected.backward()
    loss.backward()
    assert vae.observation.bias.grad is not None
    torch.testing.assert_close(vae.observation.bias.grad, twin.up[-1].bias.grad, rtol=1e-4, atol=1e-6)
    heads = linear_layers(vae.encoder)[-1].weight.grad
    assert heads is not None
    assert twin.loc.weight.grad is not None
    assert twin.spread.weight.grad is not None
    torch.testing.assert_close(heads, torch.cat([twin.loc.weight.grad, twin.spread.weight.grad]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("likelihood", ["bernoulli", "squared-error"])
def test_the_autoencoder_of_one_layer_with_relu_to_its_code_is_that_of_a_plain_twin(likelihood: Any) -> None:
    torch.manual_seed(0)
    settings = AutoencoderSettings(
        latent_dim=200, hidden=(), code_activation="relu", data="array", likelihood=likelihood
    )
    vae = Autoencoder(784, settings)
    down, up = linear_layers(vae.encoder)[0], linear_layers(vae.decoder)[0]
    x = pictures(16, 784)
    code = functional.linear(x, down.weight, down.bias).relu()
    output = functional.linear(code, up.weight) + vae.observation.bias
    if likelihood == "bernoulli":
        expected = functional.binary_cross_entropy(output.sigmoid(), x, reduction="sum") / 16
        mean = output.sigmoid()
    else:
        expected, mean = 0.5 * (x - output).square().sum() / 16 + 392 * math.log(2 * math.pi), output
    loss = training_loss(vae, x[:, None], None, Objective())
    torch.testing.assert_close(loss, torch.stack([expected, torch.zeros(())]), rtol=1e-5, atol=0)
    assert (vae.infer(x[:, None]).latents[:, 0] - code).abs().max() < 1e-5
    torch.testing.assert_close(ArrayVAE(vae).reconstruct(x[:, None])[:, 0], mean, rtol=1e-4, atol=1e-5)


def test_trained_on_digits_the_bound_is_that_of_a_plain_twin(tmp_path: Path) -> None:
    """64-200-10, other first weights, other batches: within 1 % on the pictures that neither has seen."""
    pixels = torch.from_numpy(load_digits().data / 16).float()
    train, test = pixels[:1500], pixels[1500:]
    torch.manual_seed(0)
    model = ArrayVAE(FrameVAE(64, FrameVAESettings(**ARRAY, latent_dim=10, hidden=(200,), posterior_scale="exp")))
    settings = TrainingSettings(steps=800, batch_frames=128, segment_frames=1, validate_every=800)
    corpus = ArrayCorpus(train[:, None].numpy())
    fit(model, corpus, corpus, tmp_path / "model", settings)
    twin = Twin(64, (200,), 10, "exp")
    adam = torch.optim.Adam(twin.parameters(), 3e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 800)
    for _ in range(800):
        adam.zero_grad()
        twin(train[torch.randint(len(train), (128,))], torch.zeros(128, 0)).backward()
        adam.step()
        cosine.step()
    repeated = test.repeat(10, 1)
    with torch.no_grad():
        theirs = -float(twin(repeated, torch.zeros(len(repeated), 0)))
    assert float(model.log_likelihood(repeated[:, None]).mean()) == pytest.approx(theirs, rel=0.01)


def test_a_mean_over_pixels_weighs_the_kl_as_many_times_more() -> None:
    vae, x = FrameVAE(64, FrameVAESettings(**ARRAY, hidden=(8,), latent_dim=3)), pictures(32, 1, 64)
    torch.manual_seed(1)
    inference = vae.infer(x)
    cross_entropy = functional.binary_cross_entropy(vae.likelihood(inference.latents).mean, x)
    torch.manual_seed(1)
    loss = training_loss(vae, x, None, Objective(reduction="mean"))[0]
    torch.testing.assert_close(loss, cross_entropy + kl(inference).mean(), rtol=1e-5, atol=0)


# Likelihoods and frames ----------------------------------------------------------------------------------------------


def test_likelihoods_score_real_arrays_and_have_a_mean() -> None:
    x, z = pictures(5, 3, 12), torch.randn(5, 3, 4)
    for likelihood in ("bernoulli", "squared-error"):
        vae = FrameVAE(12, FrameVAESettings(data="array", likelihood=likelihood, latent_dim=4, hidden=(8,)))  # type: ignore[arg-type]
        distribution = vae.likelihood(z)
        mean = distribution.mean.detach()
        if likelihood == "bernoulli":
            expected = (x * mean.log() + (1 - x) * (1 - mean).log()).sum(-1)
        else:
            expected = torch.from_numpy(scipy.stats.norm.logpdf(x.numpy(), loc=mean.numpy()).sum(-1)).float()
        torch.testing.assert_close(distribution.log_prob(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vae.log_likelihood(z, x), expected, rtol=1e-5, atol=1e-5)
        assert distribution.sample().shape == x.shape


def test_a_gaussian_has_the_variance_that_its_decoder_gives() -> None:
    vae = FrameVAE(12, FrameVAESettings(data="array", likelihood="gaussian", latent_dim=4, hidden=(8,)))
    x, z = pictures(5, 3, 12), torch.randn(5, 3, 4)
    outputs = (vae.decode(z, None, None) + vae.observation.bias).detach().reshape(5, 3, 12, 2)
    mean, deviation = outputs[..., 0], (outputs[..., 1].exp() + 1e-4).sqrt()
    expected = scipy.stats.norm.logpdf(x.numpy(), mean.numpy(), deviation.numpy()).sum(-1)
    torch.testing.assert_close(vae.log_likelihood(z, x), torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vae.likelihood(z).mean, mean)


def test_a_categorical_is_torchs_own_of_the_number_of_the_step() -> None:
    settings = FrameVAESettings(data="array", likelihood="categorical", n_values=17, latent_dim=4, hidden=(8,))
    vae, z, step = FrameVAE(12, settings), torch.randn(5, 3, 4), torch.randint(17, (5, 3, 12))
    logits = (vae.decode(z, None, None) + vae.observation.bias).reshape(5, 3, 12, 17)
    own = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(vae.log_likelihood(z, step / 16), own.log_prob(step).sum(-1))
    mean = (own.probs * torch.arange(17)).sum(-1) / 16
    torch.testing.assert_close(vae.likelihood(z).mean, mean)
    assert torch.equal(vae.likelihood(z).log_prob(step / 16 + 0.02), vae.likelihood(z).log_prob(step / 16))
    assert set((vae.likelihood(z).sample() * 16).flatten().tolist()) <= set(range(17))


def test_training_of_other_observations_starts_at_their_distribution_over_pictures() -> None:
    x = torch.tensor([0.0, 0.0, 0.5, 1.0])[:, None].expand(4, 12)
    for likelihood, variance in {"gaussian": 0.171875, "categorical": None}.items():
        settings = FrameVAESettings(data="array", likelihood=likelihood, n_values=3, latent_dim=4, hidden=(8,))  # type: ignore[arg-type]
        vae = FrameVAE(12, settings)
        vae.calibrate(x)
        nn.init.zeros_(linear_layers(vae.decoder)[-1].weight)
        start = vae.likelihood(torch.zeros(1, 4)).base_dist
        if variance is not None:
            torch.testing.assert_close(start.mean, torch.full((1, 12), 0.375))
            torch.testing.assert_close(start.variance, torch.full((1, 12), variance + 2e-4))
        else:  # counts 2, 1, 1, each of them once more
            torch.testing.assert_close(start.probs, (torch.tensor([3.0, 2.0, 2.0]) / 7).expand(1, 12, 3))


OTHERS = {
    "gaussian": {"likelihood": "gaussian"},
    "categorical": {"likelihood": "categorical", "n_values": 17},
    "von-mises-fisher": {"latent": "von-mises-fisher"},
    "dirichlet": {"latent": "dirichlet"},
}
RUNS: dict[str, dict[str, Any]] = {
    **{name: {} for name in OTHERS},
    "annealed": {"beta_warmup": 0.5, "beta_cycles": 2},
    "importance-weighted": {"importance_samples": 5},
}


@pytest.mark.parametrize("name", RUNS)
def test_observations_latents_and_objectives_of_all_kinds_learn_digits(name: str, tmp_path: Path) -> None:
    """In nats, better than pixels that are independent, with the distribution that each has over the training set."""
    pixels = torch.from_numpy(load_digits().data / 16).float()
    train, test = pixels[:1400], pixels[1400:1500]
    torch.manual_seed(0)
    model = ArrayVAE(
        FrameVAE(64, FrameVAESettings(**{**ARRAY, "hidden": (64,), "latent_dim": 8, **OTHERS.get(name, {})}))
    )
    corpus = ArrayCorpus(train[:, None].numpy())
    settings = TrainingSettings(
        steps=300,
        batch_frames=128,
        segment_frames=1,
        validate_every=300,
        learning_rate=1e-2,
        averaging=0.99,
        **RUNS[name],
    )
    fit(model, corpus, corpus, tmp_path / "model", settings)
    alone = FrameVAE(64, replace(model.vae.settings, latent="gaussian"))  # type: ignore[type-var]
    alone.calibrate(train)
    nn.init.zeros_(linear_layers(alone.decoder)[-1].weight)
    independent = float(alone.log_likelihood(torch.zeros(100, 1, 8), test[:, None]).detach().mean())
    gain = float(model.log_likelihood(test[:, None]).mean()) - independent
    assert gain > {"gaussian": 25, "categorical": 10}.get(name, 1.0)
    assert model.sample(3).shape == (3, 64)
    assert len(model.encode(test[:5, None]).latents.unique()) > 5


def test_training_starts_at_the_mean_picture() -> None:
    x = torch.stack([torch.zeros(12), 0.5 * torch.ones(12)])[:, None]
    for likelihood in ("bernoulli", "squared-error"):
        settings = AutoencoderSettings(data="array", likelihood=likelihood, latent_dim=4, hidden=(8,))  # type: ignore[arg-type]
        model = ArrayVAE(Autoencoder(12, settings))
        model.calibrate(x)
        start = model.decode(torch.zeros(1, 4))
        torch.nn.init.zeros_(linear_layers(model.vae.decoder)[-1].weight)
        torch.testing.assert_close(model.decode(torch.zeros(1, 4)), torch.full((1, 12), 0.25))
        assert (start - 0.25).abs().max() < 0.1


def test_a_black_picture_counts() -> None:
    """In the loss, in validation and in the bound; of sound a frame of zeros would not."""
    settings = AutoencoderSettings(data="array", likelihood="bernoulli", latent_dim=4, hidden=(8,))
    model = ArrayVAE(Autoencoder(12, settings)).eval()
    x = torch.cat([torch.zeros(3, 1, 12), pictures(1, 1, 12)])
    each = functional.binary_cross_entropy(model.reconstruct(x), x, reduction="none").sum(-1)
    torch.testing.assert_close(model.loss(x, None, Objective())[0], each.mean())
    torch.testing.assert_close(-model.elbo(x, None).bound, each.flatten())
    torch.testing.assert_close(-model.log_likelihood(x), each)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "LabelVAE"])
def test_every_model_of_arrays_takes_every_observation_of_them(kind: str, likelihood: str) -> None:
    """The loss of one batch falls below where training starts: at the distribution of each bin."""
    torch.manual_seed(0)
    model_class, settings_class = MODELS[kind]
    model = ArrayVAE(model_class(16, settings_class(data="array", likelihood=likelihood, n_values=11)))
    x = 0.8 * (pictures(8, 8, 1) > 0.5).float() + 0.2 * pictures(8, 8, 16, seed=1)
    model.calibrate(x)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model.loss(x, None, Objective())[0]
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5
    with torch.no_grad():
        assert model.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_takes_arrays(kind: str) -> None:
    """It learns: the loss of one batch falls under that of its mean picture, or below one bit a label."""
    torch.manual_seed(0)
    model_class, settings_class = MODELS[kind]
    chosen: dict[str, Any] = {} if kind == "LabelVAE" else {"likelihood": "bernoulli"}
    labels = {"label": ("a", "b")} if kind in ("LabelVAE", "FrameVAE") else None
    model = ArrayVAE(model_class(16, settings_class(data="array", **chosen, **({"labels": labels} if labels else {}))))
    x = (pictures(8, 8, 1) > 0.5).float().expand(8, 8, 16) * 0.9
    y = functional.one_hot((torch.arange(8) < 4).long(), 2).float() if labels else None
    model.calibrate(x)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        loss = model.loss(x, y, Objective())
        adam.zero_grad()
        loss[0].backward()
        adam.step()
    model.eval().requires_grad_(False)
    mean = x.mean((0, 1))
    alone = -(mean * mean.log() + (1 - mean) * (1 - mean).log()).sum() if kind != "LabelVAE" else math.log(2)
    assert float(model.elbo(x, y).bound.mean()) > -float(alone)
    if model.vae.has_prior and kind != "LabelVAE":
        drawn = model.sample(8, None if y is None else y[0])
        assert drawn.shape == (8, 16)
        assert ((drawn >= 0) & (drawn <= 1)).all()


def test_labels_are_told_by_comparing_bounds() -> None:
    """A decoder that draws one of two pictures by its label alone."""
    vae = FrameVAE(4, FrameVAESettings(**ARRAY, hidden=(), latent_dim=1, labels={"half": ("left", "right")}))
    pictures_of = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    with torch.no_grad():
        for network in (vae.encoder, vae.decoder):
            network[-1].weight.zero_()
        vae.decoder[-1].weight[:, 1:] = 3 * (2 * pictures_of.T - 1)
    _, log_probs = label_log_probs(vae, pictures_of[:, None])
    wrong = math.log(1 / (1 + math.exp(12)))  # four pixels, each of them e^3 times likelier in the other picture
    torch.testing.assert_close(log_probs[0, 1], torch.tensor(wrong), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(log_probs.exp(), torch.eye(2), rtol=0, atol=1e-4)


# Files and training --------------------------------------------------------------------------------------------------


def small(**settings: Any) -> ArrayVAE:
    torch.manual_seed(0)
    return ArrayVAE(FrameVAE(12, FrameVAESettings(**{**ARRAY, "hidden": (16,), "latent_dim": 3, **settings})))


SHORT = TrainingSettings(
    steps=60, batch_frames=32, segment_frames=1, learning_rate=1e-2, validate_every=20, log_every=5
)


def test_a_saved_model_loads_as_the_same_and_as_no_other(tmp_path: Path, prior: AudioVAE) -> None:
    model, x = small(posterior_scale="softplus"), pictures(3, 2, 12).numpy()
    model.save_pretrained(tmp_path / "arrays")
    again = ArrayVAE.from_pretrained(tmp_path / "arrays")
    assert again.model_hash() == model.model_hash()
    assert again.vae.settings == model.vae.settings
    np.testing.assert_array_equal(again.reconstruct(x), model.reconstruct(x))
    assert "Arrays in [0, 1], FrameVAE" in (tmp_path / "arrays" / "README.md").read_text()
    with pytest.raises(ModelError, match=r"it is a model of arrays: ArrayVAE.from_pretrained loads it"):
        AudioVAE.from_pretrained(tmp_path / "arrays")
    prior.save_pretrained(tmp_path / "sound")
    with pytest.raises(ModelError, match=r"it is a model of sound: AudioVAE.from_pretrained loads it"):
        ArrayVAE.from_pretrained(tmp_path / "sound")


def test_models_of_sound_and_of_arrays_are_held_by_their_own_class() -> None:
    with pytest.raises(ValueError, match="give its settings data='array'"):
        ArrayVAE(FrameVAE(12, FrameVAESettings(hidden=(4,))))
    with pytest.raises(ValueError, match="a model of arrays takes no waves"):
        AudioVAE(STFT(22, 11), small().vae, 8000)


def test_arrays_outside_the_range_or_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"arrays must be in \[0, 1\], got 0 to 255; scale them"):
        small().reconstruct(torch.arange(256.0)[:252].reshape(-1, 1, 12) / 251 * 255)
    with pytest.raises(ValueError, match=r"frames of 12 numbers, got shape \[2, 1, 16\]"):
        small().log_likelihood(pictures(2, 1, 16))


def test_fit_trains_on_arrays_and_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    """Two noisy pictures: the bound passes that of independent pixels. Killed halfway, the weights are the same."""
    which = pictures(400, 1, 1) > 0.5
    x = (torch.where(which, 0.9, 0.1) * torch.ones(12) + 0.05 * pictures(400, 1, 12, seed=1)).numpy()
    labels = {"kind": ["a" if w else "b" for w in which.flatten()]}
    corpus = ArrayCorpus(x, labels)
    model = small(labels={"kind": corpus.classes("kind")}, hidden=(16,))
    fitted = fit(model, corpus, corpus, tmp_path / "whole", SHORT)
    mean = x.mean(0)
    assert fitted.elbo > float((mean * np.log(mean) + (1 - mean) * np.log(1 - mean)).sum()) + 2
    assert "# A prior of arrays in [0, 1]" in (tmp_path / "whole" / "README.md").read_text()

    def stop(progress: Any) -> None:
        if progress.step == 40:
            raise KeyboardInterrupt

    halved = small(labels={"kind": corpus.classes("kind")}, hidden=(16,))
    with pytest.raises(KeyboardInterrupt):
        fit(halved, corpus, corpus, tmp_path / "halved", SHORT, progress=stop)
    again = small(labels={"kind": corpus.classes("kind")}, hidden=(16,))
    fit(again, corpus, corpus, tmp_path / "halved", SHORT)
    assert again.model_hash() == model.model_hash() == ArrayVAE.from_pretrained(tmp_path / "halved").model_hash()


def test_what_does_not_fit_together_is_told_before_training(tmp_path: Path, prior: AudioVAE) -> None:
    corpus = ArrayCorpus(pictures(20, 3, 12).numpy())
    refused: list[tuple[Any, TrainingSettings, type[Exception], str]] = [
        (prior, SHORT, TrainingError, "the arrays are no sound, and the model has 16000 Hz"),
        (small(), TrainingSettings(), CorpusError, "the arrays: have 3 frames at the least, fewer than a segment"),
        (small(), TrainingSettings(equaliser_db=1.0), TrainingError, "equaliser_db is of sound"),
        (
            ArrayVAE(FrameVAE(9, FrameVAESettings(**ARRAY))),
            SHORT,
            TrainingError,
            "the corpus has frames of 12 numbers, the model of 9",
        ),
    ]
    for i, (model, settings, kind, message) in enumerate(refused):
        with pytest.raises(kind, match=message):
            fit(model, corpus, corpus, tmp_path / str(i), settings)
