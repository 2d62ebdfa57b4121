"""An encoder that sees the phase: what it sees, that it learns from sound, and who cannot use it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from audiovae import (
    STFT,
    AudioVAE,
    FrameVAE,
    FrameVAESettings,
    Objective,
    PackedCorpus,
    TrainingSettings,
    elbo,
    fit,
    importance_weighted_bound,
    separation,
    training_loss,
)
from audiovae.errors import AudiovaeError, LatentError
from audiovae.files.latents import encode_file
from audiovae.models import MODELS
from audiovae.stft import power

N_FREQS = 17
SMALL: dict[str, dict[str, Any]] = {
    "FrameVAE": {"latent_dim": 3, "hidden": (16,)},
    "Autoencoder": {"latent_dim": 3, "hidden": (16,)},
    "ContextVAE": {"latent_dim": 3, "width": 8, "dilations": (1,), "decoder_layers": 1},
}
TAKERS = pytest.mark.parametrize("name", SMALL)


def spectrogram(*shape: int) -> Tensor:
    return torch.randn(*shape, N_FREQS, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def build(name: str, phase: bool, n_freqs: int = N_FREQS) -> Any:
    torch.manual_seed(0)
    model_class, settings_class = MODELS[name]
    return model_class(n_freqs, settings_class(phase=phase, **SMALL[name])).eval()


def first_layer(vae: Any) -> torch.nn.Linear:
    return next(layer for layer in vae.encoder.modules() if isinstance(layer, torch.nn.Linear))


@TAKERS
def test_without_weights_of_the_phase_it_is_the_model_of_power(name: str) -> None:
    plain, seeing, x = build(name, False), build(name, True), spectrogram(2, 5)
    weights = {**plain.state_dict()}
    key = next(key for key, weight in weights.items() if weight is not None and "encoder" in key)
    weights[key] = torch.cat([weights[key], torch.zeros(len(weights[key]), 2 * N_FREQS)], dim=1)
    seeing.load_state_dict(weights)
    for vae in (plain, seeing):
        vae.calibrate(vae.observed(x).flatten(0, 1))
    losses = []
    for vae in (plain, seeing):
        torch.manual_seed(1)
        losses.append(training_loss(vae, vae.observed(x), None, Objective()))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    losses[1][0].backward()
    gradient = first_layer(seeing).weight.grad
    assert gradient is not None
    assert (gradient[:, N_FREQS:].abs().amax(0) > 0).all()


def test_it_sees_cosine_and_sine_of_the_phase_beside_the_log_power() -> None:
    vae, phase = build("FrameVAE", True), torch.linspace(-3, 3, N_FREQS)
    x = torch.polar(torch.full((N_FREQS,), 2.0), phase)[None]
    seen = vae._seen(x)[0]
    expected = torch.cat([torch.full((N_FREQS,), 2 * math.log(2)), phase.cos(), phase.sin()])
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
    silent = vae._seen(0 * x)[0]
    assert silent.isfinite().all()
    assert not silent[N_FREQS:].any()


def test_bounds_of_a_model_that_sees_the_phase_are_of_its_spectrogram() -> None:
    vae, x = build("FrameVAE", True).requires_grad_(False), spectrogram(4, 6)
    torch.manual_seed(0)
    bound = elbo(vae, x).bound
    torch.manual_seed(0)
    inference = vae.infer(x)
    torch.testing.assert_close(bound, elbo_by_hand(vae, x, inference), rtol=1e-5, atol=1e-4)
    many = elbo(vae, x.expand(200, 4, 6, N_FREQS)).bound
    assert float(importance_weighted_bound(vae, x, 200).mean()) > float(many.mean())
    assert (vae.infer(-x, mean=True).latents - vae.infer(x, mean=True).latents).abs().max() > 1e-3


def elbo_by_hand(vae: Any, x: Tensor, inference: Any) -> Tensor:
    (factor,) = inference.factors
    divergence = torch.distributions.kl_divergence(factor.posterior, factor.prior)
    return vae.likelihood(inference.latents).log_prob(x) - divergence


def test_it_is_trained_on_sound_saved_and_used(packed: Path, tmp_path: Path) -> None:
    stft = STFT(256, 128)
    prior = AudioVAE(stft, build("FrameVAE", True, stft.n_freqs), 16000)
    corpus = PackedCorpus(packed)
    settings = TrainingSettings(
        steps=40, batch_frames=128, segment_frames=8, learning_rate=1e-2, validate_every=20, equaliser_db=1.0
    )
    torch.manual_seed(0)
    assert fit(prior, corpus, corpus, tmp_path / "model", settings).elbo > start_of(prior, corpus, tmp_path) + 10
    again = AudioVAE.from_pretrained(tmp_path / "model")
    assert again.vae.sees_phase
    wave = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    encoded = again.encode(wave)
    spectrum, _ = again.analyse(wave)
    torch.testing.assert_close(encoded.inference.latents, again.vae.infer(spectrum, mean=True).latents)
    assert (again.encode(-wave).inference.latents - encoded.inference.latents).abs().max() > 1e-3
    assert again.resynthesize(wave).shape == wave.shape
    assert again.log_likelihood(wave, n_samples=2).isfinite().all()
    soundfile.write(tmp_path / "noise.wav", wave.numpy() / 10, 16000, subtype="FLOAT")
    of_file = encode_file(again, tmp_path / "noise.wav").latents
    torch.testing.assert_close(of_file, again.encode(wave[None]).inference.latents, rtol=1e-3, atol=1e-3)


def start_of(prior: AudioVAE, corpus: PackedCorpus, folder: Path) -> float:
    one = TrainingSettings(steps=1, batch_frames=128, segment_frames=8, learning_rate=1e-9, averaging=0.0)
    fresh = AudioVAE(prior.stft, build("FrameVAE", True, prior.stft.n_freqs), 16000)
    return fit(fresh, corpus, corpus, folder / "start", one).elbo


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_phase_is_refused() -> None:
    vae, x = build("FrameVAE", True), spectrogram(3, 4)
    with pytest.raises(
        LatentError, match=r"sees the phase \(phase: true\): it needs the complex STFT, and got its power"
    ):
        elbo(vae, power(x))
    with pytest.raises(ValueError, match="bounds are of the power"):
        elbo(build("FrameVAE", False), x)
    with pytest.raises(ValueError, match="phase is of sound, and arrays have none"):
        FrameVAE(9, FrameVAESettings(data="array", likelihood="bernoulli", phase=True))
    prior = AudioVAE(STFT(32, 16), vae, 16000)
    with pytest.raises(AudiovaeError, match="sees the phase of clean speech, which a mixture does not have"):
        separation.enhancer(prior)(torch.randn(1600))
