"""Noisy recordings side by side: what inference sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from audiovae.distributions.complex_normal import VARIANCE_FLOOR

_QUANTILE, _QUANTILE_FRAMES = 0.1, 5  # of the power averaged over so many frames: what speech leaves free
_WINDOW_FRAMES, _STRIDE_FRAMES = 256, 64  # four seconds, in which every bin is free of speech at times, a second apart


@dataclass(frozen=True)
class Mixture:
    """Recordings of different lengths at unit level, padded to one length.

    Attributes:
        power: |x_ft|^2 over the squared level, zero beyond a recording's end.
        inside: is this frame one of the recording's own?
        level: what the spectrograms were divided by; 1 for digital silence.
        generators: one for each recording, on its device: its random numbers are its own, whatever stands beside it.
        quiet: the slowly changing variance that a noise model starts with, positive.
    """

    power: Float[Tensor, "recording frame freq"]
    inside: Bool[Tensor, "recording frame"]
    level: Float[Tensor, " recording"]
    generators: Sequence[torch.Generator]
    quiet: Float[Tensor, "recording frame freq"]

    @classmethod
    def of(
        cls, powers: Sequence[Float[Tensor, "_ freq"]], levels: Float[Tensor, " recording"], seeds: Sequence[int], padding: int = 0,
        quiet: Sequence[Tensor | None] | None = None,
    ) -> Mixture:  # fmt: skip
        """Put recordings side by side.

        Args:
            powers: |x_ft|^2 of each, `[frame, freq]`, as it is.
            levels: of each; 0 for silence.
            seeds: of each one's random numbers.
            padding: frames beyond the end of the longest one, so that a model with context sees the same of every recording.
            quiet: the noise's spectrum at the beginning of each, `[freq]`, as it is; estimated where there is none.
        """
        device = powers[0].device
        lengths = torch.tensor([len(power) for power in powers], device=device)
        n_frames = int(lengths.max()) + padding
        padded = powers[0].new_zeros(len(powers), n_frames, powers[0].shape[-1])
        level = torch.where(levels > 0, levels, 1.0)
        for row, power, divisor in zip(padded, powers, level, strict=True):
            row[: len(power)] = power / divisor.square()
        inside = torch.arange(n_frames, device=device) < lengths[:, None]
        track = torch.full_like(padded, VARIANCE_FLOOR)
        for i, (power, given) in enumerate(zip(powers, quiet or [None] * len(powers), strict=True)):
            first = None if given is None else given / level[i].square() + VARIANCE_FLOOR
            track[i, : len(power)] = quiet_track(padded[i, : len(power)], first)
            track[i, len(power) :] = track[i, len(power) - 1]
        return cls(padded, inside, level, [torch.Generator(device).manual_seed(seed) for seed in seeds], track)

    def again(self) -> Mixture:
        """The same, with its random numbers from their beginning."""
        return replace(self, generators=[torch.Generator(g.device).manual_seed(g.initial_seed()) for g in self.generators])

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


def quiet_track(power: Float[Tensor, "frame freq"], first: Float[Tensor, " freq"] | None = None) -> Float[Tensor, "frame freq"]:
    """The quiet spectrum of windows of four seconds, and between their centres along a straight line.

    Args:
        first: the spectrum at the beginning, where that is known.
    """
    n_frames = len(power)
    centres = list(range(0, n_frames + _STRIDE_FRAMES - 1, _STRIDE_FRAMES))
    starts = [max(0, min(centre - _WINDOW_FRAMES // 2, n_frames - _WINDOW_FRAMES)) for centre in centres]
    of_window = {start: quiet_spectrum(power[start : start + _WINDOW_FRAMES]) for start in set(starts)}
    spectra = torch.stack([of_window[start] for start in starts])
    if first is not None:
        spectra[0] = first
    if len(spectra) == 1:
        return spectra.expand(n_frames, -1)
    place = torch.arange(n_frames, device=power.device) / _STRIDE_FRAMES
    before = place.floor().long()
    share = (place - before).unsqueeze(-1).to(power.dtype)
    return torch.lerp(spectra[before], spectra[(before + 1).clamp(max=len(spectra) - 1)], share)


def quiet_spectrum(power: Float[Tensor, "frame freq"]) -> Float[Tensor, " freq"]:
    """The mean power of a recording's noise, from a low quantile over time of the power averaged over a few frames.

    The average of n independent |x|^2 of variance s is s / n times a Gamma(n) variable, whose quantile is divided out;
    neighbouring frames overlap, and count as half.

    Reference: R. Martin, "Noise power spectral density estimation based on optimal smoothing and minimum statistics",
        IEEE Trans. SAP 9(5), 2001 (the idea).
    """
    from scipy.stats import gamma

    reach = _QUANTILE_FRAMES // 2
    padded = functional.pad(power.mT.unsqueeze(1), (reach, reach), mode="replicate")  # [freq, 1, frame]
    smooth = functional.avg_pool1d(padded, _QUANTILE_FRAMES, 1).squeeze(1)
    n = _QUANTILE_FRAMES / 2
    return torch.quantile(smooth, _QUANTILE, dim=-1) / float(gamma.ppf(_QUANTILE, n, scale=1 / n)) + VARIANCE_FLOOR
