"""The cluster itself: it comes up, runs submitit's arrays, loses jobs as a real one does, and leaves nothing behind."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import submitit

from tests.cluster.lab import CANNOT, SCRIPT, Lab, NoLab

PROC = Path("/proc")


def running(pid: int) -> bool:
    """Not gone, and not a dead one that nobody has collected yet."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def holding(folder: Path) -> set[int]:
    """Processes that have a log of that lab open: every daemon and job step does."""
    found = set()
    for link in PROC.glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith(f"{folder}/log/"):
                found.add(int(link.parts[2]))
        except OSError:  # closed meanwhile
            continue
    return found


@pytest.fixture
def own_lab():
    """A folder for a lab of the test's own, emptied of processes whatever the test did."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-lab-own-"))
    yield folder
    Lab(folder).stop()


def test_two_idle_nodes_and_four_partitions(slurm):
    assert slurm.idle_nodes() == {"n1", "n2"}
    assert set(slurm.run("sinfo", "-h", "-o", "%P").split()) == {"debug*", "short", "low", "high"}
    with pytest.raises(RuntimeError, match="accounting storage is disabled"):
        slurm.run("sacct")


def test_array_of_submitit_jobs_returns(slurm, tmp_path):
    executor = submitit.SlurmExecutor(tmp_path, max_num_timeout=0)
    assert executor.python.startswith(sys.executable)
    executor.update_parameters(time=5, partition="debug", array_parallelism=2, mem="1GB")
    jobs = executor.map_array(os.getenv, ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_PARTITION"])
    array = jobs[0].job_id.partition("_")[0]
    assert [job.result() for job in jobs] == ["0", array, "debug"]
    slurm.wait_until(lambda: {slurm.squeue()[job.job_id] for job in jobs} == {"COMPLETED"}, 10,
                     "the array to be completed")


def test_killed_processes_fail_their_element_and_no_other(slurm):
    array = slurm.sbatch("srun sleep 300", "--array=0-1")
    killed, other = f"{array}_0", f"{array}_1"
    slurm.wait_until(lambda: all(len(slurm.job_processes(job)) >= 3 for job in (killed, other)), 20,
                     "both elements to run")
    pids = slurm.kill_job_processes(killed)
    slurm.wait_until(lambda: slurm.squeue()[killed] == "FAILED", 20, "the killed element to be FAILED")
    assert not any(running(pid) for pid in pids)
    assert slurm.squeue()[other] == "RUNNING"


def test_memory_is_shared_out_and_kept_to(slurm):
    node = int(slurm.run("sinfo", "-h", "-n", "n1", "-p", "short", "-o", "%m"))
    first, second = (slurm.sbatch("srun sleep 300", "-w", "n1", f"--mem={node * 2 // 3}") for _ in range(2))
    slurm.wait_until(lambda: slurm.squeue()[first] == "RUNNING", 20, "the first job to run")
    slurm.wait_until(lambda: slurm.squeue("%r")[second] == "Resources", 20,
                     "the second job to wait for memory, its CPU being free")
    greedy = slurm.sbatch(f"srun {sys.executable} -c 'held = b\"x\" * 2**29; import time; time.sleep(300)'", "-w", "n2",
                          "--mem=100")
    slurm.wait_until(lambda: slurm.squeue()[greedy] == "FAILED", 20,
                     "the job that takes more than it asked for to be ended")


def test_high_priority_job_takes_the_place_of_a_low_one_which_runs_again(slurm, tmp_path):
    executor = submitit.SlurmExecutor(tmp_path)
    executor.update_parameters(time=20, partition="low", mem="1GB")
    # deaf to SIGTERM, as submitit's own process is: an exception on the way out would be taken for the job's result,
    # requeued or not
    script = "trap '' TERM; echo ${SLURM_RESTART_COUNT:-first}; test $SLURM_RESTART_COUNT || sleep 300"
    low = executor.submit(subprocess.check_output, ["sh", "-c", script])
    slurm.wait_until(lambda: "Loading pickle" in (low.stdout() or ""), 20, "the low job to be at work")
    high = slurm.sbatch("srun sleep 300", "-p", "high", "-N2", "--exclusive")
    slurm.wait_until(lambda: slurm.squeue()[high] == "RUNNING", 30, "the high job to run")
    assert (slurm.squeue()[low.job_id], slurm.restarts(low.job_id)) == ("PENDING", 1)
    slurm.run("scancel", high)
    # not the usual two minutes
    slurm.wait_until(lambda: slurm.squeue()[low.job_id] != "PENDING", 30, "the low job to run again")
    assert low.result() == b"1\n"


def test_debug_jobs_keep_their_place(slurm):
    job = slurm.sbatch("srun sleep 300", "-N2", "--exclusive")
    slurm.wait_until(lambda: slurm.squeue()[job] == "RUNNING", 20, "the job to run")
    high = slurm.sbatch("true", "-p", "high")
    slurm.wait_until(lambda: slurm.squeue("%r")[high] == "Resources", 20, "the high job to wait")
    assert (slurm.squeue()[job], slurm.restarts(job)) == ("RUNNING", 0)


def test_each_node_has_two_gpus(slurm, tmp_path):
    try:
        os.mknod(tmp_path / "gpu", stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no fake GPUs here: device files may not be made")
    executor = submitit.SlurmExecutor(tmp_path)
    executor.update_parameters(time=5, gpus_per_node=1, mem="1GB")
    first, second = executor.map_array(os.getenv, ["CUDA_VISIBLE_DEVICES"] * 2)
    assert {first.result(), second.result()} <= {"0", "1"}


def test_accounting_tells_the_states(slurm_dbd):
    good, bad = slurm_dbd.sbatch("true"), slurm_dbd.sbatch("exit 3")

    def told() -> dict[str, str]:
        lines = slurm_dbd.run("sacct", "-X", "-n", "-P", "-o", "JobID,State").splitlines()
        return dict(line.split("|") for line in lines)

    slurm_dbd.wait_until(lambda: (told().get(good), told().get(bad)) == ("COMPLETED", "FAILED"), 30,
                         "sacct to tell both states")


def test_comes_up_within_half_a_minute_and_leaves_nothing(own_lab, slurm):
    lab, begin = Lab(own_lab), time.monotonic()
    lab.start()
    assert time.monotonic() - begin < 30
    job = lab.sbatch("srun sh -c 'trap \"\" TERM INT; setsid sleep 300 & sleep 300'")
    pids = set(lab.wait_until(lambda: len(found := lab.job_processes(job)) >= 5 and found, 20,
                              "the job and what it left behind"))
    pids |= holding(own_lab)
    assert len(pids) >= 5 + 6  # munged, slurmctld and its helper, two slurmd, the job's steps
    assert lab.script("stop").returncode == 0
    assert not [pid for pid in pids if running(pid)]
    assert not holding(own_lab)
    assert slurm.idle_nodes() == {"n1", "n2"}, "the other lab was hit"


def test_start_that_fails_half_way_leaves_nothing(own_lab, slurm, tmp_path):
    (tmp_path / "slurmd").write_text("#!/bin/sh\nexec /bin/false\n")
    (tmp_path / "slurmd").chmod(0o755)
    with pytest.raises(RuntimeError, match="the lab did not come up"):
        Lab(own_lab, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}).start()
    assert (own_lab / "log" / "slurmctld.log").exists(), "it failed before there was anything to leave behind"
    assert not holding(own_lab)


def test_where_it_cannot_be_installed_one_line_says_so(own_lab, tmp_path):
    for name in ("bash", "realpath", "dirname", "id", "find", "cut", "sort", "grep", "xargs", "mkdir", "chmod", "rm",
                 "wc"):
        (tmp_path / name).symlink_to(shutil.which(name))
    with pytest.raises(NoLab) as error:
        Lab(own_lab, env={"PATH": str(tmp_path)}).start()
    lacks = "slurm-wlm munge are not installed, and there is no apt-get to install them"
    assert str(error.value) == f"no SLURM here: {lacks}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process as somebody else")
def test_it_needs_root(own_lab):
    own_lab.chmod(0o755)
    script = shutil.copy(SCRIPT, own_lab)  # the repository may be closed to others
    done = subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", script, "start"], env=Lab(own_lab).env,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (CANNOT,
                                              "no SLURM here: the daemons must be started by root, not by user 65534\n")
