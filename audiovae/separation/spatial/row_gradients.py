"""Sums over frames of the updates of `JointDiagonal`, with gradients that make anew what is quicker made than kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = Float[Tensor, "row recording freq frame"]
Psds = Float[Tensor, "source recording freq frame"]
Gains = Float[Tensor, "source recording _ row"]


def mixed(gains: Gains, psds: Float[Tensor, "*draw source recording freq frame"]) -> Tensor:
    """The variance of the rows, Y_ftm = sum_n lambda_nft g_nm: `[*draw, row, recording, freq, frame]`."""
    return torch.einsum("nrfm,...nrft->...mrft", gains, psds)


class RowPower(torch.autograd.Function):
    """P_m = |q_m x|^2."""

    @staticmethod
    def forward(
        context: Any,
        q: Complex[Tensor, "recording freq row channel"],
        parts: Float[Tensor, "recording freq parts frame"],
    ) -> Rows:
        """Args: parts: the real parts of x, and below them the imaginary ones."""
        context.save_for_backward(q, parts)
        real, imaginary = (_of_parts(q) @ parts).square_().movedim(2, 0).chunk(2)
        return torch.add(real, imaginary, out=real.new_empty(real.shape))  # a frequency's frames next to each other

    @staticmethod
    @once_differentiable
    def backward(context: Any, slope: Rows) -> tuple[Tensor, None]:
        """2 sum_t slope (q_m x) x'."""
        q, parts = context.saved_tensors
        rows = _of_parts(q) @ parts
        rows.unflatten(2, (2, -1)).mul_(slope.permute(1, 2, 0, 3).unsqueeze(2))
        real, imaginary = (rows @ parts.mT).mul_(2).chunk(2, dim=2)
        (rr, ri), (ir, ii) = real.chunk(2, dim=3), imaginary.chunk(2, dim=3)
        return torch.complex(rr + ii, ir - ri), None


class GainSums(torch.autograd.Function):
    """sum_t lambda_n P_m / Y_m^2 and sum_t lambda_n / Y_m, `[source, recording, freq, row]`."""

    @staticmethod
    def forward(
        context: Any, power: Rows, psds: Psds, gains: Gains, inside: Bool[Tensor, "recording 1 frame"]
    ) -> tuple[Tensor, Tensor]:
        """Args: inside: which frames count."""
        context.save_for_backward(power, psds, gains, inside)
        u = mixed(gains, psds).reciprocal_().mul_(inside)
        return _over_frames(psds, (power * u).mul_(u)), _over_frames(psds, u)

    @staticmethod
    @once_differentiable
    def backward(context: Any, of_fall: Tensor, of_rise: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With u = 1 / Y: dY = -u^2 (2 (sum_n dF_n lambda_n) P u + sum_n dR_n lambda_n)."""
        power, psds, gains, inside = context.saved_tensors
        u = mixed(gains, psds).reciprocal_().mul_(inside)
        square = u.square()
        of_power = mixed(of_fall, psds).mul_(square)
        of_variance = mixed(of_rise, psds).mul_(square)
        of_variance.addcmul_((of_power * power).mul_(2), u).neg_()
        of_psds = _over_rows(of_fall, square.mul_(power))
        of_psds += _over_rows(of_rise, u)
        of_psds += _over_rows(gains, of_variance)
        return of_power, of_psds, _over_frames(psds, of_variance).sum_to_size(gains.shape), None


class WeightedOuter(torch.autograd.Function):
    """`weighted_outer` of 1 / Y."""

    @staticmethod
    def forward(
        context: Any, psds: Psds, gains: Gains, outer: Tensor, share: Tensor, dither: Tensor
    ) -> Float[Tensor, "recording freq row square"]:
        context.save_for_backward(psds, gains, outer, share, dither)
        return weighted_outer(mixed(gains, psds).reciprocal_(), outer, share, dither)

    @staticmethod
    @once_differentiable
    def backward(context: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """By dY = -d(1 / Y) / Y^2."""
        psds, gains, outer, share, dither = context.saved_tensors
        of_diagonal = slope[..., : math.isqrt(slope.shape[-1])].sum(-1, keepdim=True) * dither[..., None, None]
        of_variance = (slope @ outer).add_(of_diagonal).mul_(share.mT.unsqueeze(1)).permute(2, 0, 1, 3)
        of_variance.mul_(mixed(gains, psds).reciprocal_().square_()).neg_()
        of_gains = _over_frames(psds, of_variance).sum_to_size(gains.shape)
        return _over_rows(gains, of_variance), of_gains, None, None, None


def weighted_outer(
    weights: Rows,
    outer: Float[Tensor, "recording freq square frame"],
    share: Float[Tensor, "recording frame 1"],
    dither: Float[Tensor, "recording freq"],
) -> Float[Tensor, "recording freq row square"]:
    """V_m = mean_t w_m (x x' + dither I), as numbers, see `outer_products`.

    Args:
        outer: of x; zero in the padding.
        share: of each frame in the mean.
    """
    weights = weights.permute(1, 2, 0, 3)
    numbers = weights @ outer.mT * share.amax(1, keepdim=True).unsqueeze(1)
    numbers[..., : math.isqrt(outer.shape[2])] += dither[..., None, None] * (weights @ share.unsqueeze(1))
    return numbers


def _of_parts(q: Complex[Tensor, "recording freq row channel"]) -> Float[Tensor, "recording freq rows channels"]:
    """The matrix of real numbers that does to the parts of a vector what Q does to it: faster than complex numbers."""
    re, im = q.real, q.imag
    return torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)


def _over_frames(psds: Psds, rows: Rows) -> Float[Tensor, "source recording freq row"]:
    return torch.einsum("nrft,mrft->nrfm", psds, rows)


def _over_rows(gains: Gains, rows: Rows) -> Psds:
    return torch.einsum("nrfm,mrft->nrft", gains, rows)
