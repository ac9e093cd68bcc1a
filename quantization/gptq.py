"""GPTQ: one solver for every grid, as pure functions of a weight and a Hessian.

For one linear W [out, in] with inputs x, H = (2 / sequences) Σ x xᵀ [in, in]; the loss of ŵ is tr((W−Ŵ) H (W−Ŵ)ᵀ).
Columns are quantized from the first to the last; what column j loses is pushed into the later columns:

    U = upper Cholesky factor of (H + λI)⁻¹,   λ = percdamp · mean(diag H)
    e_j = (w_j − q(w_j)) / U_jj,   w_k ← w_k − e_j U_jk   for k > j

Paper: arXiv 2210.17323, Eq. 2–3 and Algorithm 1.  One factor serves every linear that reads the same input.
"""

from dataclasses import dataclass

import torch

from core.errors import UserError

DAMPING_TRIES = 8


@dataclass(frozen=True)
class Factor:
    """What the solver needs of a Hessian."""

    upper: torch.Tensor  # float32 [in, in], upper triangular U
    dead: torch.Tensor  # bool [in]: inputs that are always 0; their weights cannot matter and are set to 0
    damp: float  # λ that was added to the diagonal
    tries: int  # 1 = as asked; each further try took ten times the damping, from the original matrix

    @property
    def diagonal(self) -> torch.Tensor:
        """d_j = U_jj, float32 [in]."""
        return self.upper.diagonal()


def factorise(hessian: torch.Tensor, percdamp: float = 0.01, what: str = "a linear") -> Factor:
    """Damp and factorise an undamped Hessian (left as it is); damping grows tenfold from the original until it succeeds."""
    diagonal = hessian.diagonal()
    if not torch.isfinite(diagonal).all():
        raise UserError(f"the inputs of {what} are not finite on the calibration documents; the model or a block before it is broken")
    dead = diagonal == 0
    alive = hessian.clone()
    alive.diagonal()[dead] = 1.0
    mean = float(alive.diagonal().mean())
    for tries in range(1, DAMPING_TRIES + 1):
        damp = percdamp * mean * 10 ** (tries - 1)
        damped = alive.clone()
        damped.diagonal().add_(damp)
        upper = _inverse_factor(damped)
        if upper is not None:
            return Factor(upper, dead, damp, tries)
    raise UserError(f"the Hessian of {what} cannot be factorised even with {damp / mean:g} of its mean diagonal added; use more calibration tokens")


def _inverse_factor(damped: torch.Tensor) -> torch.Tensor | None:
    """Upper Cholesky factor of the inverse, in the published order of operations; None if either factorisation fails."""
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed or not torch.isfinite(upper).all() else upper
