"""Sources: their updates against formulas, loops and searches, and which priors can be one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from mixtures import (
    E_STEPS,
    NOISES,
    SIZES,
    energy_of,
    make_alive,
    mixture_of,
    noisy,
    random_power,
    speech_and_noise,
    untrained,
)
from numpy.typing import NDArray
from torch import Tensor

from audiovae import AudioVAE
from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.errors import AudiovaeError
from audiovae.models import MODELS
from audiovae.separation import (
    NMF,
    DeepSettings,
    DeepSource,
    Draws,
    LatentEnergy,
    PointEstimate,
    SingleChannel,
    SlowBands,
    Stationary,
    enhancer,
    quiet_start,
)
from audiovae.separation.sources.factors import bands

# Shallow sources -----------------------------------------------------------------------------------------------------


def mean_misfit(p: Tensor, speech: Tensor, noise: Tensor) -> float:
    variance = speech.numpy() + noise.numpy()
    return float((np.log(variance) + p.numpy() / variance).sum() / len(speech))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("name", NOISES)
def test_no_update_of_the_noise_makes_its_objective_worse(name: str, n_samples: int) -> None:
    mixture = mixture_of([random_power(40, 17)])
    speech = torch.from_numpy(np.random.default_rng(1).gamma(0.3, 5.0, (n_samples, 1, 40, 17)))
    noise = NOISES[name](mixture, quiet_start(mixture).psds[1])
    space = SingleChannel(mixture)
    trace = [mean_misfit(mixture.power, speech, noise.variance())]
    for _ in range(30):
        noise.update(space.view([speech, noise.psd()], 1), 1.0)
        trace.append(mean_misfit(mixture.power, speech, noise.variance()))
        assert float(space.nll([speech, noise.psd()]).sum()) == pytest.approx(trace[-1])
    steps = np.diff(trace)
    assert steps.max() <= 1e-10 * abs(trace[0])
    assert trace[0] - trace[-1] > 10  # nats: it does get better


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("together", [False, True])
def test_an_update_of_nmf_is_that_of_the_formula(together: bool) -> None:
    """Multiplicative, with the square root, W before H, each with the variance of its moment; a loop over all entries.

    Together, both with the variance of before.
    """
    n_frames, n_freqs, rank = 12, 5, 3
    p = random_power(n_frames, n_freqs)
    mixture = mixture_of([p], padding=4)
    noise = NMF(mixture, quiet_start(mixture).psds[1], rank, together=together)
    v = np.random.default_rng(1).gamma(0.3, 5.0, (2, n_frames, n_freqs))
    speech = torch.zeros(2, 1, n_frames + 4, n_freqs)
    speech[:, 0, :n_frames] = torch.from_numpy(v)
    w, h = noise.spectra[0].numpy().copy(), noise.activations[0, :n_frames].numpy().copy()

    def ratios() -> tuple[NDArray[Any], NDArray[Any]]:
        variance = v + h @ w.T + VARIANCE_FLOOR
        return (p.numpy() / variance**2).mean(0), (1 / variance).mean(0)

    def root(up: NDArray[Any], down: NDArray[Any], factor: NDArray[Any]) -> float:
        return float(np.sqrt((up * factor).sum() / (down * factor).sum()))

    for _ in range(3):
        noise.update(SingleChannel(mixture).view([speech, noise.psd()], 1), 1.0)
        up, down = ratios()
        new = w.copy()
        for f in range(n_freqs):
            for k in range(rank):
                new[f, k] *= root(up[:, f], down[:, f], h[:, k])
        w = new
        up, down = (up, down) if together else ratios()
        new = h.copy()
        for t in range(n_frames):
            for k in range(rank):
                new[t, k] *= root(up[t], down[t], w[:, k])
        h = new
        found = noise.variance()[0].numpy()
        np.testing.assert_allclose(found[:n_frames], h @ w.T + VARIANCE_FLOOR, rtol=1e-9)
        assert (found > 0).all()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["stationary", "slow"])
def test_the_noise_alone_is_fitted_by_its_mean_power(name: str) -> None:
    """Without speech a stationary noise has one optimum, the mean over time; a slow one of constant power that too."""
    p = random_power(40, 17)
    given = p if name == "stationary" else torch.linspace(1, 5, 17).expand(40, 17).clone()
    mixture = mixture_of([given])
    noise = NOISES[name](mixture, 0.1 * quiet_start(mixture).psds[1])  # the slow noise keeps a fifth of it
    for _ in range(300):
        noise.update(SingleChannel(mixture).view([torch.zeros(1, 1, 40, 17), noise.psd()], 1), 1.0)
    assert torch.allclose(noise.variance()[0], given.mean(0).expand(40, 17), rtol=1e-3)


WRONG = [partial(SlowBands, rank=0), partial(NMF, rank=0), partial(SlowBands, bump_frames=0)]
WRONG += [partial(make, n_steps=0) for make in (SlowBands, NMF, Stationary)]


@pytest.mark.parametrize("make", WRONG)
def test_no_component_and_no_step_are_refused(make: Callable[..., Any]) -> None:
    p = random_power(5, 4)
    with pytest.raises(ValueError, match=r"at least 1, got .*0"):
        make(mixture_of([p]), p.unsqueeze(0))


@pytest.mark.parametrize("name", NOISES)
def test_the_state_of_a_noise_is_its_spectrum_at_the_end_at_the_level_of_the_recording(name: str) -> None:
    """The mean of its last hundred frames; what a recording of fewer frames has."""
    lengths = [150, 60]
    mixture = mixture_of([random_power(n, 7, n) for n in lengths], padding=5)
    mixture = replace(mixture, level=torch.tensor([3.0, 0.1], dtype=torch.float64))
    noise = NOISES[name](mixture, quiet_start(mixture).psds[1])
    for i, n_frames in enumerate(lengths):
        found = noise.finding(i, n_frames).state
        expected = noise.psd()[0, i, max(0, n_frames - 100) : n_frames].mean(0) * [9.0, 0.01][i]
        assert torch.allclose(found, expected)


# Deep sources --------------------------------------------------------------------------------------------------------


class Still:
    """An E-step that says what it is told."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def begin(self, latents: Tensor, frames_are_independent: bool) -> None: ...

    def draws(self, energy: LatentEnergy) -> Draws:
        return Draws(self.latents)


