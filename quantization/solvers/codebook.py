"""SqueezeLLM: a codebook of 2^b values a row by sensitivity-weighted k-means, a few weights kept at 16 bits.

For one linear W [out, in] with the diagonal Fisher F [out, in] (summed squared gradients), row by row:

    min over c_1..c_K and codes q of   Σ_j F_j (w_j − c_q(j))²,   K = 2^b,   F_j = 0 where the weight is kept

Kept, dense-and-sparse: the largest |w| of the whole linear (share 0.0045), then the largest F among the rest (0.0005).
Stored: b-bit codes, K fp16 values a row, kept weights as bf16 with their index; quantization/bits.py counts them.

Solver.  Optimal clusters of numbers on a line are intervals of the sorted row, so with W0, W1 = cumulative Σ w and Σ w·x
the cost of an interval is a difference: Σ w x² − (ΔW1)²/ΔW0, and the best K intervals with ends among M candidates are
found exactly by dynamic programming, K·M²/2 steps.  A row of at most M values is solved exactly.  Otherwise the M ends
follow the optimal point density of a scalar quantizer, w^(1/3)·dx^(2/3), mixed half and half with equal counts; Lloyd's
iteration then moves the ends over all values, and two more passes repeat both with shifted candidates and the ends found
so far, so no pass can do worse than the one before.  Nothing is random.

Paper: arXiv 2306.07629, with the settings of arXiv 2504.07389 (appendix).  Deviations: the solver above instead of
k-means++ with ten restarts (same objective); the kept weights' index is packed by the accountant's cheapest form instead of
32-bit CSR; a row without Fisher among its clustered weights uses equal weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.errors import UserError
from core.lazy import torch
from core.registry import quantizer
from core.types import Aid, LayerPlan, Stored
from quantization.allocators.ranking import first_k

PASSES = 3  # on 200 rows of 576 none ended more than 1 % above the optimum; with 2 it was 1 in 200 at 16 levels

GOLDEN = 0.6180339887498949  # successive multiples, modulo 1, shift the candidates evenly

BLOCK_VALUES = 2**18  # values sorted at once, and entries of a cost table at once: both stay in the cache


def weighted_kmeans(values: torch.Tensor, weights: torch.Tensor, levels: int, iterations: int = 100,
                    seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster each row of ``values`` float32 [rows, n] under ``weights`` >= 0.

    Returns centers float32 [rows, levels], ascending, and each value's nearest center, uint8 [rows, n].  ``seed`` shifts
    the candidate ends.  A row whose weights are all zero counts every value alike.
    """
    _check(values, weights, levels)
    rows = max(1, BLOCK_VALUES // values.shape[1])
    done = [_cluster(v, w, levels, iterations, seed) for v, w in zip(values.split(rows), weights.split(rows))]
    centers = torch.cat(done)
    return centers, nearest(values, centers)


def nearest(values: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """The nearest of ascending ``centers`` [rows, K] to each value, uint8 [rows, n]; halfway goes to the lower one."""
    centers = centers.double()
    return torch.searchsorted(_midpoints(centers), values.double().contiguous()).to(torch.uint8)


def _check(values: torch.Tensor, weights: torch.Tensor, levels: int) -> None:
    if values.shape != weights.shape or values.ndim != 2 or not values.numel():
        raise ValueError(f"k-means needs values and weights of one shape [rows, n], got {tuple(values.shape)} and {tuple(weights.shape)}")
    if not 1 <= levels <= 256:
        raise ValueError(f"k-means with {levels} levels; codes are bytes, so use 1 to 256")
    if not torch.isfinite(values).all():
        raise UserError("the weights to cluster hold NaN or infinity; the model is broken, load it again")
    if not (torch.isfinite(weights).all() and (weights >= 0).all()):
        raise UserError("the Fisher information holds NaN, infinity or negative numbers where squared gradients (>= 0) are needed; "
                        "compute the gradients in float32 or bfloat16")


def _cluster(values: torch.Tensor, weights: torch.Tensor, levels: int, iterations: int, seed: int) -> torch.Tensor:
    """Centers float32 [rows, levels] of one block of rows."""
    weights = weights.double()
    peak = weights.amax(1, keepdim=True)
    weights = torch.where(peak > 0, weights / torch.where(peak > 0, peak, 1.0), 1.0)  # scale-free, and uniform where all zero
    values = values.double()
    x, order = values.masked_fill(weights == 0, torch.inf).sort(dim=1, stable=True)
    x = x.minimum(x.masked_fill(x == torch.inf, -torch.inf).amax(1, keepdim=True))  # values without weight lie at the end, out of the way
    w = weights.gather(1, order)
    shift = (w * x).sum(1, keepdim=True) / w.sum(1, keepdim=True)  # small numbers keep the differences exact
    x = x - shift
    total, moment = _cumulative(w), _cumulative(w * x)
    ends = None
    for turn in range(PASSES):
        candidates = _candidates(x, w, levels, (0.5 + GOLDEN * (seed + turn)) % 1)
        if ends is not None:
            candidates = torch.cat([candidates, ends[:, 1:-1]], 1).sort(1).values
        ends = candidates.gather(1, _best_intervals(total.gather(1, candidates), moment.gather(1, candidates), levels))
        centers, ends = _lloyd(x, total, moment, ends, iterations)
        if candidates.shape[1] > x.shape[1]:  # every position was a candidate: this is the optimum
            break
    return _exact_means(values, weights, centers + shift)


def _cumulative(t: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(t[:, :1]), t.cumsum(1)], 1)


def _midpoints(centers: torch.Tensor) -> torch.Tensor:
    return ((centers[:, 1:] + centers[:, :-1]) / 2).contiguous()


def _candidates(x: torch.Tensor, w: torch.Tensor, levels: int, offset: float) -> torch.Tensor:
    """Where intervals of sorted ``x`` may end, int64 [rows, M + 1] from 0 to n, ascending."""
    rows, n = x.shape
    bins = 48 + 3 * levels
    if n <= bins:
        return torch.arange(n + 1).expand(rows, n + 1).contiguous()
    gap = torch.cat([x[:, 1:2] - x[:, :1], (x[:, 2:] - x[:, :-2]) / 2, x[:, -1:] - x[:, -2:-1]], 1)
    density = w.pow(1 / 3) * gap.pow(2 / 3)
    mass = (density / density.sum(1, keepdim=True).clamp(min=1e-300) + (w > 0) / n).cumsum(1)
    inner = torch.searchsorted(mass, mass[:, -1:] * ((torch.arange(bins - 1) + offset) / (bins - 1)).to(mass))
    rank = (x[:, 1:] > x[:, :-1]).cumsum(1)  # rank of each value but the first among the row's distinct values
    distinct = torch.searchsorted(rank, torch.arange(1, bins, dtype=rank.dtype).expand(rows, -1).contiguous()) + 1
    inner = torch.where(rank[:, -1:] < bins, distinct, inner)  # few distinct values: their borders, and no others
    zero = torch.zeros(rows, 1, dtype=torch.long)
    return torch.cat([zero, inner.clamp(max=n), zero + n], 1)


def _best_intervals(total: torch.Tensor, moment: torch.Tensor, levels: int) -> torch.Tensor:
    """Positions [rows, levels + 1] among the candidates that end the best intervals; intervals may be empty."""
    step = max(1, BLOCK_VALUES // 2 // total.shape[1] ** 2)
    return torch.cat([_intervals(t, m, levels) for t, m in zip(total.split(step), moment.split(step))])


def _intervals(total: torch.Tensor, moment: torch.Tensor, levels: int) -> torch.Tensor:
    rows, count = total.shape
    width = total[:, :, None] - total[:, None, :]  # [rows, end, start]
    cost = (moment[:, :, None] - moment[:, None, :]).square_().div_(width.clamp(min=1e-300)).neg_()  # Σ w x² is a constant
    cost.masked_fill_(width <= 0, 0.0)
    cost.masked_fill_(torch.ones(count, count, dtype=torch.bool).triu(1), torch.inf)
    best = [cost[:, :, 0]]  # best[k][end]: the first k + 1 intervals reach ``end``
    for _ in range(levels - 1):
        best.append((cost + best[-1][:, None, :]).amin(2))
    row, ends = torch.arange(rows), [torch.full((rows,), count - 1)]
    for k in range(levels - 2, -1, -1):
        ends.append((cost[row, ends[-1]] + best[k]).argmin(1))
    return torch.stack([*ends, torch.zeros(rows, dtype=torch.long)][::-1], 1)


def _lloyd(x: torch.Tensor, total: torch.Tensor, moment: torch.Tensor, ends: torch.Tensor, iterations: int):
    """Centers [rows, K] and interval ends [rows, K + 1] after Lloyd's iteration; a cluster without weight keeps its center."""
    centers = x.gather(1, ends[:, :-1].clamp(max=x.shape[1] - 1))
    for _ in range(max(1, iterations)):
        mass, first = (t.gather(1, ends).diff(dim=1) for t in (total, moment))
        low, high = (x.gather(1, e.clamp(0, x.shape[1] - 1)) for e in (ends[:, :-1], ends[:, 1:] - 1))
        means = (first / mass.clamp(min=1e-300)).maximum(low).minimum(high)  # a cluster of hardly any weight has hardly any digits
        centers = torch.where(mass > 0, means, centers).sort(1).values
        moved = torch.cat([ends[:, :1], torch.searchsorted(x, _midpoints(centers), right=True), ends[:, -1:]], 1)
        if torch.equal(moved, ends):
            break
        ends = moved
    return centers, ends


def _exact_means(values: torch.Tensor, weights: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Each cluster's mean summed afresh: differences of cumulative sums lose the digits of a cluster of little weight."""
    codes = nearest(values, centers).long()
    mass, first = (torch.zeros_like(centers).scatter_add_(1, codes, t) for t in (weights, weights * values))
    return torch.where(mass > 0, first / mass.clamp(min=1e-300), centers).sort(1).values.float()


def kept_mask(weight: torch.Tensor, fisher: torch.Tensor, magnitude_share: float, fisher_share: float) -> np.ndarray:
    """Bool [out, in]: the largest |w| of the linear, then the largest Fisher (> 0) among the rest; ties by position."""
    shares = {"magnitude_share": magnitude_share, "fisher_share": fisher_share}
    for name, share in shares.items():
        if not 0 <= share < 0.5:
            raise UserError(f"{name} = {share} is not a share of kept weights in [0, 0.5); SqueezeLLM keeps 0.0045 and 0.0005")
    size = weight.abs().flatten().float()
    flags = torch.zeros(size.numel(), dtype=torch.bool)
    flags[first_k(size, round(magnitude_share * size.numel()), key=_position)] = True
    rest = fisher.flatten().float().masked_fill(flags, 0.0)
    top = first_k(rest, round(fisher_share * size.numel()), key=_position)
    flags[top[rest[top] > 0]] = True
    return flags.reshape(weight.shape).numpy()


def _position(positions: np.ndarray) -> np.ndarray:
    return positions


def solve_codebook(weight: torch.Tensor, fisher: torch.Tensor, layer: LayerPlan, *, magnitude_share: float = 0.0045,
                   fisher_share: float = 0.0005, seed: int = 0) -> Stored:
    """Quantize ``weight`` float32 [out, in] under ``fisher`` float32 [out, in]; ``layer.form`` is "codebook", bits 1..8."""
    if layer.form != "codebook" or not 1 <= layer.bits <= 8:
        raise UserError(f"SqueezeLLM stores a codebook of 1 to 8 bits, the plan says form {layer.form!r} at {layer.bits} bits; "
                        "use an allocator that plans codebooks")
    _check(weight, fisher, 2**layer.bits)
    keep = kept_mask(weight, fisher, magnitude_share, fisher_share)
    kept = torch.as_tensor(keep)
    weights = fisher.float().masked_fill(kept, 0.0)
    blind = weights.amax(1, keepdim=True) == 0
    weights = torch.where(blind, (~kept).float(), weights)
    centers = weighted_kmeans(weight.float(), weights, 2**layer.bits, seed=seed)[0].half()
    if torch.isinf(centers).any():
        raise UserError("a codebook value exceeds 65504, the largest fp16 number; the weights are broken, load the model again")
    codes = nearest(weight.float(), centers.float())
    parts = {"codes": codes, "centers": centers} | ({"kept": weight[kept].bfloat16()} if keep.any() else {})
    stored = Stored(_decode(parts, kept), replace(layer, keep=keep if keep.any() else None), parts)
    return replace(stored, notes=_notes(stored, weight, fisher, kept, blind))


def _decode(parts: dict[str, torch.Tensor], kept: torch.Tensor) -> torch.Tensor:
    out = parts["centers"].float().gather(1, parts["codes"].long())
    if "kept" in parts:
        out[kept] = parts["kept"].float()
    return out


def _notes(stored: Stored, weight: torch.Tensor, fisher: torch.Tensor, kept: torch.Tensor, blind: torch.Tensor) -> dict:
    f = fisher.double()
    scale = float((f * weight.double().square()).sum())
    error = float((f * (weight.double() - stored.values.double()).square()).sum())
    return {"kept_share": float(kept.double().mean()), "relative_fisher_error": error / scale if scale else None,
            "rows_without_fisher": int(blind.sum())}


@quantizer("squeezellm", needs=("fisher",), options=("magnitude_share", "fisher_share"))
def squeezellm(weight: torch.Tensor, layer: LayerPlan, aid: Aid) -> Stored:
    """The published quantizer: dense codes by weighted k-means, sparse outliers at 16 bits."""
    if aid.fisher is None:
        raise UserError(f"SqueezeLLM got no Fisher information for {aid.fqn}; run it with calibration documents")
    options = {k: v for k, v in aid.options.items() if k in ("magnitude_share", "fisher_share")}
    try:
        return solve_codebook(weight.cpu(), aid.fisher.cpu(), layer, **options)  # sorting and tables of a row at a time: a CPU's work
    except UserError as error:
        raise UserError(f"{aid.fqn}: {error}") from error
