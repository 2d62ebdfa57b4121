"""MCEM and Langevin EM: the posterior of the latents by samples of a Markov chain."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.inference.e_step import Draws
from audiovae.separation.inference.energy import LatentEnergy
from audiovae.separation.inference.samplers import Chain, effective_sample_size, langevin, metropolis_hastings
from audiovae.separation.mixture import Mixture

Kernel = Literal["metropolis-hastings", "langevin", "mala"]


class MarkovChain:
    """An E-step by chains that go on from one E-step to the next: some steps to burn in, which adapt their size, then
    those that count.

    Args:
        kernel: "metropolis-hastings" (MCEM), "langevin" (unadjusted, whose step stays as given), or "mala"
            (Metropolis-adjusted).
        n_chains: side by side.
        n_burn: steps that are dropped at the beginning of an E-step.
        n_keep: steps after these, of which every third (all of fewer than three) stands for the posterior.
        step: first size; see `Chain`.

    Raises:
        ValueError: an unknown kernel, or a number that is not positive.

    Reference: G. Wei, M. Tanner, "A Monte Carlo implementation of the EM algorithm", JASA 85, 1990; S. Leglaive, L.
        Girin, R. Horaud, "A variance modeling framework based on variational autoencoders for speech enhancement", MLSP
        2018.
    """

    def __init__(
        self,
        kernel: Kernel = "metropolis-hastings",
        n_chains: int = 1,
        n_burn: int = 30,
        n_keep: int = 10,
        step: float = 0.1,
    ) -> None:
        if kernel not in ("metropolis-hastings", "langevin", "mala"):
            raise ValueError(f"kernel must be 'metropolis-hastings', 'langevin' or 'mala', got {kernel!r}")
        if min(n_chains, n_keep) < 1 or n_burn < 0 or step <= 0:
            raise ValueError(
                f"n_chains, n_keep and step must be positive, n_burn not negative; got {n_chains}, {n_keep}, {step}, "
                f"{n_burn}"
            )
        self.kernel, self.n_chains, self.n_burn, self.n_keep, self.step = kernel, n_chains, n_burn, n_keep, step

    def begin(self, latents: Float[Tensor, "recording frame latent"], frames_are_independent: bool) -> None:
        start = latents.expand(self.n_chains, *latents.shape)
        self._chain = Chain.start(start, self.step, frames_are_independent)

    def draws(self, energy: LatentEnergy) -> Draws:
        if self.n_burn:
            self._run(energy, self.n_burn, adapt=True)
        path = torch.stack(self._run(energy, self.n_keep, adapt=False))  # [step, chain, recording, frame, latent]
        acceptance, mixture = self._chain.acceptance, energy.mixture
        assert acceptance is not None
        return Draws(
            path[:: 3 if self.n_keep >= 3 else 1].flatten(0, 1),
            None
            if self.kernel == "langevin"
            else mixture.mean_over_frames(acceptance.mean(0).expand_as(mixture.inside)),
            mixture.mean_over_frames(effective_sample_size(path).mean((0, -1))),
        )

    def _run(self, energy: LatentEnergy, n_steps: int, adapt: bool) -> list[Tensor]:
        random = partial(self._random, energy.mixture)
        if self.kernel == "metropolis-hastings":
            return metropolis_hastings(energy, self._chain, n_steps, random, adapt)
        return langevin(energy, self._chain, n_steps, random, self.kernel == "mala", adapt, tamed=True)

    def _random(self, mixture: Mixture) -> tuple[Tensor, Tensor]:
        n_chains, latent_dim = self._chain.latents.shape[0], self._chain.latents.shape[-1]
        normal = mixture.random(n_chains * latent_dim).unflatten(-1, (n_chains, latent_dim)).movedim(-2, 0)
        return normal, mixture.random(n_chains, uniform=True).movedim(-1, 0)
