"""Torch modules whose `forward` is what an exported file computes: no complex numbers, and lengths are free."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from audiovae.level import ACTIVE_RANGE_DB, LOWEST_HZ, RUMBLE_DB
from audiovae.models import VAE
from audiovae.prior import AudioVAE
from audiovae.stft import STFT


class DFT(nn.Module):
    """The DFT of real frames, and its inverse, as matrix products.

    With N = N1 N2, n = N2 n1 + n2 and k = k1 + N1 k2 it is a DFT of length N1 over n1, a product with
    exp(-2 pi i k1 n2 / N), and a DFT of length N2 over n2: two small matrices in the place of one of N rows.

    Args:
        n_fft: N.

    Reference: J. Cooley, J. Tukey, "An algorithm for the machine calculation of complex Fourier series", Mathematics of
        Computation 19, 1965.
    """

    first: Tensor
    last: Tensor
    second: Tensor
    second_inverse: Tensor
    twiddle_cos: Tensor
    twiddle_sin: Tensor
    weight: Tensor

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        n1 = max(n for n in range(1, math.isqrt(n_fft) + 1) if n_fft % n == 0)
        n2 = n_fft // n1
        self.n_freqs, self.sizes = n_fft // 2 + 1, (n1, n2)
        self.n_columns = -(-self.n_freqs // n1)  # of k2, that hold the frequencies up to Nyquist
        cos1, sin1 = _cos_sin(n1, n1, n1)
        cos2, sin2 = _cos_sin(n2, self.n_columns, n2)
        cos, sin = _cos_sin(n1, n2, n_fft)
        weight = torch.full((self.n_freqs,), 2.0 / n_fft)  # of a frequency and its mirror image
        weight[0] = 1 / n_fft
        if n_fft % 2 == 0:
            weight[-1] = 1 / n_fft
        buffers = {
            "first": torch.cat([cos1, -sin1]),
            "second": torch.cat([torch.cat([cos2, -sin2], 1), torch.cat([sin2, cos2], 1)]),
            "second_inverse": torch.cat([torch.cat([cos2, sin2], 0), torch.cat([-sin2, cos2], 0)], 1).T,
            "last": torch.cat([cos1, -sin1], 1),
            "twiddle_cos": cos,
            "twiddle_sin": sin,
            "weight": weight,
        }
        for name, values in buffers.items():
            self.register_buffer(name, values.float().contiguous(), persistent=False)

    def forward(self, frames: Float[Tensor, "*batch sample"]) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of the frequencies up to Nyquist, `[..., freq]`."""
        real, imag = (self.first @ frames.unflatten(-1, self.sizes)).chunk(2, dim=-2)
        cos, sin = self.twiddle_cos, self.twiddle_sin
        turned = torch.cat([real * cos + imag * sin, imag * cos - real * sin], dim=-1)
        parts = (turned @ self.second).chunk(2, dim=-1)
        real, imag = (part.transpose(-1, -2).flatten(-2)[..., : self.n_freqs] for part in parts)
        return real, imag

    def inverse(
        self, real: Float[Tensor, "*batch freq"], imag: Float[Tensor, "*batch freq"]
    ) -> Float[Tensor, "*batch sample"]:
        """The real frames of a spectrum."""
        n1, n_columns = self.sizes[0], self.n_columns
        missing = n1 * n_columns - self.n_freqs
        padded = (functional.pad(part * self.weight, (0, missing)) for part in (real, imag))
        columns = torch.cat([part.unflatten(-1, (n_columns, n1)).transpose(-1, -2) for part in padded], dim=-1)
        real, imag = (columns @ self.second_inverse).chunk(2, dim=-1)
        cos, sin = self.twiddle_cos, self.twiddle_sin
        turned = torch.cat([real * cos - imag * sin, real * sin + imag * cos], dim=-2)
        return (self.last @ turned).flatten(-2)


def _cos_sin(n_rows: int, n_columns: int, period: int) -> tuple[Tensor, Tensor]:
    """Of 2 pi i k / period, in double precision."""
    products = torch.outer(torch.arange(n_rows), torch.arange(n_columns)) % period
    return tuple(function(products.double() * (2 * math.pi / period)) for function in (torch.cos, torch.sin))  # type: ignore[return-value]


