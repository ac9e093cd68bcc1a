"""SqueezeLLM: a codebook of 2^b values a row by sensitivity-weighted k-means, a few weights kept at 16 bits.

For one linear W [out, in] with the diagonal Fisher F [out, in] (summed squared gradients), row by row:

    min over c_1..c_K and codes q of   Σ_j F_j (w_j − c_q(j))²,   K = 2^b,   F_j = 0 where the weight is kept

Kept, dense-and-sparse: the largest |w| of the whole linear (share 0.0045), then the largest F among the rest (0.0005).
With a target of stored bits, as many are kept as each linear has room for, in the same proportion of the two.
Stored: b-bit codes, K fp16 values a row, kept weights at 16 bits with their index; quantization/bits.py counts them.

The clusters are found by quantization/solvers/kmeans.py.

Paper: arXiv 2306.07629, with the settings of arXiv 2504.07389 (appendix).  Deviations: that solver instead of k-means++
with ten restarts (same objective); the kept weights' index is packed by the accountant's cheapest form instead of
32-bit CSR; a row without Fisher among its clustered weights uses equal weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.errors import BudgetError, UserError
from core.lazy import torch
from core.registry import quantizer
from core.settings import Setting
from core.types import Aid, LayerPlan, Stored
from quantization.allocators.ranking import first_k, most
from quantization.bits import bits_within, kept_bits, layer_bits
from quantization.solvers.kept import kept_values
from quantization.solvers.kmeans import check, nearest, weighted_kmeans
from quantization.solvers.spqr import TARGET

ERROR_ROWS = 256


def kept_mask(weight: torch.Tensor, fisher: torch.Tensor, magnitude_share: float, fisher_share: float) -> np.ndarray:
    """Bool [out, in]: the largest |w| of the linear, then the largest Fisher (> 0) among the rest; ties by position."""
    return _Ranked(weight, fisher, magnitude_share, fisher_share).mask(magnitude_share, fisher_share)


class _Ranked:
    """The weights of a linear by |w| and by Fisher, as far as the shares go: each is ranked once for all masks."""

    def __init__(self, weight: torch.Tensor, fisher: torch.Tensor, magnitude_share: float, fisher_share: float):
        for name, share in {"magnitude_share": magnitude_share, "fisher_share": fisher_share}.items():
            if not 0 <= share < 0.5:
                raise UserError(f"{name} = {share} is not a share of kept weights in [0, 0.5); SqueezeLLM keeps 0.0045 "
                                "and 0.0005")
        self.shape, self.fisher = tuple(weight.shape), fisher.flatten().float().cpu()
        large, sensitive = (round(share * weight.numel()) for share in (magnitude_share, fisher_share))
        self.by_size = first_k(weight.abs().flatten().float().cpu(), large, key=_position)
        # those kept for their size are passed over, so as many more may be looked at
        order = first_k(self.fisher, min(large + sensitive, weight.numel()), key=_position)
        self.by_fisher = order[self.fisher[order] > 0]

    def mask(self, magnitude_share: float, fisher_share: float) -> np.ndarray:
        """Bool [out, in] of shares not above those ranked."""
        large, sensitive = (round(share * self.fisher.numel()) for share in (magnitude_share, fisher_share))
        keep = torch.zeros(self.fisher.numel(), dtype=torch.bool)
        keep[self.by_size[:large]] = True
        keep[self.by_fisher[~keep[self.by_fisher]][:sensitive]] = True
        return keep.reshape(self.shape).numpy()


def _position(positions: np.ndarray) -> np.ndarray:
    return positions


def filling_mask(weight: torch.Tensor, fisher: torch.Tensor, layer: LayerPlan, target: float, *,
                 magnitude_share: float, fisher_share: float) -> np.ndarray:
    """The mask of :func:`kept_mask` at the multiple of both shares that stores the most within ``target`` bits a
    weight.

    Raises BudgetError where the codebook alone stores more.
    """
    shape = tuple(weight.shape)
    room = bits_within({"": shape}, target) - layer_bits(replace(layer, keep=None), shape)
    if room < 0:
        stored = layer_bits(layer, shape) / weight.numel()
        raise BudgetError(f"a codebook of {layer.bits} bits stores {stored:.4f} bits a weight of a {list(shape)} "
                          f"linear, more than the target of {target}; raise --avg_bits")
    whole = magnitude_share + fisher_share

    def shares(count: int) -> tuple[float, float]:
        share = count / (weight.numel() * whole)
        return share * magnitude_share, share * fisher_share

    high = min(room // 16, int(0.49 * weight.numel()))
    ranked = _Ranked(weight, fisher, *shares(high))
    return ranked.mask(*shares(most(high, lambda count: kept_bits(ranked.mask(*shares(count))) <= room)))


def solve_codebook(weight: torch.Tensor, fisher: torch.Tensor, layer: LayerPlan, *, magnitude_share: float = 0.0045,
                   fisher_share: float = 0.0005, seed: int = 0, kept_dtype: torch.dtype | None = None,
                   target: float | None = None) -> Stored:
    """Quantize ``weight`` float32 [out, in] under ``fisher`` float32 [out, in]; ``target``: bits a weight to fill.

    ``layer.form`` is "codebook", bits 1..8; kept weights are stored as ``kept_dtype`` (16 bits; None = bf16).  Raises
    UserError for another plan, shares out of range, and numbers that are not finite or too large.
    """
    if layer.form != "codebook" or not 1 <= layer.bits <= 8:
        raise UserError(f"SqueezeLLM stores a codebook of 1 to 8 bits, the plan says form {layer.form!r} at "
                        f"{layer.bits} bits; use an allocator that plans codebooks")
    check(weight, fisher, 2**layer.bits)
    shares = {"magnitude_share": magnitude_share, "fisher_share": fisher_share}
    keep = (kept_mask(weight, fisher, **shares) if target is None
            else filling_mask(weight, fisher, layer, target, **shares))
    fisher, kept = fisher.to(weight.device), torch.as_tensor(keep, device=weight.device)
    weights = fisher.float().masked_fill(kept, 0.0)
    blind = weights.amax(1, keepdim=True) == 0
    weights = torch.where(blind, (~kept).float(), weights)
    centers = weighted_kmeans(weight.float(), weights, 2**layer.bits, seed=seed).half()
    if torch.isinf(centers).any():
        raise UserError("a codebook value exceeds 65504, the largest fp16 number; the weights are broken, load the "
                        "model again")
    parts = {"codes": nearest(weight.float(), centers.float()), "centers": centers}
    parts |= kept_values(weight, keep, kept_dtype)
    values = decode(parts, keep)
    notes = {"kept_share": float(kept.double().mean()), "rows_without_fisher": int(blind.sum()),
             "relative_fisher_error": _relative_error(weight, values, fisher)}
    return Stored(values, replace(layer, keep=keep if keep.any() else None), parts, notes=notes)


def decode(parts: dict[str, torch.Tensor], keep: np.ndarray | None = None) -> torch.Tensor:
    """ŵ float32 [out, in] from codes [out, in], centers [out, K] and the kept weights."""
    values = parts["centers"].float().gather(1, parts["codes"].long())
    if "kept" in parts:
        values[torch.as_tensor(keep, device=values.device)] = parts["kept"].float()
    return values


def _relative_error(weight: torch.Tensor, values: torch.Tensor, fisher: torch.Tensor) -> float | None:
    """Σ F (w − ŵ)² / Σ F w², None without any Fisher information."""
    whole = error = 0.0
    for f, w, q in zip(*(t.split(ERROR_ROWS) for t in (fisher, weight, values)), strict=True):  # copies in float64
        whole += float((f.double() * w.double().square()).sum())
        error += float((f.double() * (w.double() - q.double()).square()).sum())
    return error / whole if whole else None


MAGNITUDE_SHARE = Setting("magnitude_share", float, 0.0045, "share of the weights kept at 16 bits for their size",
                          low=0, high=1, flag=False)
FISHER_SHARE = Setting("fisher_share", float, 0.0005, "share of the weights kept at 16 bits for their squared gradient",
                       low=0, high=1, flag=False)


@quantizer("squeezellm", needs=("fisher",), options=(MAGNITUDE_SHARE, FISHER_SHARE, TARGET))
def squeezellm(weight: torch.Tensor, layer: LayerPlan, aid: Aid) -> Stored:
    """The published quantizer: dense codes by weighted k-means, sparse outliers at 16 bits."""
    if aid.fisher is None:
        raise UserError(f"SqueezeLLM got no Fisher information for {aid.fqn}; run it with calibration documents")
    options = {k: v for k, v in aid.options.items() if k in ("magnitude_share", "fisher_share", "target")}
    try:
        return solve_codebook(weight, aid.fisher, layer, kept_dtype=aid.kept_dtype, **options)
    except UserError as error:
        raise UserError(f"{aid.fqn}: {error}") from error
