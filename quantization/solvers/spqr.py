"""SpQR: groups of 16 with quantized scales, and the weights that this grid serves worst kept at 16 bits.

For one linear W [out, in] with H = (2 / sequences) Σ x xᵀ [in, in], both in the order of falling diag H ("activation"):

    U = upper Cholesky factor of (H + λI)⁻¹,  λ = percdamp · mean(diag H),  d_j = U_jj
    T = threshold · mean_j(var_rows(W_j) / d_j²)      a higher threshold keeps fewer weights; inf keeps none
    columns one after the other as in quantization/solvers/spqr_fit.py

``sensitivity`` is the paper's Eq. 2 as an element score for the common table: (w − q(w))² / d_j² at round-to-nearest.

Paper: arXiv 2306.03078.  Deviations: those of spqr_fit.py; kept weights replace the grid's value, they are not added to
it (the authors' kernel adds); inputs that are always 0 have no error, so their weights are never kept; the permutation,
the kept weights' index and the second level's numbers are all counted.  ``published`` gives the arithmetic of the
published quantizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from core.errors import BudgetError, UserError
from core.lazy import torch
from core.registry import quantizer
from core.settings import Setting
from core.types import Aid, LayerPlan, Stored
from quantization.bits import layer_bits
from quantization.solvers.columns import column_major
from quantization.solvers.kept import kept_values
from quantization.solvers.rtn import dequantized
from quantization.solvers.spqr_fit import Settings, Solved, solve_columns
from streams.hessians import PERCDAMP, Factor, factorise, relative_error

ORDERS = ("activation", "identity")
THRESHOLD = Setting("threshold", float, 0.2, "a weight whose error exceeds it is kept at 16 bits; in units of the mean "
                    "variance of rows over d²", low=0, flag=False)
ORDER = Setting("order", str, "activation", "columns by falling diagonal of the Hessian, or as they stand",
                choices=ORDERS, flag=False)
TARGET = Setting("target", float, None, "stored bits a weight that the row is filled to (default: none)",
                 low=1, high=16, flag=False)

LONGEST_STEP = math.log(64)  # of a search, in the logarithm of the threshold
BELOW, STEPS = 0.02, 28  # of a search: bits a weight under the target that are near enough, and solutions it may try


@dataclass(frozen=True)
class Prepared:
    """What linears with one input share."""

    perm: torch.Tensor  # int64 [in]: W_perm = W[:, perm]
    factor: Factor  # of the permuted Hessian
    diagonal: torch.Tensor  # d_j, float32 [in]


def unit_of(columns: torch.Tensor, diagonal: torch.Tensor) -> float:
    """mean_j(var_rows(W_j) / d_j²) of a linear's ``columns`` [in, out]: the unit of the threshold."""
    spread = columns.var(1) if columns.shape[1] > 1 else columns.square().sum(1)
    return float((spread / diagonal.square()).mean())


def solve_spqr(weight: torch.Tensor, hessian: torch.Tensor, layer: LayerPlan, *, threshold: float = THRESHOLD.default,
               percdamp: float = 1.0, order: str = "activation", published: bool = False, simplified: bool = False,
               kept_dtype: torch.dtype | None = None, cache: dict | None = None, what: str = "a linear") -> Stored:
    """Quantize float32 ``weight`` [out, in].

    ``hessian`` [in, in] is undamped, ``cache`` belongs to this very Hessian; kept weights are stored as ``kept_dtype``
    (16 bits; None = bf16).  Raises UserError for settings, plans, weights and Hessians that SpQR cannot use.
    """
    _check(weight, hessian, layer, threshold=threshold, percdamp=percdamp, order=order, what=what)
    cache = {} if cache is None else cache
    key = ("spqr", order, percdamp, published)
    if key not in cache:
        cache[key] = _prepare(hessian, percdamp=percdamp, order=order, published=published, what=what)
    ready = cache[key]
    columns = column_major(weight[:, ready.perm])
    columns[ready.factor.dead] = 0.0
    unit = unit_of(columns, ready.diagonal)
    how = Settings(layer, limit=threshold * unit if math.isfinite(threshold) else math.inf, published=published,
                   simplified=simplified, kept_dtype=kept_dtype)
    solved = solve_columns(columns, ready.factor.upper, ready.diagonal, how=how)
    layer = replace(layer, ordered=order != "identity")
    values, layer, parts = _stored(solved, ready.perm, layer, kept_dtype=kept_dtype)
    notes = {"damp": ready.factor.damp, "tries": ready.factor.tries,
             "threshold": threshold if math.isfinite(threshold) else None,
             "outlier_share": len(parts.get("kept", ())) / weight.numel(),
             "relative_error": relative_error(weight, values, hessian)}
    return Stored(values, layer, parts, notes=notes)


