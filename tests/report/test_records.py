"""The result's record: what is written is read back as typed, older files too; what is no result is named."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from core.sample import Interval, Stratum
from report.records import (
    Bits,
    MethodFacts,
    Question,
    TaskFacts,
    load_questions,
    load_results,
    load_samples,
    read_if_whole,
    read_result,
    write_questions,
    write_result,
)
from report.tables.tables import tables
from tests.report.handmade import N, documents, put

DATA = Path(__file__).parent / "data"
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path) -> Path:
    """One result of this version."""
    put(tmp_path, "TAQ", 4.25, -0.5, made="2026-01-01T00:00:00+00:00", probe={"a": {"scores": [1.0]}})
    return next(tmp_path.glob("*.json"))


def edited(file: Path, change) -> Path:
    plain = json.loads(file.read_text())
    change(plain)
    file.write_text(json.dumps(plain))
    return file


def test_what_is_written_is_read_back(file):
    result = read_result(file)
    assert isinstance(result.method, MethodFacts) and isinstance(result.bits, Bits)
    assert result.task == TaskFacts("choice", {"accuracy": "acc"}, 0.25) and result.metrics["f1"] is None
    assert isinstance(result.metrics["accuracy"], Interval) and isinstance(result.strata["part 0"], Stratum)
    assert (result.n, result.made, result.file, result.ok) == (N, "2026-01-01T00:00:00+00:00", file, True)
    assert load_samples(result) == documents("mmlu_pro", -0.5, 0)
    assert json.loads(file.read_text()) == json.loads(json.dumps(result.as_plain()))


def test_the_same_outcome_is_not_written_again(file):
    before, result = file.read_bytes(), read_result(file)
    samples = load_samples(result)
    later = replace(result, made="2030-01-01T00:00:00+00:00", seconds={"samples": 1.0})
    write_result(file.parent, file.stem, later, samples)
    assert file.read_bytes() == before, "when it was made is not what came out"
    write_result(file.parent, file.stem, replace(result, status="error", error="no paper"), None)
    assert file.read_bytes() == before, "a failed cell never takes the place of a good one"
    write_result(file.parent, file.stem, replace(result, data_note="3 rows dropped"), samples)
    assert read_result(file).data_note == "3 rows dropped"


def test_results_of_schema_1_are_read():
    results = load_results(DATA / "schema1")
    assert len(results) == 12 and all(r.ok and r.n == 12 and r.made == "" for r in results)
    assert all(len(load_samples(r)) == 12 for r in results)
    assert {r.dataset: r.task for r in results} == {"mmlu_pro": TaskFacts("choice", {"accuracy": "acc"}),
                                                    "trivia_qa": TaskFacts("generate", {"accuracy": "EM", "f1": "F1"})}
    assert all("n" not in r.metrics and r.metrics["gold_loglik"].low < 0 for r in results)


def test_results_of_schema_1_make_the_tables_that_they_made():
    """data/schema1.csv was printed by the version that wrote the results."""
    with open(DATA / "schema1.csv", newline="") as lines:
        expected = {(row["dataset"], row["cell"], row["seed"]): row for row in csv.DictReader(lines)}
    rows = [row for table in tables(DATA / "schema1") for row in table.frame.to_dict("records")]
    assert len(rows) == 12
    for row in rows:
        for name, text in expected[row["dataset"], row["cell"], str(row["seed"])].items():
            if name == "table":
                continue
            value = row[name]
            if text == "":
                assert value is None or value != value or value == "", name
            else:
                number = isinstance(value, float)
                assert value == pytest.approx(float(text), abs=1e-12) if number else str(value) == text, name


@pytest.mark.parametrize(("change", "says"), [
    (lambda p: p.pop("seed"), "lacks 'seed' (1 fields)"),
    (lambda p: p.pop("task"), "lacks 'task'"),
    (lambda p: p.update(seed="0"), "seed is a text, not a whole number"),
    (lambda p: p.update(seed=True), "seed is true or false, not a whole number"),
    (lambda p: p.update(seed=1.5), "seed is a number, not a whole number"),
    (lambda p: p.update(avg_bits="4"), "avg_bits is a text, not a number"),
    (lambda p: p.update(model="toy"), "model is a text, not an object"),
    (lambda p: p["model"].update(name=None), "name is null, not a text"),
    (lambda p: p["bits"].pop("average"), "average"),
    (lambda p: p["metrics"].update(accuracy=0.5), "metrics['accuracy'] is a number, not an object"),
    (lambda p: p["metrics"]["accuracy"].update(low=[]), "low is a list, not a number"),
    (lambda p: p["strata"].update(x={"n": 3}), "accuracy"),
    (lambda p: p.update(strata=[]), "strata is a list, not an object"),
    (lambda p: p.update(settings=None), "settings is null, not an object"),
    (lambda p: p.update(stages={}), "stages lack 'evaluation'"),
    (lambda p: p.update(samples="../elsewhere.jsonl"), "'../elsewhere.jsonl' is no file name"),
    (lambda p: p.update(schema={"is": 2}), "has schema"),
])
def test_a_field_of_another_type_is_named(change, says, file):
    with pytest.raises(UserError) as error:
        load_results(edited(file, change).parent)
    assert says in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


NOT_UTF8 = "\ud800".encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": NaN}', '{"schema": 2}', "[" * 100_000, "1" * 5000,
                                  NOT_UTF8])
def test_a_foreign_file_is_one_sentence(text, file):
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="move it out of the results folder"):
        read_result(file)
    assert read_if_whole(file) is None or text == '{"schema": 2}'


def test_schema_1_without_what_schema_1_has(tmp_path):
    for name in ("metrics", "scoring", "method"):
        source = next((DATA / "schema1").glob("*fp16*.json"))
        plain = json.loads(source.read_text())
        del plain[name]
        (tmp_path / "a.json").write_text(json.dumps(plain))
        with pytest.raises(UserError, match=f"lacks '{name}'"):
            read_result(tmp_path / "a.json")


def test_questions_are_kept_once_for_all_cells_that_were_asked_them(file):
    result = read_result(file)
    assert load_questions(result) == {}
    rows = [Question("q000", "Which “one”?\u2028Say.", ("a", "b")), Question("q001", "Open?")]
    write_questions(file.parent, result.asked, rows)
    stored = file.parent / "questions" / f"{result.asked}.jsonl"
    time = stored.stat().st_mtime_ns
    write_questions(file.parent, result.asked, rows)
    assert stored.stat().st_mtime_ns == time and load_questions(result) == {row.doc_id: row for row in rows}
    assert load_results(file.parent) == [result], "questions are no results"
    stored.write_text('{"doc_id": 1}\n')
    with pytest.raises(UserError, match="does not hold questions"):
        load_questions(result)


def test_the_record_needs_no_torch():
    heavy = {"torch", "transformers", "pandas", "scipy", "rich"}
    code = f"import sys; import report.records; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
