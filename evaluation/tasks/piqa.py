"""PIQA validation: which of two ways reaches the goal."""

from dataclasses import dataclass

from evaluation.data.rows import Row, Source
from evaluation.tasks.base import register
from evaluation.tasks.choice import CLOZE_METRICS, ChoiceTask


@dataclass(frozen=True)
class PIQA(ChoiceTask):
    """Cloze only, as everybody asks it."""

    scorings = ("cloze",)
    unclean = True
    sums_too = True
    metrics = CLOZE_METRICS

    def options(self, row: Row) -> tuple[str, ...]:
        return row.get("sol1"), row.get("sol2")


register(PIQA("piqa", Source(
    hub_id="ybisk/piqa", hub_config=None, split="validation", folder="piqa/validation", embedded=None,
    fields={"goal": "text", "sol1": "text", "sol2": "text", "label": "int"}),
    id_field=None, question_field="goal", options_field="sol1", answer_field="label"))
