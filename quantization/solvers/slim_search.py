"""SliM-LLM's search for the bits of each column group (salience-determined bit allocation).

For one linear W [out, in] with inputs x, groups of g consecutive input columns, d = diag U of the damped Hessian's factor:

    salience of a weight   s_ij = w_ij² / d_j²
    salience of a group    S_g  = Σ over the rows and columns of the group
    candidate k            the k groups of lowest S at N − 1 bits, the k of highest S at N + 1, the rest at N
    k*                     argmin over k of KL(softmax(x Ŵ_kᵀ) ‖ softmax(x Wᵀ)), nats, over the output channels

Ŵ_k is plain round-to-nearest (one pair of ends a row and group, no compensation); probabilities are floored at 1e-6.
The candidates share work: from k − 1 to k only two groups change, so Y_k = Y_{k−1} + x_g (Ŵ_g^new − Ŵ_g^old)ᵀ.

Paper: arXiv 2405.14917, Section 3.2 and Algorithm 1.  Deviations, all of the published code as well unless marked (ours):
the sum over a group where the paper averages (a ragged last group weighs less); KL(quantized ‖ original) where the
paper writes KL(original ‖ quantized); (ours, unless ``published``) k = 0, all groups at N bits, is a candidate, so that
a linear with few groups is neither forced to mix nor fails; the KL is a mean over tokens, not a sum over a
sequence's; a 1-bit group is mean ± mean|w − mean| with sign(0) = +1, not mean ± mean|w| with sign(0) = 0.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from core.errors import UserError
from quantization.bits import group_widths

FLOOR = 1e-6  # the smallest probability that enters the KL
LOWEST, HIGHEST = 2, 7  # N, so that N - 1 and N + 1 are bits that codes can have


def group_slices(width: int, group_size: int) -> list[slice]:
    """Columns of each group; the last may be ragged."""
    ends = np.cumsum(group_widths(width, group_size)).tolist()
    return [slice(a, b) for a, b in zip([0, *ends], ends)]


def salience(weight: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """w² / d_j², [out, in]; ``diagonal`` is the factor's d [in]."""
    return weight.square() / diagonal.square()[None]


def group_salience(weight: torch.Tensor, diagonal: torch.Tensor, group_size: int) -> torch.Tensor:
    """Sum of the salience over the rows and columns of each group: float64 [G]."""
    columns = salience(weight, diagonal).sum(0, dtype=torch.float64)
    return torch.stack([columns[s].sum() for s in group_slices(weight.shape[1], group_size)])


def assign_bits(group_sal: torch.Tensor, k: int, bits: int) -> np.ndarray:
    """Bits of each group, uint8 [G]: the k lowest at bits - 1, the k highest at bits + 1; equal saliences in column order."""
    order = np.argsort(group_sal.cpu().numpy(), kind="stable")
    out = np.full(len(order), bits, dtype=np.uint8)
    if k:
        out[order[:k]], out[order[-k:]] = bits - 1, bits + 1
    return out


def ends(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest weight of each row, 0 between them; -1 and 1 for a row of zeros."""
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    empty = low == high
    return torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)


def binary(weight: torch.Tensor, published: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of a 1-bit group, float32 [out, 1] each."""
    mean = weight.mean(1, keepdim=True)
    return mean, (weight if published else weight - mean).abs().mean(1, keepdim=True)


def signs(centred: torch.Tensor, published: bool) -> torch.Tensor:
    """Sign of w - mean; sign(0) is +1, or 0 as published."""
    return centred.sign() if published else torch.where(centred < 0, -1.0, 1.0)


def nearest(weight: torch.Tensor, bits: int, published: bool = False) -> torch.Tensor:
    """Round one group [out, g] to the nearest point of its grid."""
    if bits == 1:
        mean, scale = binary(weight, published)
        return mean + signs(weight - mean, published) * scale
    low, high = ends(weight)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    return scale * (((weight / scale).round() + zero).clamp(0, 2**bits - 1) - zero)


def search_bits(weight: torch.Tensor, group_sal: torch.Tensor, inputs: Iterable[torch.Tensor], bits: int, group_size: int,
                published: bool = False, max_tokens: int | None = None) -> tuple[np.ndarray, dict]:
    """Choose the bits of each group: uint8 [G], and notes {k, kl: one number a candidate, candidates, tokens}.

    ``inputs`` yields [T, in] a sequence; at most ``max_tokens`` tokens of them are read.  Nothing is read for one candidate.
    """
    if not LOWEST <= bits <= HIGHEST:
        raise UserError(f"SliM-LLM at {bits} bits a weight: its groups take one bit less and one more, so bits must be "
                        f"{LOWEST} to {HIGHEST}; change the method's bits")
    groups = len(group_sal)
    candidates = list(range(1 if published else 0, groups // 2)) or ([] if published else [0])
    if not candidates:
        raise UserError(f"the published SliM-LLM search has no candidate for {groups} groups, it needs 4; use a smaller group size "
                        "or the corrected form")
    if len(candidates) == 1 and not published:
        return assign_bits(group_sal, candidates[0], bits), {"k": candidates[0], "kl": [], "candidates": candidates, "tokens": 0}
    steps = _steps(weight, group_sal, candidates[-1], bits, group_size, published)
    totals, sequences, tokens = np.zeros(len(candidates)), 0, 0
    for x in _limited(inputs, max_tokens):
        found = list(_divergences(weight, steps, x.to(weight.device, torch.float32)))
        totals += np.array(found[candidates[0]:])
        sequences, tokens = sequences + 1, tokens + len(x)
    if not tokens or not np.isfinite(totals).all():
        raise UserError(f"the SliM-LLM search read {tokens} tokens and found divergences {totals.tolist()}; it needs finite inputs of the linear")
    kl = totals / (sequences if published else tokens)
    k = candidates[int(kl.argmin())]
    return assign_bits(group_sal, k, bits), {"k": k, "kl": kl.tolist(), "candidates": candidates, "tokens": tokens}


def _steps(weight: torch.Tensor, group_sal: torch.Tensor, last: int, bits: int, group_size: int, published: bool) -> list:
    """Columns [c] and what is added to their weights [out, c] on the way to candidate 0 (all columns), 1, ..., ``last``."""
    slices = group_slices(weight.shape[1], group_size)
    base = torch.cat([nearest(weight[:, s], bits, published) for s in slices], dim=1)
    steps = [(slice(None), base)]
    order = np.argsort(group_sal.cpu().numpy(), kind="stable").tolist()
    for k in range(1, last + 1):
        moves = ((slices[order[k - 1]], bits - 1), (slices[order[-k]], bits + 1))
        columns = torch.cat([torch.arange(s.start, s.stop) for s, _ in moves]).to(weight.device)
        change = torch.cat([nearest(weight[:, s], b, published) - base[:, s] for s, b in moves], dim=1)
        steps.append((columns, change))
    return steps


def _divergences(weight: torch.Tensor, steps: list, x: torch.Tensor) -> Iterator[float]:
    """KL(quantized || original), summed over the tokens of x [T, in], of candidate 0, 1, ..."""
    original = (x @ weight.T).softmax(1).clamp_(min=FLOOR).log_()
    out = torch.zeros_like(original)
    for columns, change in steps:
        out += x[:, columns] @ change.T
        quantized = out.softmax(1).clamp_(min=FLOOR)
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
