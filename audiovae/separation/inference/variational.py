"""VEM: a Gaussian posterior of the latents whose mean and deviation are found by gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from audiovae.separation.inference.e_step import Draws
from audiovae.separation.inference.energy import LatentEnergy
from audiovae.separation.mixture import Mixture


class FreePosterior:
    """An E-step of VEM: Adam on the mean and the deviation of q(z_t) = N(m_t, s_t^2), free for every frame, by
    reparameterised samples.

    Minimises E_q[U(z)] - prior_weight H[q]: the entropy has the weight of the log prior, so that both make their KL
    divergence.

    Args:
        n_steps: gradient steps in one E-step, a sample each.
        n_samples: that stand for the posterior after it.
        learning_rate: of Adam.
        deviation: s of the start.

    Raises:
        ValueError: a number that is not positive.

    Reference: D. Kingma, M. Welling, "Auto-encoding variational Bayes", ICLR 2014; as an E-step: X. Bie, S. Leglaive,
        X. Alameda-Pineda, L. Girin, "Unsupervised speech enhancement using dynamical variational autoencoders",
        IEEE/ACM TASLP 30, 2022, which tunes the encoder instead.
    """

    def __init__(
        self, n_steps: int = 4, n_samples: int = 2, learning_rate: float = 0.1, deviation: float = 0.1
    ) -> None:
        if min(n_steps, n_samples) < 1 or min(learning_rate, deviation) <= 0:
            raise ValueError(f"all options must be positive, got {n_steps}, {n_samples}, {learning_rate}, {deviation}")
        self.n_steps, self.n_samples, self.learning_rate, self.deviation = n_steps, n_samples, learning_rate, deviation

    def begin(self, latents: Float[Tensor, "recording frame latent"], frames_are_independent: bool) -> None:
        self._mean = latents.clone().requires_grad_()
        self._log_deviation = torch.full_like(latents, self.deviation).log().requires_grad_()
        self._adam = torch.optim.Adam([self._mean, self._log_deviation], self.learning_rate, betas=(0.9, 0.99))

    def draws(self, energy: LatentEnergy) -> Draws:
        mixture, inside = energy.mixture, energy.mixture.inside.unsqueeze(-1)
        for _ in range(self.n_steps):
            with torch.enable_grad():
                entropy = (self._log_deviation * inside).sum()
                loss = energy(self._drawn(mixture)).sum() - energy.prior_weight * entropy
                self._mean.grad, self._log_deviation.grad = torch.autograd.grad(loss, [self._mean, self._log_deviation])
            self._adam.step()
        return Draws(torch.stack([self._drawn(mixture) for _ in range(self.n_samples)]).detach())

    def _drawn(self, mixture: Mixture) -> Tensor:
        return self._mean + self._log_deviation.exp() * mixture.random(self._mean.shape[-1])
