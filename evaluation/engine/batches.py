"""Which requests share a batch: a pure function of the requests and the config.

bf16 log-probabilities move by up to 0.6 nats with the shape of the batch, so the plan belongs to the identity of the
samples.
"""

from core.batching import Rows, partition
from evaluation.engine.prompts import EvalConfig, Request

MIN_PREFIX = 32  # tokens; below it the expanded cache costs more than it saves


def request_cost(request: Request, cfg: EvalConfig) -> tuple[int, int, int]:
    """Return (context tokens, rows after it, tokens of the longest such row): what a request adds to a batch."""
    if request.continuations:
        longest = max(len(c) for c in request.continuations) - 1  # the first token is read off the context
        return max(map(len, request.contexts)), len(request.continuations), longest
    return len(request.context), 1, max(cfg.max_new_tokens, len(request.gold))


def batch_plan(requests, cfg: EvalConfig) -> tuple[tuple[int, ...], ...]:
    """Return the batches as indices into ``requests``: longest first, stable, each within the token budget."""
    if cfg.batch_size is not None:
        order = sorted(range(len(requests)), key=lambda i: -request_cost(requests[i], cfg)[0])
        return tuple(tuple(order[i:i + cfg.batch_size]) for i in range(0, len(order), cfg.batch_size))
    return tuple(map(tuple, partition([_rows(r, cfg) for r in requests], cfg.batch_tokens)))


def _rows(request: Request, cfg: EvalConfig) -> Rows:
    length, tails, tail = request_cost(request, cfg)
    real = sum(len(c) - 1 for c in request.continuations) or tail
    return Rows(length, len(request.contexts), tails, tail, real,
                steps=0 if request.continuations else cfg.max_new_tokens)


def shared_prefix(requests, cfg: EvalConfig | None = None) -> int:
    """Return how many leading tokens all uncut contexts share; 0 below 32, and at batch size 1.

    At least one token of every context stays outside, because its logits are needed.  Cut contexts
    begin elsewhere; their batches run without the prefix.
    """
    contexts = [context for r in requests if not r.truncated for context in r.contexts]
    if len(contexts) < 2 or (cfg is not None and cfg.batch_size == 1):
        return 0
    first, last = min(contexts), max(contexts)  # in lexical order these two differ the earliest
    limit = min(len(c) for c in contexts) - 1
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), limit)
    return min(shared, limit) if min(shared, limit) >= MIN_PREFIX else 0
