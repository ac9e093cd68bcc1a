"""A small grid as job arrays on a real cluster: killed, pre-empted, out of time, cancelled; in the end the bytes of a
local run.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.jobs.board import runs
from harness.jobs.status import units

BASE = ["--dataset", "mmlu_pro", "--eval_size", "24", "--calib_size", "6", "--avg_bits", "4.75", "--device", "cpu",
        "--threads", "1", "--batch_tokens", "300", "--quantizer", "rtn", "--method", "TAQ"]
SLURM = ["--executor", "slurm", "--cpus_per_task", "1", "--mem", "1500M", "--time", "30"]
SLOW = """
import time

import harness.stages.samples
from core.registry import method

method("slowed", scorer="TAQ")  # a plugin has to register something
real = harness.stages.samples.run_batch

def run_batch(*args, **kwargs):  # long enough to be hit in the middle of a cell
    time.sleep({seconds})
    return real(*args, **kwargs)

harness.stages.samples.run_batch = run_batch
"""


def command(tiny: Path, root: Path, *more: str) -> list[str]:
    return [*BASE, "--model", str(tiny), "--cache_dir", str(root / "cache"), "--results_dir", str(root / "results"),
            *more]


def shell(*argv: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, as one gives it on a login node; a plugin stays out of the test's process.
    """
    script = str(Path(__file__).resolve().parents[2] / "run_taq_icml.py")
    return subprocess.run([sys.executable, script, *argv], capture_output=True, text=True, timeout=400)


def slow_plugin(root: Path, seconds: float) -> list[str]:
    """Every batch takes a while longer in the jobs; no number changes."""
    path = root / "slow.py"
    path.write_text(SLOW.format(seconds=seconds))
    return ["--plugin", str(path)]


@pytest.fixture(scope="module")
def local(tiny_folder, tmp_path_factory) -> dict[str, bytes]:
    """The samples of the same grid run in this process."""
    root = tmp_path_factory.mktemp("local")
    assert main(command(tiny_folder, root)) == 0
    return samples(root)


def samples(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (root / "results").glob("*.jsonl")}


def states(root: Path) -> dict[str, str]:
    return {p.name: p.state for p in units(runs(str(root / "results"))[-1])}


def ended(root: Path) -> bool:
    return not {"running", "waiting"} & set(states(root).values())


def running_cell(lab, root: Path) -> str:
    """The job number of a cell that has finished at least one batch: all that run have, or it might be another's."""
    board = runs(str(root / "results"))[-1]

    def job():
        begun = {path.parent for path in (root / "cache" / ".partial").rglob("*.jsonl")}
        running = [p.job for p in units(board) if p.name.startswith("cell-") and p.state == "running"]
        return running[0] if running and len(begun) >= len(running) else None

    return lab.wait_until(job, 120, "a cell to finish its first batch")


def test_a_killed_job_is_told_and_the_same_command_finishes_the_grid(slurm, local, tiny_folder, tmp_path, capsys):
    asked = command(tiny_folder, tmp_path, *SLURM, "--max_parallel", "2", *slow_plugin(tmp_path, 0.7))
    said = shell(*asked)
    assert said.returncode == 0 and "2 groups of scores and 4 cells handed to SLURM" in said.stderr
    assert "--status" in said.stderr
    killed = running_cell(slurm, tmp_path)
    slurm.kill_job_processes(killed)
    slurm.wait_until(lambda: ended(tmp_path), 240, "the grid to end")
    where = ["--results_dir", str(tmp_path / "results")]
    assert main([*where, "--status"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 cells: 3 done, 0 running, 1 failed, 0 waiting" in shown and "SLURM: FAILED" in shown and killed in shown
    assert main([*where, "--collect"]) == 1
    assert "3 of 4 cells" in capsys.readouterr().out
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / ".partial").rglob("*.jsonl")}
    assert before, "the killed cell's finished batches were kept"
    said = shell(*asked, "--wait")
    assert said.returncode == 0 and "4 of 4 cells" in said.stdout
    assert "1 cells handed to SLURM; 3 cells are done by earlier runs" in said.stderr
    assert samples(tmp_path) == local
    journal = [json.loads(line)["key"] for p in (tmp_path / "cache" / "journal").iterdir()
               for line in p.read_text().splitlines()]
    assert len(journal) == len(set(journal)), "a job did again what was stored"


