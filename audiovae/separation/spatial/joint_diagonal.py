"""Covariances that one matrix diagonalises: the spatial model of FastMNMF2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.outer_products import hermitian
from audiovae.separation.spatial.covariances import (
    Covariances,
    diagonal_of,
    diagonaliser,
    first_gains,
    projected,
    ridged,
    steered,
)
from audiovae.separation.spatial.row_gradients import GainSums, RowPower, WeightedOuter, mixed, weighted_outer
from audiovae.separation.spatial.spatial import Spatial, closed, mean_over_draws, side_by_side, without_draws

_LEAST_GAIN = 1e-6  # of a source in any row: one that vanishes from a row would leave nothing there to divide by
_DITHER, _LEAST_DITHER = 1e-10, 1e-12  # as a share of the mean power of a frequency, and at unit level
_ROUNDING = {torch.float32: 2e-6, torch.float64: 0.0}  # of V_m, as a share of its mean diagonal
_LEAST_SHARE = 1e-3  # of a row, that is any source's at the start, where covariances tell the others' to be all of it

_SWEEPS = {"ip": projected, "iss": steered}

UpdateName = Literal["ip", "iss"]
State = tuple[Complex[Tensor, "recording freq row channel"], Float[Tensor, "source recording _ row"]]


class JointView:
    """A `View` of the rows of `JointDiagonal`, of variance Y = rest + gain lambda, for as long as that is not updated.

    Args:
        space: whose rows they are.
        others: the other sources' PSDs, side by side.
        n: the source's place among them.
    """

    def __init__(
        self, space: JointDiagonal, others: Sequence[Float[Tensor, "*_ recording frame freq"]], n: int
    ) -> None:
        self._space, self._others, self._n = space, others, n
        self._gain = space.gains[n].movedim(-1, 0).unsqueeze(-1)  # [row, recording, _, 1]

    @cached_property
    def _rest(self) -> Float[Tensor, "*draw row recording freq frame"]:
        if not self._others:
            return torch.zeros_like(self._space.power)
        places = [i for i in range(len(self._others) + 1) if i != self._n]
        return mixed(self._space.gains[places], _by_frequency(self._others))

    def nll(self, psd: Float[Tensor, "*sample recording frame freq"]) -> Float[Tensor, "*sample recording frame"]:
        return self._space.misfit(self._precision(psd), psd.ndim - 1)

    def statistics(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> tuple[Float[Tensor, "*sample recording frame freq"], Float[Tensor, "*sample recording frame freq"]]:
        parts = self._space.parts([*self._others[: self._n], psd, *self._others[self._n :]])
        fall, precision = (self._over_rows(self._gain, part, psd.ndim) for part in parts)
        return fall, precision

    def slope(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> Float[Tensor, "*sample recording frame freq"]:
        precision = self._precision(psd)
        rise = torch.addcmul(precision, self._space.power * precision, precision, value=-1)
        return self._over_rows(self._gain, rise, psd.ndim).contiguous()

    def information(
        self, psd: Float[Tensor, "*sample recording frame freq"]
    ) -> Float[Tensor, "*sample recording frame freq"]:
        return self._over_rows(self._gain.square(), self._precision(psd).square_(), psd.ndim).contiguous()

    def _precision(self, psd: Tensor) -> Float[Tensor, "*sample row recording freq frame"]:
        return torch.addcmul(self._rest, self._gain, psd.mT.contiguous().unsqueeze(-4)).reciprocal_()

    def _over_rows(self, weights: Tensor, values: Float[Tensor, "*_ row recording freq frame"], n_dims: int) -> Tensor:
        """Their weighted sum, `[*sample, recording, frame, freq]`."""
        rows = values.unbind(-4)
        out = weights[0] * rows[0]
        for weight, row in zip(weights[1:], rows[1:], strict=True):
            out.addcmul_(weight, row)
        return (mean_over_draws(out, n_dims) * self._space.told).mT


def _by_frequency(
    psds: Sequence[Float[Tensor, "*_ recording frame freq"]],
) -> Float[Tensor, "*draw source recording freq frame"]:
    """Side by side, the frames of a frequency next to each other, as x has them."""
    return torch.stack([psd.mT for psd in torch.broadcast_tensors(*psds)], dim=-4)


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
        self._seen: list[Tensor] = []  # PSDs, of which these are made: side by side, 1 / Y and P / Y^2
        self._together: Tensor
        self._inverse: Tensor | None = None
        self._fall: Tensor | None = None
        self.told = mixture.told.mT.contiguous()
        self._is_full = bool(mixture.inside.all())  # no frame is padding
        self._sweep = _SWEEPS[update]
        x = mixture.spectrogram.permute(0, 2, 3, 1)  # [recording, freq, channel, frame]
        n_recordings, n_freqs, n_channels, _ = x.shape
        mean = mixture.mean_over_frames(mixture.power.movedim(-1, 0)).mT
        self._dither = _DITHER * mean + _LEAST_DITHER  # [recording, freq]
        self._parts = torch.cat([x.real, x.imag], dim=-2)
        if isinstance(space, Tensor):
            self.q, self.gains = self._from_covariances(space, n_sources)
        elif space is not None:
            self.q, self.gains = space[0], space[1].clone()  # the start's own is used again
        else:
            eye = torch.eye(n_channels, dtype=x.dtype, device=x.device)
            self.q = eye.expand(n_recordings, n_freqs, n_channels, n_channels)
            gains = first_gains(n_sources, n_channels).to(mixture.power)
            self.gains = gains[:, None, None].repeat(1, n_recordings, n_freqs if per_frequency or white else 1, 1)
        self._rotate()

    def _from_covariances(self, covariances: Covariances, n_sources: int) -> State:
        """Q diagonalises them, and g is what then stands on their diagonals; the sum of those of all is 1 in each
        row.
        """
        if len(covariances) != n_sources:
            raise ValueError(
                f"covariances to begin with must be one of each of {n_sources} sources, got {len(covariances)}"
            )
        coloured = [n for n in range(n_sources) if n not in self._white]
        told = covariances[coloured]
        q = diagonaliser(told)
        gains = diagonal_of(q, told).to(self._dither.dtype)
        gains = (gains / gains.sum(0).clamp(min=torch.finfo(gains.dtype).tiny)).clamp(_LEAST_SHARE, 1 - _LEAST_SHARE)
        if not self._per_frequency:
            gains = gains.mean(2, keepdim=True).expand_as(gains)
        of_all = gains.new_ones(n_sources, *gains.shape[1:])
        of_all[coloured] = gains
        return q.to(self._mixture.spectrogram.dtype), of_all

    def place(self, q: Complex[Tensor, "recording freq row channel"], gains: Tensor) -> None:
        """Go on from another state."""
        self.q, self.gains, self._inverse = q, gains, None
        self._rotate()

    def _rotate(self) -> None:
        """What follows from Q: |Q x|^2; log |det Q Q'|; the gains of white sources."""
        norms = (self.q.real.square() + self.q.imag.square()).sum(-1)
        dither = (norms * self._dither.unsqueeze(-1)).movedim(-1, 0).unsqueeze(-1)
        self.power = RowPower.apply(self.q, self._parts).add_(dither)
        self._log_det = 2 * torch.linalg.slogdet(self.q.to(torch.complex128)).logabsdet.sum(-1).to(norms.dtype)
        self._fall = None
        if self._white:
            self.gains = self.gains.clone()  # that of the state before is still needed for a gradient
            self.gains[sorted(self._white)] = norms
            self._inverse = None

    def _look_at(self, psds: Sequence[Float[Tensor, "*_ recording frame freq"]]) -> None:
        """Side by side, and what was made of others forgotten."""
        if len(self._seen) != len(psds) or not all(map(Tensor.is_set_to, self._seen, psds)):
            self._seen, self._together = list(psds), _by_frequency(psds)
            self._inverse = self._fall = None

    def _precision(
        self, psds: Sequence[Float[Tensor, "*_ recording frame freq"]]
    ) -> Float[Tensor, "*draw row recording freq frame"]:
        """1 / Y; kept until PSDs or gains change, as sources, Q and the objective ask for it in turn."""
        self._look_at(psds)
        if self._inverse is None:
            self._inverse, self._fall = mixed(self.gains, self._together).reciprocal_(), None
        return self._inverse

    def parts(self, psds: Sequence[Float[Tensor, "*_ recording frame freq"]]) -> tuple[Tensor, Tensor]:
        """P / Y^2 and 1 / Y, `[*draw, row, recording, freq, frame]`, of which statistics are weighted sums."""
        precision = self._precision(psds)
        if self._fall is None:
            self._fall = (self.power * precision).mul_(precision)
        return self._fall, precision

    def misfit(
        self, precision: Float[Tensor, "*draw row recording freq frame"], n_dims: int
    ) -> Float[Tensor, "*sample recording frame"]:
        """sum_fm log Y + P / Y - log |det Q Q'|, the mean over draws: values of `n_dims` dimensions."""
        of_frames = (self.power * precision).sub_(precision.log()).sum((-4, -2))
        return mean_over_draws(of_frames, n_dims) - self._log_det.unsqueeze(-1)

    def view(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]], n: int) -> JointView:
        return JointView(self, side_by_side([psd for i, psd in enumerate(psds) if i != n]), n)

    def nll(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> Float[Tensor, "recording frame"]:
        return self.misfit(self._precision(side_by_side(psds)), 2)

    def update(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> None:
        means = [without_draws(psd) for psd in psds]
        self._update_gains(means)
        self._update_q(means)

    def _update_gains(self, psds: Sequence[Float[Tensor, "recording frame freq"]]) -> None:
        """g_nm <- g_nm sqrt(sum_ft lambda P / Y^2 / sum_ft lambda / Y), the sums over f too where g is shared."""
        self._look_at(psds)
        if self._together.requires_grad:
            inside = self._mixture.inside.unsqueeze(1)
            fall, rise = GainSums.apply(self.power, self._together, self.gains, inside)
        else:
            parts = self.parts(psds)
            together = self._together if self._is_full else self._together * self._mixture.inside.unsqueeze(1)
            fall, rise = (torch.einsum("nrft,mrft->nrfm", together, part) for part in parts)
        if not self._per_frequency:
            fall, rise = fall.sum(2, keepdim=True), rise.sum(2, keepdim=True)
        fitted = [n for n in range(len(psds)) if n not in self._white]
        gains = self.gains.clone()
        gains[fitted] *= (fall / rise)[fitted].sqrt()
        self.gains, self._inverse = gains.clamp(min=_LEAST_GAIN), None

    def _update_q(self, psds: Sequence[Float[Tensor, "recording frame freq"]]) -> None:
        """A sweep over the rows with V_m = mean_t (x x' + dither I) / Y_m."""
        self._look_at(psds)
        seen = self._mixture.outer, self._mixture.share, self._dither
        if self._together.requires_grad:
            numbers = WeightedOuter.apply(self._together, self.gains, *seen)
        else:
            numbers = weighted_outer(self._precision(psds), *seen)
        v = ridged(hermitian(numbers).to(torch.complex128), _ROUNDING[numbers.dtype])
        self.q = self._sweep(self.q.to(v.dtype), v).to(self.q.dtype)
        self._rotate()

    def images(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Complex[Tensor, "source chosen frame freq channel"]:
        where = list(chosen)
        x, q, gains = self._mixture.spectrogram[where], self.q[where], self.gains[:, where]
        together = _by_frequency(side_by_side(psds))
        rows = (q @ x.permute(0, 2, 3, 1)).movedim(2, 0)  # [row, chosen, freq, frame]
        variance = mixed(gains, together)
        back = torch.linalg.inv(q.to(torch.complex128)).to(q.dtype)  # [chosen, freq, channel, row]
        images = []
        for n in range(len(psds) - 1):
            share = mixed(gains[n : n + 1], together[..., n : n + 1, :, :, :]).div_(variance)
            images.append(torch.einsum("rfcm,mrft->rtfc", back, mean_over_draws(share, 4) * rows))
        return closed(images, x)

    def powers(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Float[Tensor, "source chosen frame freq"]:
        where = list(chosen)
        back = torch.linalg.inv(self.q[where].to(torch.complex128)).abs().square().mean(-2)  # [chosen, freq, row]
        traces = (self.gains[:, where] * back.to(self.gains.dtype)).sum(-1)  # tr(H) / M, [source, chosen, freq]
        return torch.stack([without_draws(psd) * trace.unsqueeze(1) for psd, trace in zip(psds, traces, strict=True)])
