"""Before any heavy work: data load and are disjoint, groups divide, budgets can be met, memory and disk suffice."""

import math
from pathlib import Path

from core.errors import DataError, UserError
from core.registry import SCORERS
from harness.forecast.disk import check_disk
from harness.forecast.limits import check_fits
from harness.forecast.sizes import finished
from harness.grid import reads_solver_calib
from harness.presets import check_writable
from harness.stages.base_quantized import own_grid
from harness.stages.case import Case, Cases, seems_finite
from harness.stages.cell import stored_result
from harness.stages.model import check_plain, check_positions
from harness.stages.options import plan_options
from harness.stages.plan import alloc_context, allocated
from harness.stages.scores import check_blocks
from quantization.bits import achievable
from quantization.packing.checkpoint import is_export
from quantization.solvers.spqr import TARGET


def preflight(cases: Cases, weights: bool = True, limit: int | None = None, workers: int = 1, *, gpus: int = 0,
              only: list[Case] | None = None, writes: bool = True) -> None:
    """Check everything that can be checked before heavy work; raise one clear error at the first that fails.

    weights: load them now to look for NaN; limit: bytes of memory that a worker may use, if less than there is;
    workers: processes that share this machine's memory, 0 if they run elsewhere; gpus: how many each of those elsewhere
    has; only: the cells that this process will do, if not all: what others need is no reason to stop; writes: whether
    it computes.
    """
    say = cases.progress.say
    for name, model in cases.models.items():
        mine = [case for case in (cases if only is None else only) if case.cell.model == name]
        if any(case.method.allocator != "none" for case in mine) or not is_export(model.where):
            check_plain(model)
        check_offload(mine, gpus)
        check_budgets(mine, say)
        say_unmakeable(mine, say)
        for dataset in dict.fromkeys(case.cell.dataset for case in mine):
            asked = [case for case in mine if case.cell.dataset == dataset]
            check_disjoint(asked)
            describe(asked[0], say)
            check_calibration(asked, say)
        check_disk(mine, workers)
    chosen = list(cases if only is None else only)
    check_fits(chosen, limit, workers, gpus=gpus)
    cases.forget_texts()
    folder = Path(cases.grid.results_dir)
    if not writes or all(stored_result(case, folder) for case in chosen):
        return
    check_writable("--results_dir", cases.grid.results_dir)
    if all(map(finished, chosen)):  # a cache that cannot be written serves what it has
        return
    check_writable("--cache_dir", cases.grid.cache_dir)
    # several models: each is checked when its turn comes, they need not fit together
    if weights and len(cases.models) == 1:
        model = next(iter(cases.models.values()))
        if not seems_finite(cases.store, model):
            _ = model.module


def check_offload(cases: list[Case], gpus: int) -> None:
    """Refuse blocks that would rest where they run, and rows whose scorers look into blocks that are not held."""
    for case in cases:
        if case.model.offload == "cpu" and not gpus and all(device.type == "cpu" for device in case.model.devices):
            raise UserError("--offload cpu has no meaning without a GPU, for the blocks would rest where they run; use "
                            "--offload disk, or leave it out")
        if case.method.scorer and not finished(case):
            check_blocks(case, SCORERS.get(case.method.scorer))


def check_budgets(cases: list[Case], say) -> None:
    """Every budget of these cells lies in what levels and group size can give; says the range."""
    grids: dict[tuple, list[Case]] = {}  # rows may store their grids in their own ways
    for case in cases:
        if case.method.budgeted:
            grids.setdefault((case.group_size, *own_grid(case.budget).items()), []).append(case)
    for alike in grids.values():
        _check_grid(alike, say, named=len(grids) > 1)


