"""MMLU test: 57 subjects, five worked examples from the subject's dev rows; ``mmlu:stem``, ``mmlu:virology`` select.

    The following are multiple choice questions (with answers) about {subject}.

    {question}
    A. {option}
    ...
    Answer:

Documents that calibrate and documents that evaluate are drawn from the test rows, in proportion to the subjects
(TaCQ takes the first 75 % of each subject and the last 25 %).  Groups are those of the data set's authors; in
lm-evaluation-harness anatomy counts as STEM.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.errors import UserError, did_you_mean
from evaluation.data.documents import Doc
from evaluation.data.rows import Row, Source
from evaluation.tasks.base import register
from evaluation.tasks.choice import ChoiceTask

GROUPS = {
    "stem": "abstract_algebra astronomy college_biology college_chemistry college_computer_science "
            "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
            "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
            "high_school_mathematics high_school_physics high_school_statistics machine_learning",
    "social_sciences": "econometrics high_school_geography high_school_government_and_politics "
                       "high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality "
                       "professional_psychology public_relations security_studies sociology us_foreign_policy",
    "humanities": "formal_logic high_school_european_history high_school_us_history high_school_world_history "
                  "international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy "
                  "prehistory professional_law world_religions",
    "other": "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management "
             "marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine "
             "virology",
}
SUBJECTS = {subject: group for group, names in GROUPS.items() for subject in names.split()}


@dataclass(frozen=True)
class MMLU(ChoiceTask):
    """Four options; the category of a question is its subject, in one of four groups."""

    only: tuple[str, ...] = ()  # the subjects that are asked; empty = all

    unclean = True
    groups = SUBJECTS
    num_fewshot = 5
    max_length = 2048
    dropped = "not of the subjects asked, or a single option"
    example_source = Source(hub_id="cais/mmlu", hub_config="all", split="dev", folder="mmlu/dev", embedded=None,
                            fields={"question": "text", "subject": "text", "choices": "texts", "answer": "key"})

    def part(self, name: str) -> "MMLU":
        """A group of subjects, or one subject."""
        only = tuple(GROUPS.get(name, name if name in SUBJECTS else "").split())
        if not only:
            known = (*GROUPS, *SUBJECTS)
            raise UserError(f"mmlu has no subject or group {name!r}{did_you_mean(name, known)}; "
                            f"use one of: {', '.join(known)}")
        return replace(self, name=f"mmlu:{name}", only=only)

    def make_doc(self, row: Row) -> Doc | None:
        subject = row.get("subject")
        if subject not in SUBJECTS:
            raise row.error("subject", f"one of MMLU's 57 subjects{did_you_mean(subject, SUBJECTS)}")
        return None if self.only and subject not in self.only else super().make_doc(row)

    def question(self, row: Row) -> str:
        return row.get("question").strip()

    def doc_id(self, row: Row) -> str:
        return f"{row.get('subject')}/{row.number}"

    def prompt(self, doc: Doc, scoring: str) -> str:
        text = super().prompt(doc, scoring)
        return text if scoring == "cloze" else text.removeprefix("Question: ")

    def exemplars(self, doc: Doc, pool: Sequence[Doc], count: int) -> Sequence[Doc]:
        """The first ``count`` dev rows of the document's subject."""
        return [other for other in pool if other.stratum == doc.stratum][:count]

    def whole_prompt(self, doc: Doc, examples: Sequence[Doc], scoring: str) -> str:
        subject = doc.stratum.replace("_", " ")
        return (f"The following are multiple choice questions (with answers) about {subject}.\n\n"
                + super().whole_prompt(doc, examples, scoring))


register(MMLU("mmlu", replace(MMLU.example_source, split="test", folder="mmlu/test"),
              options_field="choices", stratum_field="subject"))
