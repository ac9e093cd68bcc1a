"""Results made by hand, for tests of what is printed of them."""

from dataclasses import replace

import numpy as np

from core.digest import digest
from core.sample import Sample
from evaluation.statistics.summary import by_stratum, summarise
from report.records import Bits, MethodFacts, ModelFacts, Result, TaskFacts, write_result

N = 96
SETTINGS = {"tolerance": 0.01, "data_source": "embedded", "quantizer": "rtn"}


def documents(dataset: str, shift: float, seed: int, flips: int = 0) -> list[Sample]:
    """The same questions for every row of a data set; ``shift`` nats better than full precision.

    The first ``flips`` answers are wrong.
    """
    base, noise = np.random.default_rng(len(dataset)), np.random.default_rng([seed, int(1000 * abs(shift)), flips])
    out = []
    for i in range(N):
        right, value = i < 64 and i >= flips, base.normal(-2, 1) + shift + 0.2 * noise.normal()
        scores = tuple(float(x) for x in noise.normal(size=4))
        out.append(Sample(doc_id=f"q{i:03d}", prompt="", gold="A", text="x", answer="A" if right else "B",
                          correct=float(right), f1=None, choice_logprobs=scores, gold_loglik=float(value), n_prompt=9,
                          n_new=0, truncated=False, stratum=f"part {i % 3}"))
    return out


def put(folder, method, bits, shift, *, dataset="mmlu_pro", seed=0, flips=0, budget=4.25, native=False, error=None,
        samples=None, brackets=None, **changes) -> str:
    """Write one cell as the harness does and return its digest; ``method`` is a name or the whole MethodFacts,
    ``changes`` are fields of the record.

    brackets: the settings that the method's name tells.
    """
    facts = method if isinstance(method, MethodFacts) else MethodFacts(method, native=native, quantizer="rtn",
                                                                       settings=brackets or {})
    method = facts.name
    cell = digest([method, dataset, seed, budget, repr(changes)])
    samples = samples or documents(dataset, shift, seed, flips)
    result = Result(cell=cell, model=ModelFacts("toy", "r", "float32", "toy"), dataset=dataset, avg_bits=budget,
                    method=facts, seed=seed, run_type="demo", settings=SETTINGS, machine="cpu", versions={},
                    status="error" if error else "ok", error=error)
    if not error:
        result = replace(result, n=len(samples), metrics=summarise(samples), strata=by_stratum(samples),
                         bits=Bits(bits, bits + 1, group_size=32), scoring="letter", stages={"evaluation": "e1"},
                         task=TaskFacts("choice", {"accuracy": "acc"}, 0.25))
    stem, result = f"toy__{dataset}__{method}__s{seed}__{cell}", replace(result, **changes)
    write_result(folder, stem, result, None if error else samples)
    return cell
