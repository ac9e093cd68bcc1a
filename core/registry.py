"""Registries with a collision error and a did-you-mean, and the method records.

A scorer is one function under ``@scorer``; a method is a record that names a scorer, an allocator and
a quantizer.  ``scorer+allocator+quantizer`` on the command line builds a record on the fly: that is
the ablation grid.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from core.errors import UserError


def did_you_mean(name: str, known) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known name, ignoring case, or an empty string."""
    lower = {str(k).lower(): str(k) for k in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f" (did you mean {lower[near[0]]!r}?)" if near else ""


class Registry:
    """Names to objects of one kind; registering a name twice is an error that names both owners."""

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, object] = {}

    def add(self, name: str, item: object) -> object:
        if name in self._items:
            old = self._items[name]
            raise ValueError(f"{self.kind} {name!r} is registered twice: by {_owner(old)} and by {_owner(item)}; rename one")
        self._items[name] = item
        return item

    def get(self, name: str):
        if name not in self._items:
            listed = ", ".join(sorted(self._items))
            raise UserError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._items)}; known: {listed}")
        return self._items[name]

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))


def _owner(item) -> str:
    fn = getattr(item, "fn", item)
    if isinstance(item, MethodSpec):
        return "+".join(part for part in (item.scorer, item.allocator, item.quantizer) if part)
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer: ``fn(ScoreContext) -> Scores`` and what its result depends on.

    ``params`` lists the config fields it may read; reading another is an error, so the key of its
    scores holds exactly what they depend on.  ``needs`` is drawn from {"calib", "labels",
    "gradients", "hessian"}: "calib" are unlabeled prompts, the last two read the solvers' calibration set
    (worked documents or general text, drawn by the seed).  A scorer is keyed by what it needs and no more.
    """

    name: str
    fn: Callable
    granularity: str
    needs: tuple[str, ...] = ("calib",)
    params: tuple[str, ...] = ()
    version: int = 1
    gradients: tuple[str, ...] = ()  # which sums it reads: "abs", "square", "sum"


@dataclass(frozen=True)
class MethodSpec:
    """A method: which scorer, allocator and quantizer; ``native`` rows carry their own true bits."""

    name: str
    scorer: str | None
    allocator: str | None
    quantizer: str | None
    paper: str = ""
    native: bool = False
    options: dict = field(default_factory=dict)  # fixed options of the allocator and quantizer; "N" etc. follow the grid (variants)

    @property
    def budgeted(self) -> bool:
        """Whether this row must meet the grid's stored-bit budget."""
        return not self.native and self.quantizer is not None


@dataclass(frozen=True)
class PartSpec:
    """An allocator or a quantizer with its version."""

    name: str
    fn: Callable
    version: int = 1
    options: tuple[str, ...] = ()  # the options a method may fix
    exempt: bool = False  # a published allocation: its rows carry their own bits, no budget
    needs: tuple[str, ...] = ()  # quantizers: "hessian" (inputs of the linear), "fisher" (gradients); empty = weights alone
    sequential: bool = True  # quantizers: linears of a block one input after the other, or all from the block as loaded


SCORERS, METHODS = Registry("scorer"), Registry("method")

ALLOCATORS, QUANTIZERS, DATASETS = Registry("allocator"), Registry("quantizer"), Registry("dataset")

GRANULARITIES = ("layer", "linear", "channel", "group", "element")

NEEDS = ("calib", "labels", "gradients", "hessian")

COMMON = "common"  # the quantizer of a common row: the grid's own (--quantizer)

DEFAULT_ALLOCATOR = {"layer": "knapsack", "linear": "knapsack", "group": "knapsack", "channel": "topk_keep", "element": "topk_keep"}


def scorer(name: str, *, granularity: str, needs=("calib",), params=(), version: int = 1, gradients=()):
    """Register the decorated function as a scorer; see :class:`ScorerSpec`."""
    if granularity not in GRANULARITIES:
        raise ValueError(f"scorer {name!r}: granularity {granularity!r} is not one of {GRANULARITIES}")
    if not set(needs) <= set(NEEDS):
        raise ValueError(f"scorer {name!r}: needs {tuple(needs)} are not among {NEEDS}")

    def wrap(fn):
        SCORERS.add(name, ScorerSpec(name, fn, granularity, tuple(needs), tuple(params), version, tuple(gradients)))
        return fn

    return wrap