@pytest.mark.parametrize("deviation", [0.2, 3.0])
def test_an_update_of_the_gain_lowers_its_objective_down_to_the_best_gain(frame: AudioVAE, deviation: float) -> None:
    """mean_r sum_f log V + P / V + 2.5 (log g)^2 / (2 deviation^2), and its minimum by a search over all gains."""
    energy, noise, latents, _ = energy_of(frame)
    mixture, inside = energy.mixture, energy.mixture.inside
    source = DeepSource(
        mixture,
        mixture.power,
        copy.deepcopy(frame).double(),
        Still(latents),
        DeepSettings(2.5, gain_deviation=deviation),
    )
    view = SingleChannel(mixture).view([noise.unsqueeze(0), noise.unsqueeze(0)], 0)
    with torch.no_grad():
        source.infer(view, 1.0)
        speech = source.psd()  # at a gain of 1

    def objective(log_gain: Tensor) -> Tensor:
        variance = log_gain.exp().unsqueeze(-1) * speech + noise
        misfit = (torch.log(variance) + mixture.power / variance).sum(-1).mean(0)
        return misfit + 2.5 * log_gain.square() / (2 * deviation**2)

    values = []
    for _ in range(200):
        gain = (source.psd() / speech)[0, ..., 0]
        values.append(objective(gain.log()))
        source.update(view, 1.0)
    trace = torch.stack(values)[:, inside]
    assert trace.diff(dim=0).max() < 1e-9 * trace.abs().max()
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    best = torch.stack([objective(torch.full_like(gain, float(u))) for u in grid]).min(0).values[inside]
    assert (trace[-1] - best).abs().max() < 1e-2
    assert torch.equal(source.psd()[:, ~inside], speech[:, ~inside])  # a gain of 1 in the padding
    n_frames = int(inside[0].sum())
    assert torch.allclose(source.finding(0, n_frames).gain, (source.psd() / speech)[0, 0, :n_frames, 0])


def test_an_update_of_the_colour_finds_the_microphone(frame: AudioVAE) -> None:
    """Speech of a known variance under a filter that is a line between the bands' centres, in little noise."""
    energy, _, latents, _ = energy_of(frame)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        speech = energy.prior.variance(latents[:1])
    colour = (bands(20, speech[0, 0]) @ torch.randn(20, generator=generator, dtype=torch.float64)).exp()
    noise = torch.full_like(speech, 1e-6)
    mixture = replace(energy.mixture, power=speech[0] * colour + noise[0])
    settings = DeepSettings(2.5, colour_deviation=100.0)
    source = DeepSource(mixture, speech[0], copy.deepcopy(frame).double(), Still(latents[:1]), settings)
    view = SingleChannel(mixture).view([speech, noise], 0)
    trace = []
    with torch.no_grad():
        source.infer(view, 1.0)
        for _ in range(100):
            trace.append((view.nll(source.psd()) * mixture.inside).sum())
            source.update(view, 1.0)
    assert (torch.stack(trace).diff() < 1e-6 * abs(trace[0])).all()
    found = (source.psd() / speech)[0, :, 0]
    assert torch.allclose(found, colour.expand_as(found), rtol=0.05)
    source.update(view, 1e10)  # where the prior holds it
    assert torch.allclose(source.psd(), speech, rtol=0.01)


