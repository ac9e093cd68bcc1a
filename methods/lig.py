"""Layer integrated gradients: blocks, and rows of linears, that account for the answer's log-probability.

    LIG            s_l = mean over documents of (1/T) Σ_t Σ_c |A_l[t, c]|        A of block l's output      nats/token
    LIG-channel    s_{l,c} = mean over documents of (1/T) Σ_t |A_l[t, c]|        A of linear l's output     nats/token

A: streams/integrated.py, --ig_steps steps from --baseline; T: tokens of the document.  Higher = protect.  LIG goes to
the knapsack, LIG-channel keeps whole rows (the weights that make an output channel) at 16 bits.
The completeness gap, ΣA against f(x) − f(baseline), is in the notes for every document: the worst of its layers.
Idea: the circuit-quantization project of the brief; integrated gradients: arXiv 1703.01365.
Deviations: the baseline is the documents' mean embedding, not the pad token's, from which the integral converges badly
(--baseline pad gives it); a document's answer is a mean over tokens, not a sum, so that long answers weigh no more.
"""

from __future__ import annotations

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.settings import Setting
from core.types import ScoreContext, Scores
from methods.heads import BASELINE, GRAD, IG_STEPS

answers, integrated = Lazy("streams.answers"), Lazy("streams.integrated")
LIG_DOCS = Setting("lig_docs", int, 8, "worked documents that LIG reads; each costs --ig_steps passes for every layer",
                   low=1, documents=True)
PARAMS = (LIG_DOCS, BASELINE, IG_STEPS, GRAD, "batch_tokens")


def _attributed(ctx: ScoreContext, layers) -> tuple[dict[str, list], list[dict]]:
    """Mean over documents of what ``layers(paths)`` gives by name (a list of numbers and a gap), and the gaps."""
    docs = answers.chosen(ctx, LIG_DOCS)
    totals: dict[str, torch.Tensor] = {}
    gaps = []
    with answers.computing(ctx):
        start = answers.baseline(ctx, docs, ctx.param("baseline"))
        for done, doc in enumerate(docs):
            def of_document(doc=doc, done=done) -> dict:
                asked = answers.batch(ctx.answers, [doc], start.device)
                paths = integrated.Paths(ctx, asked, start, ctx.param("ig_steps"))
                values, worst = {}, None
                for at in range(len(ctx.blocks)):
                    ctx.progress("gradients integrated", done * len(ctx.blocks) + at, len(docs) * len(ctx.blocks))
                    for name, one, channels in layers(paths, at):
                        values[name] = (channels / asked.ids.shape[1]).tolist()
                        worst = one if worst is None or abs(one.gap) > abs(worst.gap) else worst
                return {"values": values, "gap": {"document": ctx.answers.doc_ids[doc], "gap": worst.gap,
                                                  "difference": paths.way()}}

            given = ctx.once(f"document-{done}", of_document)
            gaps.append(given["gap"])
            for name, value in given["values"].items():
                totals[name] = totals.get(name, 0) + torch.tensor(value, dtype=torch.float64) / len(docs)
    ctx.progress("gradients integrated", len(docs), len(docs))
    return totals, gaps


def _notes(ctx: ScoreContext, gaps: list[dict]) -> dict:
    """The gaps, and in a sentence for the tables."""
    shares = sorted(abs(one["gap"]) / max(abs(one["difference"]), 1e-9) for one in gaps)
    middle, worst = shares[len(shares) // 2], shares[-1]
    return {"completeness": gaps,
            "say": f"completeness gap at {ctx.param('ig_steps')} steps, worst layer of each of {len(gaps)} documents: "
                   f"median {100 * middle:.1f} %, largest {100 * worst:.1f} % of f(x) - f(baseline)"}


@scorer("LIG", granularity="layer", needs=("answers",), params=PARAMS, every_block=True,
        forwards=lambda blocks: 20 * 3 * (blocks + 1) / 2)
def lig(ctx: ScoreContext) -> Scores:
    """Per decoder block."""
    def layers(paths, at):
        one = paths.block(at)
        yield str(at), one, one.values.abs().sum()[None]

    totals, gaps = _attributed(ctx, layers)
    per_block = [float(totals[str(at)]) for at in range(len(ctx.blocks))]
    return Scores("layer", ctx.spread(per_block), unit="nats/token", notes={"blocks": per_block} | _notes(ctx, gaps))


@scorer("LIG-channel", granularity="line", needs=("answers",), params=PARAMS, every_block=True, inside_blocks=True,
        forwards=lambda blocks: 7 * 20 * 3 * (blocks + 1) / 2)
def lig_channel(ctx: ScoreContext) -> Scores:
    """Per output channel of every linear: a row of its weights."""
    inside: dict[int, list[str]] = {}
    for fqn, block in ctx.block_of.items():
        inside.setdefault(block, []).append(fqn)

    def layers(paths, at):
        names = inside[at]
        for fqn, one in zip(names, paths.linears(at, [ctx.linears[fqn] for fqn in names]), strict=True):
            yield fqn, one, one.values.abs().sum(0)

    totals, gaps = _attributed(ctx, layers)
    values = {fqn: totals[fqn].float()[:, None] for fqn in ctx.linears}
    return Scores("line", values, unit="nats/token", notes=_notes(ctx, gaps))


for _name in ("LIG", "LIG-channel"):
    method(_name, scorer=_name, paper="arXiv:1703.01365")