def method(name: str, *, scorer: str | None = None, allocator: str | None = None, quantizer: str | None = COMMON,
           paper: str = "", native: bool = False, **options) -> MethodSpec:
    """Register a method; the allocator defaults to the common one of its scorer's granularity."""
    if allocator is None and scorer is not None:
        allocator = DEFAULT_ALLOCATOR[SCORERS.get(scorer).granularity]
    if allocator is None:
        raise ValueError(f"method {name!r} has neither a scorer nor an allocator; name one of them")
    read = ALLOCATORS.get(allocator).options + (QUANTIZERS.get(quantizer).options if quantizer not in (None, COMMON) else ())
    if set(options) - set(read):
        raise ValueError(f"method {name!r}: allocator {allocator!r} and quantizer {quantizer!r} read {read}, not {sorted(set(options) - set(read))}")
    return METHODS.add(name, MethodSpec(name, scorer, allocator, quantizer, paper, native, options))


def allocator(name: str, version: int = 1, options: tuple[str, ...] = (), exempt: bool = False):
    """Register the decorated function as an allocator; see :class:`PartSpec`."""
    return lambda fn: ALLOCATORS.add(name, PartSpec(name, fn, version, options, exempt)).fn


def quantizer(name: str, version: int = 1, *, needs: tuple[str, ...] = (), sequential: bool = True, options: tuple[str, ...] = ()):
    """Register the decorated function as a quantizer.

    Without ``needs`` it is ``fn(weight, LayerPlan) -> ŵ``; with them ``fn(weight float32, LayerPlan, Aid) -> Stored``.
    """
    return lambda fn: QUANTIZERS.add(name, PartSpec(name, fn, version, options, False, needs, sequential)).fn


def resolve_method(name: str) -> MethodSpec:
    """Return the method called ``name``, or build ``scorer+allocator[+quantizer]``."""
    if "+" not in name:
        return METHODS.get(name)
    parts = name.split("+")
    if len(parts) > 3 or not all(parts):
        raise UserError(f"method {name!r} has {len(parts)} parts; write scorer+allocator or scorer+allocator+quantizer")
    base = SCORERS.get(parts[0])
    exempt = ALLOCATORS.get(parts[1]).exempt
    quant = parts[2] if len(parts) == 3 else COMMON
    if quant != COMMON:
        QUANTIZERS.get(quant)
    follows = {k: v for k, v in (("bits", "N"), ("ratio", "ratio")) if k in ALLOCATORS.get(parts[1]).options}
    return MethodSpec(name, base.name, parts[1], quant, native=exempt, options=follows)


# options that take their value from the budget; no published code goes above 8 bits, SliM-LLM's not above 7
FOLLOWS = {"N": lambda bits: min(8, int(bits)), "N-1": lambda bits: min(8, max(1, int(bits) - 1)), "N<8": lambda bits: min(7, max(2, int(bits))),
           "budget": float}


def variants(spec: MethodSpec, common: str, budgets: tuple[float, ...], ratios: tuple[float, ...]) -> list[tuple[MethodSpec, float | None]]:
    """The rows that a method stands for in a grid: (method, stored bits or None).

    Common rows take the grid's quantizer and come once a budget.  A native row whose options follow the budget ("N" = its
    whole bits) comes once a budget too, with its own true bits; "ratio" as an option's value makes one row a kept ratio.
    """
    if spec.quantizer == COMMON:
        spec = replace(spec, quantizer=common)
    follows = [k for k, v in spec.options.items() if v in FOLLOWS]
    by_ratio = [k for k, v in spec.options.items() if v == "ratio"]
    out = []
    for bits in budgets if spec.budgeted or follows else (None,):
        followed = {k: FOLLOWS[spec.options[k]](bits) for k in follows}
        for ratio in ratios if by_ratio else (None,):
            name = f"{spec.name}@{ratio:g}" if by_ratio else spec.name
            out.append((replace(spec, name=name, options=spec.options | followed | dict.fromkeys(by_ratio, ratio)), bits))
    return out


CONTROLS = ("fp16", "uniform", "random")  # every table carries them
