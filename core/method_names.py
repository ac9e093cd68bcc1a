"""What a method's name on the command line stands for.

``scorer+allocator+quantizer`` builds a method on the fly (the ablation grid), brackets behind any name give one row
settings of its own (``TaCQ[calib=c4,corrupt=rtn]``), and a method becomes a row a budget or a kept ratio.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import product

from core.activations import ACTIVATIONS
from core.errors import UserError, did_you_mean
from core.registry import (
    ALLOCATORS,
    COMMON,
    COMMON_OPTIONS,
    FOLLOWS,
    FROM_AXES,
    METHODS,
    QUANTIZERS,
    SCORERS,
    MethodSpec,
)
from core.settings import SETTINGS, shown
from core.shuffle import SHUFFLE, can_shuffle
from core.storage import OF_COMMON_ROWS
from core.transforms import OF_EVERY_ROW


def resolve_method(name: str) -> MethodSpec:
    """The method called ``name``, or built of ``scorer+allocator[+quantizer]``; either with settings in brackets."""
    plain, bracket, inside = name.partition("[")
    plain = plain.strip()
    spec = METHODS.get(plain) if "+" not in plain else _combined(plain)
    if not bracket:
        return spec
    if not inside.endswith("]") or not inside[:-1].strip() or set(inside[:-1]) & set("[]"):
        raise UserError(f"method {name!r} has brackets that are not NAME[setting=value,...]; write for example "
                        "TaCQ[calib=c4]")
    return _with_settings(spec, inside[:-1])


def _combined(name: str) -> MethodSpec:
    chain = name.split("+")
    if len(chain) > 3 or not all(chain):
        raise UserError(f"method {name!r} has {len(chain)} parts; write scorer+allocator or scorer+allocator+quantizer")
    base = SCORERS.get(chain[0])
    exempt = ALLOCATORS.get(chain[1]).exempt
    quant = chain[2] if len(chain) == 3 else COMMON
    if quant != COMMON:
        QUANTIZERS.get(quant)
    follows = {k: v for k, v in (("bits", "N"), *((k, k) for k in FROM_AXES))
               if k in ALLOCATORS.get(chain[1]).options}
    return MethodSpec(name=name, scorer=base.name, allocator=chain[1], quantizer=quant, native=exempt, options=follows)


def _with_settings(spec: MethodSpec, text: str) -> MethodSpec:
    """The method with what stands in its brackets; canonical, so that one row has one name."""
    settings, options = readable(spec)
    values: dict[str, object] = {}
    for pair in text.split(","):
        key, equals, value = (word.strip() for word in pair.partition("="))
        if not equals or not key or not value:
            raise UserError(f"{spec.name}[{text}] has {pair.strip()!r} where setting=value belongs; write for example "
                            f"{spec.name}[calib=c4]")
        if key not in (*settings, *options):
            reads = ", ".join((*settings, *options))
            raise UserError(f"{spec.name} reads no setting {key!r}{did_you_mean(key, (*settings, *options))}"
                            + (f"; it reads: {reads}" if reads else ", and none at all; write it without brackets"))
        if key in values:
            raise UserError(f"{spec.name}[{text}] names {key} twice; name each setting once")
        values[key] = SETTINGS[key].read(value, where=f"{spec.name}[{key}]")
    name = f"{spec.name}[{','.join(f'{k}={shown(values[k])}' for k in sorted(values))}]"
    return replace(spec, name=name, settings=spec.settings | {k: v for k, v in values.items() if k in settings},
                   options=spec.options | {k: v for k, v in values.items() if k in options})


def told(spec: MethodSpec, **values) -> MethodSpec:
    """The same row with these settings in its brackets too; its name says them, before what stands for an axis."""
    if not values:
        return spec
    head, at, axis = spec.name.partition("@")
    plain, _, inside = head.removesuffix("]").partition("[")
    pairs = sorted([*filter(None, inside.split(",")), *(f"{name}={shown(value)}" for name, value in values.items())])
    return replace(spec, name=f"{plain}[{','.join(pairs)}]{at}{axis}", settings=spec.settings | values)


def without_settings(name: str, names: Collection[str] = ACTIVATIONS) -> str:
    """A row's name without what its brackets say of these settings, by default those of activations."""
    head, at, axis = name.partition("@")
    plain, _, inside = head.removesuffix("]").partition("[")
    others = [pair for pair in inside.split(",") if pair and pair.partition("=")[0] not in names]
    return plain + (f"[{','.join(others)}]" if others else "") + at + axis


def readable(spec: MethodSpec, common: str | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the settings and of the options that a row may be told in brackets.

    A common row's quantizer is ``common``; where that is not known, any that common rows may have counts.
    """
    options = ALLOCATORS.get(spec.allocator).options if spec.allocator else ()
    if spec.quantizer == COMMON:  # its options are the grid's own, the same for all common rows, but for a few
        chosen = [common] if common else [name for name in QUANTIZERS if QUANTIZERS.get(name).needs == ("hessian",)]
        options += tuple(name for name in COMMON_OPTIONS if any(name in QUANTIZERS.get(one).options for one in chosen))
    else:
        chosen = [spec.quantizer] if spec.quantizer else []
        options += tuple(name for quantizer in chosen for name in QUANTIZERS.get(quantizer).options)
    scored = SCORERS.get(spec.scorer).settings if spec.scorer else ()
    solved = [name for quantizer in chosen for name in QUANTIZERS.get(quantizer).settings]
    stored = OF_COMMON_ROWS if spec.budgeted and spec.quantizer == COMMON else ()
    bought = ALLOCATORS.get(spec.allocator).settings if spec.allocator else ()
    drawn = (SHUFFLE.name,) if can_shuffle(spec.scorer, spec.allocator) else ()
    settings = dict.fromkeys([*scored, *bought, *solved, *(("published",) if spec.native else ()), *stored, *drawn,
                              *OF_EVERY_ROW])
    return tuple(settings), tuple(dict.fromkeys(name for name in options if name in SETTINGS))


def variants(spec: MethodSpec, common: str, budgets: tuple[float, ...],
             axes: Mapping[str, tuple]) -> list[tuple[MethodSpec, float | None]]:
    """The rows that a method stands for in a grid: (method, stored bits or None).

    Common rows take the grid's quantizer and come once a budget.  A native row whose options follow the budget ("N" =
    its whole bits) comes once a budget too, with its own true bits.  An option of ``axes`` (core.registry.FROM_AXES)
    whose value is its own name makes one row a value there, such as a kept ratio.
    """
    if spec.quantizer == COMMON:
        spec = replace(spec, quantizer=common, common=True)
    follows = [k for k, v in spec.options.items() if isinstance(v, str) and v in FOLLOWS]
    by_axis = [k for k, v in spec.options.items() if k in axes and v == k]
    rows = []
    for bits in budgets if spec.budgeted or follows else (None,):
        followed = {k: FOLLOWS[spec.options[k]](bits) for k in follows}
        for values in product(*(axes[spec.options[k]] for k in by_axis)):
            name = "@".join([spec.name, *(f"{value:g}" for value in values)])
            options = spec.options | followed | dict(zip(by_axis, values, strict=True))
            rows.append((replace(spec, name=name, options=options), bits))
    return rows
