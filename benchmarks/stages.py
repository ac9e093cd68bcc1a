"""Each stage beside its peer or its earlier form, in one run: CPU seconds of one thread on the demo's real model.

    python -m benchmarks.stages [--rows 12] [--prompts 4] [--blocks 3] [--repeat 2] [--data_dir DATA] [--lm_eval]
                                [--only solver]

Runs take turns (A B A B ...); medians are printed.  "floor" is what the real tokens alone would take at the rate of
four sequences of 256 tokens, measured in the same run: nothing that runs every token once can be faster.  With
--lm_eval the questions are also put by lm-evaluation-harness (requirements-lm-eval.txt) at batch sizes 1, 4 and 16, of
which the best counts.
"""

import argparse
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

import methods  # noqa: F401  (registers)
from benchmarks.peers import ask_peer, filled, halving, noisy_batch
from benchmarks.turns import Bench
from core.registry import SCORERS
from core.types import CalibSet, LayerPlan
from evaluation.engine.ask import make_prefix, run_batch
from evaluation.engine.batches import batch_plan
from harness.grid import Grid
from harness.stages.documents import TaskData, task_data
from methods import taqos
from quantization.apply import Originals
from quantization.solvers import spqr
from streams import activations, blocks, outputs, settled

PEER_BATCHES = (1, 4, 16)


def ask(bench: Bench, data: TaskData, plan) -> None:
    """Put the questions in these batches."""
    prefix = make_prefix(bench.model, data.requests, data.cfg)
    for batch in plan:
        run_batch(bench.model, bench.tokenizer, data.task, [data.requests[i] for i in batch], cfg=data.cfg,
                  prefix=prefix)


def questions(bench: Bench, dataset: str, scoring: str) -> None:
    """Ours against filled batches and, if asked, lm-evaluation-harness."""
    where = {"data_source": "folder", "data_dir": bench.args.data_dir} if bench.args.data_dir else {
        "data_source": "embedded"}
    grid = Grid(run_type="demo", models=("demo",), methods=("uniform",), datasets=(dataset,), avg_bits=(4.25,),
                eval_size=bench.args.rows, scoring=scoring, **where)
    data = task_data(grid, dataset, bench.tokenizer, parameters=135_000_000, positions=8192)
    others = [("batches filled to 4,096 tokens", lambda: ask(bench, data, filled(data)))]
    if bench.args.lm_eval:
        from lm_eval.models.huggingface import HFLM

        for size in PEER_BATCHES:
            lm = HFLM(pretrained=bench.model, tokenizer=bench.tokenizer, batch_size=size)
            others.append((f"lm-eval, batch {size}", lambda lm=lm: ask_peer(lm, bench.tokenizer, data)))
    bench.compare(f"{len(data.requests)} questions of {dataset}, {data.cfg.scoring}",
                  lambda: ask(bench, data, batch_plan(data.requests, data.cfg)), *others)


def random_calib(count: int, low: int, high: int) -> CalibSet:
    """Sequences of random tokens; their lengths as uneven as prompts' are."""
    rng = np.random.default_rng(0)
    tokens = tuple(rng.integers(5, 40_000, int(n)) for n in np.linspace(low, high, count).astype(int))
    return CalibSet("random", tuple(map(str, range(count))), tokens, tuple(np.ones(len(t), bool) for t in tokens), 0,
                    "random")


def block_scorers(bench: Bench) -> None:
    """TAQ, TAQ-raw, TAQO from one pass, against a pass for each."""
    calib = random_calib(bench.args.prompts * 4, 60, 260)
    ctx = bench.context("TAQ", calib)
    chosen = activations.prompts(ctx, "score_docs")

    def shared() -> None:
        whole = outputs.block_outputs(ctx, chosen)
        for name in ("TAQ", "TAQ-raw", "TAQO"):
            SCORERS.get(name).fn(replace(ctx, outputs=lambda _chosen: whole))

    def apart() -> None:
        for name in ("TAQ", "TAQ-raw", "TAQO"):
            SCORERS.get(name).fn(ctx)

    bench.compare(f"TAQ, TAQ-raw, TAQO on {len(chosen)} prompts", shared, ("a pass each", apart))


def noise_scorer(bench: Bench) -> None:
    """TAQoS with all disturbed copies of a prompt together, against batches of prompts that run once a block."""
    calib = random_calib(bench.args.prompts, 60, 260)
    ctx = bench.context("TAQoS", calib)
    count = len(bench.blocks)
    step = [0.01] * count
    passes = 2 + (count - 1) / 2  # the clean row, and after block l those of the blocks behind it
    tokens = sum(map(len, calib.tokens)) * (passes - 1)

    def stacked() -> None:
        with torch.inference_mode():
            for doc in range(len(calib.tokens)):
                taqos.prompt_kl(ctx, doc, step)

    def block_by_block() -> None:
        with torch.inference_mode():
            for batch in activations.batches(ctx, list(range(len(calib.tokens)))):
                noisy_batch(ctx, batch, step)

    bench.compare(f"TAQoS on {len(calib.tokens)} prompts", stacked, ("batches, once a block", block_by_block),
                  tokens=tokens)


