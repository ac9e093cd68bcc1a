"""LAMBADA (OpenAI's version): the last word of a passage, right if the model's first choice at every token of it."""

from dataclasses import dataclass

from core.sample import Interval
from evaluation.data.documents import Doc
from evaluation.data.rows import Row, Source
from evaluation.grading import Grade
from evaluation.tasks.base import Task, register
from evaluation.tasks.perplexity import perplexity


@dataclass(frozen=True)
class Lambada(Task):
    """The passage without its last word is the prompt; the perplexity is a word's, exp of its mean nats."""

    kind = "likelihood"
    scorings = ("likelihood",)
    metrics = {"accuracy": "acc", "perplexity": "word ppl"}
    id_field = "text"

    def make_doc(self, row: Row) -> Doc:
        passage, space, word = row.get("text").rpartition(" ")
        if not space or not word.strip():
            raise row.error("text", "a passage that ends in a word after a space")
        return Doc(str(row.number), passage, gold=word)

    def prompt(self, doc: Doc, scoring: str) -> str:
        return doc.question

    def grade_gold(self, doc: Doc, loglik: float, greedy: bool) -> Grade:
        return Grade(doc.gold if greedy else "", greedy, {"word_loglik": loglik})

    def derived(self, metrics: dict[str, Interval | None]) -> dict[str, Interval | None]:
        return {"perplexity": perplexity(metrics["word_loglik"])}


register(Lambada("lambada_openai", Source(
    hub_id="EleutherAI/lambada_openai", hub_config="default", split="test", folder="lambada_openai/test",
    embedded=None, fields={"text": "text"})))
