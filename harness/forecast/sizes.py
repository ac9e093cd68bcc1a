"""What the estimates of memory and time are made of: the batches that will run, and what is in the store."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from core.batching import length_batches, tails_padded
from core.registry import ScorerSpec
from evaluation.engine.batches import request_cost, shared_prefix
from harness.stages.case import Case
from harness.stages.cell import cell_key, served
from harness.stages.documents import TaskData
from harness.stages.scores import documents_read
from report.records import read_if_whole


@dataclass(frozen=True)
class Asked:
    """One batch of the evaluation as it is run."""

    rows: int  # contexts
    width: int  # tokens of the longest
    tails: int  # rows after the contexts: options, or the gold answer
    tail: int  # tokens of the longest
    real: int  # tokens of all tails, whose logits are read
    steps: int  # tokens generated, one forward each
    prefix: int  # leading tokens that were run before

    @cached_property
    def padded(self) -> int:
        """Tokens of the tails as they are run: those of like length together, so that little padding is left."""
        return tails_padded(self.tails, self.tail, self.real)


def asked(data: TaskData) -> list[Asked]:
    """The evaluation's batches."""
    shared, batches = shared_prefix(data.requests, data.cfg), []
    for batch in data.batches:
        requests = [data.requests[i] for i in batch]
        tails = [len(c) - 1 for r in requests for c in (r.continuations or (r.gold,)) if len(c) > 1]
        width = max(request_cost(r, data.cfg)[0] for r in requests)
        steps = data.cfg.max_new_tokens if data.task.kind == "generate" else 0
        prefix = 0 if any(r.truncated for r in requests) else shared
        rows = sum(len(r.contexts) for r in requests)
        batches.append(Asked(rows=rows, width=width, tails=len(tails), tail=max(tails, default=0),
                             real=sum(tails), steps=steps, prefix=prefix))
    return batches


def prompt_batches(case: Case, spec: ScorerSpec) -> list[tuple[int, int]]:
    """(rows, tokens of the longest) of every batch of prompts that a scorer reads."""
    lengths = [len(t) for t in case.prompts.tokens[:documents_read(case, spec)]]
    return [(len(batch), lengths[batch[0]]) for batch in length_batches(lengths, case.grid.batch_tokens)]


def finished(case: Case) -> bool:
    """Whether all that a cell's result is read from is in the store: a run then computes nothing."""
    for file in Path(case.grid.results_dir).glob(f"*__{cell_key(case)}.json"):
        plain = read_if_whole(file)
        if plain and plain.get("status") == "ok" and case.store.has(plain["stages"]["samples"]):
            return True
    return served(case)
