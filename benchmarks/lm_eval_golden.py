"""What lm-evaluation-harness 0.4.13 itself gives: its own model class, float32, batch size 1, a line a document.

    python benchmarks/lm_eval_golden.py [--only TASK ...]

Reads the tasks in tests/lm_eval_tasks and the rows and model that tests/conftest.py names; writes
tests/golden/lm_eval.jsonl.gz, which tests/evaluation/test_lm_eval_parity.py compares with our engine's numbers.
"""

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from tests.lm_eval_tasks import GOLDEN, OURS, ROLLING_LENGTH, filled

MODEL, DATA = REPO / "saved_models" / "base" / "SmolLM2-135M-Instruct", REPO.parent / "shared" / "datasets"
ROWS = dict.fromkeys(OURS, 128) | {"t_mmlu_abstract_algebra": 64, "t_mmlu_anatomy": 64, "t_gsm8k": 32, "t_wikitext": 3}


def main() -> None:
    import torch
    from lm_eval.tasks import TaskManager

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(OURS), choices=list(OURS), help="these tasks; others stay")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        manager = TaskManager(include_path=str(filled(Path(folder), DATA)), include_defaults=False)
        for name in only:
            started = time.time()
            lines = asked(name, manager)
            write(name, lines)
            print(f"{name}: {len(lines)} lines, {time.time() - started:.0f} s", flush=True)


def asked(name: str, manager) -> list[dict]:
    """One task's documents through lm-evaluation-harness, a line a document and filter."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    length = {"max_length": ROLLING_LENGTH} if name == "t_wikitext" else {}
    model = HFLM(pretrained=str(MODEL), dtype="float32", device="cpu", batch_size=1, **length)
    found = simple_evaluate(model=model, tasks=[name], task_manager=manager, limit=ROWS[name], bootstrap_iters=0)
    lines = [line(name, sample) for sample in found["samples"][name]]
    totals = {key: value for key, value in found["results"][name].items() if isinstance(value, float)}
    return [*lines, {"task": name, "totals": totals}]


def line(name: str, sample: dict) -> dict:
    """What a document gave: log-probabilities (nats, and whether each is greedy) or text, and lm-eval's grades."""
    answers = [resps[0] for resps in sample["resps"]]
    grades = {metric: plain(sample[metric]) for metric in sample["metrics"]}
    got = ({"text": answers[0]} if isinstance(answers[0], str) else
           {"logliks": [round(float(a), 5) for a in answers]} if not isinstance(answers[0], tuple) else
           {"logliks": [round(float(a[0]), 5) for a in answers], "greedy": [bool(a[1]) for a in answers]})
    return {"task": name, "row": sample["doc_id"], "prompt": sample["prompt_hash"][:16], "filter": sample["filter"],
            **got, "grades": grades}


def plain(value):
    """A grade as JSON; pairs of sums and counts stay pairs."""
    return [plain(v) for v in value] if isinstance(value, tuple) else round(float(value), 5)


def write(name: str, lines: list[dict]) -> None:
    """Put the lines in the place of the task's older ones."""
    old = [json.loads(text) for text in gzip.open(GOLDEN, "rt")] if GOLDEN.exists() else []
    every = [one for one in old if one["task"] != name] + lines
    every.sort(key=lambda one: list(OURS).index(one["task"]))  # stable: lines of a task keep their order
    GOLDEN.parent.mkdir(exist_ok=True)
    with GOLDEN.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
        packed.write("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in every).encode())


if __name__ == "__main__":
    main()
