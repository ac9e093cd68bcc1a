"""Before any heavy work: data load and are disjoint, groups divide, budgets can be met, memory and disk suffice.

Also the dry run: what would be computed, what is there already, and roughly how long it takes.
"""

import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from core.errors import DataError, UserError
from core.registry import QUANTIZERS, SCORERS
from harness.config import Grid, cells_of, reads_solver_calib, seeded
from harness.data import CellData, cell_data, load_general, solver_calib
from harness.keys import cell_key, scores_key
from harness.session import Session
from harness.weights import wanted_kinds
from quantization.bits import achievable


def preflight(grid: Grid, sessions: dict[str, Session], say, weights: bool = True) -> None:
    """Check everything that can be checked before heavy work; raise one clear error at the first that fails."""
    for session in sessions.values():
        budgeted = any(c.method.budgeted for c in cells_of(grid) if c.model == session.label)
        if budgeted:
            check_budgets(session, grid, say)
        for dataset in grid.datasets:
            data = cell_data(session, dataset)
            check_disjoint(data)
            describe(data, say)
            check_calibration(session, grid, data, say)
        check_disk(session, grid)
        check_memory(session, data)
    load_general.cache_clear()  # a shard of text is about 1 GB; what was drawn of it is kept
    if weights and len(sessions) == 1:  # several models: each is checked when its turn comes, they need not fit together
        session.check_weights()


def check_budgets(session: Session, grid: Grid, say) -> None:
    """Every budget lies in what levels and group size can give; says the range."""
    low, high = achievable(session.shapes, session.budget(grid.avg_bits[0]))
    low = math.ceil(low * 1e4 - 1e-9) / 1e4  # what is printed can be asked for
    say(f"{session.ref.name}: group size {session.group_size}; stored bits a weight can be {low:.4f} to {high:.2f}; asked: "
        + ", ".join(f"{b:g}" for b in grid.avg_bits))
    for bits in grid.avg_bits:
        if not low <= bits <= high:
            raise UserError(f"--avg_bits {bits:g} cannot be met on {session.ref.name} with levels {grid.levels} in groups of "
                            f"{session.group_size}; give {low:.4f} to {high:.2f}")


def check_calibration(session: Session, grid: Grid, data: CellData, say) -> None:
    """Draw what solvers and gradients will read, so that too little of it is an error now; says how much of what was asked there is."""
    seeds = sorted({c.seed for c in cells_of(grid) if c.model == session.label and c.dataset == data.task.name and reads_solver_calib(c.method)})
    for seed in seeds:
        found = solver_calib(session, data, seed)[0]
        tokens = sum(map(len, found.tokens))
        if max(map(len, found.tokens)) < 2:
            raise UserError(f"every calibration document of {found.task} is a single token; give longer documents (--calib, --max_length)")
        if seed == seeds[0]:
            short = "; that is all there is (--calib_size), so every seed reads the same" if len(found.tokens) >= len(data.calib_docs) else ""
            say(f"{data.task.name}: solvers and gradients read {tokens:,} of {grid.calib_tokens:,} tokens, "
                f"{len(found.tokens)} documents of {found.task}{short}")


def check_disjoint(data: CellData) -> None:
    """No document may calibrate and evaluate."""
    both = set(data.calib.doc_ids) & {r.doc.doc_id for r in data.requests}
    if both:
        raise DataError(f"{len(both)} documents of {data.task.name} both calibrate and evaluate (first: {sorted(both)[0]!r}); report this split")


def describe(data: CellData, say) -> None:
    """One line about what is asked."""
    cut = sum(r.truncated for r in data.requests)
    say(f"{data.task.name}: {len(data.calib.doc_ids)} documents calibrate, {len(data.requests)} evaluate; {data.cfg.scoring}, "
        f"{data.cfg.num_fewshot} examples, chat template {'on' if data.cfg.chat_template else 'off'}"
        + (f"; {cut} prompts cut to {data.cfg.max_length} tokens" if cut else "") + (f"; {data.note}" if data.note else ""))


def check_disk(session: Session, grid: Grid) -> None:
    """Room for samples, and for scores: element scores are float32 a weight, all others are small."""
    wide = element_entries(session, grid)
    needed = 4 * wide * sum(r * c for r, c in session.shapes.values()) + 2**28
    free = shutil.disk_usage(session.store.root).free
    if free < needed:
        raise UserError(f"{session.store.root} has {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB are needed; free some or use --cache_dir")


