"""The contract of a VAE over every registered model, and the particulars of each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from audiovae import VAE, ComplexNormal, FrameVAE, FrameVAESettings, elbo
from audiovae.models import MODELS, Inference
from audiovae.networks.log_power import EULER_GAMMA, VARIANCE_FLOOR, LogPower
from audiovae.networks.mlp import mlp
from audiovae.objectives import elbo_of_power, power

N_FREQS = 17
Z_LIMIT = 5.0  # a test of a mean fails by chance once in two million

# Every registered model with the settings under which it must keep the contract: add a row for a new one.
CASES: list[tuple[str, dict[str, object]]] = [
    ("FrameVAE", {"latent_dim": 5, "hidden": (24,)}),
    ("FrameVAE", {"latent_dim": 1, "hidden": (24, 12), "activation": "relu"}),
    ("FrameVAE", {"latent_dim": 5, "hidden": (24, 24, 24), "residual": True, "activation": "silu", "dropout": 0.2}),
    ("FrameVAE", {"latent_dim": 20, "hidden": (8, 8), "residual": True, "activation": "gelu"}),
]
every_model = pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else None)


def build(name: str, settings: dict[str, object], n_freqs: int = N_FREQS) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class, settings_class = MODELS[name]
        vae = model_class(n_freqs, settings_class(**settings))
        vae.calibrate(power(spectrograms(64)[:, :n_freqs]))
        return vae.eval()


def spectrograms(*shape: int, seed: int = 0) -> Tensor:
    """Coloured noise at unit level: `[*shape, freq]`."""
    slope = torch.logspace(1, -2, N_FREQS)
    return slope * torch.randn(*shape, N_FREQS, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def test_every_registered_model_is_tested_here() -> None:
    assert {name for name, _ in CASES} == set(MODELS)


@every_model
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 7), (2, 1, 4)])
def test_an_encoder_gives_distributions_over_latents(name: str, settings: dict[str, object], shape: tuple[int, ...]) -> None:
    vae = build(name, settings)
    inference = vae.infer(power(spectrograms(*shape)))
    assert isinstance(inference, Inference)
    assert inference.latents.shape == (*shape, vae.latent_dim)
    assert isinstance(inference.posterior, Distribution)
    assert (inference.posterior.batch_shape, inference.posterior.event_shape) == (shape, (vae.latent_dim,))
    assert isinstance(inference.prior, Distribution)
    assert inference.prior.event_shape == (vae.latent_dim,)
    assert torch.broadcast_shapes(inference.prior.batch_shape, shape) == shape
    assert kl_divergence(inference.posterior, inference.prior).shape == shape
    assert (kl_divergence(inference.posterior, inference.prior) >= 0).all()


@every_model
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 7), (2, 1, 4)])
def test_a_decoder_gives_a_distribution_over_spectra(name: str, settings: dict[str, object], shape: tuple[int, ...]) -> None:
    vae = build(name, settings)
    likelihood = vae.likelihood(torch.randn(*shape, vae.latent_dim))
    assert isinstance(likelihood, Distribution)
    assert (likelihood.batch_shape, likelihood.event_shape) == (shape, (N_FREQS,))
    assert likelihood.variance.shape == (*shape, N_FREQS)
    assert (likelihood.variance > 0).all()
    assert likelihood.log_prob(spectrograms(*shape)).shape == shape


@every_model
def test_a_model_says_what_it_is(name: str, settings: dict[str, object]) -> None:
    vae = build(name, settings)
    model_class, settings_class = MODELS[name]
    assert type(vae) is model_class
    assert model_class.__name__ == name
    assert vae.settings == settings_class(**settings)
    assert (vae.n_freqs, vae.latent_dim) == (N_FREQS, settings["latent_dim"])
    assert isinstance(vae.needs_past, bool)


@every_model
def test_latents_are_drawn_from_the_posterior(name: str, settings: dict[str, object]) -> None:
    """Given the power, z-scores of the drawn latents are standard normal: mean 0, variance 1."""
    vae = build(name, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        inference = vae.infer(power(spectrograms(1)).expand(5000, -1))
    residual = (inference.latents - inference.posterior.mean) / inference.posterior.stddev
    assert residual.mean(0).abs().max() < Z_LIMIT / math.sqrt(5000)
    assert (residual.var(0) - 1).abs().max() < Z_LIMIT * math.sqrt(2 / 5000)


@every_model
def test_latents_carry_gradients_to_the_encoder(name: str, settings: dict[str, object]) -> None:
    vae = build(name, settings)
    inference = vae.infer(power(spectrograms(3)))
    inference.latents.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in vae.encoder.parameters())


@every_model
def test_every_weight_takes_part_in_the_bound(name: str, settings: dict[str, object]) -> None:
    vae = build(name, settings)
    elbo(vae, spectrograms(4)).bound.sum().backward()
    assert [key for key, parameter in vae.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@every_model
def test_items_of_a_batch_do_not_see_each_other(name: str, settings: dict[str, object]) -> None:
    vae = build(name, settings)
    one, other = power(spectrograms(2, 6))
    alone = vae.infer(one[None]).posterior
    for companion in (other, 1e6 * other, torch.zeros_like(other)):
        together = vae.infer(torch.stack([companion, one, companion])).posterior
        torch.testing.assert_close(together.mean[1], alone.mean[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.stddev[1], alone.stddev[0], atol=1e-5, rtol=1e-5)
    latents = torch.randn(2, 6, vae.latent_dim, generator=torch.Generator().manual_seed(2))
    spectra = vae.likelihood(latents).variance
    torch.testing.assert_close(spectra[1], vae.likelihood(latents[1]).variance, atol=0, rtol=1e-4)


@every_model
@pytest.mark.parametrize("gain", [0.0, 1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_silence_and_any_power_are_finite_forward_and_backward(name: str, settings: dict[str, object], gain: float) -> None:
    vae = build(name, settings)
    x = (math.sqrt(gain) * spectrograms(3, 4)).requires_grad_()
    terms = elbo(vae, x)
    assert torch.isfinite(terms.log_likelihood).all()
    assert torch.isfinite(terms.kl).all()
    terms.bound.sum().backward()
    assert torch.isfinite(torch.view_as_real(x.grad)).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in vae.parameters())


@every_model
def test_one_silent_bin_among_loud_ones_is_finite(name: str, settings: dict[str, object]) -> None:
    vae = build(name, settings)
    x = spectrograms(3)
    x[:, 4] = 0
    x.requires_grad_()
    elbo(vae, x).bound.sum().backward()
    assert torch.isfinite(torch.view_as_real(x.grad)).all()


@every_model
def test_far_latents_give_finite_spectra(name: str, settings: dict[str, object]) -> None:
    vae = build(name, settings)
    likelihood = vae.likelihood(torch.full((1, vae.latent_dim), 30.0))
    assert torch.isfinite(likelihood.log_prob(spectrograms(1))).all()
    assert torch.isfinite(likelihood.variance).all()


@every_model
def test_no_variance_is_below_the_floor(name: str, settings: dict[str, object]) -> None:
    vae = build(name, settings)
    vae.calibrate(torch.zeros(10, N_FREQS))
    assert (vae.likelihood(10 * torch.randn(50, vae.latent_dim)).variance >= VARIANCE_FLOOR * (1 - 1e-5)).all()


@every_model
def test_a_model_overfits_one_batch(name: str, settings: dict[str, object]) -> None:
    """It beats the best single spectrum: log N_C at the mean power of each bin, which is -log(pi) - log(mean) - 1 a bin.

    The frames are of two kinds, so knowing the kind is worth several nats.
    """
    vae = build(name, settings).train()
    tilt = torch.cat([torch.linspace(3, -3, N_FREQS).expand(16, -1), torch.linspace(-3, 3, N_FREQS).expand(16, -1)])
    x = tilt.exp() * spectrograms(32, seed=3)
    frames = power(x)
    vae.calibrate(frames)
    best_single = float(-(math.log(math.pi) + frames.mean(0).log() + 1).sum())
    optimizer = torch.optim.Adam(vae.parameters(), 5e-3)
    torch.manual_seed(3)
    before = float(elbo_of_power(vae, frames).bound.mean().detach())
    for _ in range(250):
        optimizer.zero_grad()
        (-elbo_of_power(vae, frames).bound.mean()).backward()
        optimizer.step()
    with torch.no_grad():
        after = float(elbo(vae.eval(), x.expand(20, -1, -1)).bound.mean())
    assert after > before + 10
    assert after > best_single + 10


@every_model
def test_saved_and_reloaded_weights_give_the_same_bits(name: str, settings: dict[str, object]) -> None:
    vae = build(name, settings)
    model_class, settings_class = MODELS[name]
    again = model_class(N_FREQS, settings_class(**settings)).eval()
    again.load_state_dict(safetensors.torch.load(safetensors.torch.save(vae.state_dict())))
    frames = power(spectrograms(3, 4))
    posterior, posterior_again = vae.infer(frames).posterior, again.infer(frames).posterior
    assert torch.equal(posterior.mean, posterior_again.mean)
    assert torch.equal(posterior.stddev, posterior_again.stddev)
    assert torch.equal(vae.likelihood(posterior.mean).variance, again.likelihood(posterior.mean).variance)


@every_model
def test_generated_latents_follow_the_prior(name: str, settings: dict[str, object]) -> None:
    vae = build(name, settings)
    if name != "FrameVAE":
        pytest.skip("moments of N(0, I)")
    torch.manual_seed(4)
    latents = vae.generate(5000)
    assert latents.shape == (5000, vae.latent_dim)
    assert latents.mean(0).abs().max() < Z_LIMIT / math.sqrt(5000)
    assert (latents.var(0) - 1).abs().max() < Z_LIMIT * math.sqrt(2 / 5000)
    prior = vae.infer(power(spectrograms(1))).prior
    assert torch.equal(prior.mean, torch.zeros(1, vae.latent_dim))
    assert torch.equal(prior.stddev, torch.ones(1, vae.latent_dim))


@every_model
def test_a_model_works_in_double_precision(name: str, settings: dict[str, object]) -> None:
    """Gradients of the posterior against finite differences; generated latents fit their decoder."""
    vae = build(name, settings).double()
    frames = (power(spectrograms(2)).double() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: vae.infer(value).posterior.mean, (frames,))
    assert vae.likelihood(vae.generate(3)).variance.dtype == torch.float64


@every_model
def test_inference_is_the_same_each_time(name: str, settings: dict[str, object]) -> None:
    """In evaluation mode; dropout acts in training alone."""
    vae = build(name, settings)
    frames = power(spectrograms(5))
    assert torch.equal(vae.infer(frames).posterior.mean, vae.infer(frames).posterior.mean)
    vae.train()
    differs = not torch.equal(vae.infer(frames).posterior.mean, vae.infer(frames).posterior.mean)
    assert differs == bool(settings.get("dropout"))


# FrameVAE ------------------------------------------------------------------------------------------------------------


def test_the_classic_size_has_its_number_of_weights() -> None:
    """513-128-16-128-513: (513 + 1) 128 + (128 + 1) 32 + (16 + 1) 128 + (128 + 1) 513."""
    vae = FrameVAE(513)
    expected = 514 * 128 + 129 * 32 + 17 * 128 + 129 * 513
    assert sum(parameter.numel() for parameter in vae.parameters()) == expected == 138273


def test_frames_do_not_see_each_other() -> None:
    vae = build("FrameVAE", {"latent_dim": 5, "hidden": (24,)})
    assert vae.needs_past is False
    frames = power(spectrograms(6))
    posterior = vae.infer(frames).posterior
    changed = frames.clone()
    changed[3:] *= 100
    torch.testing.assert_close(vae.infer(changed).posterior.mean[:3], posterior.mean[:3])
    assert (vae.infer(changed).posterior.mean[3:] - posterior.mean[3:]).abs().max() > 1e-4


def test_the_location_of_the_posterior_is_that_of_the_formula() -> None:
    """Classic layout by hand: a linear layer of the tanh of a linear layer of the standardised log power."""
    vae = build("FrameVAE", {"latent_dim": 5, "hidden": (24,)})
    frames = power(spectrograms(4))
    state = vae.state_dict()
    first, second = (module for module in vae.encoder.modules() if isinstance(module, nn.Linear))
    features = ((frames + 1e-6).log() - state["log_power.mean"]) / state["log_power.std"]
    output = torch.tanh(features @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(vae.infer(frames).posterior.mean, output[:, :5])


@pytest.mark.parametrize("weight", [1e3, -1e3])
def test_the_divergence_stays_finite_with_any_output_of_the_encoder(weight: float) -> None:
    vae = build("FrameVAE", {"latent_dim": 5, "hidden": (24,)})
    with torch.no_grad():
        vae.encoder[-1].bias.fill_(weight)
    inference = vae.infer(power(spectrograms(4)))
    assert (inference.posterior.stddev > 0).all()
    divergence = kl_divergence(inference.posterior, inference.prior)
    assert torch.isfinite(divergence).all()
    divergence.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in vae.encoder.parameters())


def test_the_likelihood_is_a_complex_gaussian_of_each_bin() -> None:
    vae = build("FrameVAE", {"latent_dim": 5, "hidden": (24,)})
    likelihood, x = vae.likelihood(torch.randn(4, 5)), spectrograms(4)
    assert isinstance(likelihood.base_dist, ComplexNormal)
    expected = ComplexNormal(likelihood.variance).log_prob(x).sum(-1)
    torch.testing.assert_close(likelihood.log_prob(x), expected)


def test_an_untrained_model_starts_near_the_prior_and_the_mean_spectrum() -> None:
    """Of noise with a known spectrum: within a fraction of a nat a bin of the true model, which is its own best one."""
    vae = build("FrameVAE", {"latent_dim": 5, "hidden": (24,)})
    variance = torch.logspace(2, -3, N_FREQS)
    x = variance.sqrt() * torch.randn(4000, N_FREQS, dtype=torch.complex64, generator=torch.Generator().manual_seed(5))
    vae.calibrate(power(x))
    with torch.no_grad():
        terms = elbo(vae, x)
    truth = ComplexNormal(variance).log_prob(x).sum(-1).mean()
    assert float(truth - terms.log_likelihood.mean()) < 0.05 * N_FREQS
    assert float(terms.kl.mean()) < 0.5 * vae.latent_dim


def test_a_decoder_that_says_nothing_gives_the_mean_spectrum() -> None:
    """Of noise of a known variance: E log |x|^2 = log variance - Euler's constant; 20,000 frames, deviation pi / sqrt(6)."""
    variance = torch.logspace(2, -2, N_FREQS)
    x = variance.sqrt() * torch.randn(20000, N_FREQS, dtype=torch.complex64, generator=torch.Generator().manual_seed(6))
    vae = FrameVAE(N_FREQS)
    vae.calibrate(power(x))
    with torch.no_grad():
        vae.decoder[-1].weight.zero_()
        error = vae.likelihood(torch.randn(3, 16)).variance.log() - variance.log()
    assert error.abs().max() < Z_LIMIT * math.pi / math.sqrt(6 * 20000)
    assert pytest.approx(-float(torch.special.digamma(torch.tensor(1.0, dtype=torch.float64))), abs=1e-12) == EULER_GAMMA


def test_default_settings_are_not_shared_between_models() -> None:
    first, second = FrameVAE(9), FrameVAE(9)
    second.calibrate(torch.full((3, 9), 7.0))
    assert first.log_power.mean.abs().max() == 0
    assert not torch.equal(first.encoder[-1].weight, second.encoder[-1].weight)


REFUSED = [
    ({"latent_dim": 0}, r"latent_dim must be positive, got \[0\]"),
    ({"latent_dim": -4}, r"latent_dim must be positive, got \[-4\]"),
    ({"hidden": ()}, r"hidden must be positive, got \(\)"),
    ({"hidden": (128, 0)}, r"hidden must be positive, got \(128, 0\)"),
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
    with pytest.raises(ValueError, match=r"n_freqs must be positive, got \[0\]"):
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


@pytest.mark.parametrize("frames", [torch.zeros(5, N_FREQS), torch.full((1, N_FREQS), 3.0)], ids=["silence", "one frame"])
def test_a_bin_that_is_constant_in_the_corpus_stays_finite(frames: Tensor) -> None:
    network = LogPower(N_FREQS)
    network.calibrate(frames)
    assert (network.std > 0).all()
    assert torch.isfinite(network(power(spectrograms(3)))).all()


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
