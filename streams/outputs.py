"""What block scorers read of block outputs, all of it from one pass over the calibration prompts.

    entropy_l  = −Σ p_i log p_i (nats),  p_i = λ_i / Σλ of the covariance of r = 256 sampled token vectors
    variance_l = Var(h),  magnitude_l = E|h|       over all elements of all real tokens
    norm_sl    = ‖h_l at the last token of prompt s‖₂,   range_sl = (max − min) of the same vector

h_l is the output of block l.  The r vectors are drawn uniformly from all tokens of the prompts.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from core.types import ScoreContext
from streams.activations import each_block_output

RESERVOIR = 256  # token vectors a block
PARAMS = ("batch_tokens", "seed", "published")  # what the pass reads besides the prompts


@dataclass(frozen=True)
class BlockOutputs:
    """Statistics of every block's output, float64."""

    entropy: torch.Tensor  # [blocks], nats
    variance: torch.Tensor  # [blocks]
    magnitude: torch.Tensor  # [blocks]
    norm: torch.Tensor  # [prompts, blocks]
    range: torch.Tensor  # [prompts, blocks]


def spectral_entropy(vectors: torch.Tensor) -> float:
    """Entropy in nats of the normalised eigenvalues of the covariance of ``vectors`` [r, d].

    Z Zᵀ/r and Zᵀ Z/r share their non-zero spectrum, so the smaller one is decomposed, in float64.
    """
    z = vectors.double()
    z = z - z.mean(0)
    gram = z @ z.T if z.shape[0] <= z.shape[1] else z.T @ z
    values = torch.linalg.eigvalsh(gram / len(z)).clamp(min=0)
    p = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    p = p[p > 0]
    return float(-(p * p.log()).sum())


def sample_positions(lengths: list[int], seed: int) -> list[np.ndarray]:
    """Per prompt, the token positions (from its start) among RESERVOIR drawn uniformly from all tokens."""
    total = sum(lengths)
    chosen = np.arange(total)
    if total > RESERVOIR:
        chosen = np.sort(np.random.default_rng(seed).choice(total, RESERVOIR, replace=False))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(starts)]


def block_outputs(ctx: ScoreContext, chosen: list[int]) -> BlockOutputs:
    """Run the chosen prompts once."""
    lengths = [len(ctx.calib.tokens[i]) for i in chosen]
    place = {doc: at for at, doc in enumerate(chosen)}
    positions = dict(zip(chosen, sample_positions(lengths, ctx.param("seed"))))
    count = len(ctx.blocks)
    moments = torch.zeros(count, 4, dtype=torch.float64)  # sums of h, h², |h| and the number of elements
    norm, spread = (torch.zeros(len(chosen), count, dtype=torch.float64) for _ in range(2))
    sampled: list[dict[int, torch.Tensor]] = [{} for _ in range(count)]

    def see(block, h, mask, batch):
        real, last = h[mask].float(), h[:, -1].float()
        parts = (real.sum(dtype=torch.float64), real.square().sum(dtype=torch.float64),
                 real.abs().sum(dtype=torch.float64))
        moments[block] += torch.tensor([float(p) for p in parts] + [real.numel()], dtype=torch.float64)
        rows = [place[doc] for doc in batch]
        norm[rows, block] = last.norm(dim=-1).double().cpu()
        spread[rows, block] = (last.amax(-1) - last.amin(-1)).double().cpu()
        for row, doc in enumerate(batch):
            start = h.shape[1] - len(ctx.calib.tokens[doc])
            sampled[block][doc] = h[row, start + torch.as_tensor(positions[doc], device=h.device)].float().cpu()

    each_block_output(ctx, chosen, see, "block outputs")
    entropy = [spectral_entropy(torch.cat([sampled[block][doc] for doc in chosen])) for block in range(count)]
    mean, square, magnitude = (moments[:, k] / moments[:, 3] for k in range(3))
    return BlockOutputs(torch.tensor(entropy, dtype=torch.float64), square - mean.square(), magnitude, norm, spread)
