"""Documents and tasks.

A task turns rows into documents and documents into prompts.  Prompts hold the question and options
verbatim (no strip), so that their sha256 can be compared across harnesses:

    letter      Question: {question}\\nA. {option}\\nB. {option}\\n...Answer:      continuations " A", " B", ...
    cloze       Question: {question}\\nAnswer:                                   continuations " {option}"
    generate    Question: {question}\\nAnswer:                                   the model writes one line

Few-shot exemplars are ``prompt + " " + gold``, joined by a blank line.
"""

from dataclasses import dataclass, field

from core.registry import DATASETS
from evaluation.data.documents import LETTERS, Doc, DocList
from evaluation.data.rows import Row, Source

SMALL_MODEL = 1_000_000_000  # parameters; below it letters say nothing: a 135M model answers "A" to every question


@dataclass(frozen=True)
class Task:
    """Base class; a subclass states ``make_doc`` and, unless it is an open question, ``continuations``."""

    name: str
    source: Source
    version: int = 1
    stratified: bool = False  # whether splits are proportional by stratum
    kind: str = field(default="generate", init=False)
    scorings: tuple[str, ...] = field(default=("generate",), init=False)

    def make_doc(self, row: Row) -> Doc | None:
        """Turn a row into a document, or None to leave it out (``dropped`` says why)."""
        raise NotImplementedError

    dropped = "left out"

    def docs(self, rows: list[Row]) -> DocList:
        """Turn rows into documents with unique ids; count those left out."""
        docs, seen, lost = [], {}, 0
        for row in rows:
            doc = self.make_doc(row)
            if doc is None:
                lost += 1
                continue
            if not doc.question.strip() and row.source != "hub":  # nobody can mend a row of the hub
                raise row.error("question", "a non-empty text")
            if doc.doc_id in seen:
                raise row.error(self.id_field, f"a unique id, not that of row {seen[doc.doc_id]} ({doc.doc_id!r})")
            seen[doc.doc_id] = row.number
            docs.append(doc)
        return DocList(docs, (f"{lost} of {len(rows)} rows dropped ({self.dropped})",) if lost else (), self.name)

    id_field = "question_id"

    def default_scoring(self, n_params: int) -> str:
        """Return the scoring that can tell models of this size apart."""
        return self.scorings[0]

    def prompt(self, doc: Doc, scoring: str) -> str:
        """Return the prompt without exemplars, ending in ``Answer:``."""
        return f"Question: {doc.question}\nAnswer:"

    def target(self, doc: Doc, scoring: str) -> str:
        """Return the gold answer as the model would write it, without the leading space."""
        return doc.gold

    def continuations(self, doc: Doc, scoring: str) -> tuple[str, ...]:
        """Return the answers to be compared, without the leading space; empty for open questions."""
        return ()

    def calib_prompt(self, doc: Doc) -> str:
        """Return the unlabeled prompt: question and options, ending in ``Answer:``, no gold."""
        return self.prompt(doc, self.scorings[0])


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

    dropped = "a single option is always right"

    def __post_init__(self):
        object.__setattr__(self, "kind", "choice")
        object.__setattr__(self, "scorings", ("letter", "cloze"))

    def make_doc(self, row: Row) -> Doc | None:
        options = tuple(row.get(self.options_field))
        if not 1 <= len(options) <= len(LETTERS):
            raise row.error(self.options_field, f"1 to {len(LETTERS)} options")
        gold = self.gold_index(row, len(options))
        if len(options) == 1:
            return None
        stratum = "" if self.stratum_field is None else str(row.get(self.stratum_field))
        return Doc(self.doc_id(row), self.question(row), options, LETTERS[gold], gold, (), stratum)

    def doc_id(self, row: Row) -> str:
        return str(row.number if self.id_field is None else row.get(self.id_field))

    def question(self, row: Row) -> str:
        return row.get(self.question_field)

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


def register(task: Task) -> Task:
    """Make the task known under its name; a name twice is an error."""
    return DATASETS.add(task.name, task)
