"""What tests of separation share: mixtures of sound and of numbers, priors that are alive, speech and noise."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import RATE, build_prior, speech_like
from torch import Tensor

from audiovae import STFT, AudioVAE
from audiovae.corpora.mixtures import RoomBank
from audiovae.models import MODELS, DynamicVAE
from audiovae.separation import (
    NMF,
    DeepSettings,
    DeepSource,
    EMSettings,
    EStep,
    FreePosterior,
    LatentEnergy,
    LatentPrior,
    MarkovChain,
    Mixture,
    PointEstimate,
    Separator,
    SingleChannel,
    SlowBands,
    Stationary,
    quiet_start,
)
from audiovae.separation.sources.source import MakeSource
from audiovae.settings import DynamicVAESettings
from audiovae.stft import power

E_STEPS: dict[str, Callable[[], EStep]] = {
    "point estimate": PointEstimate,
    "free posterior": FreePosterior,
    "metropolis": partial(MarkovChain, n_burn=3, n_keep=4),
    "mala": partial(MarkovChain, "mala", n_burn=3, n_keep=4, step=0.01),
}
NOISES: dict[str, Callable[..., Any]] = {
    "slow": partial(SlowBands, n_steps=2),
    "nmf": partial(NMF, n_steps=2),
    "stationary": partial(Stationary, n_steps=2),
}

# Sound ---------------------------------------------------------------------------------------------------------------


def white(n_samples: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32))


def noisy(seconds: float, seed: int = 0, snr_db: float = 5.0) -> Tensor:
    """Bursts of tones in white noise."""
    clean = torch.from_numpy(speech_like(seconds, 110 + 17 * seed, seed))
    noise = white(len(clean), seed)
    return clean + noise * clean.square().mean().sqrt() / noise.square().mean().sqrt() * 10 ** (-snr_db / 20)


def reverberant(seconds: float, n_channels: int = 4, n_sources: int = 2, seed: int = 0) -> Tensor:
    """Voices through decaying noise as rooms, and a little noise at every microphone; `[channel, sample]`, float64."""
    generator = np.random.default_rng(seed)
    n_samples = round(seconds * RATE)
    mixture = 0.003 * generator.standard_normal((n_channels, n_samples))
    for n in range(n_sources):
        voice = speech_like(seconds, 95 * 1.4**n, seed + n)
        decay = np.exp(-np.arange(800) / 150)
        for channel in mixture:
            channel += np.convolve(voice, decay * generator.standard_normal(800))[:n_samples]
    return torch.from_numpy(mixture)


def bank_of(folder: Path, responses: np.ndarray | None = None, rate: int = RATE, seed: int = 0) -> RoomBank:
    """A bank of rooms of decaying noise, ten of them with two places and three microphones, or of given responses."""
    if responses is None:
        decay = np.exp(-np.arange(200) / 40)
        responses = (decay * np.random.default_rng(seed).standard_normal((10, 2, 3, 200))).astype(np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "responses.npy", responses)
    (folder / "bank.json").write_text(json.dumps({"sample_rate": rate}))
    return RoomBank(folder)


# Priors --------------------------------------------------------------------------------------------------------------


def make_alive(prior: AudioVAE) -> AudioVAE:
    """Its spectra depend on its latents, and these on the sound, as in no untrained prior."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.vae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return prior


def frame_prior(**settings: Any) -> AudioVAE:
    """Every frame by itself."""
    return make_alive(build_prior(**settings))


