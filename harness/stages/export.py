"""The export stage: one cell's quantized model as a folder that an engine loads (quantization/packing/checkpoint.py).

Weights that a solver made are made again, for the store keeps what came out of them and not themselves; what is made
must be what the store says of it.  A library's forms and round-to-nearest need no solving.
"""

import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from core.activations import activations_of
from core.digest import atomic_write
from core.errors import UserError
from core.plain import is_plain
from core.registry import ALLOCATORS
from core.storage import SCALES, STORED_SCALES
from core.transforms import transform_of
from core.types import Plan
from harness.stages.activations import activations, kept
from harness.stages.case import Case
from harness.stages.cell import result_path
from harness.stages.model import check_plain
from harness.stages.options import published_quantizer, reads_data
from harness.stages.plan import plan, provenance
from harness.stages.weights import solve, true_plan, weights_key
from quantization.bits import grid_plan, stored_grid
from quantization.packing.checkpoint import (
    CARD,
    Contents,
    Packed,
    Sizes,
    Traits,
    check_can_hold,
    format_of,
    seal,
)
from quantization.packing.forms import packed, packed_alone
from report.records import Result, read_result

FORM_OF = {"spqr": "bilevel", "slim": "slim", "squeezellm": "codebook", "bnb-int8": "bnb8", "bnb-nf4": "bnb4",
           "bnb-fp4": "bnb4", "bnb-nf4-split": "split", "rtn-float": "float", "rtn-float-padded": "float"}


def export(case: Case, folder: Path, name: str, command: str = "") -> dict:
    """Write one cell's model into a new folder in the format of that name; returns what export.json says.

    The folder appears when it is whole.  Raises UserError before any work for a row that the format cannot hold, or a
    folder that is there already.
    """
    check_export_of(case, folder, name)
    planned = plan(case)
    check_can_hold(name, as_planned(traits_of(case), planned.plan))
    folder.parent.mkdir(parents=True, exist_ok=True)
    contents, true = contents_of(case, planned)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        sizes = format_of(name).write(partial, contents)
        case.model.tokenizer.save_pretrained(partial)
        facts = facts_of(case, true, contents, sizes, name=name, command=command)
        atomic_write(partial / CARD, card(case, facts))
        seal(partial, facts)
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        case.model.originals.restore()
    return facts


def check_export_of(case: Case, folder: Path, name: str) -> None:
    """Refuse what cannot be exported, before anything is computed."""
    if folder.exists():
        raise UserError(f"--export {str(folder)!r} is there already; give a new folder")
    if not transform_of(case.method.settings, case.cell.seed).plain:
        raise UserError(f"{case.method.name} folds a transform into the model, part of which runs with it, and no "
                        "format holds that; export a row without --transform")
    if case.method.allocator == "heads_a_token":
        raise UserError(f"{case.method.name} chooses heads for every token, so no weights hold it; export another row")
    if case.method.allocator != "none":
        check_plain(case.plain)
    check_can_hold(name, traits_of(case))


def traits_of(case: Case) -> Traits:
    """What decides which formats can hold the row."""
    method, how, skeleton = case.method, activations_of(case.method.settings), case.model.skeleton
    model = {"family": skeleton.config.model_type, "fused": not is_plain(skeleton)}
    if method.allocator == "none":
        return Traits(method.name, quantized=False, **model)
    quantizer = published_quantizer(case)
    keeps = ALLOCATORS.get(method.allocator).keeps or quantizer in ("spqr", "squeezellm")
    common = method.budgeted and not ALLOCATORS.get(method.allocator).exempt
    grid = stored_grid(2, 1, **STORED_SCALES[SCALES.of(method.options)]).form
    forms = {FORM_OF.get(quantizer, method.options.get("form", grid))}
    if common:
        forms = {"log"} if method.allocator == "menu" else {grid_plan(2, case.budget).form}
        bits = tuple(bits for bits in case.budget.levels if bits < 16)
    else:
        bits = tuple(sorted({int(method.options[key]) for key in ("bits", "high", "low") if key in method.options}))
    widths = [columns for _, columns in case.model.shapes.values()]
    group = case.group_size if common else method.options.get("group") or math.gcd(*widths)  # of rows: what all divide
    return Traits(method.name, forms=frozenset(forms), keeps=keeps,
                  mixes_groups=method.allocator == "balanced", bits=bits, group=group,
                  symmetric=bool(method.options.get("symmetric") or (common and case.value("symmetric"))),
                  activations=not how.plain, **model)


