"""Sources that each come from one direction: the rank-1 model of IVA and ILRMA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from audiovae.separation.mixture import Mixture
from audiovae.separation.outer_products import hermitian, outer_products
from audiovae.separation.spatial.covariances import Covariances, floored, projected, ridged
from audiovae.separation.spatial.diagonal import DiagonalView, Row
from audiovae.separation.spatial.spatial import Spatial, closed, mean_over_draws, without_draws

_RIDGE = 1e-9
_OTHERS, _FIRST_SWEEPS = 1e-2, 3  # share of all beside the others, and of their mean in any direction, at the start
_ROUNDING = 1e-6  # of covariances in single precision, as a share of their mean diagonal


class Demixing(Spatial):
    """H_nf = a_nf a_nf': W_f x_ft has one source in each row, of variance lambda_nft.

    With more channels than sources, x is first reduced to as many principal components, larger first and whitened;
    what the sources' images at the microphones, by joint least squares, leave of the mixture is that of the noise,
    which has no row. W is fitted by iterative projection: no update increases the nll.

    Args:
        mixture: recordings of several channels.
        space: covariances of the sources to begin with: each row hears as little as can be of the others; None: W is
            the identity.
        n_sources: how many there are, noise not counted.

    Raises:
        ValueError: recordings of different numbers of channels, or of fewer than sources.

    Reference: N. Ono, WASPAA 2011 (see `projected`); D. Kitamura, N. Ono, H. Sawada, H. Kameoka, H. Saruwatari,
        "Determined blind source separation unifying independent vector analysis and nonnegative matrix factorization",
        IEEE/ACM TASLP 24(9), 2016.
    """

    def __init__(self, mixture: Mixture, space: Covariances | None = None, n_sources: int = 2) -> None:
        n_channels = mixture.common_channels()
        if n_channels < n_sources:
            raise ValueError(f"a demixing matrix needs as many channels as sources, got {n_channels} and {n_sources}")
        self._mixture, self.n_sources = mixture, n_sources
        x = mixture.spectrogram.permute(0, 2, 3, 1)  # [recording, freq, channel, frame]
        n_frames = mixture.inside.sum(-1)[:, None, None, None]
        self._ridge = _ROUNDING if x.dtype == torch.complex64 else _RIDGE
        power, directions = torch.linalg.eigh(ridged((x @ x.mH / n_frames).to(torch.complex128), self._ridge))
        largest = slice(-n_sources, None)
        whitener = (directions[..., largest] * power[..., largest].rsqrt().unsqueeze(-2)).mH.flip(-2)
        self._x = whitener.to(x.dtype) @ x  # principal components, [recording, freq, row, frame]
        self._pca = whitener
        self._outer = outer_products(self._x)  # [recording, freq, row^2, frame]
        eye = torch.eye(n_sources, dtype=torch.complex128, device=x.device)
        self.w = eye.expand(*self._x.shape[:2], n_sources, n_sources)
        if space is not None:
            of_sources = whitener @ space[:n_sources].to(whitener.dtype) @ whitener.mH
            others = (of_sources.sum(0) - of_sources + _OTHERS * of_sources.sum(0)).permute(1, 2, 0, 3, 4)
            least = _OTHERS * others.diagonal(dim1=-2, dim2=-1).real.mean(-1).clamp(min=torch.finfo(torch.float32).tiny)
            for _ in range(_FIRST_SWEEPS):
                self.w = projected(self.w, floored(others, least))
        self._rotate()

    def reorder(self, order: Int[Tensor, "recording freq source"]) -> None:
        """Give each source another row, at every frequency."""
        self.w = self.w.gather(-2, order.unsqueeze(-1).expand_as(self.w))
        self._rotate()

    def columns(self) -> Complex[Tensor, "recording freq channel source"]:
        """The ways to the microphones: least squares of x on the rows."""
        return self._columns(list(range(len(self._x))))

    def _rotate(self) -> None:
        rows = self.w.to(self._x.dtype) @ self._x
        self._rows = rows
        self._power = (rows.real.square() + rows.imag.square()).permute(2, 0, 3, 1)  # [row, recording, frame, freq]
        self._log_det = 2 * torch.linalg.slogdet(self.w).logabsdet.sum(-1).to(self._power.dtype)

    def view(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]], n: int) -> DiagonalView:
        rows = [Row(self._power[n], 0.0)] if n < self.n_sources else []
        return DiagonalView(rows, self._mixture.told, -self._log_det.unsqueeze(-1))

    def update(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> None:
        """Rows in turn, with V_n = mean_t x x' / lambda_n."""
        weights = torch.stack([self._mixture.share / without_draws(psd) for psd in psds[: self.n_sources]])
        v = hermitian(weights.permute(1, 3, 0, 2) @ self._outer.mT).to(torch.complex128)
        self.w = projected(self.w, ridged(v, self._ridge))
        self._rotate()

    def nll(self, psds: Sequence[Float[Tensor, "_ recording frame freq"]]) -> Float[Tensor, "recording frame"]:
        misfit = -self._log_det.unsqueeze(-1)
        for psd, power in zip(psds, self._power, strict=False):
            misfit = misfit + mean_over_draws(
                ((torch.log(psd) + power / psd) * self._mixture.heard.unsqueeze(1)).sum(-1), 2
            )
        return misfit

    def images(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Complex[Tensor, "source chosen frame freq channel"]:
        """Columns of the least squares of x on all rows; the last source's is the rest."""
        where = list(chosen)
        x = self._mixture.spectrogram[where]
        y = self._rows[where]  # [chosen, freq, row, frame]
        columns = self._columns(where)  # [chosen, freq, channel, row]
        images = [torch.einsum("rfc,rft->rtfc", columns[..., n], y[..., n, :]) for n in range(self.n_sources)]
        return closed(images[: len(psds) - 1], x)

    def _columns(self, where: list[int]) -> Complex[Tensor, "chosen freq channel row"]:
        x, y = self._mixture.spectrogram[where].permute(0, 2, 3, 1), self._rows[where]
        cross, own = (x @ y.mH).to(torch.complex128), (y @ y.mH).to(torch.complex128)
        return torch.linalg.solve(ridged(own, self._ridge), cross.mH).mH.to(y.dtype)

    def powers(
        self, psds: Sequence[Float[Tensor, "_ chosen frame freq"]], chosen: Sequence[int]
    ) -> Float[Tensor, "source chosen frame freq"]:
        columns = self._columns(list(chosen)).abs().square().mean(-2)  # [chosen, freq, row]
        return torch.stack(
            [
                without_draws(psd) * (columns[..., n].unsqueeze(1) if n < self.n_sources else 1.0)
                for n, psd in enumerate(psds)
            ]
        )
