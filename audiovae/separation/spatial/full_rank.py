"""Any covariances: the spatial model of full-rank spatial covariance analysis (FCA)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.spatial.cholesky import Cholesky, inner, square
from audiovae.separation.spatial.covariances import (
    Covariances,
    diagonal_of,
    first_gains,
    floored,
    generalised_eigenvectors,
    ridged,
)
from audiovae.separation.spatial.joint_diagonal import JointDiagonal, JointView
from audiovae.separation.spatial.spatial import (
    Spatial,
    View,
    closed,
    mean_over_draws,
    side_by_side,
    total,
    without_draws,
)

_LEAST = 1e-6  # eigenvalue of a covariance, as a share of the mean one at the start
_RIDGE = 1e-2  # of the mean diagonal of a covariance from masks
_BLOCK = 2**15  # bins that are worked on at once, so that what is made of them stays in the cache

PSD = Float[Tensor, "*sample recording frame freq"]


def full_rank(
    mixture: Mixture, space: Covariances | None = None, n_sources: int = 2, white: Sequence[int] = ()
) -> Spatial:
    """`FullRank`, or for two sources `FullRankPair`, which is the same and quicker.

    Covariances from masks begin with a little of every direction: what has none, updates hardly ever give one.
    """
    made = FullRankPair if n_sources == 2 else FullRank
    return made(mixture, None if space is None else ridged(space, _RIDGE), n_sources, white)


class FullRank(Spatial):
    """H_nf, each any positive definite matrix, fitted by expectation maximisation.

    An update is H <- H + H [mean_t lambda_t (y y' - Y^-1)] H with y = Y^-1 x: the mean over time of the posterior
    second moment of the source over lambda, without that moment for every bin. No update increases the nll:
    eigenvalues below a millionth of the mean one at the start are put there, the optimum of the same step under this
    bound. All is worked out in double precision, block by block of frames.

    Args:
        mixture: recordings of several channels.
        space: covariances to begin with; None: diagonal ones, in which each source has microphones of its own.
        n_sources: how many there are.
        white: sources whose H is the identity and stays so.

    Attributes:
        h: the covariances, in double precision.

    Raises:
        ValueError: recordings of different numbers of channels, or covariances of another number of sources.

    Reference: N. Q. K. Duong, E. Vincent, R. Gribonval, "Under-determined reverberant audio source separation using a
        full-rank spatial covariance model", IEEE TASLP 18(7), 2010 (the model and its expectation maximisation).
    """

    def __init__(
        self, mixture: Mixture, space: Covariances | None = None, n_sources: int = 2, white: Sequence[int] = ()
    ) -> None:
        self._mixture, self._white = mixture, frozenset(white)
        self._fitted = [n for n in range(n_sources) if n not in self._white]
        self._x = mixture.spectrogram.movedim(-1, 0).contiguous()  # [channel, recording, frame, freq]
        self.h = _first(mixture, space, n_sources, self._white)
        self._least = _LEAST * _mean_eigenvalue(self.h)

    def _of(self, recordings: Sequence[int] | slice = slice(None)) -> _Bins:
        return _Bins(self.h[:, recordings], self._x[:, recordings], self._white)

    def view(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]], n: int) -> View:
        others = side_by_side([psd for i, psd in enumerate(psds) if i != n])
        return _FullRankView(self._of(), others, n, self._mixture.told)

    def nll(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> Float[Tensor, "recording frame"]:
        bins, together = self._of(), side_by_side(psds)
        found = []
        for frames in bins.blocks(together):
            factor = bins.factor(together, frames)
            misfit = factor.log_det() + total([square(entry) for entry in factor.whiten(bins.x(frames))])
            found.append(mean_over_draws(misfit.sum(-1), 2))
        return torch.cat(found, -1).to(self._mixture.power.dtype)

    def update(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> None:
        bins, means, share = self._of(), [without_draws(psd) for psd in psds], self._mixture.share
        h = self.h[self._fitted]
        bracket = torch.zeros_like(h)
        for frames in bins.blocks(means):
            factor = bins.factor(means, frames)
            y, inverse = factor.solve(bins.x(frames)), factor.inverse()
            weights = torch.stack([(means[n][:, frames] * share[:, frames]).double() for n in self._fitted])
            for i, row in enumerate(inverse):
                for j, entry in enumerate(row):
                    excess = (square(y[i]) if i == j else y[i] * y[j].conj()) - entry
                    bracket[..., i, j] += (excess * weights).sum(-2)
        bracket = bracket + bracket.tril(-1).mH
        self.h = self.h.clone()  # that of a view stays as it was
        self.h[self._fitted] = floored(h + h @ bracket @ h, self._least[self._fitted])

    def images(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Complex[Tensor, "source chosen frame freq channel"]:
        bins, together = self._of(list(chosen)), side_by_side(psds)
        found: list[list[Tensor]] = [[] for _ in psds[:-1]]
        for frames in bins.blocks(together):
            y = torch.stack(bins.factor(together, frames).solve(bins.x(frames)), -1)
            for n, parts in enumerate(found):
                scaled = mean_over_draws(together[n][..., frames, :].unsqueeze(-1) * y, 4)
                parts.append(torch.einsum("rfij,rtfj->rtfi", bins.h[n], scaled))
        x = self._mixture.spectrogram[list(chosen)]
        return closed([torch.cat(parts, 1).to(x.dtype) for parts in found], x)

    def powers(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Float[Tensor, "source chosen frame freq"]:
        return _powers(self.h[:, list(chosen)], psds)


@dataclass(frozen=True)
class _Bins:
    """A mixture and its covariances, bin by bin.

    Attributes:
        h: the covariances of all sources.
        channels: x, `[channel, recording, frame, freq]`.
        white: sources whose H is the identity.
    """

    h: Covariances
    channels: Complex[Tensor, "channel recording frame freq"]
    white: frozenset[int]

    def blocks(self, psds: Sequence[Tensor]) -> Iterator[slice]:
        """Of frames, few enough for what all draws of these PSDs take."""
        n_frames = self.channels.shape[2]
        of_frame = max(psd.numel() for psd in psds) // n_frames
        size = max(1, _BLOCK // of_frame)
        return (slice(start, start + size) for start in range(0, n_frames, size))

    def x(self, frames: slice) -> list[Complex[Tensor, "recording block freq"]]:
        """The microphones."""
        return list(self.channels[:, :, frames].to(torch.complex128))

    def factor(self, psds: Sequence[Float[Tensor, "... recording frame freq"]], frames: slice) -> Cholesky:
        """That of Y = sum_n lambda_n H_n."""
        parts = [psd[..., frames, :].double() for psd in psds]
        coloured = [n for n in range(len(parts)) if n not in self.white]

        def entry(i: int, j: int) -> Tensor:
            of_source = self.h[..., i, j].unsqueeze(2)  # [source, recording, 1, freq]
            if i == j:
                return total([part * h for part, h in zip(parts, of_source.real, strict=True)])
            return total([parts[n] * of_source[n] for n in coloured])

        return Cholesky([[entry(i, j) for j in range(i + 1)] for i in range(len(self.channels))])


class _FullRankView:
    """The `View` of source `n`, from the Cholesky factors L of Y and C of H: K = L^-1 C holds all that is asked of
    Y^-1 H.
    """

    def __init__(self, bins: _Bins, others: Sequence[Tensor], n: int, told: Tensor) -> None:
        self._bins, self._others, self._n, self._told = bins, others, n, told

    def nll(self, psd: PSD) -> Float[Tensor, "*sample recording frame"]:
        def misfit(factor: Cholesky, x: list[Tensor]) -> list[Tensor]:
            return [(factor.log_det() + total([square(entry) for entry in factor.whiten(x)])).sum(-1, keepdim=True)]

        return self._of_bins(psd, misfit)[0].squeeze(-1)

    def statistics(self, psd: PSD) -> tuple[PSD, PSD]:
        def parts(factor: Cholesky, x: list[Tensor]) -> list[Tensor]:
            k, whitened = self._k(factor), factor.whiten(x)
            numerator = total([square(inner(column, whitened[j:])) for j, column in enumerate(k)])
            return [numerator, total([square(entry) for column in k for entry in column])]

        numerator, denominator = self._of_bins(psd, parts)
        return numerator * self._told, denominator * self._told

    def slope(self, psd: PSD) -> PSD:
        numerator, denominator = self.statistics(psd)
        return denominator - numerator

    def information(self, psd: PSD) -> PSD:
        def squares(factor: Cholesky, x: list[Tensor]) -> list[Tensor]:
            k = self._k(factor)
            of_pairs = [
                (1 if i == j else 2) * square(inner(column, k[i][j - i :]))
                for j, column in enumerate(k)
                for i in range(j + 1)
            ]
            return [total(of_pairs)]

        return self._of_bins(psd, squares)[0] * self._told

    def _k(self, factor: Cholesky) -> list[list[Tensor]]:
        """Columns of K from the diagonal on, above which they are zero."""
        root = torch.linalg.cholesky(self._bins.h[self._n]).unsqueeze(1)  # [recording, 1, freq, channel, channel]
        size = root.shape[-1]
        return [
            factor.whiten([root[..., i, j].real if i == j else root[..., i, j] for i in range(j, size)], j)
            for j in range(size)
        ]

    def _of_bins(self, psd: PSD, what: Callable[[Cholesky, list[Tensor]], list[Tensor]]) -> list[Tensor]:
        """What is made of the factor and x, the mean over the others' draws."""
        psds = [*self._others[: self._n], psd, *self._others[self._n :]]
        found = []
        for frames in self._bins.blocks(psds):
            values = what(self._bins.factor(psds, frames), self._bins.x(frames))
            found.append([mean_over_draws(value, psd.ndim) for value in values])
        return [torch.cat(parts, -2).to(psd.dtype) for parts in zip(*found, strict=True)]


class FullRankPair(Spatial):
    """`FullRank` for two sources, in the basis in which both covariances are diagonal: the same updates for a fraction
    of the work.

    With Q H_n Q' = diag(g_n), rows of Q x have the variances sum_n lambda_n g_n, so that no bin has a matrix of its
    own. Arguments and errors are those of `FullRank`.

    Attributes:
        h: the covariances, in double precision.

    Reference: N. Ito, S. Araki, T. Nakatani, "FastFCA: a joint diagonalization based fast algorithm for audio source
        separation using a full-rank spatial covariance model", EUSIPCO 2018.
    """

    def __init__(
        self, mixture: Mixture, space: Covariances | None = None, n_sources: int = 2, white: Sequence[int] = ()
    ) -> None:
        if n_sources != 2:
            raise ValueError(f"a pair is of two sources, got {n_sources}")
        self._mixture, self._fitted = mixture, [n for n in range(2) if n not in white]
        self.h = _first(mixture, space, 2, frozenset(white))
        self._least = _LEAST * _mean_eigenvalue(self.h)
        self._joint = JointDiagonal(mixture, self._diagonal(), 2, per_frequency=True)

    def _diagonal(self) -> tuple[Tensor, Tensor]:
        """Q and g, at the mixture's precision."""
        q = generalised_eigenvectors(self.h[0], self.h.sum(0))
        x = self._mixture.spectrogram
        return q.to(x.dtype), diagonal_of(q, self.h).to(x.real.dtype)

    def view(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]], n: int) -> JointView:
        return self._joint.view(psds, n)

    def nll(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> Float[Tensor, "recording frame"]:
        return self._joint.nll(psds)

    def update(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> None:
        q, gains = self._joint.q, self._joint.gains.unsqueeze(-1)  # [source, recording, freq, row, 1]
        weights = [(without_draws(psd) * self._mixture.share).mT.unsqueeze(2) for psd in psds]
        variance = total([without_draws(psd).mT.unsqueeze(2) * g for psd, g in zip(psds, gains, strict=True)])
        y = (q @ self._mixture.spectrogram.permute(0, 2, 3, 1)).div_(variance)  # [recording, freq, row, frame]
        precision = variance.reciprocal_()
        h = self.h.clone()
        for n in self._fitted:
            bracket = ((y * weights[n]) @ y.mH).to(h.dtype)
            bracket.diagonal(dim1=-2, dim2=-1).sub_((precision * weights[n]).sum(-1))
            own = h[n] @ q.mH.to(h.dtype)
            h[n] = floored(h[n] + own @ bracket @ own.mH, self._least[n])
        self.h = h
        self._joint.place(*self._diagonal())

    def images(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Complex[Tensor, "source chosen frame freq channel"]:
        return self._joint.images(psds, chosen)

    def powers(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Float[Tensor, "source chosen frame freq"]:
        return _powers(self.h[:, list(chosen)], psds)


def _first(mixture: Mixture, space: Covariances | None, n_sources: int, white: frozenset[int]) -> Covariances:
    """Those to begin with, positive definite; the identity for white sources."""
    n_channels = mixture.common_channels()
    eye = torch.eye(n_channels, dtype=torch.complex128, device=mixture.power.device)
    if space is None:
        gains = first_gains(n_sources, n_channels).to(eye)
        h = torch.diag_embed(gains)[:, None, None].repeat(1, len(mixture.power), mixture.power.shape[-1], 1, 1)
    elif len(space) != n_sources:
        raise ValueError(f"covariances to begin with must be one of each of {n_sources} sources, got {len(space)}")
    else:
        h = ridged(space.to(torch.complex128), _LEAST)
    h[sorted(white)] = eye
    return h


def _mean_eigenvalue(h: Covariances) -> Float[Tensor, "source recording freq"]:
    return h.diagonal(dim1=-2, dim2=-1).real.mean(-1)


def _powers(h: Covariances, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> Tensor:
    return torch.stack(
        [
            without_draws(psd) * trace.unsqueeze(1).to(psd.dtype)
            for psd, trace in zip(psds, _mean_eigenvalue(h), strict=True)
        ]
    )
