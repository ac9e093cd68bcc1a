"""How long reading results takes: 100 made-up cells of 256 documents, printed by print_results.py and drawn as a page.

    python -m benchmarks.report_speed [--cells 100 --documents 256 --repeat 5 --page]

Prints the median of wall seconds over the repeats, each a process of its own, and its ratio to a baseline that is
measured between them, so that machines and loads can be compared: what importing pandas and scipy.stats alone takes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from core.sample import Sample
from evaluation.statistics.summary import by_stratum, summarise
from report.records import Bits, MethodFacts, ModelFacts, Question, Result, TaskFacts, write_questions, write_result

REPO = Path(__file__).resolve().parents[1]
DATASETS = {"trivia_qa": 1, "mmlu_pro": 14, "code_mmlu": 5}  # and their categories
BUDGETS = (2.25, 3.25)
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
         "mlp.down_proj")
SETTINGS = {"tolerance": 0.01, "data_source": "embedded", "quantizer": "gptq", "group_size": None}
OPEN, CHOICE = TaskFacts("generate", {"accuracy": "EM", "f1": "F1"}), TaskFacts("choice", {"accuracy": "acc"}, 0.1)
LINEARS = [f"model.layers.{block}.{kind}" for block in range(30) for kind in KINDS]
BASELINE = [sys.executable, "-c", "import pandas, scipy.stats"]


def make_results(folder: Path, cells: int, documents: int) -> None:
    """Write random but plausible cells: full precision once a data set, then method by method at every budget."""
    rng = np.random.default_rng(0)
    axes = [(dataset, "fp16", None) for dataset in DATASETS]
    names = ["uniform", "random", *(f"method-{i}" for i in range(cells))]
    axes += [(dataset, name, budget) for name in names for dataset in DATASETS for budget in BUDGETS]
    for number, (dataset, name, budget) in enumerate(axes[:cells]):
        samples = make_samples(rng, dataset, documents, shift=0.0 if budget is None else -rng.random() * 8 / budget)
        result = make_result(rng, number, dataset=dataset, name=name, budget=budget, samples=samples)
        write_result(folder, f"made-up__{number:03d}", result, samples)
    for dataset in DATASETS:
        questions = [Question(f"{dataset}-{i}", f"What is number {i}?") for i in range(documents)]
        write_questions(folder, f"asked-{dataset}", questions)


def make_samples(rng: np.random.Generator, dataset: str, documents: int, *, shift: float) -> list[Sample]:
    """The same questions for every cell of a data set, ``shift`` nats a token from full precision."""
    base = np.random.default_rng(len(dataset)).normal(-3, 1, documents)
    loglik, right = base + shift + rng.normal(0, 0.5, documents), rng.random(documents) < 0.6 + shift / 20
    choices, scores = dataset != "trivia_qa", rng.normal(-50, 9, (documents, 10))
    return [Sample(doc_id=f"{dataset}-{i}", prompt=f"{i:016x}", gold="A", text="a few words",
                   answer="A" if right[i] else "B", correct=float(right[i]), f1=None if choices else float(right[i]),
                   choice_logprobs=tuple(scores[i].tolist()) if choices else None, gold_loglik=float(loglik[i]),
                   n_prompt=60, n_new=0, truncated=False, stratum=f"category {i % DATASETS[dataset]}")
            for i in range(documents)]


def make_result(rng: np.random.Generator, number: int, *, dataset: str, name: str, budget: float | None,
                samples: list[Sample]) -> Result:
    """A cell's summary with bits and probes of 210 linears; every third method has kept single weights."""
    kept, task, bits = number % 3 == 0, OPEN if dataset == "trivia_qa" else CHOICE, budget or 16.0
    probe = {} if budget is None else {fqn: make_probe(rng, kept) for fqn in LINEARS}
    levels = dict(zip(LINEARS, rng.integers(2, 6, len(LINEARS)).tolist(), strict=True))
    return Result(
        cell=f"{number:016x}", model=ModelFacts("made-up", "r", "bfloat16", "up"), dataset=dataset, avg_bits=budget,
        method=MethodFacts(name, quantizer="gptq"), seed=0, run_type="demo", settings=SETTINGS, machine="cpu",
        versions={"commit": "0"}, status="ok", error=None, made="2026-01-01T00:00:00+00:00", n=len(samples),
        metrics=summarise(samples), strata=by_stratum(samples), task=task, scoring=task.kind,
        bits=Bits(average=bits - 0.001, whole_model=bits + 1, stored=10**8, group_size=96, per_linear=levels),
        stages={"evaluation": f"asked-{dataset}"}, probe=probe, seconds={"scores": 1.0, "samples": 20.0})


def make_probe(rng: np.random.Generator, kept: bool) -> dict:
    """A linear's sampled scores: one if it has only one, else 64 with their places and what was kept."""
    scores = [float(f"{value:.6g}") for value in rng.random(64 if kept else 1)]
    places = {"positions": rng.integers(0, 10**6, 64).tolist(), "kept": rng.integers(0, 2, 64).tolist()} if kept else {}
    return {"scores": scores} | places


def seconds(command: list[str]) -> float:
    """Wall seconds of a command that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, cwd=REPO, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--page", action="store_true", help="time the page too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as root:
        results = Path(root) / "results"
        make_results(results, args.cells, args.documents)
        read = [sys.executable, "print_results.py", "--results_dir", str(results)]
        commands = {"baseline": BASELINE, "terminal": read, "details": [*read, "--details"],
                    "json": [*read, "--format", "json"]}
        commands |= {"page": [*read, "--html", f"{root}/report.html"]} if args.page else {}
        times = {name: [] for name in commands}
        for _ in range(args.repeat):
            for name, command in commands.items():
                times[name].append(seconds(command))
    for name, taken in times.items():
        middle, base = statistics.median(taken), statistics.median(times["baseline"])
        print(f"{name:<9} {middle:6.2f} s  {middle / base:5.2f} × the baseline  (best {min(taken):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
