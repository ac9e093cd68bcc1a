"""A text of the user's own, as a data set and as what calibrates."""

import json

import pytest

from core.calibration import is_general, parse_calib
from core.errors import DataError, UserError
from evaluation.data.own_text import own_rows
from evaluation.tasks import get_task
from harness.api import evaluate, score

WORDS = "The cat sat on the mat, and the dog lay by the door. " * 60
COMMON = dict(device="cpu", threads=1, ppl_window=64, eval_size=3)


def test_a_txt_file_is_one_document_and_a_row_of_jsonl_is_one_each(tmp_path):
    (tmp_path / "a.txt").write_text(WORDS)
    assert [row.get("text") for row in own_rows(str(tmp_path / "a.txt"))] == [WORDS]
    assert [row.get("text") for row in own_rows(str(tmp_path))] == [WORDS]  # the folder's one file
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "two")))
    assert [row.get("text") for row in own_rows(str(tmp_path / "b.jsonl"))] == ["one", "two"]


def test_it_is_asked_and_calibrates(tiny_folder, tmp_path):
    (tmp_path / "a.txt").write_text(WORDS)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": WORDS[:500]}) + "\n" + json.dumps({"text": WORDS[500:]}))
    where = COMMON | {"cache_dir": str(tmp_path / "c"), "score_docs": 2, "calib_window": 32}
    answers = evaluate(str(tiny_folder), f"file:{tmp_path / 'a.txt'}", **where)
    assert len(answers.samples) == 3 and answers.metrics["perplexity"].value > 1
    scores = score(str(tiny_folder), f"AWQ-channel[calib=file:{tmp_path / 'b.jsonl'}]", f"file:{tmp_path / 'a.txt'}",
                   **where)
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_text((tmp_path / "b.jsonl").read_text())
    again = score(str(tiny_folder), f"AWQ-channel[calib=file:{moved}]", f"file:{tmp_path / 'a.txt'}", **where)
    assert all((scores.values[fqn] == value).all() for fqn, value in again.values.items())
    assert is_general(parse_calib("file:x").kind) and parse_calib("file:x").share == 0


@pytest.mark.parametrize("write, name, error, said", [
    (None, "none.txt", UserError, "is no .txt, .parquet or .jsonl file that exists"),
    (b"\xff\xfe\x00", "a.txt", DataError, "is not UTF-8 text"),
    (b"  \n", "a.txt", DataError, "holds no text"),
    (b'{"words": "x"}', "a.jsonl", DataError, "field 'text'")])
def test_what_cannot_be_read_is_one_sentence(tmp_path, write, name, error, said):
    if write is not None:
        (tmp_path / name).write_bytes(write)
    with pytest.raises(error, match=said):
        own_rows(str(tmp_path / name))


def test_a_folder_of_several_and_no_path_at_all(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("y")
    with pytest.raises(UserError, match=r"holds 2 \.txt, \.parquet or \.jsonl files; name one of them"):
        own_rows(str(tmp_path))
    with pytest.raises(UserError, match=r"name a file, such as file:book\.txt"):
        get_task("file").split(lambda of: [], 1, 1, seed=0)
    with pytest.raises(UserError, match="use task, c4, wikitext2, file:PATH"):
        parse_calib("file:")
