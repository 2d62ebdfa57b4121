"""Expectation maximisation over sources and a spatial model: the one loop that takes mixtures apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae.level import spectrogram_level
from audiovae.separation.mixture import Mixture
from audiovae.separation.separation import Separation
from audiovae.separation.sources.deep import DeepSource
from audiovae.separation.sources.source import MakeSource, ShallowSource, Source
from audiovae.separation.spatial.covariances import masked_covariances
from audiovae.separation.spatial.single_channel import SingleChannel
from audiovae.separation.spatial.spatial import Spatial, View, total, without_draws
from audiovae.separation.starts import Beginning, Start
from audiovae.stft import Front, power

_AUDITION_ITERATIONS = 3  # after which the labels of a source are chosen

MakeSpatial = Callable[[Mixture, Any], Spatial]
"""Makes a spatial model for a mixture from what a start, or the covariances that it implies, give it."""

Finish = Callable[[Mixture, Tensor], Tensor]
"""Makes better images of a mixture and its images, `[source, recording, frame, freq, channel]`, that sum to the mixture
too.
"""


@dataclass(frozen=True)
class EMSettings:
    """How long expectation maximisation goes on.

    Attributes:
        n_iterations: at most.
        annealing: the priors' weight in the first iteration, as a multiple; falls to 1 over the first half. So shallow
            sources are fitted before a deep one can bend to them.
        tolerance: an iteration that changes a recording's objective by less, in nats per frame, is its last once the
            priors have their weight; 0: none is.
        padding: frames beyond the end of the longest recording, so that a model with context sees the same of every
            recording.
        spatial_steps: updates of the spatial model in each iteration.
        audition: iterations after which the best of several starts is chosen, which then begins anew; 0: all of them,
            and the best at the end counts.
        warm_up: rounds of shallow updates and one of the spatial model before the first E-step: space is fitted to the
            first guesses.

    Raises:
        ValueError: no iteration, no update of the spatial model, or a negative number.
    """

    n_iterations: int = 20
    annealing: float = 1.0
    tolerance: float = 0.0
    padding: int = 0
    spatial_steps: int = 1
    warm_up: int = 0
    audition: int = 0

    def __post_init__(self) -> None:
        if self.n_iterations < 1:
            raise ValueError(f"n_iterations must be at least 1, got {self.n_iterations}")
        if self.spatial_steps < 1 or min(self.warm_up, self.audition) < 0:
            steps = f"{self.spatial_steps}, {self.warm_up} and {self.audition}"
            raise ValueError(f"spatial_steps must be at least 1, warm_up and audition not negative, got {steps}")

    def heat(self, iteration: int) -> float:
        """What the priors' weight is multiplied by."""
        return max(1.0, self.annealing - 2 * (self.annealing - 1) * iteration / self.n_iterations)


class _Run:
    """One run of expectation maximisation over recordings side by side, from sources and a space as they begin."""

    def __init__(self, mixture: Mixture, sources: list[Source], spatial: Spatial, settings: EMSettings) -> None:
        self.mixture, self.sources, self.spatial, self.settings = mixture, sources, spatial, settings
        self.deep = [n for n, source in enumerate(sources) if not isinstance(source, ShallowSource)]
        self.shallow = [(n, source) for n, source in enumerate(sources) if isinstance(source, ShallowSource)]

    def __call__(self, n_iterations: int, tick: Callable[[], None] = lambda: None) -> list[Separation]:
        """Args: tick: called after every iteration."""
        traces: list[list[float]] = [[] for _ in self.mixture.generators]
        results: dict[int, Separation] = {}
        for _ in range(self.settings.warm_up):
            self.spatial.update(self._psds())
            self._update(self.settings.heat(0))
        for iteration in range(n_iterations):
            heat = self.settings.heat(iteration)

            for n in self.deep:
                self.sources[n].infer(self._seen_by(n), heat)
            self._update(heat)
            for _ in range(self.settings.spatial_steps):
                self.spatial.update(self._psds())

            done = []
            for i, (trace, value) in enumerate(zip(traces, self._objective(), strict=True)):
                if i not in results:
                    converged = bool(trace) and heat == 1 and abs(trace[-1] - value) < self.settings.tolerance
                    trace.append(value)
                    if converged or iteration == n_iterations - 1:
                        done.append((i, converged))
            results |= self._results(done, traces)
            tick()
            if len(results) == len(traces):
                break
        return [results[i] for i in range(len(traces))]

    def _update(self, heat: float) -> None:
        """The M-steps of all sources."""
        self._update_shallow(heat)
        for n in self.deep:
            self.sources[n].update(self._seen_by(n), heat)

    def _psds(self) -> list[Tensor]:
        return [source.psd() for source in self.sources]

    def _seen_by(self, n: int) -> View:
        """What a deep source sees: its sample axes are its own, and of the others' draws it sees the mean."""
        psds = self._psds_but(n)
        return self.spatial.view([without_draws(psd).unsqueeze(0) for psd in psds], n)

    def _psds_but(self, n: int) -> list[Tensor]:
        """Those of the others; the own one, which no view looks at, is not worked out."""
        nothing = self.mixture.power.unsqueeze(0)
        return [nothing if i == n else source.psd() for i, source in enumerate(self.sources)]

    def _update_shallow(self, heat: float) -> None:
        """In rounds: the sources whose number of steps is not reached take one each, all from the same state."""
        for step in range(max((source.n_steps for _, source in self.shallow), default=0)):
            taking = [(n, source) for n, source in self.shallow if step < source.n_steps]
            views = [self.spatial.view(self._psds_but(n), n) for n, _ in taking]
            for (_, source), view in zip(taking, views, strict=True):
                source.update(view, heat)

    def _objective(self) -> list[float]:
        """-log p(x) less the weighted log priors, of every recording, at heat 1 and up to a constant, in nats per
        frame.
        """
        nll = self.spatial.nll(self._psds())
        log_prior = total([source.log_prior() for source in self.sources])
        return self.mixture.mean_over_frames(nll - log_prior).tolist()

    def _results(self, done: list[tuple[int, bool]], traces: list[list[float]]) -> dict[int, Separation]:
        """Of the recordings that have just stopped."""
        if not done:
            return {}
        which = [i for i, _ in done]
        psds = [psd[:, which] for psd in self._psds()]
        images, powers = self.spatial.images(psds, which), self.spatial.powers(psds, which)
        found = {}
        for place, (i, converged) in enumerate(done):
            n_frames, level = int(self.mixture.inside[i].sum()), self.mixture.level[i]
            found[i] = Separation(
                images[:, place, :n_frames] * level,
                powers[:, place, :n_frames] * level.square(),
                torch.tensor(traces[i], dtype=level.dtype),
                converged,
                tuple(source.finding(i, n_frames) for source in self.sources),
            )
        return found


