"""Tasks: how rows become documents, documents prompts, and answers grades.

A task is the one place that knows a data set.  Prompts hold the question and options verbatim (no strip), so that their
sha256 can be compared across harnesses:

    generate    Question: {question}\\nAnswer:                                   the model writes until a stop text
    likelihood  {question}                                                     how likely the gold text is

Worked examples are ``prompt + joiner + gold``, each followed by a blank line.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import DataError, UserError
from core.registry import DATASETS
from core.sample import Interval, Sample
from evaluation.data.documents import Doc, DocList
from evaluation.data.rows import Row, Source
from evaluation.data.splits import Split, marked, split, split_apart
from evaluation.grading import Grade, exact_match, extract, token_f1

UNUSABLE = "no usable question, options or answer"
REPEATED = "the id and question of an earlier row"


@dataclass(frozen=True)
class Task:
    """An open question, judged by exact match and F1 over aliases; a subclass adds ``make_doc``.

    What is not a field is an attribute of the class, for a subclass to override.  Samples are identified by the tokens
    of prompts and answers and by the task's ``version``: raise it when ``stop``, ``grade`` or a gold rule changes.
    """

    name: str
    source: Source
    version: int = 1
    stratified: bool = False  # whether splits are proportional by stratum

    kind = "generate"  # or "choice": options are compared; "likelihood": the gold text's; then nothing is written
    scorings = ("generate",)
    stop = ("\n",)  # texts that end what the model writes; an end-of-sequence token always does
    max_new_tokens = None  # tokens that the model may write; None = the grid's
    max_length = None  # tokens that prompts are cut to where the grid's --max_length is lower
    num_fewshot = None  # worked examples where the grid does not say; None = 5 of open questions, none else
    fixed_fewshot = False  # whether that number stands whatever the grid says
    whole_prompts = False  # whether prompts are cut at the model's own limit only (and --lm_eval_max_length)
    calib_source = None  # a Source: the split that calibrates; None, or no rows = those of ``source`` not evaluated
    example_source = None  # a Source: the split of the worked examples; None = those that calibrate
    windows = False  # whether the documents are windows of the joined text, of --ppl_window tokens
    general_text = None  # the general text that stands in for calibration documents (--calib)
    joiner = " "  # between prompt and answer; after a chat template the answer follows at once
    metrics = {"accuracy": "EM", "f1": "F1"}  # what a table shows, in its order, with short labels
    groups = {}  # category -> the group of categories that it belongs to
    id_field = "question_id"  # the field that makes ids, for messages
    dropped = "left out"  # why ``make_doc`` gives None
    unclean = False  # whether published rows have flaws (see ``flaw``): then every copy has, and they are dropped

    # ---- what is read besides rows

    def opened(self, folder: Path | None) -> "Task":
        """The task with what else it reads in the data folder, such as databases; None: rows come from elsewhere.

        It is asked once before rows are read, so what it finds may be kept in the task that it returns.
        """
        return self

    def content(self, docs: Sequence[Doc]) -> str | None:
        """Digest of what judges these documents and stands in none of them; part of what identifies their samples."""
        return None

    # ---- rows to documents

    def make_doc(self, row: Row) -> Doc | None:
        """Turn a row into a document, or None to leave it out (``dropped`` says why)."""
        raise NotImplementedError

    def flaw(self, doc: Doc) -> tuple[str, str] | None:
        """Return a field that makes the document's answer undecidable and what is expected of it, or None."""
        return None

    def document(self, row: Row) -> Doc | str:
        """Return a row's document, or why it is left out; a bad row is a DataError, but of the hub it is left out."""
        try:
            row.check(self.source.required)
            doc = self.make_doc(row)
            if doc is None:
                return self.dropped
            if not doc.question.strip():
                raise row.error("question", "a non-empty text")
            if flaw := self.flaw(doc):
                if self.unclean:
                    return UNUSABLE
                raise row.error(*flaw)
            return doc
        except DataError:
            if row.source == "hub":
                return UNUSABLE
            raise

    def docs(self, rows: list[Row]) -> DocList:
        """Turn rows into documents with unique ids; those left out are counted in the notes.

        A row with the id and the question of an earlier one is left out; an id with another question is an error.
        """
        docs: dict[str, Doc] = {}
        numbers, dropped = {}, Counter()
        for row in rows:
            doc = self.document(row)
            if isinstance(doc, str):
                dropped[doc] += 1
            elif doc.doc_id not in docs:
                docs[doc.doc_id], numbers[doc.doc_id] = doc, row.number
            elif docs[doc.doc_id].question == doc.question:
                dropped[REPEATED] += 1
            else:
                raise row.error(self.id_field, f"a unique id, not that of row {numbers[doc.doc_id]} ({doc.doc_id!r})")
        notes = tuple(f"{count} of {len(rows)} rows dropped ({why})" for why, count in dropped.items())
        return DocList(docs.values(), notes, self.name)

    def part(self, name: str) -> "Task":
        """The part of the data set called ``name`` (``mmlu:stem``); UserError if it has none."""
        raise UserError(f"dataset {self.name!r} has no parts, so {self.name}:{name} is unknown; use {self.name!r}")

    def split(self, load: Callable[[Source], list[Row]], calib: int, evaluate: int, seed: int) -> Split:
        """Documents that calibrate and documents that evaluate, out of the rows that ``load`` reads."""
        docs = self.docs(load(self.source))
        rows = load(self.calib_source) if self.calib_source else []
        if not rows:
            parts = split(docs, calib, evaluate, seed=seed, stratified=self.stratified)
        else:
            own = self.docs(rows)
            own = DocList(marked(own, self.calib_source.split), own.notes, self.name)
            parts = split_apart(own, docs, calib, evaluate, seed=seed, stratified=self.stratified)
        if self.example_source is None:
            return parts
        examples = marked(self.docs(load(self.example_source)), self.example_source.split)
        return replace(parts, examples=tuple(examples))

    # ---- documents to prompts

    def default_scoring(self, n_params: int) -> str:
        """Return the scoring that can tell models of this size apart."""
        return self.scorings[0]

    def prompt(self, doc: Doc, scoring: str) -> str:
        """Return the prompt without worked examples, ending in ``Answer:``."""
        return f"Question: {doc.question}\nAnswer:"

    def target(self, doc: Doc, scoring: str) -> str:
        """Return the gold answer as the model would write it, without the joiner."""
        return doc.gold

    def continuations(self, doc: Doc, scoring: str) -> tuple[str, ...]:
        """Return the answers to be compared, without the joiner; empty for open questions."""
        return ()

    def exemplars(self, doc: Doc, pool: Sequence[Doc], count: int) -> Sequence[Doc]:
        """Return the worked examples for a document: the last ``count`` of the calibration documents ``pool``."""
        return pool[-count:] if count else ()

    def whole_prompt(self, doc: Doc, examples: Sequence[Doc], scoring: str) -> str:
        """Return all that stands before the answer: the worked examples, then the document's own prompt."""
        worked = (f"{self.prompt(d, scoring)}{self.joiner}{self.target(d, scoring)}\n\n" for d in examples)
        return "".join(worked) + self.prompt(doc, scoring)

    def requests(self, docs: Sequence[Doc], tokenizer, cfg) -> list | None:
        """Return the documents as requests (evaluation/engine/prompts.py), or None for the engine to make them."""
        return None

    def calib_prompt(self, doc: Doc) -> str:
        """Return the unlabeled prompt: question and options, ending in ``Answer:``, no gold."""
        return self.prompt(doc, self.scorings[0])

    # ---- answers to grades

    def grade(self, doc: Doc, text: str) -> Grade:
        """Judge what the model wrote, cut before the first stop text; of a choice, the letter that it chose."""
        answer = extract(text)
        return Grade(answer, exact_match(answer, doc.aliases), {"f1": token_f1(answer, doc.aliases)})

    def grade_gold(self, doc: Doc, loglik: float, greedy: bool) -> Grade:
        """Judge how likely the gold text is: nats summed over its tokens; whether each is the model's first choice."""
        return Grade("", None)

    def derived(self, metrics: dict[str, Interval | None]) -> dict[str, Interval | None]:
        """Metrics of a whole run that are computed from others of it, such as a perplexity."""
        return {}

    def score(self, sample: Sample) -> float:
        """Return one number from 0 to 1, higher is better, for an oracle.

        (EM + F1)/2 where there is an F1, else accuracy; without right and wrong, the mean of the task's own metrics.
        """
        values = [value for value in (sample.correct, sample.f1) if value is not None] or [*sample.scores.values()]
        return sum(values) / len(values)

    def grade_asked(self, doc: Doc, logprobs: Sequence[float], greedy: Sequence[bool], scoring: str) -> Grade:
        """Judge a choice: the options' summed log-probabilities, and whether each is the model's first choice."""
        return self.grade_options(doc, logprobs, scoring)

    def chance(self, docs: Sequence[Doc]) -> float | None:
        """Return the accuracy of a guess, 0 to 1; None where there is nothing to guess."""
        return None


def register(task: Task) -> Task:
    """Make the task known under its name; a name twice is an error."""
    if isinstance(task.stop, str) or not all(isinstance(text, str) and text for text in task.stop):
        raise ValueError(f"dataset {task.name!r} has stop = {task.stop!r}; give a tuple of non-empty texts")
    if task.max_new_tokens is not None and task.max_new_tokens < 1:
        raise ValueError(f"dataset {task.name!r} has max_new_tokens = {task.max_new_tokens!r}; give 1 or more, or None")
    return DATASETS.add(task.name, task)
