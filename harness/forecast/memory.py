"""How much memory a cell takes at its highest, from the model's structure and the questions alone; no weights are
loaded.

A cell goes through stages, and what one stage holds is gone in the next, so every stage is counted by itself:

    loading     the weights come to the CPU first            all weights; without a GPU the linears once more
    prompts     a scorer reads calibration prompts           weights + hidden states of a batch (TAQoS: of every block)
    gradients   one backward pass a document                 weights (--grad_dtype) + float32 sums, one set a kind
    Hessians    a scorer or solver reads inputs of linears   weights + hidden states, Hessian and factor of the widest
    menu        forms of linears are priced                  weights (--grad_dtype) + what forms move, 16 bits a weight
    tuning      scales and kept weights are moved            weights + codes, log-probabilities of the documents
    allocation  kept weights are chosen                      a mask, and the rank of all that there may be room for
    questions   a batch of the evaluation                    weights + hidden states, key-value cache, logits

All through a cell the linears as loaded lie once more on the CPU.  Where blocks are offloaded, the largest of them
stands for all on the device; offloaded to disk, neither they nor what is as large as the model is counted on the CPU,
for it lies in files that the system pages in and out.  With a GPU, device and CPU are two budgets; without
one, all adds up.
Sums of gradients, and what forms move, are counted on the CPU: they lie on a GPU only where it has four times the room.
Upper bounds where the code decides by the data; allocators other than torch's and memory that is lost between blocks
are not counted.
"""

from dataclasses import dataclass

from core.model import DTYPES
from core.placement import Devices
from core.registry import QUANTIZERS, SCORERS, ScorerSpec
from core.storage import KEPT
from evaluation.engine.kv_cache import LOGIT_ROWS
from harness.forecast.sizes import Asked, asked, prompt_batches
from harness.forecast.weights import (
    cast_bytes,
    large_bytes,
    loading_bytes,
    originals_bytes,
    weight_bytes,
)
from harness.stages.base_quantized import base as base_level
from harness.stages.case import Case
from harness.stages.gradients import gradient_kinds, missing_kinds
from harness.stages.library import HELD, menu_of
from harness.stages.model import Sizes
from harness.stages.options import buys_forms
from harness.stages.plan import plan_key
from harness.stages.scores import scores_needed
from harness.stages.tune import rounds_of
from quantization.bits import uniform_bits
from streams.blocks import batch_tokens
from streams.gradients import SLICE
from streams.settled import LINEARS

PROCESS = 500 * 10**6  # Python, torch, the tokenizer and the documents, measured
CONTEXT = 500 * 10**6  # a CUDA context
GRADIENTS, ASKING = "gradients are taken", "questions are asked"
ATTRIBUTED = "answers are attributed"
FACTOR = 4  # matrices [in, in] at once: the Hessian, two on the way to its factor, and room to make the second
RANKED = 60  # bytes a weight that may be kept takes while they are ranked: positions, keys, rows, scores
WORKING = 5  # float32 copies of the weight that a solver works on: the weight, columns, errors, values, codes and masks
CLUSTERED = 13  # the same of SqueezeLLM: Fisher, what is not kept of it, codes, mask, and a few rows in float64


@dataclass(frozen=True)
class Parts:
    """Bytes of one stage at its highest."""

    name: str
    weights: int = 0  # device: the model as loaded, or widened for gradients
    originals: int = 0  # CPU: the linears as loaded, once more; all weights on their way to the device
    activations: int = 0  # device: hidden states, key-value cache, logits
    scores: int = 0  # CPU: numbers a weight: gradient sums, element scores, the quantized model to compare with, masks
    solver: int = 0  # device: Hessians, factors, working copies, hidden states of the calibration documents
    process: int = PROCESS  # CPU: what a process takes before any work
    context: int = 0  # device: what CUDA takes before any work

    @property
    def device(self) -> int:
        return self.weights + self.activations + self.solver + self.context

    @property
    def host(self) -> int:
        return self.originals + self.scores + self.process

    @property
    def total(self) -> int:
        return self.device + self.host


def forward_bytes(d: Sizes, tokens: int, itemsize: int) -> int:
    """Hidden states while a block runs: residual, float32 norm, queries, keys, values; gate, up, their product."""
    return tokens * (itemsize * (5 * d.hidden + 3 * d.widest) + 4 * 2 * d.hidden)


def batch_bytes(d: Sizes, batch: Asked) -> int:
    """One batch of questions: hidden states, key-value caches of contexts and tails, logits."""
    tokens = max(batch.rows * (batch.width - batch.prefix), batch.padded)
    # tails get copies of their context's
    cached = batch.rows * (batch.width + batch.steps) + batch.tails * (batch.width + batch.tail)
    read = min(batch.real, LOGIT_ROWS)
    logits = max(batch.padded * d.itemsize + read * (d.itemsize + 8), batch.rows * (d.itemsize + 8)) + batch.rows * 4
    weights = d.attention * batch.rows * batch.width**2 * (d.itemsize + 4)
    return forward_bytes(d, tokens,
                         d.itemsize) + cached * d.cache * d.blocks * d.itemsize + logits * d.vocabulary + weights


