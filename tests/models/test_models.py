"""The contract of a VAE over every registered model, and the particulars of each."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, kl_divergence

from audiovae import (
    ELBO,
    STFT,
    VAE,
    AudioVAE,
    ComplexNormal,
    FrameVAE,
    FrameVAESettings,
    elbo,
    importance_weighted_bound,
)
from audiovae.errors import ConditionError, LatentError
from audiovae.models import MODELS, Inference, LabelVAE
from audiovae.models.latents import LATENTS
from audiovae.models.observation import Observation
from audiovae.networks.log_power import EULER_GAMMA, VARIANCE_FLOOR, LogPower
from audiovae.networks.mlp import mlp
from audiovae.networks.temporal import reach
from audiovae.settings import LabelVAESettings, LatentName, settings_to_config
from audiovae.stft import power

N_FREQS = 17
Z_LIMIT = 5.0  # a test of a mean fails by chance once in two million

LABELS = {"digit": ("0", "1", "2"), "speaker": ("a", "b")}
FRAME = {"latent_dim": 5, "hidden": (24,)}
CONTEXT = {"latent_dim": 5, "width": 12, "decoder_layers": 1, "dilations": (1, 2)}
DYNAMIC = {"latent_dim": 4, "width": 12, "dilations": (1, 2), "prior_width": 8, "prior_dilations": (1, 2)}
SEQUENCE = {"latent_dim": 4, "n_frames": 8, "width": 12, "hidden": 16, "kernel_size": 3, "blocks": 1}
LABEL = {"latent_dim": 3, "width": 12, "kernel_size": 3, "blocks": 1, "labels": {"digit": ("0", "1", "2")}}
RECURRENT = {"latent_dim": 3, "width": 10}
FEATURES = {**RECURRENT, "features": 12}

# Every registered model with the settings under which it must keep the contract: add a row for a new one.
PUBLISHED = {"network_input": "power", "posterior_scale": "exp", "variance_floor": 1e-10}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "FrameVAE": ("FrameVAE", FRAME),
    "FrameVAE, one dimension": ("FrameVAE", {"latent_dim": 1, "hidden": (24, 12), "activation": "relu"}),
    "FrameVAE, dropout": (
        "FrameVAE",
        {"latent_dim": 5, "hidden": (24, 24, 24), "residual": True, "activation": "silu", "dropout": 0.2},
    ),
    "FrameVAE, 20 dimensions": (
        "FrameVAE",
        {"latent_dim": 20, "hidden": (8, 8), "residual": True, "activation": "gelu"},
    ),
    "FrameVAE, von Mises-Fisher": ("FrameVAE", {**FRAME, "latent": "von-mises-fisher"}),
    "FrameVAE, power spherical": ("FrameVAE", {**FRAME, "latent": "power-spherical"}),
    "FrameVAE, Dirichlet": ("FrameVAE", {**FRAME, "latent": "dirichlet", "dirichlet_concentration": 0.3}),
    "FrameVAE, Student-t": ("FrameVAE", {**FRAME, "likelihood": "complex-student-t"}),
    "FrameVAE, Bernoulli": ("FrameVAE", {**FRAME, "likelihood": "bernoulli"}),
    "FrameVAE, squared error": ("FrameVAE", {**FRAME, "likelihood": "squared-error"}),
    "FrameVAE, labels": ("FrameVAE", {**FRAME, "labels": LABELS}),
    "FrameVAE, labels, von Mises-Fisher": ("FrameVAE", {**FRAME, "labels": LABELS, "latent": "von-mises-fisher"}),
    "Autoencoder": ("Autoencoder", FRAME),
    "Autoencoder, Gaussian": ("Autoencoder", {**FRAME, "likelihood": "complex-gaussian"}),
    "ContextVAE": ("ContextVAE", CONTEXT),
    "ContextVAE, causal": ("ContextVAE", {**CONTEXT, "causal": True}),
    "ContextVAE, even kernel": ("ContextVAE", {**CONTEXT, "kernel_size": 4}),
    "ContextVAE, von Mises-Fisher, Student-t": (
        "ContextVAE",
        {**CONTEXT, "latent": "von-mises-fisher", "likelihood": "complex-student-t"},
    ),
    "ContextVAE, causal, power spherical, Bernoulli": (
        "ContextVAE",
        {**CONTEXT, "causal": True, "latent": "power-spherical", "likelihood": "bernoulli"},
    ),
    "ContextVAE, labels, Dirichlet, squared error": (
        "ContextVAE",
        {**CONTEXT, "labels": LABELS, "latent": "dirichlet", "likelihood": "squared-error"},
    ),
    "DynamicVAE": ("DynamicVAE", DYNAMIC),
    "DynamicVAE, causal": ("DynamicVAE", {**DYNAMIC, "causal": True}),
    "DynamicVAE, labels": ("DynamicVAE", {**DYNAMIC, "labels": LABELS}),
    "SequenceVAE": ("SequenceVAE", SEQUENCE),
    "SequenceVAE, labels": ("SequenceVAE", {**SEQUENCE, "labels": LABELS}),
    "SequenceVAE, von Mises-Fisher": ("SequenceVAE", {**SEQUENCE, "latent": "von-mises-fisher"}),
    "LabelVAE": ("LabelVAE", {**LABEL, "halvings": 1}),
    "LabelVAE, per frame": ("LabelVAE", {**LABEL, "halvings": 0, "pool": False, "dropout": 0.0}),
    "RVAE": ("RVAE", RECURRENT),
    "RVAE, head": ("RVAE", {**RECURRENT, "head": 8}),
    "RVAE, not causal": ("RVAE", {**RECURRENT, "causal": False}),
    "DKF": ("DKF", {**FEATURES, "emission": (8, 12)}),
    "DSAE": ("DSAE", {**RECURRENT, "sequence_dim": 2, "emission": (8, 12)}),
    "STORN": ("STORN", FEATURES),
    "VRNN": ("VRNN", FEATURES),
    "SRNN": ("SRNN", FEATURES),
    "SRNN, own past": ("SRNN", {**FEATURES, "own_past": True}),
    "FrameVAE, published": ("FrameVAE", {**FRAME, **PUBLISHED, "residual": False, "activation": "tanh"}),
    "VRNN, published": ("VRNN", {**FEATURES, **PUBLISHED, "zero_start": True}),
    "SRNN, own past, published": ("SRNN", {**FEATURES, **PUBLISHED, "own_past": True}),
}
every_model = pytest.mark.parametrize("case", CASES)
every_model_of_sound = pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] != "LabelVAE"])
every_prior = pytest.mark.parametrize(
    "case", [case for case in CASES if CASES[case][0] not in ("LabelVAE", "Autoencoder")]
)
every_conditional_model = pytest.mark.parametrize("case", [case for case in CASES if "labels" in CASES[case][1]])


def build(case: str) -> VAE:
    """As it is before training, but for its constants of data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        name, settings = CASES[case]
        model_class, settings_class = MODELS[name]
        vae = model_class(N_FREQS, settings_class(**settings))
        vae.calibrate(power(spectrograms(64)))
        return vae.eval()


def stirred(case: str, amount: float = 0.15) -> VAE:
    """With random numbers added to all weights: every factor of the model depends on what it can see."""
    vae = build(case)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return vae


