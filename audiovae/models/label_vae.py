"""The conditional VAE the other way round: it predicts the label of a sound."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent
from torch.nn import functional

from audiovae.errors import ConditionError, LatentError
from audiovae.models.conditions import Conditions
from audiovae.models.latents import Gaussian, normal_from_outputs, standard_normal
from audiovae.models.vae import EVERYTHING, VAE, Factor, Inference
from audiovae.networks.log_power import front_of
from audiovae.networks.mlp import start_small
from audiovae.networks.temporal import TemporalBlock, reach
from audiovae.settings import LabelVAESettings


class SoftCategorical(Distribution):
    """A categorical distribution scored on labels that may be soft: log_prob(y) = sum_c y_c log p_c."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, log_probs: Float[Tensor, "*batch label"]) -> None:
        self.log_probs = log_probs
        super().__init__(log_probs.shape[:-1], log_probs.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The probabilities."""
        return self.log_probs.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        return (value * self.log_probs).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        drawn = Categorical(logits=self.log_probs, validate_args=False).sample(torch.Size(sample_shape))
        return functional.one_hot(drawn, self.log_probs.shape[-1]).to(self.log_probs.dtype)


class LabelVAE(VAE):
    """p(y, z | x) = prod_t p(y | x, z_t) p(z_t | x) and q(z_t | x, y), y being one label of the sound.

    The condition is what is predicted, so `infer` with it gives q(z | x, y), and without it draws z from p(z | x): all
    that is known before the label is, or with `standard_prior` from N(0, I). With `pool` every frame sees the whole
    sequence, and a sequence's frames are as many draws of one decision. Its likelihood is of labels: a categorical
    distribution, whose `mean` are the probabilities.

    Args:
        n_freqs: frequency bins per frame.
        settings: the sizes, with exactly one label.

    Raises:
        ValueError: a size that makes no network, or not one label.

    Reference: K. Sohn, H. Lee, X. Yan, "Learning structured output representation using deep conditional generative
        models", NeurIPS 2015.
    """

    has_psd = is_density = False

    def __init__(
        self, n_freqs: int, settings: LabelVAESettings = LabelVAESettings(labels={"label": ("no", "yes")})
    ) -> None:
        super().__init__()
        if len(settings.labels) != 1:
            raise ValueError(
                f"a LabelVAE predicts exactly one label, got {list(settings.labels) or 'none'}; name one of the corpus"
            )
        if settings.halvings and not settings.pool:
            raise ValueError(f"halvings must be 0 where labels are per frame (pool: false), got {settings.halvings}")
        self.n_freqs, self.settings = n_freqs, settings
        self.latents, self.latent_dim = Gaussian(settings.latent_dim), settings.latent_dim
        self._pool = settings.pool
        self.context = EVERYTHING if settings.pool else settings.blocks * reach(settings.kernel_size, (1,))
        self.conditions = Conditions(settings.labels)
        self.log_power = front_of(settings.data, "log-power", n_freqs)
        width, y = settings.width, self.conditions.size
        self.to_features = nn.Linear(n_freqs, width)
        blocks = [
            [TemporalBlock(width, settings.kernel_size, dropout=settings.dropout) for _ in range(settings.blocks)]
            for _ in range(1 + settings.halvings)
        ]
        self.stages = nn.ModuleList(nn.ModuleList(stage) for stage in blocks)
        self.summary = nn.Sequential(
            nn.Dropout(settings.dropout),
            nn.Linear((2 if settings.pool else 1) * width, width),
            nn.SiLU(),
            nn.Dropout(settings.dropout),
        )
        self.to_prior = None if settings.standard_prior else nn.Linear(width, 2 * self.latent_dim)
        self.to_posterior = nn.Sequential(nn.Linear(width + y, width), nn.SiLU(), nn.Linear(width, 2 * self.latent_dim))
        self.to_labels = nn.Sequential(nn.Linear(width + self.latent_dim, width), nn.SiLU(), nn.Linear(width, y))
        start_small(*(cast(nn.Linear, network[-1]) for network in (self.to_posterior, self.to_labels)))
        if self.to_prior is not None:
            start_small(self.to_prior)

    def calibrate(self, power: Float[Tensor, "frame freq"]) -> None:
        self.log_power.calibrate(power)

    def infer(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, mean: bool = False
    ) -> Inference:
        features = self._features(power)
        prior = self._prior_of(features, power)
        posterior = prior
        if condition is not None:
            y = self.conditions.per_frame(condition, power)
            posterior = normal_from_outputs(self.to_posterior(torch.cat([features, y], dim=-1)).to(power.dtype))
        return Inference(posterior.mean if mean else posterior.rsample(), (Factor(posterior, prior),))

    def prior(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        if past is None:
            raise ConditionError("p(z | x) of a LabelVAE needs the power of the sound as `past`")
        return self._prior_of(self._features(past), past)

    def _prior_of(
        self, features: Float[Tensor, "*batch frame feature"], power: Float[Tensor, "*batch frame freq"]
    ) -> Independent:
        if self.to_prior is None:
            return standard_normal(power.new_zeros(*power.shape[:-1], self.latent_dim))
        return normal_from_outputs(self.to_prior(features).to(power.dtype))

    def likelihood(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Distribution:
        """p(y | x, z): batch `[..., frame]`, event `[label]`; x is given as `past`."""
        if past is None:
            raise ConditionError("p(y | x, z) of a LabelVAE needs the power of the sound as `past`")
        self.latents.check(latents)
        outputs = self.to_labels(torch.cat([self._features(past), latents], dim=-1))
        return SoftCategorical(torch.log_softmax(outputs.to(latents.dtype), dim=-1))

    def log_likelihood(
        self,
        latents: Float[Tensor, "*batch frame latent"],
        power: Float[Tensor, "*batch frame freq"],
        condition: Tensor | None = None,
    ) -> Float[Tensor, "*batch frame"]:
        """Log p(y | x, z) of the label y = `condition`, x having the power given."""
        label = self.conditions.per_frame(condition, power)
        return cast(Tensor, self.likelihood(latents, past=self.past(power)).log_prob(label))

    def past(self, power: Float[Tensor, "*batch frame freq"]) -> Tensor:
        return power  # p(z | x) and p(y | x, z) see the sound itself

    def mean_path(
        self, power: Float[Tensor, "*batch frame freq"], condition: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch frame latent"], Tensor | None]:
        return self.infer(power, condition, mean=True).latents, None

    def log_psd(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None
    ) -> Float[Tensor, "*batch frame freq"]:
        raise LatentError("a LabelVAE predicts labels: it has no PSD")

    def generate(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame latent"]:
        raise LatentError("a LabelVAE has no latents without a sound; it predicts the label of one")

    @torch.no_grad()
    def predict(
        self, power: Float[Tensor, "*batch frame freq"], n_samples: int = 1
    ) -> Float[Tensor, "*batch frame label"]:
        """p(y | x) by `n_samples` draws z ~ p(z | x); with `pool`, averaged over the frames too, the same in each."""
        draws = [self.likelihood(self.infer(power).latents, past=power).mean for _ in range(n_samples)]
        probabilities = torch.stack(draws).mean(0)
        return probabilities.mean(-2, keepdim=True).expand_as(probabilities) if self._pool else probabilities

    def _features(self, power: Float[Tensor, "*batch frame freq"]) -> Float[Tensor, "*batch frame feature"]:
        n_frames = power.shape[-2]
        hidden = self.to_features(self.log_power(power))
        for i, stage in enumerate(cast(list[nn.ModuleList], self.stages)):
            if i:
                hidden = functional.pad(hidden, (0, 0, 0, hidden.shape[-2] % 2)).unflatten(-2, (-1, 2)).mean(-2)
            for block in stage:
                hidden = block(hidden)
        if not self._pool:
            return cast(Tensor, self.summary(hidden))
        pooled = torch.cat([hidden.mean(-2, keepdim=True), hidden.amax(-2, keepdim=True)], dim=-1)
        return cast(Tensor, self.summary(pooled)).expand(*hidden.shape[:-2], n_frames, -1)
