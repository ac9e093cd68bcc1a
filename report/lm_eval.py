"""The way back: results and samples in the files of lm-evaluation-harness 0.4.13, for the tools around it.

    <folder>/<model>__<method>__<bits>b__s<seed>/results_<date>.json
                                                 samples_<task>_<date>.jsonl    a line a document and filter

A row (model, method, budget, seed) is one of its models.  Metrics bear its names (a cloze's accuracy by characters is
its ``acc_norm``, by sums its ``acc``); what it has no name for keeps ours, with the filter "none".  Samples keep no
greedy flags of options, which read "None", and of our own tasks no prompt: ``arg_0`` is then the question.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from core.digest import atomic_write
from core.errors import UserError
from core.sample import Sample
from evaluation.data.documents import LETTERS
from report.records import Question, Result, load_questions, load_samples

BRIDGED = "lm_eval:"  # data sets that are its own tasks
KINDS = {"choice": "multiple_choice", "generate": "generate_until", "likelihood": "loglikelihood"}
FALLING = ("perplexity", "ppl", "bits_per_byte", "rel_error")
RISING = ("acc", "exact_match", "f1", "em", "gold_loglik", "last_number")
TOTALS = ("loglik", "word_loglik")  # scores that hold a gold text's summed nats


def write(folder: Path | str, results: Sequence[Result]) -> list[Path]:
    """Write every row's files; the same results give the same files.  Returns what was written."""
    rows: dict[tuple, list[Result]] = {}
    for result in (r for r in results if r.ok):
        rows.setdefault((row_name(result), result.conditions), []).append(result)
    if not rows:
        raise UserError("no cell of these has a result, so nothing was written; run run_taq_icml.py first")
    names = [name for name, _ in rows]
    written = []
    for (name, conditions), cells in rows.items():
        several = names.count(name) > 1  # the same row under other settings, or on another machine
        written += _write_row(Path(folder), f"{name}__{conditions[:6]}" if several else name, cells)
    return written


def row_name(result: Result) -> str:
    """What its files call the row: a model's name without what a folder cannot have."""
    bits = "own" if result.avg_bits is None else f"{result.avg_bits:g}"
    text = f"{result.model.name}__{result.name}__{bits}b__s{result.seed}"
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", text)


def task_name(result: Result) -> str:
    """The data set under its name there."""
    return result.dataset.removeprefix(BRIDGED).replace(":", "_").replace("/", "_")


def _write_row(folder: Path, name: str, cells: list[Result]) -> list[Path]:
    made = max(datetime.fromisoformat(r.made) if r.made else datetime.fromtimestamp(0, UTC) for r in cells)
    date = made.strftime("%Y-%m-%dT%H-%M-%S.%f")
    lines = {task_name(r): _lines(r, load_samples(r), load_questions(r)) for r in cells}
    content = _head(name, cells, made.timestamp()) | {
        "task_hashes": {task: _sha("".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in rows))
                        for task, rows in lines.items()}}
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    files = {place / f"results_{date}.json": json.dumps(content, indent=2, ensure_ascii=False)}
    for task, rows in lines.items():
        files[place / f"samples_{task}_{date}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n"
                                                                 for row in rows)
    for path, text in files.items():
        atomic_write(path, text)
    return list(files)


def _head(name: str, cells: list[Result], time: float) -> dict:
    """The results file: all tasks of one row."""
    first, tasks = cells[0], {task_name(r): r for r in cells}
    shots = {task: r.evaluation.get("num_fewshot", 0) for task, r in tasks.items()}
    model = {"pretrained": first.model.name, "revision": first.model.revision, "dtype": first.model.dtype,
             "method": first.name, "avg_bits": first.avg_bits, "seed": first.seed}
    return {
        "results": {task: _numbers(r) for task, r in tasks.items()},
        "group_subtasks": {},
        "configs": {task: _config(task, r) for task, r in tasks.items()},
        "versions": {task: r.task_version for task, r in tasks.items()},
        "n-shot": shots,
        "higher_is_better": {task: {metric.partition(",")[0]: _rises(metric) for metric in _named(r).values()}
                             for task, r in tasks.items()},
        "n-samples": {task: {"original": r.n, "effective": r.n} for task, r in tasks.items()},
        "config": {"model": "run_taq_icml", "model_args": model, "model_dtype": first.model.dtype,
                   "model_revision": first.model.revision, "model_sha": first.model.revision,
                   "batch_size": first.evaluation.get("batch_size"), "batch_sizes": [], "device": first.machine,
                   "use_cache": None, "limit": None, "bootstrap_iters": 0, "gen_kwargs": None, "random_seed": None,
                   "numpy_seed": None, "torch_seed": None, "fewshot_seed": None},
        "git_hash": first.versions.get("commit"), "date": time, "pretty_env_info": first.machine,
        "transformers_version": first.versions.get("transformers"), "lm_eval_version": None, "upper_git_hash": None,
        "model_source": "run_taq_icml", "model_name": name, "model_name_sanitized": name,
        "system_instruction": None, "system_instruction_sha": None, "fewshot_as_multiturn": False,
        "chat_template": None, "chat_template_sha": None,
        "total_evaluation_time_seconds": str(sum(sum(r.seconds.values()) for r in cells)),
    }


