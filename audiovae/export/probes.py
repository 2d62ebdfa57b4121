"""Random signs inside a graph: those of NumPy's default generator, so that a graph does what the library does."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_LIMB_BITS = 16  # of the limbs, the lowest first, that a number of 128 bits consists of: products of two stay small
_N_LIMBS = 8
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


class Probes(nn.Module):
    """`default_rng(0).integers(0, 2, [row, column], int8)`, as signs, for any number of rows up to `n_rows`.

    PCG64 steps s_i = a s_{i-1} + c modulo 2^128, so s_i = a^i s_0 + c (1 + a + ... + a^{i-1}), all i at once. Each
    state gives the 64 bits of its upper half xor its lower one, turned right by its uppermost 6 bits; of each byte the
    uppermost bit is a sign. The lower 32 bits go first; a call that leaves the upper ones leaves them to the next.

    Args:
        n_rows, n_columns: of the signs.

    Reference: M. O'Neill, "PCG: a family of simple fast space-efficient statistically good algorithms for random number
        generation", 2014 (XSL-RR 128/64).
    """

    powers: Tensor
    sums: Tensor

    def __init__(self, n_rows: int, n_columns: int) -> None:
        super().__init__()
        self.n_rows, self.n_columns = n_rows, n_columns
        state = np.random.PCG64(0).state["state"]
        n_states = (2 + -(-n_rows * n_columns // 4)) // 2 + 1
        power, total, powers, sums = 1, 0, [], []
        for _ in range(n_states):
            powers.append(_limbs(power))
            sums.append(_limbs(total * state["inc"]))
            power, total = power * _MULTIPLIER, total + power
        self.register_buffer("powers", torch.tensor(powers), persistent=False)
        self.register_buffer("sums", torch.tensor(sums), persistent=False)
        first = [*_limbs(state["state"]), 0]
        self.start = torch.tensor(first, dtype=torch.int32)  # limbs, and 1 where the upper 32 bits are still to be used

    def forward(
        self, state: Int[Tensor, " limb"], n: Int[Tensor, " number"]
    ) -> tuple[Float[Tensor, "row column"], Int[Tensor, " limb"]]:
        """Signs of the last `n` rows (those before them mean nothing), and the state after as many were drawn."""
        limbs, is_half_used = state[:_N_LIMBS].long(), state[_N_LIMBS:].long()
        states = self._steps(limbs)
        begin = 2 - is_half_used  # 32-bit words, from the present state on
        rows = (torch.arange(self.n_rows) - (self.n_rows - n)).clamp(min=0)
        places = 4 * begin + rows[:, None] * self.n_columns + torch.arange(self.n_columns)  # bytes
        signs = 2.0 * _uppermost_bits(states).flatten()[places] - 1.0
        last = begin + (n.long() * self.n_columns + 3) // 4 - 1
        after = torch.cat([states[last // 2].squeeze(0), 1 - last % 2])
        return signs, after.int()

    def _steps(self, limbs: Int[Tensor, " limb"]) -> Int[Tensor, "state limb"]:
        """s_0, s_1, ...: a product of numbers is a convolution of their limbs."""
        i = torch.arange(_N_LIMBS)
        shifted = torch.cat([torch.zeros_like(limbs), limbs])[_N_LIMBS + i - i[:, None]]
        raw, carry, steps = self.powers @ shifted + self.sums, torch.zeros_like(self.sums[:, 0]), []
        for k in range(_N_LIMBS):
            total = raw[:, k] + carry
            steps.append(total % 2**_LIMB_BITS)
            carry = total // 2**_LIMB_BITS
        return torch.stack(steps, dim=1)


def _uppermost_bits(states: Int[Tensor, "state limb"]) -> Float[Tensor, "state byte"]:
    """1 or 0 for the bytes that a state gives, the lowest byte first."""
    lower, upper = states.chunk(2, dim=1)
    turn = upper[:, -1:] // 2**10
    places = (8 * torch.arange(8) + 7 + turn) % 64
    limb, shift = places // _LIMB_BITS, places % _LIMB_BITS
    powers = 2 ** torch.arange(_LIMB_BITS)
    bits = (part.gather(1, limb) // powers[shift] % 2 for part in (lower, upper))
    return (sum(bits) % 2).float()  # type: ignore[union-attr,attr-defined]


def _limbs(number: int) -> list[int]:
    return [(number >> (_LIMB_BITS * i)) % 2**_LIMB_BITS for i in range(_N_LIMBS)]
