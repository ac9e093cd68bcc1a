"""Rows and documents: three sources, one complaint per defect that names file, row and field."""

import ast
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
from evaluation.data.splits import split
from evaluation.tasks import get_task
from evaluation.tasks.base import Task, register
from evaluation.tasks.choice import ChoiceTask
from tests.source_rows import FILES, write_rows

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared"

ROWS = {
    "mmlu_pro": {"question_id": 7, "question": "Q?", "options": ["x", "y", "z"], "answer": "B", "answer_index": 1,
                 "category": "law"},
    "code_mmlu": {"task_id": "k1", "question": "Q?", "choices": ["x", "y"], "answer": "A"},
    "trivia_qa": {"question_id": "t1", "question": "Q?", "answer": {"value": "St. Louis", "aliases": ["STL"],
                                                                     "normalized_aliases": ["st louis"]}},
}
PLACES = {"mmlu_pro": "mmlu_pro/test", "code_mmlu": "code_mmlu/dbms_sql/test",
          "trivia_qa": "trivia_qa/rc.nocontext/validation"}


def load(dataset: str, source: str = "folder", data_dir=None) -> list[Row]:
    return load_rows(get_task(dataset).source, source, data_dir=data_dir)


def docs_of(dataset: str, source: str = "folder", data_dir=None):
    return get_task(dataset).docs(load(dataset, source, data_dir))


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
    rows = load(dataset, data_dir=tmp_path)
    doc = get_task(dataset).docs(rows)[0]
    expected = {"mmlu_pro": ("7", "B", "law"), "code_mmlu": ("dbms_sql/k1", "A", "dbms_sql"),
                "trivia_qa": ("t1", "St. Louis", "")}
    assert (doc.doc_id, doc.gold, doc.stratum) == expected[dataset]
    assert rows[0].number == 1 and rows[0].origin.endswith(suffix)


def test_trivia_aliases_are_value_aliases_and_normalised(tmp_path):
    put(tmp_path, "trivia_qa", [ROWS["trivia_qa"]])
    assert docs_of("trivia_qa", data_dir=tmp_path)[0].aliases == ("St. Louis", "STL", "st louis")


def test_subset_folders_are_sorted(tmp_path):
    for name in ("zeta", "alpha"):
        path = tmp_path / "code_mmlu" / name / "test.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(ROWS["code_mmlu"]) + "\n")
    assert [r.get("subset") for r in load("code_mmlu", data_dir=tmp_path)] == ["alpha", "zeta"]


@pytest.mark.parametrize("change,field", [
    ({"question": None}, "question"), ({"question": 3}, "question"), ({"question": " "}, "question"),
    ({"options": "xyz"}, "options"), ({"options": ["x", 2]}, "options"), ({"options": []}, "options"),
    ({"options": ["x", "y", " "]}, "options"), ({"options": ["", "y", "z"]}, "options"),  # a blank option
    ({"options": ["y", "y", "z"]}, "options"), ({"options": ["x", "y", "y"]}, "options"),  # the right one twice
    ({"answer": "D"}, "answer"), ({"answer": "b"}, "answer"), ({"answer": ""}, "answer"), ({"answer": "AB"}, "answer"),
    ({"answer": True}, "answer"), ({"answer_index": 2}, "answer_index"), ({"category": None}, "category"),
    ({"question_id": None}, "question_id"), ({"question_id": 1.5}, "question_id"),
])
def test_bad_field_names_file_row_and_field(tmp_path, change, field):
    good = ROWS["mmlu_pro"]
    path = put(tmp_path, "mmlu_pro", [good | {"question_id": 1}, good | {"question_id": 2} | change])
    with pytest.raises(DataError) as caught:
        docs_of("mmlu_pro", data_dir=tmp_path)
    assert f"{path}, row 2, field {field!r}: expected" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset,field", [("mmlu_pro", "options"), ("code_mmlu", "choices"),
                                           ("trivia_qa", "answer.aliases")])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_missing_field(tmp_path, dataset, field, suffix):
    row = json.loads(json.dumps(ROWS[dataset]))
    holder = row["answer"] if "." in field else row
    del holder[field.split(".")[-1]]
    put(tmp_path, dataset, [row], suffix)
    with pytest.raises(DataError, match=rf"row 1, field '{field}'"):
        load(dataset, data_dir=tmp_path)


