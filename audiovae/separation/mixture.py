"""Recordings side by side: what inference sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from audiovae.separation.outer_products import outer_products
from audiovae.stft import STFT, power

_UNHEARD = 1e-6


@dataclass(frozen=True)
class Mixture:
    """Recordings of different lengths and numbers of channels at unit level, padded to the largest.

    Attributes:
        spectrogram: x_ft over the level, by the STFT of the separator's front end; zero beyond a recording's end and
            its own channels.
        power: |x_ft|^2, the mean over its channels.
        n_channels: of each recording.
        inside: is this frame one of the recording's own?
        level: what the spectrograms were divided by; 1 for digital silence.
        generators: one for each recording, on its device: its random numbers are its own, whatever stands beside it.
        states: of each recording, the spectrum with which every source ended the block before, `[freq]` at unit level;
            None for a source without one, and for a recording that begins here.
        waves: the same sound over the same level, zero beyond its end; None where it was not given.
        n_samples: of each wave; 0 where none was given.
        heard: does this frequency hold sound? Those 60 dB below the loudest hold what a file's compression or its
            former sample rate left there, and tell nothing of sources in space.
    """

    spectrogram: Complex[Tensor, "recording frame freq channel"]
    power: Float[Tensor, "recording frame freq"]
    n_channels: Sequence[int]
    inside: Bool[Tensor, "recording frame"]
    level: Float[Tensor, " recording"]
    generators: Sequence[torch.Generator]
    states: Sequence[Sequence[Tensor | None] | None]
    waves: Float[Tensor, "recording channel sample"] | None = None
    n_samples: Sequence[int] = ()

    @cached_property
    def heard(self) -> Bool[Tensor, "recording freq"]:
        mean = self.power.sum(1)
        return mean >= _UNHEARD * mean.amax(-1, keepdim=True)

    @cached_property
    def outer(self) -> Float[Tensor, "recording freq square frame"]:
        """The outer product x x' of every bin, see `outer_products`."""
        return outer_products(self.spectrogram.permute(0, 2, 3, 1))

    @cached_property
    def told(self) -> Bool[Tensor, "recording frame freq"]:
        """Is this bin the recording's own, and of a frequency that is heard?"""
        return self.inside.unsqueeze(-1) & self.heard.unsqueeze(1)

    @cached_property
    def share(self) -> Float[Tensor, "recording frame 1"]:
        """Of a frame in a mean over its recording; zero in the padding."""
        inside = self.inside.to(self.power.dtype)
        return (inside / inside.sum(1, keepdim=True)).unsqueeze(-1)

    def common_channels(self) -> int:
        """How many channels the recordings have.

        Raises:
            ValueError: recordings of different numbers of channels.
        """
        if len(set(self.n_channels)) > 1:
            raise ValueError(f"recordings side by side must have equally many channels, got {list(self.n_channels)}")
        return self.n_channels[0]

    @classmethod
    def of(
        cls,
        spectrograms: Sequence[Complex[Tensor, "_ freq _"]],
        levels: Float[Tensor, " recording"],
        seeds: Sequence[int],
        padding: int = 0,
        states: Sequence[Sequence[Tensor | None] | None] | None = None,
        waves: Sequence[Float[Tensor, "_ _"]] | None = None,
    ) -> Mixture:
        """Put recordings side by side.

        Args:
            spectrograms: of each, `[frame, freq, channel]`, as it is.
            levels: of each; 0 for silence.
            seeds: of each one's random numbers.
            padding: frames beyond the end of the longest one, so that a model with context sees the same of every
                recording.
            states: of each, the spectra with which its sources ended the block before, as they are; None where there
                was none.
            waves: of each, `[channel, sample]`, as it is.
        """
        device = spectrograms[0].device
        lengths = torch.tensor([len(x) for x in spectrograms], device=device)
        n_frames = int(lengths.max()) + padding
        level = torch.where(levels > 0, levels, 1.0)
        n_channels = [x.shape[-1] for x in spectrograms]
        spectrogram = spectrograms[0].new_zeros(len(spectrograms), n_frames, spectrograms[0].shape[1], max(n_channels))
        for row, x in zip(spectrogram, spectrograms, strict=True):
            row[: len(x), :, : x.shape[-1]] = x
        scaled = [
            state and [None if spectrum is None else spectrum / divisor.square() for spectrum in state]
            for state, divisor in zip(states or [None] * len(spectrograms), level, strict=True)
        ]
        return cls(
            spectrogram / level[:, None, None, None],
            power(spectrogram).sum(-1) / (level.new_tensor(n_channels) * level.square())[:, None, None],
            n_channels,
            torch.arange(n_frames, device=device) < lengths[:, None],
            level,
            [torch.Generator(device).manual_seed(seed) for seed in seeds],
            scaled,
            None if waves is None else _side_by_side(waves, level),
            [0] * len(spectrograms) if waves is None else [wave.shape[-1] for wave in waves],
        )

    def only(self, where: Sequence[int]) -> Mixture:
        """Some of the recordings."""
        chosen = list(where)
        return replace(
            self,
            spectrogram=self.spectrogram[chosen],
            power=self.power[chosen],
            n_channels=[self.n_channels[i] for i in chosen],
            inside=self.inside[chosen],
            level=self.level[chosen],
            generators=[self.again().generators[i] for i in chosen],
            states=[self.states[i] for i in chosen],
            waves=None if self.waves is None else self.waves[chosen],
            n_samples=[self.n_samples[i] for i in chosen],
        )

    def through(self, stft: STFT) -> Mixture:
        """The same sound through another window, for starts and filters that need one longer than the sources'.

        Raises:
            ValueError: no waves were given.
        """
        if self.waves is None:
            raise ValueError("another window needs the waves of the mixtures, and only spectrograms were given")
        spectrogram = stft(self.waves).movedim(1, -1)
        lengths = torch.tensor([stft.n_frames(n) for n in self.n_samples], device=spectrogram.device)
        inside = torch.arange(spectrogram.shape[1], device=spectrogram.device) < lengths[:, None]
        n_channels = self.level.new_tensor(self.n_channels)[:, None, None]
        spectrogram = spectrogram * inside[..., None, None]  # windows beyond a recording's own may reach back into it
        mean = power(spectrogram).sum(-1) / n_channels
        return replace(self.again(), spectrogram=spectrogram, power=mean, inside=inside)

    def sound(
        self, stft: STFT, images: Complex[Tensor, "source recording frame freq channel"]
    ) -> Float[Tensor, "source recording channel sample"]:
        """The waves of images, each from its recording's own frames alone, as if it had no other beside it.

        Raises:
            ValueError: no waves were given.
        """
        if self.waves is None:
            raise ValueError("sound needs the waves of the mixtures, and only spectrograms were given")
        sound = self.waves.new_zeros(len(images), *self.waves.shape)
        for i, n in enumerate(self.n_samples):
            sound[:, i, :, :n] = stft.inverse(images[:, i, : stft.n_frames(n)].movedim(-1, 1), n)
        return sound

    def again(self) -> Mixture:
        """The same, with its random numbers from their beginning."""
        rewound = [torch.Generator(g.device).manual_seed(g.initial_seed()) for g in self.generators]
        return replace(self, generators=rewound)

    def random(self, width: int, uniform: bool = False) -> Float[Tensor, "recording frame width"]:
        """Standard normal (or uniform) numbers for every frame; zero in the padding."""
        out = self.power.new_zeros(*self.inside.shape, width)
        for row, inside, generator in zip(out, self.inside, self.generators, strict=True):
            n_frames = int(inside.sum())
            draw = torch.rand if uniform else torch.randn
            row[:n_frames] = draw(n_frames, width, generator=generator, device=row.device, dtype=row.dtype)
        return out

    def mean_over_frames(self, values: Float[Tensor, "*more recording frame"]) -> Float[Tensor, "*more recording"]:
        """Mean over each recording's own frames."""
        return torch.where(self.inside, values, 0.0).sum(-1) / self.inside.sum(-1)


def _side_by_side(waves: Sequence[Tensor], level: Tensor) -> Tensor:
    longest = max(wave.shape[-1] for wave in waves)
    out = waves[0].new_zeros(len(waves), max(map(len, waves)), longest)
    for row, wave, divisor in zip(out, waves, level, strict=True):
        row[: len(wave), : wave.shape[-1]] = wave / divisor
    return out
