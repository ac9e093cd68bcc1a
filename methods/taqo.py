"""TAQO, two forms under one name.

"TAQO" (activation norm, the brief's form):   score_l = mean over prompts of ‖h_l at the last token‖₂
"TAQO-oracle" (paper Eq. 6–8):                Δ_l = max(0, P(full) − P(only block l at 4 bits))

P = ½(EM + F1) for open questions, accuracy for choices, on the first 16 or 32 labelled calibration
documents.  With so few documents most Δ are exactly 0, so ties are reported in the notes, and a smoother
P is offered: ``oracle_metric="loglik"`` takes the mean gold log-likelihood (nats a token).
Paper: arXiv 2511.06516 (TAQ-O, "a label-informed oracle diagnostic").  Unit: activation norm; score drop.
Native: norm form, first and last 2 blocks and the best others at 16 bits until 8 in total; oracle, first
and last 2 and the best 8 others; the rest 4 bits.
Deviations: ties fall in spread order, not on the earliest blocks as in the script; half a document's worth
is added to every Δ of the task metric, which changes no ranking but keeps the common allocator from
treating a drop that 32 documents cannot show as none at all.
"""

from __future__ import annotations

from core.errors import UserError
from core.lazy import Lazy
from core.registry import method, scorer
from core.settings import Setting
from core.types import LayerPlan, ScoreContext, Scores
from methods.taq import SCORE_DOCS

activations, apply = Lazy("streams.activations"), Lazy("quantization.apply")
ORACLE_DOCS = Setting("oracle_docs", int, 32, "labelled calibration documents that TAQO-oracle reads", low=1,
                      documents=True)
ORACLE_METRIC = Setting("oracle_metric", str, "task",
                        "what TAQO-oracle measures: the task score, or the smoother gold log-likelihood",
                        choices=("task", "loglik"))
PROBE = LayerPlan(4, 128, 32, 32)  # the script's base quantizer: groups of 128, float scale and zero


@scorer("TAQO", granularity="layer", needs=("calib", "outputs"), params=(SCORE_DOCS, "batch_tokens", "published"))
def taqo(ctx: ScoreContext) -> Scores:
    """Mean L2 norm of each block's output at the prompt's last token."""
    norms = ctx.outputs(activations.prompts(ctx, "score_docs")).norm.mean(0).tolist()
    return Scores("layer", ctx.spread(norms), "norm", notes={"activation_norm": norms})


def without(ctx: ScoreContext, block: int, quantizer: str) -> tuple[float, float]:
    """The task metric with one block at 4 bits; the model is as it was afterwards."""
    inside = [fqn for fqn, b in ctx.block_of.items() if b == block]
    originals = apply.Originals({fqn: ctx.linears[fqn] for fqn in inside})  # a copy of one block, not of the model
    try:
        originals.write({fqn: PROBE for fqn in inside}, quantizer)
        return ctx.task_metric(ctx.model, ctx.param("oracle_docs"))
    finally:
        originals.restore()


@scorer("TAQO-oracle", granularity="layer", needs=("calib", "labels"), params=(ORACLE_DOCS, ORACLE_METRIC, "published"),
        version=2, forwards=lambda blocks: 1 + blocks)
def taqo_oracle(ctx: ScoreContext) -> Scores:
    """Drop of the task metric when one block alone is quantized to 4 bits."""
    if ctx.task_metric is None:
        raise UserError("TAQO-oracle needs the task metric of labelled calibration documents; run it through the "
                        "harness")
    pick = {"task": 0, "loglik": 1}[ctx.param("oracle_metric")]
    quantizer = "rtn-float-padded" if ctx.param("published") else "rtn-float"
    full = ctx.once("full", lambda: ctx.task_metric(ctx.model, ctx.param("oracle_docs"))[pick])
    drops = []
    for block in range(len(ctx.blocks)):
        ctx.progress("oracle, one block at 4 bits", block, len(ctx.blocks))
        drops.append(max(0.0, full - ctx.once(f"block-{block}", lambda: without(ctx, block, quantizer)[pick])))
    ties = len(drops) - len(set(drops))
    # a drop below one document cannot be seen: half a document is added to all, so that "not seen" does not mean "free
    # to ruin"
    unseen = 0.5 / ctx.param("oracle_docs") if pick == 0 else 0.0
    return Scores("layer", ctx.spread([d + unseen for d in drops]), "score drop",
                  notes={"full": full, "drops": drops, "zero": sum(d == 0 for d in drops), "tied": ties})


method("TAQO", scorer="TAQO", paper="arXiv:2511.06516")
method("TAQO-native", scorer="TAQO", allocator="keep_edges_topk", quantizer="rtn-float", native=True,
       paper="arXiv:2511.06516", total=8)
method("TAQO-oracle", scorer="TAQO-oracle", paper="arXiv:2511.06516")
method("TAQO-oracle-native", scorer="TAQO-oracle", allocator="keep_edges_topk", quantizer="rtn-float", native=True,
       paper="arXiv:2511.06516", others=8)
