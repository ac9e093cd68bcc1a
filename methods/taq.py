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

from core.lazy import Lazy
from core.registry import method, scorer
from core.settings import Setting
from core.types import ScoreContext, Scores

SCORE_DOCS = Setting("score_docs", int, 256, "calibration documents of TAQ, TAQO and AWQ-channel", low=1,
                     documents=True)
PARAMS = (SCORE_DOCS, "batch_tokens", "seed", "published")
activations = Lazy("streams.activations")


def _scores(ctx: ScoreContext, normalised: bool) -> Scores:
    stats = ctx.outputs(activations.prompts(ctx, "score_docs"))
    stability = -stats.variance / (stats.magnitude + 1e-8).square() if normalised else -stats.variance
    combined = 0.5 * activations.standardise(stats.entropy) + 0.5 * activations.standardise(stability)
    return Scores("layer", ctx.spread(combined.tolist()), "z",
                  notes={"entropy": stats.entropy.tolist(), "stability": stability.tolist(),
                         "combined": combined.tolist()})


@scorer("TAQ", granularity="layer", needs=("calib", "outputs"), params=PARAMS)
def taq(ctx: ScoreContext) -> Scores:
    """Entropy + normalised variance."""
    return _scores(ctx, normalised=True)


@scorer("TAQ-raw", granularity="layer", needs=("calib", "outputs"), params=PARAMS)
def taq_raw(ctx: ScoreContext) -> Scores:
    """Entropy + raw variance."""
    return _scores(ctx, normalised=False)


for _name in ("TAQ", "TAQ-raw"):
    method(_name, scorer=_name, paper="arXiv:2511.06516")
    method(f"{_name}-native", scorer=_name, allocator="top_fraction", quantizer="rtn-float", native=True,
           paper="arXiv:2511.06516")
