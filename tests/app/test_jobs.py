"""Processes that the app starts: one at a time, found again, cancelled in good order."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from app import jobs
from app.jobs import DONE, FAILED, NONE, RUNNING, STOPPED, Job, quoted, recent
from app.progress import standing

REPO = Path(__file__).parents[2]
SLEEPS = "import time; print('begun'); time.sleep(60)"


def job_of(folder: Path, text: str) -> Job:
    """A script of this text as a job."""
    script = folder / "script.py"
    script.write_text(text)
    return Job(str(folder), (str(script), "--flag"))


def until(what, seconds: float = 30.0):
    """Wait until something is true; returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.05)
    raise AssertionError("it never came true")


def test_a_command_runs_once_and_leaves_its_log(tmp_path):
    job = job_of(tmp_path, "import sys; print('bar 0', end='\\r'); print('one'); print(sys.argv[1])")
    assert job.state() == NONE and job.log() == "" and job.process() is None
    job.start()
    until(lambda: job.state() == DONE)
    assert job.log() == "one\n--flag" and job.log(1) == "--flag"
    assert [other.words for other in recent(str(tmp_path), job.words[:1])] == [job.words]
    assert Job(str(tmp_path), job.words).state() == DONE  # another page, or the app after a restart


def test_a_failure_says_why(tmp_path):
    job = Job(str(tmp_path), ("run_taq_icml.py", "--model", str(tmp_path / "nothing"), "--dataset", "trivia_qa",
                              "--results_dir", str(tmp_path / "r"), "--cache_dir", str(tmp_path / "c")))
    job.start()
    until(lambda: job.state() == FAILED)
    assert str(tmp_path / "nothing") in job.why() and "\n" not in job.why() and not job.why().startswith("error")


def test_two_starts_are_one_process(tmp_path):
    job = job_of(tmp_path, SLEEPS)
    job.start()
    number = until(job.process)
    job.start()
    again = subprocess.run([sys.executable, "-m", "app.runner", str(job.folder)], cwd=REPO, timeout=60)
    assert again.returncode == 0 and job.process() == number and job.state() == RUNNING
    job.cancel()
    until(lambda: job.state() == STOPPED)
    assert "begun" in job.log() and json.loads((job.folder / "end.json").read_text())["code"] == jobs.INTERRUPTED
    job.start()  # and it can be started again
    until(lambda: job.process() not in (None, number))
    job.cancel()
    until(lambda: job.state() == STOPPED)


def test_an_app_in_the_background_can_cancel(tmp_path):
    """A shell starts background jobs with Ctrl-C ignored, and their processes inherit that."""
    job, before = job_of(tmp_path, SLEEPS), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job.start()
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: "begun" in job.log())
    job.cancel()
    until(lambda: job.state() == STOPPED)


def test_a_killed_process_is_seen(tmp_path):
    job = job_of(tmp_path, SLEEPS)
    job.start()
    os.kill(until(job.process), signal.SIGKILL)
    until(lambda: job.state() == FAILED or job.state() == STOPPED)


def test_a_runner_that_never_came_is_no_run_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "START_S", 0.2)
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *args, **kwargs: SimpleNamespace(poll=lambda: 1))
    job = job_of(tmp_path, SLEEPS)
    job.start()
    assert job.state() == RUNNING
    until(lambda: job.state() == STOPPED, 5)


@pytest.mark.parametrize(("text", "state", "said"), [
    ("import sys; sys.exit('no such thing')", FAILED, "no such thing"), ("raise SystemExit", DONE, ""),
    ("1 / 0", FAILED, "ZeroDivisionError"), ("raise KeyboardInterrupt", STOPPED, "interrupted")])
def test_ends_are_told_apart(tmp_path, text, state, said):
    job = job_of(tmp_path, text)
    job.start()
    until(lambda: job.state() != RUNNING)
    assert job.state() == state and said in job.log()


@pytest.mark.parametrize(("name", "text"), [("end.json", "{}"), ("end.json", "["), ("command.json", '{"started": "x"}'),
                                            ("command.json", '{"words": null, "started": 1.5}')])
def test_odd_files_are_no_crash(tmp_path, name, text):
    job = job_of(tmp_path, "")
    job.start()
    until(lambda: job.state() == DONE)
    (job.folder / name).write_text(text)
    assert job.state() in (RUNNING, DONE, FAILED, STOPPED, NONE) and isinstance(recent(str(tmp_path), ("x",)), list)


@pytest.mark.parametrize("word", ["plain", "two words", 'a "quote"', "$HOME `x` \\", "TaCQ[calib=c4]", "", "ü/ö"])
def test_commands_can_be_pasted_into_a_shell(word):
    assert subprocess.run(["sh", "-c", f"printf %s {quoted(word)}"], capture_output=True).stdout.decode() == word


def test_a_run_shows_its_cells_and_stage(tmp_path, tiny_folder):
    """Over the harness's own notice board, while it runs; then the same bytes as the command line's."""
    words = ("run_taq_icml.py", "--run_type", "demo", "--model", str(tiny_folder), "--dataset", "mmlu_pro", "--method",
             "TAQ", "--avg_bits", "4.75", "--quantizer", "rtn", "--group_size", "32", "--calib_size", "6",
             "--eval_size", "8", "--cache_dir", str(tmp_path / "cache"))
    job = Job(str(tmp_path / "results"), (*words, "--results_dir", str(tmp_path / "results")))
    job.start()
    now = until(lambda: standing(job), 60)
    assert len(now.cells) == 4 and "of 4 cells" in now.words
    until(lambda: job.state() == DONE, 120)
    assert standing(job) is None
    there = tmp_path / "there"
    subprocess.run([sys.executable, *words[:-1], str(tmp_path / "other"), "--results_dir", str(there)], cwd=REPO,
                   check=True, capture_output=True, timeout=120)
    samples = {path.name: path.read_bytes() for path in sorted(there.glob("*.jsonl"))}
    assert len(samples) == 4
    assert samples == {path.name: path.read_bytes() for path in sorted((tmp_path / "results").glob("*.jsonl"))}