class ShortTime(nn.Module):
    """`STFT` and its inverse in real numbers."""

    def __init__(self, stft: STFT) -> None:
        super().__init__()
        self.dft, self.window = DFT(stft.n_fft), nn.Buffer(stft.window.clone(), persistent=False)
        self.n_fft, self.hop_length = stft.n_fft, stft.hop_length

    def forward(self, wave: Float[Tensor, "batch sample"]) -> tuple[Tensor, Tensor]:
        """Real and imaginary part, `[batch, frame, freq]`."""
        n_fft, hop = self.n_fft, self.hop_length
        n_frames = 1 + (wave.shape[-1] + hop - 1) // hop
        padded = functional.pad(wave, (n_fft // 2, n_fft + hop))
        places = hop * torch.arange(n_frames).unsqueeze(-1) + torch.arange(n_fft)
        real, imag = self.dft(padded.index_select(1, places.flatten()).unflatten(1, (n_frames, n_fft)) * self.window)
        return real, imag

    def inverse(self, real: Tensor, imag: Tensor, n_samples: int | torch.SymInt) -> Float[Tensor, "batch _"]:
        """The wave whose STFT is nearest."""
        added = self._overlap_add(self.dft.inverse(real, imag) * self.window)
        envelope = self._overlap_add(self.window.square().expand(real.shape[-2], self.n_fft))
        start = self.n_fft // 2
        return added[..., start : start + n_samples] / envelope[start : start + n_samples]

    def _overlap_add(self, frames: Float[Tensor, "*batch frame n_fft"]) -> Float[Tensor, "*batch sample"]:
        hop = self.hop_length
        n_overlaps = -(-self.n_fft // hop)
        parts = functional.pad(frames, (0, n_overlaps * hop - self.n_fft)).unflatten(-1, (n_overlaps, hop))
        moved = [functional.pad(parts[..., i, :], (0, 0, i, n_overlaps - 1 - i)) for i in range(n_overlaps)]
        return torch.stack(moved).sum(0).flatten(-2)


class Encoder(nn.Module):
    """Power at level 1 (and labels) to the centre of the posterior of every frame."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(
        self, power: Float[Tensor, "batch frame freq"], labels: Float[Tensor, "batch label"] | None = None
    ) -> Float[Tensor, "batch frame latent"]:
        return self.vae.mean_path(power, labels)[0]


class Decoder(nn.Module):
    """Latents (and labels) to the logarithm of the PSD at level 1."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(
        self, latents: Float[Tensor, "batch frame latent"], labels: Float[Tensor, "batch label"] | None = None
    ) -> Float[Tensor, "batch frame freq"]:
        return self.vae.log_psd(latents, labels)


class Resynthesis(nn.Module):
    """A wave through encoder and decoder, with its own phase: `AudioVAE.resynthesize`.

    Rumble is what stands in the bins below 50 Hz. Where it is too loud it is turned down before, and put back
    afterwards, unless the level is given: see `audiovae.level`, which tells it by a sharper filter.
    """

    is_low: Tensor
    counts: Tensor
    low_counts: Tensor

    def __init__(self, prior: AudioVAE) -> None:
        super().__init__()
        self.vae, self.short_time, self.rule = prior.vae, ShortTime(prior.stft), prior.level_rule
        stft = prior.stft
        counts = torch.full((stft.n_freqs,), 2.0)
        if stft.n_fft % 2 == 0:
            counts[-1] = 1.0
        counts /= stft.n_fft * stft.window.square().sum()
        n_low = max(1, math.ceil(LOWEST_HZ * stft.n_fft / prior.sample_rate))
        is_low = (torch.arange(stft.n_freqs) < n_low).float()
        self.register_buffer("is_low", is_low, persistent=False)
        self.register_buffer("counts", counts * (1 - is_low), persistent=False)
        self.register_buffer("low_counts", counts * is_low, persistent=False)

    def forward(
        self,
        wave: Float[Tensor, "batch sample"],
        level: Float[Tensor, " batch"],
        labels: Float[Tensor, "batch label"] | None = None,
    ) -> Float[Tensor, "batch _"]:
        real, imag = self.short_time(wave)
        heard = real.square() + imag.square()
        active = self._active_level(heard)
        measured = wave.abs().amax(-1) if self.rule == "peak" else active
        away = torch.where(level > 0, 0.0, self._rumble_share(heard, active))[:, None, None] * self.is_low
        level = torch.where(level > 0, level, measured)
        power = heard * (1 - away).square() / torch.where(level > 0, level, 1.0).square()[:, None, None]
        log_psd = self.vae.log_psd(self.vae.mean_path(power, labels)[0], labels)
        # magnitude of the PSD, phase of what was heard: x sqrt(psd / |x|^2)
        gain = torch.where(heard > 0, torch.exp(0.5 * log_psd) * heard.clamp(min=1e-37).rsqrt(), 0.0)
        gain = gain * level[:, None, None] + away
        return self.short_time.inverse(gain * real, gain * imag, wave.shape[-1])

    def _active_level(self, power: Float[Tensor, "batch frame freq"]) -> Float[Tensor, " batch"]:
        """See `spectrogram_level`."""
        frame_power = power @ self.counts
        is_active = (frame_power >= frame_power.amax(-1, keepdim=True) * 10 ** (-ACTIVE_RANGE_DB / 10)).float()
        return ((frame_power * is_active).sum(-1) / is_active.sum(-1)).sqrt()

    def _rumble_share(self, power: Float[Tensor, "batch frame freq"], level: Float[Tensor, " batch"]) -> Tensor:
        """See `rumble_share`."""
        rumble = (power @ self.low_counts).mean(-1).sqrt()
        return (1 - level * 10 ** (RUMBLE_DB / 20) / rumble.clamp(min=1e-30)).clamp(min=0.0)