def spectrograms(*shape: int, seed: int = 0) -> Tensor:
    """Coloured noise at unit level: `[*shape, freq]`."""
    slope = torch.logspace(1, -2, N_FREQS)
    return slope * torch.randn(*shape, N_FREQS, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def labels_for(vae: VAE, *batch: int) -> Tensor | None:
    """A condition for every sequence of a batch, in turn through all of them; None for a model without labels."""
    if not vae.conditions.labels:
        return None
    every = vae.conditions.every()
    return every[torch.arange(math.prod(batch)) % len(every)].reshape(*batch, -1)


def pieces(inference: Inference) -> Iterator[tuple[Tensor, Distribution, Distribution | None]]:
    """Latents, posterior and prior of every factor."""
    for z, factor in zip(inference.parts(), inference.factors, strict=True):
        yield z, factor.posterior, factor.prior


def posterior_of(inference: Inference) -> Distribution:
    """That of the frames where there is one, else of the sequence."""
    return inference.factors[0].posterior


def parameters_of(distribution: Distribution) -> list[Tensor]:
    """All that tells a distribution from others of its family."""
    inner = distribution.base_dist if isinstance(distribution, Independent) else distribution
    return [
        value
        for name in ("loc", "scale", "concentration", "location")
        if isinstance(value := getattr(inner, name, None), Tensor)
    ]


def test_every_registered_model_is_tested_here() -> None:
    assert {name for name, _ in CASES.values()} == set(MODELS)


# Shapes and distributions --------------------------------------------------------------------------------------------

SHAPES = [(1,), (7,), (3, 7), (2, 1, 4)]


@every_model
def test_an_encoder_gives_distributions_over_latents(case: str) -> None:
    vae = stirred(case)
    for shape in SHAPES:
        inference = vae.infer(power(spectrograms(*shape)), labels_for(vae, *shape[:-1]))
        assert isinstance(inference, Inference)
        assert inference.latents.shape == (*shape, vae.latent_dim)
        assert sum(factor.posterior.event_shape[0] for factor in inference.factors) == vae.latent_dim
        start = 0
        for factor in inference.factors:
            expected = shape if factor.per_frame else shape[:-1]
            assert factor.posterior.batch_shape == expected
            if factor.prior is not None:
                assert factor.prior.event_shape == factor.posterior.event_shape
                assert torch.broadcast_shapes(factor.prior.batch_shape, expected) == expected
                divergence = kl_divergence(factor.posterior, factor.prior)
                assert divergence.shape == expected
                assert (divergence >= 0).all()
            z = inference.latents[..., start : (start := start + factor.posterior.event_shape[0])]
            if not factor.per_frame:
                assert torch.equal(z, z[..., :1, :].expand_as(z))
        assert vae.has_prior == all(factor.prior is not None for factor in inference.factors)
        assert inference.sample().shape == inference.latents.shape
        vae.latents.check(inference.latents)
        vae.latents.check(inference.sample())


@every_model_of_sound
def test_a_decoder_gives_a_distribution_over_spectra(case: str) -> None:
    vae = build(case)
    for shape in SHAPES:
        condition = labels_for(vae, *shape[:-1])
        latents = vae.infer(power(spectrograms(*shape)), condition).latents
        likelihood = vae.likelihood(latents, condition)
        assert isinstance(likelihood, Distribution)
        assert (likelihood.batch_shape, likelihood.event_shape) == (shape, (N_FREQS,))
        assert likelihood.variance.shape == (*shape, N_FREQS)
        assert (likelihood.variance > 0).all()
        assert likelihood.log_prob(spectrograms(*shape)).shape == shape


@every_model
def test_a_model_says_what_it_is(case: str) -> None:
    vae = build(case)
    model_class, settings_class = MODELS[CASES[case][0]]
    settings = settings_class(**CASES[case][1])
    assert type(vae) is model_class
    assert vae.settings == settings
    assert vae.n_freqs == N_FREQS
    assert vae.latent_dim == settings.latent_dim + getattr(settings, "sequence_dim", 0)
    said = settings_to_config(settings)
    assert vae.conditions.labels == said["labels"]
    assert vae.latents.name == said["latent"]
    assert vae.has_psd == (model_class is not LabelVAE)
    assert vae.is_density == (said["likelihood"].startswith("complex") and vae.has_psd)
    assert vae.has_prior == (model_class.__name__ != "Autoencoder")


@every_prior
def test_latents_are_drawn_from_the_posterior_along_their_path(case: str) -> None:
    """Latents less their mean given the path have a mean of zero; of Gaussians, z-scores have a variance of one."""
    vae = stirred(case)
    torch.manual_seed(1)
    condition = labels_for(vae, 1)
    with torch.no_grad():
        inference = vae.infer(
            power(spectrograms(1, 2)).expand(3000, -1, -1), None if condition is None else condition.expand(3000, -1)
        )
    for latents, posterior, _ in pieces(inference):
        residual = latents - posterior.mean
        assert (residual.mean(0) / residual.std(0) * math.sqrt(3000)).abs().max() < Z_LIMIT
        if vae.latents.name == "gaussian":
            assert ((residual / posterior.stddev).var(0) - 1).abs().max() < Z_LIMIT * math.sqrt(2 / 3000)


@every_model
def test_the_path_of_the_centres_needs_no_random_number(case: str) -> None:
    vae, x = stirred(case), power(spectrograms(2, 6))
    condition = labels_for(vae, 2)
    torch.manual_seed(1)
    inference = vae.infer(x, condition, mean=True)
    torch.manual_seed(2)
    assert torch.equal(vae.infer(x, condition, mean=True).latents, inference.latents)
    for latents, posterior, _ in pieces(inference):
        torch.testing.assert_close(latents, vae.latents.centre(posterior), atol=1e-6, rtol=1e-5)
    if vae.has_prior:
        assert not torch.equal(vae.infer(x, condition).latents, inference.latents)


@every_model
def test_the_prior_of_some_latents_is_the_one_that_inference_gives(case: str) -> None:
    vae, x = stirred(case), power(spectrograms(2, 6))
    condition = labels_for(vae, 2)
    inference = vae.infer(x, condition)
    if not vae.has_prior:
        with pytest.raises(LatentError, match="has no prior to draw from"):
            vae.prior(inference.latents, condition, vae.past(x))
        return
    prior = vae.prior(inference.latents, condition, vae.past(x))
    of_frames = [factor.prior for factor in inference.factors if factor.per_frame]
    assert [type(prior)] * len(of_frames) == [type(other) for other in of_frames]
    for ours, theirs in zip(
        parameters_of(prior), parameters_of(of_frames[0]) if of_frames else [], strict=bool(of_frames)
    ):
        torch.testing.assert_close(
            ours.expand(2, 6, *ours.shape[2:]), theirs.expand(2, 6, *theirs.shape[2:]), atol=1e-5, rtol=1e-4
        )


@every_model
def test_dropout_acts_in_training_alone(case: str) -> None:
    vae = build(case)
    frames, condition = power(spectrograms(5)), labels_for(vae)
    first = vae.infer(frames, condition, mean=True).latents
    assert torch.equal(vae.infer(frames, condition, mean=True).latents, first)
    vae.train()
    differs = not torch.equal(
        vae.infer(frames, condition, mean=True).latents, vae.infer(frames, condition, mean=True).latents
    )
    assert differs == bool(getattr(vae.settings, "dropout", 0))


# Gradients and extremes ----------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("training", [False, True])
def test_every_weight_takes_part_in_the_bound(case: str, training: bool) -> None:
    """Summed over a few sequences, the KL of the sequence included; weights of the SRNN's own past too."""
    vae = stirred(case).train(training)
    terms = elbo(vae, power(spectrograms(2, 8)), labels_for(vae, 2))
    terms.bound.sum().backward()
    assert [
        key for key, parameter in vae.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ] == []
    torch.testing.assert_close(terms.bound, terms.log_likelihood - terms.kl)


@every_model
def test_latents_carry_gradients_to_every_weight_before_them(case: str) -> None:
    """Those of the likelihood have none then."""
    vae = stirred(case)
    latents = vae.infer(power(spectrograms(2, 8)), labels_for(vae, 2)).latents
    latents.sum().backward() if vae.latents.name != "dirichlet" else latents.square().sum().backward()
    with_gradient = {
        key.split(".")[0]
        for key, parameter in vae.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert with_gradient & {"encoder", "recurrence", "to_posterior"}
    assert not with_gradient & {"decoder", "observation", "to_spectrum", "to_labels", "from_latents", "place"}


@every_model
def test_items_of_a_batch_do_not_see_each_other(case: str) -> None:
    vae = stirred(case)
    one, other = power(spectrograms(2, 6))
    condition = labels_for(vae, 3)
    of_one = None if condition is None else condition[1:2]
    alone = vae.infer(one[None], of_one, mean=True)
    past = vae.past(one[None])
    spectra = (
        vae.likelihood(alone.latents, of_one, past).mean
        if not vae.has_psd
        else vae.likelihood(alone.latents, of_one).variance
    )
    for companion in (other, 1e6 * other, torch.zeros_like(other)):
        x = torch.stack([companion, one, companion])
        together = vae.infer(x, condition, mean=True)
        for ours, theirs in zip(parameters_of(posterior_of(together)), parameters_of(posterior_of(alone)), strict=True):
            torch.testing.assert_close(ours[1], theirs[0], atol=1e-5, rtol=1e-4)
        likelihood = vae.likelihood(together.latents, condition, x if not vae.has_psd else None)
        found = likelihood.mean if not vae.has_psd else likelihood.variance
        torch.testing.assert_close(found[1], spectra[0], atol=1e-6, rtol=1e-3)


@every_model
def test_silence_and_any_power_are_finite_forward_and_backward(case: str) -> None:
    vae = build(case)
    condition = labels_for(vae, 3)
    for gain in (0.0, 1e-12, 1e-6, 1.0, 1e6, 1e12):
        x = (math.sqrt(gain) * spectrograms(3, 4)).requires_grad_()
        terms = elbo(vae, power(x), condition)
        assert torch.isfinite(terms.log_likelihood).all(), gain
        assert torch.isfinite(terms.kl).all(), gain
        vae.zero_grad()
        terms.bound.sum().backward()
        assert torch.isfinite(torch.view_as_real(x.grad)).all(), gain
        assert all(torch.isfinite(parameter.grad).all() for parameter in vae.parameters()), gain


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_mixed_precision_rounds_products_and_nothing_else(case: str, training: bool) -> None:
    """Under bf16 autocast distributions stay in full precision, and the bound near its own: a matrix product errs by
    0.4 %.
    """
    vae = build(case).train(training)
    x, condition = spectrograms(3, 8), labels_for(vae, 3)
    torch.manual_seed(1)
    full = elbo(vae, power(x), condition).bound.mean()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        inference = vae.infer(power(x), condition)
        assert inference.latents.dtype == torch.float32
        vae.latents.check(inference.latents)
        torch.manual_seed(1)
        mixed = elbo(vae, power(x), condition).bound.mean()
    assert mixed.dtype == torch.float32
    mixed.backward()
    assert float((mixed - full).abs().detach()) < 0.02 * N_FREQS


@every_model
def test_one_silent_bin_among_loud_ones_is_finite(case: str) -> None:
    vae = build(case)
    x = spectrograms(3)
    x[:, 4] = 0
    x.requires_grad_()
    elbo(vae, power(x), labels_for(vae)).bound.sum().backward()
    assert torch.isfinite(torch.view_as_real(x.grad)).all()


@every_model_of_sound
def test_far_latents_give_finite_spectra(case: str) -> None:
    vae = build(case)
    latents = torch.full((3, vae.latent_dim), 30.0)
    if vae.latents.name not in ("gaussian", "point"):
        with pytest.raises(LatentError, match=f"the decoder expects {vae.latents.name} latents"):
            vae.likelihood(latents, labels_for(vae))
        return
    likelihood = vae.likelihood(latents, labels_for(vae))
    assert torch.isfinite(likelihood.log_prob(spectrograms(3))).all()
    assert torch.isfinite(likelihood.variance).all()


@every_prior
def test_no_variance_is_below_the_floor(case: str) -> None:
    vae = build(case)
    vae.calibrate(torch.zeros(10, N_FREQS))
    latents = torch.cat([vae.generate(8, labels_for(vae)) for _ in range(3)])
    if vae.latents.name == "gaussian":
        latents = 10 * latents
    variance = torch.stack([vae.likelihood(part, labels_for(vae)).variance for part in latents.split(8)])
    assert torch.isfinite(variance).all()
    assert (variance > 0).all()
    if vae.is_density:
        assert (variance >= getattr(vae.settings, "variance_floor", VARIANCE_FLOOR) * (1 - 1e-5)).all()


@every_model
def test_a_model_works_in_double_precision(case: str) -> None:
    """Gradients of the posterior against finite differences; generated latents fit their decoder."""
    vae = stirred(case).double()
    condition = labels_for(vae)
    frames = (power(spectrograms(2)).double() + 0.1).requires_grad_()

    def parameters(value: Tensor) -> tuple[Tensor, ...]:
        inference = vae.infer(value, condition, mean=True)
        return tuple(tensor for _, posterior, _ in pieces(inference) for tensor in parameters_of(posterior))

    assert torch.autograd.gradcheck(parameters, (frames,))
    assert vae.infer(frames, condition).latents.dtype == torch.float64
    assert elbo(vae, power(spectrograms(3).to(torch.complex128)), condition).bound.dtype == torch.float64
    if vae.has_psd and vae.has_prior:
        assert vae.likelihood(vae.generate(3, condition), condition).variance.dtype == torch.float64


# Learning ------------------------------------------------------------------------------------------------------------


def best_constant(vae: VAE, frames: Tensor) -> float:
    """The mean log likelihood of the best single spectrum, by the formula of each likelihood."""
    log_power = torch.log(frames + VARIANCE_FLOOR)
    likelihood = vae.observation.likelihood
    if likelihood == "squared-error":
        standardised = (log_power - log_power.mean(0)) / log_power.std(0, correction=0)
        return float(-0.5 * (standardised.square() + math.log(2 * math.pi)).mean(0).sum())
    if likelihood == "bernoulli":
        low, high = vae.observation.low, vae.observation.high
        share = ((log_power - low) / (high - low)).clamp(0, 1).mean(0)
        return float((torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)).sum())
    return float(-(math.log(math.pi) + frames.mean(0).log() + 1).sum())


@every_model
def test_a_model_overfits_one_batch(case: str) -> None:
    """It beats the best single spectrum: log N_C at the mean power of each bin, which is -log(pi) - log(mean) - 1 a
    bin.

    The sequences are of two kinds, so knowing the kind is worth several nats; labels that tell the kind are to be
    predicted.
    """
    vae = build(case).train()
    tilt = torch.linspace(3, -3, N_FREQS)
    x = torch.stack([tilt, -tilt]).exp().repeat_interleave(4, 0)[:, None] * spectrograms(8, 4, seed=3)
    frames = power(x)
    vae.calibrate(frames.flatten(0, 1))
    condition = None if not vae.conditions.labels else vae.conditions.every()[[0] * 4 + [1] * 4]
    best_single = -math.log(2) if not vae.has_psd else best_constant(vae, frames.flatten(0, 1))
    gains = {"complex-gaussian": 10.0, "complex-student-t": 10.0, "squared-error": 2.0, "bernoulli": 0.3}
    gain = gains[vae.observation.likelihood] if vae.has_psd else 0.5  # of the 0.69 nats that one of two labels has
    target = best_single + gain

    def reached(terms: ELBO) -> float:
        return float((terms.bound if vae.is_density else terms.log_likelihood).detach().mean())

    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    torch.manual_seed(3)
    weight, recent = 0.01, best_single
    for _ in range(1000):
        terms = elbo(vae, frames, condition)
        recent = 0.7 * recent + 0.3 * reached(terms)
        if recent > target + 0.2 * gain:
            break
        if vae.is_density and float(terms.log_likelihood.detach().mean()) > target + 5:
            weight = min(1.0, weight + 0.05)
        optimizer.zero_grad()
        (weight * terms.kl.mean() - terms.log_likelihood.mean()).backward()
        optimizer.step()
    vae.eval()
    with torch.no_grad():
        assert sum(reached(elbo(vae, frames, condition)) for _ in range(20)) / 20 > target


@every_model
def test_a_saved_prior_gives_the_same_bits(case: str, tmp_path: Path) -> None:
    vae = stirred(case).requires_grad_(False)  # as those of a loaded one: LSTMs with gradients have another kernel
    AudioVAE(STFT(32, 8), vae, 8000).save_pretrained(tmp_path / "model")
    again = AudioVAE.from_pretrained(tmp_path / "model").vae
    assert type(again) is type(vae)
    assert again.settings == vae.settings
    assert list(again.conditions.labels.items()) == list(vae.conditions.labels.items())
    x, condition = power(spectrograms(3, 4)), labels_for(vae, 3)
    latents = vae.infer(x, condition, mean=True).latents
    assert torch.equal(again.infer(x, condition, mean=True).latents, latents)
    if vae.has_psd:
        assert torch.equal(again.likelihood(latents, condition).variance, vae.likelihood(latents, condition).variance)
    else:
        assert torch.equal(again.likelihood(latents, past=x).mean, vae.likelihood(latents, past=x).mean)


@every_prior
def test_the_weighted_bound_of_one_sample_is_the_elbo_in_expectation_and_rises(case: str) -> None:
    """For sums over a sequence: what per-frame weights, per-sequence ones and a latent of the sequence have in
    common."""
    vae = stirred(case)
    torch.manual_seed(5)
    x = power(spectrograms(1, 3)).expand(1500, -1, -1)
    condition = labels_for(vae, 1)
    condition = None if condition is None else condition.expand(1500, -1)
    with torch.no_grad():
        bound, one, many = (
            values.sum(-1)
            for values in (
                elbo(vae, x, condition).bound,
                importance_weighted_bound(vae, x, 1, condition),
                importance_weighted_bound(vae, x, 10, condition),
            )
        )

    def z_score(difference: Tensor) -> float:
        return float(difference.mean() / difference.std() * math.sqrt(1500))

    assert abs(z_score(one - bound)) < Z_LIMIT
    assert z_score(many - one) > Z_LIMIT


# What each attribute promises ----------------------------------------------------------------------------------------

N_TIMES = 6


def distributions_along(vae: VAE, x: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Parameters of q(z_t | z_{<t}, x), p(z_t | ...) and p(x_t | ...) at a given path of latents, `[frame, parameter]`
    each.

    A recurrence draws its own path: its noise is chosen, frame by frame, such that the path is the given one.
    """
    condition = labels_for(vae)
    past = x if vae.own_past is not None else vae.past(x)
    if not hasattr(vae, "recurrence"):
        posterior = posterior_of(vae.infer(x, condition, mean=True))
    else:
        noise, forward = torch.zeros_like(z), vae.recurrence.forward
        vae.recurrence.forward = lambda drive, _, input_drive=None: forward(drive, noise, input_drive)
        for t in range(len(z)):
            posterior = posterior_of(vae.infer(x, condition))
            noise[t] = ((z - posterior.mean) / posterior.stddev)[t]
        inference = vae.infer(x, condition)
        del vae.recurrence.forward
        torch.testing.assert_close(inference.latents, z)
        posterior = posterior_of(inference)
    likelihood = vae.likelihood(z, condition, past)
    output = likelihood.mean if not vae.has_psd else likelihood.variance.log()

    def rows(distribution: Distribution) -> Tensor:
        found = [tensor.expand(len(x), *tensor.shape[1:]).reshape(len(x), -1) for tensor in parameters_of(distribution)]
        return torch.cat([x.new_zeros(len(x), 0), *found], dim=-1)  # the uniform one has none

    prior = rows(vae.prior(z, condition, past)) if vae.has_prior else x.new_zeros(len(x), 0)
    return {"posterior": rows(posterior), "prior": prior, "likelihood": output}


def influences(vae: VAE) -> dict[str, Tensor]:
    """Whether frame s of x or z moves frame t of posterior, prior or likelihood, all else fixed: `[t, s]`, named "of
    by".
    """
    x = power(spectrograms(N_TIMES)).double() + 0.1
    torch.manual_seed(3)
    z = vae.infer(x, labels_for(vae)).latents
    other_x = 5 * x.flip(0)
    other_z = vae.infer(other_x if not vae.has_prior else x, labels_for(vae)).latents
    n_sequence = sum(f.posterior.event_shape[0] for f in vae.infer(x, labels_for(vae)).factors if not f.per_frame)
    if n_sequence:
        other_z = torch.cat([other_z[:, :-n_sequence], z[:, -n_sequence:]], dim=-1)
    before = distributions_along(vae, x, z)
    found = {f"{of} by {by}": torch.zeros(N_TIMES, N_TIMES, dtype=torch.bool) for of in before for by in "xz"}
    for s in range(N_TIMES):
        here = torch.arange(N_TIMES)[:, None] == s
        for by, after in (
            ("x", distributions_along(vae, torch.where(here, other_x, x), z)),
            ("z", distributions_along(vae, x, torch.where(here, other_z, z))),
        ):
            for of in before:
                found[f"{of} by {by}"][:, s] = ((after[of] - before[of]).abs() > 1e-10).any(-1)
    return found


def where(rule: Callable[[int, int], bool]) -> Tensor:
    return torch.tensor([[rule(t, s) for s in range(N_TIMES)] for t in range(N_TIMES)])


NONE, ALL = where(lambda t, s: False), where(lambda t, s: True)
HERE, BEFORE, PAST, FUTURE = (
    where(lambda t, s: s == t),
    where(lambda t, s: s == t - 1),
    where(lambda t, s: s < t),
    where(lambda t, s: s > t),
)

# What each factor sees, as the papers say: posterior by x and by z, prior by x and by z, likelihood by x and by z.
STRUCTURES = {
    "FrameVAE": (HERE, NONE, NONE, NONE, NONE, HERE),
    "FrameVAE, von Mises-Fisher": (HERE, NONE, NONE, NONE, NONE, HERE),
    "Autoencoder": (HERE, NONE, NONE, NONE, NONE, HERE),
    "ContextVAE": (where(lambda t, s: abs(t - s) <= 3), NONE, NONE, NONE, NONE, HERE),
    "ContextVAE, causal": (HERE | PAST, NONE, NONE, NONE, NONE, HERE),
    "DynamicVAE": (where(lambda t, s: abs(t - s) <= 3), NONE, NONE, PAST, NONE, where(lambda t, s: abs(t - s) <= 3)),
    "DynamicVAE, causal": (HERE | PAST, NONE, NONE, PAST, NONE, HERE | PAST),
    "DynamicVAE, labels": (
        where(lambda t, s: abs(t - s) <= 3),
        NONE,
        NONE,
        PAST,
        NONE,
        where(lambda t, s: abs(t - s) <= 3),
    ),
    "LabelVAE, per frame": (
        where(lambda t, s: abs(t - s) <= 1),
        NONE,
        where(lambda t, s: abs(t - s) <= 1),
        NONE,
        None,
        HERE,
    ),
    "RVAE": (HERE | FUTURE, PAST, NONE, NONE, NONE, HERE | PAST),
    "RVAE, head": (HERE | FUTURE, PAST, NONE, NONE, NONE, HERE | PAST),
    "RVAE, not causal": (ALL, PAST, NONE, NONE, NONE, ALL),
    "DKF": (HERE | FUTURE, BEFORE, NONE, BEFORE, NONE, HERE),
    "DSAE": (ALL, NONE, NONE, PAST, NONE, HERE),
    "STORN": (HERE | PAST, NONE, NONE, NONE, PAST, HERE | PAST),
    "VRNN": (HERE | PAST, PAST, PAST, PAST, PAST, HERE | PAST),
    "SRNN": (ALL, BEFORE, PAST, BEFORE, PAST, HERE),
    "SRNN, own past": (ALL, BEFORE, NONE, PAST, NONE, HERE | PAST),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_each_factor_sees_what_the_model_says_and_nothing_else(case: str) -> None:
    """By changing one frame of x or z at a time. Frame 0 has nothing before it, the last one nothing after it."""
    found = influences(stirred(case, 0.3).double())
    for name, expected in zip(
        ("posterior by x", "posterior by z", "prior by x", "prior by z", "likelihood by x", "likelihood by z"),
        STRUCTURES[case],
        strict=True,
    ):
        if expected is not None:
            assert torch.equal(found[name], expected), f"{name}:\n{found[name].int()}\ninstead of\n{expected.int()}"


def test_every_family_that_is_offered_is_known() -> None:
    assert tuple(LATENTS) == get_args(LatentName)


def test_every_model_without_a_latent_of_the_sequence_alone_has_a_structure_here() -> None:
    assert {CASES[case][0] for case in STRUCTURES} == set(MODELS) - {"SequenceVAE"}


@every_model
def test_the_structure_of_a_model_is_that_of_its_attributes(case: str) -> None:
    vae = stirred(case, 0.3).double()
    x, condition = power(spectrograms(2, N_TIMES)).double(), labels_for(vae, 2)
    torch.manual_seed(1)
    first, second = vae.infer(x, condition), vae.infer(x, condition)
    same = all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(*(parameters_of(posterior_of(inference)) for inference in (first, second)), strict=True)
    )
    assert vae.factorised_posterior == same  # its parameters do not depend on what is drawn
    if not vae.has_psd:
        return
    free, forced = (vae.likelihood(first.latents, condition, past).variance for past in (None, x))
    assert vae.needs_past != torch.equal(free, forced)
    if vae.frames_are_independent:
        changed = torch.where(torch.arange(N_TIMES)[:, None] == 2, second.latents, first.latents)
        others = [t for t in range(N_TIMES) if t != 2]
        after = vae.likelihood(changed, condition).variance
        assert torch.equal(after[:, others], free[:, others])
        if vae.has_prior:
            ours, theirs = (parameters_of(vae.prior(z, condition)) for z in (changed, first.latents))
            assert all(torch.equal(a[..., :1], b[..., :1]) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "case", [case for case in CASES if CASES[case][0] not in ("RVAE", "DKF", "DSAE", "STORN", "VRNN", "SRNN")]
)
def test_frames_beyond_the_context_make_no_difference(case: str) -> None:
    """To the spectrum that frame t has along the path of the centres. What recurrences remember only fades."""
    vae = stirred(case, 0.3).double()
    n_frames = vae.longest or min(2 * vae.context + 12, 60)
    x, condition = power(spectrograms(n_frames)).double(), labels_for(vae)
    changed = x.clone()
    changed[-1] *= 100

    def result(x: Tensor) -> Tensor:
        inference = vae.infer(x, condition, mean=True)
        likelihood = vae.likelihood(inference.latents, condition, vae.past(x))
        priors = [factor.prior for factor in inference.factors if factor.prior is not None]
        prior = [tensor.expand(n_frames, -1) for tensor in parameters_of(priors[0])] if priors else []
        return torch.cat([*prior, likelihood.mean if not vae.has_psd else likelihood.variance.log()], dim=-1)

    moved = ((result(changed) - result(x)).abs() > 1e-12).any(-1)
    assert moved[-1]
    assert not moved[: max(0, n_frames - 1 - vae.context)].any()


@pytest.mark.parametrize("case", ["RVAE", "RVAE, not causal", "DKF", "DSAE", "STORN", "VRNN", "SRNN", "SRNN, own past"])
def test_what_a_recurrence_remembers_fades_within_its_context(case: str) -> None:
    vae = build(case).double()
    x = power(spectrograms(2 * vae.context + 20)).double()
    changed = x.clone()
    middle = len(x) // 2
    changed[middle] *= 100
    spectra = [vae.likelihood(vae.infer(frames, mean=True).latents).variance.log() for frames in (x, changed)]
    moved = (spectra[1] - spectra[0]).abs().amax(-1)
    far = torch.cat([moved[: middle - vae.context], moved[middle + vae.context + 1 :]])
    if case != "DSAE":  # its latent of the sequence sees it all
        assert far.max() < 1e-3 * moved.max()


# Export --------------------------------------------------------------------------------------------------------------

IN_TURN = ("RVAE", "DKF", "VRNN", "SRNN")
ON_PAST = ("STORN", "VRNN", "SRNN")


@every_model
def test_the_path_and_the_psd_for_export_are_those_of_the_distributions(case: str) -> None:
    vae, x, condition = stirred(case), power(spectrograms(2, 6)), labels_for(stirred(case), 2)
    name = CASES[case][0]
    latents = vae.infer(x, condition, mean=True).latents
    if name in IN_TURN:
        with pytest.raises(LatentError, match=f"{name} infers each latent vector from the one before it"):
            vae.mean_path(x, condition)
    else:
        found, _ = vae.mean_path(x, condition)
        torch.testing.assert_close(found, latents)
    if name in ON_PAST or not vae.has_psd:
        with pytest.raises(
            LatentError, match="LabelVAE predicts labels" if not vae.has_psd else f"{name} feeds on the sound before"
        ):
            vae.log_psd(latents, condition)
    else:
        torch.testing.assert_close(vae.log_psd(latents, condition).exp(), vae.likelihood(latents, condition).variance)


@every_model
def test_a_causal_encoder_goes_on_from_its_state(case: str) -> None:
    """Blocks of any length, one frame and none among them, give what the whole gives."""
    vae = stirred(case)
    if CASES[case][0] in IN_TURN or CASES[case][0] == "SequenceVAE":
        return
    x, condition = power(spectrograms(2, 25)), labels_for(vae, 2)
    whole, last = vae.mean_path(x, condition)
    assert (last is not None) == CASES[case][1].get("causal", False)
    if last is None:
        return
    state, parts = None, []
    for block in x.split([1, 7, 0, 2, 15], dim=-2):
        part, state = vae.mean_path(block, condition, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=-2), whole)
    assert state is not None
    torch.testing.assert_close(state, last)
    settings = vae.settings  # its size does not grow
    assert state.shape == (2, reach(settings.kernel_size, settings.dilations, causal=True), settings.width)


@pytest.mark.parametrize(
    "case", [case for case in CASES if CASES[case][0] in ("FrameVAE", "Autoencoder", "ContextVAE")]
)
def test_frame_wise_models_are_exported_as_graphs(case: str) -> None:
    vae = stirred(case)
    if vae.conditions.labels:
        return  # conditions are checked by their values

    class Path(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, power: Tensor) -> tuple[Tensor, Tensor]:
            latents, _ = self.vae.mean_path(power)
            return latents, self.vae.log_psd(latents)

    with torch.no_grad():
        graph = torch.export.export(
            Path(), (power(spectrograms(6)),), dynamic_shapes=({0: torch.export.Dim("frame")},)
        ).module()
        x = power(spectrograms(9, seed=3))
        latents, log_psd = graph(x)
        expected = vae.infer(x, mean=True).latents
        torch.testing.assert_close(latents, expected)
        torch.testing.assert_close(log_psd.exp(), vae.likelihood(expected).variance)


# Free running and generation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["STORN", "VRNN", "SRNN"])
def test_running_freely_is_teacher_forcing_by_what_the_model_expects_of_its_own_spectra(case: str) -> None:
    """Where log(past power + floor) is the mean of log |x|^2 under the model's own prediction, log PSD - Euler's
    constant.
    """
    vae = stirred(case, 0.3).double()
    torch.manual_seed(4)
    z = torch.randn(3, 9, vae.latent_dim, dtype=torch.float64)
    free = vae.likelihood(z).variance
    past = free * math.exp(-EULER_GAMMA) - VARIANCE_FLOOR
    assert (past > 0).all()
    torch.testing.assert_close(vae.likelihood(z, past=past).variance, free)
    own, forced = vae.prior(z), vae.prior(z, past=past)
    torch.testing.assert_close(forced.mean, own.mean)
    torch.testing.assert_close(forced.stddev, own.stddev)
    assert (vae.likelihood(z, past=2 * past).variance / free - 1).abs().max() > 1e-3


@every_prior
def test_generated_latents_follow_the_prior_along_their_path(case: str) -> None:
    """For Gaussians: (z_t - mean(z_{<t})) / deviation is standard normal in all frames and dimensions of a long
    path."""
    vae, condition = stirred(case), labels_for(stirred(case))
    torch.manual_seed(4)
    n_frames = vae.longest or 500
    with torch.no_grad():
        latents = torch.stack([vae.generate(n_frames, condition) for _ in range(500 // n_frames)])
        prior = vae.prior(latents, None if condition is None else condition.expand(len(latents), -1))
        psd = vae.likelihood(latents, None if condition is None else condition.expand(len(latents), -1)).variance
    assert latents.shape[1:] == (n_frames, vae.latent_dim)
    assert torch.isfinite(psd).all()
    assert (psd > 0).all()
    vae.latents.check(latents)
    n_frame_latents = prior.event_shape[0]
    frame_latents, sequence = latents[..., :n_frame_latents], latents[..., n_frame_latents:]
    assert torch.equal(sequence, sequence[:, :1].expand_as(sequence))
    assert torch.isfinite(prior.log_prob(frame_latents)).all()
    groups = [sequence[:, 0]] if CASES[case][0] == "SequenceVAE" else []
    if vae.latents.name == "gaussian":
        groups = [*groups, ((frame_latents - prior.mean) / prior.stddev).flatten(0, 1)]
        for scores in groups:
            if scores.numel():
                assert scores.mean(0).abs().max() < Z_LIMIT / math.sqrt(len(scores))
                assert (scores.var(0) - 1).abs().max() < Z_LIMIT * math.sqrt(2 / (len(scores) - 1))
    elif n_frame_latents:
        drawn = frame_latents.flatten(0, 1)
        drawn = (
            drawn.exp() - 1 / vae.latent_dim if vae.latents.name == "dirichlet" else drawn
        )  # a mean of zero, by symmetry
        assert (drawn.mean(0) / drawn.std(0) * math.sqrt(len(drawn))).abs().max() < Z_LIMIT


def test_the_first_frames_of_a_deep_kalman_filter_have_the_moments_of_its_transition() -> None:
    """By hand, from the weights: a gate between a linear step and a network, at z_0 = 0 and at the z before."""
    vae = stirred("DKF", 0.3).double()
    weights = vae.transition.state_dict()
    torch.manual_seed(6)
    with torch.no_grad():
        z = torch.stack([vae.generate(2) for _ in range(1500)])

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    for t, before in enumerate((torch.zeros_like(z[:, 0]), z[:, 0])):
        gate = torch.sigmoid(linear("gate.2", linear("gate.0", before).clamp(min=0)))
        proposal = linear("proposal.2", linear("proposal.0", before).clamp(min=0))
        mean = (1 - gate) * linear("linear", before) + gate * proposal
        variance = torch.log1p(linear("variance.1", proposal.clamp(min=0)).exp()) + 1e-6
        prior = vae.prior(z)
        torch.testing.assert_close(prior.mean[:, t], mean)
        torch.testing.assert_close(prior.variance[:, t], variance)
        scores = (z[:, t] - mean) / variance.sqrt()
        assert scores.mean(0).abs().max() < Z_LIMIT / math.sqrt(1500)
        assert (scores.var(0) - 1).abs().max() < Z_LIMIT * math.sqrt(2 / 1500)


@pytest.mark.parametrize(
    ("case", "message"), [("Autoencoder", "has no prior to draw from"), ("LabelVAE", "no latents without a sound")]
)
def test_a_model_without_a_prior_of_sound_generates_nothing(case: str, message: str) -> None:
    with pytest.raises(LatentError, match=message):
        build(case).generate(5)


# Labels --------------------------------------------------------------------------------------------------------------


@every_conditional_model
def test_soft_labels_and_labels_per_frame_are_conditions_as_well(case: str) -> None:
    """One that is constant over time is that of the sequence; a soft label has a gradient and lies between the hard
    ones.
    """
    vae, x = stirred(case, 0.3), power(spectrograms(2, 6))
    condition = labels_for(vae, 2)
    assert condition is not None
    hard = vae.infer(x, condition, mean=True)
    for ours, theirs in zip(
        parameters_of(posterior_of(vae.infer(x, condition.flip(-2), mean=True))),
        parameters_of(posterior_of(hard)),
        strict=True,
    ):
        assert ours.numel() == 0 or (ours - theirs).abs().max() > 1e-4  # the label matters
    if CASES[case][0] != "SequenceVAE":
        per_frame = vae.infer(x, condition[:, None].expand(2, 6, -1), mean=True)
        torch.testing.assert_close(per_frame.latents, hard.latents)
    soft = (0.5 * condition + 0.5 * condition.flip(-2)).requires_grad_()
    bound = elbo(vae, x, soft).bound.sum()
    (gradient,) = torch.autograd.grad(bound, soft)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().min() > 0


@every_conditional_model
def test_a_conditional_model_needs_its_condition(case: str) -> None:
    vae, x = build(case), power(spectrograms(3))
    if vae.has_psd:
        with pytest.raises(ConditionError, match="a condition is missing: this model is conditioned on digit"):
            vae.infer(x)
        with pytest.raises(ConditionError, match="a condition is missing"):
            vae.likelihood(vae.generate(3, labels_for(vae)))
    with pytest.raises(ConditionError, match=f"a condition has {vae.conditions.size} entries"):
        vae.infer(x, torch.ones(1))


@pytest.mark.parametrize(
    "case", [case for case in CASES if "labels" not in CASES[case][1] and CASES[case][0] != "Autoencoder"]
)
def test_a_model_without_labels_takes_no_condition(case: str) -> None:
    with pytest.raises(ConditionError, match="a condition was given"):
        build(case).infer(power(spectrograms(3)), torch.tensor([0.0, 1.0]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("FrameVAE", {"latent": "cauchy"}, "latent must be one of gaussian, .*dirichlet, got 'cauchy'"),
        (
            "FrameVAE",
            {"latent": "von-mises-fisher", "latent_dim": 1},
            "latents on a sphere need latent_dim of at least 2, got 1",
        ),
        (
            "FrameVAE",
            {"latent": "dirichlet", "latent_dim": 1},
            "Dirichlet latents need latent_dim of at least 2, got 1",
        ),
        (
            "FrameVAE",
            {"latent": "dirichlet", "dirichlet_concentration": 0.0},
            "dirichlet_concentration must be from .*, got 0.0",
        ),
        ("FrameVAE", {"likelihood": "poisson"}, "likelihood must be one of complex-gaussian, .*, got 'poisson'"),
        ("FrameVAE", {"labels": {"digit": ("0",)}}, "label 'digit' needs at least two different classes"),
        ("ContextVAE", {"kernel_size": 0}, "kernel_size and dilations must be positive"),
        ("ContextVAE", {"dilations": (1, 0)}, "kernel_size and dilations must be positive, got 512, 3 and 0"),
        ("SequenceVAE", {"n_frames": 20}, "n_frames must be a positive multiple of 8"),
        ("LabelVAE", {"labels": LABELS}, r"predicts exactly one label, got \['digit', 'speaker'\]"),
        ("LabelVAE", {"labels": {}}, "predicts exactly one label, got none"),
        ("LabelVAE", {"labels": {"digit": ("0", "1")}, "pool": False}, "halvings must be 0 where labels are per frame"),
        ("DSAE", {"sequence_dim": 0}, "latent_dim and sequence_dim must be positive, got 16 and 0"),
        ("RVAE", {"width": 0}, "widths must be positive"),
        ("DKF", {"emission": (8, 0)}, "widths must be positive"),
        ("STORN", {"features": 0}, "widths must be positive"),
        ("SRNN", {"latent_dim": 0}, "latent_dim must be positive, got 0"),
    ],
)
def test_sizes_that_make_no_model_are_refused_by_their_name(name: str, settings: dict[str, Any], message: str) -> None:
    model_class, settings_class = MODELS[name]
    with pytest.raises(ValueError, match=message):
        model_class(N_FREQS, settings_class(**settings))


# SequenceVAE, LabelVAE, RVAE -----------------------------------------------------------------------------------------


def test_a_sequence_that_is_too_long_is_refused() -> None:
    vae = build("SequenceVAE")
    for call in (
        lambda: vae.infer(power(spectrograms(9))),
        lambda: vae.likelihood(torch.zeros(9, 4)),
        lambda: vae.generate(9),
    ):
        with pytest.raises(LatentError, match="sequences of at most 8 frames, got 9"):
            call()


def test_a_short_sequence_is_one_followed_by_mean_spectra() -> None:
    vae = stirred("SequenceVAE", 0.3)
    x = power(spectrograms(5))
    mean_spectrum = (vae.log_power.mean.exp() - VARIANCE_FLOOR).expand(3, -1)
    posterior, padded = posterior_of(vae.infer(x)), posterior_of(vae.infer(torch.cat([x, mean_spectrum])))
    torch.testing.assert_close(posterior.mean, padded.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.likelihood(vae.infer(x, mean=True).latents).variance.shape, torch.Size([5, N_FREQS]))


def test_what_a_sequence_decodes_to_has_an_order_in_time() -> None:
    vae = stirred("SequenceVAE", 0.3)
    psd = vae.likelihood(vae.generate(8)).variance
    assert (psd[1:] / psd[:-1] - 1).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("case", ["LabelVAE", "LabelVAE, per frame"])
def test_the_probabilities_of_labels_are_such(case: str) -> None:
    vae, x = stirred(case, 0.3), power(spectrograms(2, 7))
    assert isinstance(vae, LabelVAE)
    torch.manual_seed(0)
    found = vae.predict(x, 3)
    assert found.shape == (2, 7, 3)
    assert (found > 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 7))
    assert (
        torch.equal(found[:, :1].expand_as(found), found) == vae.settings.pool
    )  # one decision, or one for every frame
    likelihood = vae.likelihood(vae.infer(x).latents, past=x)
    drawn = torch.stack([likelihood.sample() for _ in range(2000)])
    assert (drawn.sum(-1) == 1).all()
    spread = (likelihood.mean * (1 - likelihood.mean) / 2000).sqrt()
    assert ((drawn.mean(0) - likelihood.mean).abs() < Z_LIMIT * spread).all()
    soft = torch.softmax(torch.randn(2, 7, 3), -1)
    expected = torch.stack([soft[..., c] * likelihood.log_prob(torch.eye(3)[c].expand(2, 7, 3)) for c in range(3)]).sum(
        0
    )
    torch.testing.assert_close(likelihood.log_prob(soft), expected)


def test_a_label_is_predicted_from_a_sound() -> None:
    vae = build("LabelVAE")
    for call in (vae.prior, vae.likelihood):
        with pytest.raises(ConditionError, match="needs the power of the sound as `past`"):
            call(torch.zeros(4, 3))


@pytest.mark.parametrize(("causal", "expected"), [(True, 581921), (False, 1067937)])
def test_the_published_rvae_has_its_number_of_weights(causal: bool, expected: int) -> None:
    """The published count has one bias per LSTM gate pair and frequency as PyTorch has; the last layer's bias is the
    observation's.
    """
    model_class, settings_class = MODELS["RVAE"]
    vae = model_class(513, settings_class(causal=causal, head=128))
    assert sum(parameter.numel() for parameter in vae.parameters()) == expected


@pytest.mark.parametrize("name", ["RVAE", "DKF", "DSAE", "STORN", "VRNN", "SRNN"])
def test_the_scales_of_a_dynamical_model_are_those_that_its_settings_name(name: str) -> None:
    """With weights of zero a standard deviation is exp(1.5) where the log variance is 3, of a learnt prior too."""
    model_class, settings_class = MODELS[name]
    vae = model_class(N_FREQS, settings_class(posterior_scale="exp", **RECURRENT))
    for weight in vae.parameters():
        nn.init.zeros_(weight)
    last = vae.recurrence.layers_out[-1] if name in ("DKF", "SRNN") else getattr(vae, "to_drive", None)
    heads = {"DSAE": ["to_sequence", "to_latents", "to_prior"], "VRNN": ["to_drive", "to_prior"]}.get(name, [])
    heads = [getattr(vae, head) for head in heads] or [vae.to_latents[-1] if name == "STORN" else last]
    heads += [vae.transition[-1]] if name == "SRNN" else []
    for head in heads:
        nn.init.constant_(head.bias[len(head.bias) // 2 :], 3.0)
    factors = vae.infer(torch.ones(2, 4, N_FREQS)).factors
    learnt = [] if name in ("RVAE", "STORN", "DKF") else [factors[0].prior]
    for distribution in [*(factor.posterior for factor in factors), *learnt]:
        torch.testing.assert_close(distribution.stddev, torch.full_like(distribution.stddev, math.exp(1.5)))


@pytest.mark.parametrize("name", MODELS)
def test_default_sizes_make_a_model(name: str) -> None:
    model_class, _ = MODELS[name]
    vae = model_class(33)
    latents = vae.infer(torch.ones(4, 33), labels_for(vae)).latents
    assert latents.shape == (4, vae.latent_dim)


def test_a_predictor_with_the_standard_prior_draws_from_it_before_the_label_is_known() -> None:
    """Its bound is that of its parts, and without a label z is noise, whatever x is."""
    torch.manual_seed(0)
    labels = {"label": ("a", "b")}
    vae = LabelVAE(9, LabelVAESettings(labels=labels, latent_dim=3, width=8, dropout=0.0, standard_prior=True))
    assert "to_prior.weight" not in vae.state_dict()
    power, y = 5 * torch.rand(4, 6, 9), torch.eye(2).repeat(2, 1)
    known, unknown = vae.infer(power, y).factors[0], vae.infer(power).factors[0]
    loc, scale = known.posterior.mean, known.posterior.variance.sqrt()
    expected = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(-1)
    torch.testing.assert_close(kl_divergence(known.posterior, known.prior), expected)
    assert expected.min() > 0
    z = vae.infer(power.expand(500, 4, 6, 9)).latents
    assert (z.mean(0).abs() < Z_LIMIT / 500**0.5).all()
    assert (unknown.posterior.variance == 1).all()
    assert (vae.prior(z, past=power).mean == 0).all()


def test_settings_of_two_models_are_not_shared() -> None:
    for model_class, settings_class in MODELS.values():
        assert dataclasses.is_dataclass(settings_class)
        if any(field.name == "labels" for field in dataclasses.fields(settings_class)):
            assert settings_class().labels is not settings_class().labels
        assert model_class.__name__ + "Settings" == settings_class.__name__


# FrameVAE ------------------------------------------------------------------------------------------------------------


def test_the_classic_size_has_its_number_of_weights() -> None:
    """513-128-16-128-513: (513 + 1) 128 + (128 + 1) 32 + (16 + 1) 128 + (128 + 1) 513."""
    vae = FrameVAE(513, FrameVAESettings(latent_dim=16, hidden=(128,), residual=False, activation="tanh"))
    expected = 514 * 128 + 129 * 32 + 17 * 128 + 129 * 513
    assert sum(parameter.numel() for parameter in vae.parameters()) == expected == 138273


def test_frames_do_not_see_each_other() -> None:
    vae = build("FrameVAE")
    assert vae.needs_past is False
    frames = power(spectrograms(6))
    posterior = posterior_of(vae.infer(frames))
    changed = frames.clone()
    changed[3:] *= 100
    torch.testing.assert_close(posterior_of(vae.infer(changed)).mean[:3], posterior.mean[:3])
    assert (posterior_of(vae.infer(changed)).mean[3:] - posterior.mean[3:]).abs().max() > 1e-4


def test_the_location_of_the_posterior_is_that_of_the_formula() -> None:
    """By hand: a linear layer of h sigmoid(h), h a linear layer of the standardised log power."""
    vae = build("FrameVAE")
    frames = power(spectrograms(4))
    state = vae.state_dict()
    first, second = (module for module in vae.encoder.modules() if isinstance(module, nn.Linear))
    features = ((frames + 1e-6).log() - state["log_power.mean"]) / state["log_power.std"]
    hidden = features @ first.weight.T + first.bias
    output = (hidden * torch.sigmoid(hidden)) @ second.weight.T + second.bias
    torch.testing.assert_close(posterior_of(vae.infer(frames)).mean, output[:, :5])


@pytest.mark.parametrize("weight", [1e3, -1e3])
def test_the_divergence_stays_finite_with_any_output_of_the_encoder(weight: float) -> None:
    vae = build("FrameVAE")
    with torch.no_grad():
        vae.encoder[-1].bias.fill_(weight)
    inference = vae.infer(power(spectrograms(4)))
    assert (posterior_of(inference).stddev > 0).all()
    divergence = kl_divergence(inference.factors[0].posterior, inference.factors[0].prior)
    assert torch.isfinite(divergence).all()
    divergence.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in vae.encoder.parameters())


def test_the_likelihood_is_a_complex_gaussian_of_each_bin() -> None:
    vae = build("FrameVAE")
    likelihood, x = vae.likelihood(torch.randn(4, 5)), spectrograms(4)
    assert isinstance(likelihood.base_dist, ComplexNormal)
    expected = ComplexNormal(likelihood.variance).log_prob(x).sum(-1)
    torch.testing.assert_close(likelihood.log_prob(x), expected)


def test_an_untrained_model_starts_near_the_prior_and_the_mean_spectrum() -> None:
    """Of noise with a known spectrum: within a fraction of a nat a bin of the true model, which is its own best one."""
    vae = build("FrameVAE")
    variance = torch.logspace(2, -3, N_FREQS)
    x = variance.sqrt() * torch.randn(4000, N_FREQS, dtype=torch.complex64, generator=torch.Generator().manual_seed(5))
    vae.calibrate(power(x))
    with torch.no_grad():
        terms = elbo(vae, power(x))
    truth = ComplexNormal(variance).log_prob(x).sum(-1).mean()
    assert float(truth - terms.log_likelihood.mean()) < 0.05 * N_FREQS
    assert float(terms.kl.mean()) < 0.5 * vae.latent_dim


def test_a_decoder_that_says_nothing_gives_the_mean_spectrum() -> None:
    """Of noise of a known variance: E log |x|^2 = log variance - Euler's constant; 20,000 frames, deviation pi /
    sqrt(6).
    """
    variance = torch.logspace(2, -2, N_FREQS)
    x = variance.sqrt() * torch.randn(20000, N_FREQS, dtype=torch.complex64, generator=torch.Generator().manual_seed(6))
    vae = FrameVAE(N_FREQS)
    vae.calibrate(power(x))
    with torch.no_grad():
        vae.decoder[-1].weight.zero_()
        error = vae.likelihood(torch.randn(3, vae.latent_dim)).variance.log() - variance.log()
    assert error.abs().max() < Z_LIMIT * math.pi / math.sqrt(6 * 20000)
    assert (
        pytest.approx(-float(torch.special.digamma(torch.tensor(1.0, dtype=torch.float64))), abs=1e-12) == EULER_GAMMA
    )


def test_models_of_dynamics_start_at_the_mean_power() -> None:
    """The best single spectrum for loud and soft frames together, whose first loss is that of a constant, not a huge
    one.
    """
    loudness = torch.logspace(-3, 3, 500)[:, None]
    x = loudness * torch.randn(500, N_FREQS, dtype=torch.complex64, generator=torch.Generator().manual_seed(7))
    vae = build("DKF")
    vae.calibrate(power(x))
    with torch.no_grad():
        cast(nn.Linear, vae.decoder[-1]).weight.zero_()
        variance = vae.likelihood(torch.zeros(1, vae.latent_dim)).variance[0]
    torch.testing.assert_close(variance, power(x).mean(0))


def test_default_settings_are_not_shared_between_models() -> None:
    first, second = FrameVAE(9), FrameVAE(9)
    second.calibrate(torch.full((3, 9), 7.0))
    assert first.log_power.mean.abs().max() == 0
    assert not torch.equal(first.encoder[-1].weight, second.encoder[-1].weight)


REFUSED = [
    ({"likelihood": "categorical"}, r"the likelihood 'categorical' is of arrays \(data: array\), not of sound"),
    ({"data": "array", "likelihood": "categorical", "n_values": 1}, "n_values must be at least 2, got 1"),
    ({"latent_dim": 0}, "latent_dim must be positive, got 0"),
    ({"latent_dim": -4}, "latent_dim must be positive, got -4"),
    ({"hidden": (128, 0)}, r"layers must have positive widths, got \[513, 128, 0, 128\]"),
    ({"data": "image"}, "data must be one of sound, array, got 'image'"),
    ({"network_input": "phase"}, "network_input must be one of log-power, power, got 'phase'"),
    ({"variance_floor": 0.0}, "variance_floor must be from 1e-30 to 1, got 0.0"),
    ({"posterior_scale": "relu"}, "posterior_scale must be one of bounded, exp, .*, got 'relu'"),
    (
        {"data": "array"},
        "likelihood must be bernoulli, squared-error, gaussian or categorical for arrays, got 'complex-gaussian'",
    ),
    (
        {"latent": "dirichlet", "posterior_scale": "exp"},
        "posterior_scale is of gaussian latents; dirichlet ones have no scale",
    ),
    ({"activation": "swish"}, "activation must be one of tanh, relu, silu, gelu, got 'swish'"),
    ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ({"dropout": math.nan}, r"dropout must be in \[0, 1\), got nan"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_a_size_that_makes_no_network_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameVAE(513, FrameVAESettings(**settings))  # type: ignore[arg-type]


def test_a_model_without_bins_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers must have positive widths, got \[0, 512, 512, 512, 128\]"):
        FrameVAE(0)


def test_the_contract_itself_makes_no_model() -> None:
    with pytest.raises(TypeError, match="abstract"):
        VAE()  # type: ignore[abstract]


# Networks ------------------------------------------------------------------------------------------------------------


def test_calibration_standardises_the_log_power() -> None:
    frames = power(spectrograms(500))
    network = LogPower(N_FREQS)
    network.calibrate(frames)
    standardised = network(frames)
    torch.testing.assert_close(standardised.mean(0), torch.zeros(N_FREQS), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised.std(0, correction=0), torch.ones(N_FREQS), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "frames", [torch.zeros(5, N_FREQS), torch.full((1, N_FREQS), 3.0)], ids=["silence", "one frame"]
)
def test_a_bin_that_is_constant_in_the_corpus_stays_finite(frames: Tensor) -> None:
    network = LogPower(N_FREQS)
    network.calibrate(frames)
    assert (network.std > 0).all()
    assert torch.isfinite(network(power(spectrograms(3)))).all()


def test_a_bin_above_the_band_of_the_corpus_is_not_blown_up() -> None:
    """Noise of the whole band, where training had none: its distance in log power, not a hundred times that."""
    band, whole = power(spectrograms(500)), power(spectrograms(50))
    band[:, 9:] = 1e-9
    network = LogPower(N_FREQS)
    network.calibrate(band)
    torch.testing.assert_close(network.std[9:], torch.ones(N_FREQS - 9))
    torch.testing.assert_close(network.std[:9], (band[:, :9] + 1e-6).log().std(0, correction=0))
    expected = (whole[:, 9:] + 1e-6).log() - math.log(1e-6)
    torch.testing.assert_close(network(whole.clone())[:, 9:], expected, atol=0.01, rtol=0)
    observation = Observation(N_FREQS, "squared-error")
    observation.calibrate(band)
    torch.testing.assert_close(observation.std, network.std)


def test_the_constants_of_a_corpus_are_saved_and_not_trained() -> None:
    network = LogPower(N_FREQS)
    assert sorted(network.state_dict()) == ["mean", "std"]
    assert list(network.parameters()) == []


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_a_perceptron_is_that_of_the_formula(activation: str, residual: bool) -> None:
    """A skip connection goes around a hidden layer whose input is hidden too, and as wide."""
    torch.manual_seed(5)
    network = mlp([6, 6, 6, 4, 6], activation, residual=residual)  # type: ignore[arg-type]
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    x = torch.randn(3, 6)
    act = ACTIVATIONS[activation]
    first = act(linear[0](x))
    second = act(linear[1](first)) + (first if residual else 0)
    expected = linear[3](act(linear[2](second)))
    torch.testing.assert_close(network(x), expected)


def test_dropout_zeroes_hidden_units_in_training_alone() -> None:
    torch.manual_seed(6)
    network = mlp([4, 1000, 1], "relu", dropout=0.25)
    hidden = copy.deepcopy(network[0])
    x = torch.ones(50, 4)
    kept = hidden.train()(x) != 0
    share = float(kept.float().mean() / (hidden.eval()(x) != 0).float().mean())
    assert share == pytest.approx(0.75, abs=Z_LIMIT * math.sqrt(0.25 * 0.75 / 20000))
