"""Neural FCA: bounds, gradients and images of separators that are learnt from mixtures. Takes 20 s."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, build_prior
from mixtures import dynamic_prior, reverberant
from torch import Tensor

from audiovae import STFT, AudioError, AudioVAE, AudiovaeError, ModelError, spectrogram_level
from audiovae.cli.main import main
from audiovae.models import build
from audiovae.objectives import Objective
from audiovae.saved import shipped_names
from audiovae.separation import (
    Amortised,
    DeepSettings,
    DeepSource,
    EMSettings,
    Floor,
    Mixture,
    NeuralFCA,
    NeuralSeparator,
    RoomFile,
    Separator,
    build_separator,
    separate,
    separate_files,
    separator,
)
from audiovae.separation.neural import separators
from audiovae.separation.spatial.covariances import masked_covariances
from audiovae.separation.spatial.full_rank import FullRank
from audiovae.settings import MODEL_SETTINGS, NeuralSettings, TrainingSettings

SIZES = NeuralSettings(width=8, dilations=(1, 2), stages=2, updates=2)
KINDS = [
    pytest.param({"type": kind, "start": start, "encoder": encoder}, id=f"{kind} {start} {encoder}")
    for kind in ("NeuralFastFCA", "NeuralFCA")
    for start, encoder in (("iva", "prior"), ("none", "own"))
]


def model_of(alive: bool = True, prior: AudioVAE | None = None, **settings: Any) -> NeuralSeparator:
    """A small one, whose heads say something."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_separator(prior or dynamic_prior(), replace(SIZES, **settings))
        if alive:
            for stage in model.network.stages:
                torch.nn.init.normal_(stage.head.weight, std=0.5)
    return model.eval()


def sound(n_channels: int = 3, seconds: float = 1.0) -> Tensor:
    return reverberant(seconds, n_channels).float()


def mixture_of(model: NeuralSeparator, wave: Tensor) -> Mixture:
    level = wave.square().mean().sqrt().reshape(1)
    return Mixture.of([model.front.stft(wave).movedim(0, -1)], level, [0], waves=[wave])


def images_of(model: NeuralSeparator, wave: Tensor, n_sources: int = 2, start: Tensor | None = None) -> Tensor:
    """`[source, frame, freq, channel]`, in one pass."""
    mixture = mixture_of(model, wave)
    with torch.no_grad():
        found = model.infer(mixture, model.start(mixture, n_sources) if start is None else start, mean=True)
        return found.space.images(found.psds, [0])[:, 0]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().square().sum().sqrt() / b.abs().square().sum().sqrt())


# The bound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["NeuralFastFCA", "NeuralFCA"])
def test_the_bound_of_a_decoder_that_hears_no_latents_is_the_density_less_the_divergence(kind: str) -> None:
    """Then log p(x | z) = log p(x) = log N_C(x; 0, sum_n lambda_n H_n) whatever z is, and the KL has a closed form."""
    prior = build_prior()
    with torch.no_grad():
        for weight in prior.vae.decoder.parameters():
            weight.zero_()
    model = model_of(prior=prior, type=kind, start="none", encoder="own")
    mixture = mixture_of(model, sound(2, 0.4))
    observed = mixture.spectrogram
    with torch.no_grad():
        found = model.infer(mixture, model.start(mixture, 2))
        torch.manual_seed(1)
        terms = model.elbo(observed, None)

    x = mixture.spectrogram[0].to(torch.complex128).numpy()  # [frame, freq, channel]
    psds = np.stack([psd[0, 0].double().numpy() for psd in found.psds])
    if kind == "NeuralFCA":
        h = found.space.h[:, 0].numpy()
    else:
        back = np.linalg.inv(found.space.q[0].to(torch.complex128).numpy())
        gains = found.space.gains[:, 0].double().numpy()
        h = np.einsum("fim,nfm,fjm->nfij", back, gains, back.conj())
        h[2] = np.eye(2)
    y = np.einsum("ntf,nfij->tfij", psds, h)
    quadratic = np.einsum("tfi,tfi->tf", x.conj(), np.linalg.solve(y, x[..., None])[..., 0]).real
    density = -(np.linalg.slogdet(math.pi * y)[1] + quadratic).sum(-1)
    assert np.allclose(terms.log_likelihood.numpy(), density, rtol=2e-3, atol=1.0)

    divergence = np.zeros(len(x))
    for m, s in zip(found.posterior.mean[:, 0].numpy(), found.posterior.stddev[:, 0].numpy(), strict=True):
        divergence += 0.5 * (m**2 + s**2 - 1 - np.log(s**2)).sum(-1)
    assert np.allclose(terms.kl.numpy(), divergence, rtol=1e-4)


