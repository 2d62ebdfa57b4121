"""The energy of latents given all else: minus the log of their posterior, up to a constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent

from audiovae.models import VAE
from audiovae.separation.mixture import Mixture
from audiovae.separation.spatial.spatial import View

LARGEST_LOG_VARIANCE = 21.0  # of speech at unit level: 20 dB above the loudest bin of the training recordings (16.3)

Energy = Callable[[Tensor], Tensor]
"""U(z): latents `[*sample, recording, frame, latent]` to the nats of every frame, `[*sample, recording, frame]`, whose
sum over a recording is -log p(z | x) + constant. Its gradient drives point estimates and Langevin, and its differences
accept or refuse.
"""


class LatentPrior:
    """What is asked of a prior while it explains a mixture: the only place where products may be of bfloat16.

    Args:
        vae: a prior that has a PSD and needs no past x.
        mixture: the recordings; latents are zero in their padding, where nothing may depend on them.
        condition: labels, `[recording, label]`, for a conditional prior.
        mixed_precision: matrix products in bfloat16.
    """

    def __init__(
        self, vae: VAE, mixture: Mixture, condition: Tensor | None = None, mixed_precision: bool = False
    ) -> None:
        self.vae, self.condition = vae, condition
        self._inside, self._device = mixture.inside.unsqueeze(-1), mixture.power.device.type
        self._mixed_precision = mixed_precision

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device, torch.bfloat16, enabled=self._mixed_precision)

    def masked(self, latents: Tensor) -> Tensor:
        """Latents with zeros in the padding."""
        return latents * self._inside

    def encoded(self, power: Float[Tensor, "recording frame freq"]) -> Float[Tensor, "recording frame latent"]:
        """The centre of q(z | x)."""
        with self._autocast():
            return self.masked(self.vae.infer(power, self.condition, mean=True).latents)

    def variance(
        self, latents: Float[Tensor, "*sample recording frame latent"]
    ) -> Float[Tensor, "*sample recording frame freq"]:
        """v_f(z_t): what the decoder says of clean speech at unit level, at most exp(LARGEST_LOG_VARIANCE)."""
        with self._autocast():
            return clamped_variance(self.vae.likelihood(self.masked(latents), self.condition))

    def log_prob(
        self, latents: Float[Tensor, "*sample recording frame latent"]
    ) -> Float[Tensor, "*sample recording frame"]:
        """Log p(z_t | z_<t)."""
        latents = self.masked(latents)
        with self._autocast():
            return self.vae.prior(latents, self.condition).log_prob(latents)

    def precision(
        self, latents: Float[Tensor, "*sample recording frame latent"]
    ) -> Float[Tensor, "*sample recording frame latent"]:
        """Of p(z_t | z_<t), as if z_<t were fixed; 1 where it is no Gaussian."""
        with self._autocast():
            prior = self.vae.prior(self.masked(latents), self.condition)
        return 1 / prior.variance.detach() if isinstance(prior, Independent) else torch.ones_like(latents)


class LatentEnergy:
    """U_t(z) = nll_t(scale v(z)) - prior_weight log p(z_t | z_<t), zero in the padding; see `View.nll`.

    The frames of an STFT overlap (fourfold at a quarter's hop) and its bins leak, so that the sum over all of them
    counts every sample several times; a `prior_weight` above one takes that back.

    Args:
        prior: of the source.
        mixture: the recordings, whose random numbers an E-step draws.
        view: what the source sees of them.
        scale: what its PSD is multiplied by, such as a gain and a colour; positive.
        prior_weight: of the log prior.
    """

    def __init__(
        self,
        prior: LatentPrior,
        mixture: Mixture,
        view: View,
        scale: Float[Tensor, "recording frame freq"],
        prior_weight: float = 1.0,
    ) -> None:
        self.prior, self.mixture, self.view, self.scale, self.prior_weight = prior, mixture, view, scale, prior_weight

    def __call__(
        self, latents: Float[Tensor, "*sample recording frame latent"]
    ) -> Float[Tensor, "*sample recording frame"]:
        misfit = self.view.nll(self.scale * self.prior.variance(latents))
        return (misfit - self.prior_weight * self.prior.log_prob(latents)) * self.mixture.inside

    def slope(
        self, latents: Float[Tensor, "*sample recording frame latent"]
    ) -> Float[Tensor, "*sample recording frame latent"]:
        """The gradient of the energy's sum: that of `gradient`, without the energy and in fewer passes over the
        spectrogram.
        """
        with torch.enable_grad():
            z = latents.detach().requires_grad_()
            speech, log_prior = self.prior.variance(z), self.prior.log_prob(z)
        of_speech = self.view.slope(self.scale * speech.detach()) * self.scale
        of_prior = (-self.prior_weight * self.mixture.inside).to(log_prior.dtype).expand_as(log_prior)
        (slope,) = torch.autograd.grad([speech, log_prior], z, [of_speech, of_prior])
        return slope

    def curvature(
        self, latents: Float[Tensor, "recording frame latent"], signs: Float[Tensor, "recording frame freq"]
    ) -> Float[Tensor, "recording frame latent"]:
        """One unbiased estimate of the diagonal of the expected Hessian: the Fisher information and the precision of
        the prior.

        The Fisher information of z is J' diag(i) J with J = d lambda / d z and i = `View.information`, whose diagonal
        is the mean of (J' r sqrt(i))^2 over random signs r. The prior is taken as if z_<t were fixed.

        Args:
            signs: +1 or -1, independent.

        Reference: M. Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in
            Statistics 18(3), 1989; for the diagonal: C. Bekas, E. Kokiopoulou, Y. Saad, "An estimator for the diagonal
            of a matrix", 2007.
        """
        with torch.enable_grad():
            z = latents.detach().requires_grad_()
            speech = self.prior.variance(z)
        information = self.view.information(self.scale * speech.detach())
        (projection,) = torch.autograd.grad(speech, z, self.scale * (signs * information.sqrt()))
        return projection.square() + self.prior_weight * self.prior.precision(latents)


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
