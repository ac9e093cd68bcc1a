"""Queries as text, and what a process that runs them on a database lets them do: read, for a while."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from evaluation.sql import judge
from evaluation.sql.judge import Judge, Verdict
from evaluation.sql.text import is_ordered, normalise_sql, read_sql
from evaluation.sql.worker import same_rows

REPO = Path(__file__).resolve().parents[2]
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
UNBROKEN = "SELECT instr(hex(zeroblob(4000000)), hex(zeroblob(2000000)) || '1')"  # one call, never interrupted
NUMBERS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT {}) SELECT {} FROM c"


@pytest.fixture
def base(tmp_path) -> Path:
    path = tmp_path / "with a ? and # %41" / "pets.sqlite"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as made:
        made.executescript("""
            PRAGMA journal_mode = WAL;
            CREATE TABLE pet(id INTEGER PRIMARY KEY, name TEXT, weight REAL, owner TEXT);
            INSERT INTO pet VALUES (1, 'Rex', 10.0, NULL), (2, 'Tom', 0.3, 'Ann'), (3, 'Rex', 2, 'Bob');
            INSERT INTO pet VALUES (4, CAST(x'ff41' AS TEXT), 1.5, 'Ann');""")
    return path


@pytest.fixture
def asked():
    it = Judge()
    yield it
    it.end()


# ---- text

@pytest.mark.parametrize("text,query", [
    (" SELECT 1", "SELECT 1"), (" SELECT 1; DROP TABLE pet", "SELECT 1"),
    ("SELECT a\nFROM b\n\nand so on", "SELECT a\nFROM b"),
    ("\n\n SELECT 1", "SELECT 1"), ("```sql\nSELECT 1;\n```", "SELECT 1"), ("```sql\nSELECT 1", "SELECT 1"),
    ("Here it is:\n\n```sql\nSELECT a\n\nFROM b\n```\nIt; reads", "SELECT a\n\nFROM b"),
    ("```\nSELECT 1\n```", "SELECT 1"),
    ("```SQLite SELECT 1```", "SELECT 1"), ("SELECT 1\n```\nsome words", "SELECT 1"), ("", None), (" ;", None),
    ("```sql\n```", None), ("With this schema:\n```sql\nSELECT 1\n```", "SELECT 1"), ("no idea", "no idea"),
    ("WITH c AS (SELECT 1) SELECT * FROM c\n```", "WITH c AS (SELECT 1) SELECT * FROM c"),
])
def test_the_query_is_read_out_of_the_text(text, query):
    assert read_sql(text) == query


@pytest.mark.parametrize("one,other,same", [
    ("SELECT  count(*)\nFROM Pet ;", "select COUNT ( * ) from pet", True), ('WHERE a = "X y"', "where a='X y'", True),
    ("WHERE a = 'X'", "WHERE a = 'x'", False), ("a = 'X  y'", "a = 'X y'", False), ("[a].`b`", "A . B", True),
    ('a = "it\'s"', "a = 'it''s'", True), ("a >= 1", "a > = 1", False), ("a = 1", "a = '1'", False),
    ("SELECT a, b", "SELECT b, a", False), ("", "'", False),
])
def test_queries_are_the_same_but_for_spelling(one, other, same):
    assert (normalise_sql(one) == normalise_sql(other)) is same


@pytest.mark.parametrize("query,ordered", [
    ("SELECT a FROM b ORDER  BY a", True), ("select a from b order by a limit 1", True), ("SELECT a FROM b", False),
    ("SELECT a FROM b WHERE c IN (SELECT d FROM e ORDER BY d LIMIT 1)", False), ("SELECT 'order by'", False),
    ("SELECT a FROM (SELECT 1) ORDER BY a", True),
])
def test_whether_a_query_states_an_order(query, ordered):
    assert is_ordered(query) is ordered


# ---- rows

@pytest.mark.parametrize("gold,answer,ordered,same", [
    ([(1,), (2,)], [(2,), (1,)], False, True), ([(1,), (2,)], [(2,), (1,)], True, False),
    ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False), ([(1, 2)], [(2, 1)], False, False),
    ([(1,)], [(1.0,)], True, True), ([(1,)], [("1",)], True, False), ([(None,)], [(None,)], True, True),
    ([(None,)], [(0,)], False, False), ([(None,)], [("",)], False, False), ([(0.3,)], [(0.1 + 0.2,)], False, True),
    ([(1.0,)], [(1.0 + 9e-7,)], True, True), ([(1.0,)], [(1.0 + 2e-6,)], False, False),
    ([(10**6,)], [(10**6 + 1,)], False, False),
    ([(1.0, "a"), (1.0000001, "b")], [(1.0, "b"), (1.0000001, "a")], False, True),
    ([], [], True, True), ([(1,)], [], False, False), ([(1,)], [(1, 1)], False, False),
    ([(b"1",)], [("1",)], False, False),
])
def test_when_two_results_are_the_same(gold, answer, ordered, same):
    assert same_rows(gold, answer, ordered) is same is same_rows(answer, gold, ordered)


# ---- the process

def state(path: Path) -> dict:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.parent.iterdir()}


@pytest.mark.parametrize("gold,answer,same", [
    ("SELECT name FROM pet", "SELECT name FROM pet ORDER BY name DESC", True),
    ("SELECT id FROM pet ORDER BY id", "SELECT id FROM pet ORDER BY id DESC", False),
    ("SELECT count(*) FROM pet", "SELECT 4.0", True), ("SELECT owner FROM pet WHERE id = 1", "SELECT NULL", True),
    ("SELECT sum(weight) FROM pet WHERE id = 2", "SELECT 0.1 + 0.2", True),
    ("SELECT name FROM pet WHERE id = 4", "SELECT CAST(x'ff41' AS TEXT)", True),  # no UTF-8
    ("SELECT name FROM pet WHERE id = 4", "SELECT CAST(x'fe41' AS TEXT)", False),
    ('SELECT id FROM pet WHERE name = "Tom"', "SELECT 2", True), ("SELECT name FROM pet", "SELECT id FROM pet", False),
])
def test_execution_match(base, asked, gold, answer, same):
    assert asked.compare(base, gold, answer) == Verdict(same)


@pytest.mark.parametrize("answer,error", [
    ("DROP TABLE pet", "not authorized"), ("INSERT INTO pet VALUES (9, '', 0, '')", "not authorized"),
    ("DELETE FROM pet", "not authorized"), ("UPDATE pet SET name = ''", "not authorized"),
    ("CREATE TEMP TABLE t(a)", "not authorized"), ("ATTACH 'OTHER' AS o", "not authorized"),
    ("ATTACH 'file:OTHER?mode=rwc' AS o", "not authorized"), ("VACUUM INTO 'OTHER'", "authorization denied"),
    ("PRAGMA journal_mode = DELETE", "not authorized"), ("PRAGMA writable_schema = 1", "not authorized"),
    ("SELECT * FROM pragma_table_info('pet')", "not authorized"), ("SELECT load_extension('OTHER')", "not authorized"),
    ("BEGIN IMMEDIATE", "not authorized"), ("SELECT 1; DELETE FROM pet", "one statement"), ("", "no query"),
    ("-- words", "no query"), ("SELECT height FROM pet", "no such column"), ("as I said", "syntax error"),
    ("SELECT readfile('OTHER')", "no such function"), ("SELECT '\ud800'", "surrogates"), ("SELECT 1\0", ""),
    (NUMBERS.format(-1, "x"), "more than 10000 rows"), ("SELECT zeroblob(100000000)", "too big"),
    (NUMBERS.format(200, "zeroblob(9000000)"), "MemoryError"), ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "overflow"),
])
def test_what_an_answer_may_not_do(base, asked, tmp_path, answer, error):
    """It is an error of the answer, the folder is byte for byte as it was, and the next question is answered."""
    before, other = state(base), tmp_path / "other"
    verdict = asked.compare(base, "SELECT 1", answer.replace("OTHER", str(other)))
    assert not verdict.same and verdict.gold_error is None and error in verdict.answer_error
    assert state(base) == before and not other.exists()
    assert asked.compare(base, "SELECT count(*) FROM pet", "SELECT 4").same


@pytest.mark.parametrize("answer,survived", [(ENDLESS, True), (UNBROKEN, False)])
def test_an_answer_that_does_not_end_is_ended(base, asked, answer, survived):
    asked.compare(base, "SELECT 1", "SELECT 1")
    first, began = asked.process.pid, time.monotonic()
    verdict = asked.compare(base, "SELECT 1", answer, seconds=0.1)
    assert time.monotonic() - began < 3 and "longer than 0.1 s" in verdict.answer_error
    assert asked.compare(base, "SELECT count(*) FROM pet", "SELECT 4").same
    assert (asked.process.pid == first) is survived


@pytest.mark.parametrize("content", [None, b"no database at all, but long enough to be read as one" * 40])
def test_a_file_that_is_no_database(tmp_path, asked, content):
    path = tmp_path / "bad.sqlite"
    if content:
        path.write_bytes(content)
    verdict = asked.compare(path, "SELECT count(*) FROM sqlite_master", "SELECT 0")
    assert not verdict.same and verdict.gold_error and not path.with_name("bad.sqlite-journal").exists()


def test_one_process_serves_all_and_a_new_one_comes_after_a_kill(base, asked):
    for _ in range(3):
        assert asked.compare(base, "SELECT 1", "SELECT 1").same
        first = asked.process.pid
    os.kill(first, signal.SIGKILL)
    assert asked.compare(base, "SELECT 1", "SELECT 1").same and asked.process.pid != first


def test_a_process_that_nobody_asks_ends(base, asked, monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(judge.WORKER.read_text().replace("IDLE = 60", "IDLE = 0.2"))
    monkeypatch.setattr(judge, "WORKER", worker)
    assert asked.compare(base, "SELECT 1", "SELECT 1").same
    assert asked.process.wait(timeout=5) == -signal.SIGALRM
    assert asked.compare(base, "SELECT 1", "SELECT 1").same


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes")
@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_process_outlives_its_parent(base, ending):
    script = ("import os, pathlib, signal, sys\nfrom evaluation.sql.judge import JUDGE\n"
              "print(JUDGE.compare(pathlib.Path(sys.argv[1]), 'SELECT 1', 'SELECT 1').same, "
              "JUDGE.process.pid, flush=True)\n")
    out = subprocess.run([sys.executable, "-c", script + ending, str(base)], cwd=REPO, capture_output=True, text=True)
    same, pid = out.stdout.split()
    until = time.monotonic() + 5
    while alive(int(pid)) and time.monotonic() < until:
        time.sleep(0.02)
    assert same == "True" and not alive(int(pid))
