"""Faithfulness curves as sheets: a row a share, a column a curve, the area below, and what it says."""

from collections.abc import Sequence

from report.tables.faithfulness import Faithfulness
from report.text.numbers import number, span
from report.text.sheets import Sheet, sheet

LEGEND = ("Faithfulness: (m - m0) / (m_full - m0), m the mean gold log-likelihood; 1: all of the task is left, 0: no "
          "more than with everything quantized. In brackets: 95 % intervals, paired over documents, for the random "
          "orders that were drawn. Area: the mean height of the curve from 0 to the largest share. uniform: no "
          "circuit, uniform bits at what best first stores.")


def sheets(families: Sequence[Faithfulness]) -> list[Sheet]:
    """One a data set, scorer and number of low bits."""
    return [sheet(one.title, _rows(one)) for one in families]


def _rows(one: Faithfulness) -> list[dict]:
    shares = sorted({share for curve in one.curves for share in curve.shares})
    rows = [{"kept at 16 bits": f"{100 * share:g} %"} for share in shares]
    area, ahead = {"kept at 16 bits": "area"}, {"kept at 16 bits": "best first ahead by"}
    for curve in one.curves:
        name = curve.label + (f" ({curve.seeds} seeds)" if curve.seeds > 1 else "")
        for share, bits, point in zip(curve.shares, curve.bits, curve.points):
            rows[shares.index(share)] |= {f"{name}: bits": f"{bits:.2f}", name: _span(point)}
        area |= {f"{name}: bits": "-", name: _span(curve.area)}
        ahead |= {f"{name}: bits": "-", name: "-" if curve.ahead is None else _span(curve.ahead)}
    return [*rows, area, ahead]


def _span(value: dict) -> str:
    return span(value, lambda share: number(share, 2))


def lines(families: Sequence[Faithfulness]) -> list[str]:
    """What stands below: how to read it, and what each family's ends are."""
    return [LEGEND, *map(_ends, families)] if families else []


def points(families: Sequence[Faithfulness]) -> list[dict]:
    """Every point as plain data, unrounded."""
    return [{"curves": one.title, "order": curve.label, "kept": share,
             "bits": bits, "faithfulness": point["value"], "low": point["low"], "high": point["high"],
             "area": curve.area["value"], "area_low": curve.area["low"], "area_high": curve.area["high"],
             "seeds": curve.seeds, "n": one.n} for one in families for curve in one.curves
            for share, bits, point in zip(curve.shares, curve.bits, curve.points)]


def _ends(one: Faithfulness) -> str:
    words = (f"{one.dataset}, {one.bits} bits: n = {one.n}, gold log-likelihood {one.full:.3f} nats a token in full "
             f"precision, {one.nothing:.3f} with everything at {one.nothing_bits:.2f} stored bits")
    if one.lost["low"] > 0:
        return words
    if one.lost["high"] < 0:
        return (f"{words}; quantizing everything helps ({_span(one.lost)} nats), so a share of what is lost means "
                "nothing")
    return f"{words}; these are not told apart ({_span(one.lost)} nats), so a share of their difference means nothing"
