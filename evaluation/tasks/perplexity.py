"""Perplexity of general text: WikiText-2 (raw, test) and C4 (validation), in windows of --ppl_window tokens.

WikiText-2's rows are joined by a blank line, C4's documents by a space, as in the evaluations of GPTQ and TaCQ.  What
such a data set calibrates on is its own training text, windows of it drawn by the seed (--calib).
"""

import math
from dataclasses import dataclass

from core.sample import Interval, Sample
from core.settings import SETTINGS, Setting
from evaluation.data.documents import Doc
from evaluation.data.rows import Row, Source
from evaluation.data.splits import Split
from evaluation.tasks.base import Task, register

WINDOW = Setting("ppl_window", int, 2048, "tokens of a window of a perplexity data set, each one document", low=2)
SETTINGS.declare((WINDOW,), "perplexity data sets")


@dataclass(frozen=True)
class Perplexity(Task):
    """Windows of joined text."""

    join: str = "\n\n"
    general_text: str | None = None

    kind = "likelihood"
    scorings = ("likelihood",)
    windows = True
    metrics = {"perplexity": "ppl"}

    def make_doc(self, row: Row) -> Doc:
        return Doc(str(row.number), row.get("text"))

    def split(self, load, calib: int, evaluate: int, seed: int) -> Split:
        """All rows, joined later, when there is a tokenizer; general text calibrates."""
        return Split((), tuple(self.make_doc(row) for row in load(self.source)))

    def derived(self, metrics: dict[str, Interval | None]) -> dict[str, Interval | None]:
        return {"perplexity": perplexity(metrics["gold_loglik"])}

    def score(self, sample: Sample) -> float:
        return likelihood(sample)


def likelihood(sample: Sample) -> float:
    """How likely the gold text is a token, 0 to 1: an oracle's number where nothing is right or wrong."""
    return math.exp(min(0.0, sample.gold_loglik))


def perplexity(loglik: Interval | None) -> Interval | None:
    """exp(-mean log-likelihood), with the interval's ends the other way round."""
    return loglik and Interval(*(math.exp(-value) for value in (loglik.value, loglik.high, loglik.low)))


register(Perplexity("wikitext2", Source(
    hub_id="Salesforce/wikitext", hub_config="wikitext-2-raw-v1", split="test",
    folder="wikitext2/wikitext-2-raw-v1/test", embedded=None, fields={"text": "text"}), general_text="wikitext2"))
register(Perplexity("c4", Source(
    hub_id="allenai/c4", hub_config=None, split="validation", folder="c4/validation", embedded=None,
    fields={"text": "text"}, other_folders=("c4_sample/validation",),
    hub_options={"data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
                 "verification_mode": "no_checks"}), join=" ", general_text="c4"))