def _check(weight: torch.Tensor, hessian: torch.Tensor, layer: LayerPlan, *, threshold: float, percdamp: float,
           order: str, what: str) -> None:
    widths = (layer.bits, layer.scale_bits, layer.zero_bits or 0)
    if layer.form != "bilevel" or layer.group_bits is not None or not all(1 <= bits <= 8 for bits in widths):
        raise UserError(f"SpQR stores {what} in the bilevel form with 1 to 8 bits a code, scale and zero; got form "
                        f"{layer.form!r} with {widths} bits; plan it with the method's own allocation")
    if order not in ORDERS:
        raise UserError(f"SpQR column order {order!r} is unknown; use one of {', '.join(ORDERS)}")
    if not threshold >= 0 or not 0 <= percdamp < math.inf:
        raise UserError("SpQR needs threshold >= 0 (inf keeps nothing) and a finite percdamp >= 0; got "
                        f"{threshold} and {percdamp}")
    if tuple(hessian.shape) != (weight.shape[1],) * 2:
        raise UserError(f"the Hessian of {what} is {tuple(hessian.shape)} for {weight.shape[1]} inputs; collect it at "
                        "this linear's own input")
    if not torch.isfinite(weight).all():
        raise UserError(f"the weights of {what} are not finite; the model is broken")


def _prepare(hessian: torch.Tensor, *, percdamp: float, order: str, published: bool, what: str) -> Prepared:
    """Permute and factorise.  SpQR's λ is a share of the mean over all inputs, dead ones (0) among them."""
    alive = hessian.diagonal()
    if order == "identity":
        perm, permuted = torch.arange(len(alive), device=alive.device), hessian.float()
    else:
        perm = torch.argsort(alive, descending=True, stable=True)
        permuted = hessian.float()[perm][:, perm]
    dead = alive == 0
    if dead.any():
        percdamp *= float(alive.mean() / torch.where(dead, 1.0, alive).mean())
    factor = factorise(permuted, percdamp, what)
    return Prepared(perm, factor, torch.where(factor.dead, 1.0 if published else math.inf, factor.diagonal))


def _stored(solved: Solved, perm: torch.Tensor, layer: LayerPlan, kept_dtype: torch.dtype | None):
    """(ŵ, what is really stored, its parts): the columns in their own order again."""
    back = torch.argsort(perm)
    values, kept = solved.values[back].T.contiguous(), solved.kept[back].T.contiguous()
    parts = {"codes": solved.codes.T.contiguous()} | kept_values(values, kept, kept_dtype)
    for name, levels in (("scale", solved.scales), ("zero", solved.zeros)):
        parts[f"{name}_codes"] = torch.stack([level.codes for level in levels], dim=1)  # uint8 [out, G]
        parts[f"{name}_s"] = torch.stack([level.scale for level in levels], dim=1)
        parts[f"{name}_z"] = torch.stack([level.zero for level in levels], dim=1)
    if layer.ordered:
        parts["perm"] = perm
    return values, replace(layer, keep=kept.cpu().numpy() if kept.any() else None), parts