def _check_grid(cases: list[Case], say, named: bool) -> None:
    """Budgets of rows with one grid; named: others have another."""
    case, asked = cases[0], dict.fromkeys(case.cell.avg_bits for case in cases)
    low, high = achievable(case.model.shapes, case.budget)
    low = math.ceil(low * 1e4 - 1e-9) / 1e4  # what is printed can be asked for
    rows = list(dict.fromkeys(case.method.name for case in cases))
    of = f" for {', '.join(rows[:4])}{f' and {len(rows) - 4} more' if rows[4:] else ''}" if named else ""
    say(f"{case.model.ref.name}: group size {case.group_size}; stored bits a weight can be {low:.4f} to {high:.2f}{of}"
        f"; asked: {', '.join(f'{b:g}' for b in asked)}")
    share, names = case.model.rest
    if names:
        more = f" and {len(names) - 4} more" if names[4:] else ""
        say(f"{case.model.ref.name}: {share:.2%} of the blocks' weights are not quantized and count in the whole "
            f"model's bits: {', '.join(names[:4])}{more}, norms")
    for bits in asked:
        if not low <= bits <= high:
            raise UserError(f"--avg_bits {bits:g} cannot be met on {case.model.ref.name} with levels "
                            f"{case.grid.levels} in groups of {case.group_size}; give {low:.4f} to {high:.2f}")


def say_unmakeable(cases: list[Case], say) -> None:
    """Say which rows without scores fill a budget in a form that stores more than it at its fewest bits; the others go
    on.  Of rows that rank weights only the scores can tell.
    """
    told = set()
    for case in cases:
        row = case.method.name, case.cell.avg_bits
        fills = case.method.scorer is None and case.method.options.get(TARGET.name) is not None
        if not fills or row in told or finished(case):
            continue
        try:  # an allocator without scores counts, and does nothing else
            allocated(case, alloc_context(case, None, plan_options(case)))
        except UserError as error:
            told.add(row)
            say(f"{case.method.name} at {case.cell.avg_bits:g} bits will fail: {error}")


def check_calibration(cases: list[Case], say) -> None:
    """Draw what solvers and gradients will read, so that too little of it is an error now; says how much it is."""
    drawn, told = set(), set()
    for case in (c for c in cases if reads_solver_calib(c.method)):
        calib, data = case.solver_calib, case.calib_data
        if case.solver_calib_digest in drawn:
            continue
        drawn.add(case.solver_calib_digest)
        lengths = [len(tokens) for tokens in calib.tokens]
        if max(lengths) < 2:
            raise UserError(f"every calibration document of {calib.task} is a single token; give longer documents "
                            "(--calib, --max_length)")
        check_positions(case.model, max(lengths), f"the longest calibration sequence of {calib.task}")
        if calib.task not in told:  # of several seeds the first
            told.add(calib.task)
            whole = calib.task == data.task.name and len(lengths) >= len(data.calib_docs)
            short = "; that is all there is (--calib_size), so every seed reads the same" if whole else ""
            say(f"{case.data.task.name}: solvers and gradients read {sum(lengths):,} of {case.value('calib_tokens'):,} "
                f"tokens, {len(lengths)} documents of {calib.task}{short}")


def check_disjoint(cases: list[Case]) -> None:
    """No document of these cells of one data set may calibrate and evaluate, under whatever id."""
    asked = {(r.doc.question, r.doc.options): r.doc.doc_id for r in cases[0].data.requests}
    for data in {id(case.calib_data): case.calib_data for case in cases}.values():
        both = [doc.doc_id for doc in data.calib_docs if (doc.question, doc.options) in asked]
        if both:
            raise DataError(f"{len(both)} documents that calibrate, of {data.task.name}, evaluate in "
                            f"{cases[0].cell.dataset} (first: {both[0]!r}); calibrate on another data set, or on a "
                            "part that does not overlap")


def describe(case: Case, say) -> None:
    """One line about what is asked."""
    data, cfg = case.data, case.data.cfg
    cut = sum(request.truncated for request in data.requests)
    written = cfg.max_new_tokens if data.task.kind == "generate" else 0
    # the last token of an answer is asked for, but is no input
    longest = max(len(r.context) + max(written, *(len(end) - 1 for end in (*r.continuations, r.gold)))
                  for r in data.requests)
    check_positions(case.model, longest, f"the longest question of {data.task.name} with its answer")
    say(f"{data.task.name}: {len(data.calib_docs)} documents calibrate, {len(data.requests)} evaluate; {cfg.scoring}, "
        f"{cfg.num_fewshot} examples, chat template {'on' if cfg.chat_template else 'off'}"
        + (f"; {cut} prompts cut to {cfg.max_length} tokens" if cut else "") + (f"; {data.note}" if data.note else ""))
