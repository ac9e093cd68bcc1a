"""A row's model with its transform folded in: an identity of its own, so nothing of it mixes with the model as loaded.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property

from torch import nn

from core.digest import digest
from core.registry import METHODS
from core.transforms import Transform, transform_of
from core.types import TransformedRef
from harness.stages.case import Case, finite
from harness.stages.model import LazyModel
from harness.stages.scores import scores, scores_key
from quantization.transforms.fold import rotate, smooth, structure

VERSION = 1
MAXIMA = "max-channel"  # the scorer of each channel's range, which smooth reads
OF_WEIGHTS = ("module", "linears", "blocks", "originals", "skeleton", "shapes", "block_of", "other", "parameters",
              "sizes", "weights")


class TransformedModel(LazyModel):
    """A model into which a transform is folded when its weights are loaded; files, tokenizer and devices are those of
    the plain one.
    """

    def __init__(self, case: Case, how: Transform, identity: list):
        plain = case.plain
        self.__dict__ |= {name: value for name, value in plain.__dict__.items() if name not in OF_WEIGHTS}
        self.loads_lazily = False  # a fold makes new weights
        self.case, self.how = case, how
        self.ref = TransformedRef(**asdict(plain.ref), transform=digest(identity))
        self.on_load = lambda module: finite(case.store, self, module)

    @cached_property
    def module(self) -> nn.Module:
        """The weights, loaded and changed on first use."""
        maxima = scores(ranges(self.case)).values if self.how.kind == "smooth" else {}
        module = self.loaded()
        self.say(f"Folding {self.how.kind} into {self.ref.name}")
        if self.how.kind == "smooth":
            smooth(module, maxima, self.how.alpha)
        else:
            rotate(module, self.how.seed)
        self.put_to_rest(module)
        self.on_load(module)
        return module

    @cached_property
    def skeleton(self) -> nn.Module:
        """The modules without weights, as the transform leaves them."""
        skeleton = LazyModel.skeleton.func(self)
        if self.how.kind == "hadamard":
            structure(skeleton)
        return skeleton


def transformed(case: Case) -> LazyModel:
    """The model of a case with its transform folded in; the plain one where it has none."""
    how = transform_of(case.method.settings, case.cell.seed)
    if how.plain:
        return case.plain
    told = [how.alpha, scores_key(ranges(case))[0]] if how.kind == "smooth" else [how.seed]
    return TransformedModel(case, how, [how.kind, VERSION, *told])


def ranges(case: Case) -> Case:
    """The same cell with the method that measures ranges of channels on the row's calibration data, on the model as
    loaded.
    """
    return case.measured_by(replace(METHODS.get("AWQ-channel"), scorer=MAXIMA))
