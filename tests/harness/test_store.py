"""The store under fire: dead owners, other hosts, file systems without flock, full disks, damaged entries, two writers.
"""

import builtins
import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.digest import write_json
from core.errors import StorageError, storage_error
from core.locks import hold, take
from harness.store.entry import Content, stage_key
from harness.store.partial import Partial
from harness.store.store import Missing, Store

REPO = Path(__file__).resolve().parents[2]
HOLDER = """
import socket, sys, time
socket.gethostname = lambda: {host!r}
from pathlib import Path
from core.locks import take
lock = take(Path({path!r}), {seconds})
print("held" if lock else "refused", flush=True)
time.sleep(600)
"""


def holder(path: Path, host: str, seconds: float) -> subprocess.Popen:
    """A process that holds a lock and says so; it calls its machine ``host``."""
    code = HOLDER.format(host=host, path=str(path), seconds=seconds)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "held"
    return process


def this_host() -> str:
    import socket

    return socket.gethostname()


def test_a_lock_of_a_dead_process_on_this_host_is_taken_at_once(tmp_path):
    process = holder(tmp_path / "key", this_host(), 120.0)
    assert take(tmp_path / "key") is None
    process.kill()
    process.wait()
    start = time.monotonic()
    with hold(tmp_path / "key", "it"):
        assert time.monotonic() - start < 5


