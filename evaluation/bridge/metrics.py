"""What a task of lm-evaluation-harness measures, under the names of our samples, and its judgement of an answer."""

from __future__ import annotations

import copy
import math
from functools import cached_property
from numbers import Real

from core.sample import Interval
from evaluation.data.documents import LETTERS, Doc
from evaluation.grading import COMMON, Grade, choose

CORRECT = ("acc", "exact_match", "accuracy", "em", "acc_norm", "acc_bytes")  # the first that a task has is its accuracy
OF_PAIRS = ("f1", "mcc", "brier_score", "likelihood")  # of choices: computed from all documents at once, none has one
UNITS = {"word_perplexity": "words", "byte_perplexity": "bytes", "bits_per_byte": "bytes"}
LABELS = {"word_perplexity": "word ppl", "byte_perplexity": "byte ppl", "bits_per_byte": "bits/byte"}
RENAMED = "lm_eval_"  # before a name that every task of ours uses for something else
INVALID = "[invalid]"  # what its filters put where no answer can be read


class Metrics:
    """The metrics of one task."""

    def __init__(self, task):
        self.task, self.output = task, task.OUTPUT_TYPE

    @cached_property
    def filters(self) -> list[str]:
        """The names of what its answers are read by."""
        if self.task.config.filter_list is None:
            return ["none"]
        return [one["name"] for one in self.task.config.filter_list]

    @cached_property
    def names(self) -> list[str]:
        """The metrics that a document can have, under the names of its samples."""
        pairs = OF_PAIRS if self.output == "multiple_choice" else ()
        return [self.named(metric, key) for key in self.filters for metric in self.task.aggregation()
                if metric not in pairs]

    def named(self, metric: str, key: str) -> str:
        """A metric's name among scores: with its filter where there are several."""
        name = f"{metric},{key}" if len(self.filters) > 1 else metric
        return f"{RENAMED}{name}" if name in COMMON else name

    @cached_property
    def correct(self) -> str | None:
        """The metric that is the accuracy."""
        named = [self.named(metric, key) for key in self.filters for metric in CORRECT]
        return next((name for name in named if name in self.names), None)

    @property
    def shown(self) -> dict[str, str]:
        rest = {name: LABELS.get(name, name) for name in self.names if name != self.correct}
        return ({"accuracy": self.correct.removeprefix(RENAMED)} if self.correct else {}) | rest

    def grade(self, doc: Doc, row: dict, asked: list, results: list) -> Grade:
        """The library's judgement; ``results``: a (log-probability, greedy) pair or a text for each of its requests."""
        values, read = {}, None
        for key, answers in self._filtered(asked, results).items():
            for metric, value in self.task.process_results(row, answers).items():
                name, value = self.named(metric, key), value.item() if hasattr(value, "item") else value
                if isinstance(value, Real) and math.isfinite(value):
                    values[name] = float(value)
                if name == self.correct:
                    read = answers[0]
        if self.output == "loglikelihood" and "perplexity" in values:
            # there it is the nats of the gold text, of which a run's perplexity is computed; a difference of two
            # documents' "perplexities" would be in nats and have the wrong sign
            values["loglik"] = values.pop("perplexity")
        correct = values.get(self.correct) if values.get(self.correct) in (0.0, 1.0) else None
        scores = {name: value for name, value in values.items() if name != self.correct or correct is None}
        return Grade(self._answer(doc, results, read), correct, scores)

    def _filtered(self, asked: list, results: list) -> dict[str, list]:
        """The answers as each of the task's filters leaves them."""
        one = copy.copy(self.task)
        one._instances = [copy.copy(request) for request in asked]
        for request, result in zip(one._instances, results, strict=True):
            request.resps, request.filtered_resps = [result], {}
        one.apply_filters()
        return {key: [request.filtered_resps[key] for request in one._instances] for key in self.filters}

    def _answer(self, doc: Doc, results: list, read) -> str | None:
        """The answer as it was read: a letter, a filter's text, or the gold text where the model would write it."""
        if self.output == "multiple_choice":
            lengths = [len(option) for option in doc.options]
            scoring = "cloze" if self.correct == "acc_norm" else "letter"
            return LETTERS[choose([loglik for loglik, _ in results], lengths, scoring)]
        if self.output == "loglikelihood":
            return doc.gold if results[0][1] else ""
        text = results[0] if read is None else read
        return None if text == INVALID else text if isinstance(text, str) else str(text)

    def window(self, row: dict, loglik: float, share: float) -> Grade:
        """A rolling window's nats, and its share of its document's words and bytes."""
        counted = self.task.process_results(row, [loglik])  # a perplexity's value is the pair (nats, count)
        totals = {UNITS[name]: pair[1] for name, pair in counted.items() if name in UNITS}
        return Grade("", None, {"loglik": loglik, **{unit: total * share for unit, total in totals.items()}})

    def derived(self, metrics: dict[str, Interval | None]) -> dict[str, Interval | None]:
        """Perplexities, which are no means over documents; words and bytes belong to the rows: only nats spread."""
        if not metrics.get("loglik"):
            return {}
        if self.output == "loglikelihood":
            return {"perplexity": _swapped(metrics["loglik"], lambda nats: math.exp(-nats))}
        out = {}
        for name in (name for name in self.names if name in UNITS and metrics.get(UNITS[name])):
            count = metrics[UNITS[name]].value
            of = _bits if name == "bits_per_byte" else _perplexity
            out[name] = _swapped(metrics["loglik"], lambda nats, of=of, count=count: of(nats, count))
        return out


def _perplexity(nats: float, count: float) -> float:
    return math.exp(-nats / count)


def _bits(nats: float, count: float) -> float:
    return -nats / count / math.log(2)


def _swapped(interval: Interval, of) -> Interval:
    """A falling function of an interval."""
    return Interval(of(interval.value), of(interval.high), of(interval.low))
