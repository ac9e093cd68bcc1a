"""What one document gave, the record that every metric is computed from; and a metric as it comes out."""

import math
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Sample:
    """What one document gave; the only thing metrics are computed from."""

    doc_id: str
    prompt: str  # sha256 of the prompt, first 16 hex digits
    gold: str  # the gold answer as the task states it
    text: str  # generated text, or the chosen option
    answer: str | None  # extracted answer; None = could not be parsed
    correct: float | None  # 0 or 1; None = the task has no right and wrong
    f1: float | None  # token F1 over aliases; None where the task has none
    choice_logprobs: tuple[float, ...] | None  # nats, summed over the continuation's tokens
    gold_loglik: float  # nats per token of the gold answer, mean over its tokens
    n_prompt: int  # tokens
    n_new: int  # tokens
    truncated: bool  # the prompt was cut
    stratum: str = ""  # category or subset
    scores: dict[str, float] = field(default_factory=dict)  # what the task measures besides, by the metric's name

    def metric(self, name: str) -> float | None:
        """The document's value: "accuracy", "gold_loglik", "f1", "gold_option", or a metric of the task's own."""
        if name in ("gold_loglik", "f1"):
            return getattr(self, name)
        if name == "gold_option":
            return self.gold_option
        return self.correct if name == "accuracy" else self.scores.get(name)

    @property
    def gold_option(self) -> float | None:
        """The gold option's log-probability among the options that were compared, nats; None where none were.

        What a model loses of all options alike does not count here, as it does not count in accuracy.
        """
        index = ord(self.gold) - ord("A") if len(self.gold) == 1 else -1
        if not self.choice_logprobs or not 0 <= index < len(self.choice_logprobs):
            return None
        highest = max(self.choice_logprobs)
        whole = highest + math.log(sum(math.exp(one - highest) for one in self.choice_logprobs))
        return self.choice_logprobs[index] - whole

    def as_plain(self) -> dict:
        """The sample as one JSON object; ``scores`` only where there are any: other lines stay the bytes they were."""
        plain = asdict(self)
        return plain if self.scores else {name: value for name, value in plain.items() if name != "scores"}


def sample_of(plain: dict) -> Sample:
    """Undo :meth:`Sample.as_plain`."""
    logprobs = plain["choice_logprobs"]
    return Sample(**plain | {"choice_logprobs": None if logprobs is None else tuple(logprobs)})


@dataclass(frozen=True)
class Interval:
    """A metric of a set of samples, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Stratum:
    """One category of a data set."""

    n: int  # documents
    accuracy: Interval | None