def element_entries(session: Session, grid: Grid) -> int:
    """How many numbers a weight the store will hold: element scores and gradient sums, each once a data set, seed and base level."""
    found = set()
    for cell in (c for c in cells_of(grid) if c.model == session.label):
        where = (cell.dataset, cell.seed)
        spec = SCORERS.get(cell.method.scorer) if cell.method.scorer else None
        if spec is not None:
            found |= {(kind, *where) for kind in spec.gradients}
            if spec.granularity == "element":
                found.add((spec.name, cell.avg_bits if "base" in spec.params else None, *(where if spec.needs else ())))
        if cell.method.quantizer and "fisher" in QUANTIZERS.get(cell.method.quantizer).needs:
            found.add(("square", *where))
    return len(found)


def check_memory(session: Session, data: CellData) -> None:
    """Refuse a model that cannot fit, with the numbers."""
    if session.device.type == "cuda":
        total = torch.cuda.get_device_properties(session.device).total_memory
        needed = memory_estimate(session, data) - sum(r * c for r, c in session.shapes.values()) * getattr(torch, session.ref.dtype).itemsize
    else:
        total, needed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_estimate(session, data)
    if needed > total:
        raise UserError(f"{session.ref.name} needs about {needed / 1e9:.1f} GB on {session.device}, which has {total / 1e9:.1f} GB; "
                        "use a smaller model, --batch_tokens or --grad_dtype bf16, or a larger machine")


def memory_estimate(session: Session, data: CellData) -> float:
    """Bytes of weights twice (as loaded and as quantized), gradients, one batch's hidden states and logits."""
    structure = session.structure
    itemsize = getattr(torch, session.ref.dtype).itemsize
    linears = sum(r * c for r, c in session.shapes.values())
    weights = itemsize * (structure["parameters"] + linears)
    width = max(c for _, c in session.shapes.values())
    blocks = max(session.block_of.values()) + 1
    weights += gradient_bytes(session)
    return weights + data.cfg.batch_tokens * width * 4 * 4 + data.cfg.batch_tokens * width * blocks * itemsize // 4


def gradient_bytes(session: Session) -> int:
    """Bytes beside the weights while gradients are summed: the model widened to float32 if asked, and float32 sums."""
    grid, kinds = session.grid, wanted_kinds(session.grid.methods)
    if not kinds:
        return 0
    linears = sum(r * c for r, c in session.shapes.values())
    wide = session.structure["parameters"] * 4 if grid.grad_dtype == "fp32" else 0
    return wide + 4 * linears * max(2, len(kinds))  # scores and the quantized model to compare with take a kind's place later


def tokens_of(data: CellData) -> int:
    """Tokens that one evaluation runs: contexts, continuations, generated."""
    made = data.cfg.max_new_tokens * len(data.requests) if data.task.kind == "generate" else 0
    return made + sum(len(r.context) + sum(map(len, r.continuations)) + len(r.gold) for r in data.requests)


def flops(session: Session) -> float:
    """Matrix-multiply operations a second in the model's dtype, from a probe of half a second."""
    a = torch.randn(512, 1024, device=session.device).to(getattr(torch, session.ref.dtype))
    b = torch.randn(1024, 1024, device=session.device).to(a.dtype)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.5:
        a @ b
        count += 1
        if session.device.type == "cuda":
            torch.cuda.synchronize()
    return count * 2 * 512 * 1024 * 1024 / (time.perf_counter() - start)


def dry_run(grid: Grid, sessions: dict[str, Session], console: Console) -> None:
    """Print every cell: whether it is done, whether its scores are there, tokens, estimated time and memory."""
    table = Table("model", "data set", "method", "bits", "seed", "state", "scores", "tokens", "time", "memory", title="Dry run")
    total = 0.0
    for name, session in sessions.items():
        speed = flops(session) / 3  # what a whole model reaches of a bare matrix product, roughly
        for cell in (c for c in cells_of(grid) if c.model == name):
            data = cell_data(session, cell.dataset)
            done = result_exists(grid, cell_key(session, cell, data))
            scored = "-" if not cell.method.scorer else "cached" if session.store.get(scores_key(session, cell, data)[0]) else "to do"
            tokens = tokens_of(data)
            seconds = 0.0 if done else 2 * session.structure["parameters"] * tokens / speed
            total += seconds
            table.add_row(session.ref.name, cell.dataset, cell.method.name, "own" if cell.avg_bits is None else f"{cell.avg_bits:g}",
                          str(cell.seed) if seeded(cell.method) else "-", "cached" if done else "to do", scored, f"{tokens:,}",
                          f"~{seconds:.0f} s", f"~{memory_estimate(session, data) / 1e9:.1f} GB")
    console.print(table)
    console.print(f"About {total / 60:.1f} minutes of evaluation, scores and solvers not counted; nothing was computed.")


def result_exists(grid: Grid, key: str) -> bool:
    """Whether a finished result of this very cell lies in the results folder."""
    found = list(Path(grid.results_dir).glob(f"*__{key}.json"))
    return any(json.loads(f.read_text()).get("status") == "ok" for f in found)
