"""Covariances that one matrix diagonalises: the spatial model of FastMNMF2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.spatial.covariances import (
    Covariances,
    diagonal_of,
    diagonaliser,
    first_gains,
    hermitian,
    outer_products,
    projected,
    ridged,
    steered,
)
from audiovae.separation.spatial.spatial import Spatial, closed, mean_over_draws, side_by_side, without_draws

_LEAST_GAIN = 1e-6  # of a source in any row: one that vanishes from a row would leave nothing there to divide by
_DITHER, _LEAST_DITHER = 1e-10, 1e-12  # as a share of the mean power of a frequency, and at unit level
_ROUNDING = {torch.float32: 2e-6, torch.float64: 0.0}  # of V_m, as a share of its mean diagonal
_LEAST_SHARE = 1e-3  # of a row, that is any source's at the start, where covariances tell the others' to be all of it

_SWEEPS = {"ip": projected, "iss": steered}

UpdateName = Literal["ip", "iss"]
State = tuple[Complex[Tensor, "recording freq row channel"], Float[Tensor, "source recording _ row"]]


class JointView:
    """A `View` of rows of variance V = rest + gain lambda.

    Args:
        power: P, of the rows.
        rest: what the other sources contribute to V.
        gain: of the own source.
        told: do these bins tell anything of the source? Others count in no statistics.
        constant: that the rows' joint density adds to the nll of every frame.
    """

    def __init__(
        self,
        power: Float[Tensor, "row recording freq frame"],
        rest: Float[Tensor, "*draw row recording freq frame"],
        gain: Float[Tensor, "row recording _ 1"],
        told: Bool[Tensor, "recording freq frame"],
        constant: Float[Tensor, "recording 1"],
    ) -> None:
        self._power, self._rest, self._gain, self._told, self._constant = power, rest, gain, told, constant

    def nll(self, psd: Float[Tensor, "*sample recording frame freq"]) -> Float[Tensor, "*sample recording frame"]:
        return self._constant + mean_over_draws(_misfit(self._power, self._variance(psd)), psd.ndim - 1)

    def statistics(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> tuple[Float[Tensor, "*sample recording frame freq"], Float[Tensor, "*sample recording frame freq"]]:
        precision = self._variance(psd).reciprocal_()
        fall = (self._power * precision).mul_(precision)
        return self._over_rows(self._gain * fall, psd.ndim), self._over_rows(self._gain * precision, psd.ndim)

    def slope(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> Float[Tensor, "*sample recording frame freq"]:
        precision = self._variance(psd).reciprocal_()
        rise = torch.addcmul(precision, self._power * precision, precision, value=-1)
        return self._over_rows(rise.mul_(self._gain), psd.ndim).contiguous()

    def information(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> Float[Tensor, "*sample recording frame freq"]:
        of_rows = self._variance(psd).reciprocal_().mul_(self._gain).square_()
        return self._over_rows(of_rows, psd.ndim).contiguous()

    def _variance(self, psd: Tensor) -> Float[Tensor, "*sample row recording freq frame"]:
        return torch.addcmul(self._rest, self._gain, psd.mT.contiguous().unsqueeze(-4))

    def _over_rows(self, values: Float[Tensor, "*_ row recording freq frame"], n_dims: int) -> Tensor:
        """Their sum, `[*sample, recording, frame, freq]`."""
        return (mean_over_draws(values.sum(-4), n_dims) * self._told).mT


def _by_frequency(
    psds: Sequence[Float[Tensor, "*_ recording frame freq"]],
) -> Float[Tensor, "*draw source recording freq frame"]:
    """Side by side, the frames of a frequency next to each other, as x has them."""
    return torch.stack([psd.mT for psd in torch.broadcast_tensors(*psds)], dim=-4)


def _mixed(
    gains: Float[Tensor, "source recording _ row"], psds: Float[Tensor, "*draw source recording freq frame"]
) -> Float[Tensor, "*draw row recording freq frame"]:
    """The variance of the rows, Y_ftm = sum_n lambda_nft g_nm."""
    return torch.einsum("nrfm,...nrft->...mrft", gains, psds)


def _misfit(
    power: Float[Tensor, "row recording freq frame"], variance: Float[Tensor, "*draw row recording freq frame"]
) -> Float[Tensor, "*draw recording frame"]:
    """sum_fm log Y + P / Y."""
    return torch.addcdiv(torch.log(variance), power, variance).sum((-4, -2))


class JointDiagonal(Spatial):
    """H_nf = Q_f^-1 diag(g_nf) Q_f^-', so that the rows of Q_f x_ft are independent, of variance sum_n lambda_nft
    g_nfm.

    g and H carry the scale between lambda and x; only `powers` takes it out. Q is fitted by iterative projection or
    steering, g by multiplicative updates with the square root: no update increases the nll. That is of the mixture in
    a little independent noise: x x' counts as x x' + dither I, so that all stays finite in silence, with a dead
    microphone, or with one twice.

    Args:
        mixture: recordings of several channels.
        space: Q and g to begin with, or covariances to take them from; None is Q = I and a row for each source in
            turn.
        n_sources: how many there are.
        per_frequency: g for every frequency, instead of one that they share.
        white: sources that are as strong at every microphone and independent between them, such as their own noise:
            their g is |q_m|^2, which is the identity H but for what Q would need to be unitary for. As g moves with Q,
            an update of Q may then increase the nll.
        update: of Q: "ip", iterative projection, or "iss", iterative source steering.

    Raises:
        ValueError: recordings of different numbers of channels, or an unknown update.

    Reference: K. Sekiguchi, Y. Bando, A. Nugraha, K. Yoshii, T. Kawahara, "Fast multichannel nonnegative matrix
        factorization with directivity-aware jointly-diagonalizable spatial covariance matrices for blind source
        separation", IEEE/ACM TASLP 28, 2020;
        the updates of Q: see `projected` and `steered`.
    """

    def __init__(
        self,
        mixture: Mixture,
        space: State | Covariances | None = None,
        n_sources: int = 2,
        per_frequency: bool = False,
        white: Sequence[int] = (),
        update: UpdateName = "ip",
    ) -> None:
        if update not in _SWEEPS:
            raise ValueError(f"update must be one of {', '.join(_SWEEPS)}, got {update!r}")
        mixture.common_channels()
        self._mixture, self._white, self._per_frequency = mixture, frozenset(white), per_frequency
        self._told = mixture.told.mT.contiguous()
        self._sweep = _SWEEPS[update]
        x = mixture.spectrogram.permute(0, 2, 3, 1)  # [recording, freq, channel, frame]
        n_recordings, n_freqs, n_channels, _ = x.shape
        self._parts, self._outer = torch.cat([x.real, x.imag], dim=-2), outer_products(x.mT.contiguous())
        self._power = mixture.power.new_empty(n_channels, n_recordings, n_freqs, x.shape[-1])
        mean = mixture.mean_over_frames(mixture.power.movedim(-1, 0)).mT
        self._dither = _DITHER * mean + _LEAST_DITHER  # [recording, freq]
        if isinstance(space, Tensor):
            self.q, self.gains = self._from_covariances(space)
        elif space is not None:
            self.q, self.gains = space[0], space[1].clone()  # the start's own is used again
        else:
            eye = torch.eye(n_channels, dtype=x.dtype, device=x.device)
            self.q = eye.expand(n_recordings, n_freqs, n_channels, n_channels)
            gains = first_gains(n_sources, n_channels).to(mixture.power)
            self.gains = gains[:, None, None].repeat(1, n_recordings, n_freqs if per_frequency or white else 1, 1)
        self._rotate()

    def _from_covariances(self, covariances: Covariances) -> State:
        """Q diagonalises them, and g is what then stands on their diagonals; the sum of those of all is 1 in each
        row.
        """
        told = covariances[[n for n in range(len(covariances)) if n not in self._white]]
        q = diagonaliser(told)
        gains = diagonal_of(q, told).to(self._dither.dtype)
        gains = (gains / gains.sum(0).clamp(min=torch.finfo(gains.dtype).tiny)).clamp(_LEAST_SHARE, 1 - _LEAST_SHARE)
        if not self._per_frequency:
            gains = gains.mean(2, keepdim=True).expand_as(gains)
        white = gains.new_ones(len(self._white), *gains.shape[1:])
        return q.to(self._mixture.spectrogram.dtype), torch.cat([gains, white])

    def place(self, q: Complex[Tensor, "recording freq row channel"], gains: Tensor) -> None:
        """Go on from another state."""
        self.q, self.gains = q, gains
        self._rotate()

    def _rotate(self) -> None:
        """What follows from Q: |Q x|^2, `[row, recording, freq, frame]`; log |det Q Q'|; the gains of white sources."""
        re, im = self.q.real, self.q.imag
        of_parts = torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)  # real products are faster
        real, imaginary = (of_parts @ self._parts).square_().movedim(2, 0).chunk(2)
        norms = (re.square() + im.square()).sum(-1)
        dither = norms * self._dither.unsqueeze(-1)
        self._power = torch.add(real, imaginary, out=torch.empty_like(self._power)).add_(
            dither.movedim(-1, 0).unsqueeze(-1)
        )
        self._log_det = 2 * torch.linalg.slogdet(self.q.to(torch.complex128)).logabsdet.sum(-1).to(norms.dtype)
        for n in self._white:
            self.gains[n] = norms

    def view(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]], n: int) -> JointView:
        others = [i for i in range(len(psds)) if i != n]
        rest = torch.zeros_like(self._power)
        if others:
            rest = _mixed(self.gains[others], _by_frequency(side_by_side([psds[i] for i in others])))
        gain = self.gains[n].movedim(-1, 0).unsqueeze(-1)
        return JointView(self._power, rest, gain, self._told, -self._log_det.unsqueeze(-1))

    def nll(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> Float[Tensor, "recording frame"]:
        variance = _mixed(self.gains, _by_frequency(side_by_side(psds)))
        return mean_over_draws(_misfit(self._power, variance), 2) - self._log_det.unsqueeze(-1)

    def update(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> None:
        together = _by_frequency([without_draws(psd) for psd in psds])
        self._update_gains(together)
        self._update_q(together)

    def _update_gains(self, psds: Float[Tensor, "source recording freq frame"]) -> None:
        """g_nm <- g_nm sqrt(sum_ft lambda P / Y^2 / sum_ft lambda / Y), the sums over f too where g is shared."""
        precision = _mixed(self.gains, psds).reciprocal_()
        fall = (self._power * precision).mul_(precision)
        inside = psds * self._mixture.inside.unsqueeze(1)
        up, down = (torch.einsum("nrft,mrft->nrfm", inside, part) for part in (fall, precision))
        if not self._per_frequency:
            up, down = up.sum(2, keepdim=True), down.sum(2, keepdim=True)
        fitted = [n for n in range(len(psds)) if n not in self._white]
        gains = self.gains.clone()
        gains[fitted] *= (up / down)[fitted].sqrt()
        self.gains = gains.clamp(min=_LEAST_GAIN)

    def _update_q(self, psds: Float[Tensor, "source recording freq frame"]) -> None:
        """A sweep over the rows with V_m = mean_t x x' / Y_m."""
        weights = _mixed(self.gains, psds).reciprocal_().mul_(self._mixture.share.mT)
        numbers = (weights.permute(1, 2, 0, 3) @ self._outer).movedim(2, 0)  # [row, recording, freq, channel^2]
        v = ridged(hermitian(numbers).to(torch.complex128), _ROUNDING[weights.dtype])
        v.diagonal(dim1=-2, dim2=-1).add_((self._dither * weights.sum(-1)).unsqueeze(-1))
        self.q = self._sweep(self.q.to(v.dtype), v.movedim(0, 2)).to(self.q.dtype)
        self._rotate()

    def images(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Complex[Tensor, "source chosen frame freq channel"]:
        where = list(chosen)
        x, q, gains = self._mixture.spectrogram[where], self.q[where], self.gains[:, where]
        together = _by_frequency(side_by_side(psds))
        rows = (q @ x.permute(0, 2, 3, 1)).movedim(2, 0)  # [row, chosen, freq, frame]
        variance = _mixed(gains, together)
        back = torch.linalg.inv(q.to(torch.complex128)).to(q.dtype)  # [chosen, freq, channel, row]
        images = []
        for n in range(len(psds) - 1):
            share = _mixed(gains[n : n + 1], together[..., n : n + 1, :, :, :]).div_(variance)
            images.append(torch.einsum("rfcm,mrft->rtfc", back, mean_over_draws(share, 4) * rows))
        return closed(images, x)

    def powers(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Float[Tensor, "source chosen frame freq"]:
        where = list(chosen)
        back = torch.linalg.inv(self.q[where].to(torch.complex128)).abs().square().mean(-2)  # [chosen, freq, row]
        traces = (self.gains[:, where] * back.to(self.gains.dtype)).sum(-1)  # tr(H) / M, [source, chosen, freq]
        return torch.stack([without_draws(psd) * trace.unsqueeze(1) for psd, trace in zip(psds, traces, strict=True)])
