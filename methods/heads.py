"""Attention heads that carry the task, and keeping them at 16 bits.

    heads-ablation      s_h = mean over documents of f(x) − f(x with head h replaced)            exact
    heads-attribution   s_h = mean over documents of Σ_t (a_h − a'_h)·∂f/∂a_h                    first order, one pass
    heads-norm          s_h = mean over all tokens of the documents of ‖a_h‖₂; sees no answer
    heads-EAP-IG        s_h = mean over documents of Σ_t (a_h − a°_h)·(1/m) Σ_k ∂f/∂a_h at e° + k/m (e − e°), k = 1..m

heads-dynamic-native: no score; in every block the K heads (--dynamic_heads) with the largest ‖a_h‖₂ of a token are
computed for it with their 16-bit weights, the others with the codes (quantization/dynamic.py); heads-static-native:
the K of a block with the largest mean norm, always.

f: log-probability of the answer, nats a token (streams/answers.py); a_h: the head's output, its slice of the input to
the output projection; a'_h: what replaces it (--ablation; streams/heads.py); e: input embeddings, e°: the baseline
(--baseline), a°: the outputs there.  Unit nats a token; higher = the answer needs the head more = protect; a head that
harms the answer is negative.

Ablation: e.g. Michel et al., arXiv 1905.10650; attribution patching: Nanda 2023, Syed et al., arXiv 2310.10348;
EAP-IG: Hanna et al., arXiv 2403.17806.
A head's score goes to its rows of q and its columns of o; rows of k and v get the highest score of the query heads that
read them, since a kept query head needs its key/value head.  All other linears come after every head.
Deviations: f in place of the logit difference of two answers, because these documents have no wrong twin.
"""

from __future__ import annotations

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.settings import Setting
from core.types import ScoreContext, Scores

streams, answers = Lazy("streams.heads"), Lazy("streams.answers")
CIRCUIT_DOCS = Setting("circuit_docs", int, 32, "worked documents that scores of heads read", low=1, documents=True)
ABLATION = Setting("ablation", str, "mean", "what replaces a head's output", choices=("mean", "zero", "other"))
BASELINE = Setting("baseline", str, "mean", "input embeddings that stand for no input, where gradients are integrated "
                   "from", choices=("mean", "zero", "pad"))
IG_STEPS = Setting("ig_steps", int, 20, "steps of integrated gradients", low=1)
GRAD = "grad_dtype"
DRAWS = 200  # bootstrap draws of the documents, for how stable the best heads are
TOP = 0.1  # share of the heads that counts as the best