def test_a_pre_empted_job_is_queued_again_and_goes_on_by_itself(slurm, local, tiny_folder, tmp_path, capsys):
    assert not shell(*command(tiny_folder, tmp_path, *SLURM, "--partition", "low", "--max_parallel", "2",
                              *slow_plugin(tmp_path, 0.7))).returncode
    job = running_cell(slurm, tmp_path)
    high = slurm.sbatch("sleep 3", "-p", "high", "-N2", "--exclusive")
    slurm.wait_until(lambda: slurm.restarts(job) == 1, 60, "the job to be pre-empted")
    slurm.wait_until(lambda: slurm.squeue()[high] == "COMPLETED", 60, "the other job to end")
    slurm.wait_until(lambda: ended(tmp_path), 240, "the grid to end")
    assert main(["--results_dir", str(tmp_path / "results"), "--collect"]) == 0
    assert "4 of 4 cells" in capsys.readouterr().out and samples(tmp_path) == local


def test_a_job_out_of_time_is_queued_again_by_submitits_checkpoint(slurm, local, tiny_folder, tmp_path, capsys):
    assert not shell(*command(tiny_folder, tmp_path, *SLURM, "--max_parallel", "2",
                              *slow_plugin(tmp_path, 0.7))).returncode
    job = running_cell(slurm, tmp_path)
    slurm.run("scancel", "--signal", "USR2", job)  # what SLURM sends before the time limit
    slurm.wait_until(lambda: slurm.restarts(job) == 1, 60, "the job to be queued again")
    board = runs(str(tmp_path / "results"))[-1]
    unit = next(p for p in units(board) if p.job == job)
    assert unit.state == "waiting" and "out of time; queued again" in unit.reason
    slurm.wait_until(lambda: ended(tmp_path), 240, "the grid to end")
    assert main(["--results_dir", str(tmp_path / "results"), "--collect"]) == 0
    assert "4 of 4 cells" in capsys.readouterr().out and samples(tmp_path) == local


def test_cancel_stops_the_jobs_and_keeps_what_is_finished(slurm, tiny_folder, tmp_path, capsys):
    assert not shell(*command(tiny_folder, tmp_path, *SLURM, "--max_parallel", "1",
                              *slow_plugin(tmp_path, 2))).returncode
    running_cell(slurm, tmp_path)
    assert main(["--results_dir", str(tmp_path / "results"), "--cancel"]) == 0
    assert "jobs stopped" in capsys.readouterr().out
    slurm.wait_until(lambda: not slurm.run("squeue", "-h"), 60, "the queue to be empty")
    assert set(states(tmp_path).values()) <= {"failed", "done"}
    assert main(["--results_dir", str(tmp_path / "results"), "--status"]) == 0
    assert "SLURM: CANCELLED" in " ".join(capsys.readouterr().out.split())
    assert main(["--results_dir", str(tmp_path / "results"), "--cancel"]) == 0
    assert "nothing was running or waiting" in capsys.readouterr().out


@pytest.mark.parametrize(("extra", "says"), [
    (["--partition", "nowhere"], "SLURM did not take the scores: invalid partition specified: nowhere"),
    (["--sbatch", "account=lab", "--gpus_per_task", "9"], "SLURM did not take the scores: "),
])
def test_what_slurm_refuses_is_one_sentence_and_leaves_no_run(slurm, tiny_folder, tmp_path, capsys, extra, says):
    assert main(command(tiny_folder, tmp_path, *SLURM, *extra)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0] and not list((tmp_path / "results").rglob("*.json"))


def test_states_with_accounting_are_the_same(slurm_dbd, tiny_folder, tmp_path, capsys):
    """sacct knows what squeue has forgotten; with both there, nothing is counted twice."""
    assert main(command(tiny_folder, tmp_path, *SLURM, "--wait")) == 0
    assert "4 of 4 cells" in capsys.readouterr().out and set(states(tmp_path).values()) == {"done"}
