"""Hessians of linears' inputs: sums, damping, factors, the layer error, and the pivots that scorers read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.errors import UserError
from core.lazy import torch
from core.settings import Setting
from core.types import Aid, ScoreContext

PERCDAMP = Setting("percdamp", float, None, "share of the Hessian's mean diagonal that is added to it (default: the "
                   "solver's own)", low=0, flag=False)

DISCOUNT = Setting("discount", float, 0.0, "share by which correlations of inputs count less: off the diagonal, the "
                   "Hessian is times 1 - discount", low=0, high=1, flag=False)

DAMPING_TRIES = 8
PANELS = 4  # of a Hessian's columns: 5/8 of the products of the whole matrix
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


def add_gram(total: torch.Tensor, rows: torch.Tensor, alpha: float) -> None:
    """Add alpha · XᵀX of ``rows`` X [T, in] to ``total`` [in, in]: panels of columns down to the diagonal.

    The rest, which is the same transposed, is as it was until :func:`mirror`.
    """
    for panel in _panels(len(total)):
        total[:panel.stop, panel].addmm_(rows[:, :panel.stop].t(), rows[:, panel], alpha=alpha)


def mirror(total: torch.Tensor) -> torch.Tensor:
    """Fill in, in place, what :func:`add_gram` leaves out."""
    for panel in _panels(len(total)):
        total[panel, :panel.start] = total[:panel.start, panel].t()
    return total


def _panels(width: int) -> list[slice]:
    step = max(128, -(-width // PANELS))
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


def discounted(hessian: torch.Tensor, share: float) -> torch.Tensor:
    """(1 − share) · H + share · diag(H): a covariance shrunk towards its own diagonal, for few tokens say little of how
    inputs go together (Schäfer and Strimmer 2005, target D).  A copy, unless there is nothing to discount.
    """
    if not share:
        return hessian
    shrunk = hessian * (1 - share)
    shrunk.diagonal().copy_(hessian.diagonal())
    return shrunk


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
    mean = float(torch.where(dead, 1.0, diagonal).mean())
    for tries in range(1, DAMPING_TRIES + 1):
        damp = (percdamp if tries == 1 else max(percdamp, LEAST_DAMPING) * 10 ** (tries - 1)) * mean
        upper = _inverse_factor(_damped(hessian, dead, damp))
        if upper is not None:
            return Factor(upper, dead, damp=damp, tries=tries)
    raise UserError(f"the Hessian of {what} cannot be factorised even with {damp / mean:g} of its mean diagonal added; "
                    "use more calibration tokens")


def _damped(hessian: torch.Tensor, dead: torch.Tensor, damp: float) -> torch.Tensor:
    """A copy with ``damp`` added to the diagonal, which is 1 before that at dead inputs."""
    damped = hessian.clone()
    damped.diagonal()[dead] = 1.0
    damped.diagonal().add_(damp)
    return damped


def _inverse_factor(damped: torch.Tensor) -> torch.Tensor | None:
    """Upper Cholesky factor of the inverse, in the published order of operations; None if a factorisation fails.

    Each matrix is dropped as soon as the next is made, so there are two at a time.
    """
    lower, failed = torch.linalg.cholesky_ex(damped)
    del damped
    if failed:
        return None
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    return None if failed or not torch.isfinite(upper).all() else upper


def relative_error(weight: torch.Tensor, values: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr((W−Ŵ) H (W−Ŵ)ᵀ) / tr(W H Wᵀ) with the undamped Hessian; 0 for inputs that are always 0."""
    lost, whole = (layer_error(moved, hessian) for moved in (weight - values, weight))
    return lost / whole if whole else 0.0


def layer_error(moved: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(Δ H Δᵀ) of a change Δ [out, in] of the weights."""
    return float(((moved @ hessian) * moved).sum(dtype=torch.float64))


def pivots_of(ctx: ScoreContext) -> dict[str, torch.Tensor]:
    """d_j = U_jj of every linear's input, float32 [in], on the model as loaded; infinite at inputs that are always 0.

    Linears that read the same input share one factor.
    """
    from streams.blocks import BlockStream, walk

    values: dict[str, torch.Tensor] = {}

    def see(fqn: str, aid: Aid) -> None:
        if "pivots" not in aid.shared:
            factor = factorise(aid.hessian, what=fqn)
            aid.shared["pivots"] = torch.where(factor.dead, torch.inf, factor.diagonal)
        values[fqn] = aid.shared["pivots"].clone()

    stream = BlockStream(ctx.model, ctx.blocks, ctx.solver_calib.tokens)
    walk(stream, ctx.linears, ctx.block_of, solve_one=see, sequential=False, writes=False,
         progress=lambda done, total: ctx.progress("Hessians", done, total))
    return values


def score_each(ctx: ScoreContext,
               score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """``score(weight float32 [out, in], pivots [in])`` of every linear, on the CPU."""
    from core.forward import device_of
    from core.offload import set_aside

    pivots, device = ctx.pivots(), device_of(ctx.model)
    return {fqn: set_aside(ctx.model, score(lin.weight.detach().to(device).float(), pivots[fqn].to(device)))
            for fqn, lin in ctx.linears.items()}
