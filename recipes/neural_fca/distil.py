"""The first half of `distilled`: an encoder of mixtures learns the latents that the method `fast` finds.

    OMP_NUM_THREADS=1 python recipes/neural_fca/distil.py PACKED BANK TAUGHT [--steps 300]
    OMP_NUM_THREADS=1 audiovae train PACKED --rooms BANK --init TAUGHT -o MODEL \\
        --config recipes/neural_fca/distilled.yaml

It hears the microphones alone, as of `frozen`. Of every mixture that is drawn the offline separator finds latents
first, five times as long as a step takes else; the second command goes on with the ELBO. A run that was stopped goes on
where it was.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from audiovae import AudioVAE, AudiovaeError, MixtureCorpus, PackedCorpus, RoomBank, fit
from audiovae.models.latents import normal
from audiovae.separation import NeuralFastFCA, separator
from audiovae.settings import NeuralSettings, TrainingSettings

PRIOR, DEVIATION = "speech-16k-rooms", 0.5


class Taught(NeuralFastFCA):
    """Its loss is KL(q(z_n | x) || N(z, 0.5^2)), the sum over sources, where z is what another separator finds,
    whichever source of it is which.
    """

    def __init__(self, prior: AudioVAE, settings: NeuralSettings) -> None:
        super().__init__(prior, settings)
        self._teacher = separator(settings.n_sources, "fast", prior)
        self._teacher.finish = None  # latents are all that is asked for

    @torch.no_grad()
    def observe(self, waves: Tensor, equaliser: Any = None) -> Tensor:
        """The microphones, and beyond them the latents of each source in the first bins."""
        heard = super().observe(waves, equaliser)
        found = self._teacher(list(self.prior.stft(waves).movedim(1, -1)), waves=list(waves))
        n = self.settings.n_sources
        latents = torch.stack([torch.stack([source.latents[0] for source in one.sources[:n]], -1) for one in found])
        told = heard.new_zeros(*heard.shape[:-1], n)
        told[:, :, : latents.shape[2]] = latents
        return torch.cat([heard, told], -1)

    def _read(self, observed: Tensor) -> tuple[Any, Tensor]:
        return super()._read(observed[..., : -self.settings.n_sources])

    def loss(self, observed: Tensor, condition: Tensor | None, objective: Any) -> Tensor:
        n, n_dims = self.settings.n_sources, self.prior.vae.latent_dim
        told = observed[:, :, :n_dims, -n:].real.movedim(-1, 0)
        mixture, start = self._read(observed)
        found = self.infer(mixture, start)
        goals = [
            normal(told[list(order)], torch.full_like(told, DEVIATION)) for order in itertools.permutations(range(n))
        ]
        kl = torch.stack([kl_divergence(found.posterior, goal).mean(-1).sum(0) for goal in goals]).amin(0).mean()
        return torch.stack([kl, kl])


def tell(now: Any) -> None:
    bound = "" if now.elbo is None else f"  validation NLL + KL of the mixture {-now.elbo:.1f}"
    print(f"step {now.step} of {now.steps}: KL {now.loss:.2f}{bound}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = jsonargparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("packed", type=Path, help="corpus as prepared by: audiovae prepare")
    parser.add_argument("bank", type=Path, help="rooms, by bank.py")
    parser.add_argument("output", type=Path, help="folder of the model")
    parser.add_argument("--steps", type=jsonargparse.typing.PositiveInt, default=300)
    options = parser.parse_args(arguments)
    settings = TrainingSettings(
        steps=options.steps, batch_frames=256, segment_frames=64, learning_rate=0.001, clip_norm=200.0, averaging=0.99,
        validate_every=100, log_every=10,
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    try:
        corpus = MixtureCorpus(PackedCorpus(options.packed), RoomBank(options.bank))
        model = Taught(AudioVAE.from_pretrained(PRIOR), NeuralSettings(start="none", encoder="own"))
        fit(model, corpus, corpus, options.output, settings, progress=tell)
    except AudiovaeError as error:
        sys.exit(f"distil.py: error: {error}")


if __name__ == "__main__":
    main()
