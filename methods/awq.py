"""Salient channels: the input channels of a linear that carry the largest activations.

    s_c = mean over all tokens of the scoring prompts of |x_c|        x: the linear's input; higher = protect

"AWQ-channel"    the channels of largest s over the whole model kept at 16 bits by the common allocator
"W4A4-native"    the brief's W4A4 project: in every linear 1 % of the channels at 16 bits, the rest in 4 bits by
                 round-to-nearest in groups of 128, the last ragged where a width needs it; its activations are those of
                 its row (--act_bits 4 --act_keep 0.1)

AWQ (arXiv 2306.00978) observes that a linear's salient weights are those whose inputs are large.
Published quirk (--published): s is the mean over documents of each document's mean, so short ones weigh more.
"""

from __future__ import annotations

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.types import ScoreContext, Scores
from methods.taq import SCORE_DOCS

activations = Lazy("streams.activations")


@scorer("AWQ-channel", granularity="channel", params=(SCORE_DOCS, "batch_tokens", "published"))
def awq_channel(ctx: ScoreContext) -> Scores:
    """Mean |x| of every input channel."""
    chosen = activations.prompts(ctx, "score_docs")
    sums = {fqn: torch.zeros(linear.in_features, dtype=torch.float64) for fqn, linear in ctx.linears.items()}

    def see(fqn, x, mask, batch) -> None:
        lengths = mask.sum(1, keepdim=True)
        share = mask / lengths if ctx.param("published") else mask.float()
        sums[fqn] += torch.einsum("btc,bt->c", x.float().abs(), share).double().cpu()

    activations.each_linear_input(ctx, chosen, see, "activations measured")
    weights = len(chosen) if ctx.param("published") else sum(len(ctx.calib.tokens[i]) for i in chosen)
    return Scores("channel", {fqn: (total / weights).float() for fqn, total in sums.items()}, "mean |x|")


@scorer("max-channel", granularity="channel", params=(SCORE_DOCS, "batch_tokens"))
def max_channel(ctx: ScoreContext) -> Scores:
    """max |x| of every input channel over all tokens: the range that SmoothQuant moves (quantization/transforms/)."""
    chosen = activations.prompts(ctx, "score_docs")
    most = {fqn: torch.zeros(linear.in_features) for fqn, linear in ctx.linears.items()}

    def see(fqn, x, mask, batch) -> None:
        most[fqn] = torch.maximum(most[fqn], (x.float().abs() * mask[..., None]).amax((0, 1)).cpu())

    activations.each_linear_input(ctx, chosen, see, "ranges of activations measured")
    return Scores("channel", most, "max |x|")


method("AWQ-channel", scorer="AWQ-channel", paper="arXiv:2306.00978")
method("W4A4-native", scorer="AWQ-channel", allocator="salient_columns", quantizer="rtn-full-range", native=True,
       bits=4, group=128, paper="the brief's W4A4 project")
