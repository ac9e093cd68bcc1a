"""Documents: one question each, as a task reads it out of a row."""

from dataclasses import dataclass

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Doc:
    """One question."""

    doc_id: str
    question: str
    options: tuple[str, ...] = ()  # empty for open questions
    gold: str = ""  # gold text; for choices the letter
    gold_index: int | None = None
    aliases: tuple[str, ...] = ()  # accepted texts of an open question
    stratum: str = ""


class DocList(list):
    """Documents of the task ``name``, plus what was left out of them and why."""

    def __init__(self, docs=(), notes: tuple[str, ...] = (), name: str = ""):
        super().__init__(docs)
        self.notes, self.name = tuple(notes), name
