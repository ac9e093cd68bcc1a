"""Which input channels stay at 16 bits where a row's activations do not: the scores of AWQ-channel, from the store."""

import torch

from core.activations import Activations, activations_of
from core.registry import METHODS
from core.transforms import TRANSFORMS
from harness.stages.case import Case
from harness.stages.scores import scores, scores_key

RANKED_BY = "AWQ-channel"


def activations(case: Case) -> Activations:
    """How the row's activations are held."""
    return activations_of(case.method.settings)


def activations_identity(case: Case) -> dict:
    """What identifies them in the key of samples; empty where nothing is quantized, so older samples keep theirs."""
    how = activations(case)
    if how.plain:
        return {}
    ranked = {"ranked": scores_key(ranking(case))[0]} if how.keep else {}
    return {"activations": {"bits": how.bits, "keep": how.keep, "kv_bits": how.kv_bits, "group": how.group} | ranked}


def kept(case: Case) -> dict[str, torch.Tensor]:
    """Bool [in] by full name; nothing where no channel is kept.  Scores the row's model if that was not done."""
    from quantization.activations import kept_channels

    how = activations(case)
    return kept_channels(scores(ranking(case)).values, how.keep) if how.keep else {}


def ranking(case: Case) -> Case:
    """The same cell with the method that ranks channels, of the row's own model: a transform makes other channels."""
    return case.measured_by(METHODS.get(RANKED_BY), *TRANSFORMS)
