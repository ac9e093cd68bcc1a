"""What ``benchmarks.stages`` compares with: lm-evaluation-harness, and earlier forms of our own stages."""

import torch

from core import forward
from core.types import ScoreContext
from evaluation.engine.batches import request_cost
from harness.stages.documents import TaskData
from methods import taqos
from quantization.solvers import spqr
from streams import activations

FILLED = 4096  # padded tokens that every batch was filled to


def ask_peer(lm, tokenizer, data: TaskData) -> None:
    """The same questions by lm-evaluation-harness's own model class: log-probabilities, or texts until a line ends."""
    from lm_eval.api.instance import Instance

    decode = tokenizer.decode
    asked = []
    for number, request in enumerate(data.requests):
        context = decode(request.context)
        if data.task.kind == "choice":
            asked += [Instance("loglikelihood", {}, (context, decode(ids)), i, (data.task.name, number, 1))
                      for i, ids in enumerate(request.continuations)]
        else:
            how = {"until": ["\n"], "max_gen_toks": data.cfg.max_new_tokens, "do_sample": False}
            asked.append(Instance("generate_until", {}, (context, how), 0, (data.task.name, number, 1)))
    method = lm.loglikelihood if data.task.kind == "choice" else lm.generate_until
    method(asked, disable_tqdm=True)


def filled(data: TaskData) -> list[list[int]]:
    """Longest first, each batch as full as FILLED padded tokens allow: the plan before ``core/batching.py``."""
    costs = [request_cost(request, data.cfg) for request in data.requests]
    batches: list[list[int]] = []
    heads = width = rows = tail = 0
    for i in sorted(range(len(costs)), key=lambda i: -costs[i][0]):
        own = len(data.requests[i].contexts)
        heads, rows = heads + own, rows + costs[i][1]
        width, tail = max(width, costs[i][0]), max(tail, costs[i][2])
        if not batches or heads * width + rows * tail > FILLED:
            batches.append([])
            heads, (width, rows, tail) = own, costs[i]
        batches[-1].append(i)
    return batches


def noisy_batch(ctx: ScoreContext, batch: list[int], step: list[float]) -> None:
    """TAQoS on a padded batch of prompts: for every block a run of the blocks behind it."""
    ids, mask = activations.padded(ctx, batch)
    clean: dict[int, torch.Tensor] = {}
    with forward.watch(ctx.blocks, clean.__setitem__) as widths:
        forward.call(ctx.model, ids, mask)
    for block, size in enumerate(step):
        h = clean.pop(block)
        for row, doc in enumerate(batch):
            length = len(ctx.calib.tokens[doc])
            h[row, -length:] += size * taqos.noise((length, h.shape[2]), 0, str(doc), block)
        with forward.skip_to(ctx.blocks, block, h, widths[block]):
            forward.call(ctx.model, ids, mask).logits[:, -1].float().log_softmax(-1)


def halving(solve, target: float, least: float):
    """Search of SpQR's threshold in steps of four, then halving a bracket; called as ``_search`` is."""
    fits = misses = None
    best, threshold = (least, float("inf"), None), spqr.THRESHOLD.default
    for _ in range(spqr.STEPS):
        bits, stored = solve(threshold)
        if bits <= target:
            fits, best = threshold, max(best, (bits, threshold, stored), key=lambda one: one[0])
        else:
            misses = threshold
        if target - spqr.BELOW <= best[0]:
            break
        threshold = (fits * misses) ** 0.5 if fits and misses else threshold / 4 if fits else threshold * 4
    return best
