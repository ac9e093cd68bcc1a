"""How long a cell takes: what it must still compute, times the timings of harness/forecast/probe.py.

What several cells share (scores, gradients, the quantized model to compare with, weights) is counted at the first
cell that needs it, and what is in the store is not counted.  What a scorer does is what it declares (core/registry.py):

    needs calib      its passes over the calibration prompts
    needs outputs    one of these is shared by all such scorers of the same prompts
    needs labels     its passes are evaluations of labelled calibration documents
    needs answers    its passes over worked documents; a backward pass counts as two
    gradients        one backward pass a document of the solvers' calibration set
    needs hessian    the block run twice over that set, and one factor a linear; shared by all such scorers

Where blocks rest elsewhere (--offload), every pass brings them to the device once, a backward pass twice.

Not counted: loading the model, allocators, statistics, reading and writing files.
"""

from dataclasses import replace

import torch

from core.registry import QUANTIZERS, SCORERS
from core.transforms import transform_of
from core.types import LayerPlan
from harness.forecast.memory import kinds_to_make
from harness.forecast.probe import SOLVED, Probe
from harness.forecast.sizes import asked, finished, prompt_batches
from harness.stages.activations import activations, ranking
from harness.stages.base_quantized import base, base_layer, base_quantized_key
from harness.stages.case import Case
from harness.stages.gradients import gradients_key, wanted_kinds
from harness.stages.library import library_key, menu_of
from harness.stages.model import LazyModel
from harness.stages.options import buys_forms, quantizer_options, stitched
from harness.stages.outputs import outputs_key
from harness.stages.pivots import pivots_key
from harness.stages.plan import distortion_key, plan_key
from harness.stages.prices import DRAWS, dots_key, reads_dots
from harness.stages.scores import documents_read, scores_key, scores_needed
from harness.stages.search import BENDS
from harness.stages.transform import ranges
from harness.stages.tune import rounds_of
from harness.stages.weights import weights_key
from quantization.allocators.menu import STEPS
from streams.blocks import batch_tokens

RUNS = {True: 3, False: 2}  # of a block: sequential solvers watch its linears one input after the other
FACTOR = 3  # operations of a factor over in³: as slow as 4 of a product, measured, and some linears share theirs
LAYER_OPTIONS = ("scale_bits", "zero_bits", "form", "ordered")


def _scored_beside(case: Case) -> list[Case]:
    """What is scored for a row besides its own method: which channels of activations stay, ranges that smooth reads."""
    kept = [ranking(case)] if activations(case).keep else []
    return kept + ([ranges(case)] if transform_of(case.method.settings, case.cell.seed).kind == "smooth" else [])


