"""A loaded task of lm-evaluation-harness: its rows as documents, and its prompts.

A document's question is the prompt without worked examples; what is asked has them (evaluation/bridge/requests.py).
Worked examples are drawn row by row from one seed, so prompts are those of ``lm_eval --limit`` whatever rows are asked.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from itertools import islice
from numbers import Real
from pathlib import Path

from core.digest import digest, file_sha256
from core.errors import DataError, one_line
from evaluation.bridge import library
from evaluation.bridge.metrics import Metrics
from evaluation.data.documents import LETTERS, Doc, DocList
from evaluation.data.splits import Split, split, split_apart
from evaluation.grading import Grade

SEED = 1234  # of the worked examples; lm_eval's own default
# of the YAML file, but counted otherwise: by rows, version and tokens
ELSEWHERE = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata", "num_fewshot")


@cache
def loaded(name: str, folder: str | None) -> Loaded:
    """One a process: who asks and who judges share its rows."""
    return Loaded(library.load(name, folder), name)


class Loaded:
    """``rows`` holds the library's own record of every document that was made, by the document's id."""

    def __init__(self, task, name: str):
        self.task, self.name, self.config = task, name, task.config
        self.output, self.metrics = task.OUTPUT_TYPE, Metrics(task)
        self.fewshot, self.without_fewshot = self.config.num_fewshot or 0, self.config.num_fewshot == 0
        self.rows: dict[str, dict] = {}
        self.shares: dict[str, tuple[str, float]] = {}  # a rolling window -> its document, and its share of the tokens
        self._asked: dict[str, list] = {}

    @property
    def stop(self) -> tuple[str, ...]:
        until = (self.config.generation_kwargs or {}).get("until") or ()
        return tuple(text for text in ([until] if isinstance(until, str) else until) if text)

    @property
    def new_tokens(self) -> int:
        from lm_eval.models.utils import normalize_gen_kwargs

        if self.output != "generate_until":
            return 1
        return normalize_gen_kwargs(dict(self.config.generation_kwargs or {}))["max_gen_toks"]

    def identity(self, docs: Sequence[Doc]) -> list:
        """What the grades depend on besides the tokens: the library, the task's file and functions, the rows."""
        rows = [self.rows[self.shares.get(doc.doc_id, (doc.doc_id, 1))[0]] for doc in docs]
        text = [json.dumps(row, sort_keys=True, default=str) for row in rows]
        said = {name: value for name, value in asdict(self.config).items() if name not in ELSEWHERE}
        return [library.version(), self.task.VERSION, digest(_plain(said)), digest(text)]

    # ---- rows to documents

    def split(self, bridged, calib: int, evaluate: int, seed: int) -> Split:
        """Rows of the test split (else validation) evaluate; those of the training split calibrate if there is one."""
        config, most = self.config, 2 * (calib + evaluate) + 200  # twice: some are dropped
        asked = config.test_split if self.task.has_test_docs() else config.validation_split
        with library.quiet():
            docs = self.docs(bridged, asked, islice(self.task.eval_docs, most))
            if not self.task.has_training_docs() or config.training_split == asked:
                parts = split(docs, calib, evaluate, seed=seed, stratified=False)
            else:
                own = self.docs(bridged, config.training_split, islice(self.task.training_docs(), most))
                parts = split_apart(own, docs, calib, evaluate, seed=seed, stratified=False)
        return Split(parts.calib, parts.eval, parts.note, examples=())  # its worked examples come with its prompts

    def docs(self, bridged, part: str, rows: Iterable[dict]) -> DocList:
        """A split's rows as documents; what cannot be asked is left out and counted."""
        docs, seen = [], 0
        for number, row in enumerate(rows):
            seen, doc_id = seen + 1, f"{part}/{number}"
            try:
                doc = self.doc(doc_id, dict(row))
            except Exception as error:  # templates and a user's functions can raise anything
                raise DataError(f"lm_eval:{self.name}, {part} split, row {number}: no prompt can be made of it "
                                f"({type(error).__name__}: {one_line(error)}); correct the row or the YAML "
                                "file") from error
            if doc is not None:
                self.rows[doc_id] = dict(row)
                docs.append(doc)
        notes = (f"{seen - len(docs)} of {seen} rows dropped ({bridged.dropped})",) if len(docs) < seen else ()
        return DocList(docs, notes, bridged.name)

    def doc(self, doc_id: str, row: dict) -> Doc | None:
        """A row as a document, its prompt without worked examples; None if none of its options is right."""
        asked = self.plain_requests(row)
        if self.output == "loglikelihood_rolling":
            return Doc(doc_id, asked[0].args[0])
        question = common([one.args[0] for one in asked])
        if self.output == "loglikelihood":
            return Doc(doc_id, question, gold=asked[0].args[1])
        if self.output == "generate_until":
            golds = self.golds(row)
            return Doc(doc_id, question, gold=golds[0], aliases=tuple(golds))
        right, options = self.right(row), tuple(map(str, self.task.doc_to_choice(row)))
        if not right:
            return None
        if len(options) > len(LETTERS):
            raise ValueError(f"it has {len(options)} options, and at most {len(LETTERS)} have a letter here")
        return Doc(doc_id, question, options=options, gold=LETTERS[right[0]], gold_index=right[0],
                   aliases=tuple(LETTERS[index] for index in right) if len(right) > 1 else ())

    def right(self, row: dict) -> list[int]:
        """The indices of a row's right options, those that there are."""
        choices = self.task.doc_to_choice(row)
        gold = self.task.doc_to_text(row) if self.task.multiple_input else self.task.doc_to_target(row)
        indices = [choices.index(one) if isinstance(one, str) and one in choices else one
                   for one in (gold if isinstance(gold, list) else [gold])]
        return [int(one) for one in indices if isinstance(one, Real) and 0 <= one < len(choices)]

    def golds(self, row: dict) -> list[str]:
        """The gold texts of an open question, one at least."""
        target = self.task.doc_to_target(row)
        if self.config.doc_to_choice is not None and isinstance(target, int):
            target = self.task.doc_to_choice(row)[target]
        texts = [str(one) for one in (target if isinstance(target, list) else [target])]
        return [text for text in texts if text.strip()] or ["\n"]  # a question without answer: an empty line

    def plain_requests(self, row: dict) -> list:
        """The library's requests for a row, without worked examples."""
        context = self.task.fewshot_context(row, num_fewshot=0, gen_prefix=self.task.doc_to_prefix(row))
        requests = self.task.construct_requests(doc=row, ctx=context, metadata=(self.name, 0, 1))
        return requests if isinstance(requests, list) else [requests]

    def asked(self, docs: Sequence[Doc], shots: int) -> dict[str, list]:
        """The library's requests by document, with worked examples where the document is of the evaluated split."""
        part = self.config.test_split if self.task.has_test_docs() else self.config.validation_split
        numbers = {doc.doc_id: int(doc.doc_id.rpartition("/")[2]) for doc in docs
                   if doc.doc_id.rpartition("/")[0] == part}
        self._asked |= {doc.doc_id: self.plain_requests(self.rows[doc.doc_id]) for doc in docs
                        if doc.doc_id not in numbers}
        if numbers:
            self.task.set_config("num_fewshot", shots)
            self.task.set_fewshot_seed(SEED)
            with library.quiet():
                self.task.build_all_requests(limit=max(numbers.values()) + 1)
            by_row: dict[int, list] = {}
            for one in self.task.instances:
                by_row.setdefault(one.doc_id, []).append(one)
            self._asked |= {doc_id: sorted(by_row[number], key=lambda one: one.idx)
                            for doc_id, number in numbers.items()}
        return self._asked

    def grade(self, doc: Doc, results: list) -> Grade:
        """What the library makes of the model's answers: log-probabilities and greedy flags, or a text."""
        root, share = self.shares.get(doc.doc_id, (doc.doc_id, 1.0))
        if self.output == "loglikelihood_rolling":
            return self.metrics.window(self.rows[root], results[0][0], share)
        return self.metrics.grade(doc, self.rows[root], self._asked[root], results)

    def lead(self, doc: Doc) -> tuple[str, str]:
        """A worked document: its prompt without examples, and what stands after it; white space between goes along."""
        asked = self.plain_requests(self.rows[doc.doc_id])
        if self.output == "loglikelihood_rolling":
            head = doc.question.rstrip().rpartition(" ")[0] or doc.question[:1]
            return head, doc.question[len(head):] or " "
        if self.output == "generate_until":
            return doc.question, self.config.target_delimiter + doc.gold
        context, answer = asked[doc.gold_index or 0].args
        head = doc.question.rstrip()
        return head, context[len(head):] + answer


def common(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts), max(texts)  # in lexical order these two differ the earliest
    return first[:next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _plain(value):
    """A task's declaration as plain data; a function is its name and the text of its file."""
    if isinstance(value, dict):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    if not callable(value):
        return value if isinstance(value, str | int | float | bool | None) else str(value)
    try:
        file = Path(inspect.getsourcefile(value))
    except TypeError:
        return getattr(value, "__qualname__", type(value).__name__)
    return [getattr(value, "__qualname__", type(value).__name__), file_sha256(file)]
