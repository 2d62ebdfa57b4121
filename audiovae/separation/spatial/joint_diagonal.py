"""Covariances that one matrix diagonalises: the spatial model of FastMNMF2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Complex, Float
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
from audiovae.separation.spatial.diagonal import DiagonalView, Row
from audiovae.separation.spatial.spatial import Spatial, closed, mean_over_draws, side_by_side, total, without_draws

_LEAST_GAIN = 1e-6  # of a source in any row: one that vanishes from a row would leave nothing there to divide by
_DITHER, _LEAST_DITHER = 1e-10, 1e-12  # as a share of the mean power of a frequency, and at unit level
_ROUNDING = {torch.float32: 2e-6, torch.float64: 0.0}  # of V_m, as a share of its mean diagonal
_LEAST_SHARE = 1e-3  # of a row, that is any source's at the start, where covariances tell the others' to be all of it

_SWEEPS = {"ip": projected, "iss": steered}

UpdateName = Literal["ip", "iss"]
State = tuple[Complex[Tensor, "recording freq row channel"], Float[Tensor, "source recording _ row"]]


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
        self._sweep = _SWEEPS[update]
        self._x = mixture.spectrogram.permute(0, 2, 3, 1).contiguous()  # [recording, freq, channel, frame]
        n_recordings, n_freqs, n_channels, _ = self._x.shape
        mean = mixture.mean_over_frames(mixture.power.movedim(-1, 0)).mT
        self._dither = _DITHER * mean + _LEAST_DITHER  # [recording, freq]
        if isinstance(space, Tensor):
            self.q, self.gains = self._from_covariances(space)
        elif space is not None:
            self.q, self.gains = space[0], space[1].clone()  # the start's own is used again
        else:
            eye = torch.eye(n_channels, dtype=self._x.dtype, device=self._x.device)
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
        return q.to(self._x.dtype), torch.cat([gains, white])

    def place(self, q: Complex[Tensor, "recording freq row channel"], gains: Tensor) -> None:
        """Go on from another state."""
        self.q, self.gains = q, gains
        self._rotate()

    @cached_property
    def _outer(self) -> Float[Tensor, "recording freq frame square"]:
        """The products x x'."""
        return outer_products(self._x.mT)

    def _rotate(self) -> None:
        """What follows from Q: |Q x|^2, `[row, recording, frame, freq]`; log |det Q Q'|; the gains of white sources."""
        rows = self.q @ self._x
        dither = (self.q.abs().square().sum(-1) * self._dither.unsqueeze(-1)).unsqueeze(-1)
        self._power = (rows.real.square() + rows.imag.square() + dither).permute(2, 0, 3, 1).contiguous()
        self._log_det = 2 * torch.linalg.slogdet(self.q.to(torch.complex128)).logabsdet.sum(-1).to(self._power.dtype)
        for n in self._white:
            self.gains[n] = self.q.abs().square().sum(-1)

    def _gain(self, n: int, m: int) -> Float[Tensor, "recording 1 _"]:
        return self.gains[n, ..., m].unsqueeze(1)

    def _variance(self, psds: Sequence[Tensor], m: int) -> Tensor:
        """sum_n lambda_n g_nm."""
        return total([psd * self._gain(n, m) for n, psd in enumerate(psds)])

    def view(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]], n: int) -> DiagonalView:
        places = [i for i in range(len(psds)) if i != n]
        others = side_by_side([psds[i] for i in places])
        rows = [
            Row(
                power,
                total([psd * self._gain(i, m) for i, psd in zip(places, others, strict=True)]) if others else 0.0,
                self._gain(n, m),
            )
            for m, power in enumerate(self._power)
        ]
        return DiagonalView(rows, self._mixture.told, -self._log_det.unsqueeze(-1))

    def nll(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> Float[Tensor, "recording frame"]:
        together = side_by_side(psds)
        misfit = -self._log_det.unsqueeze(-1)
        for m, power in enumerate(self._power):
            variance = self._variance(together, m)
            misfit = misfit + mean_over_draws((torch.log(variance) + power / variance).sum(-1), 2)
        return misfit

    def update(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> None:
        means = [without_draws(psd) for psd in psds]
        self._update_gains(means)
        self._update_q(means)

    def _update_gains(self, psds: Sequence[Float[Tensor, "recording frame freq"]]) -> None:
        """g_nm <- g_nm sqrt(sum_ft lambda P / Y^2 / sum_ft lambda / Y), the sums over f too where g is shared."""
        over = (1,) if self._per_frequency else (1, 2)
        gains = self.gains.clone()
        inside = self._mixture.inside.unsqueeze(-1)
        for m, power in enumerate(self._power):
            precision = inside / self._variance(psds, m)
            fall = power * precision.square()
            for n in set(range(len(psds))) - self._white:
                ratio = (psds[n] * fall).sum(over) / (psds[n] * precision).sum(over)
                gains[n, ..., m] *= ratio.sqrt() if self._per_frequency else ratio.sqrt().unsqueeze(-1)
        self.gains = gains.clamp(min=_LEAST_GAIN)

    def _update_q(self, psds: Sequence[Float[Tensor, "recording frame freq"]]) -> None:
        """A sweep over the rows with V_m = mean_t x x' / Y_m."""
        share = self._mixture.share
        weights = torch.stack([share / self._variance(psds, m) for m in range(len(self._power))]).permute(1, 3, 0, 2)
        v = ridged(
            hermitian((weights @ self._outer).double()), _ROUNDING[weights.dtype]
        )  # [recording, freq, row, channel, channel]
        eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        v = v + (self._dither.unsqueeze(-1) * weights.sum(-1))[..., None, None] * eye
        q = self._sweep(self.q.to(v.dtype), v)
        self.q = q.to(self._x.dtype)
        self._rotate()

    def images(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Complex[Tensor, "source chosen frame freq channel"]:
        where = list(chosen)
        x, q = self._x[where], self.q[where]
        rows = (q @ x).permute(2, 0, 3, 1)  # [row, chosen, frame, freq]
        together = side_by_side(psds)
        filtered: list[list[Tensor]] = [[] for _ in psds[:-1]]
        for m, row in enumerate(rows):
            parts = [psd * self.gains[n, where, :, m].unsqueeze(1) for n, psd in enumerate(together)]
            variance = total(parts)
            for n, part in enumerate(parts[:-1]):
                filtered[n].append(mean_over_draws(part / variance, 3) * row)
        back = torch.linalg.inv(q.to(torch.complex128)).to(q.dtype)  # [chosen, freq, channel, row]
        images = [torch.einsum("rfcm,mrtf->rtfc", back, torch.stack(of_source)) for of_source in filtered]
        return closed(images, self._mixture.spectrogram[where])

    def powers(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Float[Tensor, "source chosen frame freq"]:
        where = list(chosen)
        back = torch.linalg.inv(self.q[where].to(torch.complex128)).abs().square().mean(-2)  # [chosen, freq, row]
        traces = (self.gains[:, where] * back.to(self.gains.dtype)).sum(-1)  # tr(H) / M, [source, chosen, freq]
        return torch.stack([without_draws(psd) * trace.unsqueeze(1) for psd, trace in zip(psds, traces, strict=True)])