class Costs:
    """Seconds of one model's cells, asked in running order."""

    def __init__(self, model: LazyModel):
        self.model, self.sizes = model, model.sizes
        places = model.device, model.grad_devices[0], model.eval_device
        probes = {device: Probe(model, device) for device in places}
        self.probe, self.grad_probe, self.eval_probe = (probes[device] for device in places)
        self._counted: set[str] = set()

    def seconds(self, case: Case) -> float:
        """What a cell adds to what the cells before it have made."""
        if finished(case):
            return 0.0
        spec, quant = case.method, QUANTIZERS.get(case.method.quantizer) if case.method.quantizer else None
        total = self.evaluation(case, self.eval_probe)
        plan = plan_key(case)[0]
        planned = spec.allocator == "none" or case.store.has(plan)
        if spec.scorer and not planned and self._first(case, scores_needed(case)):
            total += self.scores(case)
        for other in _scored_beside(case):
            if self._first(other, scores_key(other)[0]):
                total += self.scores(other)
        if spec.allocator == "knapsack" and not planned and self._first(case, distortion_key(case)[0]):
            total += len(case.grid.levels) * self.rounding(case)
        if buys_forms(spec):
            total += self.gradients(case) + self.menu(case, planned)
        if quant and quant.needs:
            total += self.gradients(case) if "fisher" in quant.needs else 0.0
            if not stitched(spec) and self._first(case, weights_key(case, plan)[0]):
                total += self.solving(case, quant.name) + self.tuning(case)
        elif quant:
            total += self.rounding(case)
        return total

    def _first(self, case: Case, key: str) -> bool:
        """Whether this must be made and no cell before has made it; from now on one has."""
        if key in self._counted or case.store.has(key):
            return False
        self._counted.add(key)
        return True

    def evaluation(self, case: Case, probe: Probe) -> float:
        """All batches: contexts, tails, generated tokens; the head wherever a logit is read."""
        batches = asked(case.data)
        middle = sorted(batches, key=lambda b: b.rows * b.width)[len(batches) // 2]
        token = probe.token(middle.rows, middle.width)
        run = sum(b.rows * (b.width - b.prefix) + b.padded for b in batches) * token
        if middle.steps:
            run += sum(b.steps - 1 for b in batches) * probe.step(middle.rows, middle.width)
        forwards = sum(max(1, b.steps) + (b.tails > 0) for b in batches)
        head = probe.head() * sum(b.padded + b.rows * max(1, b.steps) for b in batches)
        return self.sizes.blocks * run + head + self.moved(forwards, probe)

    def moved(self, times: float, probe: Probe) -> float:
        """All blocks brought to the device so many times, where they rest elsewhere."""
        return times * self.sizes.in_blocks * self.sizes.itemsize * probe.byte() if self.model.offloaded else 0.0

    def scores(self, case: Case) -> float:
        """One scorer's work; see the rules above."""
        spec, data, blocks = SCORERS.get(case.method.scorer), case.data, self.sizes.blocks
        total = 0.0
        if "labels" in spec.needs:
            documents = len(case.calib_data.calib_docs[:documents_read(case, spec)])
            total += spec.forwards(blocks) * self.evaluation(case, self.probe) * documents / len(data.requests)
        elif "answers" in spec.needs:
            lengths = [len(tokens) for tokens in case.answers.tokens[:documents_read(case, spec)]]
            token = self.probe.token(max(1, case.grid.batch_tokens // max(lengths)), max(lengths))
            steps = case.value("ig_steps") / 20 if "ig_steps" in spec.params else 1.0  # what scorers declare is for 20
            total += steps * spec.forwards(blocks) * (blocks * token * sum(lengths)
                                                      + self.moved(len(lengths), self.probe))
        elif "calib" in spec.needs:
            batches = sorted(prompt_batches(case, spec))
            token, passes = self.probe.token(*batches[len(batches) // 2]), spec.forwards(blocks)
            if "outputs" in spec.needs and not self._first(case, outputs_key(case, documents_read(case, spec))[0]):
                passes -= 1  # another row's pass gives its statistics too
            total += passes * (blocks * token * sum(rows * width for rows, width in batches)
                               + self.moved(len(batches), self.probe))
        total += self.gradients(case) if spec.gradients else 0.0
        reads_hessians = "hessian" in spec.needs and self._first(case, pivots_key(case)[0])
        total += self.stream(case, sequential=False) if reads_hessians else 0.0
        if spec.compares and self._first(case, base_quantized_key(case)[0]):
            total += self.solving(case, case.value("corrupt"))
        return total

    def gradients(self, case: Case) -> float:
        """One backward pass, which makes every kind that the grid wants."""
        kinds = kinds_to_make(case, SCORERS.get(case.method.scorer) if case.method.scorer else None)
        if not any([self._first(case, gradients_key(case, kind)[0]) for kind in sorted(kinds)]):
            return 0.0
        return self.backward(case, tuple(sorted(wanted_kinds(case) | kinds)))

    def backward(self, case: Case, kinds: tuple[str, ...]) -> float:
        """The solvers' calibration documents forward and back."""
        lengths = [len(tokens) for tokens in case.solver_calib.tokens]
        length = max(2, sum(lengths) // len(lengths))
        # the logits and, back through the same matrix, the hidden states' gradient
        head = 2 * self.grad_probe.head() * length
        backward = self.grad_probe.backward(length, kinds, case.value("grad_dtype"))
        if self.model.offloaded:
            backward += length * self.grad_probe.token(1, length)  # blocks run once more
        return len(lengths) * (self.sizes.blocks * backward + head) + self.moved(2 * len(lengths), self.grad_probe)

    def stream(self, case: Case, sequential: bool) -> float:
        """The calibration documents through all blocks, a Hessian and a factor a linear."""
        lengths = [len(tokens) for tokens in case.solver_calib.tokens]
        rows = max(1, batch_tokens(case.model.device, self.sizes.widest_in) // max(lengths))
        token = self.probe.token(min(rows, len(lengths)), max(lengths))
        operations = sum(FACTOR * c**3 + 2 * c * c * sum(lengths) for _, c in self.model.shapes.values())
        run = RUNS[sequential] * sum(lengths) * self.sizes.blocks * token
        # a short pass to see how blocks are called, then block by block
        return run + operations / self.probe.flops(torch.float32) + self.moved(2, self.probe)

    def solving(self, case: Case, quantizer: str) -> float:
        """Every linear by a quantizer that reads data, or rounded."""
        spec = QUANTIZERS.get(quantizer)
        own = self.sizes.linears * self.probe.solve(quantizer, self.layer(case), quantizer_options(case, quantizer))
        if not {"hessian", "inputs"} & set(spec.needs):
            return own
        return own + self.pushed() + self.stream(case, spec.sequential) + self.moved(1, self.probe)  # and back

    def pushed(self) -> float:
        """Errors of all linears into later columns."""
        return sum(r * c * c for r, c in self.model.shapes.values()) / self.probe.flops(torch.float32)

    def menu(self, case: Case, planned: bool) -> float:
        """A library of forms, their prices, and the search: a backward pass and an evaluation a bend of each step."""
        total, one_pass = 0.0, self.backward(case, ("square",))
        if self._first(case, library_key(case)[0]):
            each = self.sizes.linears * self.probe.solve(case.grid.quantizer, LayerPlan(2, case.group_size), {})
            total += len(menu_of(case)) * (each + self.pushed()) + self.stream(case, True)
        if reads_dots(case) and self._first(case, dots_key(case)[0]):
            total += (DRAWS + 1) * one_pass
        steps = 0 if planned else STEPS.of(case.method.options)
        lengths = [len(tokens) for tokens in case.solver_calib.tokens]
        forward = self.sizes.blocks * sum(lengths) * self.probe.token(1, max(lengths))
        forward += self.moved(len(lengths), self.probe)
        return total + steps * (one_pass + len(BENDS) * forward)

    def tuning(self, case: Case) -> float:
        """Rounds of backward passes, taken to be as long as those of gradients, and one forward pass more."""
        rounds = rounds_of(case)
        return (rounds + 0.5) * self.backward(case, ("square",)) if rounds else 0.0

    def rounding(self, case: Case) -> float:
        """Every linear rounded to nearest."""
        return self.sizes.linears * self.probe.solve("rtn", self.layer(case), {})

    def layer(self, case: Case) -> LayerPlan:
        """How most linears of a row are stored."""
        named = {k: v for k, v in case.method.options.items() if k in LAYER_OPTIONS}
        return replace(base_layer(base(case), (0, SOLVED)), **named)
