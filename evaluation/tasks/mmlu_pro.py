"""MMLU-Pro test: up to ten options, stratified by category."""

from dataclasses import dataclass

from evaluation.data.rows import Row, Source
from evaluation.tasks.base import register
from evaluation.tasks.choice import ChoiceTask


@dataclass(frozen=True)
class MMLUPro(ChoiceTask):
    """The letter and the index of the gold option are both stated; they must agree."""

    def gold_index(self, row: Row, n_options: int) -> int:
        index = super().gold_index(row, n_options)
        if row.get("answer_index", index) != index:
            raise row.error("answer_index", f"{index} to agree with answer {row.get('answer')!r}")
        return index


register(MMLUPro("mmlu_pro", Source(
    hub_id="TIGER-Lab/MMLU-Pro", hub_config=None, split="test", folder="mmlu_pro/test", embedded="mmlu_pro.jsonl",
    fields={"question_id": "id", "question": "text", "options": "texts", "answer": "key", "category": "text"},
    optional=("answer_index",),
), id_field="question_id", stratum_field="category"))
