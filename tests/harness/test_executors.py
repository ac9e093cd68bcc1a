"""Processes, debug, what is handed to sbatch, and what --status makes of it; a real cluster is in tests/cluster."""

import itertools
import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from harness.jobs.board import Board, find_run, forget_like, process_number, runs
from harness.jobs.executors import visible_gpus
from harness.jobs.options import Options, parse_bytes, parse_minutes
from harness.jobs.post import Post
from harness.jobs.queue import cancel, job_states
from harness.jobs.status import units
from tests.harness.test_grid import files, run

BITS = ("mmlu_pro",)


@pytest.fixture(scope="module")
def local(tiny_folder, tmp_path_factory):
    """The grid run by this process alone."""
    root = tmp_path_factory.mktemp("local")
    assert run(tiny_folder, root, "--method", "TAQ", "TAQoS", datasets=BITS) == 0
    assert not (root / "results" / ".runs").exists(), "a finished run leaves no notice board"
    return root


def test_two_processes_share_a_grid(local, tiny_folder, tmp_path, capsys):
    assert run(tiny_folder, tmp_path, "--method", "TAQ", "TAQoS", "--executor", "process", "--max_parallel", "2",
               datasets=BITS) == 0
    out, err = capsys.readouterr()
    assert "5 of 5 cells" in out and "TAQ on mmlu_pro, 4.75 bits, seed 42 (tiny-llama): accuracy " in err
    assert files(tmp_path / "results", "*.jsonl") == files(local / "results", "*.jsonl")
    lines = [json.loads(line) for p in (tmp_path / "cache" / "journal").iterdir()
             for line in p.read_text().splitlines()]
    assert max(Counter(line["key"] for line in lines).values()) == 1
    assert not (tmp_path / "results" / ".runs").exists()


def test_a_cell_whose_weights_are_being_solved_is_put_off(tiny_folder, tmp_path):
    """uniform is solved once for two data sets: whoever comes second takes another cell meanwhile."""
    from harness.stages.cell import being_made, plan_key
    from harness.stages.plan import plan
    from harness.stages.weights import weights_key
    from tests.harness.bench import cases_of

    cases = cases_of(models=(str(tiny_folder),), methods=("fp16",), quantizer="gptq", device="cpu", threads=1,
                     eval_size=8, calib_size=8, cache_dir=str(tmp_path / "cache"),
                     results_dir=str(tmp_path / "results"))
    uniform = [case for case in cases if case.method.name == "uniform"]
    assert len({plan_key(case)[0] for case in uniform}) == 1 < len(uniform)
    with uniform[0].store.lock(plan_key(uniform[0])[0], "plan"):
        assert all(map(being_made, uniform))
    assert not any(map(being_made, uniform))
    key = weights_key(uniform[0], plan(uniform[0]).id)[0]
    with uniform[0].store.lock(key, "weights"):
        assert all(map(being_made, uniform))
        assert not any(being_made(case) for case in cases if case.method.name != "uniform")
    assert not any(map(being_made, uniform))


def test_another_cell_is_run_while_one_waits(tiny_folder, tmp_path, monkeypatch):
    """And when nothing else is left, one that still looks busy is run as well: its maker may be dead."""
    from harness.jobs import loop
    from tests.harness.bench import cases_of

    cases = cases_of(models=(str(tiny_folder),), methods=("fp16",), device="cpu", threads=1, datasets=BITS,
                     eval_size=8, calib_size=8, cache_dir=str(tmp_path / "cache"),
                     results_dir=str(tmp_path / "results"))
    ran, real = [], loop.run_unit
    monkeypatch.setattr(loop, "run_unit", lambda case, *rest: ran.append(case.method.name) or real(case, *rest))
    monkeypatch.setattr(loop, "being_made", lambda case: case.method.name == "uniform")
    monkeypatch.setattr(loop, "LOOK_S", 0.01)
    assert all(result.ok for result in loop.run_grid(cases))
    assert sorted(ran) == ["fp16", "random", "uniform"] and ran[-1] == "uniform"


