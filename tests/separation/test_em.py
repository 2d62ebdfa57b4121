"""The loop of expectation maximisation: batches, seeds, stopping, labels, states, draws, starts and finishes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import pytest
import torch
from conftest import RATE, build_prior
from mixtures import (
    E_STEPS,
    NOISES,
    dynamic_prior,
    frame_prior,
    noisy,
    reverberant,
    speech_and_noise,
    white,
)
from torch import Tensor

from audiovae import STFT, AudioVAE
from audiovae.level import spectrogram_level
from audiovae.models import FrameVAE
from audiovae.models.vae import VAE
from audiovae.separation import (
    NMF,
    Beginning,
    DeepSettings,
    DeepSource,
    Draws,
    EMSettings,
    EStep,
    JointDiagonal,
    LatentEnergy,
    MarkovChain,
    Mixture,
    PointEstimate,
    Separation,
    Separator,
    ShallowSource,
    SingleChannel,
    Stationary,
    even_start,
    quiet_start,
)
from audiovae.separation.starts import quiet_spectrum
from audiovae.settings import FrameVAESettings
from audiovae.stft import Front, power

TENTH_OF_A_DB = 10 ** (0.1 / 20) - 1

# One recording -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("e_step", E_STEPS)
def test_the_images_sum_to_the_mixture_by_a_gain_from_0_to_1(frame: AudioVAE, e_step: str, noise: str) -> None:
    x = frame.stft(noisy(0.5))
    (found,) = speech_and_noise(frame, E_STEPS[e_step], NOISES[noise], n_iterations=3)([x])
    speech = found.sources[0]
    assert speech.latents is not None
    assert speech.gain is not None
    assert found.wiener.shape == x.shape
    assert found.images.shape == found.psds.shape == (2, *x.shape)
    assert speech.latents.shape[1:] == (len(x), 8)
    assert speech.gain.shape == (len(x),)
    assert found.objective.shape == (3,)
    assert not found.converged
    assert torch.isfinite(found.objective).all()
    assert ((found.wiener >= 0) & (found.wiener <= 1)).all()
    assert found.wiener.std() > 0.01  # it does something
    largest = x.abs().max()
    assert (found.images.sum(0) - x).abs().max() <= 1e-6 * largest
    assert (found.images[0] - found.wiener * x).abs().max() <= 1e-6 * largest
    if len(speech.latents) == 1:
        assert torch.allclose(found.wiener, found.psds[0] / found.psds.sum(0), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        psd = frame.psd(speech.latents).mean(0) * spectrogram_level(power(x), frame.stft.window, RATE).square()
    assert torch.allclose(found.psds[0], psd, rtol=1e-4)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_a_louder_mixture_has_louder_parts_and_the_same_gain(frame: AudioVAE, noise: str, scale: float) -> None:
    x = frame.stft(noisy(0.5))
    run = speech_and_noise(frame, PointEstimate, NOISES[noise], n_iterations=3)
    (one,), (other,) = run([x]), run([scale * x])
    assert torch.allclose(other.wiener, one.wiener, rtol=1e-3)
    assert (other.images - scale * one.images).abs().max() <= 1e-3 * scale * one.images.abs().max()
    assert torch.allclose(other.psds, scale**2 * one.psds, rtol=1e-2)


@pytest.mark.parametrize("n_frames", [1, 2, 3])
@pytest.mark.parametrize("noise", NOISES)
def test_a_few_frames_are_enough(dynamic: AudioVAE, noise: str, n_frames: int) -> None:
    x = dynamic.stft(white(2000))[:n_frames]
    (found,) = speech_and_noise(dynamic, PointEstimate, NOISES[noise], n_iterations=2)([x])
    assert torch.isfinite(found.wiener).all()
    assert (found.images.sum(0) - x).abs().max() <= 1e-6 * x.abs().max()


class LogVarianceVAE(VAE):
    """v = exp(z): a prior that says what it is told."""

    frames_are_independent = True

    def __init__(self, like: VAE) -> None:
        super().__init__()
        self.n_freqs = self.latent_dim = like.n_freqs
        self.settings, self.latents, self.conditions = like.settings, like.latents, like.conditions

    def calibrate(self, power: Tensor) -> None: ...

    def infer(self, power: Tensor, condition: Tensor | None = None, mean: bool = False) -> object:  # type: ignore[override]
        from audiovae.models.latents import standard_normal
        from audiovae.models.vae import Factor, Inference

        z = torch.zeros_like(power)
        return Inference(z, (Factor(standard_normal(z), standard_normal(z)),))

    def prior(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> object:  # type: ignore[override]
        from audiovae.models.latents import standard_normal

        return standard_normal(latents)

    def likelihood(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> object:  # type: ignore[override]
        from torch.distributions import Independent

        from audiovae import ComplexNormal

        return Independent(ComplexNormal(log_variance=latents), 1)

    def log_likelihood(self, latents: Tensor, power: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.likelihood(latents).log_prob(power.sqrt().to(power.dtype.to_complex()))  # type: ignore[attr-defined]

    def past(self, power: Tensor) -> None:
        return None

    def mean_path(
        self, power: Tensor, condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, None]:
        return torch.zeros_like(power), None

    def log_psd(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        return latents

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Tensor:
        return torch.zeros(n_frames, self.n_freqs)


class Known(ShallowSource):
    """A noise whose variance is known."""

    def __init__(self, mixture: Mixture, variance: Tensor) -> None:
        super().__init__(mixture)
        self._variance = variance / mixture.level.square()

    def variance(self) -> Tensor:
        return self._variance

    def update_factors(self, statistics: object) -> None: ...


class Oracle:
    """Latents that are known, one set of draws for all recordings."""

    def __init__(self, draws: Tensor) -> None:
        self.latents = draws

    def begin(self, latents: Tensor, frames_are_independent: bool) -> None: ...

    def draws(self, energy: LatentEnergy) -> Draws:
        return Draws(self.latents)


def test_perfect_variances_give_the_oracle_wiener_filter() -> None:
    like = build_prior()
    prior = AudioVAE(like.stft, LogVarianceVAE(like.vae), RATE)
    generator = torch.Generator().manual_seed(8)
    speech, noise = (like.stft(torch.randn(6000, generator=generator) * scale) for scale in (1.0, 0.5))
    powers = [x.abs().square() + 1e-9 for x in (speech, noise)]
    level = spectrogram_level((speech + noise).abs().square(), like.stft.window, RATE)
    latents = (powers[0] / level.square()).log()[None, None]

    def known(mixture: Mixture, first: Tensor) -> ShallowSource:
        return Known(mixture, powers[1][None])

    e_step = cast(EStep, Oracle(latents))
    (result,) = speech_and_noise(prior, lambda: e_step, known, n_iterations=1)([speech + noise])
    torch.testing.assert_close(result.wiener, powers[0] / (powers[0] + powers[1]), rtol=1e-3, atol=1e-4)


# Several recordings --------------------------------------------------------------------------------------------------


def test_no_recording_gives_no_separation(frame: AudioVAE) -> None:
    assert speech_and_noise(frame, PointEstimate)([]) == []


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("e_step", E_STEPS)
@pytest.mark.parametrize("kind", ["frame", "dynamic"])
def test_a_recording_comes_out_as_it_would_alone(
    kind: str, e_step: str, noise: str, request: pytest.FixtureRequest
) -> None:
    """Whatever stands beside it, louder or longer: by less than the reach of the model, by one frame, or by much."""
    prior = request.getfixturevalue(kind)
    hop = prior.stft.hop_length
    lengths = [(24, 1.0), (30, 50.0), (31, 1), (55, 0.1)]
    spectrograms = [gain * prior.stft(noisy(2, seed)[: hop * n]) for seed, (n, gain) in enumerate(lengths)]
    seeds = [3, 1, 4, 1]
    run = speech_and_noise(prior, E_STEPS[e_step], NOISES[noise], n_iterations=3)
    for found, x, seed in zip(run(spectrograms, seeds), spectrograms, seeds, strict=True):
        (alone,) = run([x], [seed])
        if found.sources[0].acceptance is not None:  # whether a proposal is accepted may hang on the last digit
            assert (found.images - alone.images).norm() < TENTH_OF_A_DB * alone.images.norm()
            continue
        assert (found.wiener - alone.wiener).abs().max() < 1e-4
        assert (found.images - alone.images).abs().max() < 1e-4 * x.abs().max()
        assert torch.allclose(found.psds, alone.psds, rtol=1e-3)
        assert torch.allclose(found.sources[0].latents, alone.sources[0].latents, atol=1e-3)
        assert torch.allclose(found.objective, alone.objective, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("e_step", "noise"), [("point estimate", "nmf"), ("metropolis", "slow"), ("free posterior", "stationary")]
)
def test_the_seed_makes_the_result_and_nothing_else_random_does(frame: AudioVAE, e_step: str, noise: str) -> None:
    x = frame.stft(noisy(0.4))
    run = speech_and_noise(frame, E_STEPS[e_step], NOISES[noise], n_iterations=2)
    (first,) = run([x], [5])
    torch.manual_seed(99)
    state = torch.get_rng_state()
    (again,), (other,) = run([x], [5]), run([x], [6])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.wiener, again.wiener)
    assert (first.wiener - other.wiener).abs().max() > 1e-5


# Iterations ----------------------------------------------------------------------------------------------------------


def test_the_prior_weighs_more_at_first_and_nothing_stops_before_it_has_its_weight(frame: AudioVAE) -> None:
    weights = []

    class Still:
        def begin(self, latents: Tensor, frames_are_independent: bool) -> None:
            self.latents = latents

        def draws(self, energy: LatentEnergy) -> Draws:
            weights.append(energy.prior_weight)
            return Draws(self.latents.unsqueeze(0))

    x = frame.stft(noisy(0.5))
    deep, noise = DeepSettings(prior_weight=2.0), NOISES["stationary"]
    (found,) = speech_and_noise(frame, Still, noise, deep, n_iterations=8, annealing=5.0, tolerance=1e9)([x])
    assert weights == [10.0, 8.0, 6.0, 4.0, 2.0]  # in a straight line over the first half
    assert found.converged
    weights.clear()
    speech_and_noise(frame, Still, noise, deep, n_iterations=8, tolerance=1e9)([x])
    assert weights == [2.0, 2.0]


def test_a_recording_stops_by_itself_as_it_would_alone(dynamic: AudioVAE) -> None:
    spectrograms = [dynamic.stft(noisy(0.4, 0, snr_db=20)), dynamic.stft(white(3000)), dynamic.stft(torch.zeros(2000))]
    run = speech_and_noise(dynamic, PointEstimate, NOISES["stationary"], n_iterations=30, tolerance=0.02)
    together = run(spectrograms)
    assert len({len(found.objective) for found in together}) > 1
    for found, x in zip(together, spectrograms, strict=True):
        (alone,) = run([x])
        assert len(found.objective) == len(alone.objective)
        assert found.converged == alone.converged
        assert found.converged == (abs(float(found.objective[-1] - found.objective[-2])) < 0.02)
        assert (found.wiener - alone.wiener).abs().max() < 1e-4


def test_shallow_sources_take_each_its_own_number_of_steps(frame: AudioVAE) -> None:
    taken: list[str] = []

    def counted(name: str, n_steps: int) -> Callable[[Mixture, Tensor], ShallowSource]:
        class Counted(ShallowSource):
            def variance(self) -> Tensor:
                return torch.ones_like(self._mixture.power)

            def update_factors(self, statistics: object) -> None:
                taken.append(name)

        return lambda mixture, first: Counted(mixture, n_steps)

    run = Separator(frame.front, [counted("a", 1), counted("b", 3)], [even_start(2)], settings=EMSettings(2))
    run([frame.stft(noisy(0.1))])
    assert taken == ["a", "b", "b", "b"] * 2


def test_what_is_given_is_used_instead_of_being_measured(frame: AudioVAE) -> None:
    """With the level and quiet spectrum that it would find by itself, and with the quiet spectrum of something else."""
    x = 0.01 * frame.stft(noisy(0.5))
    run = speech_and_noise(frame, PointEstimate, n_iterations=3)
    level = float(spectrogram_level(power(x), frame.stft.window, RATE))
    quiet = quiet_spectrum(power(x) / level**2) * level**2
    (alone,), (given,) = run([x]), run([x], levels=[level], states=[[None, quiet]])
    assert torch.allclose(given.wiener, alone.wiener, atol=1e-3)
    once = speech_and_noise(frame, PointEstimate, partial(NOISES["slow"], n_steps=1), n_iterations=1)
    (usual,), (louder,) = once([x]), once([x], levels=[level], states=[[None, 6 * quiet]])
    assert (louder.psds[1] > 1.5 * usual.psds[1]).float().mean() > 0.9


def test_the_state_of_a_block_begins_the_next_at_the_level_of_the_sound(frame: AudioVAE) -> None:
    """Whatever level each block is divided by."""
    x = 0.01 * frame.stft(noisy(0.5))
    run = speech_and_noise(frame, PointEstimate, n_iterations=2)
    (found,) = run([x])
    assert found.sources[0].state is None
    state = found.sources[1].state
    assert torch.allclose(state, found.psds[1][-100:].mean(0))
    first = []

    def seen(mixture: Mixture) -> Beginning:
        first.append(quiet_start(mixture).psds[1][0, 0] * mixture.level[0] ** 2)
        return quiet_start(mixture)

    run.starts = [seen]
    for level in (0.01, 3.0):
        run([x], levels=[level], states=[[None, state]])
    assert torch.allclose(first[0], state, rtol=1e-2)
    assert torch.allclose(first[0], first[1], rtol=0.05, atol=1e-5)


# Labels --------------------------------------------------------------------------------------------------------------


def test_a_condition_says_what_the_speech_is() -> None:
    prior = frame_prior(labels={"digit": ("0", "1")})
    x = prior.stft(noisy(0.4))
    conditions = [prior.condition(digit=digit) for digit in "01"]
    zero, one = (speech_and_noise(prior, PointEstimate, condition=y, n_iterations=2)([x])[0] for y in conditions)
    assert (zero.wiener - one.wiener).abs().max() > 1e-3
    assert zero.sources[0].labels == {"digit": "0"}


@pytest.fixture(scope="module")
def labelled() -> AudioVAE:
    """Speech of the label "low" has its power in the lower half of the spectrum, that of "high" in the upper."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(n_fft=256, hop_length=64)
        vae = FrameVAE(stft.n_freqs, FrameVAESettings(hidden=(16,), latent_dim=2, labels={"where": ("low", "high")}))
        vae.calibrate(power(stft(torch.randn(2 * RATE))))
        n_freqs = stft.n_freqs
        half = torch.where(torch.arange(n_freqs) < n_freqs // 2, 3.0, -3.0)

        class Halves(torch.nn.Module):
            def forward(self, joined: Tensor) -> Tensor:
                z, y = joined[..., :2], joined[..., 2:]
                return z[..., :1] + (y[..., :1] - y[..., 1:]) * half

        vae.decoder = Halves()
        return AudioVAE(stft, vae, RATE).eval()


def sounds(labelled: AudioVAE, *expected: str) -> list[Tensor]:
    """A spectrogram of each label, each a frame longer than the one before, in noise."""
    vae, generator = labelled.vae, torch.Generator().manual_seed(0)
    spectrograms = []
    for i, where in enumerate(expected):
        z = torch.randn(60, 2, generator=generator)
        with torch.no_grad():
            clean = vae.likelihood(z, labelled.condition(where=where)).variance
        noise = 0.1 * clean.mean()
        x = torch.randn(2, 60 + i, vae.n_freqs, generator=generator)
        v = torch.nn.functional.pad(clean, (0, 0, 0, i)) + noise
        spectrograms.append(torch.complex(*x) * (v / 2).sqrt())
    return spectrograms


def test_an_unknown_label_is_the_one_that_explains_the_recording(labelled: AudioVAE) -> None:
    expected = ["low", "high", "high"]
    spectrograms = sounds(labelled, *expected)
    run = partial(speech_and_noise, labelled, PointEstimate)
    every = labelled.vae.conditions.every()
    for separation, x, where in zip(run(n_iterations=5)(spectrograms), spectrograms, expected, strict=True):
        condition = separation.sources[0].condition
        assert condition is not None
        assert torch.equal(condition, labelled.condition(where=where))
        assert separation.sources[0].labels == {"where": where}
        (told,) = run(condition=labelled.condition(where=where), n_iterations=5)([x])
        # the trial leaves no trace, not even in the random numbers
        assert torch.allclose(separation.wiener, told.wiener, atol=1e-4)
        trials = [run(condition=y, n_iterations=3)([x])[0].objective[-1] for y in every]
        assert torch.equal(every[int(torch.stack(trials).argmin())], condition)


def test_the_labels_of_two_sources_are_chosen_one_after_another(labelled: AudioVAE) -> None:
    """The first beside the other's first candidate, the second beside the first as chosen: by brute force."""
    every = labelled.vae.conditions.every()
    xs = sounds(labelled, "low", "high")
    mixtures = [xs[0], xs[1], xs[0] + xs[1][:60]]

    def run(n_iterations: int, *conditions: Tensor | None) -> Separator:
        sources = [DeepSource.of(labelled, PointEstimate, condition=condition) for condition in conditions]
        return Separator(labelled.front, sources, [even_start(2)], settings=EMSettings(n_iterations))

    def objective(x: Tensor, *conditions: Tensor) -> float:
        return float(run(3, *conditions)([x])[0].objective[-1])

    chosen = []
    for found, x in zip(run(5, None, None)(mixtures), mixtures, strict=True):
        first = min(every, key=lambda y: objective(x, y, every[0]))
        second = min(every, key=lambda y: objective(x, first, y))
        assert torch.equal(found.sources[0].condition, first)
        assert torch.equal(found.sources[1].condition, second)
        chosen.append({source.labels["where"] for source in found.sources})
        (told,) = run(5, first, second)([x])
        assert torch.allclose(found.images, told.images, atol=1e-4 * float(x.abs().max()))
    assert {"low", "high"} in chosen


# Draws ---------------------------------------------------------------------------------------------------------------


def chain(prior: AudioVAE, n_keep: int) -> Any:
    return DeepSource.of(prior, partial(MarkovChain, n_burn=2, n_keep=n_keep), DeepSettings(12.0, 0.2, 0.6))


@pytest.mark.parametrize("n_channels", [1, 4])
def test_deep_sources_of_different_numbers_of_draws_run_together(n_channels: int) -> None:
    prior = dynamic_prior()
    x = prior.stft(reverberant(0.5, n_channels).float()).movedim(0, -1)
    space = partial(JointDiagonal, n_sources=3) if n_channels > 1 else SingleChannel
    sources = [chain(prior, 1), chain(prior, 9), partial(NMF, rank=4)]
    (found,) = Separator(prior.front, sources, [even_start(3)], space, EMSettings(6))([x], [3])
    assert [len(found.sources[n].latents) for n in range(2)] == [1, 3]
    assert found.sources[2].latents is None
    for part in (found.images.abs(), found.psds, found.objective):
        assert torch.isfinite(part).all()
    assert (found.images.sum(0) - x).abs().max() <= 1e-6 * x.abs().max()
    assert found.objective[-1] < found.objective[0]


def oracle_prior(n_freqs: int) -> AudioVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(2 * n_freqs - 2, (n_freqs - 1) // 2)
        return AudioVAE(stft, LogVarianceVAE(FrameVAE(n_freqs, FrameVAESettings(hidden=(4,)))), RATE)


@pytest.mark.usefixtures("double")
def test_a_noise_sees_the_draws_of_a_single_deep_source_as_they_are_and_of_two_their_means() -> None:
    """One update of a stationary noise, and the filters, by loops over frequencies, frames and draws."""
    prior = oracle_prior(5)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=generator, dtype=torch.complex128)
    one, two = (2 * torch.randn(n, 1, 7, 5, generator=generator, dtype=torch.float64) for n in (3, 2))

    def deep(latents: Tensor) -> Any:
        return DeepSource.of(prior, lambda: cast(EStep, Oracle(latents)))

    for given in ([one], [one, two]):
        n_sources = len(given) + 1
        sources = [deep(z) for z in given] + [Stationary]
        run = Separator(prior.front, sources, [even_start(n_sources)], settings=EMSettings(1))
        (found,) = run([x], levels=[1.0])
        noise = x.abs().square().mean(0) / n_sources + 1e-6  # the first guess, whose own floor comes on top
        draws = [z.exp()[:, 0] for z in given]
        speech = draws[0] if len(given) == 1 else sum(psd.mean(0, keepdim=True) for psd in draws)
        expected = torch.zeros(5)
        for f in range(5):
            up = down = 0.0
            for t in range(7):
                for draw in speech:
                    variance = float(draw[t, f] + noise[f] + 1e-6)
                    up += float(x[t, f].abs()) ** 2 / variance**2
                    down += 1 / variance
            expected[f] = noise[f] * (up / down) ** 0.5 + 1e-6
        assert torch.allclose(found.psds[-1], expected.expand(7, 5), rtol=1e-9)
        shares = (
            [draws[0] / (speech + expected)] if len(given) == 1 else [d.mean(0) / (speech + expected) for d in draws]
        )
        for n, share in enumerate(shares):
            assert torch.allclose(found.images[n], share.mean(0) * x, rtol=1e-9)


# Several channels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("e_step", ["point estimate", "metropolis"])
def test_a_deep_source_over_several_microphones_lowers_the_objective_and_a_batch_equals_its_members(
    e_step: str,
) -> None:
    prior = dynamic_prior()
    xs = [
        prior.stft(gain * reverberant(s, 4, seed=i).float()).movedim(0, -1)
        for i, (s, gain) in enumerate([(0.5, 1.0), (0.3, 20.0)])
    ]
    speech = DeepSource.of(prior, E_STEPS[e_step], DeepSettings(12.0, 0.2, 0.6))
    run = Separator(
        prior.front,
        [speech, partial(NMF, rank=4)],
        [quiet_start],
        partial(JointDiagonal, n_sources=2),
        EMSettings(12, padding=prior.vae.lookahead),
    )
    for found, x, seed in zip(run(xs, [1, 2]), xs, [1, 2], strict=True):
        assert found.images.shape == (2, *x.shape)
        assert (found.images.sum(0) - x).abs().max() <= 1e-6 * x.abs().max()
        assert found.objective[-1] < found.objective[0] - 100
        if e_step == "point estimate":
            assert found.objective.diff().max() < 0.01 * (found.objective[0] - found.objective[-1])
        (alone,) = run([x], [seed])
        difference = (found.images - alone.images).norm() / alone.images.norm()
        assert difference < (1e-3 if e_step == "point estimate" else TENTH_OF_A_DB)


def test_the_peak_of_a_recording_is_that_of_its_wave() -> None:
    stft, wave = STFT(256, 64), 5 * reverberant(0.2, 1).float()
    sources = [partial(NMF, rank=3)] * 2
    run = Separator(Front(stft, RATE, "peak"), sources, [even_start(2)], settings=EMSettings(2))
    x = stft(wave).movedim(0, -1)
    (found,), (told,) = run([x], waves=[wave]), run([x], levels=[float(wave.abs().max())])
    assert torch.equal(found.images, told.images)
    with pytest.raises(
        ValueError, match="divides a wave by its peak, which no spectrogram tells: give levels or waves"
    ):
        run([x])


def test_channels_that_share_a_gain_come_out_as_their_mean_power_would(frame: AudioVAE) -> None:
    waves = torch.stack([noisy(0.4), 0.3 * noisy(0.4, 1)])
    x = frame.stft(waves).movedim(0, -1)
    run = speech_and_noise(frame, PointEstimate, n_iterations=3)
    (found,) = run([x])
    mean = power(x).mean(-1).sqrt()
    (expected,) = run([torch.complex(mean, torch.zeros_like(mean))])
    assert (found.images[0] - expected.wiener.unsqueeze(-1) * x).abs().max() <= 1e-5 * x.abs().max()
    assert torch.allclose(found.objective, expected.objective, rtol=1e-5)
    assert ((found.wiener - expected.wiener.unsqueeze(-1)).abs() * x.abs()).max() <= 1e-5 * x.abs().max()
    assert torch.allclose(found.activity, expected.activity, rtol=1e-4)


def test_recordings_of_one_two_and_three_channels_come_out_as_alone_side_by_side(frame: AudioVAE) -> None:
    channels = [frame.stft(torch.stack([noisy(0.4 + 0.1 * n, i) for i in range(n)])).movedim(0, -1) for n in (2, 1, 3)]
    xs = [*channels, channels[0][..., 0]]
    waves = [white(4000 + n).expand(n, -1) for n in (2, 1, 3, 1)]
    run = speech_and_noise(frame, PointEstimate, n_iterations=3)
    for found, x in zip(run(xs, waves=waves), xs, strict=True):
        (alone,) = run([x])
        assert found.images.shape == (2, *x.shape)
        assert (found.images - alone.images).abs().max() <= 1e-4 * x.abs().max()
        assert torch.allclose(found.objective, alone.objective, rtol=1e-4, atol=1e-2)


# Starts, finishes, waves ---------------------------------------------------------------------------------------------


def flat_start(share: float) -> Callable[[Mixture], Beginning]:
    """The first source has this share of the power, entry by entry."""

    def start(mixture: Mixture) -> Beginning:
        guess = mixture.power + 1e-6
        return Beginning([share * guess, (1 - share) * guess])

    return start


def test_of_several_starts_each_recording_takes_that_of_the_lowest_objective() -> None:
    stft = STFT(256, 64)
    xs = [stft(noisy(0.4)), stft(white(4000)), stft(noisy(0.3, 3))]
    sources, settings = [partial(NMF, rank=3), Stationary], EMSettings(3)
    starts = [flat_start(share) for share in (0.99, 0.3, 0.01)]
    runs = [Separator(Front(stft, RATE), sources, [start], settings=settings)(xs) for start in starts]
    best = [min(range(3), key=lambda s: float(runs[s][i].objective[-1])) for i in range(3)]
    for order in ([0, 1, 2], [2, 1, 0]):
        found = Separator(Front(stft, RATE), sources, [starts[s] for s in order], settings=settings)(xs)
        for i in range(3):
            assert torch.equal(found[i].images, runs[best[i]][i].images)
            assert torch.equal(found[i].objective, runs[best[i]][i].objective)
    objectives = torch.tensor([[float(run[i].objective[-1]) for run in runs] for i in range(3)])
    assert (objectives.max(1).values - objectives.min(1).values > 1e-3).all()


@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_finish_gets_images_that_sum_to_the_mixture_and_makes_those_that_come_out(n_channels: int) -> None:
    stft = STFT(256, 64)
    waves = [5 * reverberant(0.4, n_channels).float(), reverberant(0.2, n_channels, seed=1).float()]
    xs = [stft(wave).movedim(0, -1) for wave in waves]
    given = xs if n_channels > 1 else [x.squeeze(-1) for x in xs]
    sources, space = [partial(NMF, rank=3)] * 2, partial(JointDiagonal, n_sources=2)
    settings = EMSettings(3, padding=2)
    seen = []

    def swap_halves(mixture: Mixture, images: Tensor) -> Tensor:
        seen.append((mixture, images))
        return 0.5 * images + 0.5 * images.flip(0)

    plain, finished = (
        Separator(Front(stft, RATE), sources, [even_start(2)], space, settings, finish)(given, waves=waves)
        for finish in (None, swap_halves)
    )
    ((mixture, images),) = seen
    assert images.shape == (2, *mixture.spectrogram.shape)
    assert (images.sum(0) - mixture.spectrogram).abs().max() <= 1e-6 * mixture.spectrogram.abs().max()
    assert mixture.waves is not None
    for i, x in enumerate(xs):
        expected = 0.5 * plain[i].images + 0.5 * plain[i].images.flip(0)
        assert finished[i].images.shape == (2, *given[i].shape)
        assert torch.allclose(finished[i].images, expected, atol=1e-6 * float(x.abs().max()))
        assert (plain[i].images[0] - expected[0]).abs().max() > 1e-2 * x.abs().max()
        assert torch.equal(finished[i].psds, plain[i].psds)


def test_a_mixture_is_seen_through_other_windows_where_its_waves_are_known() -> None:
    stft, longer = STFT(256, 64), STFT(1024, 512, "hann")
    waves = [3 * reverberant(0.3, 2).float(), reverberant(0.2, 2, seed=1).float()]
    xs = [stft(wave).movedim(0, -1) for wave in waves]
    levels = torch.tensor([2.0, 0.0])
    mixture = Mixture.of(xs, levels, [0, 0], waves=waves)
    seen = mixture.through(longer).spectrogram
    for i, (wave, level) in enumerate(zip(waves, (2.0, 1.0), strict=True)):
        expected = longer(wave / level).movedim(0, -1)
        n_frames = len(expected) - 2  # beyond, its window reaches into the end, padded for the longest
        assert torch.allclose(seen[i, :n_frames], expected[:n_frames], atol=1e-4)
        same = mixture.through(stft).spectrogram[i, : len(xs[i]) - 4]
        assert torch.allclose(same, mixture.spectrogram[i, : len(xs[i]) - 4], atol=1e-4)
        assert (seen[i, len(expected) :] == 0).all()
    with pytest.raises(
        ValueError, match="another window needs the waves of the mixtures, and only spectrograms were given"
    ):
        Mixture.of(xs, levels, [0, 0]).through(longer)


def test_silence_is_not_divided_by_its_level(prior: AudioVAE) -> None:
    x = prior.stft(torch.zeros(4000))
    assert float(Mixture.of([x.unsqueeze(-1)], torch.zeros(1), [0]).level) == 1


# Precision and refusals ----------------------------------------------------------------------------------------------


@contextmanager
def watched(seen: list[torch.dtype]) -> Iterator[type[ShallowSource]]:
    """A noise that notes of which type a product of matrices is where it is fitted."""

    class Watched(Stationary):
        def variance(self) -> Tensor:
            out = super().variance()
            seen.append((out[0, :1] @ out[0, :1].mT).dtype)
            return out

    yield Watched


@pytest.mark.parametrize("n_channels", [1, 3])
def test_the_callers_mixed_precision_does_not_reach_the_numbers_of_expectation_maximisation(n_channels: int) -> None:
    """Only a prior's own calls are in bfloat16, and only where its settings ask for that."""
    prior = dynamic_prior()
    x = prior.stft(reverberant(0.3, n_channels).float()).movedim(0, -1)
    of_products: list[torch.dtype] = []
    of_prior: list[torch.dtype] = []
    likelihood = prior.vae.likelihood

    def spy(latents: Tensor, *rest: Any) -> Any:
        of_prior.append((latents[0] @ latents[0].mT).dtype)
        return likelihood(latents, *rest)

    prior.vae.likelihood = spy  # type: ignore[method-assign]
    space = partial(JointDiagonal, n_sources=2) if n_channels > 1 else SingleChannel

    def run(mixed: bool) -> Separation:
        speech = DeepSource.of(prior, PointEstimate, DeepSettings(1.0, 0.2, 0.6, mixed))
        with watched(of_products) as noise:
            return Separator(prior.front, [speech, noise], [quiet_start], space, EMSettings(3))([x])[0]

    plain = run(False)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(False)
    assert set(of_prior) == set(of_products) == {torch.float32}
    assert torch.equal(plain.images, inside.images)
    assert torch.equal(plain.objective, inside.objective)
    of_prior.clear()
    mixed = run(True)
    assert set(of_products) == {torch.float32}
    assert set(of_prior) == {torch.bfloat16}
    for part in (mixed.psds, mixed.objective, mixed.sources[0].gain):
        assert part.dtype == torch.float32
    assert not torch.equal(mixed.images, plain.images)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_run_is_refused(frame: AudioVAE) -> None:
    with pytest.raises(ValueError, match="n_iterations must be at least 1, got 0"):
        EMSettings(0)
    for sources, starts in (([], [quiet_start]), ([Stationary], [])):
        with pytest.raises(
            ValueError, match=f"at least one source and one start are needed, got {len(sources)} and {len(starts)}"
        ):
            Separator(frame.front, sources, starts)
