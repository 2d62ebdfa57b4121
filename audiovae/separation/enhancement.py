"""Speech enhancement: expectation maximisation of latents and noise, and the Wiener filter that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae.errors import AudiovaeError
from audiovae.level import spectrogram_level
from audiovae.models.vae import EVERYTHING
from audiovae.prior import AudioVAE
from audiovae.separation.e_step import Draws, EStep
from audiovae.separation.energy import LatentEnergy
from audiovae.separation.m_step import update_colour, update_gain, update_noise
from audiovae.separation.mixture import Mixture
from audiovae.separation.noise import NoiseModel, SlowNoise
from audiovae.stft import power

_OVERSUBTRACTION = 3.0  # of the quiet spectrum, in the first guess of the speech: rather too little than noise taken for speech
_SMALLEST_FIRST_GAIN = 0.1
_COLOUR_BANDS = 20
_AUDITION_ITERATIONS = 3  # after which the label of the speech is chosen
_LONGEST_PADDING = 64  # frames; a recurrence forgets within these what follows the end of a recording


@dataclass(frozen=True)
class Separation:
    """One recording taken apart.

    Attributes:
        wiener: the gain that makes the speech of the mixture, E_z[g c v / (g c v + N)], `[frame, freq]`.
        images: speech and noise, `[source, frame, freq]`; they sum to the mixture.
        psds: their variances at the mixture's level, `[source, frame, freq]`.
        latents: samples of them at the end, `[sample, frame, latent]`.
        gain: g_t of the speech, `[frame]`.
        objective: of every iteration, in nats per frame; lower is better.
        converged: did it stop by itself, before the last iteration?
        acceptance, effective_samples: of the last E-step, see `Draws`; None where nothing was sampled.
        condition: labels of the speech, `[label]`, given or inferred; None for a prior without.
    """

    wiener: Float[Tensor, "frame freq"]
    images: Complex[Tensor, "source frame freq"]
    psds: Float[Tensor, "source frame freq"]
    latents: Float[Tensor, "sample frame latent"]
    gain: Float[Tensor, " frame"]
    objective: Float[Tensor, " iteration"]
    converged: bool
    acceptance: float | None = None
    effective_samples: float | None = None
    condition: Float[Tensor, " label"] | None = None

    @property
    def activity(self) -> Float[Tensor, " frame"]:
        """The speech's share of the variance of each frame."""
        speech, noise = self.psds.sum(-1)
        return speech / (speech + noise)


@runtime_checkable
class Separator(Protocol):
    """What takes mixtures apart: the same call for every algorithm."""

    def __call__(self, spectrograms: Sequence[Complex[Tensor, "_ freq"]], seeds: Sequence[int] | None = None) -> list[Separation]: ...


