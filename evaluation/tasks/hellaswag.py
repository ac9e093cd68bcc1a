"""HellaSwag validation: which of four endings follows; the prompt is the text so far, the answers the endings.

The rows carry marks of their source ("[title]", "[step]"): a title mark reads as a full stop, other marks are dropped.
"""

import re
from dataclasses import dataclass

from evaluation.data.rows import Row, Source
from evaluation.tasks.base import register
from evaluation.tasks.choice import CLOZE_METRICS, ChoiceTask


def clean(text: str) -> str:
    """The text without the marks of its source, single spaces."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


@dataclass(frozen=True)
class HellaSwag(ChoiceTask):
    """Cloze only: the endings have no letters."""

    scorings = ("cloze",)
    unclean = True
    sums_too = True
    metrics = CLOZE_METRICS

    def question(self, row: Row) -> str:
        """Activity, then the context; of two parts the second begins with a capital."""
        first, second = row.get("ctx_a"), row.get("ctx_b")
        text = row.get("ctx") if first is None or second is None else f"{first} {second.capitalize()}"
        return clean(f"{row.get('activity_label')}: {text}")

    def options(self, row: Row) -> tuple[str, ...]:
        return tuple(clean(ending) for ending in super().options(row))

    def gold_index(self, row: Row, n_options: int) -> int:
        label = row.get("label")
        if label not in [str(i) for i in range(n_options)]:
            raise row.error("label", f"a text from '0' to '{n_options - 1}'")
        return int(label)

    def prompt(self, doc, scoring: str) -> str:
        return doc.question


register(HellaSwag("hellaswag", Source(
    hub_id="Rowan/hellaswag", hub_config=None, split="validation", folder="hellaswag/validation", embedded=None,
    fields={"ind": "id", "activity_label": "text", "ctx": "text", "endings": "texts", "label": "text"},
    optional=("ctx_a", "ctx_b")), id_field="ind", options_field="endings", stratum_field="activity_label"))
