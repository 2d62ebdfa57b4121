"""The energy of latents, against loops, finite differences and automatic differentiation; point estimates down it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixtures import energy_of

from audiovae import AudioVAE
from audiovae.separation import PointEstimate
from audiovae.separation.inference.energy import gradient

KINDS = ["frame", "dynamic"]


@pytest.fixture
def given(request: pytest.FixtureRequest) -> AudioVAE:
    prior: AudioVAE = request.getfixturevalue(request.param)
    return prior


@pytest.mark.parametrize("given", KINDS, indirect=True)
def test_the_energy_is_the_sum_of_the_formula(given: AudioVAE) -> None:
    energy, noise, latents, lengths = energy_of(given)
    found = energy(latents).detach().numpy()
    assert found.shape == latents.shape[:-1]
    power, scale = energy.mixture.power, energy.scale
    for sample in range(2):
        for recording, n_frames in enumerate(lengths):
            z = latents[sample, recording].clone()
            z[n_frames:] = 0
            with torch.no_grad():
                v = energy.prior.vae.likelihood(z).variance
                log_prior = energy.prior.vae.prior(z).log_prob(z).numpy()
            for t in range(n_frames):
                total = 0.0
                for f in range(v.shape[1]):
                    variance = scale[recording, t, f] * v[t, f] + noise[recording, t, f]
                    total += float(variance.log() + power[recording, t, f] / variance)
                assert found[sample, recording, t] == pytest.approx(total - 2.5 * log_prior[t], rel=1e-10)
            assert (found[sample, recording, n_frames:] == 0).all()


@pytest.mark.parametrize("given", KINDS, indirect=True)
def test_the_gradient_is_that_of_finite_differences_and_zero_in_the_padding(given: AudioVAE) -> None:
    energy, _, latents, lengths = energy_of(given)
    values, slope = gradient(energy, latents)
    assert torch.equal(values, energy(latents).detach())
    assert not slope.requires_grad
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        direction = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = energy(latents + 1e-5 * direction).sum(), energy(latents - 1e-5 * direction).sum()
        assert float((slope * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-5)
    for recording, n_frames in enumerate(lengths):
        assert (slope[:, recording, n_frames:] == 0).all()
        assert (slope[:, recording, :n_frames] != 0).any(-1).all()


@pytest.mark.parametrize("given", KINDS, indirect=True)
def test_point_estimates_go_down_the_energy(given: AudioVAE) -> None:
    energy, _, latents, lengths = energy_of(given)
    e_step = PointEstimate(n_steps=30)
    start = energy.prior.masked(latents[0])
    e_step.begin(start, given.vae.frames_are_independent)
    (found,) = e_step.draws(energy).latents
    with torch.no_grad():
        assert (energy(found).sum(-1) < energy(start).sum(-1)).all()
    for recording, n_frames in enumerate(lengths):
        assert (found[recording, n_frames:] == 0).all()


@pytest.mark.parametrize("given", KINDS, indirect=True)
def test_the_slope_is_the_gradient_of_the_energy(given: AudioVAE) -> None:
    energy, _, latents, _ = energy_of(given, coloured=True)
    expected = gradient(energy, latents)[1]
    assert expected.abs().mean() > 1
    assert torch.allclose(energy.slope(latents), expected, rtol=1e-9)


@pytest.mark.parametrize("given", KINDS, indirect=True)
def test_the_curvature_is_the_fisher_information_and_the_precision_of_the_prior(given: AudioVAE) -> None:
    """sum_f (d log V_f / d z_j)^2 by automatic differentiation of the whole, against the mean over many signs."""
    energy, noise, latents, lengths = energy_of(given)
    z = energy.prior.masked(latents[0])

    def log_variance(z: torch.Tensor) -> torch.Tensor:
        return torch.log(noise + energy.scale * energy.prior.variance(z))[0, : lengths[0]]

    jacobian = torch.func.jacrev(log_variance)(z)[:, :, 0].detach()
    with torch.no_grad():
        precision = 2.5 / energy.prior.vae.prior(z).variance[0]
    generator = torch.Generator().manual_seed(0)
    n_draws = 400
    total = torch.zeros_like(z)
    for _ in range(n_draws):
        signs = 1.0 - 2 * torch.randint(0, 2, noise.shape, generator=generator)
        total += energy.curvature(z, signs.double())
    found = (total / n_draws)[0, : lengths[0]]
    fisher = jacobian.square().sum((0, 1))[: lengths[0]]
    assert fisher.mean() > 0.05 * precision.mean()  # else nothing is tested
    of_misfit = found - precision[: lengths[0]]
    assert torch.allclose(of_misfit, fisher, rtol=0.4)  # each has a deviation of at most sqrt(2 / 400)
    assert float(of_misfit.sum() / fisher.sum()) == pytest.approx(1, abs=0.03)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [{"n_steps": 0}, {"refresh": 0}, {"step": 0.0}, {"trust": -1.0}, {"momentum": 1.0}])
def test_a_point_estimate_refuses_what_cannot_move(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive and momentum from 0 to below 1"):
        PointEstimate(**wrong)