class Separator:
    """x_ft ~ N_C(0, sum_n lambda_nft H_nf): sources lambda_n with a spatial model H, fitted to each recording alone.

    One iteration: the E-step of every source; the M-steps of shallow sources, each its own number; those of deep ones;
    that of the spatial model. Recordings run side by side, each as it would alone. Deep sources whose labels are not
    known try all their combinations for a few iterations, one source after another, and go on with those of the lowest
    objective. Where there are several starts, that of the lowest objective counts.

    Args:
        front: the STFT and sample rate of the mixtures.
        sources: makes each of them for a mixture, from a first guess of its PSD.
        starts: make the first guesses.
        spatial: makes the spatial model for a mixture and the state that a start gives it.
        settings: how long.
        finish: makes the images better at the end.
        n_noises: so many of the last sources are parts of one noise, whose images and PSDs are added up in the end.

    Attributes:
        n_targets: how many sources are none of them.

    Raises:
        ValueError: no source, or no start.
    """

    def __init__(
        self,
        front: Front,
        sources: Sequence[MakeSource],
        starts: Sequence[Start],
        spatial: MakeSpatial = SingleChannel,
        settings: EMSettings = EMSettings(),
        finish: Finish | None = None,
        n_noises: int = 1,
    ) -> None:
        if not sources or not starts:
            raise ValueError(f"at least one source and one start are needed, got {len(sources)} and {len(starts)}")
        self.front, self.sources, self.starts = front, sources, starts
        self.spatial, self.settings, self.finish = spatial, settings, finish
        self.n_targets = len(sources) - n_noises

    @torch.no_grad()
    def __call__(
        self,
        mixtures: Sequence[Complex[Tensor, "_ freq ..."]],
        seeds: Sequence[int] | None = None,
        levels: Sequence[float] | None = None,
        states: Sequence[Sequence[Tensor | None] | None] | None = None,
        waves: Sequence[Float[Tensor, "_ _"]] | None = None,
        progress: Callable[[float], None] = lambda done: None,
    ) -> list[Separation]:
        """Take recordings apart.

        Args:
            mixtures: the front's STFT of each, `[frame, freq]` or `[frame, freq, channel]`, at any level; as of
                `AudioVAE.analyse`, which turns an offset and loud rumble down.
            seeds: of each one's random numbers; default 0 for all.
            levels: of each; measured where not given, which of a peak takes the waves.
            states: `Finding.state` of the sources of each at the end of the block before; None for a recording that
                begins.
            waves: of each, `[channel, sample]`: starts and finishes that use another window need them.
            progress: called after every iteration with the share that is done, and at the end with 1.
        """
        if not mixtures:
            return []
        several, n_iterations, audition = len(self.starts), self.settings.n_iterations, self.settings.audition
        planned = several * audition + n_iterations if several > 1 and audition else several * n_iterations
        done = itertools.count(1)

        def tick() -> None:
            progress(min(next(done), planned) / (planned + 1))

        whole = [x if x.ndim == 3 else x.unsqueeze(-1) for x in mixtures]
        with torch.autocast(whole[0].device.type, enabled=False):  # within, a prior's own calls alone may differ
            at_levels = self._levels(whole, levels, waves)
            mixture = Mixture.of(whole, at_levels, seeds or [0] * len(whole), self.settings.padding, states, waves)
            beginnings = [start(mixture) for start in self.starts]
            if len(beginnings) > 1 and self.settings.audition:
                beginnings = [self._best(mixture, beginnings, tick)]
            tried = [self._from(mixture, beginning, n_iterations, tick) for beginning in beginnings]
            found = [min(runs, key=_final) for runs in zip(*tried, strict=True)]
            found = found if self.finish is None else self._finished(self.finish, mixture, found)
        progress(1.0)
        found = [self._with_one_noise(run) for run in found]
        return [
            replace(run, images=run.images[..., : x.shape[-1]] if x.ndim == 3 else run.images[..., 0])
            for run, x in zip(found, mixtures, strict=True)
        ]

    def _levels(
        self, mixtures: Sequence[Tensor], levels: Sequence[float] | None, waves: Sequence[Tensor] | None
    ) -> Float[Tensor, " recording"]:
        if levels is None and self.front.level_rule == "peak":
            if waves is None:
                raise ValueError(
                    "the prior divides a wave by its peak, which no spectrogram tells: give levels or waves"
                )
            levels = [float(wave.abs().max()) for wave in waves]
        if levels is not None:
            return torch.tensor(levels, dtype=mixtures[0].real.dtype, device=mixtures[0].device)
        window = self.front.stft.window
        return torch.stack([spectrogram_level(power(x).mean(-1), window, self.front.sample_rate) for x in mixtures])

    def _best(self, mixture: Mixture, beginnings: list[Beginning], tick: Callable[[], None]) -> Beginning:
        """For every recording the start of the lowest objective after a few iterations."""
        trials = [self._from(mixture, beginning, self.settings.audition, tick) for beginning in beginnings]
        best = torch.tensor([[_final(one) for one in trial] for trial in trials]).argmin(0).tolist()
        return Beginning.of_recordings([beginnings[place] for place in best])

    def _from(
        self, mixture: Mixture, beginning: Beginning, n_iterations: int, tick: Callable[[], None]
    ) -> list[Separation]:
        """From one start, with the labels that explain each recording best."""

        def made(chosen: dict[int, Tensor]) -> list[Source]:
            again = mixture.again()
            sources = [make(again, psd) for make, psd in zip(self.sources, beginning.psds, strict=True)]
            for source, latents in zip(sources, beginning.latents, strict=False):
                assert isinstance(source, DeepSource)
                source.begin(latents)
            for n, condition in chosen.items():
                source = sources[n]
                assert isinstance(source, DeepSource)
                source.choose(condition)
            return sources

        def run(sources: list[Source], n_iterations: int, tick: Callable[[], None] = lambda: None) -> list[Separation]:
            space = beginning.space
            if beginning.levels is not None:
                psds = [without_draws(source.psd()) for source in sources]
                space = masked_covariances(mixture, psds, beginning.levels)
            spatial = self.spatial(mixture, space)
            return _Run(mixture, sources, spatial, self.settings)(n_iterations, tick)

        chosen: dict[int, Tensor] = {}
        sources = made(chosen)
        for n, source in enumerate(sources):
            if isinstance(source, DeepSource) and len(source.candidates) > 1:
                every = [y.expand(len(mixture.power), -1) for y in source.candidates]
                trials = [run(made({**chosen, n: condition}), _AUDITION_ITERATIONS) for condition in every]
                objectives = torch.tensor([[float(one.objective[-1]) for one in trial] for trial in trials])
                chosen[n] = torch.stack(list(source.candidates))[objectives.argmin(0)]
        return run(made(chosen) if chosen else sources, n_iterations, tick)

    def _with_one_noise(self, run: Separation) -> Separation:
        n = self.n_targets
        images, psds = (torch.cat([part[:n], part[n:].sum(0, keepdim=True)]) for part in (run.images, run.psds))
        return (
            run if len(run.sources) <= n + 1 else replace(run, images=images, psds=psds, sources=run.sources[: n + 1])
        )

    def _finished(self, finish: Finish, mixture: Mixture, found: list[Separation]) -> list[Separation]:
        images = mixture.spectrogram.new_zeros(len(self.sources), *mixture.spectrogram.shape)
        for i, run in enumerate(found):
            images[:, i, : run.images.shape[1]] = run.images / mixture.level[i]
        better = finish(mixture, images)
        return [
            replace(run, images=better[:, i, : run.images.shape[1]] * mixture.level[i]) for i, run in enumerate(found)
        ]


def _final(run: Separation) -> float:
    """The objective at the end, for the choice of a start: none is worse than one that is no number."""
    return float(run.objective[-1].nan_to_num(torch.inf))
