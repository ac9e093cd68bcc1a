"""Reads the blocks of the code fact files and turns each into a question with four choices and runnable candidates."""

from __future__ import annotations

from dataclasses import dataclass, field

from .common import FACTS, DataError

SUBSETS = (
    "api_frameworks", "code_completion", "code_repair", "execution_prediction", "fill_in_the_middle",
    "programming_syntax",
)
GAP = "____"


@dataclass
class Block:
    """One block of a fact file, line by line by its first character."""

    subset: str
    title: str = ""  # "!" the wording, or what the code should do
    shown: list[str] = field(default_factory=list)  # ":" and ">" lines of code in the question
    wrong_line: int | None = None  # which of them is the ">" line
    hidden: list[str] = field(default_factory=list)  # "=" code that runs before, not in the question
    gold: str = ""  # "+"
    distractors: list[str] = field(default_factory=list)  # "-"
    checks: list[str] = field(default_factory=list)  # "?"

    @property
    def question(self) -> str:
        """The question as the model sees it: it must make sense without the choices."""
        code = "\n".join(self.shown)
        if self.subset in {"api_frameworks", "programming_syntax"}:
            return self.title
        if self.subset == "code_completion":
            return f"Which line completes this Python function?\n{code}"
        if self.subset == "execution_prediction":
            return f"What does this Python code print?\n{code}"
        if self.subset == "fill_in_the_middle":
            return f"The code should {self.title}. What belongs in place of {GAP}?\n{code}"
        wrong = self.shown[self.wrong_line or 0].strip()
        return f"The code should {self.title}. Which line should replace `{wrong}`?\n{code}"

    def program(self, candidate: str) -> str:
        """The shown code with the candidate in its place; for the one-line questions the candidate alone."""
        if self.subset == "execution_prediction":
            return "\n".join(self.shown)
        if self.subset == "code_completion":
            return "\n".join([self.shown[0], f"    {candidate}"])
        if self.subset == "code_repair":
            lines = list(self.shown)
            number = self.wrong_line or 0
            indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
            lines[number] = indent + candidate
            return "\n".join(lines)
        if self.subset == "fill_in_the_middle":
            return "\n".join(self.shown).replace(GAP, candidate)
        return candidate


def _unescape(text: str) -> str:
    """The fact files keep a piece of code on one line: a written backslash-n is a line break outside of the checks."""
    return text.replace("\\n", "\n")


def _add_line(block: Block, mark: str, text: str) -> None:
    """Put one line of the file into the block."""
    if mark == "!":
        if block.subset == "code_completion":
            signature, _, doc = text.partition(" | ")
            block.shown = [f"def {signature}:", f'    """{doc}"""']
        block.title = text
    elif mark in ":>":
        if mark == ">":
            block.wrong_line = len(block.shown)
        block.shown.append(text)
    elif mark == "=":
        block.hidden.append(_unescape(text))
    elif mark == "+":
        block.gold = _unescape(text)
    elif mark == "-":
        block.distractors.extend(_unescape(part.strip()) for part in text.split(" ;; "))
    elif mark == "?":
        block.checks.append(text)
    else:
        raise DataError(f"{block.subset}: unknown mark {mark!r} before {text!r}")


def read_blocks(subset: str) -> list[Block]:
    """All blocks of `facts/<subset>.txt`; each must be complete and have three wrong candidates."""
    text = (FACTS / f"{subset}.txt").read_text(encoding="utf-8")
    blocks = []
    for part in text.split("\n\n"):
        lines = [line for line in part.splitlines() if line.strip() and not line.startswith("#")]
        if not lines:
            continue
        block = Block(subset)
        for line in lines:
            _add_line(block, line[0], line[2:].rstrip())
        checked = bool(block.checks) != (subset == "execution_prediction")
        marked = (subset == "code_repair") == (block.wrong_line is not None)
        if not block.gold or len(block.distractors) != 3 or not checked or not marked:
            raise DataError(f"{subset}: incomplete block {part!r}")
        blocks.append(block)
    return blocks
