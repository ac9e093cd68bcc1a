"""Requests -> samples, a batch at a time.

gold_loglik = (1/n) sum_t log p(gold_t | prompt, gold_<t), nats per token.
Choice tasks: letter takes the option with the largest log-probability; cloze the one with the largest
summed log-probability per character (characters of the option without the leading space, so that the
tokenizer does not decide); ties go to the first.  Open questions: one greedy line, scored by exact match.

An out-of-memory error passes through; the caller backs off with a new batch plan.
"""

from collections.abc import Callable

import torch

from core.sample import Sample
from evaluation.data.documents import LETTERS
from evaluation.engine.batches import batch_plan, request_cost, shared_prefix
from evaluation.engine.generate import first_line, greedy
from evaluation.engine.kv_cache import Prefix, continuation_logprobs, prefill, prefix_fits, run_prefix
from evaluation.engine.prompts import EvalConfig, Request
from evaluation.grading import exact_match, extract, token_f1
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
    contexts = [r.context for r in requests]
    reserve = max(request_cost(r, cfg)[2] for r in requests)
    state = prefill(model, contexts, prefix if prefix_fits(prefix, contexts, reserve) else None)
    if task.kind == "choice":
        jobs = [(row, ids) for row, r in enumerate(requests) for ids in r.continuations]
        scored = iter(continuation_logprobs(model, state, jobs))
        return [_choice_sample(r, [next(scored) for _ in r.continuations], cfg) for r in requests]
    golds = continuation_logprobs(model, state, [(row, r.gold) for row, r in enumerate(requests)])
    written = greedy(model, tokenizer, state, cfg.max_new_tokens)
    return [_open_sample(r, gold, ids, tokenizer) for r, gold, ids in zip(requests, golds, written, strict=True)]


def evaluate(model, tokenizer, task: Task, requests, cfg: EvalConfig,
             progress: Callable[[int, int], None] = lambda done, total: None) -> list[Sample]:
    """Run the whole batch plan and return the samples in the order of ``requests``."""
    samples: list[Sample | None] = [None] * len(requests)
    prefix, done = make_prefix(model, requests, cfg), 0
    for batch in batch_plan(requests, cfg):
        for index, sample in zip(batch, run_batch(model, tokenizer, task, [requests[i] for i in batch], cfg, prefix), strict=True):
            samples[index] = sample
        done += len(batch)
        progress(done, len(requests))
    return samples


def choose(logprobs, lengths, scoring: str) -> int:
    """Return the index of the chosen option; an option without characters is divided by 1; ties: the first."""
    values = [p / max(n, 1) for p, n in zip(logprobs, lengths, strict=True)] if scoring == "cloze" else list(logprobs)
    return max(range(len(values)), key=lambda i: (values[i], -i))


def _choice_sample(request: Request, scored, cfg: EvalConfig) -> Sample:
    doc = request.doc
    sums = tuple(float(s.sum()) for s in scored)
    pick = choose(sums, request.lengths, cfg.scoring)
    return Sample(doc_id=doc.doc_id, prompt=request.prompt_sha, gold=doc.gold, text=doc.options[pick], answer=LETTERS[pick],
                  correct=float(pick == doc.gold_index), f1=None, choice_logprobs=sums, gold_loglik=float(scored[doc.gold_index].mean()),
                  n_prompt=len(request.context), n_new=0, truncated=request.truncated, stratum=doc.stratum)


def _open_sample(request: Request, gold, ids: list[int], tokenizer) -> Sample:
    doc = request.doc
    text = first_line(tokenizer, ids)
    answer = extract(text)
    return Sample(doc_id=doc.doc_id, prompt=request.prompt_sha, gold=doc.gold, text=text, answer=answer,
                  correct=exact_match(answer, doc.aliases), f1=token_f1(answer, doc.aliases), choice_logprobs=None,
                  gold_loglik=float(gold.mean()), n_prompt=len(request.context), n_new=len(ids), truncated=request.truncated,
                  stratum=doc.stratum)