@pytest.mark.slow
def test_a_killed_worker_is_replaced_by_the_others(local, tiny_folder, tmp_path, capsys):
    """One of two workers dies by SIGKILL in the middle; the other one takes its cell over."""
    import threading

    done: list[int] = []
    asked = ("--method", "TAQ", "TAQoS", "--executor", "process")
    thread = threading.Thread(target=lambda: done.append(run(tiny_folder, tmp_path, *asked, datasets=BITS)))
    thread.start()
    victim = None
    while thread.is_alive() and victim is None:
        time.sleep(0.05)
        for path in (tmp_path / "results").glob(".runs/*/state/cell-*.json"):
            state = json.loads(path.read_text())
            if state["state"] == "running":
                victim = process_number(state["worker"])
    os.kill(victim, signal.SIGKILL)
    thread.join()
    assert done == [0] and files(tmp_path / "results", "*.jsonl") == files(local / "results", "*.jsonl")


def test_debug_runs_the_parts_in_this_process(local, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pdb.post_mortem", lambda: pytest.fail("a unit failed"))
    assert run(tiny_folder, tmp_path, "--method", "TAQ", "--executor", "debug", datasets=BITS) == 0
    mine = files(tmp_path / "results", "*.jsonl")
    assert mine and mine.items() <= files(local / "results", "*.jsonl").items()


def test_a_job_of_several_cells_loads_the_model_once(local, tiny_folder, tmp_path, monkeypatch):
    """One job of scores and one of all cells; a cell that cannot run there fails alone."""
    import harness.forecast.preflight
    import harness.stages.model

    loads, plain = [], harness.stages.model.load_model
    monkeypatch.setattr(harness.stages.model, "load_model", lambda *args, **kw: loads.append(1) or plain(*args, **kw))
    monkeypatch.setattr("pdb.post_mortem", lambda: pytest.fail("a unit failed"))
    flags = ("--method", "TAQ", "--executor", "debug", "--cells_per_job", "9")
    assert run(tiny_folder, tmp_path, *flags, datasets=BITS) == 0
    mine, whole = (files(root / "results", "*.jsonl") for root in (tmp_path, local))
    assert mine and mine.items() <= whole.items()
    assert len(loads) == 4  # the preflight, a job each for the scores of random and TAQ, one job for four cells
    names = [path.stem for path in (tmp_path / "results").glob("*.json")]

    whole_check = harness.forecast.preflight.preflight

    def too_small(cases, limit, only):
        if any(case.cell.method.name == "fp16" for case in only):
            raise UserError("it does not fit here")
        whole_check(cases, limit=limit, only=only)

    monkeypatch.setattr(harness.forecast.preflight, "preflight", too_small)
    other = tmp_path / "other"
    assert run(tiny_folder, other, *flags, datasets=BITS) == 1
    assert len([*(other / "results").glob("*.json")]) == len(names) - 1
    assert [(u.label.split()[0], u.reason) for u in units(find_run(str(other / "results"), None))
            if u.state == "failed"] == [("fp16", "it does not fit here")]


def test_status_and_collect_of_a_run_that_was_interrupted(tiny_folder, tmp_path, monkeypatch, capsys):
    import harness.stages.samples
    from harness.cli.main import main

    real = harness.stages.samples.run_batch

    def stop(*args, **kwargs):
        if list((tmp_path / "results").glob("*fp16*.json")):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    where = ["--results_dir", str(tmp_path / "results")]
    monkeypatch.setattr(harness.stages.samples, "run_batch", stop)
    assert run(tiny_folder, tmp_path, "--method", "fp16", datasets=BITS) == 130
    monkeypatch.setattr(harness.stages.samples, "run_batch", real)
    assert main([*where, "--status"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 cells: 1 done, 0 running, 2 failed, 0 waiting" in shown and "interrupted" in shown
    assert main([*where, "--collect"]) == 1
    shown = capsys.readouterr().out
    assert "1 of 3 cells" in shown and "failed: uniform on mmlu_pro" in shown and "fp16" in shown
    assert main([*where, "--status",
                 "20200101-000000-0000"]) == 2 and "no run '20200101-000000-0000'" in capsys.readouterr().err
    # the same command: it takes the interrupted run's board down
    assert run(tiny_folder, tmp_path, "--method", "fp16", datasets=BITS) == 0
    assert not (tmp_path / "results" / ".runs").exists()
    capsys.readouterr()
    assert main([*where, "--status"]) == 2 and "no run is recorded in" in capsys.readouterr().err


def fake_slurm(folder: Path, monkeypatch, squeue: str = "", sacct: str = "exit 1", refuse: str = "") -> Path:
    """Programs named like SLURM's: sbatch keeps what it is given, squeue and sacct say what they are told."""
    keep = f'n=$(($(ls {folder}/*.sh 2>/dev/null | wc -l) + 70)); cp "$1" {folder}/$n.sh; echo "Submitted batch job $n"'
    sbatch = f'echo "{refuse}" >&2; exit 1' if refuse else keep
    for name, text in (("sbatch", sbatch), ("srun", "true"), ("squeue", squeue), ("sacct", sacct),
                       ("scancel", f'echo "$@" > {folder}/cancelled')):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def bin_folder(tmp_path) -> Path:
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def test_what_sbatch_is_given(tiny_folder, tmp_path, bin_folder, monkeypatch, capsys):
    """Two arrays: scores and cells without any, then the cells that wait for them; every flag arrives."""
    fake_slurm(bin_folder, monkeypatch, squeue='printf "70_0|PENDING|Priority|x\\n71_0|PENDING|Dependency|x\\n"')
    assert run(tiny_folder, tmp_path, "--method", "TAQ", "TAQoS", "--executor", "slurm", "--partition", "gpu",
               "--gpus_per_task", "1", "--cpus_per_task", "3",
               "--time", "1-12:30:00", "--mem", "24G", "--max_parallel", "5", "--setup", "module load cuda", "--setup",
               "ulimit -c 0",
               "--sbatch", "account=lab", "qos=low", "exclusive", "--hf_token", "hf_secret", datasets=BITS) == 0
    first, second = (bin_folder / "70.sh").read_text(), (bin_folder / "71.sh").read_text()
    for text in (first, second):
        for line in ("--partition=gpu", "--gpus-per-node=1", "--cpus-per-task=3", "--time=2190", "--mem=24576M",
                     "--account=lab", "--qos=low",
                     "--exclusive", "--requeue", "--signal=USR2@90", "--open-mode=append"):
            assert f"#SBATCH {line}\n" in text, line
        assert "\nmodule load cuda\nulimit -c 0\n" in text and "export PYTHONPATH=" in text and "hf_secret" not in text
    # the scores of random, and of TAQ and TAQoS, which share a pass; fp16 and uniform
    assert "#SBATCH --array=0-3%4" in first and "dependency" not in first
    assert "#SBATCH --array=0-2%3" in second and "#SBATCH --dependency=afterany:70\n" in second
    board = find_run(str(tmp_path / "results"), None)
    assert not any(b"hf_secret" in p.read_bytes() for p in board.folder.rglob("*") if p.is_file())
    assert board.grid().threads == 1 and board.run["memory"] == 24 * 2**30  # --threads was given; else --cpus_per_task


def test_jobs_of_several_cells(tiny_folder, tmp_path, bin_folder, monkeypatch):
    fake_slurm(bin_folder, monkeypatch, squeue='printf "70_0|PENDING|Priority|x\\n71_0|PENDING|Dependency|x\\n"')
    assert run(tiny_folder, tmp_path, "--method", "TAQ", "TAQoS", "--executor", "slurm", "--cells_per_job", "2",
               datasets=BITS) == 0
    first, second = (bin_folder / "70.sh").read_text(), (bin_folder / "71.sh").read_text()
    assert "#SBATCH --array=0-2%" in first and "#SBATCH --array=0-1%" in second  # two groups of scores, five cells
    jobs = find_run(str(tmp_path / "results"), None).jobs()
    assert len([unit for unit in jobs if unit.startswith("cell-")]) == 5
    assert Counter(Counter(jobs.values()).values()) == {1: 3, 2: 2}


def test_a_cell_behind_others_of_its_job_waits(tiny_grid_board, monkeypatch):
    monkeypatch.setattr("harness.jobs.status.job_states", lambda numbers, run: {"7_0": ("RUNNING", "")})
    tiny_grid_board.write_jobs({"cell-0": "7_0", "cell-1": "7_0"})
    tiny_grid_board.set("cell-0", "done")
    states = [(unit.state, unit.reason) for unit in units(tiny_grid_board) if unit.name in ("cell-0", "cell-1")]
    assert states == [("done", ""), ("waiting", "behind other cells of its job")]


def test_what_sbatch_refuses(tiny_folder, tmp_path, bin_folder, monkeypatch, capsys):
    fake_slurm(bin_folder, monkeypatch, refuse="sbatch: error: Batch job submission failed: Invalid account specified")
    assert run(tiny_folder, tmp_path, "--executor", "slurm", datasets=BITS) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "SLURM did not take the scores: Batch job submission failed: Invalid account" in errors[0]
    assert not (tmp_path / "results" / ".runs").exists()


def test_without_slurm(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(tiny_folder, tmp_path, "--executor", "slurm", datasets=BITS) == 2
    assert "is not on this machine's path" in capsys.readouterr().err and not (tmp_path / "results" / ".runs").exists()


@pytest.mark.parametrize(("squeue", "sacct", "found"), [
    ('printf "7_0|RUNNING|None|t-run\\n7_1|PENDING|Resources|t-run\\n"', "exit 1",
     {"7_0": ("RUNNING", ""), "7_1": ("PENDING", "Resources")}),
    ('printf "7_0|RUNNING|None|t-run\\n"', 'printf "7_0|PENDING|None|t-run\\n7_1|CANCELLED by 0|None|t-run\\n"',
     {"7_0": ("RUNNING", ""), "7_1": ("CANCELLED", "")}),
    # a number given out again
    ('printf "7_0|RUNNING|None|another\\n7_1|RUNNING|None|t-run\\n"', "exit 1", {"7_1": ("RUNNING", "")}),
    ('echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1', "exit 1", {}),
    ('echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1', 'printf "7_0|OUT_OF_MEMORY|None|t-run\\n"',
     {"7_0": ("OUT_OF_MEMORY", "")}),
])
def test_states_from_squeue_then_sacct(bin_folder, monkeypatch, squeue, sacct, found):
    fake_slurm(bin_folder, monkeypatch, squeue, sacct)
    assert job_states(["7_0", "7_1"], "run") == found


def test_a_queue_that_does_not_answer_is_an_error_and_not_a_dead_job(bin_folder, monkeypatch):
    fake_slurm(bin_folder, monkeypatch, 'echo "squeue: fatal: Could not establish a configuration source" >&2; exit 1')
    with pytest.raises(UserError,
                       match=r"squeue fails here .*configuration source.*; ask on a machine of the jobs' cluster"):
        job_states(["7_0"], "run")


@pytest.mark.parametrize(("job", "said", "state", "why"), [
    (("PENDING", "Resources"), None, "waiting", "Resources"),
    (("PENDING", "BeginTime"), {"state": "waiting", "reason": "pre-empted"}, "waiting", "BeginTime, pre-empted"),
    (("RUNNING", ""), None, "running", "starting"),
    (("FAILED", "NonZeroExitCode"), {"state": "running", "what": "x 1/2", "worker": "w"}, "failed",
     "SLURM: FAILED (NonZeroExitCode)"),
    (("OUT_OF_MEMORY", ""), None, "failed", "SLURM: OUT_OF_MEMORY"),
    (("TIMEOUT", ""), None, "failed", "SLURM: TIMEOUT"),
    (("CANCELLED", ""), None, "failed", "SLURM: CANCELLED"), (("NODE_FAIL", ""), None, "failed", "SLURM: NODE_FAIL"),
    (("COMPLETED", ""), None, "failed", "pre-empted or out of time too often"),
    # killed and queued again
    (("RUNNING", ""), {"state": "running", "what": "x 1/2", "worker": "dead"}, "running", "starting again"),
    (("COMPLETED", ""), {"state": "done"}, "done", ""),
    (("RUNNING", ""), {"state": "failed", "error": "boom"}, "failed", "boom"),
    (None, None, "failed", "never started, and no job of this run is left"),
])
def test_what_a_cell_is_said_to_be(tiny_grid_board, monkeypatch, job, said, state, why):
    monkeypatch.setattr("harness.jobs.status.job_states", lambda numbers, run: {"7_0": job} if job else {})
    tiny_grid_board.write_jobs({"cell-0": "7_0"})
    if said:
        tiny_grid_board.set("cell-0", said.pop("state"), **said)
    found = next(p for p in units(tiny_grid_board) if p.name == "cell-0")
    assert (found.state, why in found.reason) == (state, True), found.reason


@pytest.fixture
def tiny_grid_board(tmp_path) -> Board:
    from harness.presets import build_grid

    return Board.new(build_grid("demo", datasets=BITS, results_dir=str(tmp_path / "results")), "slurm", [], [])


def test_a_worker_is_alive_as_long_as_its_lease(tiny_grid_board):
    tiny_grid_board.close()
    post = Post(tiny_grid_board, "all")
    (name,) = tiny_grid_board.workers()
    assert tiny_grid_board.alive(name)
    post.close()
    assert tiny_grid_board.workers() == [] and not tiny_grid_board.alive(name)
    assert [b.id for b in runs(str(tiny_grid_board.folder.parents[1]))] == [tiny_grid_board.id]


def test_a_run_that_is_being_launched_is_not_taken_down_and_a_dead_one_is(tmp_path):
    """Between the run's writing down and its first worker's start only who launches it is there."""
    from harness.presets import build_grid

    grid = build_grid("demo", datasets=BITS, results_dir=str(tmp_path / "results"))
    board = Board.new(grid, "process", [], [])
    forget_like(grid)
    assert [b.id for b in runs(grid.results_dir)] == [board.id] and units(board)[0].state == "waiting"
    board.close()
    assert units(board)[0].state == "failed"
    board.set("end-1", "failed", error="the worker's own words")
    assert "the worker's own words" in units(board)[0].reason
    forget_like(grid)
    assert runs(grid.results_dir) == []


@pytest.mark.parametrize("host", ["node", "node-7", "gpu-7-cell-3"])
@pytest.mark.parametrize("worker", ["cell-3", "scores-0", "all"])
def test_a_worker_is_stopped_by_its_process_number(tmp_path, monkeypatch, host, worker):
    """The worker of a debug run is named after its unit, whose name has a dash of its own."""
    from harness.presets import build_grid

    killed = []
    monkeypatch.setattr("socket.gethostname", lambda: host)
    monkeypatch.setattr("os.kill", lambda number, by: killed.append((number, by)) if by else None)  # 0 asks
    board = Board.new(build_grid("demo", results_dir=str(tmp_path / "results")), "debug", [], [])
    board.close()
    post = Post(board, worker)
    assert cancel(board) == [f"{host}-{os.getpid()}-{worker}"] and killed == [(os.getpid(), signal.SIGINT)]
    post.close()


def test_a_board_that_cannot_be_read_hides_no_other(tiny_grid_board):
    other = tiny_grid_board.folder.with_name("20990101-000000-ffff")
    other.mkdir()
    (other / "run.json").write_text('{"schema": 99}')
    where = str(tiny_grid_board.folder.parents[1])
    assert [b.id for b in runs(where)] == [tiny_grid_board.id] and find_run(where, None).id == tiny_grid_board.id


def test_a_chain_of_runs_is_asked_once_each(tmp_path, monkeypatch):
    """Cells that an earlier run has in hand are looked up there, once a run and not once a cell."""
    from harness.presets import build_grid

    asked: list[str] = []
    monkeypatch.setattr("harness.jobs.status.job_states", lambda numbers, run: asked.append(run) or {})
    boards = [Board.new(build_grid("demo", results_dir=str(tmp_path / "results")), "slurm", [], []) for _ in range(4)]
    for board in boards:
        board.write_jobs({"cell-0": "7_0"})
    for earlier, later in itertools.pairwise(boards):
        for cell in range(18):
            later.set(f"cell-{cell}", "elsewhere", run=earlier.folder.name, there=f"cell-{cell}")
    assert len(units(boards[-1])) == 5 * 3 and len(asked) == len(boards)


def test_a_claim_of_a_machine_that_died_is_given_up(local, tiny_folder, tmp_path, monkeypatch):
    """Another host held a cell and went away without a word: the grid waits for its lease to run out, and goes on."""
    import core.locks
    import harness.store.store
    from report.records import load_results
    from tests.harness.test_store import holder

    key = next(r.cell for r in load_results(local / "results") if r.method.name == "uniform")
    (tmp_path / "cache" / ".leases").mkdir(parents=True)
    process = holder(tmp_path / "cache" / ".leases" / f"cell-{key}", "another-host", 1.6)
    process.kill()
    process.wait()
    monkeypatch.setattr(harness.store.store, "lease", lambda path: core.locks.lease(path, 1.6))
    assert run(tiny_folder, tmp_path, "--method", "fp16", datasets=BITS) == 0


def test_the_identity_of_a_cell_follows_its_data_and_its_plugins(local, tiny_folder, tmp_path):
    """What an earlier run on the cluster did counts only if it is the same: other data or another plugin under the same
    name is not.
    """
    from harness.jobs.launch import identity
    from tests.harness.bench import cases_of

    rows = [json.dumps({"question_id": i, "question": f"what is {i}?", "options": ["a", "b"], "answer": "A",
                        "answer_index": 0, "category": "c", "src": "", "cot_content": ""}) for i in range(40)]
    plugin = tmp_path / "plugin.py"
    found = []
    for change in ("", "x"):
        (tmp_path / f"data{change}" / "mmlu_pro").mkdir(parents=True)
        text = "\n".join(rows).replace("what is", f"what is{change}")
        (tmp_path / f"data{change}" / "mmlu_pro" / "test.jsonl").write_text(text)
        for text in ("1", "2"):
            plugin.write_text(text)
            cases = cases_of(models=(str(tiny_folder),), datasets=BITS, data_dir=str(tmp_path / f"data{change}"),
                             threads=1, device="cpu", cache_dir=str(tmp_path / "c"), calib_size=4, eval_size=20)
            found.append(identity(cases[0], [], [str(plugin)]))
    assert len(set(found)) == 4


def test_a_cancel_that_slurm_refuses(tiny_grid_board, bin_folder, monkeypatch, capsys):
    from harness.cli.main import main

    tiny_grid_board.write_jobs({"cell-0": "7_0"})
    fake_slurm(bin_folder, monkeypatch, f'echo "7_0|RUNNING|None|taq-cells-{tiny_grid_board.id}"')
    (bin_folder / "scancel").write_text('#!/bin/sh\necho "scancel: error: Access/permission denied" >&2; exit 1\n')
    assert main(["--results_dir", str(tiny_grid_board.folder.parents[1]), "--cancel"]) == 2
    assert "Access/permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--mem", "4G"], ["--time", "30"], ["--wait"], ["--max_parallel", "2"],
                                   ["--cpus_per_task", "1"],
                                   ["--gpus_per_task", "1"], ["--partition", "p"], ["--max_requeues", "3"],
                                   ["--executor", "process", "--time", "30"]])
def test_a_flag_that_would_do_nothing_is_refused(tiny_folder, tmp_path, capsys, given):
    assert run(tiny_folder, tmp_path, *given) == 2
    assert "does nothing with --executor" in capsys.readouterr().err and not (tmp_path / "results").exists()


@pytest.mark.parametrize(("asked", "found"), [(None, [0, 1, 2, 3]), ("2,3", [2, 3]), ("1", [1])])
def test_workers_keep_to_the_gpus_that_were_given(monkeypatch, asked, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if asked:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert visible_gpus(4 if asked is None else len(found)) == found


@pytest.mark.parametrize(("text", "minutes"), [("90", 90), ("2:30:00", 150), ("1-12:00:00", 2160), ("1-12", 2160),
                                               ("0:00:30", 1), ("5:30", 6)])
def test_times(text, minutes):
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize(("text", "size"), [("16", 16 * 2**30), ("16GB", 16 * 2**30), ("500M", 500 * 2**20),
                                            ("1.5T", 1536 * 2**30)])
def test_sizes(text, size):
    assert parse_bytes(text) == size


def test_a_cpu_jobs_threads_are_its_cores():
    base = Options(executor="slurm")
    assert base.threads == 4 and replace(base, cpus_per_task=8).threads == 8 and Options().threads == 0
    assert Options(executor="process", max_parallel=1).threads == len(os.sched_getaffinity(0))
