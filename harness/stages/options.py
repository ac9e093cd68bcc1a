"""Which options and versions a row's allocator and quantizer have."""

from core.registry import ALLOCATORS, QUANTIZERS, MethodSpec
from harness.grid import Cell
from harness.stages.model import Session

VERSIONS = {"distortion": 1, "gradients": 1, "scores": 1, "plan": 1, "weights": 1, "samples": 1}


def published_quantizer(spec: MethodSpec, published: bool) -> str | None:
    """The native quantizer with the script's padding quirk, when --published asks for it."""
    return "rtn-float-padded" if published and spec.quantizer == "rtn-float" else spec.quantizer


def plan_options(session: Session, spec: MethodSpec) -> dict:
    """The allocator's options; --published adds the rounding of the script's first version where it is read."""
    quirk = session.grid.published and "rounding" in ALLOCATORS.get(spec.allocator).options
    return spec.options | ({"rounding": "round"} if quirk else {})


def distortion_quantizer(spec: MethodSpec, published: bool) -> str | None:
    """Whose error the knapsack weighs: the row's own quantizer, or round-to-nearest where that one reads data."""
    name = published_quantizer(spec, published)
    return "rtn" if name and QUANTIZERS.get(name).needs else name


def quantizer_options(session: Session, spec: MethodSpec, quantizer: str) -> dict:
    """The row's options that a quantizer reads; a native row's follows the published code's quirks if asked, the common grid has none."""
    named = {k: v for k, v in spec.options.items() if k in QUANTIZERS.get(quantizer).options}
    return named | ({"published": True} if session.grid.published and spec.native else {})


def reads_data(cell: Cell) -> bool:
    """Whether the row's quantizer looks at calibration data."""
    return cell.method.quantizer is not None and bool(QUANTIZERS.get(cell.method.quantizer).needs)
