"""How stages grow: CPU seconds of one thread against documents, blocks, width and cells, as slopes and a plot.

    python -m benchmarks.growth [--repeat 3] [--plot docs/figures/growth.svg]

Random Llama models of 4 blocks of width 256, one thing doubled at a time, the rest as it is.  A slope is that of log
seconds against log size by least squares: 1 = linear.  Two are not expected to be 1: a width of d costs d² in every
linear, and d³ in a solver's Hessian and its factor; TAQoS runs the blocks behind every block.  Cells: a grid whose
cells are finished, read again.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM, LlamaConfig

import methods  # noqa: F401  (registers)
from benchmarks.turns import seconds_in_turns
from core.model import ready
from core.registry import SCORERS
from core.types import CalibSet, LayerPlan
from quantization.allocators.ranking import first_k
from quantization.apply import Originals
from tests.tiny import byte_tokenizer, context

BASE = {"documents": 4, "blocks": 4, "width": 256}
SIZES = {"documents": (4, 8, 16, 32), "blocks": (2, 4, 8, 16), "width": (128, 256, 512, 1024)}
BUDGETS = (2, 4, 8, 16)  # of a finished grid; each has a few cells
TOKENS = 96  # of a document


def model_of(blocks: int, width: int):
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=blocks, vocab_size=320,
                         num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512)
    return ready(AutoModelForCausalLM.from_config(config))


def documents_of(count: int) -> CalibSet:
    rng = np.random.default_rng(0)
    tokens = tuple(rng.integers(3, 300, TOKENS) for _ in range(count))
    return CalibSet("random", tuple(map(str, range(count))), tokens, tuple(np.ones(TOKENS, bool) for _ in tokens), 0,
                    "random")


def scorer(name: str, **params) -> Callable:
    """A scorer's whole work."""
    def prepare(model, calib):
        spec = SCORERS.get(name)
        ctx = context(model, spec, calib, byte_tokenizer(), **params)
        return lambda: spec.fn(ctx)
    return prepare


def gptq(model, calib) -> Callable:
    ctx = context(model, SCORERS.get("TAQ"), calib)
    originals = Originals(ctx.linears)
    layers = {fqn: LayerPlan(3, 64) for fqn in ctx.linears}
    return lambda: originals.solve(layers, "gptq", model=model, blocks=ctx.blocks, block_of=ctx.block_of, calib=calib)


def kept_weights(model, calib) -> Callable:
    ctx = context(model, SCORERS.get("TAQ"), calib)
    scores = [lin.weight.detach().abs().flatten() for lin in ctx.linears.values()]
    return lambda: first_k(scores, sum(map(len, scores)) // 50)


STAGES = {"TAQ": (scorer("TAQ"), ("documents", "blocks", "width")),
          "TAQoS": (scorer("TAQoS"), ("documents", "blocks", "width")),
          "gradients (TaCQ-absgrad)": (scorer("TaCQ-absgrad"), ("documents", "blocks", "width")),
          "pivots (SPQR)": (scorer("SPQR", base={"bits": 3, "group": 64}), ("documents", "blocks", "width")),
          "GPTQ": (gptq, ("documents", "blocks", "width")), "kept weights": (kept_weights, ("blocks", "width"))}


def seconds(run: Callable, repeat: int) -> float:
    """Median CPU seconds, a first run aside."""
    run()
    return seconds_in_turns([run], repeat)[0]


def finished_grids(repeat: int) -> tuple[list[int], list[float]]:
    """(cells, CPU seconds) of finished grids that are run again."""
    from harness.cli.main import main as run
    from tests.tiny import save_tiny

    counts, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        tiny = save_tiny(Path(folder) / "tiny")
        for budgets in BUDGETS:
            results = Path(folder) / f"r{budgets}"
            flags = ["--run_type", "demo", "--model", str(tiny), "--dataset", "mmlu_pro", "--method", "equal",
                     "--quantizer", "rtn", "--avg_bits", *(f"{4.75 + i / 16:g}" for i in range(budgets)),
                     "--eval_size", "4", "--calib_size", "4", "--device", "cpu", "--threads", "1", "--tolerance", "0.1",
                     "--cache_dir", f"{folder}/c", "--results_dir", str(results)]
            times.append(seconds(lambda flags=flags: run(flags), repeat))
            counts.append(len(list(results.glob("*.jsonl"))))
    return counts, times


def slope(sizes, times) -> float:
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def plot(found: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SIZES), figsize=(12, 4), sharey=True)
    for axis, what in zip(axes, SIZES, strict=True):
        for name, (sizes, times) in ((n, v) for (n, w), v in found.items() if w == what):
            axis.loglog(sizes, times, marker="o", label=f"{name}: {slope(sizes, times):.2f}")
        axis.set(xlabel=what, xticks=SIZES[what], xticklabels=SIZES[what], title=f"more {what}")
        axis.minorticks_off()
        axis.legend(fontsize=7, title="slope", title_fontsize=7)
    axes[0].set_ylabel("CPU seconds, one thread")
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="an SVG or PNG file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for what, sizes in SIZES.items():
        for name, (prepare, grows) in STAGES.items():
            if what in grows:
                times = []
                for size in sizes:
                    given = BASE | {what: size}
                    run = prepare(model_of(given["blocks"], given["width"]), documents_of(given["documents"]))
                    times.append(seconds(run, args.repeat))
                found[name, what] = sizes, times
    with redirect_stdout(io.StringIO()):
        found["a finished grid again", "cells"] = finished_grids(args.repeat)
    print(tabulate([[name, what, " ".join(map(str, sizes)), " ".join(f"{t:.2f}" for t in times), slope(sizes, times)]
                    for (name, what), (sizes, times) in found.items()],
                   ["stage", "more", "sizes", "CPU s", "slope"], "github", floatfmt=".2f"))
    if args.plot:
        plot(found, args.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
