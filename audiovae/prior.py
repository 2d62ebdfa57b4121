"""AudioVAE: an STFT, a level, a VAE and a sample rate together: what is trained, saved, shared and plugged in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor
from torch.distributions import Distribution

from audiovae.errors import AudiovaeError, LatentError
from audiovae.level import without_rumble
from audiovae.models import VAE, Inference, build
from audiovae.objectives import (
    elbo,
    importance_weighted_bound,
    kl_by_dimension,
    sounding,
)
from audiovae.phase import griffin_lim
from audiovae.settings import LARGEST_RATE, LevelName, settings_from_config, settings_to_config
from audiovae.stft import STFT, Front, power
from audiovae.trainable import Equaliser, Illustration, TrainableVAE
from audiovae.waves import Array, like, tensor_of

Phase = Literal["original", "griffin-lim"]
LatentChoice = Literal["mean", "sample"]

NO_DENSITY = "the model's likelihood is no density of the STFT, so it has no bound in nats"


@dataclass(frozen=True)
class Latents:
    """An encoded wave: with it alone, `AudioVAE.decode` gives the PSD at the wave's own level.

    Attributes:
        inference: the path of the posterior's centres, and the distributions along it.
        level: what the wave was divided by, `[...]`; 0 for digital silence.
        n_samples: length of the wave at the prior's sample rate.
    """

    inference: Inference
    level: Float[Tensor, "*batch"]
    n_samples: int

    @property
    def posterior(self) -> Distribution:
        """q(z | x), batch `[..., frame]`, event `[latent]`: its first factor, where it has several."""
        return self.inference.factors[0].posterior


class AudioVAE(TrainableVAE):
    """A prior of clean audio: a distribution over STFT frames, at any level.

    Every method takes waves `[..., sample]` (channels are a leading dimension) on the prior's device, or NumPy arrays:
    then what has the shape of a wave, of its frames or of its level is an array, too. A wave is divided
    by its level, and what comes back is multiplied by it, so `resynthesize(a * x) == a * resynthesize(x)`. The level is
    that of each wave alone unless it is given: pass one for the channels of a recording, or for a live stream.

    A wave is heard as a file is, see `audiovae.level`: an offset or rumble below 50 Hz that is too loud is turned down
    first, and `resynthesize` puts it back. A wave whose level is given is taken as it is.

    Args:
        stft: the front end.
        vae: the model of its frames.
        sample_rate: in Hz.
        level_rule: how the level is measured: "active", the RMS of active frames, or "peak", the largest absolute
            sample.

    Raises:
        ValueError: STFT and model disagree on the number of frequency bins, the model is one of arrays, or there is no
            such rule.
    """

    def __init__(self, stft: STFT, vae: VAE, sample_rate: int, level_rule: LevelName = "active") -> None:
        super().__init__()
        if vae.settings.data != "sound":
            raise ValueError("a model of arrays takes no waves (data: array); ArrayVAE holds it")
        if stft.n_freqs != vae.n_freqs:
            raise ValueError(f"the STFT gives {stft.n_freqs} frequency bins and the VAE expects {vae.n_freqs}")
        if not isinstance(sample_rate, int) or isinstance(sample_rate, bool):
            raise ValueError(f"sample_rate must be a whole number, got {sample_rate!r}")
        if sample_rate < 1:
            raise ValueError(f"sample_rate must be positive, got {sample_rate}")
        if sample_rate > LARGEST_RATE:
            raise ValueError(f"sample_rate must be at most {LARGEST_RATE} Hz, got {sample_rate}")
        if level_rule not in get_args(LevelName):
            raise ValueError(f"level_rule must be one of {', '.join(get_args(LevelName))}, got {level_rule!r}")
        self.stft = stft
        self.vae = vae
        self.sample_rate = sample_rate
        self.level_rule = level_rule

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "speech-16k",
        device: str | torch.device | None = None,
        revision: str | None = None,
    ) -> AudioVAE:
        """Load a shipped prior by name, a saved one from its folder, or one of the hub, ready for inference.

        Its weights need no gradient (waves and latents may); `fit` trains them all the same, and `requires_grad_()`
        asks for it.

        Args:
            revision: branch, tag or commit of a repository "owner/name" of the hub, which "owner/name@revision" names
                as well.

        Raises:
            ModelError: no such model, or its files are damaged, incomplete or from a newer version.
        """
        return cast(AudioVAE, cls._load(name_or_path, device, revision))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AudioVAE:
        if "stft" not in config:
            raise ValueError("it is a model of arrays: ArrayVAE.from_pretrained loads it")
        kind = config["vae"]["type"]
        settings = settings_from_config(kind, config["vae"]["settings"])
        stft, rate = STFT(**config["stft"]), config["sample_rate"]
        if type(rate) is not int:
            raise TypeError(f"sample_rate must be a whole number of Hz, got {rate!r}")
        return cls(stft, build(kind, stft.n_freqs, settings), rate, config.get("level_rule", "active"))

    def config(self) -> dict[str, Any]:
        return {
            "sample_rate": self.sample_rate,
            **({} if self.level_rule == "active" else {"level_rule": self.level_rule}),  # newer than some saved configs
            "stft": {"n_fft": self.stft.n_fft, "hop_length": self.stft.hop_length, "window": self.stft.window_name},
            "vae": {"type": self.kind, "settings": settings_to_config(self.vae.settings)},
        }

    @property
    def front(self) -> Front:
        return Front(self.stft, self.sample_rate, self.level_rule)

    def measure_level(self, wave: Float[Array, "*batch sample"], channels: bool = False) -> Float[Array, "*batch"]:
        """Level of each wave alone, or the one that the channels of each recording share: see `analyse`."""
        return like(self._heard(wave, None, channels).level, wave)

    def analyse(
        self,
        wave: Float[Tensor | np.ndarray, "*batch sample"],
        level: Tensor | float | None = None,
        channels: bool = False,
    ) -> tuple[Complex[Tensor, "*batch frame freq"], Float[Tensor, "*batch"]]:
        """STFT of wave / level, and the level (measured where none is given; silence is divided by 1), both tensors.

        Where the level is measured, loud rumble is turned down; see the class.

        Args:
            channels: the dimension before the samples is that of a recording's channels. They share one level, that of
                their mean power: which of them is louder, and by how much, stays in the spectrogram.

        Raises:
            ValueError: no sample, one that is NaN or infinite, or `channels` of a wave without that dimension.
        """
        heard = self._heard(wave, level, channels)
        return self.stft(heard.wave / _divisor(heard.level).unsqueeze(-1)), heard.level

    def _heard(
        self, wave: Float[Tensor | np.ndarray, "*batch sample"], level: Tensor | float | None, channels: bool
    ) -> _Heard:
        """The first pass over waves, each alone or all channels of a recording together: see `analyse`."""
        if wave.shape[-1] == 0:
            raise ValueError("a wave needs at least one sample, got shape " + str(list(wave.shape)))
        if channels and wave.ndim < 2:
            raise ValueError(f"channels stand before the samples, and the wave has shape {list(wave.shape)}")
        wave = tensor_of(wave, self.device).to(next(self.vae.parameters()).dtype)
        if level is not None:
            given = torch.as_tensor(level, dtype=wave.dtype, device=wave.device)
            return _Heard(wave, None, given.expand(wave.shape[:-1]))
        together = wave.shape[-2] if channels else 1
        whole = wave.detach().reshape(-1, together, wave.shape[-1]).numpy(force=True)
        heard = [without_rumble(one, self.sample_rate, self.level_rule) for one in whole]
        levels = torch.tensor([one.level for one in heard], dtype=torch.float64).to(wave.device, wave.dtype)
        each = levels.repeat_interleave(together).reshape(wave.shape[:-1])
        if not any(one.excess.any() for one in heard):
            return _Heard(wave, None, each)
        excess = torch.from_numpy(np.stack([one.excess for one in heard])).to(wave).reshape(wave.shape)
        return _Heard(wave - excess, excess, each)

    def encode(
        self,
        wave: Float[Tensor | np.ndarray, "*batch sample"],
        level: Tensor | float | None = None,
        condition: Tensor | None = None,
    ) -> Latents:
        """Infer the posterior of every frame: distributions of tensors, whatever the wave is."""
        spectrogram, level = self.analyse(wave, level)
        return Latents(self.vae.infer(self.vae.observed(spectrogram), condition, mean=True), level, wave.shape[-1])

    def decode(
        self, latents: Latents, choice: LatentChoice = "mean", condition: Tensor | None = None
    ) -> Float[Tensor, "*batch frame freq"]:
        """PSD of the encoded wave at its own level, from the posterior's centre or a sample.

        A sample is drawn from the distributions along the path of the centres: frame by frame, where they follow each
        other.
        """
        check_choice(choice)
        z = latents.inference.latents if choice == "mean" else latents.inference.sample()
        psd = self.psd(z, condition)
        return psd * latents.level[..., None, None].square()

    def resynthesize(
        self,
        wave: Float[Array, "*batch sample"],
        phase: Phase = "original",
        latents: LatentChoice = "mean",
        level: Tensor | float | None = None,
        condition: Tensor | None = None,
        teacher_forcing: bool = False,
    ) -> Float[Array, "*batch sample"]:
        """Encode, decode, and turn the PSD back into a wave of the same length.

        Args:
            phase: "original" takes the phase of the wave itself (this measures the magnitudes alone: an oracle);
                "griffin-lim" estimates it.
            latents: decode the posterior's centre or a sample.
            level: see the class.
            teacher_forcing: show the true past to a model that needs it: the prediction of each frame, no resynthesis
                from latents. Others ignore it.

        Raises:
            ValueError: another phase or choice of latents, or a sample that is NaN or infinite.
        """
        if phase not in ("original", "griffin-lim"):
            raise ValueError(f"phase must be 'original' or 'griffin-lim', got {phase!r}")
        check_choice(latents)
        heard = self._heard(wave, level, channels=False)
        spectrogram, level = self.analyse(heard.wave, heard.level)
        observed = self.vae.observed(spectrogram)
        z = self.vae.infer(observed, condition, mean=latents == "mean").latents
        magnitude = self.psd(z, condition, observed if teacher_forcing and self.vae.needs_past else None).sqrt()
        if phase == "griffin-lim":
            again = griffin_lim(self.stft, magnitude, wave.shape[-1])
        else:
            again = self.stft.inverse(magnitude * torch.sgn(spectrogram), wave.shape[-1])
        again = again * level.unsqueeze(-1)
        return like(again if heard.excess is None else again + heard.excess, wave)

    def log_likelihood(
        self,
        wave: Float[Array, "*batch sample"],
        n_samples: int = 1,
        level: Tensor | float | None = None,
        condition: Tensor | None = None,
    ) -> Float[Array, "*batch frame"]:
        """A lower bound of log p(x_t) for every frame of the wave's STFT, in nats.

        The density is that of the STFT of the wave as it is (scale of `torch.stft`, all bins as circular complex, log
        pi included): dividing by the level adds -2 n_freqs log(level), so scaling a wave by 10 moves it by exactly
        -2 n_freqs log 10. Digital silence is scored at level 1; rumble that is turned down is not scored.

        Args:
            n_samples: 1 for the ELBO, more for the importance-weighted bound.
            level: see the class.

        Raises:
            AudiovaeError: the model's likelihood is no density of the STFT.
            ValueError: a sample is NaN or infinite.
        """
        if not self.vae.is_density:
            raise AudiovaeError(NO_DENSITY)
        spectrogram, level = self.analyse(wave, level)
        observed = self.vae.observed(spectrogram)
        if n_samples == 1:
            bound = elbo(self.vae, observed, condition).bound
        else:
            bound = importance_weighted_bound(self.vae, observed, n_samples, condition)
        return like(bound - 2 * self.stft.n_freqs * _divisor(level).log().unsqueeze(-1), wave)

    def sample(self, n_frames: int, condition: Tensor | None = None) -> Float[Tensor, "frame freq"]:
        """PSD of `n_frames` frames drawn from the prior, at level 1.

        Raises:
            LatentError: each frame follows from the one before, and they grow beyond all numbers.
        """
        if n_frames < 1:
            raise ValueError(f"n_frames must be at least 1, got {n_frames}")
        try:
            latents = self.vae.generate(n_frames, condition)
            psd = self.psd(latents, condition) if torch.isfinite(latents).all() else None
        except RuntimeError as error:
            if "normal expects" not in str(error):  # what torch says of a deviation that is NaN
                raise
            psd = None
        if psd is None or not torch.isfinite(psd).all():
            raise LatentError(
                f"this prior runs away: of {n_frames} frames that it draws, some are beyond all numbers; sample fewer "
                "(--seconds), or train it for longer, or with longer segments (--training.segment_frames)"
            )
        return psd

    def psd(
        self, latents: Float[Tensor, "*batch frame latent"], condition: Tensor | None = None, past: Tensor | None = None
    ) -> Float[Tensor, "*batch frame freq"]:
        """PSD of some latents, at level 1; see `VAE.likelihood`.

        Raises:
            AudiovaeError: the model gives labels, not sound.
        """
        if not self.vae.has_psd:
            raise AudiovaeError(f"{type(self.vae).__name__} predicts labels: it has no PSD")
        return self.vae.likelihood(latents, condition, past).variance

    # Training, see `Trainable`

    def segment_samples(self, n_frames: int) -> int:
        return (n_frames - 1) * self.stft.hop_length + self.stft.n_fft

    def observe(
        self, waves: Float[Tensor, "segment sample"], equaliser: Equaliser | None = None
    ) -> Inexact[Tensor, "segment frame freq"]:
        """Of the frames that lie within the segments, what the model observes: nothing is padded, nothing divided."""
        observed = self.vae.observed(self.stft.frames(waves))
        if equaliser is not None:
            gain = equaliser(self.stft.n_freqs).to(observed.device)
            observed *= gain.sqrt() if self.vae.sees_phase else gain
        dtype = next(self.vae.parameters()).dtype
        return observed.to(dtype.to_complex() if self.vae.sees_phase else dtype)

    def illustrate(self, wave: Float[Tensor, " sample"], condition: Tensor | None) -> Illustration:
        if not self.vae.has_psd:
            return Illustration({}, {}, None)
        if self.vae.longest is not None:
            wave = wave[: (self.vae.longest - 1) * self.stft.hop_length]
        latents = self.encode(wave, condition=condition)
        spectrum = power(self.stft(wave))
        kl = kl_by_dimension(latents.inference, sounding(spectrum)) if self.vae.has_prior else None
        return Illustration(
            {"spectrogram": spectrum, "decoded PSD": self.decode(latents, condition=condition)},
            {"original": wave, "resynthesis": self.resynthesize(wave, condition=condition)},
            kl,
        )


@dataclass(frozen=True)
class _Heard:
    """Waves as a prior hears them, `[..., sample]`; what was taken away of their rumble, if anything; their levels."""

    wave: Tensor
    excess: Tensor | None
    level: Float[Tensor, "*batch"]


def _divisor(level: Tensor) -> Tensor:
    return torch.where(level > 0, level, 1.0)


def check_choice(choice: str) -> None:
    """Raises ValueError for anything but "mean" and "sample"."""
    if choice not in ("mean", "sample"):
        raise ValueError(f"latents must be 'mean' or 'sample', got {choice!r}")