def prompt_bytes(d: Sizes, tokens: int, kept: bool) -> int:
    """A scorer's batch of prompts; ``kept``: the hidden states of all blocks at once."""
    return forward_bytes(d, tokens, d.itemsize) + kept * d.blocks * tokens * d.hidden * d.itemsize


def backward_bytes(d: Sizes, longest: int, itemsize: int, offloaded: bool = False) -> int:
    """A backward pass: what blocks hold (offloaded ones what entered them, and one of them the rest), logits and their
    gradient, one weight's gradient, a slice of the loss.
    """
    blocks = 1 if offloaded else d.blocks
    states = longest * blocks * (itemsize * (6 * d.hidden + 4 * d.widest) + 4 * 2 * d.hidden)
    states += offloaded * longest * d.blocks * d.hidden * itemsize
    attention = blocks * d.attention * longest**2 * (itemsize + 4)
    logits = longest * d.vocabulary * itemsize * 2 + 3 * 4 * min(SLICE, longest * d.vocabulary)
    return states + attention + logits + d.largest * (itemsize + 4)


def solver_bytes(case: Case, tokens: int, longest: int, sequential: bool) -> int:
    """Hessians and factor of the widest linear, its working copies, and the documents' hidden states on their way."""
    d = case.model.sizes
    inside = {c for _, c in case.model.shapes.values()}
    states = (1 + sequential) * d.hidden  # what enters the block, and what its solved parts gave
    # of solved linears: an MLP's two that lead to its last, and q, k, v where attention itself cannot be remembered
    given = min(LINEARS, tokens * (2 * d.widest + 3 * d.hidden) * d.itemsize)
    given *= sequential and case.model.device.type == "cpu"
    others = 0 if sequential else sum(c * c for c in inside) + min(inside) ** 2  # all Hessians of a block at once
    matrices = 4 * (FACTOR * d.widest_in**2 + others + WORKING * d.largest)
    return matrices + given + tokens * (states * d.itemsize + longest)


def kinds_to_make(case: Case, scored: ScorerSpec | None) -> set[str]:
    """Kinds of gradient sums that a pass for this cell makes; ``scored`` is its scorer if that has still to run."""
    made = gradient_kinds(scored.name if scored else None, case.method.quantizer, case.method.allocator,
                          case.method.options)
    return missing_kinds(case, made)


def memory(case: Case) -> list[Parts]:
    """The stages that a cell still has before it; the evaluation is always the last of them."""
    d, method = case.model.sizes, case.method
    stages = [Parts("weights are loaded", originals=loading_bytes(case))]
    base = {"weights": weight_bytes(case, d.itemsize), "originals": originals_bytes(case),
            "context": context_bytes(case, "")}
    spec = SCORERS.get(method.scorer) if method.scorer else None
    # scores are read to make a plan, never again
    planned = method.allocator == "none" or case.store.has(plan_key(case)[0])
    element = spec is not None and spec.granularity == "element"
    to_score = spec if spec and not planned and not case.store.has(scores_needed(case)) else None
    if to_score and "calib" in spec.needs and "labels" not in spec.needs:
        tokens = max(rows * width for rows, width in prompt_batches(case, spec))
        activations = prompt_bytes(d, tokens, case.value("published"))
        if spec.every_block:  # a row for every block of one prompt: what enters a block, and what it gives
            longest = max(width for _, width in prompt_batches(case, spec))
            together = forward_bytes(d, min((d.blocks + 1) * longest, max(case.grid.batch_tokens, longest)), d.itemsize)
            activations = max(activations, together) + 2 * (d.blocks + 1) * longest * d.hidden * d.itemsize
        stages.append(Parts("prompts are scored", **base, activations=activations))
    for add in (answers_stage, gradient_stage, solver_stage):
        stages += add(case, base, to_score)
    if rounds_of(case):
        stages.append(tuning_stage(case, base))
    if buys_forms(method) and not planned:
        stages.append(menu_stage(case, base))
    if element and not planned:
        stages.append(Parts("kept weights are chosen", **base, scores=d.linears + RANKED * room(case) + 8 * d.largest))
    activations = max(batch_bytes(d, batch) for batch in asked(case.data))
    # heads chosen at run time: the attention's linears lie there in both versions; all linears are more than these
    twice = d.linears * d.itemsize if method.allocator == "heads_a_token" else 0
    asking = base | {"context": context_bytes(case, ASKING), "weights": base["weights"] + twice}
    return [*stages, Parts(ASKING, **asking, activations=activations, scores=element * d.linears)]


def room(case: Case) -> int:
    """Kept weights that the budget has room for, their index aside; of a native row what one bit more would pay for."""
    d, budget = case.model.sizes, case.budget
    if case.method.native:
        return d.linears // KEPT.of(case.method.options)
    lowest = uniform_bits(base_level(case)["bits"], case.model.shapes, budget)
    return max(0, int(budget.avg_bits * d.linears) - lowest) // budget.kept_bits


def devices_of(case: Case, stage: str) -> Devices:
    """Where the model lies in a stage."""
    if stage in (GRADIENTS, ATTRIBUTED):
        return case.model.grad_devices
    return (case.model.eval_device if stage == ASKING else case.model.device,)