class Enhancer:
    """x_ft = s_ft + n_ft: s from a prior of clean speech, n from a model of noise that is fitted to the recording alone.

    s_ft ~ N_C(0, g_t c_f v_f(z_t)) and n_ft ~ N_C(0, N_ft). The E-step finds latents, the M-step the noise, the gain of every frame
    and the colour of the recording, whose logarithms are normal around 0 at the mixture's level: free, they grow until the speech takes
    the noise. The speech is the posterior mean E_z[g c v / (g c v + N)] x, and what is left is the noise. Recordings run side by side,
    each as it would alone.

    A conditional prior whose labels are not known tries all their combinations for a few iterations, and goes on with the one of the
    lowest objective.

    Args:
        prior: of clean speech; one that has a PSD and needs no past x.
        e_step: makes a fresh one for each call, such as `PointEstimate` or `MarkovChain`.
        noise: makes a noise model for a mixture, such as `SlowNoise`.
        n_iterations: at most.
        n_m_steps: updates of the noise in each.
        prior_weight: see `LatentEnergy`; the gain's has the same.
        gain_deviation, colour_deviation: of log g_t, and of log c_f in each of 20 bands (powers); 0 fixes them to 1.
        annealing: the prior's weight in the first iteration, as a multiple; falls to 1 over the first half. So the noise is fitted before
            the speech can bend to it.
        tolerance: an iteration that changes a recording's objective by less, in nats per frame, is its last once the prior has its
            weight; 0: none is.
        condition: labels of the speech, for a conditional prior: `[label]`, or `[candidate, label]` to choose from; default all.
        mixed_precision: matrix products of the prior in bfloat16: faster where the processor has them, and not the same to the last digits.

    Raises:
        AudiovaeError: a prior that cannot be used so, with the reason.
        ValueError: no iteration.
    """

    def __init__(
        self, prior: AudioVAE, e_step: Callable[[], EStep], noise: Callable[[Mixture], NoiseModel] = SlowNoise, n_iterations: int = 20,
        n_m_steps: int = 2, prior_weight: float = 1.0, gain_deviation: float = 0.0, colour_deviation: float = 0.0,
        annealing: float = 1.0, tolerance: float = 0.0, condition: Tensor | None = None, mixed_precision: bool = False,
    ) -> None:  # fmt: skip
        check_prior(prior)
        if n_iterations < 1 or n_m_steps < 1:
            raise ValueError(f"n_iterations and n_m_steps must be at least 1, got {n_iterations} and {n_m_steps}")
        self.prior, self.e_step, self.noise = prior, e_step, noise
        self.n_iterations, self.n_m_steps, self.prior_weight, self.tolerance = n_iterations, n_m_steps, prior_weight, tolerance
        self.gain_deviation, self.colour_deviation, self.annealing = gain_deviation, colour_deviation, annealing
        self.mixed_precision = mixed_precision
        conditions = prior.vae.conditions
        if condition is None and conditions.labels:
            condition = conditions.every().to(prior.device)
        self.candidates = None if condition is None else torch.atleast_2d(condition)

    @torch.no_grad()
    def __call__(
        self,
        spectrograms: Sequence[Complex[Tensor, "_ freq"]],
        seeds: Sequence[int] | None = None,
        levels: Sequence[float] | None = None,
        quiet: Sequence[Tensor | None] | None = None,
    ) -> list[Separation]:
        """Take recordings apart.

        Args:
            spectrograms: the prior's STFT of each, `[frame, freq]`, at any level.
            seeds: of each one's random numbers; default 0 for all.
            levels: of each; measured where not given.
            quiet: the noise's spectrum at the beginning, `[freq]` at the mixture's level; estimated where not given.
        """
        if not spectrograms:
            return []
        window = self.prior.stft.window
        powers = [power(x) for x in spectrograms]
        if levels is None:
            measured = torch.stack([spectrogram_level(p, window) for p in powers])
        else:
            measured = torch.tensor(levels, dtype=powers[0].dtype, device=powers[0].device)
        padding = min(self.prior.vae.lookahead, _LONGEST_PADDING)
        mixture = Mixture.of(powers, measured, seeds or [0] * len(powers), padding, quiet)
        with torch.autocast(powers[0].device.type, torch.bfloat16, enabled=self.mixed_precision):
            return self._separate(mixture, spectrograms, self._condition(mixture, spectrograms), self.n_iterations)

    def _condition(self, mixture: Mixture, spectrograms: Sequence[Tensor]) -> Float[Tensor, "recording label"] | None:
        """Of the candidates the one with which a short run ends lowest, for each recording."""
        if self.candidates is None or len(self.candidates) == 1:
            return None if self.candidates is None else self.candidates.expand(len(spectrograms), -1)
        objectives = []
        for candidate in self.candidates:
            runs = self._separate(mixture.again(), spectrograms, candidate.expand(len(spectrograms), -1), _AUDITION_ITERATIONS)
            objectives.append(torch.stack([run.objective[-1] for run in runs]))
        return self.candidates[torch.stack(objectives).argmin(0)]

    def _separate(
        self, mixture: Mixture, spectrograms: Sequence[Tensor], condition: Float[Tensor, "recording label"] | None, n_iterations: int
    ) -> list[Separation]:
        energy = LatentEnergy(self.prior.vae, mixture, condition, self.prior_weight)
        noise, e_step = self.noise(mixture), self.e_step()
        energy.noise = noise.variance()
        e_step.begin(energy, self._first_latents(energy))
        log_colour = mixture.power.new_zeros(len(spectrograms), _COLOUR_BANDS)
        traces: list[list[float]] = [[] for _ in spectrograms]
        results: list[Separation | None] = [None] * len(spectrograms)
        for iteration in range(n_iterations):
            heat = max(1.0, self.annealing - 2 * (self.annealing - 1) * iteration / self.n_iterations)
            energy.prior_weight = self.prior_weight * heat
            draws = e_step.draws()
            latents = draws.latents
            speech = energy.speech(latents)
            for _ in range(self.n_m_steps):
                update_noise(noise, energy, speech)
            if self.gain_deviation:
                update_gain(energy, speech, self.gain_deviation)
            if self.colour_deviation:
                log_colour = update_colour(energy, speech, self.colour_deviation, log_colour)
            energy.prior_weight = self.prior_weight
            objective = mixture.mean_over_frames(energy.of_speech(latents, speech).mean(0)).tolist()
            for i, (trace, value) in enumerate(zip(traces, objective, strict=True)):
                if results[i] is not None:
                    continue
                converged = bool(trace) and heat == 1 and abs(trace[-1] - value) < self.tolerance
                trace.append(value)
                if converged or iteration == n_iterations - 1:
                    results[i] = _separation(energy, speech, draws, i, spectrograms[i], trace, converged)
            if all(result is not None for result in results):
                break
        return [result for result in results if result is not None]

    def _first_latents(self, energy: LatentEnergy) -> Float[Tensor, "recording frame latent"]:
        """What the encoder says of the mixture after spectral subtraction."""
        mixture = energy.mixture
        gain = (1 - _OVERSUBTRACTION * mixture.quiet / mixture.power.clamp(min=1e-12)).clamp(min=_SMALLEST_FIRST_GAIN)
        return energy.masked(energy.vae.infer(mixture.power * gain.square(), energy.condition, mean=True).latents)


