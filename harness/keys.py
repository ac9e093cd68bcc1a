"""Keys: what each stage's output depends on, and nothing else.

    distortion   model, levels, group size, quantizer                 (shared by all methods and data sets)
    scores       model, scorer and version, its declared parameters, calibration if it reads it; never the budget
    plan         scores, budget, allocator and version, distortion if it reads it
    weights      plan content, quantizer and version                  (recomputed, never stored: round-to-nearest is cheap)
    samples      weights, what is asked, batch plan, dtype, kind of device, threads

A cell's own key is made of its plan's and its evaluation's inputs, so it is known before anything is computed.
"""

from dataclasses import asdict

from core.registry import ALLOCATORS, QUANTIZERS, SCORERS, MethodSpec
from harness.config import Cell
from harness.data import CellData
from harness.session import Session
from harness.store import stage_key

VERSIONS = {"distortion": 1, "scores": 1, "plan": 1, "weights": 1, "samples": 1}


def published_quantizer(spec: MethodSpec, published: bool) -> str | None:
    """The native quantizer with the script's padding quirk, when --published asks for it."""
    return "rtn-float-padded" if published and spec.quantizer == "rtn-float" else spec.quantizer


def score_params(session: Session, cell: Cell) -> dict:
    """The config fields that scorers may declare."""
    grid = session.grid
    return {"seed": cell.seed, "score_docs": grid.score_docs, "kl_docs": grid.kl_docs, "oracle_docs": grid.oracle_docs,
            "oracle_metric": grid.oracle_metric, "batch_tokens": grid.batch_tokens, "published": grid.published}


def scores_key(session: Session, cell: Cell, data: CellData) -> tuple[str, dict]:
    """Digest of a cell's scores: only what the scorer reads, never the budget."""
    spec = SCORERS.get(cell.method.scorer)
    read = {p: score_params(session, cell)[p] for p in spec.params}
    upstream = {"model": session.ref.key, "scorer": [spec.name, spec.version], "params": read}
    if set(spec.needs) & {"calib", "labels", "gradients"}:
        upstream |= {"calib": data.calib_digest, "machine": session.machine}
    if "labels" in spec.needs:
        upstream |= {"labels": data.labels_digest, "eval_config": asdict(data.cfg)}
    return stage_key("scores", VERSIONS["scores"], **upstream)


def plan_options(session: Session, spec: MethodSpec) -> dict:
    """The allocator's options; --published adds the rounding of the script's first version where it is read."""
    quirk = session.grid.published and "rounding" in ALLOCATORS.get(spec.allocator).options
    return spec.options | ({"rounding": "round"} if quirk else {})


def plan_key(session: Session, cell: Cell, scored: str | None) -> tuple[str, dict]:
    """Digest of a plan's inputs; an exempt allocation reads no budget but the group size and scale bits."""
    spec, budget = cell.method, asdict(session.budget(cell.avg_bits))
    alloc, quant = ALLOCATORS.get(spec.allocator), published_quantizer(spec, session.grid.published)
    if not spec.budgeted:
        budget = {name: budget[name] for name in ("group_size", "scale_bits")}
    quantizer = [quant, QUANTIZERS.get(quant).version, VERSIONS["distortion"]] if quant else None
    return stage_key("plan", VERSIONS["plan"], model=session.ref.key, scores=scored, allocator=[alloc.name, alloc.version],
                     options=plan_options(session, spec), budget=budget, quantizer=quantizer)


def samples_key(session: Session, cell: Cell, data: CellData, plan_id: str) -> tuple[str, dict]:
    """Digest of the samples: the weights by content, what is asked and how it is batched, and the arithmetic."""
    quant = published_quantizer(cell.method, session.grid.published)
    weights = [plan_id, [quant, QUANTIZERS.get(quant).version] if quant else None, VERSIONS["weights"]]
    return stage_key("samples", VERSIONS["samples"], model=session.ref.key, weights=weights, evaluation=data.eval_digest,
                     machine=session.machine)


def cell_key(session: Session, cell: Cell, data: CellData) -> str:
    """Digest of a whole cell, known before anything is computed: its plan's and its evaluation's inputs."""
    scored = scores_key(session, cell, data)[0] if cell.method.scorer else None
    return samples_key(session, cell, data, f"{cell.method.name}:{plan_key(session, cell, scored)[0]}")[0]
