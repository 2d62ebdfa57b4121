"""The fast method: the encoder looks at what the Wiener filter leaves of the mixture, again and again."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from audiovae.separation.e_step import Draws
from audiovae.separation.energy import LatentEnergy


class FixedPoint:
    """The E-step by the encoder alone: z = the centre of q(z | E|s|^2 / g), with E|s|^2 = W^2 P + W N, W = g v / (g v + N).

    E|s|^2 is the speech's posterior power under the variances of the step before. No gradient is taken, so an iteration costs one pass
    through the encoder and one through the decoder.

    Reference: the idea of M. Pariente, A. Deleforge, E. Vincent, "A statistically principled and computationally efficient approach to
        speech enhancement using variational autoencoders", Interspeech 2019.
    """

    def begin(self, energy: LatentEnergy, latents: Float[Tensor, "recording frame latent"]) -> None:
        self._energy, self._latents = energy, latents

    def draws(self) -> Draws:
        energy = self._energy
        scale = energy.gain.unsqueeze(-1) * energy.colour.unsqueeze(-2)
        speech = scale * energy.speech(self._latents)
        wiener = speech / (speech + energy.noise)
        power = wiener * (wiener * energy.mixture.power + energy.noise) / scale
        inside = energy.mixture.inside.unsqueeze(-1)
        self._latents = energy.masked(energy.vae.infer(power * inside, energy.condition, mean=True).latents)
        return Draws(self._latents.unsqueeze(0))