@contextmanager
def first_blocks(bench: Bench):
    """The model cut to its first blocks."""
    layers = bench.model.model.layers
    bench.model.model.layers = layers[:bench.args.blocks]
    try:
        yield {fqn: lin for fqn, lin in bench.linears.items() if bench.block_of[fqn] < bench.args.blocks}
    finally:
        bench.model.model.layers = layers


def solver(bench: Bench) -> None:
    """GPTQ with what its stream saves and without; the weights must be the same."""
    calib = random_calib(16, 100, 400)
    with first_blocks(bench) as inside:
        originals = Originals(inside)

        def solve() -> dict:
            weights: dict = {}
            originals.solve({fqn: LayerPlan(3, 96) for fqn in inside}, "gptq", model=bench.model,
                            blocks=bench.blocks[:bench.args.blocks], block_of=bench.block_of, calib=calib,
                            see=lambda fqn, stored: weights.__setitem__(fqn, stored.values))
            originals.restore()
            return weights

        def plain() -> dict:
            saved = settled.Settled.solved, blocks.add_gram, blocks.mirror
            settled.Settled.solved = lambda self, names: list(names)
            blocks.add_gram = lambda total, rows, alpha: total.addmm_(rows.t(), rows, alpha=alpha)
            blocks.mirror = lambda total: total
            try:
                return solve()
            finally:
                settled.Settled.solved, blocks.add_gram, blocks.mirror = saved

        ours, other = solve(), plain()
        same = "the same" if all(torch.equal(ours[fqn], other[fqn]) for fqn in ours) else "OTHER"
        bench.compare(f"GPTQ of {bench.args.blocks} blocks, {sum(map(len, calib.tokens))} tokens", solve,
                      (f"nothing remembered, whole Hessians: {same} weights", plain), tokens=0)


def thresholds(bench: Bench) -> None:
    """How many solutions SpQR needs to store 3.25 bits a weight, by secants and by halving."""
    generator, counts = torch.Generator().manual_seed(0), {"secants": 0, "halving": 0}
    layer = LayerPlan(2, 16, 3, 3, form="bilevel", ordered=True)
    names = [fqn for fqn in bench.linears if bench.block_of[fqn] in (0, len(bench.blocks) // 2)]
    plain = spqr._search

    def counted(name: str, search):
        def counting(solve, target, least):
            def one(threshold):
                counts[name] += 1
                return solve(threshold)
            return search(one, target, least)
        return counting

    times = {"secants": 0.0, "halving": 0.0}
    for fqn in names:
        weight = bench.linears[fqn].weight.detach()
        x = torch.randn(2 * weight.shape[1], weight.shape[1], generator=generator)
        hessian = x.t() @ x
        for name, search in (("secants", plain), ("halving", halving)):
            spqr._search = counted(name, search)
            try:
                begun = time.process_time()
                spqr.fit_threshold(weight, hessian, layer, target_bits=3.25, percdamp=1.0)
                times[name] += time.process_time() - begun
            finally:
                spqr._search = plain
    for name, label in (("secants", "ours"), ("halving", "halving")):
        stage = f"SpQR of {len(names)} linears to 3.25 bits" if label == "ours" else ""
        bench.rows.append([stage, f"{label}: {counts[name]} solutions", times[name], times[name] / times["secants"],
                           None, None])
    print(bench.table(), flush=True)


STAGES = {"blocks": block_scorers, "noise": noise_scorer, "solver": solver, "thresholds": thresholds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12, help="questions of each data set")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of TAQoS; TAQ reads four times as many")
    parser.add_argument("--blocks", type=int, default=3, help="blocks that GPTQ solves")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--data_dir", help="real rows (datasets_local/fetch_hub.py); default: the embedded ones")
    parser.add_argument("--lm_eval", action="store_true")
    parser.add_argument("--only", choices=sorted(STAGES), help="this stage alone, without questions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args)
    print(f"floor: {1 / bench.rate:.0f} tokens a CPU second, float32, torch {torch.__version__}")
    for dataset, scoring in () if args.only else (("mmlu_pro", "letter"), ("mmlu_pro", "cloze"), ("trivia_qa", "auto")):
        questions(bench, dataset, scoring)
    for name, stage in STAGES.items():
        if args.only in (None, name):
            stage(bench)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
