"""The energy of latents given a noisy recording: minus the log of their posterior, up to a constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent

from audiovae.models import VAE
from audiovae.separation.mixture import Mixture

LARGEST_LOG_VARIANCE = 21.0  # of speech at unit level: 20 dB above the loudest bin of the training recordings (16.3)

Energy = Callable[[Tensor], Tensor]
"""U(z): latents `[*sample, recording, frame, latent]` to the nats of every frame, `[*sample, recording, frame]`, whose sum over a recording
is -log p(z | x) + constant. Its gradient drives point estimates and Langevin, and its differences accept or refuse."""


class LatentEnergy:
    """U_t(z) = sum_f [log V_ft + P_ft / V_ft] - prior_weight log p(z_t | z_<t), V = g_t c_f v_f(z) + N_ft; zero in the padding.

    The frames of an STFT overlap (fourfold at a quarter's hop) and its bins leak, so that the sum over all of them counts every
    sample several times; a `prior_weight` above one takes that back.

    Args:
        vae: a prior that has a PSD and needs no past x.
        mixture: the recordings.
        condition: labels of the speech, for a conditional prior.
        prior_weight: of the log prior.

    Attributes:
        gain: g_t, `[recording, frame]`.
        colour: c_f, `[recording, freq]`: a microphone's, or a voice's that the prior has not heard.
        noise: N_ft.
    """

    def __init__(self, vae: VAE, mixture: Mixture, condition: Tensor | None = None, prior_weight: float = 1.0) -> None:
        self.vae, self.mixture, self.condition, self.prior_weight = vae, mixture, condition, prior_weight
        self.gain: Float[Tensor, "recording frame"] = torch.ones_like(mixture.power[..., 0])
        self.colour: Float[Tensor, "recording freq"] = torch.ones_like(mixture.power[:, 0])
        self.noise: Float[Tensor, "recording frame freq"] = torch.ones_like(mixture.power)

    def speech(self, latents: Float[Tensor, "*sample recording frame latent"]) -> Float[Tensor, "*sample recording frame freq"]:
        """v_f(z_t): what the decoder says of clean speech at unit level."""
        return clamped_variance(self.vae.likelihood(self.masked(latents), self.condition))

    def masked(self, latents: Tensor) -> Tensor:
        """Latents with zeros in the padding, where nothing may depend on them."""
        return latents * self.mixture.inside.unsqueeze(-1)

    def mixture_variance(self, speech: Float[Tensor, "*sample recording frame freq"]) -> Float[Tensor, "*sample recording frame freq"]:
        """V = g c v + N."""
        return self.noise + self.scaled(speech)

    def scaled(self, speech: Float[Tensor, "*sample recording frame freq"]) -> Float[Tensor, "*sample recording frame freq"]:
        """Variance of the speech in the mixture, g c v."""
        return speech * self.scale

    @property
    def scale(self) -> Float[Tensor, "recording frame freq"]:
        """What the prior's speech is multiplied by, g c."""
        return self.gain.unsqueeze(-1) * self.colour.unsqueeze(-2)

    def __call__(self, latents: Float[Tensor, "*sample recording frame latent"]) -> Float[Tensor, "*sample recording frame"]:
        return self.of_speech(latents, self.speech(latents))

    def of_speech(
        self, latents: Float[Tensor, "*sample recording frame latent"], speech: Float[Tensor, "*sample recording frame freq"]
    ) -> Float[Tensor, "*sample recording frame"]:
        """The energy of latents whose `speech` is known already."""
        latents, variance = self.masked(latents), self.mixture_variance(speech)
        misfit = (torch.log(variance) + self.mixture.power / variance).sum(-1)
        log_prior = self.vae.prior(latents, self.condition).log_prob(latents)
        return (misfit - self.prior_weight * log_prior) * self.mixture.inside

    def slope(self, latents: Float[Tensor, "*sample recording frame latent"]) -> Float[Tensor, "*sample recording frame latent"]:
        """The gradient of the energy's sum: that of `gradient`, without the energy and in fewer passes over the spectrogram."""
        with torch.enable_grad():
            z = latents.detach().requires_grad_()
            masked = self.masked(z)
            speech = self.speech(z)
            log_prior = self.vae.prior(masked, self.condition).log_prob(masked)
        scale = self.scale
        precision = 1 / torch.addcmul(self.noise, scale, speech.detach())
        of_speech = (scale * self.mixture.inside.unsqueeze(-1)) * precision * (1 - self.mixture.power * precision)
        of_prior = (-self.prior_weight * self.mixture.inside).to(log_prior.dtype).expand_as(log_prior)
        (slope,) = torch.autograd.grad([speech, log_prior], z, [of_speech, of_prior])
        return slope

    def curvature(
        self, latents: Float[Tensor, "recording frame latent"], signs: Float[Tensor, "recording frame freq"]
    ) -> Float[Tensor, "recording frame latent"]:
        """One unbiased estimate of the diagonal of the expected Hessian: the Fisher information and the precision of the prior.

        The Fisher information of z in x_ft ~ N_C(0, V_ft) is J^T J with J = g c dv / V dz, whose diagonal is the mean of (J^T r)^2
        over random signs r. The prior is taken as if z_<t were fixed.

        Args:
            signs: +1 or -1, independent.

        Reference: M. Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in Statistics 18(3),
            1989; for the diagonal: C. Bekas, E. Kokiopoulou, Y. Saad, "An estimator for the diagonal of a matrix", 2007.
        """
        with torch.enable_grad():
            z = latents.detach().requires_grad_()
            variance = self.mixture_variance(self.speech(z))
            inside = self.mixture.inside.unsqueeze(-1)
            (projection,) = torch.autograd.grad((variance / variance.detach() * signs * inside).sum(), z)
        prior = self.vae.prior(self.masked(latents), self.condition)
        precision = 1 / prior.variance.detach() if isinstance(prior, Independent) else torch.ones_like(latents)
        return projection.square() + self.prior_weight * precision


def clamped_variance(likelihood: Distribution) -> Tensor:
    """The PSD, at most exp(LARGEST_LOG_VARIANCE)."""
    return likelihood.variance.clamp(max=torch.e**LARGEST_LOG_VARIANCE)


def gradient(energy: Energy, latents: Tensor) -> tuple[Float[Tensor, "*sample recording frame"], Tensor]:
    """The energy of every frame, and the gradient of its sum with respect to the latents."""
    with torch.enable_grad():
        z = latents.detach().requires_grad_()
        per_frame = energy(z)
        (slope,) = torch.autograd.grad(per_frame.sum(), z)
    return per_frame.detach(), slope
