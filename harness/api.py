"""The harness from Python: score, quantize and evaluate one model by one method, over the same stages and the same
store.

    from harness import evaluate, quantize

    small = quantize("smollm2-135m", "TaCQ", "trivia_qa", avg_bits=3.25)
    small.bits.average, small.model            # true stored bits a weight; a module that holds the quantized weights
    answers = evaluate(small)
    answers.metrics["accuracy"], answers.samples[0]

What a grid has made is found in the store, and what is made here a grid finds there.
"""

import os
from dataclasses import dataclass

from torch import nn

from core.activations import ACTIVATIONS
from core.errors import UserError
from core.registry import FROM_AXES
from core.sample import Interval, Sample
from core.transforms import TRANSFORM
from core.types import Plan, Scores
from harness.grid import with_methods
from harness.presets import row_grid
from harness.progress import Progress
from harness.stages.case import Case, open_cases
from harness.stages.cell import compute_cell
from harness.stages.options import published_quantizer, reads_data
from harness.stages.plan import Planned, plan
from harness.stages.scores import whole_scores
from harness.stages.weights import hold_weights, true_plan
from report.records import Bits, Result


@dataclass(frozen=True)
class Quantized:
    """A quantized model in memory."""

    model: nn.Module  # holds the quantized weights, in its own dtype, on its device
    tokenizer: object
    plan: Plan  # bits, groups and kept weights of every linear as they are stored
    bits: Bits  # average and whole model: stored bits a weight, metadata included
    case: Case  # what it was made of; evaluate() goes on from here


@dataclass(frozen=True)
class Answers:
    """What a model answered."""

    samples: list[Sample]  # one a document
    metrics: dict[str, Interval | None]  # by name, with 95 % intervals
    result: Result  # the record that a grid would have written


def score(model: str, method: str, dataset: str, **grid) -> Scores:
    """What a method's scorer says of every quantized linear of a model.

    model: alias, hub id or folder; method: a name of ``--list``, with settings in brackets if wanted
    (``TaCQ[calib=c4]``), whose scorer runs; dataset: what it is conditioned on.  ``grid`` takes any field of the grid
    or setting of a method, as the flags do (``avg_bits=3.25`` where the scorer reads the base level,
    ``calib_size=64``, ``data_dir="DATA"``, ``seeds=(1,)``, ``run_type="full"``); by default the embedded
    data sets, whole, round-to-nearest, and 4.25 bits.

    Returns Scores: ``values`` by full name of the linear, float32 of shape [] (block, linear), [in] (channel), [out or
    1, in/g] (group) or [out, in] (element); higher = protect; ``unit`` and ``notes`` say more.
    Raises UserError for a name or value that cannot be, or a method without a scorer.
    """
    case = one_case(model, method, dataset, grid)
    if not case.method.scorer:
        raise UserError(f"method {method!r} has no scorer, so there is nothing to score; quantize() applies it")
    return whole_scores(case)


def quantize(model: str, method: str, dataset: str, avg_bits: float = 4.25, **grid) -> Quantized:
    """Quantize a model by a method conditioned on a data set; weights, scores and gradients come from the store if they
    are there.

    avg_bits: stored bits a weight over the quantized linears, metadata included, that a common row must meet; native
    rows take their whole bits from it and show their own.  Other arguments as of :func:`score`.
    Raises UserError for what cannot be, BudgetError where no plan meets the budget.
    """
    case = one_case(model, method, dataset, grid | {"avg_bits": (avg_bits,)})
    planned = plan(case)
    true = put_weights(case, planned)
    bits = Bits(average=true.avg_bits, whole_model=true.model_avg_bits, stored=true.stored_bits,
                group_size=case.group_size if case.method.budgeted else None,
                per_linear={fqn: layer.bits for fqn, layer in true.layers.items()}, notes=true.notes)
    return Quantized(model=case.model.module, tokenizer=case.model.tokenizer, plan=true, bits=bits, case=case)


def evaluate(model: Quantized | str, dataset: str | None = None, **grid) -> Answers:
    """Ask a model the data set's evaluation documents: a quantized one those it was made for, or a model by name as it
    was loaded.

    Returns one Sample a document (answer, whether it is right, log-likelihood of the gold answer in nats a token), and
    the metrics with their 95 % intervals.  Other arguments as of :func:`score`; of a quantized model they are fixed
    already.
    """
    if isinstance(model, Quantized):
        if grid or dataset not in (None, model.case.cell.dataset):
            raise UserError(f"this model was quantized on {model.case.cell.dataset} with its settings; evaluate(model) "
                            "asks that data set")
        case = model.case
    elif dataset is None:
        raise UserError("evaluate() of a model by name needs a data set, such as trivia_qa")
    else:
        case = one_case(model, "fp16", dataset, grid)
    return answers_of(case)


def answers_of(case: Case) -> Answers:
    """What a case's model answers."""
    result, samples = compute_cell(case)
    return Answers(samples=samples, metrics=result.metrics, result=result)


def one_case(model: str, method: str, dataset: str, grid: dict) -> Case:
    """The one cell of a grid of these; its checks are the grid's own."""
    asked = {name: tuple(value) if isinstance(value, list) else value for name, value in grid.items()}
    for axis in ("avg_bits", "seeds", *FROM_AXES.values(), *ACTIVATIONS, TRANSFORM.name):
        if axis in asked and not isinstance(asked[axis], tuple):
            asked[axis] = (asked[axis],)
    whole = row_grid(models=(model,), methods=(method,), datasets=(dataset,), **asked)
    cases = open_cases(with_methods(whole, (method,)), os.environ.get("HF_TOKEN"), Progress(1))
    if len(cases) > 1:
        raise UserError(f"{method} stands for {len(cases)} cells here; name one seed, one budget, one kept ratio and "
                        "one number of heads")
    return cases[0]


def put_weights(case: Case, planned: Planned) -> Plan:
    """Make the model hold the row's weights; returns the plan as it is really stored."""
    if any(layer.dynamic_heads for layer in planned.plan.layers.values()):
        raise UserError(f"{case.method.name} chooses heads for every token, so no weights hold it; run it in a grid")
    if not reads_data(case.method):
        case.model.originals.apply(planned.plan, published_quantizer(case),
                                   case.progress.stage(f"{case.method.name}: quantizing"))
        return planned.plan
    hold_weights(case, planned)
    return true_plan(case, planned)[0]
