"""TriviaQA, closed book (rc.nocontext): the model writes one line, scored by exact match and F1 over aliases.

Unseeded by design: the first rows calibrate, the next evaluate.  The published rows repeat a question once for every
source of its evidence (web and wikipedia); the first of each counts.
"""

from dataclasses import dataclass

from evaluation.data.documents import Doc
from evaluation.data.rows import Row, Source
from evaluation.tasks.base import Task, register


@dataclass(frozen=True)
class TriviaQA(Task):
    """Open questions with aliases."""

    def make_doc(self, row: Row) -> Doc:
        value = row.get("answer.value")
        if not value:
            raise row.error("answer.value", "a non-empty text")
        aliases = dict.fromkeys([value, *row.get("answer.aliases"), *row.get("answer.normalized_aliases")])
        return Doc(str(row.get("question_id")), row.get("question"), gold=value, aliases=tuple(aliases))


register(TriviaQA("trivia_qa", Source(
    hub_id="mandarjoshi/trivia_qa", hub_config="rc.nocontext", split="validation",
    folder="trivia_qa/rc.nocontext/validation", embedded="trivia_qa.jsonl",
    fields={"question_id": "id", "question": "text", "answer.value": "text", "answer.aliases": "texts",
            "answer.normalized_aliases": "texts"},
)))
