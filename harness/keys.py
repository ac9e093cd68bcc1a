"""Keys: what each stage's output depends on, and nothing else.

    distortion   model, levels, group size, quantizer                 (shared by all methods and data sets)
    gradients    model, solvers' calibration set, loss mask, dtype    (one entry a kind: Σ|g|, Σg², Σg)
    scores       model, scorer and version, its declared parameters, calibration if it reads it; never the budget
                 (a scorer that compares with the quantized model reads the base level: the highest whole level below the budget)
    plan         scores, budget, allocator and version, distortion if it reads it
    weights      plan content, quantizer, version and options, and the solvers' calibration set if it reads data
                 (ŵ itself is made again when needed; what came out, its true bits and damping, is stored)
    samples      weights, what is asked, batch plan, dtype, kind of device, threads

A cell's own key is made of its plan's and its evaluation's inputs, so it is known before anything is computed.
"""

from dataclasses import asdict

from core.digest import digest
from core.registry import ALLOCATORS, QUANTIZERS, SCORERS, MethodSpec
from core.types import LayerPlan
from harness.config import Cell
from harness.data import CellData, solver_calib
from harness.session import Session
from harness.store import stage_key
from quantization.bits import uniform_bits

VERSIONS = {"distortion": 1, "gradients": 1, "scores": 1, "plan": 1, "weights": 1, "samples": 1}


def published_quantizer(spec: MethodSpec, published: bool) -> str | None:
    """The native quantizer with the script's padding quirk, when --published asks for it."""
    return "rtn-float-padded" if published and spec.quantizer == "rtn-float" else spec.quantizer


def score_params(session: Session, cell: Cell) -> dict:
    """The config fields that scorers may declare."""
    grid = session.grid
    compares = set(SCORERS.get(cell.method.scorer).params) & {"base", "corrupt"}
    return {"seed": cell.seed, "score_docs": grid.score_docs, "kl_docs": grid.kl_docs, "oracle_docs": grid.oracle_docs,
            "oracle_metric": grid.oracle_metric, "batch_tokens": grid.batch_tokens, "published": grid.published,
            "grad_dtype": grid.grad_dtype, "base": base(session, cell) if compares else None,
            "corrupt": corrupting(session, cell) if compares else None,
            "group_size": session.group_size if "group_size" in SCORERS.get(cell.method.scorer).params else None}


def base(session: Session, cell: Cell) -> dict:
    """How every linear is stored before any weight is kept.

    Common rows: the highest level that the budget affords everywhere, on the common grid.  Native rows: their N bits and group.
    """
    spec = cell.method
    if spec.native and "bits" in spec.options:
        return {"bits": spec.options["bits"], "group": spec.options.get("group")}
    budget = session.budget(cell.avg_bits)
    total = budget.avg_bits * sum(r * c for r, c in session.shapes.values())
    fits = [b for b in budget.levels if b < 16 and uniform_bits(b, session.shapes, budget) <= total]
    return {"bits": max(fits, default=min(budget.levels)), "group": budget.group_size}


def corrupting(session: Session, cell: Cell) -> dict:
    """By which quantizer the model that TaCQ compares with is made; a native row's own search and quirks, if it has any."""
    name = session.grid.corrupt
    return {"quantizer": [name, QUANTIZERS.get(name).version], "options": quantizer_options(session, cell.method, name)}


def base_layer(found: dict, shape: tuple[int, int]) -> LayerPlan:
    """The LayerPlan of :func:`base` for one linear; no group = one scale a row."""
    return LayerPlan(found["bits"], found["group"] or shape[1])


def gradient_kinds(scorer: str | None, quantizer: str | None) -> set[str]:
    """Kinds of gradient sums that a scorer and a quantizer read; a common row's quantizer, not named yet, reads none."""
    kinds = set(SCORERS.get(scorer).gradients) if scorer else set()
    return kinds | ({"square"} if quantizer in QUANTIZERS and "fisher" in QUANTIZERS.get(quantizer).needs else set())


def gradients_key(session: Session, cell: Cell, data: CellData, kind: str) -> tuple[str, dict]:
    """Digest of one kind of gradient sum."""
    grid = session.grid
    calib, tokens = solver_calib(session, data, cell.seed)
    return stage_key("gradients", VERSIONS["gradients"], model=session.ref.key, kind=kind, calib=tokens, counted=digest(list(calib.loss_mask)),
                     dtype=grid.grad_dtype, machine=session.machine)


def corrupted_key(session: Session, cell: Cell, data: CellData) -> tuple[str, dict]:
    """Digest of the quantized model that TaCQ compares with."""
    params = score_params(session, cell)
    return stage_key("corrupted", VERSIONS["weights"], model=session.ref.key, base=params["base"], corrupt=params["corrupt"],
                     calib=solver_calib(session, data, cell.seed)[1], machine=session.machine)


