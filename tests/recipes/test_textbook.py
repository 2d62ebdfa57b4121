"""The textbook's scripts run, and leave the pictures and models that they promise."""

from __future__ import annotations

import importlib
import itertools
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from audiovae import ArrayCorpus, ArrayVAE, AudioVAE
from audiovae.cli.main import main

TEXTBOOK = Path(__file__).resolve().parents[2] / "recipes" / "textbook"
LEFT = {
    "vae": ({"generated", "reconstructed", "interpolated", "plane", "curves"}, {"vae", "plane", "averaged"}),
    "conditional": ({"by_label", "by_epoch"}, {"generator", "predictor", "predictor_standard"}),
    "autoencoder": ({"denoised"}, {"plain", "without"}),
}


N_TRAIN, STEPS = 1500, 800


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    monkeypatch.syspath_prepend(str(TEXTBOOK))
    yield importlib.import_module
    for name in (*LEFT, "digits"):
        sys.modules.pop(name, None)


def trained(layers: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The loss of a plain PyTorch twin on the digits of the test, by a loop of the simplest kind."""
    x, y = torch.from_numpy(load_digits().data / 16).float(), functional.one_hot(torch.from_numpy(load_digits().target))
    adam = torch.optim.Adam(layers.parameters(), 3e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for _ in range(STEPS):
        drawn = torch.randint(N_TRAIN, (128,))
        adam.zero_grad()
        loss(x[drawn], y[drawn]).backward()
        adam.step()
        cosine.step()
    with torch.no_grad():
        return float(loss(x[N_TRAIN:].repeat(10, 1), y[N_TRAIN:].repeat(10, 1)))


def perceptron(*widths: int) -> nn.Sequential:
    layers = [layer for sizes in itertools.pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def cross_entropy(logits: Tensor, x: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)


def test_the_conditional_vae_is_as_good_as_a_plain_twin(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Bounds of test digits, from other first weights and other batches: within 1 %."""
    torch.manual_seed(0)
    twin = nn.ModuleList([perceptron(74, 200, 100, 20), perceptron(20, 100, 200, 64)])

    def loss(x: Tensor, y: Tensor) -> Tensor:
        loc, spread = twin[0](torch.cat([x, y], -1)).chunk(2, -1)
        scale = functional.softplus(spread)
        z = loc + scale * torch.randn(loc.shape)
        information = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum() / len(x)
        return cross_entropy(twin[1](torch.cat([z, y], -1)), x) + information

    expected = trained(twin, loss)
    model, data = script("conditional").generator(), script("digits")
    pictures, shown = data.digits()
    data.train(model, ArrayCorpus(pictures[:N_TRAIN], {"digit": shown[:N_TRAIN]}), tmp_path / "model", STEPS)
    y = functional.one_hot(torch.tensor([int(digit) for digit in shown[N_TRAIN:]])).float()
    bound = model.log_likelihood(torch.from_numpy(pictures[N_TRAIN:]).repeat(10, 1, 1), condition=y.repeat(10, 1))
    assert -float(bound.mean()) == pytest.approx(expected, rel=0.01)


def test_the_autoencoder_is_as_good_as_a_plain_twin(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Both start near the mean digit: far from there the twin has got less far in so few steps."""
    model, data = script("autoencoder").autoencoder(), script("digits")
    pictures, _ = data.digits()
    torch.manual_seed(0)
    twin = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
    with torch.no_grad():
        twin[2].weight.mul_(0.1)
        twin[2].bias.copy_(torch.logit(torch.from_numpy(pictures[:N_TRAIN, 0]).mean(0).clamp(0.01, 0.99)))
    expected = trained(twin, lambda x, y: cross_entropy(twin(x), x))
    data.train(model, ArrayCorpus(pictures[:N_TRAIN]), tmp_path / "model", STEPS)
    assert -float(model.log_likelihood(pictures[N_TRAIN:]).mean()) == pytest.approx(expected, rel=0.01)


def test_every_script_is_tested() -> None:
    assert {path.stem for path in TEXTBOOK.glob("*.py")} == {*LEFT, "digits"}


@pytest.mark.parametrize("name", LEFT)
def test_a_script_leaves_its_pictures_and_models(
    name: str,
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "-o", str(tmp_path), "--steps", "50"])
    runpy.run_path(str(TEXTBOOK / f"{name}.py"), run_name="__main__")
    pictures, models = LEFT[name]
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == models
    for model in models:
        assert ArrayVAE.from_pretrained(tmp_path / model).vae.n_freqs == 64
    assert "nan" not in capsys.readouterr().out


def test_then_speech_changes_what_is_observed_and_its_likelihood_alone(
    script: Callable[[str], ModuleType], packed: Path, tmp_path: Path
) -> None:
    """The command of the README trains; its settings are those of the digits' VAE otherwise."""
    (command,) = re.findall(r"^    audiovae train PACKED -o speech (.*)$", (TEXTBOOK / "README.md").read_text(), re.M)
    short = ["--training.steps=2", "--training.batch_frames=64", "--quiet"]
    assert main(["train", str(packed), "-o", str(tmp_path / "speech"), *command.split(), *short]) == 0
    speech, digits = AudioVAE.from_pretrained(tmp_path / "speech").vae, script("vae").model_of(10).vae
    assert replace(speech.settings, data="array", likelihood="bernoulli") == digits.settings
    assert type(speech) is type(digits)