@pytest.mark.parametrize("deviations", [(0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_no_update_of_gain_and_colour_increases_the_nll(frame: AudioVAE, deviations: tuple[float, float]) -> None:
    """Under priors that weigh nothing."""
    energy, _, latents, _ = energy_of(frame)
    settings = DeepSettings(1e-9, *deviations)
    source = DeepSource(energy.mixture, energy.mixture.power, copy.deepcopy(frame).double(), Still(latents), settings)
    trace = []
    with torch.no_grad():
        source.infer(energy.view, 1.0)
        for _ in range(30):
            trace.append(float((energy.view.nll(source.psd()).mean(0) * energy.mixture.inside).sum()))
            source.update(energy.view, 1.0)
    assert np.diff(trace).max() <= 1e-9 * abs(trace[0])
    assert trace[0] - trace[-1] > 1


def test_the_log_prior_is_the_weighted_mean_over_draws_and_zero_in_the_padding(dynamic: AudioVAE) -> None:
    energy, _, latents, lengths = energy_of(dynamic)
    source = DeepSource(
        energy.mixture, energy.mixture.power, copy.deepcopy(dynamic).double(), Still(latents), DeepSettings(2.5)
    )
    with torch.no_grad():
        source.infer(energy.view, 4.0)
        log_prior = source.log_prior()
        per_draw = energy.view.nll(energy.scale * energy.prior.variance(latents)) - energy(latents)
        expected = per_draw.mean(0)
    for i, n_frames in enumerate(lengths):
        assert torch.allclose(log_prior[i, :n_frames], expected[i, :n_frames])
        assert (log_prior[i, n_frames:] == 0).all()


# Refusals ------------------------------------------------------------------------------------------------------------


def test_every_model_is_known_here() -> None:
    assert SIZES.keys() == MODELS.keys()


REFUSED = [
    ("LabelVAE", {}, "LabelVAE predicts labels"),
    ("STORN", {}, "STORN needs past clean speech"),
    ("VRNN", {}, "VRNN needs past clean speech"),
    ("SRNN", {}, "SRNN needs past clean speech"),
    ("FrameVAE", {"likelihood": "bernoulli"}, "the likelihood 'bernoulli' is no density"),
    ("FrameVAE", {"likelihood": "squared-error"}, "the likelihood 'squared-error' is no density"),
    ("Autoencoder", {}, "the likelihood 'squared-error' is no density"),
    ("Autoencoder", {"likelihood": "complex-gaussian"}, "Autoencoder has no prior on its latents"),
    ("FrameVAE", {"latent": "von-mises-fisher"}, "FrameVAE has von-mises-fisher latents.*use a prior with gaussian"),
    ("FrameVAE", {"latent": "power-spherical"}, "FrameVAE has power-spherical latents.*use a prior with gaussian"),
    ("ContextVAE", {"latent": "dirichlet"}, "ContextVAE has dirichlet latents.*use a prior with gaussian"),
]


@pytest.mark.parametrize(("name", "settings", "reason"), REFUSED)
def test_a_prior_that_has_no_psd_of_latents_alone_is_refused_with_the_reason(
    name: str, settings: dict[str, Any], reason: str
) -> None:
    given = untrained(name, **settings)
    with pytest.raises(AudiovaeError, match=reason):
        DeepSource.of(given, PointEstimate)
    with pytest.raises(AudiovaeError, match=reason):
        enhancer(given)


USABLE = [
    ("FrameVAE", {}), ("FrameVAE", {"likelihood": "complex-student-t"}), ("ContextVAE", {}), ("DynamicVAE", {}),
    ("RVAE", {}), ("RVAE", {"causal": False}), ("DKF", {}), ("SRNN", {"own_past": True}),
    ("SequenceVAE", {}), ("DSAE", {}),
]  # fmt: skip


@pytest.mark.parametrize("e_step", ["point estimate"])
@pytest.mark.parametrize(("name", "settings"), USABLE)
def test_any_other_prior_is_used_or_refused_before_any_sound(name: str, settings: dict[str, Any], e_step: str) -> None:
    """Recurrences forget what follows a recording within the padding, nearly."""
    given = make_alive(untrained(name, **settings))
    try:
        run = speech_and_noise(given, E_STEPS[e_step], n_iterations=2)
    except AudiovaeError:
        assert name in ("SequenceVAE", "DSAE")
        return
    spectrograms = [given.stft(noisy(1)[: 64 * n]) for n in (20, 40)]
    for found, x in zip(run(spectrograms), spectrograms, strict=True):
        assert (found.wiener - run([x])[0].wiener).abs().max() < 5e-3
        assert (found.images.sum(0) - x).abs().max() <= 1e-6 * x.abs().max()
