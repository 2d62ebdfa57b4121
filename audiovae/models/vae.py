"""The contract of a variational autoencoder on the power spectrogram."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor, nn
from torch.distributions import Distribution

from audiovae.models.conditions import Conditions
from audiovae.models.latents import LatentFamily
from audiovae.settings import ModelSettings
from audiovae.stft import power

EVERYTHING = 2**40  # a context beyond any file


@dataclass(frozen=True)
class Factor:
    """One factor of q(z | x), and what the model expects in its place before it sees x.

    Attributes:
        posterior: q(z_t | ...) along the path, batch `[..., frame]`, event `[latent]`; of a vector of the whole
            sequence batch `[...]`.
        prior: p(z_t | ...) along the path, of the same shape (or one that broadcasts to it); None where there is none.
        per_frame: one distribution for every frame; else one for the whole sequence.
    """

    posterior: Distribution
    prior: Distribution | None
    per_frame: bool = True


@dataclass(frozen=True)
class Inference:
    """What an encoder says of a spectrogram: one path of latents, and the distributions along it.

    Attributes:
        latents: one path z ~ q(z | x), reparameterised, `[..., frame, latent]`; the vector of a whole sequence stands
            in every frame.
        factors: q(z | x) and p(z) in parts, in the order in which they lie in `latents`. At most one is per frame: its
            prior is what `VAE.prior` gives.
    """

    latents: Float[Tensor, "*batch frame latent"]
    factors: tuple[Factor, ...]

    def parts(self) -> list[Tensor]:
        """The latents of each factor, as its distributions have them: `[..., frame, latent]`, or `[..., latent]`."""
        parts = self.latents.split([factor.posterior.event_shape[0] for factor in self.factors], dim=-1)
        return [z if factor.per_frame else z[..., 0, :] for z, factor in zip(parts, self.factors, strict=True)]

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*samples_and_batch frame latent"]:
        """Latents drawn anew, each factor from its posterior along this path."""
        n_frames = self.latents.shape[-2]
        drawn = []
        for factor in self.factors:
            z = factor.posterior.rsample(torch.Size(sample_shape))
            drawn.append(z if factor.per_frame else in_every_frame(z, n_frames))
        return torch.cat(drawn, dim=-1)


def in_every_frame(sequence: Float[Tensor, "*batch latent"], n_frames: int) -> Float[Tensor, "*batch frame latent"]:
    """The latents of the whole sequence, once for each of its frames."""
    return sequence.unsqueeze(-2).expand(*sequence.shape[:-1], n_frames, sequence.shape[-1])


class VAE(nn.Module, ABC):
    """p(x, z) = p(x | z) p(z) with the amortised posterior q(z | x), x being an STFT at unit level, or an array.

    Encoders take the power |x|^2, which is all that a separator has of a source; of arrays (`settings.data`) it is x
    itself that stands wherever `power` is said. Leading dimensions are free: one
    sequence `[frame, freq]` is as good as a batch of them.

    Attributes:
        n_freqs: number of frequency bins.
        latent_dim: width of a frame's latents, those of the whole sequence included.
        settings: the dataclass that the model was built from, which its saved config holds.
        latents: their family.
        conditions: the labels y that condition the model; empty for most.
        has_prior: is there a p(z)? An autoencoder has none.
        has_psd: is the likelihood one of x, whose `variance` is the PSD where x is sound? A predictor of labels has
            none.
        is_density: is the likelihood a density of the complex STFT, so that bounds in nats compare with those of other
            models?
        sees_phase: does the encoder see the complex STFT itself? See `observed`.
        needs_past: does p(x_t | ...) see past x? Such a model cannot be plugged into a separator.
        frames_are_independent: do frames factorise, given x in the posterior and always in prior and likelihood? Their
            importance weights then are per frame, else per sequence.
        factorised_posterior: is q(z | x) a product of factors none of which depends on what another one drew?
        context: how many frames to each side a frame's result may depend on; what lies further away makes no difference
            (or, in a recurrence, next to none). EVERYTHING: a sequence must be seen at once.
        lookahead: frames after its own that a frame's posterior, given x, or its PSD, given z, depends on.
        longest: frames of the longest sequence that the model takes; None: any.
        own_past: share of the frames that see the model's own past predictions while it trains; see `needs_past`.
    """

    n_freqs: int
    latent_dim: int
    settings: ModelSettings
    latents: LatentFamily
    conditions: Conditions
    has_prior: bool = True
    has_psd: bool = True
    is_density: bool = True
    sees_phase: bool = False
    needs_past: bool = False
    frames_are_independent: bool = False
    factorised_posterior: bool = True
    context: int = 0
    lookahead: int = 0
    longest: int | None = None
    own_past: float | None = None

    def observed(self, spectrogram: Complex[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """What `infer`, `log_likelihood` and bounds take of an STFT: its power, or itself where the encoder sees the
        phase.
        """
        return spectrogram if self.sees_phase else power(spectrogram)

    @abstractmethod
    def calibrate(self, power: Float[Tensor, "frame freq"]) -> None:
        """Set constants that come from data, such as the mean spectrum, before training."""

    @abstractmethod
    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        """Draw one path of latents given the power of every frame.

        Args:
            condition: labels, `[..., label]` or `[..., frame, label]`, see `Conditions`.
            mean: follow the centre of every posterior instead of a sample of it.
        """

    @abstractmethod
    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        """p(z_t | z_{<t}) along a path of latents: batch `[..., frame]`, event `[latent]`.

        Args:
            past: as of `likelihood`; for some the prior sees it too.

        Raises:
            LatentError: a model without a prior.
        """

    @abstractmethod
    def likelihood(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        """p(x | z): batch `[..., frame]`, event `[freq]`; its `variance` is the PSD.

        Args:
            past: power of the true x, of which frame t sees what is before t: teacher forcing. Without it a model that
                needs the past runs freely, on its own predictions. Others ignore it.
        """

    @abstractmethod
    def log_likelihood(
        self,
        latents: Float[Tensor, "*batch frame latent"],
        power: Float[Tensor, "*batch frame freq"],
        condition: Tensor | None = None,
    ) -> Float[Tensor, "*batch frame"]:
        """Log p(x_t | z) of an x with |x|^2 = `power`, or of the label `condition` where that is what is predicted."""

    @abstractmethod
    def past(self, power: Float[Tensor, "*batch frame freq"]) -> Tensor | None:
        """What prior and likelihood may see of the true x: None where they see latents alone."""

    @abstractmethod
    def mean_path(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch frame latent"], Tensor | None]:
        """The latents of `infer(power, mean=True)`, tensors in and out: what is exported as a graph.

        Args:
            state: of a causal encoder with context, what it gave back with the frames before; None at the start.

        Returns:
            the latents, and the state from which the next frames go on; None where frames are independent or the future
            is needed.

        Raises:
            LatentError: a model that draws its latents one after another.
        """

    @abstractmethod
    def log_psd(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None
    ) -> Float[Tensor, "*batch frame freq"]:
        """The logarithm of `likelihood(latents).variance`, tensors in and out, the latents unchecked: see `mean_path`.

        Raises:
            LatentError: a model that feeds on the sound before, or that has no PSD.
        """

    @abstractmethod
    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        """Ancestral sampling: latents of `n_frames` frames from p(z).

        Raises:
            LatentError: a model without a prior.
        """
