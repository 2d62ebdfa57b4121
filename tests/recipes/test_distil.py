"""The recipe that teaches an encoder of mixtures what another separator finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import load_script
from mixtures import bank_of

from audiovae import PackedCorpus
from audiovae.corpora.mixtures import MixtureCorpus, MixtureSampler, RoomBank
from audiovae.models.latents import normal
from audiovae.objectives import Objective
from audiovae.separation import NeuralSeparator, separator
from audiovae.settings import MixtureSettings, NeuralSettings, TrainingSettings

distil = load_script(Path(__file__).parents[2] / "recipes" / "neural_fca" / "distil.py")


def test_the_loss_is_the_divergence_from_latents_of_the_teacher_in_the_better_order(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = distil.AudioVAE.from_pretrained(distil.PRIOR)
    model = distil.Taught(prior, NeuralSettings(start="none", encoder="own", width=8, dilations=(1,), updates=1))
    corpus = MixtureCorpus(PackedCorpus(packed), RoomBank(bank_of(tmp_path).folder), MixtureSettings(n_channels=2))
    sampler = MixtureSampler(corpus, "train", model.segment_samples(16), torch.device("cpu"))
    waves, _ = sampler.draw(2, 0, 0)
    waves = waves * torch.tensor([1.0, 8.0])[:, None, None]  # whatever the level
    observed = model.observe(waves)
    teacher = separator(2, "fast", prior)
    each = [teacher([prior.stft(wave).movedim(0, -1)], waves=[wave])[0] for wave in waves]
    told = torch.stack([torch.stack([source.latents[0] for source in one.sources[:2]]) for one in each], 1)
    assert told.abs().max() > 0.1
    heard = observed[:, :, : prior.vae.latent_dim, -2:].real.movedim(-1, 0)
    assert (heard - told).norm() < 0.05 * told.norm()  # in products of bfloat16, where there are any

    off = torch.tensor([0.1, 0.2])[:, None, None, None]
    says = normal((heard + off).flip(0), torch.full_like(heard, 0.3))  # in the other order
    inferred = model.infer
    monkeypatch.setattr(model, "infer", lambda *_: dataclasses.replace(inferred(*_), posterior=says))
    n_dims = prior.vae.latent_dim
    ratio = (0.3 / 0.5) ** 2
    expected = sum(0.5 * n_dims * (ratio + (0.1 * n / 0.5) ** 2 - 1 - torch.log(torch.tensor(ratio))) for n in (1, 2))
    assert model.loss(observed, None, Objective())[0] == pytest.approx(float(expected), rel=1e-4)


def test_what_it_leaves_is_a_separator(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovae.training.loop.MIXTURE_FRAMES", 16)
    small = {"batch_frames": 16, "segment_frames": 16}
    monkeypatch.setattr(distil, "TrainingSettings", lambda **given: TrainingSettings(**{**given, **small}))
    bank = bank_of(tmp_path).folder
    distil.main([str(packed), str(bank), str(tmp_path / "taught"), "--steps", "1"])
    assert NeuralSeparator.from_pretrained(tmp_path / "taught").settings.encoder == "own"
