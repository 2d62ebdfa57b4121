"""VRNN: the variational recurrent network, one recurrence shared by generation and inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.models.dynamics import Dynamical, path
from audiovae.models.vae import Factor, Inference
from audiovae.networks.bins import ToBins
from audiovae.networks.lstm import shift, tanh_layers
from audiovae.networks.mlp import start_small
from audiovae.networks.recurrence import StochasticRecurrence
from audiovae.settings import VRNNSettings

_LATENT_FEATURES = (32, 64)
_SHUT = -1e4  # added to an input gate, lets nothing in: from a zero state the LSTM comes to a zero state


class VRNN(Dynamical):
    """A state h_t = h(x_{1:t-1}, z_{1:t-1}) that prior, decoder and encoder share.

    Generation: p(x, z) = prod_t p(x_t | x_{1:t-1}, z_{1:t}) p(z_t | x_{1:t-1}, z_{1:t-1}), causal.
    Inference: q(z | x) = prod_t q(z_t | x_{1:t}, z_{1:t-1}), causal.

    Likelihood and prior need past x: teacher forcing where it is given, else the model feeds on its own variances.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.

    Reference: J. Chung et al., "A recurrent latent variable model for sequential data", NeurIPS 2015.
    """

    needs_past = True
    factorised_posterior, draws_in_turn = False, True

    def __init__(self, n_freqs: int, settings: VRNNSettings = VRNNSettings()) -> None:
        super().__init__(n_freqs, settings)
        self._width, self._zero_start = settings.width, settings.zero_start
        self.features = tanh_layers(n_freqs, settings.features)
        self.recurrence = StochasticRecurrence(
            self.latent_dim, layers_in=_LATENT_FEATURES, lstm=settings.width, scale=settings.posterior_scale
        )
        self.past_to_gates = nn.Linear(settings.features, self.recurrence.input_drive_size, bias=False)
        self.to_drive = nn.Linear(settings.features, self.recurrence.drive_size)
        self.to_prior = nn.Linear(settings.width, 2 * self.latent_dim)
        self.to_spectrum = ToBins(settings.width + _LATENT_FEATURES[-1], self.observation.n_outputs)
        start_small(self.to_prior, self.to_spectrum)

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        x = self._inputs(power, condition)
        gates = self.past_to_gates(self.features(shift(x)))
        if self._zero_start:
            gates[..., 0, : self._width] = _SHUT
        latents, posterior, states = path(self.recurrence, self.to_drive(self.features(x)), mean, gates)
        assert states is not None
        return Inference(latents, (Factor(posterior, self._prior_of_states(states)),))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        return self._prior_of_states(self._states(latents, past)[0])

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        states, outputs = self._states(latents, past)
        return self._spectrum(states, latents) if outputs is None else outputs

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        drawn: list[Tensor] = []

        def draw(state: Tensor) -> Tensor:
            drawn.append(self._prior_of_states(state).sample())
            return drawn[-1]

        self._run_freely(n_frames, draw, ())
        return torch.stack(drawn)

    def _prior_of_states(self, states: Float[Tensor, "*batch state"]) -> Distribution:
        return self.latents.from_outputs(self.to_prior(states).to(states.dtype))

    def _spectrum(
        self, states: Float[Tensor, "*batch state"], latents: Float[Tensor, "*batch latent"]
    ) -> Float[Tensor, "*batch freq"]:
        return cast(Tensor, self.to_spectrum(torch.cat([states, self._latent_features(latents)], dim=-1)))

    def _states(
        self, latents: Float[Tensor, "*batch frame latent"], past: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """H along a path of latents; with their own past also the spectra on the way."""
        if past is None:
            frames = iter(latents.unbind(-2))
            return self._run_freely(latents.shape[-2], lambda state: next(frames), latents.shape[:-2])
        before = [x if self._zero_start else shift(x) for x in (latents, self.log_power(past))]
        inputs = torch.cat([self._latent_features(before[0]), self.features(before[1])], dim=-1)
        sequences = inputs.to(self.to_prior.weight.dtype).reshape(-1, *inputs.shape[-2:])  # back from mixed precision
        zeros = sequences.new_zeros(1, len(sequences), self._width)
        with torch.autocast(inputs.device.type, enabled=False):
            states = torch.lstm(
                sequences, (zeros, zeros), self._lstm_weights(), True, 1, 0.0, self.training, False, True
            )[0]
        states = states.reshape(*inputs.shape[:-1], -1)
        return shift(states) if self._zero_start else states, None

    def _latent_features(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch feature"]:
        for layer in self.recurrence.layers_in:
            latents = torch.tanh(layer(latents))
        return latents

    def _lstm_weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the LSTM over [features of z_{t-1}, features of x_{t-1}]."""
        cell = self.recurrence.lstm
        assert cell is not None
        return torch.cat([cell.weight_ih, self.past_to_gates.weight], dim=1), cell.weight_hh, cell.bias_ih, cell.bias_hh

    def _run_freely(
        self, n_frames: int, latent_of: Callable[[Tensor], Tensor], batch: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """States and spectra on the model's own past, with the latents that `latent_of` gives for each state."""
        before = self.log_power.mean.new_zeros(math.prod(batch), self.n_freqs)
        z = before.new_zeros(len(before), self.latent_dim)
        state = cell = before.new_zeros(len(before), self._width)
        weights, states, outputs = self._lstm_weights(), [], []
        for t in range(n_frames):
            if t > 0 or not self._zero_start:
                inputs = torch.cat([self._latent_features(z), self.features(before)], dim=-1)
                state, cell = torch.lstm_cell(inputs, (state, cell), *weights)
            z = latent_of(state.reshape(*batch, -1)).reshape(len(before), -1)
            states.append(state)
            outputs.append(self._spectrum(state, z))
            before = self.expected_input(outputs[-1].clone())
        return tuple(torch.stack(frames, dim=-2).reshape(*batch, n_frames, -1) for frames in (states, outputs))  # type: ignore[return-value]
