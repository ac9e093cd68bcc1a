"""The weights stage of rows whose quantizer reads data.

ŵ stays in the model and is made again when a later run needs it; what came out of it is stored: the true plan
(outliers, group bits), damping and loss of every linear.  Consecutive cells with the same weights share them.  Finished
blocks of a solve outlive a kill (harness/store/solved_blocks.py).
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from core.digest import write_json
from core.registry import QUANTIZERS
from core.types import Plan, Stored
from harness.stages.case import Case
from harness.stages.gradients import gradients, gradients_key
from harness.stages.library import bought, library_key
from harness.stages.options import VERSIONS, quantizer_options, stitched
from harness.stages.plan import Planned, read_plan, write_plan
from harness.stages.tune import WithParts, rounds_of, tuned
from harness.store.entry import Content, stage_key
from harness.store.partial import Partial
from harness.store.solved_blocks import SolvedBlocks
from quantization.apply import Keeper
from quantization.bits import check_budget, make_plan

FEW_TOKENS = 64  # below so many, an expert's Hessian says little of what it reads


def weights_key(case: Case, plan_id: str) -> tuple[str, dict]:
    """Digest of the quantized weights of a row whose quantizer reads data."""
    spec = QUANTIZERS.get(case.method.quantizer)
    read = {"calib": case.solver_calib_digest, "options": quantizer_options(case, spec.name)}
    if "fisher" in spec.needs:
        read["fisher"] = gradients_key(case, "square")[0]
    if stitched(case.method):
        read["library"] = library_key(case)[0]
    if case.model.ref.dtype == "float16":
        read["kept"] = "float16"  # in earlier versions kept weights of such models went through bf16
    return stage_key("weights", VERSIONS["weights"], model=case.model.ref.key, plan=plan_id,
                     quantizer=QUANTIZERS.identity(spec.name), machine=case.model.machine, **read)


def hold_weights(case: Case, planned: Planned) -> None:
    """Make the model hold the row's quantized weights, and store what came out of them."""
    key, identity = weights_key(case, planned.id)
    store, originals = case.store, case.model.originals
    if originals.holds == key and (entry := store.get(key)):
        _save_blocks_again(case, key, entry)
        return
    with store.lock(key, "weights"):  # a second process that needs the same weights waits, and then loads the blocks
        partial = store.partial(key)
        with store.clock() as clock:
            content = _solve(case, planned, partial)
        if store.get(key) is None:  # else the weights were only made again
            facts = {"model": case.model.label, "seconds": clock.seconds + partial.spent}
            store.put(key, identity, facts, content.write)
        originals.holds = key


def solve(case: Case, planned: Planned, see: Callable[[str, Stored], None] = lambda fqn, stored: None,
          partial: Partial | None = None) -> tuple[dict[str, Stored], Plan]:
    """Make the model hold what the row's quantizer makes of a plan: what came out of each linear, without the weights,
    and the plan as it is truly stored.  ``see`` gets all of each linear; finished blocks outlive a kill in ``partial``,
    and what comes from there ``see`` hears nothing of.
    """
    keeper = Keeper() if partial is None else SolvedBlocks(partial)
    if not rounds_of(case):
        return _solved(case, planned, see, keeper)
    keeper = WithParts(keeper, partial)
    solved, true = _solved(case, planned, keeper.see, keeper)
    kl = tuned(case, true, keeper.solved, see, partial)
    return solved, replace(true, notes=true.notes | {"tuned_kl": kl})


def _solved(case: Case, planned: Planned, see: Callable[[str, Stored], None],
            keeper: Keeper) -> tuple[dict[str, Stored], Plan]:
    """:func:`solve` without what follows when all linears are solved."""
    spec, model = QUANTIZERS.get(case.method.quantizer), case.model
    fisher = gradients(case, "square") if "fisher" in spec.needs else None
    solved_before = bought(case, planned.plan.notes["forms"]) if stitched(case.method) else None
    with case.memory(f"{spec.name} solves {case.method.name}"):
        solved = model.originals.solve(
            planned.plan.layers, spec.name, model=model.module, blocks=model.blocks, block_of=model.block_of,
            calib=case.solver_calib,
            fisher=fisher, library=solved_before, options=quantizer_options(case, spec.name),
            step=case.progress.stage(f"{case.method.name}: {spec.name}"), see=see, keeper=keeper)
    return solved, make_plan({fqn: stored.layer for fqn, stored in solved.items()}, model.shapes, model.other,
                             planned.plan.notes)


def _solve(case: Case, planned: Planned, partial: Partial) -> Content:
    solved, true = solve(case, planned, partial=partial)
    if case.method.budgeted:
        check_budget(true, case.budget, case.method.name)
    notes = {fqn: stored.notes for fqn, stored in solved.items()}
    if few := few_tokens(notes):
        fewest = min(few, key=few.get)
        case.progress.say(f"{case.method.name}: {len(few)} linears were solved from fewer than {FEW_TOKENS} "
                          f"tokens (fewest: {fewest}, {few[fewest]}); an expert gets more from a higher "
                          "--calib_tokens, and a linear that its model multiplies by itself is never seen")

    def write(folder: Path) -> None:
        write_plan(folder, true)
        write_json(folder / "linears.json", notes)

    return Content(write)


def _save_blocks_again(case: Case, key: str, entry: Path) -> None:
    """Save the blocks that the model holds, which went when the samples of the cell before were stored.

    Not those of a row that was tuned: without their codes they would not be gone on with.
    """
    if rounds_of(case):
        return
    model, keeper = case.model, SolvedBlocks(case.store.partial(key))
    layers, notes = read_plan(entry).layers, json.loads((entry / "linears.json").read_text())
    for block in sorted(set(model.block_of.values())):
        if not keeper.has(block):
            inside = [fqn for fqn in layers if model.block_of[fqn] == block]
            keeper.save(block, {fqn: Stored(model.linears[fqn].weight, layers[fqn], {}, notes[fqn]) for fqn in inside})


def true_plan(case: Case, planned: Planned) -> tuple[Plan, dict]:
    """The plan as it was really stored, and a summary of the solver's notes."""
    key = weights_key(case, planned.id)[0]
    if (entry := case.store.get(key)) is None:
        case.store.allow("weights", key)
        hold_weights(case, planned)
        case.store.partial(key).clear()  # the samples are there already, so nothing else would
        entry = case.store.path(key)
    notes = json.loads((entry / "linears.json").read_text())
    tried = {fqn: told["tries"] for fqn, told in notes.items() if told.get("tries", 1) > 1}
    few = few_tokens(notes)
    return read_plan(entry), {"more_damping": tried, "linears": len(notes)} | ({"few_tokens": few} if few else {})


def few_tokens(notes: dict[str, dict]) -> dict[str, int]:
    """The linears (of experts, or never called) that were solved from fewer than FEW_TOKENS tokens, with how many."""
    return {fqn: told["tokens"] for fqn, told in notes.items()
            if told.get("tokens") is not None and told["tokens"] < FEW_TOKENS}
