"""Families of latents: how an encoder's output becomes q(z | x), what p(z) is, and what a decoder sees of z."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional

from audiovae.distributions import LogDirichlet, Point, PowerSpherical, SphereUniform, VonMisesFisher
from audiovae.errors import LatentError
from audiovae.networks.scales import SCALES
from audiovae.settings import LatentName, LatentSettings, ScaleName

SMALLEST_CONCENTRATION, LARGEST_CONCENTRATION = 1e-3, 1e5


class LatentFamily(ABC):
    """A family of distributions over the latents of a frame.

    Args:
        dim: latent dimensions.

    Raises:
        ValueError: too few dimensions for the family.

    Attributes:
        n_outputs: numbers per frame that an encoder gives.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]  # names of a posterior's tensors, in files too

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"latent_dim must be positive, got {dim}")
        self.dim = dim
        self.n_outputs = 2 * dim

    @abstractmethod
    def from_outputs(self, outputs: Float[Tensor, "*batch output"]) -> Distribution:
        """q(z | x) from the outputs of an encoder, whatever they are: bounded, never NaN."""

    @abstractmethod
    def build(self, **parameters: Tensor) -> Distribution:
        """A posterior from its `parameters`, as of `tensors`.

        Raises:
            ValueError: they are none, such as a negative scale.
        """

    @abstractmethod
    def prior(self, like: Float[Tensor, "*batch latent"]) -> Distribution:
        """p(z), independent over frames: of the batch shape, type and device of some latents.

        Raises:
            LatentError: there is none.
        """

    @abstractmethod
    def centre(self, posterior: Distribution) -> Float[Tensor, "*batch latent"]:
        """The point that stands for a posterior: its mean, moved into the support where that lies outside."""

    @abstractmethod
    def features(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """What a decoder sees: the latents, in a form and at a scale that suit a network."""

    @abstractmethod
    def fault(self, latents: Float[Tensor, "*batch latent"]) -> str | None:
        """Why latents of the right width cannot be of this family, if they cannot."""

    def check(self, latents: Float[Tensor, "*batch latent"]) -> None:
        """Raises LatentError where latents cannot be of this family."""
        if latents.shape[-1] != self.dim:
            raise LatentError(f"the decoder expects {self.dim} latent dimensions, got {latents.shape[-1]}")
        if fault := self.fault(latents.detach()):
            raise LatentError(f"the decoder expects {self.name} latents, {fault}")

    def tensors(self, posterior: Distribution) -> dict[str, Tensor]:
        """The parameters of a posterior by name."""
        inner = posterior.base_dist if isinstance(posterior, Independent) else posterior
        return {name: getattr(inner, name) for name in self.parameters}


def standard_normal(like: Float[Tensor, "*batch latent"]) -> Independent:
    """N(0, I) of the batch shape of some latents."""
    zeros = like.new_zeros(like.shape[-1])
    return Independent(Normal(zeros, torch.ones_like(zeros), validate_args=False), 1, validate_args=False).expand(
        like.shape[:-1]
    )


def normal(loc: Float[Tensor, "*batch latent"], scale: Float[Tensor, "*batch latent"]) -> Independent:
    """N(loc, diag(scale^2))."""
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def normal_from_outputs(outputs: Float[Tensor, "*batch output"], scale: ScaleName = "bounded") -> Independent:
    """A Gaussian whose scale is bounded, where exp would overflow in a bad step; or one of the articles' scales.

    Those are kept from 1e-6 to e^30: far outside of what they have in a working model.
    """
    loc, spread = outputs.chunk(2, dim=-1)
    return normal(loc, SCALES[scale](spread))


class _Euclidean(LatentFamily):
    """Vectors of any numbers."""

    def centre(self, posterior: Distribution) -> Float[Tensor, "*batch latent"]:
        return posterior.mean

    def features(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        return latents

    def fault(self, latents: Float[Tensor, "*batch latent"]) -> str | None:
        return None


class Gaussian(_Euclidean):
    """q = N(loc, diag(scale^2)), p = N(0, I)."""

    name = "gaussian"
    parameters = ("loc", "scale")

    def __init__(self, dim: int, posterior_scale: ScaleName = "bounded") -> None:
        super().__init__(dim)
        self._posterior_scale = posterior_scale

    def from_outputs(self, outputs: Float[Tensor, "*batch output"]) -> Distribution:
        return normal_from_outputs(outputs, self._posterior_scale)

    def build(self, **parameters: Tensor) -> Distribution:
        return Independent(Normal(parameters["loc"], parameters["scale"], validate_args=True), 1)

    def prior(self, like: Float[Tensor, "*batch latent"]) -> Distribution:
        return standard_normal(like)


class PointFamily(_Euclidean):
    """q is a point and there is no prior: an autoencoder's code, which costs no nats."""

    name = "point"
    parameters = ("location",)

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.n_outputs = dim

    def from_outputs(self, outputs: Float[Tensor, "*batch output"]) -> Distribution:
        return Point(outputs, validate_args=False)

    def build(self, **parameters: Tensor) -> Distribution:
        return Point(parameters["location"])

    def prior(self, like: Float[Tensor, "*batch latent"]) -> Distribution:
        raise LatentError("an autoencoder has no prior to draw from; train a VAE for that")


class _Sphere(LatentFamily):
    """Directions: loc = h / |h|, concentration = 1 + softplus of one more output, so as not to collapse at first."""

    parameters = ("loc", "concentration")
    distribution: ClassVar[type[VonMisesFisher | PowerSpherical]]

    def __init__(self, dim: int) -> None:
        if dim < 2:
            raise ValueError(f"latents on a sphere need latent_dim of at least 2, got {dim}")
        super().__init__(dim)
        self.n_outputs = dim + 1

    def from_outputs(self, outputs: Float[Tensor, "*batch output"]) -> Distribution:
        direction = outputs[..., :-1]
        pole = functional.one_hot(torch.zeros((), dtype=torch.long, device=outputs.device), self.dim).to(outputs.dtype)
        direction = torch.where(
            direction.norm(dim=-1, keepdim=True) > 1e-6, direction, pole
        )  # no direction in a zero vector
        concentration = (1 + functional.softplus(outputs[..., -1])).clamp(max=LARGEST_CONCENTRATION)
        return self.distribution(functional.normalize(direction, dim=-1), concentration, validate_args=False)

    def build(self, **parameters: Tensor) -> Distribution:
        return self.distribution(parameters["loc"], parameters["concentration"])

    def prior(self, like: Float[Tensor, "*batch latent"]) -> Distribution:
        return SphereUniform(self.dim, like.shape[:-1], dtype=like.dtype, device=like.device)

    def centre(self, posterior: Distribution) -> Float[Tensor, "*batch latent"]:
        return cast(VonMisesFisher, posterior).loc  # the mean lies inside the sphere

    def features(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        return latents * self.dim**0.5

    def fault(self, latents: Float[Tensor, "*batch latent"]) -> str | None:
        off = float((latents.norm(dim=-1) - 1).abs().max()) if latents.numel() else 0.0
        return None if off < 1e-3 else f"of length 1, got a length that is {off:.3g} off"


class VonMisesFisherFamily(_Sphere):
    """q = vMF(loc, concentration), p uniform on the sphere."""

    name = "von-mises-fisher"
    distribution = VonMisesFisher


class PowerSphericalFamily(_Sphere):
    """q = PowerSpherical(loc, concentration), p uniform on the sphere."""

    name = "power-spherical"
    distribution = PowerSpherical


class DirichletFamily(LatentFamily):
    """q = Dir(softplus(h) + floor) and p = Dir(a, ..., a) over log z, which does not underflow where z does."""

    name = "dirichlet"
    parameters = ("concentration",)

    def __init__(self, dim: int, prior_concentration: float) -> None:
        if dim < 2:
            raise ValueError(f"Dirichlet latents need latent_dim of at least 2, got {dim}")
        if not SMALLEST_CONCENTRATION <= prior_concentration <= LARGEST_CONCENTRATION:
            raise ValueError(
                f"dirichlet_concentration must be from {SMALLEST_CONCENTRATION} to {LARGEST_CONCENTRATION:g}, got "
                f"{prior_concentration}"
            )
        super().__init__(dim)
        self.n_outputs = dim
        self._prior_concentration = prior_concentration

    def from_outputs(self, outputs: Float[Tensor, "*batch output"]) -> Distribution:
        concentration = functional.softplus(outputs) + SMALLEST_CONCENTRATION
        return LogDirichlet(concentration.clamp(max=LARGEST_CONCENTRATION), validate_args=False)

    def build(self, **parameters: Tensor) -> Distribution:
        return LogDirichlet(parameters["concentration"])

    def prior(self, like: Float[Tensor, "*batch latent"]) -> Distribution:
        return LogDirichlet(torch.full_like(like, self._prior_concentration), validate_args=False)

    def centre(self, posterior: Distribution) -> Float[Tensor, "*batch latent"]:
        return cast(LogDirichlet, posterior).mean_probabilities.log()

    def features(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        return latents.exp() * self.dim

    def fault(self, latents: Float[Tensor, "*batch latent"]) -> str | None:
        off = float(latents.logsumexp(-1).abs().max()) if latents.numel() else 0.0
        return None if off < 1e-3 else f"logarithms of numbers that sum to 1, got a sum of exp({off:.3g})"


LATENTS: dict[LatentName, Callable[[LatentSettings], LatentFamily]] = {
    "gaussian": lambda settings: Gaussian(settings.latent_dim, settings.posterior_scale),
    "von-mises-fisher": lambda settings: VonMisesFisherFamily(settings.latent_dim),
    "power-spherical": lambda settings: PowerSphericalFamily(settings.latent_dim),
    "dirichlet": lambda settings: DirichletFamily(settings.latent_dim, settings.dirichlet_concentration),
}


def latent_family(settings: LatentSettings) -> LatentFamily:
    """The family that some settings name.

    Raises:
        ValueError: an unknown one, too few dimensions for it, or a `posterior_scale` for one that has none.
    """
    if settings.latent not in LATENTS:
        raise ValueError(f"latent must be one of {', '.join(LATENTS)}, got {settings.latent!r}")
    if settings.latent != "gaussian" and settings.posterior_scale != "bounded":
        raise ValueError(f"posterior_scale is of gaussian latents; {settings.latent} ones have no scale")
    return LATENTS[settings.latent](settings)
