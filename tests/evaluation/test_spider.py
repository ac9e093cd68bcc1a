"""spider: schemas into prompts, answers judged by databases where they are there and by text where not, and said so."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import DataError, UserError
from evaluation.data.rows import Source
from evaluation.data.sources import load_rows
from harness.cli.main import main
from harness.stages.documents import open_task
from report.records import load_results, load_samples

PETS = {"db_id": "pets", "table_names_original": ["Student", "has pet"],
        "column_types": ["text", "number", "text", "number"],
        "column_names_original": [[-1, "*"], [0, "StuID"], [0, "Name"], [1, "StuID"]], "primary_keys": [1],
        "foreign_keys": [[3, 1]]}
SCHEMA = """Database pets has these tables:
Student(StuID number, Name text; primary key StuID)
"has pet"(StuID number; foreign key StuID -> Student(StuID))"""
GONE = PETS | {"db_id": "gone", "primary_keys": [[1, 2]], "foreign_keys": []}
ROWS = [{"db_id": "pets", "question": "How many?", "query": "SELECT count(*) FROM Student;"},
        {"db_id": "pets", "question": "Which names?", "query": "SELECT Name FROM Student ORDER BY StuID"},
        {"db_id": "pets", "question": "How tall?", "query": "SELECT height FROM Student"},
        {"db_id": "gone", "question": "How many?", "query": "SELECT count(*) FROM Student"},
        {"db_id": "gone", "question": "Who?", "query": "SELECT Name FROM Student WHERE Name = \"Ann\""}]


def write(data: Path, rows=ROWS, schemas=(PETS, GONE), split: str = "validation") -> Path:
    """A data folder with the database of "pets" and none of "gone"."""
    folder = data / "spider" / "database" / "pets"
    folder.mkdir(parents=True, exist_ok=True)
    (data / "spider" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "spider" / "tables.json").write_text(json.dumps(list(schemas)))
    if not (folder / "pets.sqlite").exists():
        fill(data, "CREATE TABLE Student(StuID INTEGER, Name TEXT); INSERT INTO Student VALUES (1, 'Bo'), (2, 'Al');")
    return data


def fill(data: Path, script: str) -> None:
    with closing(sqlite3.connect(data / "spider/database/pets/pets.sqlite")) as made:
        made.executescript(script)


def opened(data: Path):
    return open_task("spider", "folder", str(data))


def documents(data: Path):
    task = opened(data)
    return task, task.docs(load_rows(task.source, "folder", data))


def parted(data: Path, calib: int = 2, evaluate: int = 3):
    return opened(data).split(lambda of: load_rows(of, "folder", data), calib, evaluate, seed=0)


def test_the_prompt_states_the_schema(tmp_path):
    task, docs = documents(write(tmp_path))
    assert task.prompt(docs[0], "generate") == (f"{SCHEMA}\n\nQuestion: How many?\nWrite one SQLite query that answers "
                                                "the question.\nSQL:")
    assert (docs[0].gold, task.target(docs[0], "generate")) == (ROWS[0]["query"][:-1], ROWS[0]["query"])
    assert "; primary key StuID, Name)" in docs[3].question and len(docs) == 5  # one question, two databases
    assert Counter(doc.stratum for doc in docs) == {"pets": 3, "gone": 2}


@pytest.mark.parametrize("index,text,answer,correct,scores", [
    (0, " select COUNT( * ) from student", "select COUNT( * ) from student", 1,
     {"exact": 1, "executed": 1, "sql_error": 0}),
    (0, "```sql\nSELECT 2", "SELECT 2", 1, {"exact": 0, "executed": 1, "sql_error": 0}),
    (0, "SELECT 3", "SELECT 3", 0, {"exact": 0, "executed": 1, "sql_error": 0}),
    (0, "DROP TABLE Student", "DROP TABLE Student", 0, {"exact": 0, "executed": 1, "sql_error": 1}),
    (0, " \n", None, 0, {"exact": 0, "executed": 1, "sql_error": 0}),
    (1, "SELECT Name FROM Student", "SELECT Name FROM Student", 1, {"exact": 0, "executed": 1, "sql_error": 0}),
    (1, "SELECT Name FROM Student ORDER BY Name", "SELECT Name FROM Student ORDER BY Name", 0,
     {"exact": 0, "executed": 1, "sql_error": 0}),
    (2, "SELECT Height FROM student", "SELECT Height FROM student", 1, {"exact": 1, "executed": 0}),  # the gold fails
    (3, "SELECT 2", "SELECT 2", 0, {"exact": 0, "executed": 0}), (3, "", None, 0, {"exact": 0, "executed": 0}),
    (4, "select name from student where name = 'Ann'", "select name from student where name = 'Ann'", 1,
     {"exact": 1, "executed": 0}),
])
def test_grades(tmp_path, index, text, answer, correct, scores):
    task, docs = documents(write(tmp_path))
    grade = task.grade(docs[index], text)
    assert (grade.answer, grade.correct, grade.scores) == (answer, correct, scores)


@pytest.mark.parametrize("kept,note", [
    ((0, 1), "2 of 2 documents judged by execution"), ((3,), "0 of 1 documents judged by execution; 1 has no database, "
                                                             "judged by the text of the query"),
    ((0, 1, 2), "2 of 3 documents judged by execution; 1 has a gold query that fails on the database, judged by the "
                "text of the query"),
    ((0, 2, 3, 4), "1 of 4 documents judged by execution; 2 have no database and 1 has a gold query that fails on the "
                   "database, judged by the text of the query"),
])
def test_the_note_says_which_way_was_judged(tmp_path, kept, note):
    task, docs = documents(write(tmp_path))
    assert task.databases.told([docs[i] for i in kept]) == note


def test_a_file_that_is_no_database_judges_nothing(tmp_path):
    path = write(tmp_path) / "spider/database/pets/pets.sqlite"
    path.write_text("version https://git-lfs.github.com/spec/v1\n" * 20)
    task, docs = documents(tmp_path)
    assert task.grade(docs[0], ROWS[0]["query"]).scores == {"exact": 1, "executed": 0}
    assert "3 have a gold query that fails" in task.databases.told(docs[:3])


def test_the_training_split_calibrates_where_it_is_there(tmp_path):
    own = parted(write(tmp_path))
    assert len(own.calib) == 2 and len(own.eval) == 3
    assert not {doc.doc_id for doc in own.calib} & {doc.doc_id for doc in own.eval}
    write(tmp_path, [{"db_id": "pets", "question": "Any?", "query": "SELECT 1"}], split="train")
    train = parted(tmp_path, evaluate=5)
    assert [doc.doc_id for doc in train.calib] == ["train/1"] and len(train.eval) == 5
    assert "2 of 5 documents judged by execution" in train.note


def test_samples_are_those_of_a_database(tmp_path):
    task, docs = documents(write(tmp_path))
    before, without = task.content(docs), task.content(docs[3:])
    assert before == opened(tmp_path).content(docs)
    fill(tmp_path, "INSERT INTO Student VALUES (3, 'Cy');")
    assert opened(tmp_path).content(docs) != before and opened(tmp_path).content(docs[3:]) == without
    assert open_task("gsm8k", "folder", str(tmp_path)).content(docs) is None


@pytest.mark.parametrize("change,part", [
    (lambda f: (f / "tables.json").unlink(), "tables.json does not exist"),
    (lambda f: (f / "tables.json").write_text("["), "tables.json is not JSON"),
    (lambda f: (f / "tables.json").write_text("{}"), "holds dict, not a list"),
    (lambda f: write(f.parent, schemas=[{"db_id": "pets"}]), "schema 1: .* 'table_names_original' is missing"),
    (lambda f: write(f.parent, schemas=[PETS, GONE | {"foreign_keys": [[9, 1]]}]), r"schema 2 \('gone'\): .* do not"),
    (lambda f: write(f.parent, schemas=[PETS | {"foreign_keys": [[3, 9]]}]), r"schema 1 \('pets'\): .* do not fit"),
    (lambda f: write(f.parent, schemas=[PETS | {"db_id": "../pets"}]), "name of a folder, but it is '../pets'"),
    (lambda f: write(f.parent, [ROWS[0], ROWS[1] | {"db_id": "pet"}]), "row 2, field 'db_id'.*did you mean 'pets'"),
    (lambda f: write(f.parent, [ROWS[0] | {"query": " ; "}]), "row 1, field 'query': expected a non-empty text"),
    (lambda f: write(f.parent, [ROWS[0] | {"question": ""}]), "row 1, field 'question'"),
    (lambda f: write(f.parent, [ROWS[0] | {"query": None}]), "row 1, field 'query': expected a text"),
    (lambda f: write(f.parent, [{"question": "?", "query": "SELECT 1"}]), "field 'db_id'.*it is missing"),
    (lambda f: (f / "validation.jsonl").unlink(), "spider/validation.parquet .or .jsonl. does not exist"),
])
def test_what_is_wrong_with_a_data_folder_is_one_sentence(tmp_path, change, part):
    change(write(tmp_path) / "spider")
    with pytest.raises(DataError, match=part) as raised:
        parted(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["hub", "embedded"])
def test_rows_without_schemas_are_refused(source):
    with pytest.raises(UserError, match=r"pass --data_dir with a folder that holds spider/validation.parquet"):
        open_task("spider", source, None)


def test_a_run_says_how_it_judged_and_asks_anew_when_a_database_changes(tiny_folder, tmp_path, capsys):
    rows = [row | {"question": f"{row['question']} ({i})"} for i in range(4) for row in ROWS]
    data = write(tmp_path / "data", rows)
    run = ["--model", str(tiny_folder), "--dataset", "spider", "--data_dir", str(data), "--method", "uniform",
           "--avg_bits", "4.75", "--quantizer", "rtn", "--eval_size", "10", "--calib_size", "6", "--threads", "1",
           "--device", "cpu", "--cache_dir", str(tmp_path / "cache"), "--results_dir", str(tmp_path / "results")]
    assert main(run) == 0
    (result,) = [r for r in load_results(tmp_path / "results") if r.method.name == "uniform"]
    samples = load_samples(result)
    executed = sum(sample.scores["executed"] for sample in samples)
    assert 0 < executed < len(samples) == 10
    assert f"{executed:g} of 10 documents judged by execution; " in result.data_note
    assert result.metrics["executed"].value == executed / 10 and result.metrics["accuracy"].value == 0
    assert {"exact", "sql_error"} <= result.metrics.keys() and result.strata.keys() == {"pets", "gone"}
    assert all(s.n_new <= 128 and ";" not in s.text for s in samples)
    assert "judged by execution" in capsys.readouterr().out.replace("\n", " ")  # below the table
    fill(data, "DELETE FROM Student;")
    assert main(run) == 0
    stages = {r.stages["samples"] for r in load_results(tmp_path / "results") if r.method.name == "uniform"}
    assert len(stages) == 2


def test_the_real_database_judges_its_86_queries(shared):
    data = shared / "datasets"
    task = opened(data)
    rows = load_rows(replace(task.source, folder="spider/train_department_store"), "folder", data)
    docs = task.docs(rows)
    assert len(docs) == 86 and task.databases.told(docs) == "86 of 86 documents judged by execution"
    for doc in docs:
        assert task.grade(doc, f" {task.target(doc, 'generate')}").correct == 1
        wrong = task.grade(doc, " SELECT 'no such value in this database'")
        assert (wrong.correct, wrong.scores["sql_error"]) == (0, 0)


def test_the_real_rows_all_have_schemas(shared):
    task, docs = documents(shared / "datasets")
    assert isinstance(task.source, Source) and len(docs) == 1034 and len({doc.stratum for doc in docs}) == 20
    assert max(len(task.prompt(doc, "generate")) for doc in docs) < 2048 * 2  # none is cut at 2 bytes a token
