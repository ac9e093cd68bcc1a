"""SliM-LLM's search for the bits of each column group (salience-determined bit allocation).

For one linear W [out, in] with inputs x, groups of g consecutive input columns, d = diag U of the damped factor:

    salience of a weight   s_ij = w_ij² / d_j²
    salience of a group    S_g  = Σ over the rows and columns of the group
    candidate k            the k groups of lowest S at N − 1 bits, the k of highest S at N + 1, the rest at N
    k*                     argmin over k of KL(softmax(x Ŵ_kᵀ) ‖ softmax(x Wᵀ)), nats, over the output channels

Ŵ_k is plain round-to-nearest (one pair of ends a row and group, no compensation); probabilities are floored at 1e-6.
The candidates share work: from k − 1 to k only two groups change, so Y_k = Y_{k−1} + x_g (Ŵ_g^new − Ŵ_g^old)ᵀ.

Paper: arXiv 2405.14917, Section 3.2 and Algorithm 1.  Deviations, all of the published code as well unless marked
(ours): the sum over a group where the paper averages (a ragged last group weighs less); KL(quantized ‖ original) where
the paper writes KL(original ‖ quantized); (ours, unless ``published``) k = 0, all groups at N bits, is a candidate, so
that a linear with few groups is neither forced to mix nor fails; the KL is a mean over tokens, not a sum over a
sequence's; a 1-bit group is mean ± mean|w − mean| with sign(0) = +1, not mean ± mean|w| with sign(0) = 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from core.errors import UserError
from core.lazy import torch
from quantization.solvers.columns import slices
from quantization.solvers.grid import ends, integer_grid, sign_grid

FLOOR = 1e-6  # the smallest probability that enters the KL
LOWEST, HIGHEST = 2, 7  # N, so that N - 1 and N + 1 are bits that codes can have


def salience(weight: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """w² / d_j², [out, in]; ``diagonal`` is the factor's d [in]."""
    return weight.square() / diagonal.square()[None]


def group_salience(weight: torch.Tensor, diagonal: torch.Tensor, group_size: int) -> torch.Tensor:
    """Sum of the salience over the rows and columns of each group: float64 [G]."""
    columns = salience(weight, diagonal).sum(0, dtype=torch.float64)
    return torch.stack([columns[s].sum() for s in slices(weight.shape[1], group_size)])


def assign_bits(group_sal: torch.Tensor, k: int, bits: int) -> np.ndarray:
    """Bits of each group, uint8 [G]: the k lowest at bits - 1, the k highest at bits + 1; equals in column order."""
    order = np.argsort(group_sal.cpu().numpy(), kind="stable")
    group_bits = np.full(len(order), bits, dtype=np.uint8)
    if k:
        group_bits[order[:k]], group_bits[order[-k:]] = bits - 1, bits + 1
    return group_bits


def nearest(weight: torch.Tensor, bits: int, published: bool = False) -> torch.Tensor:
    """Round one group [out, g] to the nearest point of its grid."""
    if bits == 1:
        grid = sign_grid(weight, published=published, stored=False)
    else:
        grid = integer_grid(*ends(weight, dim=1), 2**bits - 1, stored=False)
    return grid.values_(grid.codes(weight))


def search_bits(weight: torch.Tensor, group_sal: torch.Tensor, inputs: Iterable[torch.Tensor], *, bits: int,
                group_size: int, published: bool = False, max_tokens: int | None = None) -> tuple[np.ndarray, dict]:
    """Choose the bits of each group: uint8 [G], and notes {k, kl: one number a candidate, candidates, tokens}.

    ``inputs`` yields [T, in] a sequence; at most ``max_tokens`` tokens of them are read.  Nothing is read for one
    candidate.  Raises UserError for bits out of range, too few groups, or inputs that are missing or not finite.
    """
    candidates = _candidates(len(group_sal), bits, published)
    if len(candidates) == 1 and not published:
        notes = {"k": candidates[0], "kl": [], "candidates": candidates, "tokens": 0}
        return assign_bits(group_sal, candidates[0], bits), notes
    steps = _steps(weight, group_sal, bits=bits, group_size=group_size, last=candidates[-1], published=published)
    totals, sequences, tokens = np.zeros(len(candidates)), 0, 0
    for x in _limited(inputs, max_tokens):
        divergences = list(_divergences(weight, steps, x.to(weight.device, torch.float32)))
        totals += np.array(divergences[candidates[0]:])
        sequences, tokens = sequences + 1, tokens + len(x)
    if not tokens or not np.isfinite(totals).all():
        raise UserError(f"the SliM-LLM search read {tokens} tokens and got divergences {totals.tolist()}; it needs "
                        "finite inputs of the linear")
    kl = totals / (sequences if published else tokens)
    k = candidates[int(kl.argmin())]
    return assign_bits(group_sal, k, bits), {"k": k, "kl": kl.tolist(), "candidates": candidates, "tokens": tokens}


def _candidates(groups: int, bits: int, published: bool) -> list[int]:
    if not LOWEST <= bits <= HIGHEST:
        raise UserError(f"SliM-LLM at {bits} bits a weight: its groups take one bit less and one more, so bits must be "
                        f"{LOWEST} to {HIGHEST}; change the method's bits")
    candidates = list(range(1 if published else 0, groups // 2)) or ([] if published else [0])
    if not candidates:
        raise UserError(f"the published SliM-LLM search has no candidate for {groups} groups, it needs 4; use a "
                        "smaller group size or the corrected form")
    return candidates


def _steps(weight: torch.Tensor, group_sal: torch.Tensor, *, bits: int, group_size: int, last: int,
           published: bool) -> list:
    """Columns [c] and what is added to their weights [out, c] to reach candidate 0 (all columns), 1, ..., ``last``."""
    groups = slices(weight.shape[1], group_size)
    base = torch.cat([nearest(weight[:, s], bits, published) for s in groups], dim=1)
    steps = [(slice(None), base)]
    order = np.argsort(group_sal.cpu().numpy(), kind="stable").tolist()
    for k in range(1, last + 1):
        moves = ((groups[order[k - 1]], bits - 1), (groups[order[-k]], bits + 1))
        columns = torch.cat([torch.arange(s.start, s.stop) for s, _ in moves]).to(weight.device)
        change = torch.cat([nearest(weight[:, s], b, published) - base[:, s] for s, b in moves], dim=1)
        steps.append((columns, change))
    return steps


def _divergences(weight: torch.Tensor, steps: list, x: torch.Tensor) -> Iterator[float]:
    """KL(quantized || original), summed over the tokens of x [T, in], of candidate 0, 1, ..."""
    original = (x @ weight.T).softmax(1).clamp_(min=FLOOR).log_()
    outputs = torch.zeros_like(original)
    for columns, change in steps:
        outputs += x[:, columns] @ change.T
        quantized = outputs.softmax(1).clamp_(min=FLOOR)
        yield float((quantized * (quantized.log() - original)).sum(dtype=torch.float64))


def _limited(inputs: Iterable[torch.Tensor], max_tokens: int | None) -> Iterator[torch.Tensor]:
    left = max_tokens
    for x in inputs:
        if left is not None:
            x = x[:left]
            left -= len(x)
        if len(x):
            yield x
        if left == 0:
            return
