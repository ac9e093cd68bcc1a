"""Before any heavy work: data load and are disjoint, groups divide, budgets can be met, memory and disk suffice.

Also the dry run: what would be computed, what is there already, and roughly how long it takes.
"""

import math

from core.errors import DataError, UserError
from harness.forecast.disk import check_disk
from harness.forecast.limits import check_fits
from harness.grid import Cell, Grid, cells_of, reads_solver_calib
from harness.stages.documents import CellData, cell_data, load_general, solver_calib
from harness.stages.model import Session
from quantization.bits import achievable


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
