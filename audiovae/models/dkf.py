"""DKF: the deep Kalman filter, a state-space model with networks for transition and emission."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from audiovae.models.dynamics import Dynamical, path
from audiovae.models.latents import normal
from audiovae.models.vae import Factor, Inference
from audiovae.networks.bins import ToBins
from audiovae.networks.lstm import SequenceLSTM, shift, tanh_layers
from audiovae.networks.mlp import start_small
from audiovae.networks.recurrence import StochasticRecurrence
from audiovae.settings import DKFSettings


class GatedTransition(nn.Module):
    """p(z_t | z_{t-1}) = N(mean, variance), between a linear and a nonlinear step by a learnt gate.

    a = sigmoid(W2 relu(W1 z)), m = W4 relu(W3 z), mean = (1 - a) (W z + b) + a m, variance = softplus(W5 relu(m)), all
    of them with biases; at z_0 = 0 these give the first frame's prior.

    Args:
        dim: latent dimensions.
        floor: added to the variance.

    Reference: R. Krishnan, U. Shalit, D. Sontag, "Structured inference networks for nonlinear state space models", AAAI
        2017.
    """

    def __init__(self, dim: int, floor: float) -> None:
        super().__init__()
        self._floor = floor
        self.gate = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.Sigmoid())
        self.proposal = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.linear = nn.Linear(dim, dim)
        self.variance = nn.Sequential(nn.ReLU(), nn.Linear(dim, dim), nn.Softplus())
        with torch.no_grad():  # starts as the identity
            self.linear.weight.copy_(torch.eye(dim))
            self.linear.bias.zero_()

    def forward(self, before: Float[Tensor, "*batch latent"]) -> Independent:
        gate, proposal = self.gate(before), self.proposal(before)
        mean = (1 - gate) * self.linear(before) + gate * proposal
        return normal(mean.to(before.dtype), (self.variance(proposal).to(before.dtype) + self._floor).sqrt())


class DKF(Dynamical):
    """A Markov chain of latents, each frame's spectrum from its own.

    Generation: p(x, z) = prod_t p(x_t | z_t) p(z_t | z_{t-1}), causal, the decoder frame-wise.
    Inference: q(z | x) = prod_t q(z_t | z_{t-1}, x_{t:T}), from the present and the future, as in the exact posterior.

    The likelihood needs no past x. In q the summaries of z_{t-1} and of x_{t:T} are added inside one layer, each by a
    matrix of its own (elsewhere their mean goes through a common one).

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.

    Raises:
        ValueError: a size that makes no network.

    Reference: R. Krishnan, U. Shalit, D. Sontag, "Deep Kalman filters", 2015, and "Structured inference networks", AAAI
        2017.
    """

    factorised_posterior, draws_in_turn = False, True

    def __init__(self, n_freqs: int, settings: DKFSettings = DKFSettings()) -> None:
        super().__init__(n_freqs, settings)
        self.features = tanh_layers(n_freqs, settings.features)
        self.encoder = SequenceLSTM(settings.features, settings.width, "backward")
        self.recurrence = StochasticRecurrence(
            self.latent_dim, layers_in=[32, settings.width], hidden=[32], scale=settings.posterior_scale
        )
        self.to_drive = nn.Linear(settings.width, self.recurrence.drive_size)
        self.transition = GatedTransition(self.latent_dim, 1e-6 if settings.posterior_scale == "bounded" else 1e-12)
        self.decoder = nn.Sequential(
            *tanh_layers(self.latent_dim, *settings.emission),
            ToBins([self.latent_dim, *settings.emission][-1], self.observation.n_outputs),
        )
        start_small(cast(nn.Linear, self.decoder[-1]))

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        drive = self.to_drive(self.encoder(self.features(self._inputs(power, condition))))
        latents, posterior, _ = path(self.recurrence, drive, mean)
        return Inference(latents, (Factor(posterior, self.prior(latents)),))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        return cast(Independent, self.transition(shift(latents)))

    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        return cast(Tensor, self.decoder(latents))

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        drawn = [self.log_power.mean.new_zeros(self.latent_dim)]
        for _ in range(n_frames):
            drawn.append(self.transition(drawn[-1]).sample())
        return torch.stack(drawn[1:])