@pytest.mark.parametrize("text,part", [
    ('{"a": \n', "row 1: expected a JSON object"), ("[1]\n", "row 1: expected a JSON object, but it is list"),
    ("\n{}\n", "row 1"), ("", "no rows"), ("\n\n", "no rows"),
    ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "row 1: .* inside one another by the hundred; correct the row"),
    ('{"a": ' + "9" * 5000 + "}\n", r"row 1: .* does not parse \(Exceeds the limit .* for integer"),
])
def test_malformed_jsonl(tmp_path, text, part):
    path = put(tmp_path, "mmlu_pro", [])
    path.write_text(text)
    with pytest.raises(DataError, match=part) as caught:
        load("mmlu_pro", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", range(700, 1000, 20))
def test_lists_in_lists_are_one_sentence_however_deep(tmp_path, depth):
    """Some depths are read and cannot be written down again, which the check for half characters does."""
    path = put(tmp_path, "mmlu_pro", [])
    for inner in ("", '"\\ud83d\\ude00"'):
        path.write_text(json.dumps(ROWS["mmlu_pro"]).replace('"Q?"', "[" * depth + inner + "]" * depth) + "\n")
        with pytest.raises(DataError, match="row 1"):
            load("mmlu_pro", data_dir=tmp_path)


@pytest.mark.parametrize("head,tail", [("", ""), ("", "\n\n"), ("", "\n \n\t\n\n"), ("\ufeff", "\n"),
                                       ("\ufeff", "\n\n"), ("", "\r\n\r\n")])
def test_blank_lines_at_the_end_and_a_byte_order_mark_do_no_harm(tmp_path, head, tail):
    path = put(tmp_path, "mmlu_pro", [])
    lines = "\n".join(json.dumps(ROWS["mmlu_pro"] | {"question_id": i}) for i in (1, 2))
    path.write_text(head + lines + tail, encoding="utf-8", newline="")
    assert [row.get("question_id") for row in load("mmlu_pro", data_dir=tmp_path)] == [1, 2]


def test_malformed_files(tmp_path):
    put(tmp_path, "mmlu_pro", [], ".jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="not UTF-8"):
        load("mmlu_pro", data_dir=tmp_path)
    (tmp_path / "mmlu_pro" / "test.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable parquet"):
        load("mmlu_pro", data_dir=tmp_path)


def test_missing_places(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"test.parquet \(or .jsonl\) does not exist"):
        load("mmlu_pro", data_dir=tmp_path)
    with pytest.raises(DataError, match="no subset folders"):
        load("code_mmlu", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"data folder .*nowhere' does not exist"):
        load("mmlu_pro", data_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match="'mmlu_pro' needs a folder"):
        load("mmlu_pro")
    with pytest.raises(UserError, match="unknown data source 'web'"):
        load("mmlu_pro", "web")
    with pytest.raises(UserError, match="did you mean 'mmlu_pro'"):
        load("mmlu-pro", "embedded")
    monkeypatch.setattr(sources, "EMBEDDED", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load("trivia_qa", "embedded")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_folder_in_place_of_a_file_is_named(tmp_path, suffix):
    (tmp_path / f"mmlu_pro/test{suffix}").mkdir(parents=True)
    with pytest.raises(DataError, match=f"mmlu_pro/test{suffix}' is a folder; put one {suffix} file there"):
        load("mmlu_pro", data_dir=tmp_path)


def test_line_separator_inside_a_text_is_no_row_end(tmp_path):
    path = put(tmp_path, "mmlu_pro", [])
    path.write_text(json.dumps(ROWS["mmlu_pro"] | {"question": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert load("mmlu_pro", data_dir=tmp_path)[0].get("question") == "a\u2028b"


def test_single_option_rows_are_dropped_and_counted(tmp_path):
    good = ROWS["mmlu_pro"]
    put(tmp_path, "mmlu_pro", [good, good | {"question_id": 8, "options": ["only"], "answer": "A", "answer_index": 0}])
    docs = docs_of("mmlu_pro", data_dir=tmp_path)
    assert len(docs) == 1 and docs.notes == ("1 of 2 rows dropped (a single option is always right)",)


# ---- rows as the hub has them

def test_an_id_that_comes_again(tmp_path):
    """With its question it is the same row once more; with another question nobody knows which one is meant."""
    row = ROWS["mmlu_pro"]
    put(tmp_path, "mmlu_pro", [row, row | {"options": ["p", "y"]}, row | {"question_id": 8}, row])
    docs = docs_of("mmlu_pro", data_dir=tmp_path)
    assert [doc.doc_id for doc in docs] == ["7", "8"] and docs[0].options == ("x", "y", "z")
    assert docs.notes == ("2 of 4 rows dropped (the id and question of an earlier row)",)
    put(tmp_path, "mmlu_pro", [row, row | {"question": "R?"}])
    with pytest.raises(DataError, match="row 2, field 'question_id': expected a unique id, not that of row 1"):
        docs_of("mmlu_pro", data_dir=tmp_path)


def test_code_mmlu_keys():
    task, row = get_task("code_mmlu"), ROWS["code_mmlu"] | {"subset": "s"}
    assert task.make_doc(Row(row | {"answer": "ANSWER: B"}, "f", 1)).gold == "B"
    with pytest.raises(DataError, match="row 3, field 'answer'"):
        task.document(Row(row | {"answer": "Z"}, "f", 3))
    docs = task.docs([Row(row | {"answer": "Z"}, "hub:x", 1, "hub"), Row(row, "hub:x", 2, "hub")])
    assert len(docs) == 1 and "1 of 2 rows dropped" in docs.notes[0]  # nobody can mend the hub
    assert task.make_doc(Row(row | {"problem_description": "P"}, "f", 1)).question == "P\nQ?"


FLAWS = [{"choices": ["x", ""]}, {"choices": [" ", "y"]}, {"choices": ["x", "y", "x"]}]


@pytest.mark.parametrize("flaw", FLAWS)
def test_code_mmlu_is_not_clean_so_undecidable_rows_are_dropped_from_every_copy(tmp_path, flaw):
    row = ROWS["code_mmlu"]
    put(tmp_path, "code_mmlu", [row, row | {"task_id": "k2", "question": "R?"} | flaw])
    docs = docs_of("code_mmlu", data_dir=tmp_path)
    assert [doc.doc_id for doc in docs] == ["dbms_sql/k1"]
    assert docs.notes == ("1 of 2 rows dropped (no usable question, options or answer)",)


def test_two_wrong_options_may_be_alike(tmp_path):
    put(tmp_path, "mmlu_pro", [ROWS["mmlu_pro"] | {"options": ["x", "y", "x"]}])
    assert len(docs_of("mmlu_pro", data_dir=tmp_path)) == 1


@pytest.mark.parametrize("change", [{"options": ["y", "y", "z"]}, {"options": ["x", "y", ""]}, {"question": None},
                                    {"question": " "}, {"answer": "N"}, {"answer_index": 0}, {"category": None}])
def test_what_nobody_can_mend_on_the_hub_is_dropped_and_counted(change):
    row = ROWS["mmlu_pro"]
    docs = get_task("mmlu_pro").docs([Row(row, "hub:x", 1, "hub"),
                                      Row(row | {"question_id": 8} | change, "hub:x", 2, "hub")])
    assert len(docs) == 1 and docs.notes == ("1 of 2 rows dropped (no usable question, options or answer)",)


def test_when_every_row_is_dropped_the_error_says_why():
    docs = get_task("mmlu_pro").docs([Row(ROWS["mmlu_pro"] | {"answer": "N"}, "hub:x", 1, "hub")])
    with pytest.raises(DataError, match=r"0 distinct documents of mmlu_pro cannot be split \(1 of 1 rows dropped"):
        split(docs, 1, 1, seed=0, stratified=True)


def hub(monkeypatch, tables: dict, broken: str | None = None) -> None:
    """Put these tables (by config) in the place of the hub; the config ``broken`` cannot be reached."""
    import datasets

    def load_dataset(name, config, split, token=None):
        if config == broken:
            raise ConnectionError("no network\nmore")
        return datasets.Dataset.from_list(tables[config])

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, token=None: list(tables))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_hub_reads_every_config_and_reports_failures(monkeypatch):
    row = ROWS["code_mmlu"] | {"unused": 1}
    hub(monkeypatch, {"b": [row], "a": [row]})
    rows = load("code_mmlu", "hub")
    assert [r.get("subset") for r in rows] == ["a", "b"] and rows[0].origin == "hub:Fsoft-AIC/CodeMMLU/a"
    hub(monkeypatch, {"b": [{"task_id": "k", "question": "Q?", "options": ["x"]}]})
    with pytest.raises(DataError, match="hub:Fsoft-AIC/CodeMMLU/b, row 1, field 'choices': expected this column"):
        load("code_mmlu", "hub")
    hub(monkeypatch, {})
    with pytest.raises(DataError, match="'code_mmlu' from source 'hub' has no rows"):
        load("code_mmlu", "hub")
    hub(monkeypatch, {}, broken="rc.nocontext")
    with pytest.raises(DataError, match=r"'trivia_qa' could not be loaded from the hub.*no network\); go online"):
        load("trivia_qa", "hub")


def trivia_rows(count: int) -> list[dict]:
    """TriviaQA rc.nocontext as the hub has it: all columns, and every third question twice (web and wikipedia)."""
    rows = []
    for number in range(count):
        name = f"Answer {number}"
        answer = {"value": name, "aliases": [name, "Other"], "normalized_aliases": [name.lower(), "other"],
                  "matched_wiki_entity_name": "", "normalized_matched_wiki_entity_name": "", "type": "WikipediaEntity",
                  "normalized_value": name.lower()}
        row = {"question": f"Which is number {number}?", "question_id": f"tc_{number}", "question_source": "http://a/",
               "entity_pages": {key: [] if number % 2 else ["p"]
                                for key in ("doc_source", "filename", "title", "wiki_context")},
               "search_results": {key: ["r", "s"]
                                  for key in ("description", "filename", "title", "url", "search_context")},
               "answer": answer}
        row["search_results"]["rank"] = [0, 1]
        rows.append(row)
        if number % 3 == 0:
            rows.append(row | {"search_results": {key: found[:1] for key, found in row["search_results"].items()}})
    return rows


def code_rows(subset: str) -> list[dict]:
    """A CodeMMLU config as the hub has it: an id again with its question, keys of both forms, one missing, flaws."""
    row = {"task_id": "k1", "question": f"Q of {subset}?", "choices": ["x", "y"], "answer": "A"}
    return [row, row, row | {"task_id": "k2", "question": "R?", "answer": "ANSWER: B"},
            row | {"task_id": "k3", "answer": "Z"}, row | {"task_id": "k4", "answer": None},
            row | {"task_id": "k5", "choices": ["x", "x"]}, row | {"task_id": "k6", "choices": ["", "y"]},
            row | {"task_id": "k7", "choices": ["x"]}]


def test_the_hubs_own_rows_give_the_same_documents_from_the_hub_and_from_a_fetched_folder(monkeypatch, tmp_path):
    from datasets_local.fetch_hub import fetch

    hub(monkeypatch, {"rc.nocontext": trivia_rows(90)})
    there = docs_of("trivia_qa", "hub")
    assert len(there) == 90 and there.notes == ("30 of 120 rows dropped (the id and question of an earlier row)",)
    assert fetch("trivia_qa", tmp_path) == [f"{tmp_path}/trivia_qa/rc.nocontext/validation.parquet: 120 rows"]
    here = docs_of("trivia_qa", data_dir=tmp_path)
    assert here == there and here.notes == there.notes
    hub(monkeypatch, {subset: code_rows(subset) for subset in ("b", "a")})
    there = docs_of("code_mmlu", "hub")
    assert [doc.doc_id for doc in there] == ["a/k1", "a/k2", "b/k1", "b/k2"]
    assert len(fetch("code_mmlu", tmp_path)) == 2 and docs_of("code_mmlu", data_dir=tmp_path) == there


@pytest.mark.parametrize("run_type,asked", [("test", "30 documents calibrate, 60"),
                                            ("full", "18 documents calibrate, 72")])
def test_the_run_types_that_read_the_hub_load_its_shape(monkeypatch, tiny_folder, tmp_path, capsys, run_type, asked):
    """A dry run reads, checks, splits and tokenises everything that a run asks."""
    from harness.cli.main import main

    flags = ["--run_type", run_type, "--model", str(tiny_folder), "--avg_bits", "4.75", "--device", "cpu",
             "--threads", "1", "--calib_tokens", "2000", "--cache_dir", str(tmp_path / "c"),
             "--results_dir", str(tmp_path / "r"), "--dry_run"]
    hub(monkeypatch, {"rc.nocontext": trivia_rows(90)})
    assert main([*flags, "--dataset", "trivia_qa"]) == 0
    said = "".join(capsys.readouterr())
    assert "30 of 120 rows dropped (the id and question of an earlier row)" in said and asked in said
    hub(monkeypatch, {subset: code_rows(subset) for subset in ("b", "a")})
    assert main([*flags, "--dataset", "code_mmlu"]) == 0


def test_every_split_that_a_source_task_reads_is_fetched(monkeypatch, tmp_path):
    import datasets

    from datasets_local.fetch_hub import NAMES, fetch

    def load_dataset(name, config, split, token=None, **_options):
        (rows,) = [rows for path, rows in FILES.items() if path.startswith(kind) and path.endswith(f"/{split}")]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    local, fetched, kinds = write_rows(tmp_path / "local"), tmp_path / "fetched", set()
    for place in FILES:
        kind = place.partition("/")[0]
        name = "c4" if kind == "c4_sample" else kind
        if name in kinds:
            continue
        kinds.add(name)
        lines = fetch(name, fetched)
        splits = [get_task(name).split(lambda of: load_rows(of, "folder", data_dir=root), 3, 6, 0)
                  for root in (local, fetched)]
        assert splits[0] == splits[1] and splits[0].eval, name
        assert len(lines) == (2 if name in ("mmlu", "gsm8k") else 1), name
    assert kinds < set(NAMES)
    rows = [{"db_id": "pets", "question": "How many pets?", "query": "SELECT count(*) FROM pets"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    lines = fetch("spider", fetched)
    assert len(lines) == 3 and lines[2].endswith(f"which belong into {fetched}/spider")


def test_fetching_leaves_out_what_would_not_load(monkeypatch, tmp_path):
    from datasets_local.fetch_hub import fetch

    good, bad = ROWS["code_mmlu"], ROWS["code_mmlu"] | {"task_id": "k2", "question": "R?", "answer": "Z"}
    hub(monkeypatch, {"b": [good, bad], "a": [good, bad]})
    lines = fetch("code_mmlu", tmp_path)
    assert len(lines) == 2 and all("1 rows, 1 unusable rows left out" in line for line in lines)
    assert [d.doc_id for d in docs_of("code_mmlu", data_dir=tmp_path)] == ["a/k1", "b/k1"]


def test_fetching_without_a_network_is_one_sentence_and_leaves_nothing(monkeypatch, tmp_path, capsys):
    from datasets_local.fetch_hub import main

    for broken in ("b", "a"):  # half of a data set of subsets would load as if it were the whole
        hub(monkeypatch, {"b": [ROWS["code_mmlu"]], "a": [ROWS["code_mmlu"]]}, broken=broken)
        assert main([str(tmp_path / "data"), "--dataset", "code_mmlu"]) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith("error: dataset 'code_mmlu' could not be loaded from the hub as 'Fsoft-AIC")
        assert "go online" in err and err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert main([str(tmp_path / "data"), "--text", "c4", "--dataset", "code_mmlu"]) == 2
    assert not list(tmp_path.iterdir())


def test_fetching_that_is_stopped_while_it_writes_leaves_no_file(monkeypatch, tmp_path, capsys):
    import errno

    import datasets

    from datasets_local.fetch_hub import main

    hub(monkeypatch, {"b": [ROWS["code_mmlu"]], "a": [ROWS["code_mmlu"]]})
    real, paths = datasets.Dataset.to_parquet, []

    def stop_at_second(self, path):
        paths.append(path)
        real(self, path)
        if len(paths) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(datasets.Dataset, "to_parquet", stop_at_second)
    assert main([str(tmp_path), "--dataset", "code_mmlu"]) == 2
    assert "the disk is full" in capsys.readouterr().err and len(paths) == 2 and not list(tmp_path.rglob("*"))
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file")]) == 2 and "is a file; give a folder" in capsys.readouterr().err


# ---- the rest

def test_a_newcomer_is_one_small_file(tmp_path):
    where = Source(hub_id=None, hub_config=None, split="test", folder="toy/test", embedded=None,
                   fields={"q": "text", "c.text": "texts", "key": "key"})
    task = register(ChoiceTask("toy_int_key", where, id_field=None, question_field="q", options_field="c.text",
                               answer_field="key"))
    try:
        (tmp_path / "toy").mkdir()
        (tmp_path / "toy" / "test.jsonl").write_text(json.dumps({"q": "Q", "c": {"text": ["x", "y"]}, "key": 1}) + "\n")
        doc = docs_of("toy_int_key", data_dir=tmp_path)[0]
        assert (doc.doc_id, doc.gold, doc.gold_index) == ("1", "B", 1)
        with pytest.raises(UserError, match="dataset 'toy' is not on the hub"):
            load("toy_int_key", "hub")
        with pytest.raises(ValueError, match="registered twice"):
            register(task)
    finally:
        del DATASETS._items["toy_int_key"]


@pytest.mark.parametrize("attributes,part", [
    ({"stop": "\n"}, "give a tuple of non-empty texts"), ({"stop": ("a", "")}, "give a tuple of non-empty texts"),
    ({"stop": (3,)}, "give a tuple of non-empty texts"), ({"max_new_tokens": 0}, "give 1 or more, or None"),
])
def test_a_task_that_could_never_stop_is_refused(attributes, part):
    with pytest.raises(ValueError, match=part):
        register(type("Odd", (Task,), attributes)("odd", get_task("trivia_qa").source))
    assert "odd" not in DATASETS


@pytest.mark.parametrize("value,good", [(1, True), (0.5, True), (-3e7, True), (float("nan"), False),
                                        (float("inf"), False),
                                        (True, False), ("1", False), (None, False)])
def test_numbers_are_finite(value, good):
    row = Row({"x": value}, "f", 1)
    if good:
        assert row.check({"x": "number"}) is None
    else:
        with pytest.raises(DataError, match="field 'x': expected a finite number"):
            row.check({"x": "number"})


def test_the_data_lies_below_the_tasks():
    for path in (REPO / "evaluation" / "data").glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [node.module for node in nodes if node.module.startswith("evaluation") and
                    not node.module.startswith("evaluation.data")], path


def test_folder_source_does_not_import_datasets():
    code = "import sys, evaluation.data.sources; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


@pytest.mark.parametrize("dataset", sorted(ROWS))
def test_embedded_sets_load(dataset):
    docs = docs_of(dataset, "embedded")
    assert len(docs) >= 2 and docs.notes == ()


@pytest.mark.real
@pytest.mark.parametrize("dataset,n,notes", [
    ("trivia_qa", 2100, ()), ("mmlu_pro", 8418, ("4 of 8422 rows dropped (a single option is always right)",)),
    ("code_mmlu", 2741, ("23 of 2764 rows dropped (no usable question, options or answer)",)),
])
def test_shared_sets_load_whole(dataset, n, notes):
    if not (SHARED / "datasets").is_dir():
        pytest.skip(f"{SHARED / 'datasets'} is missing")
    docs = docs_of(dataset, data_dir=SHARED / "datasets")
    assert (len(docs), docs.notes) == (n, notes)