def test_a_lock_of_another_host_is_taken_only_when_it_is_no_longer_refreshed(tmp_path):
    seconds = 1.6
    process = holder(tmp_path / "key", "another-host", seconds)
    with pytest.raises(TimeoutError):
        _wait_for(tmp_path / "key", seconds, limit=3 * seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    start = time.monotonic()
    _wait_for(tmp_path / "key", seconds, limit=10 * seconds)
    assert time.monotonic() - start > seconds / 2  # its host cannot be asked, so the lease has to run out


def _wait_for(path: Path, seconds: float, limit: float) -> None:
    from core.locks import lease

    lock = lease(path, seconds)
    lock.acquire(timeout=limit)  # filelock's Timeout is a TimeoutError
    lock.release()


def test_locks_work_where_flock_does_not(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    for name in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(fcntl, name, refuse)
    with hold(tmp_path / "key", "it"):
        assert take(tmp_path / "key") is None
    assert take(tmp_path / "key") is not None


def test_a_lock_that_was_never_signed_does_not_wedge_the_grid(tmp_path):
    """Its maker was killed between making the file and writing into it; filelock leaves such a file alone for ever."""
    (tmp_path / "key").touch()
    assert take(tmp_path / "key") is None and take(tmp_path / "key") is None  # a young one may be about to be signed
    os.utime(tmp_path / "key", (0, 0))
    assert take(tmp_path / "key") is None  # given up now
    with hold(tmp_path / "key", "it"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_released_lock_leaves_no_file(tmp_path):
    with hold(tmp_path / "key", "it"):
        pass
    assert list(tmp_path.iterdir()) == []


def put(store: Store, value="v", name="stage"):
    key, identity = stage_key(name, 1, value=value)
    return key, store.put(key, identity, {}, lambda folder: write_json(folder / "value.json", value))


def flip(file) -> None:
    first, *rest = file.read_bytes()
    file.write_bytes(bytes([first ^ 1, *rest]))


DAMAGE = {
    "truncated": lambda f: (f / "value.json").write_bytes((f / "value.json").read_bytes()[:-1]),
    "bit flipped": lambda f: flip(f / "value.json"),
    "file gone": lambda f: (f / "value.json").unlink(),
    "zeros, as after a power cut": lambda f: (f / "value.json").write_bytes(bytes((f / "value.json").stat().st_size)),
    "a folder in its place": lambda f: ((f / "value.json").unlink(), (f / "value.json").mkdir()),
    "meta gone": lambda f: (f / "meta.json").unlink(),
    "meta truncated": lambda f: (f / "meta.json").write_text((f / "meta.json").read_text()[:20]),
    "meta of another kind": lambda f: (f / "meta.json").write_text("[1]"),
    "a file in the entry's place": lambda f: (shutil.rmtree(f), f.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_damage_is_seen_put_aside_and_made_again(tmp_path, damage, caplog):
    store = Store(tmp_path)
    key, entry = put(store)
    DAMAGE[damage](entry)
    assert store.get(key) is None and "is damaged" in caplog.text
    assert (tmp_path / f".damaged-{key}").exists() and not entry.exists()
    put(store)
    assert store.get(key) == entry
    DAMAGE[damage](entry)  # a second time: the first one put aside makes room
    assert store.get(key) is None


def test_two_writers_of_one_entry_leave_the_first_whole(tmp_path):
    store = Store(tmp_path)
    key, identity = stage_key("stage", 1)

    def write_late(folder):
        store.put(key, identity, {"who": "first"}, lambda f: write_json(f / "value.json", 1))
        write_json(folder / "value.json", 1)

    entry = store.put(key, identity, {"who": "second"}, write_late)
    assert store.get(key) and json.loads((entry / "meta.json").read_text())["provenance"] == {"who": "first"}
    assert not list(tmp_path.glob(".tmp-*"))


def test_another_process_may_put_a_damaged_entry_aside_first(tmp_path, monkeypatch):
    store = Store(tmp_path)
    key, entry = put(store)
    (entry / "meta.json").write_text("")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    assert store.get(key) is None


NUMBERS = (errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: errno.errorcode[n])
@pytest.mark.parametrize("name", ("meta.json", "value.json"))
def test_an_entry_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch, number, name):
    """The disk, the file server or the permissions: the grid stops with a sentence, and the entry is there when they
    are mended.
    """
    store = Store(tmp_path)
    key, entry = put(store)
    real = io.open

    def refuse(file, *args, **kwargs):
        if Path(file) == entry / name:
            raise OSError(number, os.strerror(number), str(file))
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(StorageError) as caught:
        patch.setattr(io, "open", refuse)
        patch.setattr(builtins, "open", refuse)
        store.get(key)
    said = str(caught.value)
    assert said.startswith(f"cannot read '{entry / name}': ") and "--cache_dir" not in said and "write" not in said
    assert said.endswith("; nothing is thrown away, and the same command goes on from here")
    assert store.get(key) == entry and not list(tmp_path.glob(".damaged-*"))


def test_no_file_handle_left_is_not_damage(tmp_path):
    """The limit itself, not an imitation: the next free handle is beyond it."""
    store = Store(tmp_path)
    key, entry = put(store)
    limits, free = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        with pytest.raises(StorageError, match=r"cannot read .*too many files are open; raise this shell's limit"):
            store.get(key)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert store.get(key) == entry


def test_an_entry_that_cannot_be_put_aside_stops_the_grid(tmp_path, monkeypatch):
    store = Store(tmp_path)
    key, entry = put(store)
    DAMAGE["truncated"](entry)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    with pytest.raises(StorageError, match=r"cannot write .*the file system is read-only"):
        store.get(key)


@pytest.mark.parametrize("other", ("stored it again", "put it aside", "stored it again, then it was damaged"))
def test_a_slow_reader_does_not_put_aside_what_another_process_has_just_stored(tmp_path, monkeypatch, caplog, other):
    """Between the reader's look at the damaged entry and its rename, the other one's whole get-and-put takes place."""
    store = Store(tmp_path)
    key, entry = put(store)
    DAMAGE["truncated"](entry)
    real = shutil.rmtree

    def meanwhile(path, **kwargs):  # the reader makes room for the entry that it is going to put aside
        monkeypatch.setattr(shutil, "rmtree", real)
        assert Store(tmp_path).get(key) is None
        if other != "put it aside":
            put(Store(tmp_path))
        if other == "stored it again, then it was damaged":
            DAMAGE["meta gone"](entry)
        real(path, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", meanwhile)
    found = store.get(key)
    assert found == (entry if other == "stored it again" else None)
    assert entry.exists() == (other == "stored it again")
    assert caplog.text.count("is damaged") == (2 if other == "stored it again, then it was damaged" else 1)


@pytest.mark.parametrize("number", (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO))
def test_a_disk_that_refuses_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    store = Store(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="nothing is half-written, and the same command goes on from here"):
        put(store)
    assert [p.name for p in tmp_path.iterdir()] == []


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
                                      capture_output=True).returncode:
        pytest.skip("needs to be root and allowed to mount, for a file system that is really full")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_safetensors_wraps_the_systems_error(small_disk):
    """On a file system of its own: safetensors renames over its target, so a device file would be replaced."""
    import numpy as np
    from safetensors.numpy import save_file

    with pytest.raises(Exception) as caught:
        save_file({"x": np.zeros(1 << 18)}, small_disk / "x")
    found = storage_error(caught.value, "x")
    assert isinstance(found, StorageError) and "the disk is full" in str(found)
    assert storage_error(ValueError("os error 28"), "x") is None


def test_a_full_disk_stops_the_grid_and_the_same_command_goes_on(tiny_folder, tmp_path, small_disk, capsys,
                                                                 monkeypatch):
    """The whole command on a file system that runs full: exit 2, one sentence, nothing half-written; with room, it ends
    as if nothing had been.
    """
    import harness.forecast.preflight
    from tests.harness.test_grid import files, run

    # it would refuse at once: here the disk runs full later
    monkeypatch.setattr(harness.forecast.preflight, "check_disk", lambda *_: None)
    (small_disk / "ballast").write_bytes(bytes((1 << 20) - (1 << 14)))
    (tmp_path / "results").mkdir()
    (small_disk / "cache").mkdir()
    (tmp_path / "cache").symlink_to(small_disk / "cache")
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the disk is full; free some space; nothing is half-written" in errors[0]
    assert not list((small_disk / "cache").glob(".tmp-*")) and not list((tmp_path / "results").glob("*.json*"))
    (small_disk / "ballast").unlink()
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    assert run(tiny_folder, tmp_path / "fresh", datasets=("mmlu_pro",)) == 0
    assert files(tmp_path / "results", "*.jsonl") == files(tmp_path / "fresh" / "results", "*.jsonl")


def test_a_file_size_limit_is_named(tiny_folder, tmp_path):
    """ulimit -f, as some clusters set it: the command itself, in a process of its own."""
    flags = ["--model", str(tiny_folder), "--dataset", "mmlu_pro", "--eval_size", "12", "--calib_size", "6",
             "--avg_bits", "4.75", "--quantizer", "rtn", "--threads", "1",
             "--cache_dir", str(tmp_path / "c"), "--results_dir", str(tmp_path / "r")]
    code = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900));sys.path.insert(0, {str(REPO)!r}); from "
            f"harness.cli.main import main; sys.exit(main({flags!r}))")
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert ran.returncode == 2 and len(errors) == 1
    assert "the file size limit of this shell (ulimit -f) is reached" in errors[0]
    assert "Traceback" not in ran.stderr and not list((tmp_path / "c").glob(".tmp-*"))


def test_making_is_looking_up_first_and_its_seconds_are_its_own(tmp_path, monkeypatch):
    """A stage inside another one is not billed twice; what a killed process spent is not lost; --eval_only refuses
    scores, not samples.
    """
    clock = [100.0]
    for module in ("store", "partial"):
        monkeypatch.setattr(f"harness.store.{module}.time.perf_counter", lambda: clock[0])

    def stage(name: str, seconds: float, inner=lambda: None):
        def compute(partial):
            clock[0] += seconds
            partial.save("half", b"done")
            inner()
            return Content(lambda folder: write_json(folder / "value.json", name), {"model": "m"})
        return (*stage_key(name, 1), compute)

    store = Store(tmp_path)
    inner = stage("gradients", 5.0)
    outer = stage("scores", 2.0, lambda: store.make(*inner))
    entry = store.make(*outer)
    assert store.seconds(inner[0]) == 5.0 and store.seconds(outer[0]) == 2.0
    assert not (tmp_path / ".partial" / outer[0]).exists()
    clock[0] += 1000.0
    assert store.make(*outer[:2], lambda partial: pytest.fail("made twice")) == entry
    killed = stage("plan", 7.0)

    def cut(partial):
        killed[2](partial)
        raise KeyboardInterrupt

    def resumed(partial):
        assert partial.load("half") == b"done"
        return Content(lambda folder: write_json(folder / "value.json", 1))

    with pytest.raises(KeyboardInterrupt):
        store.make(*killed[:2], cut)
    store.make(*killed[:2], resumed)
    assert store.seconds(killed[0]) == 7.0
    frozen = Store(tmp_path, eval_only=True)
    assert frozen.make(*outer) == entry and frozen.make(*stage("samples", 1.0))
    with pytest.raises(Missing, match=r"--eval_only: the weights of this cell .* are not in"):
        frozen.make(*stage("weights", 1.0))


def test_a_cache_that_cannot_be_written_serves_what_it_has(tiny_folder, tmp_path, capsys):
    """A dry run, and a grid whose every cell is there; one that has to compute is refused before it starts."""
    from tests.harness.test_grid import files, run

    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    before = files(tmp_path, "*.json*")
    cache = str(tmp_path / "cache")
    if os.geteuid() or subprocess.run(["mount", "--bind", "-o", "ro", cache, cache], capture_output=True).returncode:
        pytest.skip("needs to be root and allowed to mount, for a file system that is really read-only")
    try:
        if subprocess.run(["touch", f"{cache}/x"], capture_output=True).returncode == 0:
            subprocess.run(["mount", "-o", "remount,bind,ro", cache], check=True)
        assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0 and files(tmp_path, "*.json*") == before
        fresh = str(tmp_path / "fresh")  # results that are not there yet, all of them read from the cache
        assert run(tiny_folder, tmp_path, "--results_dir", fresh, datasets=("mmlu_pro",)) == 0
        assert len(list(Path(fresh).glob("*__*.json"))) == len(list((tmp_path / "results").glob("*__*.json")))
        assert run(tiny_folder, tmp_path, "--method", "equal", "--dry_run", datasets=("mmlu_pro",)) == 0
        capsys.readouterr()
        assert run(tiny_folder, tmp_path, "--method", "equal", datasets=("mmlu_pro",)) == 2
        assert "read-only" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", "-l", cache], check=True)


def test_old_leftovers_are_swept_and_young_ones_left(tmp_path):
    store = Store(tmp_path)
    for name in (".tmp-old", ".tmp-young", ".partial/old", ".partial/young"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".tmp-old", ".partial/old"):
        os.utime(tmp_path / name, (0, 0))
    store.sweep()
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    assert left == [".partial", ".partial/young", ".tmp-young"]


def test_a_damaged_piece_is_thrown_away(tmp_path, caplog):
    kept = Partial(tmp_path / "key")
    kept.save("a", b"finished")
    assert kept.load("a") == b"finished" and kept.load("b") is None
    raw = (tmp_path / "key" / "a").read_bytes()
    for bad in (raw[:-1], raw[:-1] + b"?", b"", raw[:10]):
        (tmp_path / "key" / "a").write_bytes(bad)
        assert kept.load("a") is None and not (tmp_path / "key" / "a").exists()
    assert caplog.text.count("is damaged; thrown away and made again") == 4
