"""Before any heavy work: data load and are disjoint, groups divide, budgets can be met, memory and disk suffice.

Also the dry run: what would be computed, what is there already, and roughly how long it takes.
"""

import math
import shutil

from rich.console import Console
from rich.table import Table

from core.errors import DataError, UserError
from core.registry import QUANTIZERS, SCORERS
from harness.config import Cell, Grid, cells_of, reads_solver_calib, seeded
from harness.cost import Costs
from harness.data import CellData, cell_data, load_general, solver_calib
from harness.estimate import Parts, kinds_to_make, memory
from harness.keys import corrupted_key, gradients_key, scores_key
from harness.limits import check_fits, cpu_limit
from harness.session import Session
from harness.sizes import dims, finished, stored
from harness.weights import reads_data
from methods._gradients import KINDS
from quantization.bits import achievable

SMALL = 2**28  # bytes for samples, plans and all scores that are not one number a weight


def preflight(grid: Grid, sessions: dict[str, Session], say, weights: bool = True, limit: int | None = None, workers: int = 1, *, gpus: int = 0,
              only: list[Cell] | None = None) -> None:
    """Check everything that can be checked before heavy work; raise one clear error at the first that fails.

    limit: bytes of memory that a worker may use, if less than there is; workers: processes that share this machine's memory, 0 if they run elsewhere;
    gpus: how many each of those elsewhere has; only: the cells that this process will do, if not all: what others need is no reason to stop.
    """
    for session in sessions.values():
        cells = [c for c in (cells_of(grid) if only is None else only) if c.model == session.label]
        check_budgets(session, cells, say)
        for dataset in grid.datasets:
            data = cell_data(session, dataset)
            check_disjoint(data)
            describe(data, say)
            check_calibration(session, cells, data, say)
        check_disk(session, cells, workers)
    check_fits(grid, sessions, limit, workers, gpus=gpus, only=only)
    load_general.cache_clear()  # a shard of text is about 1 GB; what was drawn of it is kept
    if weights and len(sessions) == 1:  # several models: each is checked when its turn comes, they need not fit together
        session.check_weights()


def check_budgets(session: Session, cells: list[Cell], say) -> None:
    """Every budget of these cells lies in what levels and group size can give; says the range."""
    asked = list(dict.fromkeys(c.avg_bits for c in cells if c.method.budgeted))
    if not asked:
        return
    low, high = achievable(session.shapes, session.budget(asked[0]))
    low = math.ceil(low * 1e4 - 1e-9) / 1e4  # what is printed can be asked for
    say(f"{session.ref.name}: group size {session.group_size}; stored bits a weight can be {low:.4f} to {high:.2f}; asked: "
        + ", ".join(f"{b:g}" for b in asked))
    for bits in asked:
        if not low <= bits <= high:
            raise UserError(f"--avg_bits {bits:g} cannot be met on {session.ref.name} with levels {session.grid.levels} in groups of "
                            f"{session.group_size}; give {low:.4f} to {high:.2f}")


def check_calibration(session: Session, cells: list[Cell], data: CellData, say) -> None:
    """Draw what solvers and gradients will read, so that too little of it is an error now; says how much of what was asked there is."""
    seeds = sorted({c.seed for c in cells if c.dataset == data.task.name and reads_solver_calib(c.method)})
    for seed in seeds:
        found = solver_calib(session, data, seed)[0]
        tokens = sum(map(len, found.tokens))
        if max(map(len, found.tokens)) < 2:
            raise UserError(f"every calibration document of {found.task} is a single token; give longer documents (--calib, --max_length)")
        if seed == seeds[0]:
            short = "; that is all there is (--calib_size), so every seed reads the same" if len(found.tokens) >= len(data.calib_docs) else ""
            say(f"{data.task.name}: solvers and gradients read {tokens:,} of {session.grid.calib_tokens:,} tokens, "
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


def check_disk(session: Session, cells: list[Cell], workers: int = 1) -> None:
    """Room for what these cells will still write."""
    needed = disk_bytes(session, cells, workers)
    free = shutil.disk_usage(session.store.root).free
    if free < needed:
        raise UserError(f"{session.store.root} has {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB are needed; free some or use --cache_dir")


def disk_bytes(session: Session, cells: list[Cell], workers: int = 1) -> int:
    """Bytes of what is not stored yet: element scores, gradient sums, quantized models to compare with, the pieces of all these; samples.

    Pieces are there once for each cell in work: solved blocks in the model's dtype, and two snapshots of gradient sums while one takes the
    other's place.  How many jobs of a cluster work at a time is not known here (workers 0): they count once, and every job asks again.
    """
    entries, compared, passes, solving = set(), set(), {}, 0
    for cell in cells:
        data = cell_data(session, cell.dataset)
        if finished(session, cell, data):
            continue
        scored = scores_key(session, cell, data)[0] if cell.method.scorer else None
        spec = SCORERS.get(cell.method.scorer) if scored and not stored(session, scored) else None
        kinds = kinds_to_make(session, cell, data, spec)
        entries |= {gradients_key(session, cell, data, kind)[0] for kind in kinds} | ({scored} if spec and spec.granularity == "element" else set())
        passes |= {gradients_key(session, cell, data, KINDS[0])[0]: len(kinds)} if kinds else {}
        if spec and "corrupt" in spec.params:
            compared.add(corrupted_key(session, cell, data)[0])
        solving += reads_data(cell)
    d, at_once, compared = dims(session), max(1, workers), {key for key in compared if not stored(session, key)}
    snapshots = 2 * sum(sorted(passes.values())[-at_once:])
    pieces = min(at_once, solving) + (min(at_once, len(compared)) if QUANTIZERS.get(session.grid.corrupt).needs else 0)
    return d.linears * (4 * (len(entries) + snapshots) + d.itemsize * (len(compared) + pieces)) + SMALL


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def dry_run(grid: Grid, sessions: dict[str, Session], console: Console, limit: int | None = None, workers: int = 1, sharing: int = 1) -> None:
    """Print every cell: whether it is done, whether its scores are there, and about how much time and memory (GB) it takes.

    limit: bytes of memory that a worker may use, the machine's if None; workers: how many cells run at a time;
    sharing: processes that share this machine's memory, 0 if they run elsewhere.
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
    size, whose = cpu_limit(limit, sharing)
    console.print(f"About {duration(total / workers).lstrip('~')} of work" + (f", shared by {workers} workers" if workers > 1 else "")
                  + ", models to be loaded not counted; " + (f"{size / 1e9:.1f} GB are {whose}; " if sharing or limit is not None else "")
                  + "nothing was computed.")


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