def fit_threshold(weight: torch.Tensor, hessian: torch.Tensor, layer: LayerPlan, target_bits: float,
                  **settings) -> tuple[float, Stored]:
    """The threshold, and its solution, that stores ``target_bits`` a weight or up to 0.02 less, index and all.

    Where a linear is too small for steps of 0.02 bit, the nearest one below the target that was seen.  Raises
    BudgetError for a target below what is stored without any kept weight.
    """
    settings = {"order": "activation", "cache": {}} | settings
    least = _bits_a_weight(replace(layer, keep=None, ordered=settings["order"] != "identity"), weight)
    if not target_bits >= least:
        raise BudgetError(f"SpQR at {layer.bits} bits in groups of {layer.group_size} stores at least {least:.4f} bits "
                          f"a weight of {settings.get('what', 'a linear')}, the target is {target_bits}; raise the "
                          "target or lower the bits")

    def solve(threshold: float) -> tuple[float, Stored]:
        stored = solve_spqr(weight, hessian, layer, **settings | {"threshold": threshold})
        return _bits_a_weight(stored.layer, weight), stored

    best = (least, math.inf, None)
    if target_bits - least > BELOW:
        best = _search(solve, target_bits, least)
    return best[1], best[2] or solve(math.inf)[1]


def _bits_a_weight(layer: LayerPlan, weight: torch.Tensor) -> float:
    return layer_bits(layer, tuple(weight.shape)) / weight.numel()


def _search(solve: Callable[[float], tuple[float, Stored]], target: float, least: float) -> tuple:
    """(bits, threshold, Stored): secant steps on the logarithms of the threshold and of the bits above ``least``.

    A step that leaves the bracket, or a bracket that secants do not close, is halved instead.
    """
    fits = misses = None  # thresholds; more bits the lower
    best, before = (least, math.inf, None), None
    threshold, slope = THRESHOLD.default, -1.0
    for step in range(STEPS):
        bits, stored = solve(threshold)
        if bits <= target:
            fits, best = threshold, max(best, (bits, threshold, stored), key=lambda one: one[0])
        else:
            misses = threshold
        if target - BELOW <= best[0]:
            break
        at = (math.log(threshold), math.log(bits - least)) if bits > least else None
        if at and before and at[0] != before[0]:
            slope = min(-0.25, max(-4.0, (at[1] - before[1]) / (at[0] - before[0])))
        threshold *= 4.0 if bits > target else 0.25
        if at:
            wanted = (math.log(target - BELOW / 2 - least) - at[1]) / slope
            threshold = math.exp(at[0] + max(-LONGEST_STEP, min(LONGEST_STEP, wanted)))
        if fits and misses and (step % 4 == 3 or not misses < threshold < fits):
            threshold = math.sqrt(fits * misses)
        before = at
    return best


def sensitivity(weight: torch.Tensor, factor_diagonal: torch.Tensor, layer_base: LayerPlan) -> torch.Tensor:
    """e² = (w − q(w))² / d_j², float32 [out, in], at round-to-nearest in the common grid.

    ``factor_diagonal`` is d [in] in the weight's own column order; infinity there scores a dead input 0.
    """
    weight = weight.detach().float()
    return ((weight - dequantized(weight, layer_base)) / factor_diagonal).square()


@quantizer("spqr", needs=("hessian",), sequential=False, version=2, options=(THRESHOLD, PERCDAMP, ORDER, TARGET))
def spqr(weight: torch.Tensor, layer: LayerPlan, aid: Aid) -> Stored:
    """SpQR of one linear; with ``target`` the threshold is what stores that many bits a weight."""
    if aid.hessian is None:
        raise UserError(f"SpQR needs the inputs of {aid.fqn}; give it a calibration set")
    names = ("threshold", "percdamp", "order", "published")
    settings = {name: aid.options[name] for name in names if name in aid.options}
    settings |= {"kept_dtype": aid.kept_dtype, "cache": aid.shared, "what": aid.fqn}
    target = TARGET.of(aid.options)
    if target is None:
        return solve_spqr(weight, aid.hessian, layer, **settings)
    return fit_threshold(weight, aid.hessian, layer, target_bits=target, **settings)[1]
