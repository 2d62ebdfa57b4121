"""Samplers on posteriors that are known in closed form, and the E-steps made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from audiovae.separation.inference.samplers import (
    LANGEVIN_ACCEPTANCE,
    RANDOM_WALK_ACCEPTANCE,
    Chain,
    effective_sample_size,
    langevin,
    metropolis_hastings,
)

CHAINS = 20000
LIMIT = 4.0  # standard errors


class LinearGaussian:
    """z ~ N(0, I), y = A z + noise: U(z) = |y - A z|^2 / (2 noise^2) + |z|^2 / 2, the posterior in closed form."""

    matrix = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.7, 0.1]], dtype=torch.float64)
    data = torch.tensor([0.5, -1.0, 0.8], dtype=torch.float64)
    noise = 0.6

    def __call__(self, latents: Tensor) -> Tensor:
        residual = self.data - latents @ self.matrix.T
        return 0.5 * (residual.square().sum(-1) / self.noise**2 + latents.square().sum(-1))

    @property
    def covariance(self) -> Tensor:
        return torch.linalg.inv(torch.eye(2, dtype=torch.float64) + self.matrix.T @ self.matrix / self.noise**2)

    @property
    def mean(self) -> Tensor:
        return self.covariance @ self.matrix.T @ self.data / self.noise**2


def numbers(shape: tuple[int, ...], seed: int = 0) -> object:
    generator = torch.Generator().manual_seed(seed)
    return lambda: (
        torch.randn(shape, generator=generator, dtype=torch.float64),
        torch.rand(shape[:-1], generator=generator, dtype=torch.float64),
    )


def assert_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Of independent draws: the error of a mean is s / sqrt(n), that of a covariance sqrt((s_ii s_jj + s_ij^2) / n)."""
    n = len(draws)
    assert ((draws.mean(0) - mean).abs() < LIMIT * (covariance.diagonal() / n).sqrt()).all()
    variances = covariance.diagonal()
    error = ((variances[:, None] * variances + covariance.square()) / n).sqrt()
    assert ((torch.cov(draws.T) - covariance).abs() < LIMIT * error).all()


@pytest.mark.parametrize("by_frame", [True, False], ids=["frames", "recordings"])
@pytest.mark.parametrize("kernel", ["metropolis-hastings", "mala", "tamed mala"])
def test_exact_samplers_reach_the_moments_of_a_linear_gaussian_posterior(kernel: str, by_frame: bool) -> None:
    """Every chain gives one draw, its last state: they are independent. A recording of one frame is a block too."""
    energy = LinearGaussian()
    shape = (1, CHAINS, 2) if by_frame else (CHAINS, 1, 2)
    chain = Chain.start(
        torch.zeros(shape, dtype=torch.float64), 0.3 if kernel == "metropolis-hastings" else 0.1, by_frame
    )
    random = numbers(shape)
    if kernel == "metropolis-hastings":
        metropolis_hastings(energy, chain, 40, random, adapt=True)
        metropolis_hastings(energy, chain, 120, random)
    else:
        tamed = kernel == "tamed mala"
        langevin(energy, chain, 30, random, metropolis=True, adapt=True, tamed=tamed)
        langevin(energy, chain, 60, random, metropolis=True, tamed=tamed)
    assert_moments(chain.latents.reshape(-1, 2), energy.mean, energy.covariance)


def test_a_chain_that_never_moved_is_worth_one_draw() -> None:
    moving = torch.randn(40, 1, 2, generator=torch.Generator().manual_seed(0))
    stuck = torch.full((40, 1, 1), 0.3)
    assert effective_sample_size(torch.cat([moving, stuck], -1))[0, 2] == 1
    assert (effective_sample_size(moving) > 10).all()


def test_all_frames_of_a_recording_move_together_to_their_own_posteriors() -> None:
    energy, shape = LinearGaussian(), (CHAINS, 3, 2)
    chain = Chain.start(torch.zeros(shape, dtype=torch.float64), 0.05, by_frame=False)
    random = numbers(shape)
    langevin(energy, chain, 60, random, metropolis=True, adapt=True)
    langevin(energy, chain, 80, random, metropolis=True)
    for t in range(3):
        assert_moments(chain.latents[:, t], energy.mean, energy.covariance)


@pytest.mark.parametrize("step", [0.05, 0.2])
def test_unadjusted_langevin_has_its_own_variance(step: float) -> None:
    """Of N(0, 1): z' = (1 - step) z + sqrt(2 step) n has variance 2 step / (1 - (1 - step)^2) = 1 / (1 - step / 2)."""
    shape = (1, CHAINS, 1)
    chain = Chain.start(torch.zeros(shape, dtype=torch.float64), step, by_frame=True)
    langevin(lambda z: 0.5 * z.square().sum(-1), chain, round(6 / step), numbers(shape), metropolis=False)
    variance = torch.tensor([[1 / (1 - step / 2)]], dtype=torch.float64)
    assert_moments(chain.latents.reshape(-1, 1), torch.zeros(1, dtype=torch.float64), variance)
    assert chain.acceptance is not None
    assert (chain.acceptance == 1).all()


@pytest.mark.parametrize(
    ("kernel", "first"), [("metropolis-hastings", 30.0), ("metropolis-hastings", 0.01), ("mala", 3.0), ("mala", 1e-4)]
)
def test_steps_adapt_to_the_best_acceptance_rate(kernel: str, first: float) -> None:
    shape = (4, 50, 8)
    chain = Chain.start(torch.zeros(shape, dtype=torch.float64), first, by_frame=True)

    def energy(z: Tensor) -> Tensor:
        return 0.5 * z.square().sum(-1)

    random = numbers(shape)
    if kernel == "metropolis-hastings":
        metropolis_hastings(energy, chain, 2000, random, adapt=True)
        metropolis_hastings(energy, chain, 500, random)
    else:
        langevin(energy, chain, 2000, random, metropolis=True, adapt=True)
        langevin(energy, chain, 500, random, metropolis=True)
    assert chain.acceptance is not None
    target = RANDOM_WALK_ACCEPTANCE if kernel == "metropolis-hastings" else LANGEVIN_ACCEPTANCE
    assert abs(float(chain.acceptance.mean()) - target) < 0.05


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_effective_sample_size_of_an_autoregression_is_known(rho: float) -> None:
    """x_t = rho x_{t-1} + sqrt(1 - rho^2) n: n (1 - rho) / (1 + rho)."""
    n = 20000
    noise = torch.randn(n, 8, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = [noise[0]]
    for t in range(1, n):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise[t])
    size = effective_sample_size(torch.stack(x)).mean()
    assert float(size) == pytest.approx(n * (1 - rho) / (1 + rho), rel=0.1)
