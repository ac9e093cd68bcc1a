"""Numbers as people read them; a dash where there is none."""

from collections.abc import Iterable

from evaluation.statistics.formulas import mean_sd as statistics_of


def none(value) -> bool:
    """Whether there is no number: None, or NaN as a frame has it."""
    return value is None or value != value


def percent(value) -> str:
    """A share as percent with one decimal."""
    return "-" if none(value) else f"{100 * value:.1f}"


def points(value) -> str:
    """A difference of shares in percentage points, signed."""
    return "-" if none(value) else f"{100 * value:+.1f}"


def signed(value) -> str:
    """A difference, in nats a token or of a task's own metric, signed."""
    return "-" if none(value) else f"{value:+.3f}"


def number(value, digits: int) -> str:
    """A number with fixed decimals, or a dash where there is none."""
    return "-" if none(value) else f"{value:.{digits}f}"


def p_value(value) -> str:
    """A p value, never rounded to zero."""
    return "-" if none(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def span(interval: dict, show) -> str:
    """``value [low, high]`` of a number with its interval."""
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    return "-" if none(value) else f"{show(value)} [{show(low)}, {show(high)}]"


def interval(row: dict, name: str, show) -> str:
    """``value [low, high]`` of a row's number with its interval; a dash where the row has no such number."""
    return span({"value": row.get(name), "low": row.get(f"{name}_low"), "high": row.get(f"{name}_high")}, show)


def mean_sd(values: Iterable, show, spread=None) -> str:
    """``mean sd s`` (sample standard deviation) of several seeds, or the one value; ``spread`` shows the deviation."""
    values = [value for value in values if not none(value)]
    if not values:
        return "-"
    mean, sd = statistics_of(values)
    return show(mean) + (f" sd {(spread or show)(sd)}" if sd is not None else "")


def with_activations(bits: str, row: dict) -> str:
    """Bits of weights as the column of bits has them; where activations have few, of both: ``W4.250 A4``."""
    return f"W{bits} {row['activations']}" if row.get("activations") else bits
