"""What training maximises and evaluation quotes: bounds on log p(x), in nats per frame.

They are of the power |x|^2, or of the complex x where a model's encoder sees the phase.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from audiovae.models.vae import VAE, Factor, Inference
from audiovae.stft import power_of

# A dimension counts as active when its KL, averaged over frames, exceeds this; all below is a collapsed posterior.
ACTIVE_NATS = 0.01
_NUMBERS_AT_ONCE = 2**22  # of a spectrogram, in draws of one importance-weighted bound


# The evidence lower bound


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound and its terms, in nats.

    Attributes:
        log_likelihood: log p(x_t | z) at one sample z ~ q(z | x), `[..., frame]`.
        kl: KL[q(z_t | ...) || p(z_t | ...)] along that sample, `[..., frame]`; that of a whole sequence is shared by
            its frames.
    """

    log_likelihood: Float[Tensor, "*batch frame"]
    kl: Float[Tensor, "*batch frame"]

    @property
    def bound(self) -> Float[Tensor, "*batch frame"]:
        """log_likelihood - kl, at most log p(x_t) in expectation; its sum is the bound of a sequence."""
        return self.log_likelihood - self.kl


def elbo(vae: VAE, power: Inexact[Tensor, "*batch frame freq"], condition: Tensor | None = None) -> ELBO:
    """One-sample estimate of E_q[log p(x | z)] - KL[q(z | x) || p(z)].

    The likelihood term of the complex Gaussian is minus the Itakura-Saito divergence d_IS(|x|^2, variance) up to terms
    of x alone, so maximising the one minimises the other. A model that needs past x is given the true one (teacher
    forcing): that is its density.

    Raises:
        ValueError: a complex spectrogram instead of its power.

    Reference: D. Kingma and M. Welling, "Auto-encoding variational Bayes", ICLR 2014.
    """
    _check_power(vae, power)
    inference = vae.infer(power, condition)
    return ELBO(vae.log_likelihood(inference.latents, power, condition), kl(inference))


def kl(inference: Inference) -> Float[Tensor, "*batch frame"]:
    """KL[q(z | x) || p(z)] along a path of latents; that of a whole sequence is divided evenly among its frames."""
    n_frames = inference.latents.shape[-2]
    total = inference.latents.new_zeros(inference.latents.shape[:-1])
    for factor in inference.factors:
        if factor.prior is not None:
            divergence = kl_divergence(factor.posterior, factor.prior)
            total = total + (divergence if factor.per_frame else (divergence / n_frames).unsqueeze(-1))
    return total


def sounding(power: Inexact[Tensor, "*batch frame freq"]) -> Bool[Tensor, "*batch frame"]:
    """Frames that hold anything but exact zeros: digital silence says nothing of sound, and no mean counts it."""
    return power_of(power).sum(-1) > 0


def counted_frames(vae: VAE, power: Inexact[Tensor, "*batch frame freq"]) -> Bool[Tensor, "*batch frame"]:
    """Frames that a mean counts: of sound those that are `sounding`; of arrays all, for black is a picture too."""
    return sounding(power) if vae.settings.data == "sound" else torch.ones_like(power[..., 0], dtype=torch.bool)


def _counted(vae: VAE, power: Inexact[Tensor, "*batch frame freq"]) -> Bool[Tensor, "*batch frame"]:
    """Frames that count in the bound of a sequence: see `counted_frames`; all where none does."""
    sound = counted_frames(vae, power)
    return sound | ~sound.any(-1, keepdim=True)


def _check_power(vae: VAE, power: Tensor) -> None:
    if power.is_complex() and not vae.sees_phase:
        raise ValueError(
            "bounds are of the power |x|^2, got a complex spectrogram; give them audiovae.stft.power(spectrogram)"
        )


# The importance-weighted bound