@pytest.mark.parametrize("kind", ["NeuralFastFCA", "NeuralFCA"])
def test_a_second_stage_sees_the_power_that_the_filter_leaves_each_source_at_its_level(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(type=kind)
    mixture = mixture_of(model, sound(3, 0.5))
    network, seen = model.network.forward, list[Tensor]()

    def forward(stage: int, hidden: Tensor, powers: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(powers)
        return network(stage, hidden, powers)

    monkeypatch.setattr(model.network, "forward", forward)
    with torch.no_grad():
        start = model.start(mixture, 2)
        model.infer(mixture, start)
        model.settings = replace(model.settings, stages=1)
        first = model.infer(mixture, start, mean=True)
        left = first.space.images(first.psds, [0])[:2].abs().square().mean(-1)
    level = spectrogram_level(start[1, 0], model.prior.stft.window, RATE)
    assert torch.allclose(seen[0][1, 0], start[1, 0] / level**2, rtol=1e-5)
    assert torch.allclose(seen[1][1, 0], left[1, 0] / level**2, rtol=1e-4)


def test_the_loss_weighs_the_divergence_by_beta() -> None:
    model = model_of(start="none", encoder="own")
    observed = mixture_of(model, sound(3, 0.5)).spectrogram

    def loss(beta: float) -> Tensor:
        torch.manual_seed(0)
        return model.loss(observed, None, Objective(beta)).detach()

    (plain, kl), (heavy, _) = loss(1.0), loss(6.0)
    torch.manual_seed(0)
    with torch.no_grad():
        terms = model.elbo(observed, None)
    assert float(kl) == pytest.approx(float(terms.kl.mean()), rel=1e-5)
    assert float(plain) == pytest.approx(float((terms.kl - terms.log_likelihood).mean()), rel=1e-5)
    assert float(heavy - plain) == pytest.approx(5 * float(kl), rel=1e-3)


@pytest.mark.parametrize("settings", KINDS)
def test_the_gradient_passes_through_stages_and_updates(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against finite differences in double precision; where space begins is told by the first PSDs, without one."""
    begun: list[Tensor] = []

    def once(*arguments: Any) -> Tensor:
        begun.append(begun[0] if begun else masked_covariances(*arguments))
        return begun[0]

    monkeypatch.setattr(separators, "masked_covariances", once)
    model = model_of(**settings).double()
    mixture = mixture_of(model, sound(3, 0.5).double())
    start = model.start(mixture, 2)
    weight = model.network.stages[0].head.bias
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)

    def nll(step: float) -> Tensor:
        with torch.no_grad():
            weight.add_(step * direction)
        found = model.infer(mixture, start, mean=True)
        loss = found.space.nll(found.psds).mean()
        with torch.no_grad():
            weight.sub_(step * direction)
        return loss

    (slope,) = torch.autograd.grad(nll(0.0), weight)
    with torch.no_grad():
        expected = float(nll(1e-4) - nll(-1e-4)) / 2e-4
    assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_checkpointed_updates_have_the_gradient_of_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(type="NeuralFCA")
    observed = model.observe(sound(3, 0.5).unsqueeze(0))

    def gradients() -> dict[str, Tensor]:
        torch.manual_seed(0)
        model.zero_grad()
        model.loss(observed, None, Objective(1.0))[0].backward()
        return {name: w.grad.clone() for name, w in model.network.named_parameters() if w.grad is not None}

    checkpointed = gradients()
    calls = []

    def plain(function: Callable[..., Any], *arguments: Any, use_reentrant: bool) -> Any:
        calls.append(use_reentrant)
        return function(*arguments)

    monkeypatch.setattr(separators, "checkpoint", plain)
    kept = gradients()
    assert len(calls) == 6  # two stages of two updates, the filter between them, the bound
    assert kept.keys() == checkpointed.keys()
    for name, gradient in kept.items():
        assert torch.allclose(gradient, checkpointed[name], rtol=1e-5, atol=1e-7), name


def test_a_step_moves_what_is_trained_and_nothing_else() -> None:
    for trains in (False, True):
        model = model_of(train_prior=trains)
        observed = model.observe(sound().unsqueeze(0))
        model.loss(observed, None, Objective(1.0))[0].backward()
        assert all(weight.grad is not None for weight in model.network.parameters())
        assert any(weight.grad is not None for weight in model.prior.parameters()) == trains


# Microphones and sources ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", KINDS)
def test_permuted_microphones_permute_the_images(settings: dict[str, str]) -> None:
    """Of the same start: the delays that independent vector analysis looks at are those to the first microphone."""
    model, wave, order = model_of(**settings).double(), sound(3).double(), [2, 0, 1]
    start = model.start(mixture_of(model, wave), 2)
    images, permuted = images_of(model, wave, start=start), images_of(model, wave[order], start=start)
    assert relative(permuted, images[..., order]) < 1e-5
    assert relative(images[0], images[1]) > 0.1  # they are not all alike


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("n_channels", [2, 4])
def test_any_number_of_microphones_will_do_and_images_sum_to_the_mixture(
    settings: dict[str, str], n_channels: int
) -> None:
    model, wave = model_of(**settings), sound(n_channels)
    images = images_of(model, wave)
    assert images.isfinite().all()
    assert torch.allclose(images.sum(0), mixture_of(model, wave).spectrogram[0], atol=1e-4)


def test_sources_beyond_those_trained_are_found_where_they_do_not_begin_alike() -> None:
    wave = reverberant(1.0, 3, 3).float()
    assert images_of(model_of(), wave, 3).isfinite().all()
    assert images_of(model_of(), wave, 1).isfinite().all()
    alike = model_of(start="none", encoder="own")
    assert images_of(alike, wave, 1).isfinite().all()
    with pytest.raises(AudiovaeError, match="this separator tells at most 2 sources apart, and 3 are asked for"):
        images_of(alike, wave, 3)
    with pytest.raises(AudiovaeError, match="this separator tells at most 2 sources apart, and 3 are asked for"):
        separator(3, "neural", alike)
    for model in (alike, model_of()):
        with pytest.raises(ValueError, match="pairs need two microphones or more, got one"):
            images_of(model, wave[:1], 1)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("kind", ["silent microphone", "one source", "half a second", "twice the same", "silence"])
def test_hard_sound_is_finite(settings: dict[str, str], kind: str) -> None:
    wave = sound(3, 0.5 if kind == "half a second" else 1.0)
    if kind == "silent microphone":
        wave[1] = 0
    elif kind == "one source":
        wave = reverberant(1.0, 3, 1).float()
    elif kind == "twice the same":
        wave[1] = wave[0]
    elif kind == "silence":
        wave[:, 4000:] = 0
    model = model_of(**settings)
    assert images_of(model, wave).isfinite().all()
    model.loss(model.observe(wave.unsqueeze(0)), None, Objective(1.0))[0].backward()
    assert all(weight.grad.isfinite().all() for weight in model.network.parameters() if weight.grad is not None)


def test_files_with_a_dead_microphone_or_too_few_are_taken_apart_or_refused(tmp_path: Path) -> None:
    model = model_of()
    wave = 0.1 * sound(3).numpy()
    wave[2] = 0
    soundfile.write(tmp_path / "dead.wav", wave.T, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "one.wav", wave[0], RATE, subtype="FLOAT")
    targets = [tmp_path / f"{name}.wav" for name in ("a", "b", "noise")]
    run = separator(2, "neural", model)
    (done,) = separate_files(run, [RoomFile(tmp_path / "dead.wav", targets)])
    assert not isinstance(done, AudiovaeError)
    assert done is not None
    assert done.without_sound == (3,)
    parts = [soundfile.read(path)[0] for path in targets]
    assert np.allclose(sum(parts), wave.T, atol=1e-5)
    assert all(np.abs(part[:, 0]).max() > 0 for part in parts[:2])
    assert np.abs(parts[0][:, 2]).max() == 0
    (refused,) = separate_files(run, [RoomFile(tmp_path / "one.wav", targets)])
    assert isinstance(refused, AudioError)
    assert "has 1 channel, and sources in space need two or more microphones" in str(refused)
    (few,) = separate_files(separator(3, "neural", model), [RoomFile(tmp_path / "dead.wav", [*targets, "c.wav"])], 3)
    assert "has 2 channels with sound, and the method needs 3" in str(few)


# Beside the separator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["NeuralFastFCA", "NeuralFCA"])
def test_the_amortised_pass_is_what_the_separator_makes_of_the_same_latents(kind: str) -> None:
    """From its latents and its space, with as many updates more."""
    model, wave = model_of(type=kind), sound(3)
    settings = EMSettings(1, spatial_steps=2)
    run = Separator(
        model.front,
        [*[DeepSource.of(model.prior, Amortised, DeepSettings())] * 2, Floor],
        [model.beginning(2)],
        partial(model.space, n_sources=3),
        settings,
    )
    (found,) = run(
        [model.front.stft(wave).movedim(0, -1)], [0], levels=[float(wave.square().mean().sqrt())], waves=[wave]
    )
    mixture = mixture_of(model, wave)
    with torch.no_grad():
        own = model.infer(mixture, model.start(mixture, 2), mean=True)
        for _ in range(2):
            model.update(own.space, own.psds)
        images = own.space.images(own.psds, [0])[:, 0] * mixture.level
        nll = own.space.nll(own.psds)
    assert relative(found.images, images) < 1e-4
    for source, z in zip(found.sources, own.latents, strict=False):
        assert source.latents is not None
        assert torch.allclose(source.latents[0], z[0], atol=1e-5)
    log_prior = sum(model.prior.vae.prior(z).log_prob(z) for z in own.latents)
    assert float(found.objective[-1]) == pytest.approx(float((nll - log_prior).mean()), rel=1e-5)


def test_updates_by_full_covariances_are_those_of_the_separator() -> None:
    model = model_of(type="NeuralFCA")
    assert isinstance(model, NeuralFCA)
    mixture = mixture_of(model, sound(3))
    with torch.no_grad():
        found = model.infer(mixture, model.start(mixture, 2), mean=True)
    other = FullRank(mixture, found.space.h, 3, white=(2,))
    psds = [psd.clone().requires_grad_() for psd in found.psds]
    model.update(found.space, psds)
    other.update(found.psds)
    assert found.space.h.requires_grad
    assert relative(found.space.h.detach(), other.h) < 1e-6


def test_refining_lowers_the_objective() -> None:
    model, wave = model_of(), sound(3)
    x = [model.front.stft(wave).movedim(0, -1)]
    (once,) = separator(2, "neural", model, refine=1)(x, [0], waves=[wave])
    (longer,) = separator(2, "neural", model, refine=8)(x, [0], waves=[wave])
    assert longer.objective[-1] < once.objective[-1]


def test_the_method_and_its_model_belong_together(prior: AudioVAE) -> None:
    with pytest.raises(ValueError, match="the method 'neural' needs a separator that is learnt from mixtures"):
        separator(2, "neural", prior)
    for wrong in ({"condition": torch.ones(2)}, {"refine": -1}):
        with pytest.raises(ValueError, match="the method 'neural' knows no labels, and refine is 0 or more"):
            separator(2, "neural", model_of(), **wrong)
    with pytest.raises(ValueError, match="are for the method 'neural', not 'fast'"):
        separator(2, "fast", model_of())
    with pytest.raises(ValueError, match="are for the method 'neural', not 'fast'"):
        separator(2, "fast", prior, refine=3)


# What is told --------------------------------------------------------------------------------------------------------


def test_sources_that_collapse_are_told() -> None:
    model = model_of(alive=False, start="none", encoder="own")
    with torch.no_grad():
        model.network.slots.zero_()  # nothing tells them apart
        observed = torch.cat([model.observe(sound(3).unsqueeze(0))] * 2)
        assert "in 2 of 2 mixtures a source has next to nothing, or the same as another one" in str(
            model.warning(observed, None)
        )
    alive = model_of()
    assert alive.warning(alive.observe(sound(3).unsqueeze(0)), None) is None


def test_priors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AudiovaeError, match="a source in a mixture has no peak to divide by; use a prior of --level"):
        build_separator(AudioVAE(STFT(256, 64), dynamic_prior().vae, RATE, "peak"), SIZES)
    rvae = AudioVAE(STFT(256, 64), build("RVAE", 129, MODEL_SETTINGS["RVAE"](latent_dim=2)), RATE)
    with pytest.raises(AudiovaeError, match="the encoder of RVAE cannot be left out of training; use that of the"):
        build_separator(rvae, replace(SIZES, start="none", encoder="own", train_prior=True))


@pytest.mark.parametrize("setting", ["free_bits", "importance_samples", "equaliser_db", "reduction"])
def test_what_a_mixture_has_no_use_for_is_refused(setting: str) -> None:
    value = {"free_bits": 0.1, "importance_samples": 2, "equaliser_db": 3.0, "reduction": "mean"}[setting]
    with pytest.raises(AudiovaeError, match=f"{setting} is not for a separator that is learnt from mixtures"):
        model_of().check(TrainingSettings(**{setting: value}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 0}, "stages must be from 1 to 65536, got 0"),
        ({"dilations": ()}, "dilations must be positive"),
        ({"start": "music"}, "start must be one of iva, none, got 'music'"),
        ({"type": "FCA"}, "type must be one of NeuralFastFCA, NeuralFCA, got 'FCA'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_sizes_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralSettings(**settings)


# On the disk ---------------------------------------------------------------------------------------------------------


def test_a_saved_separator_is_loaded_as_it_was(tmp_path: Path) -> None:
    dynamic_prior().save_pretrained(tmp_path / "prior")
    model, wave = model_of(prior=AudioVAE.from_pretrained(tmp_path / "prior")), sound(3)
    model.save_pretrained(tmp_path / "model")
    loaded = NeuralSeparator.from_pretrained(tmp_path / "model")
    assert loaded.config() == model.config()
    assert loaded.config()["prior_origin"]["name"] == "prior"
    assert type(loaded) is type(model)
    assert torch.equal(images_of(loaded, wave), images_of(model, wave))
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_a_prior_is_told_from_a_separator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_of().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="no such model"):
        NeuralSeparator.from_pretrained("rooms-8k")
    with pytest.raises(ModelError, match="speech-16k: is a prior, and no separator"):
        NeuralSeparator.from_pretrained("speech-16k")
    with pytest.raises(ModelError, match="rooms-16k-neural: is a separator, and no prior"):
        AudioVAE.from_pretrained("rooms-16k-neural")
    dynamic_prior().save_pretrained(tmp_path / "prior")
    with pytest.raises(ModelError, match="is a prior, and no separator that is learnt from mixtures"):
        NeuralSeparator.from_pretrained(tmp_path / "prior")
    with pytest.raises(ModelError, match="is a separator that is learnt from mixtures, and no prior"):
        AudioVAE.from_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="is a NeuralFastFCA, and no NeuralFCA"):
        NeuralFCA.from_pretrained(tmp_path / "model")
    assert main(["info", str(tmp_path / "model"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["stages"], told["n_fft"]) == ("NeuralFastFCA", 2, 256)
    assert main(["info", "rooms-16k-neural", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sample_rate"] == 16000


def test_the_command_line_takes_files_apart_and_refuses_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model_of().save_pretrained("model")
    wave = 0.1 * sound(3).numpy().T
    soundfile.write("mix.wav", wave, RATE, subtype="FLOAT")

    def run(command: str) -> int:
        try:
            return main(shlex.split(f"separate mix.wav {command}"))
        except SystemExit as leave:
            return int(leave.code or 0)

    assert run("-o out --method neural --model model") == 0
    assert run("-o refined --method neural --model model --refine 2") == 0
    for folder in ("out", "refined"):
        parts = [soundfile.read(f"{folder}/mix-{name}.wav")[0] for name in ("1", "2", "noise")]
        assert np.allclose(sum(parts), wave, atol=1e-5)
    assert soundfile.SoundFile("refined/mix-1.wav").comment.startswith(
        "audiovae separate --sources 2 --method neural --seed 0 --refine 2, model "
    )
    capsys.readouterr()
    assert run("-o other --method fast --refine 2") != 0
    assert "--refine is of --method neural, not of fast; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_names("separators"))
def test_a_shipped_separator_takes_a_wave_apart(name: str) -> None:
    model = NeuralSeparator.from_pretrained(name)
    assert model.settings.type == "NeuralFastFCA"
    assert f"# {name}\n" in str(model.origin and model.origin.card)
    wave = 0.1 * sound(3, 2.0)
    parts = separate(wave, RATE, 2, "neural")
    assert parts.shape == (3, 3, 2 * RATE)
    assert relative(parts.sum(0), wave) < 1e-4
    assert parts[0].square().sum() >= parts[1].square().sum() > 0