def as_lines(ctx: ScoreContext, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores of heads [blocks, most heads] as scores of the rows and columns that belong to them."""
    attention = streams.find_heads(ctx.model)
    own = torch.cat([values[block, :one.heads] for block, one in enumerate(attention)])
    rest = own.min() - (own.max() - own.min()) - 1
    lines = {fqn: torch.full((1, linear.in_features), float(rest)) for fqn, linear in ctx.linears.items()}
    for block, one in enumerate(attention):
        lines |= one.lines(values[block, :one.heads])
    return lines


def stability(per_document: torch.Tensor, seed: int) -> float:
    """Mean Jaccard overlap of the best heads in bootstrap draws of the documents with those of all documents.

    per_document: [documents, heads].
    """
    count = max(1, round(TOP * per_document.shape[1]))
    generator = torch.Generator().manual_seed(seed)
    best = set(per_document.mean(0).topk(count).indices.tolist())
    overlaps = []
    for _ in range(DRAWS):
        drawn = torch.randint(len(per_document), (len(per_document),), generator=generator)
        other = set(per_document[drawn].mean(0).topk(count).indices.tolist())
        overlaps.append(len(best & other) / len(best | other))
    return sum(overlaps) / len(overlaps)


def _finished(ctx: ScoreContext, per_document: torch.Tensor) -> Scores:
    """The mean over documents [docs, blocks, most heads] as scores, with the map of the heads in the notes."""
    values = per_document.double().mean(0).float()
    counts = [one.heads for one in streams.find_heads(ctx.model)]
    flat = torch.cat([per_document[:, block, :count] for block, count in enumerate(counts)], 1)
    notes = {"heads": [values[block, :count].tolist() for block, count in enumerate(counts)],
             "documents": len(per_document), "stability": stability(flat, ctx.param("seed"))}
    return Scores("line", as_lines(ctx, values), unit="nats/token", notes=notes)


@scorer("heads-ablation", granularity="line", needs=("answers",),
        params=(CIRCUIT_DOCS, ABLATION, "batch_tokens", "seed"), forwards=lambda blocks: 5 * blocks, every_block=True)
def heads_ablation(ctx: ScoreContext) -> Scores:
    """Exact: every head replaced alone."""
    docs = answers.chosen(ctx, CIRCUIT_DOCS)
    heads = streams.Heads(ctx, docs, ctx.param("ablation"))
    todo = answers.batches(ctx, docs, copies=heads.most + 1)
    effects: dict[int, list] = {}
    for done, asked in enumerate(todo):
        def effects_of(asked=asked, done=done) -> list:
            def see(block: int) -> None:
                ctx.progress("heads ablated", done * len(ctx.blocks) + block, len(todo) * len(ctx.blocks))
            return streams.ablated(heads, asked, see).tolist()

        effects |= dict(zip(asked.docs, ctx.once(f"batch-{done}", effects_of), strict=True))
    ctx.progress("heads ablated", len(todo), len(todo))
    return _finished(ctx, torch.tensor([effects[doc] for doc in docs]))


def _by_gradients(ctx: ScoreContext, what: str, effects_of) -> Scores:
    """Scores from what ``effects_of(heads)`` says of every batch: [B, blocks, most heads], in --grad_dtype."""
    docs = answers.chosen(ctx, CIRCUIT_DOCS)
    effects: dict[int, torch.Tensor] = {}
    with answers.computing(ctx):
        heads = streams.Heads(ctx, docs, ctx.param("ablation") if "ablation" in ctx.allowed else "zero")
        todo, batch_effects = answers.batches(ctx, docs), effects_of(heads)
        for done, asked in enumerate(todo):
            ctx.progress(what, done, len(todo))
            effects |= dict(zip(asked.docs, batch_effects(asked), strict=True))
    ctx.progress(what, len(todo), len(todo))
    return _finished(ctx, torch.stack([effects[doc] for doc in docs]))


@scorer("heads-attribution", granularity="line", needs=("answers",),
        params=(CIRCUIT_DOCS, ABLATION, GRAD, "batch_tokens", "seed"), forwards=lambda blocks: 4, every_block=True,
        inside_blocks=True)
def heads_attribution(ctx: ScoreContext) -> Scores:
    """The first-order estimate of heads-ablation."""
    return _by_gradients(ctx, "heads attributed", lambda heads: lambda asked: streams.attributed(heads, asked))


@scorer("heads-EAP-IG", granularity="line", needs=("answers",),
        params=(CIRCUIT_DOCS, BASELINE, IG_STEPS, GRAD, "batch_tokens", "seed"), forwards=lambda blocks: 60,
        every_block=True, inside_blocks=True)
def heads_eap_ig(ctx: ScoreContext) -> Scores:
    """Gradients integrated from a baseline of the inputs to the inputs."""
    def effects_of(heads):
        start = answers.baseline(ctx, heads.docs, ctx.param("baseline"))
        return lambda asked: streams.integrated_heads(heads, asked, start, ctx.param("ig_steps"))

    return _by_gradients(ctx, "gradients integrated", effects_of)


@scorer("heads-norm", granularity="line", needs=("answers",), params=(CIRCUIT_DOCS,))
def heads_norm(ctx: ScoreContext) -> Scores:
    """How large each head's output is, with the weights as loaded; heads-dynamic-native sees the quantized ones'."""
    docs, total, tokens = answers.chosen(ctx, CIRCUIT_DOCS), 0.0, 0
    heads = streams.Heads(ctx, docs, "zero")
    for done, doc in enumerate(docs):
        ctx.progress("heads measured", done, len(docs))
        norms = heads.norms(doc)  # [T, blocks, most heads]
        total, tokens = total + norms.sum(0), tokens + len(norms)
    ctx.progress("heads measured", len(docs), len(docs))
    values = (total / tokens).float()
    notes = {"heads": [values[block, :one.heads].tolist() for block, one in enumerate(heads.attention)],
             "documents": len(docs)}
    return Scores("line", as_lines(ctx, values), unit="norm", notes=notes)


for _name, _paper in (("heads-ablation", "arXiv:1905.10650"), ("heads-attribution", "arXiv:2310.10348"),
                      ("heads-EAP-IG", "arXiv:2403.17806")):
    method(_name, scorer=_name, paper=_paper)
method("heads-norm", scorer="heads-norm")
method("heads-static-native", scorer="heads-norm", allocator="heads_a_block", native=True, bits="N", heads="heads",
       paper="the brief's circuit-quantization project")
method("heads-dynamic-native", allocator="heads_a_token", native=True, bits="N", heads="heads",
       paper="the brief's circuit-quantization project")
