"""Scores of a spectrogram that are no density of x, and the point: against torch, SciPy and simulated spectra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Bernoulli

from audiovae.distributions import ComplexNormal, LogPowerNormal, Point, ScaledBernoulli

DOUBLE = torch.float64
Z_LIMIT = 5.0  # a test of a mean fails by chance once in two million


def spectrum(*shape: int, seed: int = 0) -> torch.Tensor:
    return 30 * torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def test_binary_cross_entropy_is_that_of_torch_on_the_scaled_spectrogram() -> None:
    x = spectrum(5, 7)
    logits = torch.randn(5, 7, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    low, high = torch.tensor(-3.0, dtype=DOUBLE), torch.tensor(8.0, dtype=DOUBLE)
    scaled = ((x.abs().square() + 1e-6).log() + 3).clamp(0, 11) / 11
    expected = Bernoulli(logits=logits, validate_args=False).log_prob(scaled)
    likelihood = ScaledBernoulli(logits, low, high)
    torch.testing.assert_close(likelihood.log_prob(x), expected)
    torch.testing.assert_close(likelihood.summed_log_prob_of_power(x.abs().square()), expected.sum(-1))


def test_real_values_are_the_scaled_spectrogram_itself() -> None:
    """Images in 0..1 among them: the textbook's likelihood without a spectrogram behind it."""
    x = spectrum(5, 7)
    logits = torch.randn(5, 7, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    low, high = torch.tensor(-3.0, dtype=DOUBLE), torch.tensor(8.0, dtype=DOUBLE)
    log_power = (x.abs().square() + 1e-6).log()
    bernoulli = ScaledBernoulli(logits, low, high)
    torch.testing.assert_close(bernoulli.log_prob(((log_power + 3) / 11).clamp(0, 1)), bernoulli.log_prob(x))
    torch.testing.assert_close(bernoulli.mean, torch.sigmoid(logits))
    squared = LogPowerNormal(logits, low, high)
    torch.testing.assert_close(squared.log_prob((log_power - low) / high), squared.log_prob(x))


@pytest.mark.parametrize("power", [0.0, 1e30])
def test_powers_beyond_the_range_of_a_scaled_spectrogram_are_finite(power: float) -> None:
    logits = torch.zeros(3, requires_grad=True)
    ScaledBernoulli(logits, torch.tensor(-3.0), torch.tensor(8.0)).log_prob_of_power(
        torch.full((3,), power)
    ).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.full((3,), 0.5 if power else -0.5))


def test_squared_error_is_the_log_density_of_a_standard_normal_of_the_log_power() -> None:
    x = spectrum(4, 6)
    location = torch.linspace(-2, 2, 6, dtype=DOUBLE)
    mean, std = torch.linspace(0, 3, 6, dtype=DOUBLE), torch.linspace(0.5, 2, 6, dtype=DOUBLE)
    standardised = (np.log(x.abs().square().numpy() + 1e-6) - mean.numpy()) / std.numpy()
    expected = torch.from_numpy(scipy.stats.norm.logpdf(standardised, loc=location.numpy()))
    likelihood = LogPowerNormal(location, mean, std)
    torch.testing.assert_close(likelihood.log_prob(x), expected)
    torch.testing.assert_close(likelihood.summed_log_prob_of_power(x.abs().square()), expected.sum(-1))


def test_its_psd_is_that_of_noise_whose_log_power_has_the_predicted_mean() -> None:
    """E log |x|^2 of N_C(0, v) by simulation: its deviation is pi / sqrt(6)."""
    mean, std, location = torch.tensor(1.5), torch.tensor(2.0), torch.tensor(0.3)
    variance = LogPowerNormal(location, mean, std).variance
    torch.manual_seed(0)
    log_power = ComplexNormal(variance).sample((200_000,)).abs().square().log()
    predicted = float(mean + std * location)
    assert abs(float(log_power.mean()) - predicted) < Z_LIMIT * math.pi / math.sqrt(6 * 200_000)
    share = torch.tensor((predicted + 3) / 11)
    scaled = ScaledBernoulli(torch.logit(share), torch.tensor(-3.0), torch.tensor(8.0))
    torch.testing.assert_close(scaled.variance, variance, rtol=1e-4, atol=0)


def test_a_point_is_where_it_is_and_costs_nothing() -> None:
    location = torch.randn(3, 4, requires_grad=True)
    point = Point(location)
    assert (point.batch_shape, point.event_shape) == ((3,), (4,))
    assert torch.equal(point.rsample((2,)), location.expand(2, 3, 4))
    assert torch.equal(point.expand((5, 3)).mean, location.expand(5, 3, 4))
    point.rsample().sum().backward()
    assert location.grad is not None
