"""Hessians of linears' inputs: damping, factors, the layer error, and the scorers' pass over the model as loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.errors import UserError
from core.lazy import torch
from core.settings import Setting
from core.types import Aid, ScoreContext

PERCDAMP = Setting("percdamp", float, None, "share of the Hessian's mean diagonal that is added to it (default: the "
                   "solver's own)", low=0, flag=False)

DAMPING_TRIES = 8
LEAST_DAMPING = 1e-6  # of the mean diagonal, from the second try on, when none was asked for


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
    """Damp and factorise an undamped Hessian [in, in] (left as it is).

    The damping grows tenfold from the original matrix until it succeeds.  Raises UserError for a Hessian that is not
    finite, or that no damping mends.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(diagonal).all():
        raise UserError(f"the inputs of {what} are not finite on the calibration documents; the model or a block "
                        "before it is broken")
    dead = diagonal == 0
    alive = hessian.clone()
    alive.diagonal()[dead] = 1.0
    mean = float(alive.diagonal().mean())
    for tries in range(1, DAMPING_TRIES + 1):
        damp = (percdamp if tries == 1 else max(percdamp, LEAST_DAMPING) * 10 ** (tries - 1)) * mean
        damped = alive.clone()
        damped.diagonal().add_(damp)
        upper = _inverse_factor(damped)
        if upper is not None:
            return Factor(upper, dead, damp=damp, tries=tries)
    raise UserError(f"the Hessian of {what} cannot be factorised even with {damp / mean:g} of its mean diagonal added; "
                    "use more calibration tokens")


def _inverse_factor(damped: torch.Tensor) -> torch.Tensor | None:
    """Upper Cholesky factor of the inverse, in the published order of operations; None if a factorisation fails."""
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed or not torch.isfinite(upper).all() else upper


def relative_error(weight: torch.Tensor, values: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr((W−Ŵ) H (W−Ŵ)ᵀ) / tr(W H Wᵀ) with the undamped Hessian; 0 for inputs that are always 0."""
    lost, whole = (layer_error(moved, hessian) for moved in (weight - values, weight))
    return lost / whole if whole else 0.0


def layer_error(moved: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(Δ H Δᵀ) of a change Δ [out, in] of the weights."""
    return float(((moved @ hessian) * moved).sum(dtype=torch.float64))


def score_each(ctx: ScoreContext, score: Callable[[torch.Tensor, Factor], torch.Tensor],
               what: str) -> dict[str, torch.Tensor]:
    """``score(weight float32 [out, in], factor)`` of every linear, on the CPU.

    Linears that read the same input share one factor, of the full-precision model's inputs.
    """
    from streams.blocks import BlockStream, walk

    values: dict[str, torch.Tensor] = {}

    def see(fqn: str, aid: Aid) -> None:
        if "factor" not in aid.shared:
            aid.shared["factor"] = factorise(aid.hessian, what=fqn)
        values[fqn] = score(ctx.linears[fqn].weight.detach().float(), aid.shared["factor"]).cpu()

    stream = BlockStream(ctx.model, ctx.blocks, ctx.solver_calib.tokens)
    walk(stream, ctx.linears, ctx.block_of, solve_one=see, sequential=False,
         progress=lambda done, total: ctx.progress(what, done, total))
    return values
