"""SRNN: a deterministic chain over past spectra under a stochastic chain of latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.models.dynamics import Dynamical, path
from audiovae.models.vae import Factor, Inference
from audiovae.networks.bins import ToBins
from audiovae.networks.lstm import SequenceLSTM, shift, tanh_layers
from audiovae.networks.mlp import start_small
from audiovae.networks.recurrence import StochasticRecurrence
from audiovae.settings import SRNNSettings

_HIDDEN = (64, 32)
_PASSES = 2  # of parallel scheduled sampling


class SRNN(Dynamical):
    """A state h_t = h(x_{1:t-1}) without latents in it, and latents with a chain of their own.

    Generation: p(x, z) = prod_t p(x_t | x_{1:t-1}, z_t) p(z_t | x_{1:t-1}, z_{t-1}), causal.
    Inference: q(z | x) = prod_t q(z_t | z_{t-1}, x_{1:T}), which sees the future.

    Likelihood and prior need past x: teacher forcing where it is given, else the model feeds on its own variances. With
    `settings.own_past` the model is one that always does: h_t then follows from z_{1:t-1}, the density needs no past x,
    and only training still sees the true one, in fewer and fewer frames (`TrainingSettings.scheduled_sampling`). There
    the own past is found in parallel: two passes over all frames, each on the (detached) predictions of the pass
    before, instead of one by one.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.

    Reference: M. Fraccaro et al., "Sequential neural models with stochastic layers", NeurIPS 2016; scheduled sampling
        in parallel: D. Duckworth et al., "Parallel scheduled sampling", 2019.
    """

    factorised_posterior, draws_in_turn = False, True

    def __init__(self, n_freqs: int, settings: SRNNSettings = SRNNSettings()) -> None:
        super().__init__(n_freqs, settings)
        self.needs_past = not settings.own_past
        self.own_past = 1.0 if settings.own_past else None
        self.past_features = tanh_layers(n_freqs, settings.features)
        self.chain = SequenceLSTM(settings.features, settings.width)  # h
        self.features = tanh_layers(settings.width + n_freqs, settings.features)
        self.encoder = SequenceLSTM(settings.features, settings.width, "backward")  # g
        self.recurrence = StochasticRecurrence(self.latent_dim, hidden=_HIDDEN, scale=settings.posterior_scale)
        self.to_drive = nn.Linear(settings.width, self.recurrence.drive_size)
        self.transition = nn.Sequential(
            *tanh_layers(settings.width + self.latent_dim, *_HIDDEN), nn.Linear(_HIDDEN[-1], 2 * self.latent_dim)
        )
        self.decoder = nn.Sequential(
            *tanh_layers(settings.width + self.latent_dim, settings.features),
            ToBins(settings.features, self.observation.n_outputs),
        )
        start_small(cast(nn.Linear, self.transition[-1]), cast(nn.Linear, self.decoder[-1]))

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        x = self._inputs(power, condition)
        true = self._states(x)
        drive = self.to_drive(self.encoder(self.features(torch.cat([true, x], dim=-1))))
        latents, posterior, _ = path(self.recurrence, drive, mean)
        if self.own_past is None:
            return Inference(latents, (Factor(posterior, self._prior_of_states(true, latents)),))
        own = self._own_states(true, latents) if self.training else self._run_freely(latents)[0]
        return Inference(latents, (Factor(posterior, self._prior_of_states(own, latents)),))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        states = (
            self._states(self.log_power(past))
            if past is not None and self._sees_past()
            else self._run_freely(latents)[0]
        )
        return self._prior_of_states(states, latents)

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        if past is None or not self._sees_past():
            return self._run_freely(latents)[1]
        states = self._states(self.log_power(past))
        if self.own_past:
            own = torch.rand(states.shape[:-1], device=states.device) < self.own_past
            states = torch.where(own.unsqueeze(-1), self._own_states(states, latents), states)
        return self._spectrum(states, latents)

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        z = self.log_power.mean.new_zeros(self.latent_dim)
        drawn: list[Tensor] = [z]

        def draw(state: Tensor) -> Tensor:
            drawn.append(self._next(state, drawn[-1]).sample())
            return drawn[-1]

        self._feed_back(n_frames, draw, z.new_zeros(self.n_freqs))
        return torch.stack(drawn[1:])

    def _sees_past(self) -> bool:
        return self.needs_past or self.training

    def _states(self, x: Float[Tensor, "*batch frame freq"]) -> Float[Tensor, "*batch frame state"]:
        return cast(Tensor, self.chain(self.past_features(shift(x))))

    def _next(self, states: Float[Tensor, "*batch state"], before: Float[Tensor, "*batch latent"]) -> Distribution:
        return self.latents.from_outputs(self.transition(torch.cat([states, before], dim=-1)).to(before.dtype))

    def _prior_of_states(
        self, states: Float[Tensor, "*batch frame state"], latents: Float[Tensor, "*batch frame latent"]
    ) -> Distribution:
        return self._next(states, shift(latents))

    def _spectrum(
        self, states: Float[Tensor, "*batch state"], latents: Float[Tensor, "*batch latent"]
    ) -> Float[Tensor, "*batch freq"]:
        return cast(Tensor, self.decoder(torch.cat([states, latents], dim=-1)))

    def _predicted(self, outputs: Float[Tensor, "*batch output"]) -> Float[Tensor, "*batch freq"]:
        return self.expected_input(outputs.detach().clone()).detach()

    def _own_states(
        self, states: Float[Tensor, "*batch frame state"], latents: Float[Tensor, "*batch frame latent"]
    ) -> Float[Tensor, "*batch frame state"]:
        """H over the model's own predictions, in parallel."""
        for _ in range(_PASSES):
            with torch.no_grad():
                predicted = self._predicted(self._spectrum(states, latents))
            states = self._states(predicted)
        return states

    def _run_freely(self, latents: Float[Tensor, "*batch frame latent"]) -> tuple[Tensor, Tensor]:
        frames = iter(latents.unbind(-2))
        return self._feed_back(
            latents.shape[-2], lambda state: next(frames), latents.new_zeros(*latents.shape[:-2], self.n_freqs)
        )

    def _feed_back(self, n_frames: int, latent_of: Callable[[Tensor], Tensor], before: Tensor) -> tuple[Tensor, Tensor]:
        """States and spectra on the model's own past, with the latents that `latent_of` gives for each state."""
        carried, states, outputs = None, [], []
        for _ in range(n_frames):
            state, carried = self.chain.step(self.past_features(before), carried)
            states.append(state)
            outputs.append(self._spectrum(state, latent_of(state)))
            before = self._predicted(outputs[-1])
        return torch.stack(states, dim=-2), torch.stack(outputs, dim=-2)