def as_planned(row: Traits, plan: Plan) -> Traits:
    """The same of a plan that is known: an allocator that may keep weights need not have kept any."""
    layers = [layer for layer in plan.layers.values() if layer.bits < 16 or layer.group_bits is not None]
    if row.forms & {"bilevel", "slim", "codebook", "float"} or not layers:
        return row  # what the quantizer will make of it
    return replace(row, forms=frozenset(layer.form for layer in layers),
                   keeps=any(layer.keep is not None and bool(layer.keep.any()) for layer in layers),
                   mixes_groups=any(layer.group_bits is not None for layer in layers),
                   bits=tuple(sorted({layer.bits for layer in layers})))


def contents_of(case: Case, planned) -> tuple[Contents, Plan]:
    """The model that holds the row's weights, the stored arrays of every linear, and the plan as it is truly stored."""
    model, quantizer = case.model, published_quantizer(case)
    linears: dict[str, Packed] = {}
    channels = kept(case)  # scored on the weights as loaded, so before others take their place
    true = planned.plan
    if reads_data(case.method):
        true = _solved(case, planned, linears)
    else:
        for fqn, layer in planned.plan.layers.items():
            if layer.bits < 16 or layer.group_bits is not None:
                weight = model.originals.weights[fqn]
                linears[fqn] = Packed(layer, packed_alone(weight, layer, quantizer))
        model.originals.apply(planned.plan, quantizer, case.progress.stage(f"{case.method.name}: quantizing"))
    return Contents(model.module, model.tokenizer, linears, quantizer or "", activations(case), channels), true


def _solved(case: Case, planned, linears: dict[str, Packed]) -> Plan:
    """Make the model hold what the row's quantizer gives, and fill ``linears``; the plan as it is truly stored."""
    def see(fqn: str, stored) -> None:
        linears[fqn] = Packed(stored.layer, packed(stored, case.model.originals.weights[fqn]))

    true = solve(case, planned, see=see)[1]
    if case.store.has(weights_key(case, planned.id)[0]):
        known = true_plan(case, planned)[0]
        if known.stored_bits != true.stored_bits:
            raise UserError(f"{case.method.name} came out with {true.stored_bits} stored bits, the store has "
                            f"{known.stored_bits}; run it again with another --cache_dir")
    return true


def facts_of(case: Case, true: Plan, contents: Contents, sizes: Sizes, *, name: str, command: str) -> dict:
    """What export.json says of a model: provenance, bits, bytes, and its measured row if there is one."""
    told = {"format": name, "command": command, "made_of": provenance(case, true),
            "bits": {"average": true.avg_bits, "whole_model": true.model_avg_bits, "stored": true.stored_bits},
            "bytes": {"counted": contents.counted, "linears": sizes.linears, "others": sizes.others,
                      "more": sizes.extra}}
    result = measured(case)
    if result is not None:
        told["row"] = {"file": result.file.name, "n": result.n, "metrics": {
            key: None if value is None else {"value": value.value, "low": value.low, "high": value.high}
            for key, value in result.metrics.items()}}
    return told


def measured(case: Case) -> Result | None:
    """The cell's result, if it was run."""
    path = result_path(case, Path(case.grid.results_dir))
    try:
        result = read_result(path) if path.is_file() else None
    except UserError:
        return None
    return result if result is not None and result.ok else None


def card(case: Case, facts: dict) -> str:
    """The model card: what it is, what it kept of the task, how to load it."""
    about, size, module = case.plain.ref, facts["bytes"], format_of(facts["format"])
    lines = [f"# {about.name}, {case.method.name}, {facts['bits']['average']:.3f} bits a weight", "",
             f"{about.name} (revision {about.revision[:12]}), quantized by {case.method.name} for "
             f"{case.cell.dataset}, seed {case.cell.seed}.", f"Format {facts['format']}: {module.WORDS}.", "",
             *_row(case, facts), "",
             f"Linears: {size['linears']:,} bytes; by the accountant {size['counted']:,}."
             + "".join(f" More: {reason} ({count:,})." for reason, count in size["more"].items() if count),
             f"Embeddings, norms, head and the file's own: {size['others']:,} bytes.", f"Load: `{module.LOAD}`",
             *([f"Made by: `{facts['command']}`"] if facts["command"] else [])]
    return "\n".join(lines) + "\n"


def _row(case: Case, facts: dict) -> list[str]:
    """The row of the table that the model has, with its intervals."""
    if "row" not in facts:
        return [f"Not measured yet on {case.cell.dataset}: the same command without --export asks it the questions."]
    named = {key: value for key, value in facts["row"]["metrics"].items() if value is not None}
    head = "| method | bits | " + " | ".join(named) + " |"
    cells = [f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" for value in named.values()]
    return [head, "| :--- | ---: |" + " ---: |" * len(named),
            f"| {case.method.name} | {facts['bits']['average']:.3f} | " + " | ".join(cells) + " |",
            f"{facts['row']['n']} documents of {case.cell.dataset}; 95 % intervals."]
