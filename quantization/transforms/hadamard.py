"""Hadamard rotations of any width that a construction fits, applied factor by factor.

A Hadamard matrix H of order n has entries ±1 and H Hᵀ = n I.  Sylvester gives the powers of two; Paley gives q + 1 for
a prime q = 3 mod 4, and 2 (q + 1) for a prime q = 1 mod 4; the Kronecker product of two is one again.  A width is the
power of two times the smallest Paley order that divides it: 576 = 36 · 16, 1536 = 12 · 128, 11008 = 5504 · 2.
Sources: Paley 1933; QuaRot (arXiv 2404.00456) for the use.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.linalg import hadamard as sylvester

from core.errors import UserError

DENSE = 64  # order up to which powers of two are one factor


@dataclass
class Rotation:
    """An orthogonal matrix Q = diag(signs) (H₁ ⊗ H₂ ⊗ …) / √n of order n."""

    factors: tuple[torch.Tensor, ...]  # float32 [m, m] of ±1 each
    signs: torch.Tensor | None = None  # float32 [n] of ±1; None = all 1
    _placed: dict = field(default_factory=dict, repr=False)

    @property
    def order(self) -> int:
        return int(np.prod([len(factor) for factor in self.factors]))

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """x Q of x [..., n], in x's dtype; compute in float32 or float64."""
        signs, factors = self._on(x.device, x.dtype)
        y = (x if signs is None else x * signs).reshape(-1, *(len(factor) for factor in factors))
        for factor in factors:  # the first axis left goes in, the new one comes last: in the end all are in order
            y = torch.tensordot(y, factor, dims=([1], [0]))
        return y.reshape(x.shape) * self.order**-0.5

    def turn_rows(self, weight: torch.Tensor) -> torch.Tensor:
        """Qᵀ W of W [n, in]."""
        return self.turn(weight.t()).t()

    def _on(self, device, dtype):
        if (device, dtype) not in self._placed:
            with torch.inference_mode(False):  # gradients may be taken through them later
                self._placed[device, dtype] = (None if self.signs is None else self.signs.to(device, dtype),
                                               [factor.to(device, dtype) for factor in self.factors])
        return self._placed[device, dtype]


def rotation(width: int, seed: int | None = None) -> Rotation:
    """The rotation of that width, with random signs by the seed if one is given.

    Raises UserError for a width that no construction fits.
    """
    factors = tuple(torch.from_numpy(h.astype(np.float32)) for h in _factors(width))
    if seed is None:
        return Rotation(factors)
    draw = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(seed))
    return Rotation(factors, (2 * draw - 1).float())


def _factors(width: int) -> list[np.ndarray]:
    """Hadamard matrices whose orders multiply to the width."""
    power = width & -width  # the largest power of two that divides it
    while power:
        odd = np.ones((1, 1)) if width == power else paley(width // power)
        if odd is not None:
            return [odd] * (len(odd) > 1) + _powers(power) or [odd]
        power //= 2
    raise UserError(f"no Hadamard matrix of order {width} can be built (a power of two times q + 1 or 2 (q + 1) of a "
                    "prime q), so this width cannot be rotated; use --transform smooth or none")


def _powers(power: int) -> list[np.ndarray]:
    factors = []
    while power > 1:
        factors.append(sylvester(min(power, DENSE)))
        power //= len(factors[-1])
    return factors


def paley(order: int) -> np.ndarray | None:
    """The Hadamard matrix [order, order] of Paley's first or second construction; None where neither fits."""
    if order % 4:
        return None
    if (order - 1) % 4 == 3 and _prime(order - 1):
        q = order - 1
        skew = np.zeros((order, order), dtype=np.int8)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _residues(q)
        return skew + np.eye(order, dtype=np.int8)
    q = order // 2 - 1
    if q % 4 == 1 and _prime(q):
        conference = np.zeros((q + 1, q + 1), dtype=np.int8)
        conference[0, 1:] = conference[1:, 0] = 1
        conference[1:, 1:] = _residues(q)
        return np.kron(conference, [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1, dtype=np.int8), [[1, -1], [-1, -1]])
    return None


def _residues(q: int) -> np.ndarray:
    """[q, q]: 1 where i − j is a square modulo the prime q, −1 where it is none, 0 on the diagonal."""
    kind = np.full(q, -1, dtype=np.int8)
    kind[np.arange(1, q, dtype=np.int64) ** 2 % q] = 1
    kind[0] = 0
    return kind[(np.arange(q)[:, None] - np.arange(q)[None]) % q]


def _prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, int(q**0.5) + 1))
