"""The stochastic recurrence: the compiled loop against the PyTorch one, and both against what they must be."""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audiovae.networks import recurrence
from audiovae.networks.recurrence import RecurrenceOutput, StochasticRecurrence
from audiovae.networks.scales import LARGEST_SCALE, SCALES, SMALLEST_SCALE

LATENT_DIM = 5
KINDS = {
    "rvae": {"lstm": 12},
    "rvae with a layer": {"lstm": 12, "hidden": [9]},
    "dkf": {"layers_in": [3, 8], "hidden": [4]},
    "srnn": {"hidden": [8, 4]},
    "vrnn": {"layers_in": [3, 6], "lstm": 12},
    "rvae, log variance": {"lstm": 12, "scale": "exp"},
    "srnn, log variance": {"hidden": [8, 4], "scale": "exp"},
}


@pytest.fixture
def compiled() -> None:
    if not recurrence.compiled():
        pytest.skip("no C++ compiler")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As in a process that has not looked for the compiled loop yet, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    recurrence._load.cache_clear()
    yield
    recurrence._load.cache_clear()


def build(kind: str, dtype: torch.dtype = torch.float64) -> StochasticRecurrence:
    torch.manual_seed(0)
    return StochasticRecurrence(LATENT_DIM, **KINDS[kind]).to(dtype)


