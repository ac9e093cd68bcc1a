"""How much a grid will still write, and whether there is room for it."""

import shutil

from core.errors import UserError
from core.registry import QUANTIZERS, SCORERS
from harness.forecast.memory import kinds_to_make
from harness.forecast.sizes import finished
from harness.stages.base_quantized import base_quantized_key
from harness.stages.best_scores import BYTES
from harness.stages.case import Case
from harness.stages.gradients import gradients_key
from harness.stages.library import library_key, menu_of
from harness.stages.options import buys_forms, reads_data
from harness.stages.plan import plan_key
from harness.stages.scores import reads_whole_scores, scores_needed
from harness.stages.tune import rounds_of
from quantization.bits import layer_bits
from streams.gradients import KINDS

SMALL = 2**28  # bytes for samples, plans and all scores that are not one number a weight


def check_disk(cases: list[Case], workers: int = 1) -> None:
    """Room for what these cells of one model will still write."""
    if not cases:
        return
    needed, root = disk_bytes(cases, workers), cases[0].store.root
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UserError(f"{root} has {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB are needed; free some or "
                        "use --cache_dir")


def disk_bytes(cases: list[Case], workers: int = 1) -> int:
    """Bytes of what is not stored yet: element scores, gradient sums, quantized models to compare with, unfinished work
    on all these; samples.

    Unfinished work is there once for each cell at work: solved blocks in the model's dtype, and two snapshots of
    gradient sums while one takes the other's place.  How many jobs of a cluster work at a time is not known here
    (workers 0): they count
    once, and every job asks again.
    """
    sums: set[str] = set()
    element: dict[str, float] = {}  # scores of single weights -> their bytes a weight
    compared: dict[str, bool] = {}  # quantized models to compare with -> whether a solver makes them
    passes: dict[str, int] = {}
    libraries: dict[str, int] = {}  # of forms -> their bytes
    solving, coded, store, sizes = 0, 0, cases[0].store, cases[0].model.sizes
    for case in cases:
        if finished(case):
            continue
        to_score = None
        if case.method.scorer and not store.has(plan_key(case)[0]) and not store.has(needed := scores_needed(case)):
            to_score = SCORERS.get(case.method.scorer)
            if to_score.granularity == "element":
                element[needed] = 4 if reads_whole_scores(case) else BYTES
        kinds = kinds_to_make(case, to_score)
        sums |= {gradients_key(case, kind)[0] for kind in kinds}
        passes |= {gradients_key(case, KINDS[0])[0]: len(kinds)} if kinds else {}
        if to_score and to_score.compares and not store.has(key := base_quantized_key(case)[0]):
            compared[key] = bool(QUANTIZERS.get(case.value("corrupt")).needs)
        solving += reads_data(case.method)
        coded += bool(rounds_of(case))
        if buys_forms(case.method) and not store.has(key := library_key(case)[0]):
            libraries[key] = sum(layer_bits(form.layer(shape[1], None), shape) for form in menu_of(case)
                                 for shape in case.model.shapes.values()) // 8
    at_once = max(1, workers)
    snapshots = 2 * sum(sorted(passes.values())[-at_once:])
    blocks = min(at_once, solving) + min(at_once, sum(compared.values()))
    stored = 2 * sum(libraries.values())  # finished blocks lie there beside what they are stored as
    whole = 4 * (len(sums) + snapshots) + sum(element.values()) + sizes.itemsize * (len(compared) + blocks)
    # beside tuned rows' blocks lie their codes
    whole += min(at_once, coded)
    return int(sizes.linears * whole) + stored + SMALL + at_once * offloaded_bytes(cases, passes)


def offloaded_bytes(cases: list[Case], passes: dict[str, int]) -> int:
    """What a process at work has in files without names: blocks, linears as loaded, and one after another the sums of a
    backward pass, scores of single weights, the quantized model to compare with.
    """
    model, todo = cases[0].model, [case for case in cases if not finished(case)]
    if model.offload != "disk" or not todo:
        return 0
    d, scorers = model.sizes, {case.method.scorer for case in todo if case.method.scorer}
    scores = 4 * any(SCORERS.get(name).granularity == "element" for name in scorers)
    return d.itemsize * (d.in_blocks + d.linears) + d.linears * max(scores, 4 * max(passes.values(), default=0))
