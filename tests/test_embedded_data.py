"""The embedded data sets: hub schemas, size, balance, and that the committed files are what their generators make."""

from __future__ import annotations

import json
import re
import string
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
if str(REPO) not in sys.path:  # the tests run from any folder and without an installed project
    sys.path.insert(0, str(REPO))

from datasets_local import make_embedded
from datasets_local.generators import code_checks
from datasets_local.generators.code_blocks import GAP, SUBSETS, Block, read_blocks
from datasets_local.generators.code_mmlu import verify_code
from datasets_local.generators.common import DataError, GoldPlacer
from datasets_local.generators.trivia import normalise

NAMES = ("trivia_qa", "mmlu_pro", "code_mmlu")
LETTERS = string.ascii_uppercase


def load(name: str) -> list[dict]:
    text = (make_embedded.EMBEDDED / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_check_finds_the_committed_files_up_to_date() -> None:
    assert make_embedded.check() == []


def test_check_names_a_changed_and_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_embedded.write(tmp_path)
    assert make_embedded.check(tmp_path) == []
    changed = tmp_path / "mmlu_pro.jsonl"
    changed.write_bytes(changed.read_bytes().replace(b"Osmosis", b"Mitosis", 1))
    (tmp_path / "code_mmlu.jsonl").unlink()
    problems = make_embedded.check(tmp_path)
    assert len(problems) == 2
    assert any("mmlu_pro" in text and "differs" in text for text in problems)
    assert any("code_mmlu" in text and "missing" in text for text in problems)
    assert make_embedded.main(["--check"]) == 0
    assert "error" not in capsys.readouterr().err


def test_check_exits_1_with_a_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise DataError("a wrong answer passes the check")

    monkeypatch.setattr(make_embedded, "verify_code", fail)
    assert make_embedded.main(["--check"]) == 1
    assert "a wrong answer passes" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_size_and_unique_ids_and_questions(name: str) -> None:
    rows = load(name)
    assert 240 <= len(rows) <= 320
    key = "task_id" if name == "code_mmlu" else "question_id"
    assert len({row[key] for row in rows}) == len(rows)
    assert len({row["question"].lower() for row in rows}) == len(rows)
    assert all(row["question"] == row["question"].strip() for row in rows)


def test_total_size() -> None:
    assert sum(path.stat().st_size for path in make_embedded.EMBEDDED.iterdir()) < 400_000


def test_trivia_schema_and_aliases() -> None:
    for row in load("trivia_qa"):
        assert set(row) == {"question", "question_id", "answer"}
        answer = row["answer"]
        assert set(answer) == {"value", "aliases", "normalized_aliases", "normalized_value"}
        assert answer["value"] in answer["aliases"]
        assert len(set(answer["aliases"])) == len(answer["aliases"])
        assert answer["normalized_value"] == normalise(answer["value"])
        assert answer["normalized_aliases"] == list(dict.fromkeys(normalise(alias) for alias in answer["aliases"]))
        # an alias of articles and punctuation alone would match an empty answer
        assert all(answer["normalized_aliases"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Moon", "moon"), ("  J. R. R. Tolkien ", "j r r tolkien"), ("Twenty-four", "twenty four"),
        ("an_apple’s", "apple s"), ("A", ""),
    ],
)
def test_normaliser_is_the_official_one(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_mmlu_pro_schema() -> None:
    for row in load("mmlu_pro"):
        assert set(row) == {"question_id", "question", "options", "answer", "answer_index", "cot_content", "category",
                            "src"}
        assert isinstance(row["question_id"], int) and row["src"] == "embedded" and row["cot_content"] == ""
        assert 4 <= len(row["options"]) <= 10
        assert row["answer"] == LETTERS[row["answer_index"]]
        folded = [option.strip().lower() for option in row["options"]]
        assert folded.count(folded[row["answer_index"]]) == 1 and len(set(folded)) == len(folded)
    categories = Counter(row["category"] for row in load("mmlu_pro"))
    assert len(categories) >= 8 and min(categories.values()) >= 20


def test_mmlu_pro_answers_are_those_of_the_tables() -> None:
    """Independent of the generator: the term in the question and the definition in the gold option stand in one table
    row.
    """
    table = (make_embedded.HERE / "facts" / "glossary.tsv").read_text(encoding="utf-8").lower()
    pairs = {tuple(line.split("\t")[1:]) for line in table.splitlines() if not line.startswith("#")}
    for row in load("mmlu_pro"):
        if row["category"] == "history":
            continue
        gold, question = row["options"][row["answer_index"]].lower(), row["question"].lower()
        bare = {(re.sub(r"^(a|an|the) ", "", term), term, definition) for term, definition in pairs}
        assert any(
            (gold == definition and short in question) or (gold == term and definition in question)
            for short, term, definition in bare
        ), row


def test_code_schema() -> None:
    for row in load("code_mmlu"):
        assert set(row) == {"task_id", "question", "choices", "answer", "subset"}
        assert len(row["choices"]) == 4 == len(set(row["choices"]))
        assert row["answer"] in "ABCD" and row["subset"] in SUBSETS
    counts = Counter(row["subset"] for row in load("code_mmlu"))
    assert set(counts) == set(SUBSETS) and min(counts.values()) >= 40


@pytest.mark.parametrize("name", ["mmlu_pro", "code_mmlu"])
def test_gold_places_are_balanced_for_each_number_of_options(name: str) -> None:
    places: dict[int, Counter[str]] = defaultdict(Counter)
    for row in load(name):
        places[len(row.get("options", row.get("choices")))][row["answer"]] += 1
    for size, counts in places.items():
        assert set(counts) == set(LETTERS[:size])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_every_code_answer_holds_when_it_is_run() -> None:
    """The step limit of code_checks bounds the time; the committed gold is compared with what running finds."""
    blocks = {block.question: block for subset in SUBSETS for block in read_blocks(subset)}
    assert verify_code() == len(load("code_mmlu"))
    for row in load("code_mmlu"):
        block = blocks[row["question"]]
        passing = [letter for letter, choice in zip("ABCD", row["choices"], strict=True)
                   if code_checks.passes(block, choice)]
        assert passing == [row["answer"]], row["task_id"]


def test_verify_rejects_a_wrong_gold_and_a_second_right_choice() -> None:
    block = Block("fill_in_the_middle", "add", [f"x = 1 {GAP} 2"], gold="+", distractors=["-", "*", "//"],
                  checks=["x == 3"])
    code_checks.verify(block)
    block.gold = "-"
    with pytest.raises(DataError, match="right answer fails"):
        code_checks.verify(block)
    block.gold, block.distractors = "+", ["-", "*", "+ 0 +"]
    with pytest.raises(DataError, match="wrong answer passes"):
        code_checks.verify(block)


def test_an_endless_loop_is_ended() -> None:
    trace = sys.gettrace()
    block = Block("fill_in_the_middle", "stop", [f"while {GAP}:", "    x = 1"], gold="False", distractors=["True"],
                  checks=["True"])
    with pytest.raises(code_checks.StepLimitError):
        code_checks.passes(block, "True")
    assert sys.gettrace() is trace


def test_gold_placer_is_deterministic() -> None:
    one, two = GoldPlacer("seed"), GoldPlacer("seed")
    assert [one.next_place(5) for _ in range(20)] == [two.next_place(5) for _ in range(20)]
    with pytest.raises(DataError, match="twice"):
        one.place("q", "a", ["b", "a"])
