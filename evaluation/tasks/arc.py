"""ARC test, easy and challenge: grade-school science with three to five options."""

from dataclasses import dataclass

from evaluation.data.rows import Row, Source
from evaluation.tasks.base import register
from evaluation.tasks.choice import CLOZE_METRICS, ChoiceTask


@dataclass(frozen=True)
class Arc(ChoiceTask):
    """The key is one of the row's own labels, letters or digits."""

    unclean = True
    sums_too = True
    metrics = CLOZE_METRICS

    def default_scoring(self, n_params: int) -> str:
        return "cloze"

    def gold_index(self, row: Row, n_options: int) -> int:
        labels, key = row.get("choices.label"), row.get("answerKey")
        if key not in labels[:n_options]:
            raise row.error("answerKey", f"one of the row's labels ({', '.join(labels)})")
        return labels.index(key)


for _name, _config in (("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")):
    register(Arc(_name, Source(
        hub_id="allenai/ai2_arc", hub_config=_config, split="test", folder=f"{_name}/test", embedded=None,
        fields={"id": "id", "question": "text", "choices.text": "texts", "choices.label": "texts",
                "answerKey": "text"}), options_field="choices.text"))
