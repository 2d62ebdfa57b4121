"""What all models of x share: frames in (of sound most see the standardised log power), a likelihood of them out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from jaxtyping import Float, Inexact
from torch import Tensor
from torch.distributions import Independent

from audiovae.errors import LatentError
from audiovae.models.conditions import Conditions
from audiovae.models.latents import LatentFamily
from audiovae.models.observation import DENSITIES, Observation
from audiovae.models.vae import VAE
from audiovae.networks.log_power import front_of
from audiovae.settings import SoundSettings
from audiovae.stft import power_of


class SoundVAE(VAE, ABC):
    """p(x | z) is an `Observation` of what a decoder gives; its subclasses are the networks around the latents.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes.
        latents: the family of all coordinates of the latents.
        labels: names and classes of the labels that condition the model.

    Raises:
        ValueError: a label with less than two classes.

    Attributes:
        cautious: how training starts, see `Observation.calibrate`.
    """

    cautious: bool = False

    def __init__(
        self,
        n_freqs: int,
        settings: SoundSettings,
        latents: LatentFamily,
        labels: Mapping[str, Sequence[str]] = {},
    ) -> None:
        super().__init__()
        self.n_freqs, self.settings = n_freqs, settings
        self.latents, self.latent_dim = latents, latents.dim
        self.conditions = Conditions(labels)
        self.log_power = front_of(settings.data, settings.network_input, n_freqs)
        self.observation = Observation(
            n_freqs, settings.likelihood, settings.data, settings.variance_floor, settings.n_values
        )
        self.is_density = settings.likelihood in DENSITIES

    def calibrate(self, power: Inexact[Tensor, "frame freq"]) -> None:
        power = power_of(power)
        self.log_power.calibrate(power)
        self.observation.calibrate(power, self.cautious)

    @abstractmethod
    def decode(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None, past: Tensor | None
    ) -> Float[Tensor, "*batch frame freq"]:
        """What the decoder says of the spectrum: for densities the log PSD less the constants of `Observation`."""

    def likelihood(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Independent:
        self.latents.check(latents)
        return self.observation(self.decode(latents, condition, past))

    def log_likelihood(
        self,
        latents: Float[Tensor, "*batch frame latent"],
        power: Inexact[Tensor, "*batch frame freq"],
        condition: Tensor | None = None,
    ) -> Float[Tensor, "*batch frame"]:
        likelihood = self.likelihood(latents, condition, self.past(power))
        if self.settings.data == "array":
            return likelihood.log_prob(power)
        return likelihood.base_dist.summed_log_prob_of_power(power_of(power))

    def expected_input(self, output: Float[Tensor, "*batch output"]) -> Float[Tensor, "*batch freq"]:
        """What a network may see in the place of an x that is only predicted: the mean of what it sees of one."""
        likelihood = self.observation(output)
        return likelihood.mean if self.settings.data == "array" else self.log_power.expected(likelihood.variance)

    def log_psd(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None
    ) -> Float[Tensor, "*batch frame freq"]:
        if self.needs_past or self.own_past is not None:
            raise LatentError(
                f"{type(self).__name__} feeds on the sound before, so its PSD has no graph of its own to export"
            )
        return self.observation(self.decode(latents, condition, None)).variance.log()

    def past(self, power: Inexact[Tensor, "*batch frame freq"]) -> Tensor | None:
        return power if self.needs_past or (self.training and self.own_past is not None) else None
