"""Registries with a collision error and a did-you-mean, and the method records.

A scorer is one function under ``@scorer``; a method is a record that names a scorer, an allocator and a quantizer.
What a name on the command line stands for is in core/method_names.py.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from core.calibration import READ_BY
from core.errors import UserError, did_you_mean
from core.settings import SETTINGS, Setting


class Registry:
    """Names to objects of one kind; registering a name twice is an error that names both owners."""

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, object] = {}
        self.contents: dict[str, str] = {}  # name -> sha256 of the plugin file that registered it

    def add(self, name: str, item: object) -> object:
        if name in self._items:
            old = self._items[name]
            raise ValueError(f"{self.kind} {name!r} is registered twice: by {_owner(old)} and by {_owner(item)}; "
                             "rename one")
        self._items[name] = item
        return item

    def get(self, name: str):
        if name not in self._items:
            listed = ", ".join(sorted(self._items))
            raise UserError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._items)}; known: {listed}")
        return self._items[name]

    def identity(self, name: str) -> list:
        """What identifies an item in a digest: name and version, and the text of the plugin that it comes from."""
        content = self.contents.get(name)
        return [name, self.get(name).version, *([content] if content else [])]

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))


def _owner(item) -> str:
    fn = getattr(item, "fn", item)
    if isinstance(item, MethodSpec):
        return "+".join(name for name in (item.scorer, item.allocator, item.quantizer) if name)
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"


def one_pass(blocks: int) -> float:
    """Passes of a scorer that runs every calibration document through the model once."""
    return 1


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer: ``fn(ScoreContext) -> Scores`` and what its result depends on.

    ``params`` are the settings that it may read, and the facts of its cell (FACTS); reading another is an error, so the
    key of its scores holds exactly what they depend on.  ``needs`` is drawn from NEEDS: "calib" are unlabeled prompts,
    "outputs" statistics of block outputs over these, made once for all scorers that need them; "labels" their answers;
    "answers" are worked documents of which the answer's tokens are marked, drawn by the seed;
    "gradients" and "hessian" read the solvers' calibration set (worked documents or general
    text, drawn by the seed).  A scorer is keyed by what it needs and no more.  ``forwards`` and ``every_block`` are for
    the estimates of time and memory alone.
    """

    name: str
    fn: Callable
    granularity: str
    needs: tuple[str, ...] = ("calib",)
    params: tuple[str, ...] = ()
    version: int = 1
    gradients: tuple[str, ...] = ()  # which sums it reads: "abs", "square", "sum"
    forwards: Callable[[int], float] = one_pass  # passes over its calibration documents, by the number of blocks
    every_block: bool = False  # whether it has the hidden states of all blocks in memory at once
    inside_blocks: bool = False  # whether it takes gradients of what lies there, which an offloaded one does not hold

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that change its scores."""
        return _settings(self.needs, self.params)

    @property
    def documents(self) -> str | None:
        """The setting that says how many calibration documents it reads; None: it reads all."""
        return next((name for name in self.settings if SETTINGS[name].documents), None)

    @property
    def compares(self) -> bool:
        """Whether it compares the weights with those of a quantized model (--corrupt)."""
        return "corrupt" in self.params


@dataclass(frozen=True)
class AllocatorSpec:
    """An allocator: ``fn(AllocContext) -> (plans by linear, notes)``."""

    name: str
    fn: Callable
    version: int = 1
    options: tuple[str, ...] = ()  # that a method may fix, or a row's brackets
    exempt: bool = False  # a published allocation: its rows carry their own bits, no budget
    needs: tuple[str, ...] = ()  # "library": forms of every linear, solved and priced
    keeps: bool = False  # weights, columns or rows inside a linear at more bits than the others
    # scores of single weights only through quantization.allocators.ranking.first_k, which tells when the best of them
    # are not enough; any other allocator is handed all
    ranks: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that change what it decides, besides its options."""
        return _settings(self.needs, ())


