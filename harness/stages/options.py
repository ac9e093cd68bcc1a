"""Which options and versions a row's allocator and quantizer have."""

from core.registry import ALLOCATORS, QUANTIZERS, MethodSpec
from harness.stages.case import Case

VERSIONS = {"distortion": 1, "gradients": 1, "outputs": 1, "pivots": 1, "scores": 2, "plan": 1, "weights": 2,
            "samples": 2}


def published_quantizer(case: Case) -> str | None:
    """The row's quantizer; a native one with the script's padding quirk, when --published asks for it."""
    name = case.method.quantizer
    return "rtn-float-padded" if case.value("published") and name == "rtn-float" else name


def plan_options(case: Case) -> dict:
    """The allocator's options; --published adds the rounding of the script's first version where it is read."""
    quirk = case.value("published") and "rounding" in ALLOCATORS.get(case.method.allocator).options
    return case.method.options | ({"rounding": "round"} if quirk else {})


def distortion_quantizer(case: Case) -> str | None:
    """Whose error the knapsack weighs: the row's own quantizer, or round-to-nearest where that one reads data."""
    name = published_quantizer(case)
    return "rtn" if name and QUANTIZERS.get(name).needs else name


def quantizer_options(case: Case, quantizer: str) -> dict:
    """The row's options that a quantizer reads; of published quirks, those of native rows alone.

    Rows on the common grid store no order of columns: where these are taken in another one, groups stay as they stand.
    """
    method = case.method
    named = {k: v for k, v in method.options.items() if k in QUANTIZERS.get(quantizer).options}
    if named.get("act_order") and method.common:
        named["static_groups"] = True
    return named | ({"published": True} if case.value("published") and method.native else {})


def buys_forms(method: MethodSpec) -> bool:
    """Whether a row's plan buys forms out of a library."""
    return method.allocator is not None and "library" in ALLOCATORS.get(method.allocator).needs


def stitched(method: MethodSpec) -> bool:
    """Whether a row's weights are those of the library, not solved again for its plan."""
    return method.quantizer is not None and "library" in QUANTIZERS.get(method.quantizer).needs


def reads_data(method: MethodSpec) -> bool:
    """Whether a row's quantizer looks at calibration data."""
    return method.quantizer is not None and bool(QUANTIZERS.get(method.quantizer).needs)
