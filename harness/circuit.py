"""The circuit-aware method step by step: score a model, quantize it by the scores into a folder, ask that folder.

The grid's own stages and store do the work; `circuit-native` in a grid is the same in one step.  A settings file
(configs/*.yaml) names what the first step reads:

    model: smollm2-135m                 # alias, hub id or folder
    dataset: mmlu_pro                   # whose answers the circuit carries
    fp16_ratio: 0.2                     # share of the heads, and of the neurons, that stays at 16 bits
    attn_importance_threshold: 0.0      # heads below this share of the best head's importance are not kept at all
    mlp_importance_threshold: 0.0       # neurons likewise
    calibration: {method: IntegratedGradients, n_steps: 20, documents: 32, baseline: mean}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from core import demo_model
from core.digest import digest
from core.errors import UserError, did_you_mean, one_line
from core.registry import ALLOCATORS
from core.types import Plan, Scores
from harness.api import Answers, answers_of, evaluate, one_case
from harness.presets import DEMO_MODEL
from harness.stages.case import Case
from harness.stages.plan import alloc_context
from harness.stages.scores import scores as scores_of
from quantization.bits import make_plan
from quantization.packing.split import about, is_split, save_split

FORMAT = "circuit-scores-1"
EVAL_SIZE = 256


@dataclass(frozen=True)
class Calibration:
    """How importance is measured."""

    method: str = "IntegratedGradients"
    n_steps: int = 20
    documents: int = 32
    baseline: str = "mean"


@dataclass(frozen=True)
class CircuitSettings:
    """A settings file; every field can be left out."""

    model: str = "smollm2-135m"
    dataset: str = "mmlu_pro"
    fp16_ratio: float = 0.2
    attn_importance_threshold: float = 0.0
    mlp_importance_threshold: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)


def read_settings(path: Path | None, model: str | None = None) -> CircuitSettings:
    """A settings file as checked values, for this model if one is named; None gives the defaults.

    Raises UserError that names file and key, also where the file is of another model.
    """
    if path is None:
        return CircuitSettings(model=model or CircuitSettings.model)
    import yaml

    try:
        plain = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"settings file {str(path)!r} does not read ({one_line(error)}); write YAML as in "
                        "configs/") from None
    settings = _checked(plain or {}, CircuitSettings, str(path))
    if model is None:
        return settings
    if "model" in (plain or {}) and _plain_name(settings.model) != _plain_name(model):
        raise UserError(f"settings file {str(path)!r} is of model {settings.model!r}, not of {model!r}; give that "
                        "model's, or take the line model: out")
    return replace(settings, model=model)


def _plain_name(model: str) -> str:
    """The last part of a hub id or folder, in small letters; the demo's model has two names."""
    name = Path(model).name.lower()
    return DEMO_MODEL if name == demo_model.NAME.lower() else name


def _checked(plain, kind: type, where: str):
    """An instance of a dataclass of plain values; a nested one by its own fields."""
    if not isinstance(plain, dict):
        raise UserError(f"{where} is {plain!r}; give keys with values: {', '.join(f.name for f in fields(kind))}")
    known, values = {f.name: f for f in fields(kind)}, {}
    for name, value in plain.items():
        if name not in known:
            raise UserError(f"{where} has an unknown key {name!r}{did_you_mean(str(name), known)}; known: "
                            f"{', '.join(known)}")
        if name == "calibration":
            values[name] = _checked(value, Calibration, f"{where}: calibration")
            continue
        wanted = type(getattr(kind(), name))
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UserError(f"{where}: {name} is {value!r}; give {WORDS[wanted]}")
        values[name] = wanted(value)
    made = kind(**values)
    for name in ("fp16_ratio", "attn_importance_threshold", "mlp_importance_threshold"):
        if not 0 <= getattr(made, name, 0) <= 1:
            raise UserError(f"{where}: {name} is {getattr(made, name)}; give a share from 0 to 1")
    if getattr(made, "method", "IntegratedGradients") != "IntegratedGradients":
        raise UserError(f"{where}: method is {made.method!r}; use IntegratedGradients")
    return made


WORDS = {str: "a text", int: "a whole number", float: "a number"}


