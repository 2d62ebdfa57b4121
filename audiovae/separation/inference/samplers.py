"""Markov chains that draw latents from exp(-U): random-walk Metropolis-Hastings, and Langevin with or without a
Metropolis step.

Chains stand side by side. What is accepted or refused together is a block: a frame where frames are independent, else a
whole recording. Step sizes adapt on request towards the acceptance rate that is best for long chains; while they do, a
chain is not yet one of exp(-U).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.inference.energy import Energy, gradient

RANDOM_WALK_ACCEPTANCE = (
    0.234  # G. Roberts, A. Gelman, W. Gilks, "Weak convergence and optimal scaling of random walk Metropolis", 1997
)
LANGEVIN_ACCEPTANCE = (
    0.574  # G. Roberts, J. Rosenthal, "Optimal scaling of discrete approximations to Langevin diffusions", 1998
)

Random = Callable[[], tuple[Tensor, Tensor]]
"""Fresh normal numbers of the latents' shape, and uniform ones `[*sample, recording, frame]`."""


@dataclass
class Chain:
    """Where chains stand.

    Attributes:
        latents: `[*sample, recording, frame, latent]`.
        step: size of a proposal of each block, `[*sample, recording, block]`: a standard deviation for
            Metropolis-Hastings, the factor of the gradient for Langevin.
        by_frame: is a block one frame, or a whole recording?
        acceptance: share of the last call's proposals that each block accepted; all where none is refused.
    """

    latents: Float[Tensor, "*sample recording frame latent"]
    step: Float[Tensor, "*sample recording block"]
    by_frame: bool
    acceptance: Float[Tensor, "*sample recording block"] | None = None

    @classmethod
    def start(cls, latents: Float[Tensor, "*sample recording frame latent"], step: float, by_frame: bool) -> Chain:
        n_blocks = latents.shape[-2] if by_frame else 1
        return cls(latents, latents.new_full((*latents.shape[:-2], n_blocks), step), by_frame)

    def per_block(
        self, per_frame: Float[Tensor, "*sample recording frame"]
    ) -> Float[Tensor, "*sample recording block"]:
        """Sums over what is accepted together."""
        return per_frame if self.by_frame else per_frame.sum(-1, keepdim=True)


def metropolis_hastings(
    energy: Energy, chain: Chain, n_steps: int, random: Random, adapt: bool = False
) -> list[Tensor]:
    """Random walk: z' = z + step * normal, accepted with probability min(1, exp(U(z) - U(z'))).

    Moves the chain; returns its latents after every step.

    Reference: N. Metropolis et al., "Equation of state calculations by fast computing machines", J. Chem. Phys. 21,
        1953.
    """
    here = chain.per_block(energy(chain.latents))
    path, accepted = [], torch.zeros_like(here)
    for i in range(n_steps):
        normal, uniform = random()
        proposal = chain.latents + chain.step.unsqueeze(-1) * normal
        there = chain.per_block(energy(proposal))
        log_ratio = here - there
        accept = _first(uniform, chain).log() < log_ratio
        chain.latents = torch.where(accept.unsqueeze(-1), proposal, chain.latents)
        here = torch.where(accept, there, here)
        accepted += accept
        if adapt:
            chain.step = _adapted(chain.step, log_ratio, RANDOM_WALK_ACCEPTANCE, i)
        path.append(chain.latents)
    chain.acceptance = accepted / n_steps
    return path


