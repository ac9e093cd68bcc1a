"""SqueezeLLM: the diagonal of the Fisher information.

Common "SqueezeLLM", element scores:   F_ij = Σ over sequences of (∂L_s/∂w_ij)²

L_s = mean cross-entropy of sequence s (docs/METHODS.md on ``loss_mask``).  Unit: squared gradient.
Paper: arXiv 2306.07629.
"SqueezeLLM-native"  2^N values a row by Fisher-weighted k-means; 0.45 % of the weights by magnitude and 0.05 % by
Fisher at 16 bits.
"SqueezeLLM-budget-native"  the same, with as many kept weights of both kinds as the budget has room for.
"""

from __future__ import annotations

from core.registry import method, scorer
from core.types import ScoreContext, Scores


@scorer("SqueezeLLM", granularity="element", needs=("gradients",), params=("grad_dtype",), gradients=("square",))
def squeezellm(ctx: ScoreContext) -> Scores:
    """Summed squared gradient, float32 [out, in]."""
    return Scores("element", ctx.gradients("square"), "squared gradient")


method("SqueezeLLM", scorer="SqueezeLLM", paper="arXiv:2306.07629")
method("SqueezeLLM-native", allocator="flat", quantizer="squeezellm", native=True, paper="arXiv:2306.07629", bits="N",
       form="codebook")
method("SqueezeLLM-budget-native", allocator="flat_within", quantizer="squeezellm", native=True,
       paper="arXiv:2306.07629", bits="N", form="codebook", target="budget")