@dataclass(frozen=True)
class QuantizerSpec:
    """A quantizer: ``fn(weight, LayerPlan) -> ŵ``, or with ``needs`` ``fn(weight, LayerPlan, Aid) -> Stored``."""

    name: str
    fn: Callable
    version: int = 1
    options: tuple[str, ...] = ()  # that a method may fix, or a row's brackets
    # "hessian" or "inputs" of the linear, "fisher" (gradients), "library" (solved forms); none = weights alone
    needs: tuple[str, ...] = ()
    sequential: bool = True  # linears of a block one input after the other, or all from the block as loaded

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that change what it does, besides its options."""
        return _settings(self.needs, ())


@dataclass(frozen=True)
class MethodSpec:
    """A method: which scorer, allocator and quantizer; ``native`` rows carry their own true bits."""

    name: str
    scorer: str | None
    allocator: str | None
    quantizer: str | None
    paper: str = ""
    native: bool = False
    options: dict = field(default_factory=dict)  # of the allocator and quantizer; "N" etc. follow the grid (variants)
    settings: dict = field(default_factory=dict)  # this row's own, in place of the grid's: its brackets', its method's
    common: bool = False  # a row that the grid gave its common quantizer

    @property
    def budgeted(self) -> bool:
        """Whether this row must meet the grid's stored-bit budget."""
        return not self.native and self.quantizer is not None

    @property
    def plain(self) -> str:
        """The name without brackets."""
        return self.name.partition("[")[0]


SCORERS, METHODS = Registry("scorer"), Registry("method")
ALLOCATORS, QUANTIZERS, DATASETS = Registry("allocator"), Registry("quantizer"), Registry("dataset")
REGISTRIES = (SCORERS, METHODS, ALLOCATORS, QUANTIZERS, DATASETS)
CONTROLS = ("fp16", "uniform", "random")  # every table carries them
GRANULARITIES = ("layer", "linear", "channel", "line", "group", "element")
NEEDS = ("calib", "outputs", "labels", "answers", "gradients", "hessian")  # of a scorer
QUANTIZER_NEEDS = ("hessian", "inputs", "fisher", "library")
FACTS = {  # what a scorer may read of its cell, besides settings
    "seed": "the row's seed", "batch_tokens": "padded tokens a batch", "group_size": "of the common grid",
    "base": "how linears are stored before any weight is kept", "levels": "of bits that the allocator may choose",
}
# options that take their value from the budget; no published code goes above 8 bits, SliM-LLM's not above 7
FOLLOWS = {"N": lambda bits: min(8, int(bits)), "N-1": lambda bits: min(8, max(1, int(bits) - 1)),
           "N<8": lambda bits: min(7, max(2, int(bits))), "budget": float}
# options that take their value from a grid's axis, and come once a value
FROM_AXES = {"ratio": "keep_ratio", "heads": "dynamic_heads"}
COMMON = "common"  # the quantizer of a common row: the grid's own (--quantizer)
# what a common row may still tell it: nothing that changes what is stored
COMMON_OPTIONS = ("percdamp", "discount", "act_order")
DEFAULT_ALLOCATOR = {"layer": "knapsack", "linear": "knapsack", "group": "knapsack", "channel": "topk_keep",
                     "line": "topk_keep", "element": "topk_keep"}


def _settings(needs, params) -> tuple[str, ...]:
    implied = [setting.name for need in needs for setting in READ_BY[need]]
    return tuple(dict.fromkeys([*implied, *(name for name in params if name in SETTINGS)]))


