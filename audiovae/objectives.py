"""What training maximises and evaluation quotes: bounds on log p(x), in nats per frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from audiovae.distributions import ComplexNormal
from audiovae.models.vae import VAE

# A dimension counts as active when its KL, averaged over frames, exceeds this; all below is a collapsed posterior.
ACTIVE_NATS = 0.01


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound and its two terms, each `[..., frame]`, in nats.

    Attributes:
        log_likelihood: log p(x_t | z_t) at one sample z ~ q(z | x).
        kl: KL[q(z_t | x) || p(z_t)].
    """

    log_likelihood: Float[Tensor, "*batch frame"]
    kl: Float[Tensor, "*batch frame"]

    @property
    def bound(self) -> Float[Tensor, "*batch frame"]:
        """log_likelihood - kl, at most log p(x_t) in expectation."""
        return self.log_likelihood - self.kl


def elbo(vae: VAE, spectrogram: Complex[Tensor, "*batch frame freq"], condition: Tensor | None = None) -> ELBO:
    """One-sample estimate of E_q[log p(x | z)] - KL[q(z | x) || p(z)].

    The likelihood term is minus the Itakura-Saito divergence d_IS(|x|^2, variance) up to terms of x alone, so
    maximising the one minimises the other.

    Reference: D. Kingma and M. Welling, "Auto-encoding variational Bayes", ICLR 2014.
    """
    inference = vae.infer(power(spectrogram), condition)
    likelihood = vae.likelihood(inference.latents, condition)
    return ELBO(likelihood.log_prob(spectrogram), kl_divergence(inference.posterior, inference.prior))


def elbo_of_power(vae: VAE, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None) -> ELBO:
    """`elbo` from |x|^2 instead of x: the same value, without forming the power twice. What training calls."""
    inference = vae.infer(power, condition)
    likelihood = vae.likelihood(inference.latents, condition)
    return ELBO(log_prob_of_power(likelihood, power), kl_divergence(inference.posterior, inference.prior))


def importance_weighted_bound(
    vae: VAE, spectrogram: Complex[Tensor, "*batch frame freq"], n_samples: int, condition: Tensor | None = None
) -> Float[Tensor, "*batch frame"]:
    """Log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k | x) with K = `n_samples`, `[..., frame]`, in nats.

    A lower bound of log p(x_t) that rises with K in expectation. The weights are per frame: for models whose frames are
    independent.

    Raises:
        ValueError: n_samples < 1.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, eq. 8.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    frame_power = power(spectrogram)
    log_weights = []
    for _ in range(n_samples):  # one at a time: memory as for the ELBO
        inference = vae.infer(frame_power, condition)
        log_joint = log_prob_of_power(vae.likelihood(inference.latents, condition), frame_power) + inference.prior.log_prob(
            inference.latents
        )
        log_weights.append(log_joint - inference.posterior.log_prob(inference.latents))
    return torch.logsumexp(torch.stack(log_weights), dim=0) - math.log(n_samples)


def kl_per_dimension(vae: VAE, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None) -> Float[Tensor, " latent"]:
    """KL of each latent dimension, averaged over all frames, in nats: for posteriors and priors that factorise."""
    inference = vae.infer(power, condition)
    assert isinstance(inference.posterior, Independent)
    assert isinstance(inference.prior, Independent)
    kl = kl_divergence(inference.posterior.base_dist, inference.prior.base_dist)
    return kl.reshape(-1, kl.shape[-1]).mean(0)


def collapse_warning(kl: Float[Tensor, " latent"]) -> str | None:
    """A sentence when no (or almost no) latent dimension carries information, else None.

    Args:
        kl: KL per dimension, in nats, as of `kl_per_dimension`.
    """
    active = int((kl > ACTIVE_NATS).sum())
    if active > max(1, len(kl) // 20) or active == len(kl):
        return None
    return (
        f"the posterior has collapsed: {active} of {len(kl)} latent dimensions carry more than {ACTIVE_NATS} nats, so the "
        "decoder ignores its input; lower beta, warm it up longer, or lower the learning rate"
    )


def power(spectrogram: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """|x|^2 as real^2 + imag^2, whose gradient is right at zero too."""
    return spectrogram.real.square().addcmul_(spectrogram.imag, spectrogram.imag)


def log_prob_of_power(likelihood: Distribution, power: Float[Tensor, "*batch frame freq"]) -> Float[Tensor, "*batch frame"]:
    """Log density, summed over bins, of an x with |x|^2 = power under a circular likelihood."""
    assert isinstance(likelihood, Independent)
    assert isinstance(likelihood.base_dist, ComplexNormal)
    return likelihood.base_dist.summed_log_prob_of_power(power)