def langevin(
    energy: Energy,
    chain: Chain,
    n_steps: int,
    random: Random,
    metropolis: bool,
    adapt: bool = False,
    tamed: bool = False,
) -> list[Tensor]:
    """Langevin dynamics: z' = z - step grad U(z) + sqrt(2 step) normal.

    With `metropolis` z' is accepted or refused, so that the chain is one of exp(-U) exactly.
    Without it the chain keeps every proposal, and its distribution is off by the order of the step: a Gaussian of
    variance s^2 becomes one of s^2 / (1 - step / (2 s^2)).

    Moves the chain; returns its latents after every step.

    Args:
        metropolis: accept or refuse.
        adapt: the steps, where proposals are refused.
        tamed: divide a frame's gradient g by 1 + step |g|, so that no step is longer than one where the energy is
            steep.

    Reference: G. Roberts, R. Tweedie, "Exponential convergence of Langevin distributions and their discrete
        approximations", Bernoulli 2(4), 1996; the taming: N. Brosse et al., "The tamed unadjusted Langevin algorithm",
        Stoch. Proc. Appl. 129(10), 2019.
    """
    per_frame, slope = gradient(energy, chain.latents)
    path, accepted = [], torch.zeros_like(chain.step)
    for i in range(n_steps):
        normal, uniform = random()
        step = chain.step.unsqueeze(-1)
        move = _drift(slope, step, tamed)
        proposal = chain.latents - move + (2 * step).sqrt() * normal
        per_frame_there, slope_there = gradient(energy, proposal)
        if metropolis:
            back = (chain.latents - proposal + _drift(slope_there, step, tamed)).square().sum(-1)
            forth = (proposal - chain.latents + move).square().sum(-1)
            log_ratio = chain.per_block(per_frame - per_frame_there) + chain.per_block(forth - back) / (4 * chain.step)
            accept = _first(uniform, chain).log() < log_ratio
            if adapt:
                chain.step = _adapted(chain.step, log_ratio, LANGEVIN_ACCEPTANCE, i)
        else:
            accept = torch.ones_like(chain.step, dtype=torch.bool)
        chain.latents = torch.where(accept.unsqueeze(-1), proposal, chain.latents)
        slope = torch.where(accept.unsqueeze(-1), slope_there, slope)
        per_frame = torch.where(accept, per_frame_there, per_frame)
        accepted += accept
        path.append(chain.latents)
    chain.acceptance = accepted / n_steps
    return path


def _drift(slope: Tensor, step: Tensor, tamed: bool) -> Tensor:
    return step * slope / (1 + step * slope.norm(dim=-1, keepdim=True)) if tamed else step * slope


def _first(uniform: Float[Tensor, "*sample recording frame"], chain: Chain) -> Float[Tensor, "*sample recording block"]:
    """One number for every block: a recording's is that of its first frame."""
    return uniform if chain.by_frame else uniform[..., :1]


def _adapted(step: Tensor, log_ratio: Tensor, target: float, i: int) -> Tensor:
    """A stochastic approximation of the step whose mean acceptance probability is the target.

    Reference: C. Andrieu, J. Thoms, "A tutorial on adaptive MCMC", Statistics and Computing 18, 2008, algorithm 4.
    """
    probability = log_ratio.clamp(max=0.0).exp().nan_to_num(0.0)
    return step * torch.exp((probability - target) / math.sqrt(i + 1))


def effective_sample_size(path: Float[Tensor, "draw *batch latent"]) -> Float[Tensor, "*batch latent"]:
    """How many independent draws the steps of a chain are worth for its mean.

    n / (1 + 2 sum_k rho_k), the autocorrelations summed in pairs as long as these are positive; 1 for a chain that
    never moved.

    Reference: C. Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7(4), 1992.
    """
    n_steps = len(path)
    centred = path - path.mean(0)
    spectrum = torch.fft.rfft(centred, 2 * n_steps, dim=0)
    covariance = torch.fft.irfft(spectrum.real.square() + spectrum.imag.square(), dim=0)[:n_steps]
    rho = covariance / covariance[:1].clamp(min=1e-30)
    pairs = rho[: n_steps // 2 * 2].unflatten(0, (-1, 2)).sum(1)  # rho_0 + rho_1, rho_2 + rho_3, ...
    positive = (pairs > 0).cumprod(0)
    correlation_time = (2 * (pairs * positive).sum(0) - 1).clamp(min=1.0 / n_steps)
    size = (n_steps / correlation_time).clamp(max=float(n_steps))
    return torch.where((path == path[:1]).all(0), 1.0, size)
