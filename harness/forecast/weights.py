"""Where a model's weights lie in a stage, in bytes: all on its device, or offloaded (core/offload.py)."""

from core.model import DTYPES
from harness.stages.case import Case


def weight_bytes(case: Case, itemsize: int) -> int:
    """Weights on the device: all, or what is outside the blocks and the largest block."""
    d = case.model.sizes
    return itemsize * (d.parameters - d.in_blocks + d.block if case.model.offloaded else d.parameters)


def cast_bytes(case: Case) -> int:
    """The weights in --grad_dtype: widening is exact both ways and needs no copy, other casts hold the originals,
    which an offloaded block does at rest.
    """
    model, dtype = case.model, DTYPES[case.value("grad_dtype")]
    d = model.sizes
    same, wider = str(dtype) == f"torch.{model.ref.dtype}", dtype.itemsize > d.itemsize
    twice = d.parameters - d.in_blocks * case.model.offloaded
    return weight_bytes(case, dtype.itemsize) + (0 if same or wider else twice * d.itemsize)


def originals_bytes(case: Case) -> int:
    """What lies on the CPU all through a cell: the linears as loaded, and blocks that rest there."""
    d, offload = case.model.sizes, case.model.offload
    return large_bytes(case, d.itemsize * (d.linears + (d.in_blocks if offload == "cpu" else 0)))


def loading_bytes(case: Case) -> int:
    """All weights on the CPU; without a GPU the linears once more, which come from a GPU when all have left the CPU.

    Weights that go to disk stay in the checkpoint's file, as long as nothing has to be changed about them.
    """
    d, model = case.model.sizes, case.model
    if model.offload == "disk":
        return d.itemsize * (d.parameters - d.in_blocks if model.loads_lazily else d.parameters)
    copies = d.linears if model.device.type == "cpu" or model.offload == "cpu" else 0
    return (d.parameters + copies) * d.itemsize


def large_bytes(case: Case, size: int) -> int:
    """Memory of what is as large as the model: none where such things lie in files."""
    return 0 if case.model.offload == "disk" else size