def scorer(name: str, *, granularity: str, needs=("calib",), params=(), version: int = 1, gradients=(),
           forwards: Callable[[int], float] = one_pass, every_block: bool = False,
           inside_blocks: bool = False):
    """Register the decorated function as a scorer; see :class:`ScorerSpec`.

    ``params`` holds settings (core/settings.py) and words: names of settings that are declared elsewhere, or of FACTS.
    """
    who = f"scorer {name!r}"
    if granularity not in GRANULARITIES:
        raise ValueError(f"{who}: granularity {granularity!r} is not one of {GRANULARITIES}")
    if not set(needs) <= set(NEEDS):
        raise ValueError(f"{who}: needs {tuple(needs)} are not among {NEEDS}")
    if "outputs" in needs and "calib" not in needs:
        raise ValueError(f"{who}: needs 'outputs', statistics of block outputs over prompts; name 'calib' beside it")
    names = SETTINGS.declare(params, who)
    unknown = [n for n in names if n not in SETTINGS and n not in FACTS]
    if unknown:
        raise ValueError(f"{who}: params name {unknown[0]!r}, which is no setting and no fact of a cell "
                         f"({', '.join(FACTS)}); declare it with core.settings.Setting")

    def wrap(fn):
        SCORERS.add(name, ScorerSpec(name=name, fn=fn, granularity=granularity, needs=tuple(needs), params=names,
                                     version=version, gradients=tuple(gradients), forwards=forwards,
                                     every_block=every_block, inside_blocks=inside_blocks))
        return fn

    return wrap


def method(name: str, *, scorer: str | None = None, allocator: str | None = None, quantizer: str | None = COMMON,
           paper: str = "", native: bool = False, settings: dict | None = None, **options) -> MethodSpec:
    """Register a method; the allocator defaults to the common one of its scorer's granularity.

    ``settings`` are this method's own, in place of the grid's; brackets may name others.
    """
    if allocator is None and scorer is not None:
        allocator = DEFAULT_ALLOCATOR[SCORERS.get(scorer).granularity]
    if allocator is None:
        raise ValueError(f"method {name!r} has neither a scorer nor an allocator; name one of them")
    if re.search(r"[\[\],=+\s]", name):
        raise ValueError(f"method {name!r} has a bracket, comma, =, + or space in its name; these mean something on "
                         "the command line")
    own = COMMON_OPTIONS if quantizer == COMMON else QUANTIZERS.get(quantizer).options if quantizer else ()
    read = ALLOCATORS.get(allocator).options + own
    if set(options) - set(read):
        raise ValueError(f"method {name!r}: allocator {allocator!r} and quantizer {quantizer!r} read {read}, not "
                         f"{sorted(set(options) - set(read))}")
    for key, value in options.items():
        if key in SETTINGS and value not in (*FOLLOWS,) and not (key in FROM_AXES and value == key):
            SETTINGS[key].checked(value, where=f"method {name}: {key}")
    return METHODS.add(name, MethodSpec(name=name, scorer=scorer, allocator=allocator, quantizer=quantizer, paper=paper,
                                        native=native, options=options, settings=dict(settings or {})))


def allocator(name: str, version: int = 1, options: tuple = (), exempt: bool = False, needs: tuple[str, ...] = (),
              keeps: bool = False, ranks: bool = False):
    """Register the decorated function as an allocator; see :class:`AllocatorSpec`."""
    names = _options(f"allocator {name!r}", options)
    return lambda fn: ALLOCATORS.add(name, AllocatorSpec(name, fn, version, options=names, exempt=exempt,
                                                         needs=needs, keeps=keeps, ranks=ranks)).fn


def quantizer(name: str, version: int = 1, *, needs: tuple[str, ...] = (), sequential: bool = True,
              options: tuple = ()):
    """Register the decorated function as a quantizer; see :class:`QuantizerSpec`."""
    if not set(needs) <= set(QUANTIZER_NEEDS):
        raise ValueError(f"quantizer {name!r}: needs {tuple(needs)} are not among {QUANTIZER_NEEDS}")
    names = _options(f"quantizer {name!r}", options)
    return lambda fn: QUANTIZERS.add(name, QuantizerSpec(name, fn, version, options=names, needs=tuple(needs),
                                                         sequential=sequential)).fn


def _options(who: str, options) -> tuple[str, ...]:
    """Take up the options' settings; an option is told by a method or in brackets, never by a flag."""
    flags = [o.name for o in options if isinstance(o, Setting) and o.flag]
    if flags:
        raise ValueError(f"{who}: option {flags[0]!r} is declared with a flag; options belong to rows, so pass "
                         "flag=False")
    return SETTINGS.declare(options, who)
