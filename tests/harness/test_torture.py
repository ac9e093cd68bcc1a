"""A grid that is killed again and again, and one that several processes share: the bytes of an undisturbed run, nothing
done twice.
"""

import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
KILLS = 30
SHORTEST_S = 0.05  # no process is killed sooner after it began
VOLATILE = {"process_peak_bytes", "device_peak_bytes", "versions", "seconds", "made"}
pytestmark = pytest.mark.slow


def flags(tiny: Path, root: Path) -> list[str]:
    """A grid with every kind of stage: scores, gradients, corrupted model, oracle, solved weights, codebooks,
    generation.
    """
    return ["--model", str(tiny), "--dataset", "mmlu_pro", "trivia_qa", "--eval_size", "24", "--calib_size", "8",
            "--avg_bits", "4.75", "5.5", "--calib_tokens", "600", "--oracle_docs", "3", "--num_fewshot", "1",
            "--method", "TAQ", "TAQoS", "TAQO-oracle", "TaCQ", "SPQR-native", "SqueezeLLM-native", "--quantizer",
            "gptq", "--device", "cpu",
            "--threads", "1", "--max_new_tokens", "4", "--batch_tokens", "400", "--cache_dir", str(root / "cache"),
            "--results_dir", str(root / "results")]


class Zygote:
    """Forks commands; knows how each of them ended."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, str(REPO / "tests" / "zygote.py")], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue = queue.Queue()
        threading.Thread(target=lambda: [self.lines.put(line.split()) for line in self.process.stdout],
                         daemon=True).start()
        self.ended: dict[int, int] = {}
        assert self.lines.get(timeout=120)[1] == "ready"

    def start(self, argv: list[str], log: Path) -> int:
        self.process.stdin.write(json.dumps({"argv": argv, "log": str(log)}) + "\n")
        self.process.stdin.flush()
        while True:
            number, word = self.lines.get(timeout=60)
            if word == "started":
                return int(number)
            self.ended[int(number)] = int(word)

    def wait(self, number: int, seconds: float) -> int | None:
        """The exit status, or None if it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while number not in self.ended:
            try:
                found, word = self.lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return None
            self.ended[int(found)] = int(word)
        return self.ended[number]

    def kill(self, number: int) -> int:
        """The exit status: 137, or the command's own if it ended just before."""
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        status = self.wait(number, 60)
        assert status is not None, f"{number} does not die"
        return status


@pytest.fixture(scope="module")
def zygote():
    found = Zygote()
    yield found
    found.process.kill()


@pytest.fixture(scope="module")
def undisturbed(zygote, tiny_folder, tmp_path_factory) -> tuple[dict[str, object], float]:
    """What the grid leaves when nobody touches it, and the seconds it takes on this machine."""
    root, start = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    finish(zygote, tiny_folder, root)
    seconds = time.monotonic() - start
    return content(root), seconds


def finish(zygote: Zygote, tiny: Path, root: Path) -> None:
    """Run the grid to its end, from wherever it is."""
    child = zygote.start(flags(tiny, root), root / "log")
    assert zygote.wait(child, 600) == 0, (root / "log").read_text()[-3000:]


def content(root: Path) -> dict[str, object]:
    """All that a run leaves and that must not depend on how it went: samples, results, and every file of the store but
    its clock.
    """
    found: dict[str, object] = {}
    for path in sorted((root / "results").glob("*.json*")):
        if path.suffix == ".jsonl":
            found[path.name] = path.read_bytes()
        else:
            found[path.name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in VOLATILE}
            found[path.name]["bits"]["notes"].get("solver", {}).pop("seconds", None)
    for path in sorted((root / "cache").glob("[0-9a-f]*/*")):
        if path.name != "meta.json":
            found[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    return found


def journal(root: Path) -> Counter:
    """How often each entry of the store, and each part of one, was finished, by all processes together."""
    lines = [line for path in (root / "cache" / "journal").iterdir() for line in path.read_text().splitlines()]
    return Counter((entry["stage"], entry["key"]) for entry in map(json.loads, lines))


def check(root: Path, wanted: dict[str, object]) -> None:
    """A finished grid: the bytes of the undisturbed one, nothing stored was made again, nothing is left over."""
    assert content(root) == wanted
    twice = {what: count for what, count in journal(root).items() if count > 1}
    assert not twice, f"made again after they were stored: {twice}"
    assert not [p for p in (root / "cache" / ".partial").rglob("*")
                if p.is_file()], "parts of finished stages were left"
    assert not list((root / "cache").glob(".damaged-*"))
    # a kill in the making or the taking down of a run's board leaves a folder without run.json, which nothing reads
    assert not list((root / "results" / ".runs").glob("*/run.json")), "a finished run is still on the board"


def age_unsigned_locks(root: Path) -> None:
    """Let the minutes pass at once after which a lock is given up whose maker was killed before it wrote its name into
    it.
    """
    for lock in (root / "cache" / ".leases").glob("*"):
        if lock.stat().st_size == 0:
            os.utime(lock, (0, 0))


def test_killed_at_thirty_random_moments(zygote, undisturbed, tiny_folder, tmp_path):
    """Every kill is a SIGKILL while the grid works.  Lives are as long as this machine is slow; a grid that ends all
    the same is followed by a new one, with lives half as long, so that there are thirty kills on any machine."""
    wanted, seconds = undisturbed
    rng, longest, kills, roots = random.Random(0), 2 * seconds / KILLS, 0, [tmp_path / "0"]
    roots[-1].mkdir()
    while kills < KILLS:
        child = zygote.start(flags(tiny_folder, roots[-1]), roots[-1] / "log")
        status = zygote.wait(child, max(SHORTEST_S, rng.uniform(0.0, longest)))
        if (zygote.kill(child) if status is None else status) == 137:
            kills += 1
            age_unsigned_locks(roots[-1])
            continue
        assert zygote.ended[child] == 0, (roots[-1] / "log").read_text()[-3000:]
        longest /= 2
        roots.append(tmp_path / str(len(roots)))
        roots[-1].mkdir()
    finish(zygote, tiny_folder, roots[-1])
    for root in roots:
        check(root, wanted)


def at_work(root: Path, children: list[int]) -> int | None:
    """A child that has kept a part of a stage, and so is in the middle of one."""
    for child in children:
        path = root / "cache" / "journal" / f"{socket.gethostname()}-{child}.log"
        if path.exists() and '"part"' in path.read_text():
            return child
    return None


def said(root: Path) -> list[str]:
    return [path.read_text()[-1500:] for path in sorted(root.glob("log*"))]


def test_four_processes_share_a_grid_and_one_of_them_is_killed(zygote, undisturbed, tiny_folder, tmp_path):
    """The same command four times at once, one killed in the middle of a stage: no entry twice, the same bytes, and the
    work was really shared.
    """
    children = [zygote.start(flags(tiny_folder, tmp_path), tmp_path / f"log{i}") for i in range(4)]
    end = time.monotonic() + 300
    while (victim := at_work(tmp_path, children)) is None and time.monotonic() < end:
        if zygote.wait(children[0], 0.01) is not None:
            break
    assert victim is not None, said(tmp_path)
    assert zygote.kill(victim) == 137, said(tmp_path)
    codes = [zygote.wait(child, 600) for child in children]
    assert codes == [137 if child == victim else 0 for child in children], said(tmp_path)
    check(tmp_path, undisturbed[0])
    shares = [sum('"samples"' in line for line in path.read_text().splitlines())
              for path in (tmp_path / "cache" / "journal").iterdir()]
    assert len([s for s in shares if s]) >= 2, f"cells by process: {shares}"
