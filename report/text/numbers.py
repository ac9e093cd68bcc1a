"""Numbers as people read them; a dash where there is none."""

import pandas as pd

from evaluation.statistics import formulas as stats


def none(value) -> bool:
    """Whether there is no number: None, or NaN as a frame has it."""
    return value is None or bool(pd.isna(value))


def percent(value) -> str:
    """A share as percent with one decimal."""
    return "-" if none(value) else f"{100 * value:.1f}"


def points(value) -> str:
    """A difference of shares in percentage points, signed."""
    return "-" if none(value) else f"{100 * value:+.1f}"


def nats(value) -> str:
    """A difference in nats a token, signed."""
    return "-" if none(value) else f"{value:+.3f}"


def number(value, digits: int) -> str:
    """A number with fixed decimals, or a dash where there is none."""
    return "-" if none(value) else f"{value:.{digits}f}"


def p_value(value) -> str:
    """A p value, never rounded to zero."""
    return "-" if none(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def span(found: dict, show) -> str:
    """``value [low, high]`` of a number with its interval."""
    return "-" if none(found["value"]) else f"{show(found['value'])} [{show(found['low'])}, {show(found['high'])}]"


def interval(cell: dict, name: str, show) -> str:
    """``value [low, high]`` of a table's number with its interval."""
    return span({"value": cell[name], "low": cell[f"{name}_low"], "high": cell[f"{name}_high"]}, show)


def mean_sd(values: pd.Series, show, between: str = " ±", spread=None) -> str:
    """``mean ±sd`` (sample standard deviation) of several seeds, or the one value."""
    values = values.dropna()
    if not len(values):
        return "-"
    mean, sd = stats.mean_sd(values)
    return show(mean) + (f"{between}{(spread or show)(sd)}" if sd is not None else "")