def dynamic_prior() -> AudioVAE:
    """With context in encoder, decoder and prior; short frames."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(n_fft=256, hop_length=64)
        sizes = DynamicVAESettings(latent_dim=4, width=16, dilations=(1, 2), prior_width=8, prior_dilations=(1,))
        vae = DynamicVAE(stft.n_freqs, sizes)
        vae.calibrate(power(stft(torch.randn(2 * RATE))))
        return make_alive(AudioVAE(stft, vae, RATE).eval())


SIZES: dict[str, dict[str, Any]] = {
    "FrameVAE": {"hidden": (8,)}, "Autoencoder": {"hidden": (8,)}, "ContextVAE": {"width": 8, "dilations": (1,)},
    "DynamicVAE": {"width": 8, "dilations": (1,), "prior_width": 8, "prior_dilations": (1,)},
    "SequenceVAE": {"n_frames": 64, "width": 8, "hidden": 8, "blocks": 1}, "LabelVAE": {"width": 8, "blocks": 1},
    "RVAE": {"width": 8}, "DKF": {"width": 8, "features": 8, "emission": (8,)}, "STORN": {"width": 8, "features": 8},
    "VRNN": {"width": 8, "features": 8}, "SRNN": {"width": 8, "features": 8},
    "DSAE": {"sequence_dim": 4, "width": 8, "emission": (8,)},
}  # fmt: skip


def untrained(name: str, **settings: Any) -> AudioVAE:
    """A small prior of any class."""
    if name == "LabelVAE":
        settings["labels"] = {"digit": ("0", "1")}
    model, kind = MODELS[name]
    sizes = {**({} if name == "Autoencoder" else {"latent_dim": 4}), **SIZES[name], **settings}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(n_fft=256, hop_length=64)
        vae = model(stft.n_freqs, kind(**sizes))
        vae.calibrate(power(stft(torch.randn(RATE))))
        return AudioVAE(stft, vae, RATE).eval()


# Inference -----------------------------------------------------------------------------------------------------------


def speech_and_noise(
    prior: AudioVAE,
    e_step: Callable[[], EStep],
    noise: MakeSource = NOISES["slow"],
    deep: DeepSettings = DeepSettings(),
    condition: Tensor | None = None,
    **em: Any,
) -> Separator:
    """A deep source of speech and a noise, on one microphone."""
    settings = EMSettings(**{"padding": min(prior.vae.lookahead, 64), **em})
    speech = DeepSource.of(prior, e_step, deep, condition)
    return Separator(prior.front, [speech, noise], [quiet_start], settings=settings)


def mixture_of(powers: Sequence[Tensor], seeds: Sequence[int] | None = None, padding: int = 0) -> Mixture:
    """Of one channel, at unit level, from |x|^2 `[frame, freq]`."""
    spectrograms = [torch.complex(p.sqrt(), torch.zeros_like(p)).unsqueeze(-1) for p in powers]
    return Mixture.of(spectrograms, torch.ones(len(powers), dtype=powers[0].dtype), seeds or [0] * len(powers), padding)


def random_power(n_frames: int, n_freqs: int, seed: int = 0) -> Tensor:
    """Of bursts of 10 frames above a floor that tilts over frequency."""
    generator = np.random.default_rng(seed)
    mean = np.linspace(3, 0.3, n_freqs) * (1 + 20 * (np.arange(n_frames) // 10 % 2))[:, None]
    return torch.from_numpy(mean * generator.exponential(size=(n_frames, n_freqs)))


def random_spectrogram(n_frames: int, n_freqs: int, n_channels: int, seed: int = 0) -> Tensor:
    """Two sources that come and go, each by its own way to the microphones, and noise: `[frame, freq, channel]`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.complex128)

    sources = normal(n_frames, n_freqs, 2) * 3 * torch.rand(n_frames, 1, 2, generator=generator).double().square()
    return torch.einsum("fcn,tfn->tfc", normal(n_freqs, n_channels, 2), sources) + 0.1 * normal(
        n_frames, n_freqs, n_channels
    )


def energy_of(prior: AudioVAE, coloured: bool = False) -> tuple[LatentEnergy, Tensor, Tensor, list[int]]:
    """Of two recordings with padding, a gain and a noise that are not one: energy, noise, latents, lengths."""
    vae = copy.deepcopy(prior.vae).double()
    lengths = [9, 6]
    mixture = mixture_of([100 * random_power(n, vae.n_freqs, seed) for seed, n in enumerate(lengths)], padding=3)
    generator = torch.Generator().manual_seed(0)
    shape = mixture.inside.shape

    def positive(*size: int) -> Tensor:
        return 0.5 + torch.rand(*size, generator=generator, dtype=torch.float64)

    scale = positive(*shape).unsqueeze(-1).expand(*shape, vae.n_freqs)
    noise = 10 * positive(*shape, vae.n_freqs)
    if coloured:
        scale = scale * positive(shape[0], 1, vae.n_freqs)
    view = SingleChannel(mixture).view([noise.unsqueeze(0), noise.unsqueeze(0)], 0)
    energy = LatentEnergy(LatentPrior(vae, mixture), mixture, view, scale, prior_weight=2.5)
    latents = torch.randn(2, *shape, vae.latent_dim, generator=generator, dtype=torch.float64)
    return energy, noise, latents, lengths