def _config(task: str, result: Result) -> dict:
    """What is known of how the task was asked."""
    kind = result.task.kind if result.task else "choice"
    return {"task": task, "output_type": KINDS.get(kind, kind), "num_fewshot": result.evaluation.get("num_fewshot", 0),
            "scoring": result.scoring, "metric_list": [{"metric": metric.partition(",")[0]}
                                                       for metric in _named(result).values()],
            "metadata": {"version": result.task_version, "dataset": result.dataset, "note": result.data_note,
                         "evaluation": result.evaluation}}


def _named(result: Result) -> dict[str, str]:
    """Our metrics that have a value, and each as ``metric,filter``."""
    shown = dict(result.task.metrics) if result.task else {"accuracy": "acc"}
    own = {"accuracy": "exact_match" if result.scoring == "generate" else "acc"}
    if result.dataset.startswith(BRIDGED):
        own = {"accuracy": shown.get("accuracy", "acc")}
    elif result.scoring == "cloze":
        own = {"accuracy": "acc_norm", "accuracy_sums": "acc"}
    names = [name for name in dict.fromkeys((*shown, "f1", "gold_loglik")) if result.metrics.get(name)]
    named = {name: own.get(name, name) for name in names}
    return {name: metric if "," in metric else f"{metric},none" for name, metric in named.items()}


def _numbers(result: Result) -> dict:
    """A task's metrics with their standard errors; a metric that no document has by itself has none."""
    samples, out = load_samples(result), {"name": task_name(result), "alias": task_name(result), "sample_len": result.n}
    for name, metric in _named(result).items():
        base, _, key = metric.partition(",")
        values = [value for value in (sample.metric(name) for sample in samples) if value is not None]
        mean = result.metrics[name].value
        plain = len(values) > 1 and math.isclose(sum(values) / len(values), mean, rel_tol=1e-6, abs_tol=1e-9)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) if plain else 0.0
        out |= {metric: mean, f"{base}_stderr,{key}": spread / math.sqrt(len(values)) if plain else "N/A"}
    return out


def _rises(metric: str) -> bool | None:
    """Whether more is better; None where the name does not say."""
    base = metric.partition(",")[0]
    if any(part in base for part in FALLING):
        return False
    return True if base.startswith(RISING) else None


def _lines(result: Result, samples: list[Sample], questions: dict[str, Question]) -> list[dict]:
    """One line a document and filter."""
    filters: dict[str, dict[str, str]] = {}
    for name, metric in _named(result).items():
        base, _, key = metric.partition(",")
        filters.setdefault(key, {})[name] = base
    if len(filters) > 1:
        filters.pop("none", None)  # what has no filter, such as gold_loglik, belongs to none of the task's own
    kind = result.task.kind if result.task else "choice"
    return [_line(number, sample, questions.get(sample.doc_id), kind=kind, key=key, metrics=metrics,
                  first=not place)
            for place, (key, metrics) in enumerate(filters.items()) for number, sample in enumerate(samples)]


def _line(number: int, sample: Sample, asked: Question | None, *, kind: str, key: str, metrics: dict[str, str],
          first: bool) -> dict:
    question, options = (asked.question, list(asked.options)) if asked else ("", [])
    doc = {"id": sample.doc_id, "question": question, "options": options, "category": sample.stratum}
    target = str(LETTERS.index(sample.gold)) if kind == "choice" and sample.gold in LETTERS[:26] else sample.gold
    ends, raw, filtered = _responses(sample, kind, options, first)
    whole = _sha(question)  # of a bridged task's documents, whose question is the prompt, as its own files have it
    values = {base: sample.metric(name) for name, base in metrics.items() if sample.metric(name) is not None}
    if "perplexity" in metrics and (nats := _nats(sample)) is not None:
        values["perplexity"] = nats  # a document's there is its gold text's nats
    return {"doc_id": number, "doc": doc, "target": target,
            "arguments": {f"gen_args_{i}": {"arg_0": question, "arg_1": end} for i, end in enumerate(ends)},
            "resps": raw, "filtered_resps": filtered, "filter": key, "metrics": list(values),
            "doc_hash": _sha(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": whole if whole.startswith(sample.prompt) else sample.prompt, "target_hash": _sha(target),
            **values}


def _responses(sample: Sample, kind: str, options: list[str], first: bool) -> tuple[list, list, list]:
    """Continuations or arguments, the answers of each request, and those as they were read; numbers are texts there."""
    if kind == "choice" and sample.choice_logprobs is not None:
        pairs = [[str(value), "None"] for value in sample.choice_logprobs]
        return options or [""] * len(pairs), [[pair] for pair in pairs], pairs
    if kind == "generate":
        read = "[invalid]" if sample.answer is None else sample.answer
        return [{}], [[sample.text]], [read if first else sample.text]
    nats = _nats(sample)
    pair = [str(sample.gold_loglik if nats is None else nats), str(bool(sample.correct))]
    return [sample.gold], [[pair]], [pair]


def _nats(sample: Sample) -> float | None:
    """The summed nats of a document's gold text, where the task keeps them."""
    return next((sample.scores[name] for name in TOTALS if name in sample.scores), None)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
