"""What training maximises and evaluation quotes: bounds on log p(x), in nats per frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from audiovae.models.vae import VAE, Inference
from audiovae.stft import power

# A dimension counts as active when its KL, averaged over frames, exceeds this; all below is a collapsed posterior.
ACTIVE_NATS = 0.01
_NUMBERS_AT_ONCE = 2**22  # of a spectrogram, in draws of one importance-weighted bound


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound and its terms, in nats.

    Attributes:
        log_likelihood: log p(x_t | z) at one sample z ~ q(z | x), `[..., frame]`.
        kl: KL[q(z_t | ...) || p(z_t | ...)] along that sample, `[..., frame]`.
        sequence_kl: that of a latent vector of the whole sequence, `[...]`; None in models without one.
    """

    log_likelihood: Float[Tensor, "*batch frame"]
    kl: Float[Tensor, "*batch frame"]
    sequence_kl: Float[Tensor, "*batch"] | None = None

    @property
    def total_kl(self) -> Float[Tensor, "*batch frame"]:
        """`kl`, the sequence's divided evenly among its frames."""
        return self.kl if self.sequence_kl is None else self.kl + (self.sequence_kl / self.kl.shape[-1]).unsqueeze(-1)

    @property
    def bound(self) -> Float[Tensor, "*batch frame"]:
        """log_likelihood - total_kl, at most log p(x_t) in expectation; its sum is the bound of a sequence."""
        return self.log_likelihood - self.total_kl


def elbo(vae: VAE, spectrogram: Complex[Tensor, "*batch frame freq"], condition: Tensor | None = None) -> ELBO:
    """One-sample estimate of E_q[log p(x | z)] - KL[q(z | x) || p(z)].

    The likelihood term of the complex Gaussian is minus the Itakura-Saito divergence d_IS(|x|^2, variance) up to terms of x
    alone, so maximising the one minimises the other. A model that needs past x is given the true one (teacher forcing):
    that is its density.

    Reference: D. Kingma and M. Welling, "Auto-encoding variational Bayes", ICLR 2014.
    """
    frame_power = power(spectrogram)
    inference, likelihood = _run(vae, frame_power, condition)
    if vae.predicts == "label":
        return _terms(inference, _log_prob_of_label(vae, likelihood, frame_power, condition))
    return _terms(inference, likelihood.log_prob(spectrogram))


def elbo_of_power(vae: VAE, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None) -> ELBO:
    """`elbo` from |x|^2 instead of x: the same value, without forming the power twice. What training calls."""
    inference, likelihood = _run(vae, power, condition)
    return _terms(inference, _score(vae, likelihood, power, condition))


def elbo_and_dimensions(
    vae: VAE, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None, split: bool
) -> tuple[ELBO, Float[Tensor, " latent"] | None]:
    """`elbo_of_power` and, if `split`, its KL by dimension; see `kl_by_dimension`."""
    inference, likelihood = _run(vae, power, condition)
    return _terms(inference, _score(vae, likelihood, power, condition)), kl_by_dimension(inference) if split else None


def _run(vae: VAE, power: Tensor, condition: Tensor | None) -> tuple[Inference, Distribution]:
    inference = vae.infer(power, condition)
    return inference, vae.likelihood(inference.latents, condition, seen_past(vae, power))


def seen_past(vae: VAE, power: Float[Tensor, "*batch frame freq"]) -> Tensor | None:
    """The power that a likelihood is given: of models that need it, or that still learn to do without."""
    return power if vae.needs_past or (vae.training and vae.own_past is not None) else None


def _score(vae: VAE, likelihood: Distribution, power: Tensor, condition: Tensor | None) -> Tensor:
    if vae.predicts == "label":
        return _log_prob_of_label(vae, likelihood, power, condition)
    return log_prob_of_power(likelihood, power)


def _log_prob_of_label(vae: VAE, likelihood: Distribution, power: Tensor, condition: Tensor | None) -> Tensor:
    return likelihood.log_prob(vae.conditions.per_frame(condition, power))


def _terms(inference: Inference, log_likelihood: Tensor) -> ELBO:
    of_sequence = None
    if inference.sequence_posterior is not None and inference.sequence_prior is not None:
        of_sequence = kl_divergence(inference.sequence_posterior, inference.sequence_prior)
    return ELBO(log_likelihood, kl_divergence(inference.posterior, inference.prior), of_sequence)


