"""Any task of lm-evaluation-harness: ``--dataset lm_eval:NAME``; ``--lm_eval_path FOLDER`` for YAML files of one's own.

Prompts, worked examples included, and grading are that library's; the engine, the samples and hence all statistics
are ours.  What it reports as ``acc`` or ``exact_match`` is the accuracy, other numbers keep their names.  Its test
split evaluates (validation if it has none); its training split calibrates, else rows that do not evaluate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.digest import digest
from core.errors import UserError
from core.sample import Interval, Sample
from core.settings import SETTINGS, Setting
from evaluation.data.documents import Doc
from evaluation.data.rows import Source
from evaluation.data.splits import Split
from evaluation.grading import Grade
from evaluation.tasks.base import Task, register
from evaluation.tasks.perplexity import likelihood

LENGTH = Setting("lm_eval_max_length", int, 0, "tokens of a prompt with its answer, or of a rolling window, of "
                                               "lm_eval:NAME data sets; 0: the model's own limit", low=0)
SETTINGS.declare((LENGTH,), "lm_eval data sets")
SCORINGS = {"choice": "given", "generate": "generate", "likelihood": "likelihood"}
_folder: str | None = None


def look_in(folder: str | None) -> None:
    """Look for tasks in a folder too from now on (--lm_eval_path); UserError if it is none."""
    global _folder
    if folder is not None:
        from evaluation.bridge.library import check_folder

        check_folder(folder)
    _folder = folder


@dataclass(frozen=True)
class Library(Task):
    """All tasks of lm-evaluation-harness; none of them on its own."""

    def part(self, name: str) -> "Bridged":
        """The task NAME, checked but not loaded; UserError if there is none or it cannot be asked here."""
        from evaluation.bridge.library import KINDS, described

        config = described(name, _folder)
        return Bridged(f"{self.name}:{name}", replace(self.source, folder=name), known_as=name, yaml_folder=_folder,
                       output_type=config["output_type"], task_kind=KINDS[config["output_type"]])

    def split(self, load, calib: int, evaluate: int, seed: int) -> Split:
        raise UserError("--dataset lm_eval is no data set by itself; name a task of lm-evaluation-harness, such as "
                        "lm_eval:hellaswag")


@dataclass(frozen=True)
class Bridged(Task):
    """One task of lm-evaluation-harness; loaded when its documents are first asked for."""

    known_as: str = ""  # its name there
    yaml_folder: str | None = None
    output_type: str = ""
    task_kind: str = ""

    joiner = ""
    whole_prompts = True  # prompts are asked up to the model's own limit
    dropped = "its answer is none of its options"

    @property
    def kind(self) -> str:
        return self.task_kind

    @property
    def scorings(self) -> tuple[str, ...]:
        return (SCORINGS[self.kind],)

    @property
    def loaded(self):
        """The task with its rows (evaluation/bridge/loaded.py); one in a process, whoever asks."""
        from evaluation.bridge.loaded import loaded

        return loaded(self.known_as, self.yaml_folder)

    @property
    def num_fewshot(self) -> int:
        return self.loaded.fewshot

    @property
    def fixed_fewshot(self) -> bool:
        """Whether the YAML file says that there are no worked examples, which its library lets nobody change."""
        return self.loaded.without_fewshot

    @property
    def stop(self) -> tuple[str, ...]:
        return self.loaded.stop

    @property
    def max_new_tokens(self) -> int:
        return self.loaded.new_tokens

    @property
    def metrics(self) -> dict[str, str]:
        return self.loaded.metrics.shown

    # ---- documents

    def split(self, load, calib: int, evaluate: int, seed: int) -> Split:
        return self.loaded.split(self, calib, evaluate, seed)

    def prompt(self, doc: Doc, scoring: str) -> str:
        return self.loaded.lead(doc)[0]

    def target(self, doc: Doc, scoring: str) -> str:
        return self.loaded.lead(doc)[1]

    def requests(self, docs: Sequence[Doc], tokenizer, cfg) -> list:
        from evaluation.bridge.requests import requests

        return requests(self, docs, tokenizer, cfg)

    def content(self, docs: Sequence[Doc]) -> str:
        """Version, YAML file, its functions' files, and the rows."""
        return digest(self.loaded.identity(docs))

    def calib_prompt(self, doc: Doc) -> str:
        """The prompt; where there is none, what is read is all there is."""
        head, answer = self.loaded.lead(doc)
        return head if head.strip() else (doc.options or (answer,))[0]

    # ---- grades

    def grade(self, doc: Doc, text: str) -> Grade:
        return self.loaded.grade(doc, [text])

    def grade_gold(self, doc: Doc, loglik: float, greedy: bool) -> Grade:
        return self.loaded.grade(doc, [(loglik, greedy)])

    def grade_asked(self, doc: Doc, logprobs: Sequence[float], greedy: Sequence[bool], scoring: str) -> Grade:
        return self.loaded.grade(doc, list(zip(logprobs, greedy, strict=True)))

    def derived(self, metrics: dict[str, Interval | None]) -> dict[str, Interval | None]:
        return self.loaded.metrics.derived(metrics)

    def score(self, sample: Sample) -> float:
        """Right or wrong; else how likely the gold text is, a token."""
        return likelihood(sample) if sample.correct is None else sample.correct

    def chance(self, docs: Sequence[Doc]) -> float | None:
        """Of options the share that is right."""
        if self.kind != "choice":
            return None
        return sum(max(1, len(doc.aliases)) / len(doc.options) for doc in docs) / len(docs)


register(Library("lm_eval", Source(hub_id=None, hub_config=None, split="test", folder="lm_eval", embedded=None,
                                   fields={})))
