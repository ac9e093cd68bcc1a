"""How long a cell takes: what it must still compute, times the timings of harness/forecast/probe.py.

What several cells share (scores, gradients, the quantized model to compare with, weights) is counted at the first
cell that needs it, and what is in the store is not counted.  What a scorer does is derived from what it declares:

    score_docs   one pass over that many calibration prompts
    kl_docs      two passes, and one for every block that skips the blocks before it, so half a pass
    oracle_docs  one evaluation of that many documents, and one more for every block
    gradients    one backward pass a document of the solvers' calibration set
    hessian      the block run twice over that set, and one factor a linear

Not counted: loading the model, allocators, statistics, reading and writing files.
"""

from dataclasses import replace

import torch

from core.registry import QUANTIZERS, SCORERS
from core.types import LayerPlan
from harness.forecast.memory import kinds_to_make
from harness.forecast.probe import SOLVED, Probe
from harness.forecast.sizes import asked, dims, finished, prompt_batches, stored
from harness.grid import Cell
from harness.stages.base_quantized import base, base_layer, corrupted_key
from harness.stages.documents import CellData, solver_calib
from harness.stages.gradients import gradients_key, wanted_kinds
from harness.stages.model import Session
from harness.stages.options import distortion_quantizer, quantizer_options
from harness.stages.plan import plan_key
from harness.stages.scores import scores_key
from harness.stages.weights import weights_key
from streams.blocks import BATCH_TOKENS

RUNS = {True: 3, False: 2}  # of a block: sequential solvers watch its linears one input after the other
FACTOR = 3  # operations of a factor over in³: as slow as 4 of a product, measured, and some linears share theirs
LAYER_OPTIONS = ("scale_bits", "zero_bits", "form", "ordered")


class Costs:
    """Seconds of one session's cells, asked in running order."""

    def __init__(self, session: Session):
        self.session, self.probe, self.counted = session, Probe(session), set()

    def seconds(self, cell: Cell, data: CellData) -> float:
        """What a cell adds to what the cells before it have made."""
        if finished(self.session, cell, data):
            return 0.0
        spec, quant = cell.method, QUANTIZERS.get(cell.method.quantizer) if cell.method.quantizer else None
        total, scored = self.evaluation(data), None
        if spec.scorer:
            scored = scores_key(self.session, cell, data)[0]
            total += self.scores(cell, data) if self._first(scored) else 0.0
        plan = plan_key(self.session, cell, scored)[0]
        if spec.allocator == "knapsack" and not stored(self.session, plan) and self._first(f"distortion by {self._weighing(cell)}"):
            total += len(self.session.grid.levels) * self.rounding(cell)
        if quant and quant.needs:
            total += self.gradients(cell, data) if "fisher" in quant.needs else 0.0
            if self._first(weights_key(self.session, cell, data, plan)[0]):
                total += self.solving(cell, data, quant.name, quantizer_options(self.session, spec, quant.name))
        elif quant:
            total += self.rounding(cell)
        return total

    def _first(self, key: str) -> bool:
        """Whether this must be made and no cell before has made it; from now on one has."""
        if key in self.counted or stored(self.session, key):
            return False
        self.counted.add(key)
        return True

    def _weighing(self, cell: Cell) -> str | None:
        return distortion_quantizer(cell.method, self.session.grid.published)

    def evaluation(self, data: CellData) -> float:
        """All batches: contexts, tails, generated tokens; the head wherever a logit is read."""
        batches, d = asked(data), dims(self.session)
        middle = sorted(batches, key=lambda b: b.rows * b.width)[len(batches) // 2]
        token = self.probe.token(middle.rows, middle.width)
        run = sum(b.rows * (b.width - b.prefix) + b.padded for b in batches) * token
        if middle.steps:
            run += sum(b.steps - 1 for b in batches) * self.probe.step(middle.rows, middle.width)
        return d.blocks * run + self.probe.head() * sum(b.padded + b.rows * max(1, b.steps) for b in batches)

    def scores(self, cell: Cell, data: CellData) -> float:
        """One scorer's work; see the rules above."""
        spec, d, grid = SCORERS.get(cell.method.scorer), dims(self.session), self.session.grid
        total = 0.0
        if "labels" in spec.needs:
            total += (1 + d.blocks) * self.evaluation(data) * min(grid.oracle_docs, len(data.calib_docs)) / len(data.requests)
        elif "calib" in spec.needs:
            batches = sorted(prompt_batches(self.session, spec, data))
            token = self.probe.token(*batches[len(batches) // 2])
            passes = 2 + (d.blocks - 1) / 2 if "kl_docs" in spec.params else 1
            total += passes * d.blocks * token * sum(rows * width for rows, width in batches)
        total += self.gradients(cell, data) if spec.gradients else 0.0
        total += self.stream(cell, data, sequential=False) if "hessian" in spec.needs else 0.0
        if "corrupt" in spec.params and self._first(corrupted_key(self.session, cell, data)[0]):
            total += self.solving(cell, data, grid.corrupt, quantizer_options(self.session, cell.method, grid.corrupt))
        return total

    def gradients(self, cell: Cell, data: CellData) -> float:
        """One backward pass, which makes every kind that the grid wants."""
        kinds = kinds_to_make(self.session, cell, data, SCORERS.get(cell.method.scorer) if cell.method.scorer else None)
        new = [self._first(gradients_key(self.session, cell, data, kind)[0]) for kind in sorted(kinds)]
        if not any(new):
            return 0.0
        found, d = solver_calib(self.session, data, cell.seed)[0], dims(self.session)
        documents, length = len(found.tokens), max(2, sum(map(len, found.tokens)) // len(found.tokens))
        head = 2 * self.probe.head() * length  # the logits and, back through the same matrix, the hidden states' gradient
        return documents * (d.blocks * self.probe.backward(length, tuple(sorted(wanted_kinds(self.session.grid.methods) | kinds))) + head)

    def stream(self, cell: Cell, data: CellData, sequential: bool) -> float:
        """The calibration documents through all blocks, a Hessian and a factor a linear."""
        lengths, d = [len(t) for t in solver_calib(self.session, data, cell.seed)[0].tokens], dims(self.session)
        rows = max(1, BATCH_TOKENS // max(lengths))
        run = RUNS[sequential] * sum(lengths) * d.blocks * self.probe.token(min(rows, len(lengths)), max(lengths))
        operations = sum(FACTOR * c**3 + 2 * c * c * sum(lengths) for _, c in self.session.shapes.values())
        return run + operations / self.probe.flops(torch.float32)

    def solving(self, cell: Cell, data: CellData, quantizer: str, options: dict) -> float:
        """Every linear by a quantizer that reads data, or rounded."""
        spec, d = QUANTIZERS.get(quantizer), dims(self.session)
        own = d.linears * self.probe.solve(quantizer, self.layer(cell), options)
        if not {"hessian", "inputs"} & set(spec.needs):
            return own
        pushed = sum(r * c * c for r, c in self.session.shapes.values()) / self.probe.flops(torch.float32)  # errors into later columns
        return own + pushed + self.stream(cell, data, spec.sequential)

    def rounding(self, cell: Cell) -> float:
        """Every linear rounded to nearest."""
        return dims(self.session).linears * self.probe.solve("rtn", self.layer(cell), {})

    def layer(self, cell: Cell) -> LayerPlan:
        """How most linears of a row are stored."""
        named = {k: v for k, v in cell.method.options.items() if k in LAYER_OPTIONS}
        return replace(base_layer(base(self.session, cell), (0, SOLVED)), **named)