def importance_weighted_bound(
    vae: VAE, spectrogram: Complex[Tensor, "*batch frame freq"], n_samples: int, condition: Tensor | None = None
) -> Float[Tensor, "*batch frame"]:
    """Log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k | x) with K = `n_samples`, `[..., frame]`, in nats.

    A lower bound of log p(x_t) that rises with K in expectation. Where frames are independent the weights are per frame; else
    they are per sequence, and every frame gets an equal share of its bound.

    Raises:
        ValueError: n_samples < 1, or a model whose posterior is a point.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, eq. 8.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    _check_weights(vae)
    frame_power = power(spectrogram)
    at_once = max(1, min(n_samples, _NUMBERS_AT_ONCE // max(1, frame_power.numel())))
    encoded = vae.infer(frame_power, condition) if vae.factorised_posterior else None
    log_weights = []
    for start in range(0, n_samples, at_once):  # a few at a time: memory stays near that of the ELBO
        n = min(at_once, n_samples - start)
        drawn, y = frame_power.expand(n, *frame_power.shape), _repeated(condition, n)
        if encoded is None:
            inference, likelihood = _run(vae, drawn, y)
        else:  # the encoder need not run again for every sample
            z, past = encoded.sample((n,)), seen_past(vae, drawn)
            inference, likelihood = replace(encoded, latents=z, prior=vae.prior(z, y, past)), vae.likelihood(z, y, past)
        log_weights.append(_log_weight(vae, inference, inference, _score(vae, likelihood, drawn, y)))
    bound = torch.logsumexp(torch.cat(log_weights), dim=0) - math.log(n_samples)
    return bound if vae.frames_are_independent else _spread(bound, frame_power.shape[-2])


def _check_weights(vae: VAE) -> None:
    if vae.latents.name == "point":
        raise ValueError(f"{type(vae).__name__} has no posterior density, so no importance weights")


def check_importance_training(vae: VAE) -> None:
    """Raises ValueError where `importance_weighted_surrogate` cannot train a model."""
    _check_weights(vae)
    if not vae.factorised_posterior:
        raise ValueError(
            "importance_samples above 1 needs a q(z | x) whose factors do not depend on each other's draws, as they do in "
            f"{type(vae).__name__}"
        )


def _log_weight(vae: VAE, inference: Inference, proposal: Inference, log_likelihood: Tensor) -> Tensor:
    """Log p(x, z) - log q(z | x), `[..., frame]` where frames are independent, else `[...]`."""
    z = inference.latents
    if inference.sequence_posterior is not None:
        z, v = z.split([inference.posterior.event_shape[0], inference.sequence_posterior.event_shape[0]], dim=-1)
    log_weight = log_likelihood + inference.prior.log_prob(z) - proposal.posterior.log_prob(z)
    if vae.frames_are_independent:
        return log_weight
    log_weight = log_weight.sum(-1)
    if inference.sequence_prior is not None and proposal.sequence_posterior is not None:
        log_weight = log_weight + inference.sequence_prior.log_prob(v[..., 0, :]) - proposal.sequence_posterior.log_prob(v[..., 0, :])
    return log_weight


def _repeated(condition: Tensor | None, n_samples: int) -> Tensor | None:
    """The condition of every sample; one that all sequences have in common stays as it is."""
    return condition if condition is None or condition.ndim == 1 else condition.expand(n_samples, *condition.shape)


def _spread(total: Tensor, n_frames: int) -> Tensor:
    return (total / n_frames).unsqueeze(-1).expand(*total.shape, n_frames)


def importance_weighted_surrogate(
    vae: VAE, power: Float[Tensor, "*batch frame freq"], n_samples: int, condition: Tensor | None = None
) -> Float[Tensor, "*batch frame"]:
    """The importance-weighted bound, whose gradient is the doubly reparameterised one, `[..., frame]`.

    Decoder and prior get sum_k w_k d log w_k with the normalised weights w; the encoder gets sum_k w_k^2 (d log w_k / d z_k)
    (d z_k / d phi) with log q(z | x) held fixed, whose variance does not grow with K.

    Raises:
        ValueError: a posterior that is a point, or does not factorise over frames: its density cannot be held fixed along a path.

    Reference: G. Tucker et al., "Doubly reparameterized gradient estimators for Monte Carlo objectives", ICLR 2019, eq. 8.
    """
    check_importance_training(vae)
    frame_power, y = power.expand(n_samples, *power.shape), _repeated(condition, n_samples)
    inference, likelihood = _run(vae, frame_power, y)
    log_weights = _log_weight(vae, inference, _held_fixed(vae, inference), _score(vae, likelihood, frame_power, y))
    weights = torch.softmax(log_weights.detach(), dim=0)
    if inference.latents.requires_grad:
        per_latent = weights[..., None] if vae.frames_are_independent else weights[..., None, None]
        inference.latents.register_hook(lambda gradient: gradient * per_latent)  # type: ignore[no-untyped-call]
    bound = torch.logsumexp(log_weights.detach(), dim=0) - math.log(n_samples)
    surrogate = (weights * log_weights).sum(0)
    bound = bound + surrogate - surrogate.detach()  # the value of the bound, the gradient of the surrogate
    return bound if vae.frames_are_independent else _spread(bound, power.shape[-2])


def _held_fixed(vae: VAE, inference: Inference) -> Inference:
    def fixed(posterior: Distribution) -> Distribution:
        tensors = vae.latents.tensors(posterior)
        return vae.latents.build(**{name: tensor.detach() for name, tensor in tensors.items()}) if tensors else posterior

    sequence = None if inference.sequence_posterior is None else fixed(inference.sequence_posterior)
    return replace(inference, posterior=fixed(inference.posterior), sequence_posterior=sequence)


@torch.no_grad()
def label_log_probs(
    vae: VAE, power: Float[Tensor, "*batch frame freq"], n_samples: int = 1
) -> tuple[Float[Tensor, "combination label"], Float[Tensor, "*batch combination"]]:
    """Log p(y | x) of a generative model by comparing ELBOs, all labels being equally likely before.

    Args:
        n_samples: draws of z whose bounds are averaged.

    Returns:
        the conditions of all combinations of classes, `[combination, label]`, and the log probability of each,
        `[..., combination]`.

    Raises:
        ValueError: a model without labels.

    Reference: D. Kingma et al., "Semi-supervised learning with deep generative models", NeurIPS 2014, section 3.1.
    """
    if not vae.conditions.labels or vae.predicts == "label":
        raise ValueError(f"{type(vae).__name__} {'predicts its labels itself' if vae.predicts == 'label' else vae.conditions}")
    conditions = vae.conditions.every().to(power)
    bounds = []
    for condition in conditions:
        y = condition.expand(*power.shape[:-2], -1)
        bounds.append(torch.stack([elbo_of_power(vae, power, y).bound.sum(-1) for _ in range(n_samples)]).mean(0))
    return conditions, torch.log_softmax(torch.stack(bounds, dim=-1), dim=-1)


def free_bits(vae: VAE, kl: Float[Tensor, ""], per_dimension: Float[Tensor, " latent"] | None, nats: float) -> Float[Tensor, ""]:
    """The KL, averaged over frames, with a floor: what it costs when no dimension costs less than `nats`.

    Without the KL of each dimension the floor is that of all of them together.

    Reference: D. Kingma et al., "Improved variational inference with inverse autoregressive flow", NeurIPS 2016, eq. 15.
    """
    if per_dimension is None:
        return kl.clamp(min=nats * vae.latent_dim)
    return per_dimension.clamp(min=nats).sum()


def kl_by_dimension(inference: Inference) -> Float[Tensor, " latent"] | None:
    """KL of each latent dimension, averaged over all frames, in nats; None where it does not split into dimensions.

    Dimensions of a whole sequence come last, with their share of a frame.
    """
    n_frames = inference.latents.shape[-2]
    pairs = [(inference.posterior, inference.prior, 1), (inference.sequence_posterior, inference.sequence_prior, n_frames)]
    of_dimensions = []
    for posterior, prior, n in pairs:
        if posterior is None or prior is None:
            continue
        if not (isinstance(posterior, Independent) and isinstance(prior, Independent)):
            return None
        kl = kl_divergence(posterior.base_dist, prior.base_dist)
        of_dimensions.append(kl.reshape(kl.shape[:-1].numel(), kl.shape[-1]).mean(0) / n)
    return torch.cat(of_dimensions)


def kl_per_dimension(vae: VAE, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None) -> Float[Tensor, " latent"]:
    """`kl_by_dimension` of a spectrogram; one number, the whole KL per frame, where it does not split."""
    inference = vae.infer(power, condition)
    of_dimensions = kl_by_dimension(inference)
    if of_dimensions is None:
        return _terms(inference, power[..., 0]).total_kl.mean().reshape(1)
    return of_dimensions


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


def log_prob_of_power(likelihood: Distribution, power: Float[Tensor, "*batch frame freq"]) -> Float[Tensor, "*batch frame"]:
    """Log probability, summed over bins, of an x with |x|^2 = power, under a likelihood that does not look at its phase."""
    assert isinstance(likelihood, Independent)
    total: Tensor = likelihood.base_dist.summed_log_prob_of_power(power)
    return total
