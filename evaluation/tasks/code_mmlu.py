"""CodeMMLU: every hub config is a subset, and the strata are the subsets.

The published rows are not clean.  Some keys read "ANSWER: X", which is read as X.  Some rows have a blank option or the
right option twice; they are left out and counted wherever they come from.  A few rows have no usable key: they are left
out and counted when they come from the hub, where nobody can mend them, and are an error in a local file.
"""

from dataclasses import dataclass

from evaluation.data.documents import LETTERS
from evaluation.data.rows import Row, Source
from evaluation.tasks.base import register
from evaluation.tasks.choice import ChoiceTask


@dataclass(frozen=True)
class CodeMMLU(ChoiceTask):
    """Programming questions with two to seven choices."""

    unclean = True

    def doc_id(self, row: Row) -> str:
        return f"{row.get('subset')}/{row.get('task_id')}"

    def question(self, row: Row) -> str:
        """Put the problem in front where the row keeps it in a field of its own (fill_in_the_middle)."""
        problem = row.get("problem_description")
        return f"{problem}\n{row.get('question')}" if problem else row.get("question")

    def gold_index(self, row: Row, n_options: int) -> int:
        letter = row.get("answer").removeprefix("ANSWER: ")
        if len(letter) != 1 or letter not in LETTERS[:n_options]:
            raise row.error("answer", f"a letter from A to {LETTERS[n_options - 1]}")
        return LETTERS.index(letter)


register(CodeMMLU("code_mmlu", Source(
    hub_id="Fsoft-AIC/CodeMMLU", hub_config="*", split="test", folder="code_mmlu/*/test", embedded="code_mmlu.jsonl",
    fields={"task_id": "id", "question": "text", "choices": "texts", "answer": "text"},
    optional=("problem_description", "subset"),
), id_field="task_id", options_field="choices", stratum_field="subset"))