def calibrate(settings: CircuitSettings, output: Path, **grid) -> Scores:
    """Score the model's heads and neurons and write them to a safetensors file, with what they belong to."""
    given = settings.calibration
    case = one_case(settings.model, "circuit", settings.dataset, {
        "circuit_docs": given.documents, "ig_steps": given.n_steps, "baseline": given.baseline, **grid})
    scores = scores_of(case)
    facts = {"format": FORMAT, "model": case.model.ref.key, "name": case.model.ref.name, "dataset": settings.dataset,
             "eval_size": case.grid.eval_size, "granularity": scores.granularity, "unit": scores.unit,
             "calibrated": [_text_digest(doc.question) for doc in case.calib_data.calib_docs], "notes": scores.notes}
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    save_file({fqn: value.contiguous() for fqn, value in scores.values.items()}, temporary,
              {"about": json.dumps(facts)})
    temporary.replace(output)
    return scores


def read_scores(path: Path) -> tuple[Scores, dict]:
    """Scores as :func:`calibrate` wrote them, and what they belong to.  Raises UserError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["about"])
            values = {name: file.get_tensor(name) for name in file.keys()}
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r}")
        return Scores(facts["granularity"], values, facts["unit"], notes=facts["notes"]), facts
    except Exception as error:  # the library's own errors have no common class
        raise UserError(f"scores file {str(path)!r} does not read ({one_line(error)}); make it with "
                        "scripts/calibrate.py") from None


def quantize(model: str, scores: Path, output: Path, settings: CircuitSettings, **grid) -> tuple[Plan, int]:
    """Keep the best heads and neurons of a model at 16 bits, the rest in NF4, and write the checkpoint; returns the
    plan, with its true bits, and the bytes of the weights' file.

    Raises UserError if the scores are those of another model, or the folder is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{str(output)!r} is there and not empty; give a new folder")
    given, facts = read_scores(scores)
    case = one_case(model, "circuit-native", facts["dataset"], dict(grid))
    if case.model is not case.plain:
        raise UserError("a checkpoint cannot hold what --transform folds in, part of which runs with the model; leave "
                        "it out")
    if facts["model"]["revision"] != case.model.ref.revision:
        raise UserError(f"the scores in {str(scores)!r} are those of {facts['name']}, not of {model!r}; make scores "
                        "of this model with scripts/calibrate.py")
    plan = allocate(case, given, settings)
    size = save_split(output, case.model.module, plan.layers,
                      {"model": case.model.ref.name, "revision": case.model.ref.revision,
                       "fp16_ratio": settings.fp16_ratio, "dataset": facts["dataset"],
                       "eval_size": facts["eval_size"], "calibrated": facts["calibrated"], "avg_bits": plan.avg_bits})
    case.model.module.config.save_pretrained(output)
    case.model.module.generation_config.save_pretrained(output)
    case.model.tokenizer.save_pretrained(output)
    return plan, size


def ask(model: str, dataset: str, eval_size: int | None = None, **grid) -> Answers:
    """Ask a checkpoint, or any model, a data set's documents; of a checkpoint as many as were set apart when it was
    calibrated, unless told otherwise.

    Raises UserError where a document that could have calibrated the checkpoint would be asked.
    """
    if not is_split(model):
        return evaluate(model, dataset, eval_size=eval_size or EVAL_SIZE, **grid)
    told = about(model)
    size = told["eval_size"] if eval_size is None else eval_size
    case = one_case(model, "fp16", dataset, {"eval_size": size, **grid})
    known = set(told["calibrated"])
    again = sum(_text_digest(request.doc.question) in known for request in case.data.requests)
    if again:
        raise UserError(f"{again} of the {len(case.data.requests)} documents of {dataset} could have calibrated "
                        f"{model}; leave --eval_size out (it was made with {told['eval_size']} set apart), and give "
                        "the data that scripts/calibrate.py had")
    return answers_of(case)


def _text_digest(text: str) -> str:
    return digest(text)[:16]


def allocate(case: Case, scores: Scores, settings: CircuitSettings) -> Plan:
    """Which heads and neurons are kept, and what that stores."""
    options = {"fp16_ratio": settings.fp16_ratio, "attn_importance_threshold": settings.attn_importance_threshold,
               "mlp_importance_threshold": settings.mlp_importance_threshold}
    layers, notes = ALLOCATORS.get("circuit_fraction").fn(alloc_context(case, scores, options))
    return make_plan(layers, case.model.shapes, case.model.other, notes)