def importance_weighted_bound(
    vae: VAE, power: Inexact[Tensor, "*batch frame freq"], n_samples: int, condition: Tensor | None = None
) -> Float[Tensor, "*batch frame"]:
    """Log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k | x) with K = `n_samples`, `[..., frame]`, in nats.

    A lower bound of log p(x_t) that rises with K in expectation. Where frames are independent the weights are per
    frame; else they are per sequence, and every frame gets an equal share of the bound of those that sound.

    Raises:
        ValueError: n_samples < 1, a model without a prior, or a complex spectrogram instead of its power.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, eq. 8.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    _check_power(vae, power)
    _check_weights(vae)
    at_once = max(1, min(n_samples, _NUMBERS_AT_ONCE // max(1, power.numel())))
    encoded = vae.infer(power, condition) if vae.factorised_posterior else None
    log_weights = []
    for start in range(0, n_samples, at_once):  # a few at a time: memory stays near that of the ELBO
        n = min(at_once, n_samples - start)
        drawn, y = power.expand(n, *power.shape), _repeated(condition, n)
        # A posterior without a recurrence is the same for every sample: the encoder need not run again.
        inference = vae.infer(drawn, y) if encoded is None else _drawn_anew(vae, encoded, drawn, y)
        log_weights.append(_log_weight(vae, inference, inference, drawn, y))
    bound = torch.logsumexp(torch.cat(log_weights), dim=0) - math.log(n_samples)
    return bound if vae.frames_are_independent else _spread(vae, bound, power)


def importance_weighted_surrogate(
    vae: VAE, power: Inexact[Tensor, "*batch frame freq"], n_samples: int, condition: Tensor | None = None
) -> Float[Tensor, "*batch frame"]:
    """The importance-weighted bound, whose gradient is the doubly reparameterised one, `[..., frame]`.

    Decoder and prior get sum_k w_k d log w_k with the normalised weights w; the encoder gets sum_k w_k^2 (d log w_k / d
    z_k) (d z_k / d phi) with log q(z | x) held fixed, whose variance does not grow with K.

    Raises:
        ValueError: a model without a prior, or a posterior that does not factorise over frames: its density cannot be
            held fixed along a path.

    Reference: G. Tucker et al., "Doubly reparameterized gradient estimators for Monte Carlo objectives", ICLR 2019, eq.
        8.
    """
    check_importance_training(vae)
    drawn, y = power.expand(n_samples, *power.shape), _repeated(condition, n_samples)
    inference = vae.infer(drawn, y)
    log_weights = _log_weight(vae, inference, _held_fixed(vae, inference), drawn, y)
    weights = torch.softmax(log_weights.detach(), dim=0)
    if inference.latents.requires_grad:
        per_latent = weights[..., None] if vae.frames_are_independent else weights[..., None, None]
        inference.latents.register_hook(lambda gradient: gradient * per_latent)  # type: ignore[no-untyped-call]
    bound = torch.logsumexp(log_weights.detach(), dim=0) - math.log(n_samples)
    surrogate = (weights * log_weights).sum(0)
    bound = bound + surrogate - surrogate.detach()  # the value of the bound, the gradient of the surrogate
    return bound if vae.frames_are_independent else _spread(vae, bound, power)


def check_importance_training(vae: VAE) -> None:
    """Raises ValueError where `importance_weighted_surrogate` cannot train a model."""
    _check_weights(vae)
    if not vae.factorised_posterior:
        raise ValueError(
            "importance_samples above 1 needs a q(z | x) whose factors do not depend on each other's draws, as they do "
            f"in {type(vae).__name__}"
        )


def _check_weights(vae: VAE) -> None:
    if not vae.has_prior:
        raise ValueError(f"{type(vae).__name__} has no posterior density, so no importance weights")


def _log_weight(vae: VAE, inference: Inference, proposal: Inference, power: Tensor, condition: Tensor | None) -> Tensor:
    """Log p(x, z) - log q(z | x), `[..., frame]` where frames are independent, else `[...]`."""
    log_weight = vae.log_likelihood(inference.latents, power, condition)
    of_sequence: list[Tensor] = []
    for z, factor, proposed in zip(inference.parts(), inference.factors, proposal.factors, strict=True):
        assert factor.prior is not None
        log_prior, log_posterior = factor.prior.log_prob(z), proposed.posterior.log_prob(z)
        if factor.per_frame:
            log_weight = log_weight + log_prior - log_posterior
        else:
            of_sequence += [log_prior, -log_posterior]
    return log_weight if vae.frames_are_independent else sum(of_sequence, (log_weight * _counted(vae, power)).sum(-1))


def _drawn_anew(vae: VAE, encoded: Inference, power: Tensor, condition: Tensor | None) -> Inference:
    """Another path of latents for every item of `power`, and the prior along it."""
    z = encoded.sample((len(power),))
    prior = vae.prior(z, condition, vae.past(power))
    return Inference(
        z, tuple(replace(factor, prior=prior) if factor.per_frame else factor for factor in encoded.factors)
    )


def _held_fixed(vae: VAE, inference: Inference) -> Inference:
    """The same posteriors, their parameters without a gradient."""

    def fixed(posterior: Distribution) -> Distribution:
        return vae.latents.build(**{name: tensor.detach() for name, tensor in vae.latents.tensors(posterior).items()})

    return replace(
        inference, factors=tuple(Factor(fixed(f.posterior), f.prior, f.per_frame) for f in inference.factors)
    )


def _repeated(condition: Tensor | None, n_samples: int) -> Tensor | None:
    """The condition of every sample; one that all sequences have in common stays as it is."""
    return condition if condition is None or condition.ndim == 1 else condition.expand(n_samples, *condition.shape)


def _spread(
    vae: VAE, total: Float[Tensor, "*batch"], power: Inexact[Tensor, "*batch frame freq"]
) -> Float[Tensor, "*batch frame"]:
    return (total / _counted(vae, power).sum(-1)).unsqueeze(-1).expand(power.shape[:-1])


# What training minimises


@dataclass(frozen=True)
class Objective:
    """The loss of a training step.

    Attributes:
        beta: weight of the KL; 1 is the ELBO.
        free_bits: KL per latent dimension below which a dimension costs this much, in nats.
        importance_samples: above 1, the importance-weighted bound of so many samples takes the ELBO's place.
        own_past: share of the frames that see the model's own past, in a model that can do so.
        reduction: "sum" of log p(x | z) over the bins of a frame, or their "mean"; see `TrainingSettings`.
    """

    beta: float = 1.0
    free_bits: float = 0.0
    importance_samples: int = 1
    own_past: float = 1.0
    reduction: Literal["sum", "mean"] = "sum"


def training_loss(
    vae: VAE, power: Inexact[Tensor, "*batch frame freq"], condition: Tensor | None, objective: Objective
) -> Float[Tensor, 2]:
    """-log p(x | z) + beta KL, or minus the importance-weighted bound, and the KL alone: means over the frames that
    count (`counted_frames`), in nats; 0 where none does.
    """
    counted = counted_frames(vae, power)
    if vae.own_past is not None:
        vae.own_past = objective.own_past
    if objective.importance_samples > 1:
        bound = _mean(importance_weighted_surrogate(vae, power, objective.importance_samples, condition), counted)
        return torch.stack([-bound, torch.zeros_like(bound)])
    inference = vae.infer(power, condition)
    log_likelihood = _mean(vae.log_likelihood(inference.latents, power, condition), counted)
    if objective.reduction == "mean":
        log_likelihood = log_likelihood / vae.n_freqs
    information = _mean(kl(inference), counted)
    cost = free_bits(inference, objective.free_bits, counted) if objective.free_bits else information
    return torch.stack([objective.beta * cost - log_likelihood, information])


def _mean(values: Float[Tensor, "*batch frame"], counted: Bool[Tensor, "*batch frame"]) -> Float[Tensor, ""]:
    """Where all count, that of `values.mean()` to the last bit."""
    return (values * counted).sum() / counted.sum().clamp(min=1)


def free_bits(inference: Inference, nats: float, counted: Bool[Tensor, "*batch frame"]) -> Float[Tensor, ""]:
    """The KL, averaged over frames, with a floor: what it costs when no dimension costs less than `nats`.

    Where the KL does not split into dimensions the floor is that of all of them together.

    Reference: D. Kingma et al., "Improved variational inference with inverse autoregressive flow", NeurIPS 2016, eq.
        15.
    """
    of_dimensions = kl_by_dimension(inference, counted)
    if of_dimensions is None:
        return _mean(kl(inference), counted).clamp(min=nats * inference.latents.shape[-1])
    return of_dimensions.clamp(min=nats).sum()


# Information in the latents


def kl_by_dimension(inference: Inference, counted: Bool[Tensor, "*batch frame"]) -> Float[Tensor, " latent"] | None:
    """KL of each latent dimension, averaged over frames, in nats; None where it does not split into dimensions.

    Dimensions of a whole sequence have their share of a frame.

    Args:
        counted: the frames; a sequence counts by its share of them.
    """
    n_frames = inference.latents.shape[-2]
    of_dimensions = []
    for factor in inference.factors:
        posterior, prior = factor.posterior, factor.prior
        if not (isinstance(posterior, Independent) and isinstance(prior, Independent)):
            return None
        divergence = kl_divergence(posterior.base_dist, prior.base_dist)
        weights = (counted if factor.per_frame else counted.to(divergence.dtype).mean(-1)).unsqueeze(-1)
        weighted = (divergence * weights).reshape(divergence.shape[:-1].numel(), divergence.shape[-1])
        mean = weighted.sum(0) / weights.sum().clamp(min=torch.finfo(divergence.dtype).tiny)
        of_dimensions.append(mean if factor.per_frame else mean / n_frames)
    return torch.cat(of_dimensions)


def kl_per_dimension(
    vae: VAE, power: Inexact[Tensor, "*batch frame freq"], condition: Tensor | None = None
) -> Float[Tensor, " latent"]:
    """`kl_by_dimension` of a spectrogram's frames that sound; one number, the whole KL per frame, where it does not
    split.
    """
    inference, counted = vae.infer(power, condition), counted_frames(vae, power)
    of_dimensions = kl_by_dimension(inference, counted)
    return _mean(kl(inference), counted).reshape(1) if of_dimensions is None else of_dimensions


def collapse_warning(kl: Float[Tensor, " latent"]) -> str | None:
    """A sentence when no (or almost no) latent dimension carries information, else None.

    Args:
        kl: KL per dimension, in nats, as of `kl_per_dimension`.
    """
    active = int((kl > ACTIVE_NATS).sum())
    if active > max(1, len(kl) // 20) or active == len(kl):
        return None
    return (
        f"the posterior has collapsed: {active} of {len(kl)} latent dimensions carry more than {ACTIVE_NATS} nats, so "
        "the decoder ignores its input; lower beta, warm it up longer, or lower the learning rate"
    )


# Labels


@torch.no_grad()
def label_log_probs(
    vae: VAE, power: Inexact[Tensor, "*batch frame freq"], n_samples: int = 1
) -> tuple[Float[Tensor, "combination label"], Float[Tensor, "*batch combination"]]:
    """Log p(y | x) of a generative model by comparing ELBOs, all labels being equally likely before.

    Args:
        n_samples: draws of z whose bounds are averaged.

    Returns:
        the conditions of all combinations of classes, `[combination, label]`, and the log probability of each,
        `[..., combination]`.

    Raises:
        ValueError: a model without labels, or one that predicts them itself.

    Reference: D. Kingma et al., "Semi-supervised learning with deep generative models", NeurIPS 2014, section 3.1.
    """
    if not vae.conditions.labels or not vae.has_psd:
        raise ValueError(f"{type(vae).__name__} {vae.conditions if vae.has_psd else 'predicts its labels itself'}")
    conditions = vae.conditions.every().to(power)
    bounds = []
    for condition in conditions:
        y = condition.expand(*power.shape[:-2], -1)
        bounds.append(torch.stack([elbo(vae, power, y).bound.sum(-1) for _ in range(n_samples)]).mean(0))
    return conditions, torch.log_softmax(torch.stack(bounds, dim=-1), dim=-1)
