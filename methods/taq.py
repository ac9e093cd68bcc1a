"""TAQ: a block matters if its hidden states are informative and stable on the task.

    H_l = −Σ p_i log p_i (nats),  p_i = λ_i / Σλ of the covariance of r = 256 sampled token vectors
    S_l = −Var(h) / (E|h| + 1e-8)²      "TAQ": normalised, scale-free          (the brief's form)
    S_l = −Var(h)                        "TAQ-raw": raw variance               (paper, Eq. 4)
    R_l = ½ z(H_l) + ½ z(S_l),           z with the sample standard deviation; higher = protect; unit z

h_l is the output of block l on unlabeled prompts; Var and E run over all elements of all real tokens.
Paper: "You Had One Job", arXiv 2511.06516 (TAQ-IS).  Native: best ceil(25 %) of the blocks at 8 bits, rest 4.
Deviations: the r vectors are drawn uniformly from all tokens of the scoring prompts (the script lets at
most 128 candidates a batch into a reservoir, so its sample depends on the batch size); with
``published`` the last block is read after the final norm, as the script does.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.settings import Setting
from core.types import ScoreContext, Scores

SCORE_DOCS = Setting("score_docs", int, 256, "calibration documents of TAQ, TAQO and AWQ-channel", low=1,
                     documents=True)
PARAMS = (SCORE_DOCS, "batch_tokens", "seed", "published")
activations = Lazy("streams.activations")
RESERVOIR = 256  # token vectors a block


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


def block_statistics(ctx: ScoreContext) -> dict[str, torch.Tensor]:
    """Per block, float64 [blocks]: entropy (nats), variance, mean absolute value."""
    chosen = activations.prompts(ctx, "score_docs")
    lengths = [len(ctx.calib.tokens[i]) for i in chosen]
    positions = dict(zip(chosen, sample_positions(lengths, ctx.param("seed"))))
    count = len(ctx.blocks)
    moments = torch.zeros(count, 4, dtype=torch.float64)  # sums of h, h², |h| and the number of elements
    kept: list[dict[int, torch.Tensor]] = [{} for _ in range(count)]

    def see(block, h, mask, batch):
        real = h[mask].float()
        parts = (real.sum(dtype=torch.float64), real.square().sum(dtype=torch.float64),
                 real.abs().sum(dtype=torch.float64))
        moments[block] += torch.tensor([float(p) for p in parts] + [real.numel()], dtype=torch.float64)
        for row, doc in enumerate(batch):
            start = h.shape[1] - len(ctx.calib.tokens[doc])
            kept[block][doc] = h[row, start + torch.as_tensor(positions[doc], device=h.device)].float().cpu()

    activations.each_block_output(ctx, chosen, see, "block statistics")
    entropy = [spectral_entropy(torch.cat([kept[b][doc] for doc in chosen])) for b in range(count)]
    mean, square, magnitude = (moments[:, k] / moments[:, 3] for k in range(3))
    return {"entropy": torch.tensor(entropy, dtype=torch.float64), "variance": square - mean.square(),
            "magnitude": magnitude}


def _scores(ctx: ScoreContext, normalised: bool) -> Scores:
    stats = block_statistics(ctx)
    stability = -stats["variance"] / (stats["magnitude"] + 1e-8).square() if normalised else -stats["variance"]
    combined = 0.5 * activations.standardise(stats["entropy"]) + 0.5 * activations.standardise(stability)
    return Scores("layer", ctx.spread(combined.tolist()), "z",
                  notes={"entropy": stats["entropy"].tolist(), "stability": stability.tolist(),
                         "combined": combined.tolist()})


@scorer("TAQ", granularity="layer", params=PARAMS)
def taq(ctx: ScoreContext) -> Scores:
    """Entropy + normalised variance."""
    return _scores(ctx, normalised=True)


@scorer("TAQ-raw", granularity="layer", params=PARAMS)
def taq_raw(ctx: ScoreContext) -> Scores:
    """Entropy + raw variance."""
    return _scores(ctx, normalised=False)


for _name in ("TAQ", "TAQ-raw"):
    method(_name, scorer=_name, paper="arXiv:2511.06516")
    method(f"{_name}-native", scorer=_name, allocator="top_fraction", quantizer="rtn-float", native=True,
           paper="arXiv:2511.06516")