def scores_key(session: Session, cell: Cell, data: CellData) -> tuple[str, dict]:
    """Digest of a cell's scores: only what the scorer reads, never the budget."""
    spec = SCORERS.get(cell.method.scorer)
    params = score_params(session, cell)
    read = {p: params[p] for p in spec.params}
    upstream = {"model": session.ref.key, "scorer": [spec.name, spec.version], "params": read}
    if set(spec.needs) & {"calib", "labels"}:
        upstream |= {"calib": data.calib_digest, "machine": session.machine}
    if set(spec.needs) & {"gradients", "hessian"}:
        upstream |= {"solver_calib": solver_calib(session, data, cell.seed)[1], "machine": session.machine}
    if spec.gradients:
        upstream |= {"gradients": [gradients_key(session, cell, data, kind)[0] for kind in spec.gradients]}
    if "labels" in spec.needs:
        upstream |= {"labels": data.labels_digest, "eval_config": asdict(data.cfg)}
    return stage_key("scores", VERSIONS["scores"], **upstream)


def plan_options(session: Session, spec: MethodSpec) -> dict:
    """The allocator's options; --published adds the rounding of the script's first version where it is read."""
    quirk = session.grid.published and "rounding" in ALLOCATORS.get(spec.allocator).options
    return spec.options | ({"rounding": "round"} if quirk else {})


def distortion_quantizer(spec: MethodSpec, published: bool) -> str | None:
    """Whose error the knapsack weighs: the row's own quantizer, or round-to-nearest where that one reads data."""
    name = published_quantizer(spec, published)
    return "rtn" if name and QUANTIZERS.get(name).needs else name


def plan_key(session: Session, cell: Cell, scored: str | None) -> tuple[str, dict]:
    """Digest of a plan's inputs; an exempt allocation reads no budget but the group size and scale bits."""
    spec, budget = cell.method, asdict(session.budget(cell.avg_bits))
    alloc, quant = ALLOCATORS.get(spec.allocator), distortion_quantizer(spec, session.grid.published)
    if not spec.budgeted:
        budget = {name: budget[name] for name in ("group_size", "scale_bits")}
    quantizer = [quant, QUANTIZERS.get(quant).version, VERSIONS["distortion"]] if quant else None
    options = {k: v for k, v in plan_options(session, spec).items() if k in alloc.options}
    return stage_key("plan", VERSIONS["plan"], model=session.ref.key, scores=scored, allocator=[alloc.name, alloc.version],
                     options=options, budget=budget, quantizer=quantizer)


def quantizer_options(session: Session, spec: MethodSpec, quantizer: str) -> dict:
    """The row's options that a quantizer reads; a native row's follows the published code's quirks if asked, the common grid has none."""
    named = {k: v for k, v in spec.options.items() if k in QUANTIZERS.get(quantizer).options}
    return named | ({"published": True} if session.grid.published and spec.native else {})


def weights_key(session: Session, cell: Cell, data: CellData, plan_id: str) -> tuple[str, dict]:
    """Digest of the quantized weights of a row whose quantizer reads data."""
    spec = QUANTIZERS.get(cell.method.quantizer)
    read = {"calib": solver_calib(session, data, cell.seed)[1], "options": quantizer_options(session, cell.method, spec.name)}
    if "fisher" in spec.needs:
        read["fisher"] = gradients_key(session, cell, data, "square")[0]
    return stage_key("weights", VERSIONS["weights"], model=session.ref.key, plan=plan_id, quantizer=[spec.name, spec.version],
                     machine=session.machine, **read)


def samples_key(session: Session, cell: Cell, data: CellData, plan_id: str) -> tuple[str, dict]:
    """Digest of the samples: the weights by content, what is asked and how it is batched, and the arithmetic."""
    quant = published_quantizer(cell.method, session.grid.published)
    if quant and QUANTIZERS.get(quant).needs:
        weights = weights_key(session, cell, data, plan_id)[0]
    else:
        weights = [plan_id, [quant, QUANTIZERS.get(quant).version] if quant else None, VERSIONS["weights"]]
    return stage_key("samples", VERSIONS["samples"], model=session.ref.key, weights=weights, evaluation=data.eval_digest,
                     machine=session.machine)


def cell_key(session: Session, cell: Cell, data: CellData) -> str:
    """Digest of a whole cell, known before anything is computed: its plan's and its evaluation's inputs."""
    scored = scores_key(session, cell, data)[0] if cell.method.scorer else None
    return samples_key(session, cell, data, f"{cell.method.name}:{plan_key(session, cell, scored)[0]}")[0]


def upstream_keys(session: Session, cell: Cell, data: CellData) -> list[str]:
    """Digests of what a cell's scores are made of, and of the scores: what another process may be making just now."""
    kinds = gradient_kinds(cell.method.scorer, cell.method.quantizer)
    found = [gradients_key(session, cell, data, kind)[0] for kind in sorted(kinds)]
    return found + ([scores_key(session, cell, data)[0]] if cell.method.scorer else [])
