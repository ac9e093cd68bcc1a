"""Before any heavy work: data load and are disjoint, groups divide, budgets can be met, memory and disk suffice.

Also the dry run: what would be computed, what is there already, and roughly how long it takes.
"""

import math
import shutil

from rich.console import Console
from rich.table import Table

from core.errors import DataError, UserError
from core.registry import QUANTIZERS, SCORERS
from harness.config import Grid, cells_of, reads_solver_calib, seeded
from harness.cost import Costs
from harness.data import CellData, cell_data, load_general, solver_calib
from harness.estimate import Parts, memory
from harness.keys import scores_key
from harness.limits import check_fits, cpu_limit
from harness.session import Session
from harness.sizes import finished, stored
from quantization.bits import achievable


def preflight(grid: Grid, sessions: dict[str, Session], say, weights: bool = True, limit: int | None = None, workers: int = 1) -> None:
    """Check everything that can be checked before heavy work; raise one clear error at the first that fails.

    limit: bytes of memory that a worker may use, if less than there is; workers: processes that share this machine's memory, 0 if they run elsewhere.
    """
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
    check_fits(grid, sessions, limit, workers)
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


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def dry_run(grid: Grid, sessions: dict[str, Session], console: Console, limit: int | None = None, workers: int = 1) -> None:
    """Print every cell: whether it is done, whether its scores are there, and about how much time and memory (GB) it takes.

    limit: bytes of memory that a worker may use, the machine's if None; workers: how many cells run at a time.
    """
    table = Table("model", "data set", "method", "bits", "seed", "state", "scores", "time", "weights", "activations", "scores + solver", "memory",
                  title="Dry run (memory in GB)")
    total = 0.0
    for name, session in sessions.items():
        costs = Costs(session)
        for cell in (c for c in cells_of(grid) if c.model == name):
            data = cell_data(session, cell.dataset)
            seconds = costs.seconds(cell, data)
            total += seconds
            done = finished(session, cell, data)
            scored = "-" if not cell.method.scorer else "cached" if stored(session, scores_key(session, cell, data)[0]) else "to do"
            table.add_row(session.ref.name, cell.dataset, cell.method.name, "own" if cell.avg_bits is None else f"{cell.avg_bits:g}",
                          str(cell.seed) if seeded(cell.method) else "-", "cached" if done else "to do", scored, duration(seconds),
                          *(["-"] * 4 if done else memory_columns(session, memory(session, cell, data))))
    console.print(table)
    console.print(f"About {duration(total / workers).lstrip('~')} of work" + (f", shared by {workers} workers" if workers > 1 else "")
                  + f", models to be loaded not counted; {cpu_limit(limit)[0] / 1e9:.1f} GB are {cpu_limit(limit)[1]}; nothing was computed.")


def memory_columns(session: Session, stages: list[Parts]) -> list[str]:
    """Weights (as loaded, and the linears once more), activations, scores and solver, all, at the stage that takes the most."""
    top = max(stages, key=lambda stage: stage.total)
    device = max(stage.device for stage in stages)
    whole = gigabytes(top.total) if session.device.type != "cuda" else f"{gigabytes(device)} + {gigabytes(max(s.host for s in stages))} CPU"
    return [gigabytes(top.weights + top.originals), gigabytes(top.activations), gigabytes(top.scores + top.solver), f"~{whole}"]


def duration(seconds: float) -> str:
    """Seconds, from two minutes on minutes, from two hours on hours."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"~{seconds / size:.1f} {unit}"
    return f"~{seconds:.0f} s"
