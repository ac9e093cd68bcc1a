"""A cell from its key to its result: the chain of stages, and what happens when one of them fails."""

import traceback
from dataclasses import replace
from pathlib import Path

from core.digest import digest
from core.errors import StorageError, UserError, one_line, storage_error
from core.registry import SCORERS
from core.sample import Sample
from harness.grid import table_settings
from harness.stages.base_quantized import base_quantized_key
from harness.stages.case import Case
from harness.stages.gradients import gradients_key, own_kinds
from harness.stages.library import library_key
from harness.stages.options import buys_forms, reads_data
from harness.stages.outputs import outputs_key
from harness.stages.pivots import pivots_key
from harness.stages.plan import plan, plan_key
from harness.stages.prices import dots_key, reads_dots
from harness.stages.result import failed, file_stem, finished, questions
from harness.stages.samples import labelled, samples, samples_key
from harness.stages.scores import documents_read, scores_key, whole_scores_key
from harness.stages.weights import true_plan, weights_key
from report.records import Result, load_samples, read_result, write_questions, write_result


def cell_key(case: Case) -> str:
    """Digest of a whole cell, known before anything is computed: its plan's and its evaluation's inputs."""
    return samples_key(case, f"{case.method.name}:{plan_key(case)[0]}")[0]


def upstream(case: Case) -> dict[str, str]:
    """Digests of a cell's scores or library, and of what they are made of: another process may be making them now."""
    keys = {f"gradients {kind}": gradients_key(case, kind)[0] for kind in sorted(own_kinds(case))}
    if buys_forms(case.method):
        keys["library"] = library_key(case)[0]
        if reads_dots(case):
            keys["prices"] = dots_key(case)[0]
    if case.method.scorer is None:
        return keys
    spec = SCORERS.get(case.method.scorer)
    if "outputs" in spec.needs:
        keys["outputs"] = outputs_key(case, documents_read(case, spec))[0]
    if "hessian" in spec.needs:
        keys["pivots"] = pivots_key(case)[0]
    keys["scores"] = scores_key(case)[0]
    return keys | ({"element_scores": whole_scores_key(case)[0]} if spec.granularity == "element" else {})


def being_made(case: Case) -> bool:
    """Whether another process seems to be making something that the cell needs: scores, its plan, or its weights."""
    busy = case.store.busy
    if any(map(busy, upstream(case).values())):
        return True
    if case.method.allocator == "none":
        return False
    if not case.store.has(key := plan_key(case)[0]):
        return busy(key)
    return reads_data(case.method) and busy(weights_key(case, _plan_id(case))[0])


def _plan_id(case: Case) -> str:
    """The plan's identity; every forecast asks, and masks take long to read."""
    return case.once("plan id", lambda: plan(case).id)


def run_cell(case: Case, folder: Path) -> Result:
    """Run a cell and write its result; an error is written down, not raised, unless the disk refuses."""
    label, cell = case.cell.label, case.cell
    # if even its own key cannot be made
    key = digest([case.model.ref.key, cell.method.name, cell.dataset, cell.avg_bits, cell.seed])
    try:
        key = cell_key(case)
        result, answers = stored_result(case, folder), None
        if result is None:
            result, answers = compute_cell(case)
            key = result.cell
    except (Exception, SystemExit) as error:  # recorded with its traceback; the grid goes on and the exit code tells
        stop = error if isinstance(error, StorageError) else storage_error(error, case.store.root)
        if stop:
            raise stop from error
        if isinstance(error, SystemExit) and _queued_again(error):
            raise
        result, answers = failed(case, key, _reason(error), traceback.format_exc()), None
    if result.file is None:
        stem = file_stem(case, key)
        write_result(folder, stem, result, answers)
        result = replace(result, file=folder / f"{stem}.json")
    if result.ok:
        write_questions(folder, result.asked, questions(case))
    case.progress.cell_done(_line(label, result))
    return result


def _line(label: str, result: Result) -> str:
    """What is said of a cell that has ended."""
    if not result.ok:
        return f"FAILED  {label}: {result.error}"
    return f"{label}: {in_words(result)}"


def in_words(result: Result) -> str:
    """What a finished cell measured: its task's first metric, and how likely the gold answers are."""
    name = next(iter(result.task.metrics))
    measured = result.metrics.get(name)
    first = "" if measured is None else f"{name} {measured.value:.3f}, "
    return (f"{first}gold log-likelihood {result.metrics['gold_loglik'].value:.3f} nats/token "
            f"at {result.bits.average:.3f} bits")


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (f"SystemExit: {one_line(error)}; a scorer, allocator or quantizer must return or raise, "
                "not end the program")
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _queued_again(error: SystemExit) -> bool:
    """Whether it is submitit that ends this job, which it has put back into the queue."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "submitit" in Path(frames[-1].filename).parts


def result_path(case: Case, folder: Path) -> Path:
    """Where the cell's result lies, or would."""
    return folder / f"{file_stem(case, cell_key(case))}.json"


def stored_result(case: Case, folder: Path) -> Result | None:
    """The cell's result if it is there, whole, and its samples are in the store: a run then only reads.

    What it was made of (scores, plans, weights) is not read again, since nothing of it is used.
    """
    path = result_path(case, folder)
    if not path.is_file():
        return None
    try:
        result = read_result(path)
        answers = load_samples(result) if result.ok else []
    except UserError:  # damaged: written again
        return None
    same = result.ok and (result.model.given, result.settings, result.machine) == (
        case.model.label, table_settings(case.grid), case.model.machines)
    if not same or len(answers) != len(case.data.requests) or answers != labelled(case, answers):
        return None
    return result if case.store.get(result.stages["samples"]) else None


def served(case: Case) -> bool:
    """Whether the store has all that the cell's result is read from: its plan, its weights' record, its samples."""
    if case.method.allocator != "none" and not case.store.has(plan_key(case)[0]):
        return False
    planned, solved = _plan_id(case), reads_data(case.method)
    return (case.store.has(samples_key(case, planned)[0])
            and (not solved or case.store.has(weights_key(case, planned)[0])))


def compute_cell(case: Case) -> tuple[Result, list[Sample]]:
    """The chain of stages; returns the result and the samples."""
    planned = plan(case)
    key, answers = samples(case, planned)
    made_of = upstream(case) | ({"plan": planned.entry} if planned.entry else {}) | {"samples": key}
    stages = {"scores": made_of.get("scores"), "plan": planned.id, "plan_entry": planned.entry, "samples": key}
    true = planned.plan
    if reads_data(case.method):
        true, told = true_plan(case, planned)
        stages["weights"] = made_of["weights"] = weights_key(case, planned.id)[0]
        true.notes["solver"] = told
    seconds = _seconds(case, made_of)
    stages["evaluation"] = case.data.eval_digest
    result = finished(case, cell_key(case), planned=planned, true=true, stages=stages, seconds=seconds, samples=answers)
    return result, answers


def _seconds(case: Case, made_of: dict[str, str]) -> dict[str, float]:
    """Seconds of making each stage, those inside it not counted; kinds of gradients share one pass."""
    seconds: dict[str, float] = {}
    if case.method.scorer and SCORERS.get(case.method.scorer).compares:
        made_of = {"base_quantized": base_quantized_key(case)[0]} | made_of
    for stage, key in made_of.items():
        name = stage.partition(" ")[0]
        if case.store.has(key):
            seconds[name] = max(seconds.get(name, 0.0), case.store.seconds(key))
    return seconds
