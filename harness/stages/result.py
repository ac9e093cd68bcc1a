"""The result of a cell as the record that tables read (report/records.py), and its file name."""

import re
from dataclasses import asdict, fields

from core.digest import digest
from core.environment import device_peak_bytes, peak_bytes, versions
from core.sample import Sample
from core.types import Plan
from evaluation.statistics.summary import by_stratum, summarise
from harness.grid import reads_solver_calib, table_settings
from harness.stages.alignment import words
from harness.stages.case import Case
from harness.stages.plan import Planned
from report.records import Bits, MethodFacts, ModelFacts, Question, Result, TaskFacts


def file_stem(case: Case, key: str) -> str:
    """A readable file name that ends in the settings' and the cell's digests.

    fp16 and other rows that do not read a setting have one digest under all of them, and yet stand in every table.
    """
    cell = case.cell
    bits = f"{cell.avg_bits:g}b" if cell.avg_bits is not None else "own"
    text = f"{case.model.ref.name}__{cell.dataset}__{cell.method.name}__{bits}__s{cell.seed}"
    return f"{plain_name(text)}__{digest(table_settings(case.grid))[:6]}__{key}"


def plain_name(text: str) -> str:
    """``text`` with what no file name should hold as dashes."""
    return re.sub(r"[^A-Za-z0-9_.+@-]", "-", text)


def finished(case: Case, key: str, *, planned: Planned, true: Plan, stages: dict, seconds: dict,
             samples: list[Sample]) -> Result:
    """The result of a finished cell; ``true``: the plan as it is stored, ``stages``: digests of what it is made of."""
    data, task, meta = case.data, case.data.task, case.store.meta(stages["samples"])
    metrics = summarise(samples)
    bits = Bits(average=true.avg_bits, whole_model=true.model_avg_bits, stored=true.stored_bits,
                group_size=case.group_size if case.method.budgeted else None,
                per_linear={fqn: layer.bits for fqn, layer in true.layers.items()}, notes=true.notes | _rest(case))
    calibration = {}
    if case.shows_prompts:
        calibration = {"read": case.reads_prompts, "text": case.prompts.task, "documents": len(case.prompts.doc_ids),
                       "truncated": case.prompts.truncated, "digest": case.prompts_digest}
    strata = by_stratum(samples)
    return Result(
        **_head(case, key) | {"versions": meta["provenance"].get("versions", {})}, status="ok", error=None,
        made=meta["time"], n=len(samples), metrics=metrics | task.derived(metrics), strata=strata,
        task=TaskFacts(task.kind, dict(task.metrics), task.chance([r.doc for r in data.requests]),
                       {name: task.groups[name] for name in strata if name in task.groups}),
        task_version=task.version, scoring=data.cfg.scoring, evaluation=asdict(data.cfg), data_note=data.note,
        bits=bits, stages=stages, calibration=calibration, solver_calibration=_solver_facts(case),
        probe=planned.probe, score_notes=planned.score_notes, seconds=seconds,
        process_peak_bytes=peak_bytes(), device_peak_bytes=device_peak_bytes(case.model.devices))


def questions(case: Case) -> list[Question]:
    """What the case's documents ask, for people to read."""
    return [Question(r.doc.doc_id, r.doc.question, tuple(r.doc.options)) for r in case.data.requests]


def _rest(case: Case) -> dict:
    """What of the blocks is not quantized, where that is more than norms."""
    share, names = case.model.rest
    return {"rest_of_blocks": {"share": share, "matrices": names}} if names else {}


def _solver_facts(case: Case) -> dict | None:
    """What solvers and gradients of this row read; None if it has none."""
    if not reads_solver_calib(case.method):
        return None
    calib, data = case.solver_calib, case.calib_data
    return {"text": calib.task, "documents": len(calib.doc_ids), "tokens": sum(map(len, calib.tokens)),
            "asked_tokens": case.value("calib_tokens"), "truncated": calib.truncated, "seed": case.cell.seed,
            "digest": case.solver_calib_digest, **({"chosen": words(case.aligned)} if case.aligned else {}),
            "whole_pool": calib.task == data.task.name and len(calib.doc_ids) >= len(data.calib_docs)}


def failed(case: Case, key: str, error: str, trace: str) -> Result:
    """The record of a cell that failed."""
    return Result(**_head(case, key), status="error", error=error, traceback=trace)


def _model(case: Case) -> ModelFacts:
    """Which weights, as loaded: what is folded into them stands in the row's brackets."""
    ref = case.plain.ref
    return ModelFacts(ref.name, ref.revision, ref.dtype, given=case.model.label)


def _head(case: Case, key: str) -> dict:
    cell = case.cell
    return {"cell": key, "model": _model(case),
            "method": MethodFacts(**{fact.name: getattr(cell.method, fact.name) for fact in fields(MethodFacts)}),
            "dataset": cell.dataset, "avg_bits": cell.avg_bits, "seed": cell.seed, "run_type": case.grid.run_type,
            "settings": table_settings(case.grid), "machine": case.model.machines, "versions": versions()}