def inputs(model: StochasticRecurrence, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Drive, noise and, for an LSTM, its input drive."""
    torch.manual_seed(1)
    sizes = (model.drive_size, LATENT_DIM, model.input_drive_size)
    drive, noise, input_drive = (torch.randn(*shape, size, dtype=model.mixer.weight.dtype) for size in sizes)
    return drive, noise, input_drive if model.lstm is not None else None


def tensors(output: RecurrenceOutput) -> list[Tensor]:
    found = (output.latents, output.loc, output.scale, output.states)
    return [x for x in found if x is not None]


def values_and_gradients(model: StochasticRecurrence, shape: tuple[int, ...]) -> list[Tensor]:
    """All outputs, and the gradients of a random function of them all with respect to inputs and weights."""
    drive, noise, input_drive = inputs(model, shape)
    variables = [x.requires_grad_() for x in (drive, input_drive) if x is not None] + list(model.parameters())
    outputs = tensors(model(drive, noise, input_drive))
    loss = torch.stack([(x * torch.randn_like(x)).sum() + x.square().mean() for x in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, variables)]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_equals_pytorch(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype, rtol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(kind, dtype)
    found = values_and_gradients(model, shape)
    monkeypatch.setenv("AUDIOVAE_NO_COMPILER", "1")
    assert not recurrence.compiled()
    expected = values_and_gradients(model, shape)
    assert found[0].shape == (*shape, LATENT_DIM)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol * max(1e-3, y.abs().max().item()))


@pytest.mark.usefixtures("compiled")
def test_compiled_equals_pytorch_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = StochasticRecurrence(16, layers_in=[32, 64], lstm=128, hidden=[128])
    args = torch.randn(33, 20, 128), torch.randn(33, 20, 16), torch.randn(33, 20, 512)
    found = tensors(model(*args))
    monkeypatch.setenv("AUDIOVAE_NO_COMPILER", "1")
    for x, y in zip(found, tensors(model(*args)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_derivatives(kind: str) -> None:
    model = build(kind)
    drive, noise, input_drive = inputs(model, (2, 3))

    def of_drives(drive: Tensor, input_drive: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(tensors(model(drive, noise, input_drive)))

    drives = [x if x is None else x.requires_grad_() for x in (drive, input_drive)]
    assert torch.autograd.gradcheck(of_drives, drives, fast_mode=True)
    for weight in model.parameters():
        assert torch.autograd.gradcheck(lambda _: of_drives(drive, input_drive), weight, fast_mode=True)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_the_values_are_the_same(kind: str) -> None:
    model = build(kind)
    args = inputs(model, (3, 8))
    expected = tensors(model(*args))
    with torch.no_grad():
        found = tensors(model(*args))
    with torch.inference_mode():
        inferred = tensors(model(*args))
    for x, y, z in zip(found, expected, inferred, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(z, y, rtol=1e-9, atol=1e-12)
        assert not x.requires_grad
        assert y.requires_grad


@pytest.mark.usefixtures("compiled")
def test_two_backward_passes_over_one_graph_agree() -> None:
    model = build("vrnn")
    total = torch.stack([x.sum() for x in tensors(model(*inputs(model, (3, 4))))]).sum()
    first = torch.autograd.grad(total, list(model.parameters()), retain_graph=True)
    for x, y in zip(first, torch.autograd.grad(total, list(model.parameters())), strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("compiled")
def test_a_second_derivative_is_refused() -> None:
    model = build("dkf")
    drive, noise, _ = inputs(model, (3, 4))
    (slope,) = torch.autograd.grad(
        model(drive.requires_grad_(), noise).latents.square().sum(), drive, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("no_compiler", ["0", "1"])
def test_lstm_is_pytorchs(no_compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOVAE_NO_COMPILER", no_compiler)
    model = build("rvae")
    assert model.lstm is not None
    drive, noise, _ = inputs(model, (3, 7))
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    lstm = nn.LSTM(4, 12, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        model.lstm.weight_ih.zero_()  # no feedback of z
        for name in ("weight_hh", "bias_ih", "bias_hh"):
            getattr(model.lstm, name).copy_(getattr(lstm, f"{name}_l0"))
    output = model(drive, noise, x @ lstm.weight_ih_l0.T)
    torch.testing.assert_close(output.states, lstm(x)[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(output.loc, (drive + model.mixer(lstm(x)[0]))[..., :LATENT_DIM], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("no_compiler", ["0", "1"])
@pytest.mark.parametrize("kind", KINDS)
def test_path_follows_its_equations(kind: str, no_compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOVAE_NO_COMPILER", no_compiler)
    model = build(kind)
    drive, noise, input_drive = inputs(model, (3, 6))
    output = model(drive, noise, input_drive)
    torch.testing.assert_close(output.latents, output.loc + output.scale * noise)
    assert (output.states is None) == (model.lstm is None)
    longer = model(
        *(None if x is None else torch.cat([x, torch.randn_like(x)], 1) for x in (drive, noise, input_drive))
    )
    torch.testing.assert_close(longer.latents[:, :6], output.latents)  # frames to come make no difference
    mean = model(drive, torch.zeros_like(noise), input_drive)
    assert torch.equal(mean.latents, mean.loc)


FORMULAS = {
    "bounded": lambda h: 1e-6 + 2 / (1 + math.exp(-h)),
    "exp": lambda h: math.exp(h / 2),
    "softplus": lambda h: math.log1p(math.exp(h)),
    "softplus-floor": lambda h: math.log1p(math.exp(h)) + 1e-6,
    "softplus-variance": lambda h: math.sqrt(math.log1p(math.exp(h))),
}


@pytest.mark.parametrize("no_compiler", ["0", "1"])
@pytest.mark.parametrize("scale", SCALES)
def test_scales_are_those_of_their_formulas(scale: str, no_compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In single precision, to 1e-6 of the scale, small ones too."""
    monkeypatch.setenv("AUDIOVAE_NO_COMPILER", no_compiler)
    model = StochasticRecurrence(7, scale=scale)
    torch.nn.init.zeros_(model.mixer.weight)
    spread = [-13.0, -9.0, -2.0, 0.0, 0.7, 3.0, 12.0]
    drive = torch.cat([torch.zeros(7), torch.tensor(spread)]).expand(2, 3, 14)
    expected = torch.tensor([FORMULAS[scale](h) for h in spread]).expand(2, 3, 7)
    torch.testing.assert_close(model(drive, torch.zeros(2, 3, 7)).scale, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e6, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_huge_drives_stay_finite(kind: str, size: float, dtype: torch.dtype) -> None:
    model = build(kind, dtype)
    drive, noise, input_drive = inputs(model, (3, 6))
    drive = (size * drive).requires_grad_()
    output = model(drive, noise, None if input_drive is None else size * input_drive)
    for x in tensors(output):
        assert x.isfinite().all()
    assert output.scale.min() >= 0.999 * SMALLEST_SCALE
    assert output.scale.max() <= 1.001 * (math.exp(30) if "log variance" in kind else LARGEST_SCALE + SMALLEST_SCALE)
    torch.stack([x.mean() for x in tensors(output)]).sum().backward()
    for gradient in (drive.grad, *(weight.grad for weight in model.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.usefixtures("compiled")
def test_not_a_number_is_not_hidden() -> None:
    model = build("rvae", torch.float32)
    drive, noise, input_drive = inputs(model, (2, 4))
    drive[0, 1] = torch.nan
    output = model(drive, noise, input_drive)
    assert output.latents[0, 1:].isnan().all()
    assert output.latents[0, 0].isfinite().all()
    assert output.latents[1].isfinite().all()


@pytest.mark.parametrize("no_compiler", ["0", "1"])
def test_mixed_precision_steps_in_single_precision(no_compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOVAE_NO_COMPILER", no_compiler)
    model = build("vrnn", torch.float32)
    args = inputs(model, (3, 4))
    expected = tensors(model(*args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tensors(model(*args))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    drive, noise, _ = inputs(model, (3, 4))
    drive = drive.bfloat16().requires_grad_()
    output = model(drive, noise.bfloat16())
    assert output.latents.dtype == torch.float32
    output.latents.sum().backward()
    assert drive.grad is not None
    assert drive.grad.dtype == torch.bfloat16


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("which", "shape"), [(0, (3, 4, 9)), (1, (3, 3, 5)), (2, (3, 4, 12)), (1, (4, 5))])
def test_sizes_that_do_not_fit_are_refused(which: int, shape: tuple[int, ...]) -> None:
    model = build("vrnn")
    args = list(inputs(model, (3, 4)))
    args[which] = torch.zeros(shape)
    with pytest.raises(ValueError, match="must have shape"):
        model(*args)


def test_an_input_drive_without_lstm_is_refused() -> None:
    model = build("srnn")
    drive, noise, _ = inputs(model, (3, 4))
    with pytest.raises(ValueError, match="input_drive"):
        model(drive, noise, torch.zeros(3, 4, 0, dtype=torch.float64))


def test_weights_are_those_of_linear_and_lstm_layers() -> None:
    model = StochasticRecurrence(16, lstm=128, hidden=[128])
    sizes = [weight.numel() for weight in model.parameters()]
    assert sum(sizes) == 4 * 128 * (16 + 128 + 2) + 128 * 128 + 129 * 32
    assert (model.drive_size, model.input_drive_size) == (128, 512)


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", "")
    model = build("rvae")
    for _ in range(2):
        assert model(*inputs(model, (3, 4))).latents.isfinite().all()
    (message,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "no C++ compiler found, install g++" in message


@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", "sh -c 'echo some error >&2; exit 1'")
    assert not recurrence.compiled()
    assert "failed: some error" in caplog.text


@pytest.mark.usefixtures("fresh")
def test_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("CXX", "true")
    assert not recurrence.compiled()
    assert str(tmp_path / "file") in caplog.text


@pytest.mark.usefixtures("fresh")
def test_a_broken_library(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", "sh -c 'for target; do :; done; echo nothing > $target' sh")
    assert not recurrence.compiled()
    assert "slower than compiled" in caplog.text


@pytest.mark.usefixtures("compiled")
def test_processes_that_compile_at_the_same_time(tmp_path: Path) -> None:
    library = recurrence._build()
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nfor target; do :; done\nsleep 1\ncp "{library}" "$target"\n')
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    code = "from audiovae.networks import recurrence; raise SystemExit(not recurrence.compiled())"
    environment = {
        **os.environ,
        "CXX": str(compiler),
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert [path.name for path in (cache / "audiovae").iterdir()] == [library.name]
    shutil.rmtree(cache)
