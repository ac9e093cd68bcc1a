"""GSM8K: grade-school mathematics, eight worked examples, and up to 256 tokens of reasoning.

    Question: {question}
    Answer: {reasoning, with its <<a*b=c>> marks}
    #### {number} The answer is {number}.

The training split calibrates and gives the examples (its first rows; the published runs show the eight
demonstrations of the chain-of-thought paper, in an order drawn anew for every question).  Two ways of reading the
answer are reported: the number after "the answer is", else the last number (TaCQ's rule, which is the accuracy), and
the last number alone.  Numbers are compared as texts, without commas, $ and a full stop at the end.

``gsm8k:gold`` asks only how likely the gold solutions are: for models that solve none, and in a fraction of the time.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.errors import UserError
from core.sample import Interval, Sample
from evaluation.data.documents import Doc
from evaluation.data.rows import Row, Source
from evaluation.grading import Grade
from evaluation.tasks.base import Task, register
from evaluation.tasks.perplexity import likelihood, perplexity

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
SAID = re.compile(r"the answer is", re.IGNORECASE)


def numbers(text: str) -> list[str]:
    """All numbers of a text, without commas and $."""
    return [n.replace(",", "").replace("$", "") for n in NUMBER.findall(text)]


@dataclass(frozen=True)
class GSM8K(Task):
    """The gold text is the whole worked solution; the document's aliases hold its number."""

    num_fewshot = 8
    max_new_tokens = 256
    max_length = 2048
    stop = ("\n\n", "Question:")
    metrics = {"accuracy": "acc", "last_number": "last number"}
    id_field = "question"
    calib_source = Source(hub_id="openai/gsm8k", hub_config="main", split="train", folder="gsm8k/train", embedded=None,
                          fields={"question": "text", "answer": "text"})
    example_source = calib_source

    def make_doc(self, row: Row) -> Doc:
        reasoning, mark, number = row.get("answer").rpartition("#### ")
        if not mark or numbers(number) != [number.strip().replace(",", "")]:
            raise row.error("answer", "a solution that ends in '#### ' and a number")
        number = number.strip().replace(",", "")
        return Doc(str(row.number), row.get("question"), gold=f"{reasoning}#### {number} The answer is {number}.",
                   aliases=(number,))

    def part(self, name: str) -> Task:
        if name != "gold":
            raise UserError(f"gsm8k has no part {name!r}; use gsm8k, or gsm8k:gold for the gold solutions' likelihood")
        return GoldSolutions("gsm8k:gold", self.source)

    def exemplars(self, doc: Doc, pool: Sequence[Doc], count: int) -> Sequence[Doc]:
        return pool[:count]

    def split(self, load, calib: int, evaluate: int, seed: int):
        """The examples' rows calibrate nothing."""
        parts = super().split(load, calib + self.num_fewshot, evaluate, seed)
        examples = parts.examples[:self.num_fewshot]
        shown = {doc.doc_id for doc in examples}
        return replace(parts, examples=examples,
                       calib=tuple(doc for doc in parts.calib if doc.doc_id not in shown)[:calib])

    def grade(self, doc: Doc, text: str) -> Grade:
        said = SAID.search(text)
        every, after = numbers(text), numbers(text[said.end():]) if said else []
        answer = after[0] if after else every[-1] if every else None
        (gold,) = doc.aliases
        return Grade(answer, answer == gold, {"last_number": float(bool(every) and every[-1] == gold)})


@dataclass(frozen=True)
class GoldSolutions(GSM8K):
    """The same documents after the same examples; nothing is written."""

    kind = "likelihood"
    scorings = ("likelihood",)
    metrics = {"perplexity": "token ppl"}

    def derived(self, metrics: dict[str, Interval | None]) -> dict[str, Interval | None]:
        return {"perplexity": perplexity(metrics["gold_loglik"])}

    def score(self, sample: Sample) -> float:
        return likelihood(sample)


register(GSM8K("gsm8k", replace(GSM8K.calib_source, split="test", folder="gsm8k/test")))