def context_bytes(case: Case, stage: str) -> int:
    return CONTEXT * sum(device.type == "cuda" for device in devices_of(case, stage))


def answers_stage(case: Case, base: dict, spec: ScorerSpec | None) -> list[Parts]:
    """A scorer that reads answers, with gradients or without; hidden states of all blocks are there at once."""
    if spec is None or "answers" not in spec.needs:
        return []
    d, tokens = case.model.sizes, max(case.grid.batch_tokens, *map(len, case.answers.tokens))
    if "grad_dtype" not in spec.params:
        return [Parts("answers are scored", **base, activations=2 * prompt_bytes(d, tokens, kept=True))]
    dtype = DTYPES[case.value("grad_dtype")]
    # of every block: the units as they are, at the baseline, their gradients, and the sum of these
    held = 5 * d.blocks * tokens * (d.hidden + d.widest) * 4
    return [Parts(ATTRIBUTED, **base | {"weights": cast_bytes(case),
                                        "context": context_bytes(case, ATTRIBUTED)},
                  activations=backward_bytes(d, tokens, dtype.itemsize, case.model.offloaded) + held)]


def gradient_stage(case: Case, base: dict, spec: ScorerSpec | None) -> list[Parts]:
    """The backward passes, if the cell needs sums that the store has not."""
    kinds = kinds_to_make(case, spec)
    if not kinds:
        return []
    d, dtype = case.model.sizes, DTYPES[case.value("grad_dtype")]
    longest = max(len(t) for t in case.solver_calib.tokens)
    made = d.linears * d.itemsize if spec and spec.compares else 0  # the quantized model was made before
    return [Parts(GRADIENTS, **base | {"weights": cast_bytes(case),
                                       "context": context_bytes(case, GRADIENTS)},
                  activations=backward_bytes(d, longest, dtype.itemsize, case.model.offloaded),
                  scores=large_bytes(case, 4 * d.linears * len(kinds) + made))]


def menu_stage(case: Case, base: dict) -> Parts:
    """Forms are priced by backward passes; what they move is in memory as far as it fits, and one linear's besides."""
    d, dtype, count = case.model.sizes, DTYPES[case.value("grad_dtype")], len(menu_of(case))
    longest = max(len(t) for t in case.solver_calib.tokens)
    moved = min(HELD, 2 * count * d.linears) + (2 * count + 4) * d.largest
    return Parts("forms are priced", **base | {"weights": cast_bytes(case),
                                               "context": context_bytes(case, GRADIENTS)},
                 activations=backward_bytes(d, longest, dtype.itemsize, case.model.offloaded), scores=moved)


def tuning_stage(case: Case, base: dict) -> Parts:
    """Backward passes while codes lie as 8 and as 16 bits beside the weights, and a mask; what moves is far less."""
    d, lengths = case.model.sizes, [len(tokens) for tokens in case.solver_calib.tokens]
    logits = max(lengths) * d.vocabulary * 4 * 3  # the full model's, the quantized one's, and their product
    passes = backward_bytes(d, max(lengths), d.itemsize, case.model.offloaded)
    codes = d.linears * (2 + 1 + 1)
    if case.model.offloaded:  # they lie where the weights rest
        base = base | {"originals": base["originals"] + codes}
        codes = d.linears  # of blocks as they were solved
    return Parts("scales and kept weights are tuned", **base, solver=codes,
                 activations=passes + logits + 3 * 4 * d.largest,
                 scores=d.linears * (1 + d.itemsize) + 2 * sum(lengths) * d.vocabulary)


def solver_stage(case: Case, base: dict, spec: ScorerSpec | None) -> list[Parts]:
    """A quantizer, or a scorer, that reads the inputs of linears or their gradients."""
    d, quant = case.model.sizes, QUANTIZERS.get(case.method.quantizer) if case.method.quantizer else None
    corrupt = QUANTIZERS.get(case.value("corrupt")) if spec and spec.compares else None
    reading = {need for reader in (quant, corrupt, spec) if reader for need in reader.needs}
    fisher = large_bytes(case, 4 * d.linears) if "fisher" in reading else 0
    if not {"hessian", "inputs"} & reading:
        return [Parts("linears are solved", **base, scores=fisher, solver=4 * CLUSTERED * d.largest)] if fisher else []
    lengths = [len(t) for t in case.solver_calib.tokens]
    scored = spec is not None and "hessian" in spec.needs
    at_once = scored or any(q.needs and not q.sequential for q in (quant, corrupt) if q)
    element = scored and spec.granularity == "element"
    scores = max(fisher, large_bytes(case, max(4 * d.linears * element, d.linears * d.itemsize if corrupt else 0)))
    together = max(*lengths, min(batch_tokens(case.model.device, d.widest_in), sum(lengths)))
    # beside the block's own, what the widest linear reads, in float32
    activations = forward_bytes(d, together, d.itemsize) + 4 * together * d.widest_in
    return [Parts("linears are solved", **base, activations=activations, scores=scores,
                  solver=solver_bytes(case, sum(lengths), max(lengths), not at_once))]
