"""A grid that is killed again and again, and one that several processes share: the bytes of an undisturbed run, nothing done twice."""

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
KILLS = 30
LIFE_S = (0.2, 1.6)  # a process is killed so long after it began
VOLATILE = {"process_peak_bytes", "device_peak_bytes", "versions", "seconds"}
pytestmark = pytest.mark.slow


def flags(tiny: Path, root: Path) -> list[str]:
    """A grid with every kind of stage: scores, gradients, corrupted model, oracle, solved weights, codebooks, generation."""
    return ["--model", str(tiny), "--dataset", "mmlu_pro", "trivia_qa", "--eval_size", "24", "--calib_size", "8", "--avg_bits", "4.75", "5.5",
            "--calib_tokens", "600", "--oracle_docs", "3", "--num_fewshot", "1",
            "--method", "TAQ", "TAQoS", "TAQO-oracle", "TaCQ", "SPQR-native", "SqueezeLLM-native", "--quantizer", "gptq", "--device", "cpu",
            "--threads", "1", "--max_new_tokens", "4", "--batch_tokens", "400", "--cache_dir", str(root / "cache"),
            "--results_dir", str(root / "results")]


class Zygote:
    """Forks commands; knows how each of them ended."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, str(REPO / "tests" / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue = queue.Queue()
        threading.Thread(target=lambda: [self.lines.put(line.split()) for line in self.process.stdout], daemon=True).start()
        self.ended: dict[int, int] = {}
        assert self.lines.get(timeout=120) == ["ready"]

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


@pytest.fixture(scope="module")
def zygote():
    found = Zygote()
    yield found
    found.process.kill()


@pytest.fixture(scope="module")
def undisturbed(zygote, tiny_folder, tmp_path_factory) -> Path:
    """The grid as it comes out when nobody touches it."""
    root = tmp_path_factory.mktemp("undisturbed")
    child = zygote.start(flags(tiny_folder, root), root / "log")
    assert zygote.wait(child, 300) == 0, (root / "log").read_text()[-3000:]
    return root


def content(root: Path) -> dict[str, object]:
    """All that a run leaves and that must not depend on how it went: samples, results, and every file of the store but its clock."""
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
    """How often each entry of the store, and each piece of one, was finished, by all processes together."""
    lines = [line for path in (root / "cache" / "journal").iterdir() for line in path.read_text().splitlines()]
    return Counter((entry["stage"], entry["key"]) for entry in map(json.loads, lines))


def nothing_left_over(root: Path) -> None:
    assert not [p for p in (root / "cache" / ".partial").rglob("*") if p.is_file()], "pieces of finished stages were left"
    assert not list((root / "cache").glob(".damaged-*")) and not (root / "results" / ".runs").exists()


def test_killed_at_thirty_random_moments(zygote, undisturbed, tiny_folder, tmp_path):
    """Every kill is a SIGKILL while the grid works; the bytes are those of an undisturbed run and nothing stored was made again."""
    rng, log, kills = random.Random(0), tmp_path / "log", 0
    while kills < KILLS:
        child = zygote.start(flags(tiny_folder, tmp_path), log)
        if zygote.wait(child, rng.uniform(*LIFE_S)) is None:
            os.kill(child, signal.SIGKILL)
            assert zygote.wait(child, 60) == 137
            kills += 1
        else:
            pytest.fail(f"the grid was finished after {kills} kills: make it larger or the lives shorter\n{log.read_text()[-2000:]}")
    child = zygote.start(flags(tiny_folder, tmp_path), log)
    assert zygote.wait(child, 300) == 0, log.read_text()[-3000:]
    assert content(tmp_path) == content(undisturbed)
    twice = {what: count for what, count in journal(tmp_path).items() if count > 1}
    assert not twice, f"made again after they were stored: {twice}"
    nothing_left_over(tmp_path)


def test_four_processes_share_a_grid_and_one_of_them_is_killed(zygote, undisturbed, tiny_folder, tmp_path):
    """The same command four times at once, one killed on the way: no entry twice, the same bytes, and the work was really shared."""
    children = [zygote.start(flags(tiny_folder, tmp_path), tmp_path / f"log{i}") for i in range(4)]
    assert zygote.wait(children[2], 4.0) is None
    os.kill(children[2], signal.SIGKILL)
    codes = [zygote.wait(child, 300) for child in children]
    assert codes == [0, 0, 137, 0], [(tmp_path / f"log{i}").read_text()[-1500:] for i in range(4)]
    assert content(tmp_path) == content(undisturbed)
    twice = {what: count for what, count in journal(tmp_path).items() if count > 1}
    assert not twice, f"done by two processes: {twice}"
    shares = [sum('"samples"' in line for line in path.read_text().splitlines()) for path in (tmp_path / "cache" / "journal").iterdir()]
    assert len([s for s in shares if s]) >= 3, f"cells by process: {shares}"
    nothing_left_over(tmp_path)
