"""Rows and documents: three sources, one complaint per defect that names file, row and field."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import DataError, UserError
from core.registry import DATASETS
from evaluation.data import sources
from evaluation.data.rows import Row, Source
from evaluation.data.sources import load_rows
from evaluation.tasks import get_task
from evaluation.tasks.base import ChoiceTask, register

SHARED = Path(__file__).resolve().parents[3] / "shared"
EMBEDDED = Path(__file__).resolve().parents[2] / "datasets_local" / "embedded"

ROWS = {
    "mmlu_pro": {"question_id": 7, "question": "Q?", "options": ["x", "y", "z"], "answer": "B", "answer_index": 1, "category": "law"},
    "code_mmlu": {"task_id": "k1", "question": "Q?", "choices": ["x", "y"], "answer": "A"},
    "trivia_qa": {"question_id": "t1", "question": "Q?", "answer": {"value": "St. Louis", "aliases": ["STL"],
                                                                     "normalized_aliases": ["st louis"]}},
}
PLACES = {"mmlu_pro": "mmlu_pro/test", "code_mmlu": "code_mmlu/dbms_sql/test", "trivia_qa": "trivia_qa/rc.nocontext/validation"}


def put(folder: Path, dataset: str, rows, suffix=".jsonl") -> Path:
    path = folder / (PLACES[dataset] + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("dataset", sorted(ROWS))
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_folder_gives_rows_and_docs(tmp_path, dataset, suffix):
    put(tmp_path, dataset, [ROWS[dataset]], suffix)
    rows = load_rows(dataset, "folder", tmp_path)
    doc = get_task(dataset).docs(rows)[0]
    expected = {"mmlu_pro": ("7", "B", "law"), "code_mmlu": ("dbms_sql/k1", "A", "dbms_sql"), "trivia_qa": ("t1", "St. Louis", "")}
    assert (doc.doc_id, doc.gold, doc.stratum) == expected[dataset]
    assert rows[0].number == 1 and rows[0].origin.endswith(suffix)


def test_trivia_aliases_are_value_aliases_and_normalised(tmp_path):
    put(tmp_path, "trivia_qa", [ROWS["trivia_qa"]])
    assert get_task("trivia_qa").docs(load_rows("trivia_qa", "folder", tmp_path))[0].aliases == ("St. Louis", "STL", "st louis")


def test_subset_folders_are_sorted(tmp_path):
    for name in ("zeta", "alpha"):
        path = tmp_path / "code_mmlu" / name / "test.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(ROWS["code_mmlu"]) + "\n")
    assert [r.get("subset") for r in load_rows("code_mmlu", "folder", tmp_path)] == ["alpha", "zeta"]


@pytest.mark.parametrize("change,field", [
    ({"question": None}, "question"), ({"question": 3}, "question"), ({"options": "xyz"}, "options"), ({"options": ["x", 2]}, "options"),
    ({"options": []}, "options"), ({"answer": "D"}, "answer"), ({"answer": "b"}, "answer"), ({"answer": ""}, "answer"),
    ({"answer": "AB"}, "answer"), ({"answer": True}, "answer"), ({"answer_index": 2}, "answer_index"), ({"category": None}, "category"),
    ({"question_id": None}, "question_id"), ({"question_id": 1.5}, "question_id"),
])
def test_bad_field_names_file_row_and_field(tmp_path, change, field):
    good = ROWS["mmlu_pro"]
    path = put(tmp_path, "mmlu_pro", [good | {"question_id": 1}, good | {"question_id": 2} | change])
    with pytest.raises(DataError) as caught:
        get_task("mmlu_pro").docs(load_rows("mmlu_pro", "folder", tmp_path))
    assert f"{path}, row 2, field {field!r}: expected" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset,field", [("mmlu_pro", "options"), ("code_mmlu", "choices"), ("trivia_qa", "answer.aliases")])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_missing_field(tmp_path, dataset, field, suffix):
    row = json.loads(json.dumps(ROWS[dataset]))
    holder = row["answer"] if "." in field else row
    del holder[field.split(".")[-1]]
    put(tmp_path, dataset, [row], suffix)
    with pytest.raises(DataError, match=rf"row 1, field '{field}'"):
        load_rows(dataset, "folder", tmp_path)


@pytest.mark.parametrize("text,part", [
    ('{"a": \n', "row 1: expected a JSON object"), ("[1]\n", "row 1: expected a JSON object, but it is list"),
    ("\n{}\n", "row 1"), ("", "no rows"),
])
def test_malformed_jsonl(tmp_path, text, part):
    path = put(tmp_path, "mmlu_pro", [])
    path.write_text(text)
    with pytest.raises(DataError, match=part):
        load_rows("mmlu_pro", "folder", tmp_path)


def test_malformed_files(tmp_path):
    put(tmp_path, "mmlu_pro", [], ".jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="not UTF-8"):
        load_rows("mmlu_pro", "folder", tmp_path)
    (tmp_path / "mmlu_pro" / "test.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable parquet"):
        load_rows("mmlu_pro", "folder", tmp_path)


def test_missing_places(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"test.parquet \(or .jsonl\) does not exist"):
        load_rows("mmlu_pro", "folder", tmp_path)
    with pytest.raises(DataError, match="no subset folders"):
        load_rows("code_mmlu", "folder", tmp_path)
    with pytest.raises(DataError, match="data folder"):
        load_rows("mmlu_pro", "folder", tmp_path / "nowhere")
    with pytest.raises(UserError, match="needs a folder"):
        load_rows("mmlu_pro", "folder")
    with pytest.raises(UserError, match="unknown data source 'web'"):
        load_rows("mmlu_pro", "web")
    with pytest.raises(UserError, match="did you mean 'mmlu_pro'"):
        load_rows("mmlu-pro", "embedded")
    monkeypatch.setattr(sources, "EMBEDDED", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_rows("trivia_qa", "embedded")


def test_line_separator_inside_a_text_is_no_row_end(tmp_path):
    path = put(tmp_path, "mmlu_pro", [])
    path.write_text(json.dumps(ROWS["mmlu_pro"] | {"question": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert load_rows("mmlu_pro", "folder", tmp_path)[0].get("question") == "a\u2028b"


def test_single_option_rows_are_dropped_and_counted(tmp_path):
    good = ROWS["mmlu_pro"]
    put(tmp_path, "mmlu_pro", [good, good | {"question_id": 8, "options": ["only"], "answer": "A", "answer_index": 0}])
    docs = get_task("mmlu_pro").docs(load_rows("mmlu_pro", "folder", tmp_path))
    assert len(docs) == 1 and docs.notes == ("1 of 2 rows dropped (a single option is always right)",)


def test_duplicate_id(tmp_path):
    path = put(tmp_path, "mmlu_pro", [ROWS["mmlu_pro"], ROWS["mmlu_pro"]])
    with pytest.raises(DataError, match="row 2, field 'question_id': expected a unique id, not that of row 1"):
        get_task("mmlu_pro").docs(load_rows("mmlu_pro", "folder", tmp_path))
    assert path.is_file()


def test_code_mmlu_keys():
    task, row = get_task("code_mmlu"), ROWS["code_mmlu"] | {"subset": "s"}
    assert task.make_doc(Row(row | {"answer": "ANSWER: B"}, "f", 1)).gold == "B"
    with pytest.raises(DataError, match="row 3, field 'answer'"):
        task.make_doc(Row(row | {"answer": "Z"}, "f", 3))
    docs = task.docs([Row(row | {"answer": "Z"}, "hub:x", 1, "hub"), Row(row, "hub:x", 2, "hub")])
    assert len(docs) == 1 and "1 of 2 rows dropped" in docs.notes[0]  # nobody can mend the hub
    assert task.make_doc(Row(row | {"problem_description": "P"}, "f", 1)).question == "P\nQ?"


def test_hub_reads_every_config_and_reports_failures(monkeypatch):
    import datasets

    table = datasets.Dataset.from_list([ROWS["code_mmlu"] | {"unused": 1}])
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, token=None: ["b", "a"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split, token=None: table)
    rows = load_rows("code_mmlu", "hub")
    assert [r.get("subset") for r in rows] == ["a", "b"] and rows[0].origin == "hub:Fsoft-AIC/CodeMMLU/a"

    def fail(name, config, split, token=None):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"could not be loaded from the hub.*no network\); go online"):
        load_rows("mmlu_pro", "hub")


def test_fetching_leaves_out_what_would_not_load(monkeypatch, tmp_path):
    import datasets

    from datasets_local.fetch_hub import fetch

    good, bad = ROWS["code_mmlu"], ROWS["code_mmlu"] | {"task_id": "k2", "question": "R?", "answer": "Z"}
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["b", "a"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list([good, bad]))
    lines = fetch("code_mmlu", tmp_path)
    assert len(lines) == 2 and all("1 rows, 1 without a usable key left out" in line for line in lines)
    docs = get_task("code_mmlu").docs(load_rows("code_mmlu", "folder", tmp_path))
    assert [d.doc_id for d in docs] == ["a/k1", "b/k1"]


def test_a_newcomer_is_one_small_file(tmp_path):
    task = register(ChoiceTask("toy_int_key", Source(None, None, "test", "toy/test", None, {"q": "text", "c.text": "texts", "key": "key"}),
                               id_field=None, question_field="q", options_field="c.text", answer_field="key"))
    try:
        (tmp_path / "toy").mkdir()
        (tmp_path / "toy" / "test.jsonl").write_text(json.dumps({"q": "Q", "c": {"text": ["x", "y"]}, "key": 1}) + "\n")
        doc = task.docs(load_rows("toy_int_key", "folder", tmp_path))[0]
        assert (doc.doc_id, doc.gold, doc.gold_index) == ("1", "B", 1)
        with pytest.raises(UserError, match="not on the hub"):
            load_rows("toy_int_key", "hub")
        with pytest.raises(ValueError, match="registered twice"):
            register(task)
    finally:
        del DATASETS._items["toy_int_key"]


def test_folder_source_does_not_import_datasets():
    code = "import sys, evaluation.data.sources; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0


@pytest.mark.parametrize("dataset", sorted(ROWS))
def test_embedded_sets_load(dataset):
    assert len(get_task(dataset).docs(load_rows(dataset, "embedded"))) >= 2


@pytest.mark.real
@pytest.mark.parametrize("dataset,n,notes", [("trivia_qa", 2100, 0), ("mmlu_pro", 8418, 1), ("code_mmlu", 2764, 0)])
def test_shared_sets_load_whole(dataset, n, notes):
    if not (SHARED / "datasets").is_dir():
        pytest.skip(f"{SHARED / 'datasets'} is missing")
    docs = get_task(dataset).docs(load_rows(dataset, "folder", SHARED / "datasets"))
    assert (len(docs), len(docs.notes)) == (n, notes)
