"""Requests -> samples, a batch at a time.

gold_loglik = (1/n) sum_t log p(gold_t | prompt, gold_<t), nats per token.
Choice tasks: each option's log-probability is the sum over its tokens, and the task picks one and judges it.
Open questions: the model writes greedily until a stop text, and the task judges what it wrote.
Likelihoods: nothing is chosen or written; the task judges how likely the gold text is.

An out-of-memory error passes through; the caller backs off with a new batch plan.
"""

from collections.abc import Callable
from itertools import accumulate

import torch

from core.sample import Sample
from evaluation.data.documents import LETTERS
from evaluation.engine.batches import batch_plan, request_cost, shared_prefix
from evaluation.engine.generate import Stopping, greedy
from evaluation.engine.kv_cache import Prefix, Scored, prefill, prefix_fits, run_prefix, score_continuations
from evaluation.engine.prompts import EvalConfig, Request
from evaluation.grading import Grade
from evaluation.tasks.base import Task


@torch.inference_mode()
def make_prefix(model, requests, cfg: EvalConfig) -> Prefix | None:
    """Run what all requests share, once for the whole evaluation; None when it does not pay."""
    shared = shared_prefix(requests, cfg)
    if not shared:
        return None
    whole = next(r for r in requests if not r.truncated)
    return run_prefix(model, whole.context[:shared])


@torch.inference_mode()
def run_batch(model, tokenizer, task: Task, requests, cfg: EvalConfig, prefix: Prefix | None = None) -> list[Sample]:
    """Return one sample per request, in order; the model must be in eval mode and stays as it is."""
    requests = list(requests)
    if not requests:
        return []
    contexts = [context for r in requests for context in r.contexts]
    rows = list(accumulate((len(r.contexts) for r in requests[:-1]), initial=0))  # each request's first context
    reserve = max(request_cost(r, cfg)[2] for r in requests)
    state = prefill(model, contexts, prefix if prefix_fits(prefix, contexts, reserve) else None)
    if task.kind == "choice":
        jobs = [(row + (number if r.others else 0), ids) for row, r in zip(rows, requests, strict=True)
                for number, ids in enumerate(r.continuations)]
        scored = iter(score_continuations(model, state, jobs))
        return [_choice_sample(task, r, [next(scored) for _ in r.continuations], cfg) for r in requests]
    golds = score_continuations(model, state, [(row, r.gold) for row, r in enumerate(requests)])
    if task.kind == "likelihood":
        return [_likelihood_sample(task, r, gold) for r, gold in zip(requests, golds, strict=True)]
    stopping = Stopping(model, tokenizer, task.stop)
    written = greedy(model, state, cfg.max_new_tokens, stopping)
    return [_open_sample(task, r, text=stopping.text(ids), n_new=len(ids), gold_loglik=float(gold.logprobs.mean()))
            for r, gold, ids in zip(requests, golds, written, strict=True)]


def evaluate(model, tokenizer, task: Task, requests, cfg: EvalConfig,
             progress: Callable[[int, int], None] = lambda done, total: None) -> list[Sample]:
    """Run the whole batch plan and return the samples in the order of ``requests``."""
    samples: list[Sample | None] = [None] * len(requests)
    prefix, done = make_prefix(model, requests, cfg), 0
    for batch in batch_plan(requests, cfg):
        answered = run_batch(model, tokenizer, task, [requests[i] for i in batch], cfg=cfg, prefix=prefix)
        for index, sample in zip(batch, answered, strict=True):
            samples[index] = sample
        done += len(batch)
        progress(done, len(requests))
    return samples


def _choice_sample(task: Task, request: Request, scored, cfg: EvalConfig) -> Sample:
    doc = request.doc
    sums = tuple(float(s.logprobs.sum()) for s in scored)
    grade = task.grade_asked(doc, sums, [bool(s.greedy.all()) for s in scored], cfg.scoring)
    return _sample(request, grade, text=doc.options[LETTERS.index(grade.answer)], choice_logprobs=sums,
                   gold_loglik=float(scored[doc.gold_index].logprobs.mean()), n_new=0)


def _open_sample(task: Task, request: Request, *, text: str, **measured) -> Sample:
    return _sample(request, task.grade(request.doc, text), text=text, choice_logprobs=None, **measured)


def _likelihood_sample(task: Task, request: Request, gold: Scored) -> Sample:
    grade = task.grade_gold(request.doc, float(gold.logprobs.sum()), bool(gold.greedy.all()))
    return _sample(request, grade, text="", choice_logprobs=None, gold_loglik=float(gold.logprobs.mean()), n_new=0)


def _sample(request: Request, grade: Grade, **measured) -> Sample:
    doc = request.doc
    return Sample(doc_id=doc.doc_id, prompt=request.prompt_sha, gold=doc.gold, n_prompt=len(request.context),
                  truncated=request.truncated, stratum=doc.stratum, **grade.fields(), **measured)