def _separation(
    energy: LatentEnergy, speech: Tensor, draws: Draws, i: int, spectrogram: Tensor, trace: list[float], converged: bool
) -> Separation:
    n_frames, scale = len(spectrogram), energy.mixture.level[i].square()
    noise = energy.noise[i, :n_frames]
    of_speech = energy.scaled(speech)[:, i, :n_frames]
    wiener = (of_speech / (of_speech + noise)).mean(0)
    clean = wiener * spectrogram
    return Separation(
        wiener,
        torch.stack([clean, spectrogram - clean]),
        torch.stack([of_speech.mean(0), noise]) * scale,
        draws.latents[:, i, :n_frames].clone(),
        energy.gain[i, :n_frames].clone(),
        torch.tensor(trace),
        converged,
        None if draws.acceptance is None else float(draws.acceptance[i]),
        None if draws.effective_samples is None else float(draws.effective_samples[i]),
        None if energy.condition is None else energy.condition[i],
    )


def check_prior(prior: AudioVAE) -> None:
    """Raises AudiovaeError for a prior that gives no PSD from latents alone, with the reason."""
    vae, name = prior.vae, type(prior.vae).__name__
    if not vae.has_psd:
        raise AudiovaeError(f"{name} predicts labels: it has no PSD of speech")
    if vae.needs_past:
        raise AudiovaeError(f"{name} needs past clean speech, which a mixture does not have; use a prior that needs latents alone")
    if not vae.is_density:
        raise AudiovaeError(f"the likelihood {vars(vae.settings)['likelihood']!r} is no density of the STFT: its PSD is no variance")
    if vae.lookahead >= EVERYTHING:
        raise AudiovaeError(
            f"{name} has one latent vector for a whole sequence, and no recording is one; use a prior with latents of frames alone"
        )
    if not vae.has_prior:
        raise AudiovaeError(f"{name} has no prior on its latents, so nothing tells speech from noise")
