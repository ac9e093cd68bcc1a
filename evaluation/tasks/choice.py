"""Multiple choice: enough for most data sets without code of their own (docs/ADD_A_DATASET.md).

    letter      Question: {question}\\nA. {option}\\nB. {option}\\n...Answer:      continuations " A", " B", ...
    cloze       Question: {question}\\nAnswer:                                   continuations " {option}"
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.data.documents import LETTERS, Doc
from evaluation.data.rows import Row
from evaluation.grading import Grade, choose
from evaluation.tasks.base import Task

SMALL_MODEL = 1_000_000_000  # parameters; below it letters say nothing: a 135M model answers "A" to every question
SUMS = "accuracy_sums"  # accuracy by the options' summed log-probabilities; lm-evaluation-harness calls it acc
CLOZE_METRICS = {"accuracy": "acc", SUMS: "acc sums"}


@dataclass(frozen=True)
class ChoiceTask(Task):
    """Multiple choice out of named fields; enough for most data sets, see docs/ADD_A_DATASET.md.

    The gold field holds a letter or a 0-based integer.  Rows with a single option are left out and
    counted: they are always right.
    """

    id_field: str | None = "id"  # None = the row number
    question_field: str = "question"
    options_field: str = "options"
    answer_field: str = "answer"
    stratum_field: str | None = None
    stratified: bool = True

    kind = "choice"
    scorings = ("letter", "cloze")
    metrics = {"accuracy": "acc"}
    dropped = "a single option is always right"
    sums_too = False  # whether a cloze is judged by the options' sums as well, not divided by their lengths

    def make_doc(self, row: Row) -> Doc | None:
        options = self.options(row)
        if not 1 <= len(options) <= len(LETTERS):
            raise row.error(self.options_field, f"1 to {len(LETTERS)} options")
        gold = self.gold_index(row, len(options))
        if len(options) == 1:
            return None
        stratum = "" if self.stratum_field is None else str(row.get(self.stratum_field))
        return Doc(doc_id=self.doc_id(row), question=self.question(row), options=options, gold=LETTERS[gold],
                   gold_index=gold, stratum=stratum)

    def flaw(self, doc: Doc) -> tuple[str, str] | None:
        """A blank option, or the gold option's text a second time: then a right answer counts as wrong."""
        if not all(option.strip() for option in doc.options):
            return self.options_field, "options that all hold text"
        if doc.options.count(doc.options[doc.gold_index]) > 1:
            return self.options_field, f"the text of the right option ({doc.gold}) only once"
        return None

    def doc_id(self, row: Row) -> str:
        return str(row.number if self.id_field is None else row.get(self.id_field))

    def question(self, row: Row) -> str:
        return row.get(self.question_field)

    def options(self, row: Row) -> tuple[str, ...]:
        return tuple(row.get(self.options_field))

    def gold_index(self, row: Row, n_options: int) -> int:
        """Return the 0-based index of the right option."""
        value = row.get(self.answer_field)
        index = value if isinstance(value, int) else LETTERS.find(value) if len(value) == 1 else -1
        if not 0 <= index < n_options:
            raise row.error(self.answer_field, f"a letter from A to {LETTERS[n_options - 1]} (or 0 to {n_options - 1})")
        return index

    def default_scoring(self, n_params: int) -> str:
        """Cloze below 1e9 parameters: so small a model answers "A" to every letter question."""
        return "cloze" if n_params < SMALL_MODEL else "letter"

    def prompt(self, doc: Doc, scoring: str) -> str:
        if scoring == "cloze":
            return super().prompt(doc, scoring)
        lines = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, doc.options, strict=False))
        return f"Question: {doc.question}\n{lines}Answer:"

    def target(self, doc: Doc, scoring: str) -> str:
        return doc.options[doc.gold_index] if scoring == "cloze" else doc.gold

    def continuations(self, doc: Doc, scoring: str) -> tuple[str, ...]:
        return doc.options if scoring == "cloze" else tuple(LETTERS[: len(doc.options)])

    def lengths(self, doc: Doc, scoring: str) -> tuple[int, ...]:
        """Return what cloze divides the options' log-probabilities by: their characters."""
        return tuple(len(text) for text in self.continuations(doc, scoring))

    def grade(self, doc: Doc, text: str) -> Grade:
        return Grade(text, text == doc.gold)

    def grade_options(self, doc: Doc, logprobs: Sequence[float], scoring: str) -> Grade:
        """Judge the options by their summed log-probabilities, nats; the answer is the letter of one of them."""
        grade = self.grade(doc, LETTERS[choose(logprobs, self.lengths(doc, scoring), scoring)])
        if not self.sums_too:
            return grade
        return Grade(grade.answer, grade.correct, {SUMS: float(choose(logprobs, (), "letter") == doc.gold_index)})

    def chance(self, docs: Sequence[Doc]) -> float | None:
        return float(np.mean([1 / len(doc.options) for doc in docs]))
