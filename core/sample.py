"""What one document gave: the record from which every metric is computed.  Needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """What one document gave; the only thing metrics are computed from."""

    doc_id: str
    prompt: str  # sha256 of the prompt, first 16 hex digits
    gold: str  # the gold answer as the task states it
    text: str  # generated text, or the chosen option
    answer: str | None  # extracted answer; None = could not be parsed
    correct: float  # 0 or 1
    f1: float | None  # token F1 over aliases; None for choice tasks
    choice_logprobs: tuple[float, ...] | None  # nats, summed over the continuation's tokens
    gold_loglik: float  # nats per token of the gold answer, mean over its tokens
    n_prompt: int  # tokens
    n_new: int  # tokens
    truncated: bool  # the prompt was cut
    stratum: str = ""  # category or subset
