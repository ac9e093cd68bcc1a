"""The circuit-aware method of the brief: heads and neurons that carry the task at 16 bits, the rest in NF4.

    s_u = mean over documents of (1/T) Σ_t Σ_{c in u} |(a_c − a°_c)·(1/m) Σ_k ∂f/∂a_c at e° + k/m (e − e°)|

u: a query head (its slice of the input to the attention's output projection) or a neuron of the feed-forward part (its
input to the down projection); f: log-probability of the answer; e°, a°: baseline embeddings and the outputs there;
m = --ig_steps, one pass for all units of all blocks (streams/heads.py).  Nats a token.

"circuit"          s_u per weight of the unit, at its rows and columns; the common allocator keeps the best
"circuit-native"   the source's form: the best 0.2 of the heads and, apart, of the neurons whole at 16 bits, the rest
                   NF4 without the kept ones (quantization/solvers/split.py); true bits, about 6.8
"circuit-random"   the control: a number from the seed for each head and each neuron, in the same places

A head is its rows of q, its columns of o and its key/value head's rows of k and v; a neuron its rows of gate and up
and its column of down.
Deviations from the source, whose public code cannot run: integrated gradients start from embeddings, not token ids;
heads by the same integral as neurons (the exact effect of each is `heads-ablation`); rows and columns go together.
"""

from __future__ import annotations

from core.errors import UserError
from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.types import ScoreContext, Scores
from methods.heads import BASELINE, CIRCUIT_DOCS, GRAD, IG_STEPS

streams, answers, architecture = Lazy("streams.heads"), Lazy("streams.answers"), Lazy("core.architecture")
HEADS, NEURONS = "heads", "neurons"


@scorer("circuit", granularity="line", needs=("answers",),
        params=(CIRCUIT_DOCS, BASELINE, IG_STEPS, GRAD, "batch_tokens"), forwards=lambda blocks: 60, every_block=True,
        inside_blocks=True)
def circuit(ctx: ScoreContext) -> Scores:
    """Heads and neurons by integrated gradients, in one pass."""
    attention, mlps = architecture.find_heads(ctx.model), architecture.find_mlps(ctx.model)
    readers = [one.o for one in attention] + [one.out for one in mlps]
    per_channel = integrated(ctx, [ctx.linears[fqn] for fqn in readers])
    values, kinds = {}, {}
    units: dict[str, list[list[float]]] = {HEADS: [], NEURONS: []}
    for one, channels in zip(attention, per_channel):
        of_head = channels.view(one.heads, one.width).sum(1)
        units[HEADS].append(of_head.tolist())
        weights = 2 * one.width * ctx.linears[one.q].in_features * (1 + one.kv_heads / one.heads)
        density = of_head / weights
        values |= one.lines(density)
        kinds |= dict.fromkeys((one.q, one.k, one.v, one.o), HEADS)
    for one, channels in zip(mlps, per_channel[len(attention):]):
        units[NEURONS].append(channels.tolist())
        density = channels / ((len(one.into) + 1) * ctx.linears[one.out].out_features)
        values |= one.lines(density)
        kinds |= dict.fromkeys((*one.into, one.out), NEURONS)
    rest = {fqn: torch.zeros(1, lin.in_features) for fqn, lin in ctx.linears.items() if fqn not in values}
    values = {fqn: (values | rest)[fqn].float() for fqn in ctx.linears}
    return Scores("line", values, unit="nats/token/weight", notes={"heads": units[HEADS], "kinds": kinds})


@scorer("circuit-random", granularity="line", needs=(), params=("seed",))
def circuit_random(ctx: ScoreContext) -> Scores:
    """Heads, and neurons where the model has single ones, in a random order: numbers from 0 to 1, from the seed."""
    generator = torch.Generator().manual_seed(ctx.param("seed"))
    values = {fqn: torch.zeros(1, linear.in_features) for fqn, linear in ctx.linears.items()}
    kinds = {}
    try:
        mlps = architecture.find_mlps(ctx.model)
    except UserError:  # a mixture of experts: heads alone
        mlps = []
    for kind, parts, size in ((HEADS, architecture.find_heads(ctx.model), lambda one: one.heads),
                              (NEURONS, mlps, lambda one: one.neurons)):
        for one in parts:
            lines = one.lines(torch.rand(size(one), generator=generator))
            values |= lines
            kinds |= dict.fromkeys(lines, kind)
    return Scores("line", values, unit="none", notes={"kinds": kinds})


def integrated(ctx: ScoreContext, readers: list[torch.nn.Linear]) -> list[torch.Tensor]:
    """Per input channel of each linear, the mean over documents of (1/T) Σ_t |(a − a°)·mean gradient|: [in] each."""
    docs, steps = answers.chosen(ctx, CIRCUIT_DOCS), ctx.param("ig_steps")
    totals = [torch.zeros(linear.in_features, dtype=torch.float64) for linear in readers]
    with answers.computing(ctx):
        start = answers.baseline(ctx, docs, ctx.param("baseline"))
        todo = answers.batches(ctx, docs)
        for done, asked in enumerate(todo):
            ctx.progress("gradients integrated", done, len(todo))
            shares = streams.integrated_inputs(ctx.model, readers, asked, start, steps)
            length = asked.mask.sum(1)[:, None]
            for total, share in zip(totals, shares):
                total += (share.abs().sum(1) / length).sum(0).double().cpu() / len(docs)
    ctx.progress("gradients integrated", len(todo), len(todo))
    return totals


method("circuit", scorer="circuit", paper="the brief's circuit-quantization project")
method("circuit-random", scorer="circuit-random")
method("circuit-native", scorer="circuit", allocator="circuit_fraction", quantizer="bnb-nf4-split", native=True,
       paper="the brief's circuit-quantization project")
