"""Faithfulness curves: what is left of the task when all but the best heads and neurons is quantized.

    faithfulness(k) = (m_k − m_0) / (m_full − m_0)

m: mean gold log-likelihood, nats a token; m_k: the share k of the heads, and of the neurons, at 16 bits and the rest
at the low bits; m_0: all at the low bits; m_full: full precision.  1 = all is left, 0 = as if nothing were kept; it
is not clipped.  The area is the trapezoid rule over k from 0 to the largest share, divided by it, so that a curve
which is 1 from the start has area 1.  Means of seeds are means of m.  Intervals are paired: 95 % of the bootstrap
over documents, in which all rows of a data set share the resamples; they hold for the orders and documents that were
drawn.

After MIB (arXiv 2504.13151, integrated circuit performance ratio), which ablates the complement where here it is
quantized.  "uniform" is not a circuit: it stands at the stored bits of the best-first row of the same k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation.statistics.paired import Panel
from report.records import Result, load_samples
from report.tables.groups import dataset_order

ALLOCATOR, RANDOM = "circuit_complement", "circuit-random"
METRIC = "gold_loglik"
SAME_BITS = 1e-9


@dataclass(frozen=True)
class Curve:
    """One order of units, or uniform bits, over the shares that are kept."""

    label: str
    shares: tuple[float, ...]  # without 0
    bits: tuple[float, ...]  # stored bits a weight, mean over seeds
    points: tuple[dict, ...]  # faithfulness: value, low, high
    area: dict
    seeds: int
    ahead: dict | None = None  # by how much the best-first curve's area is larger; None for itself


@dataclass(frozen=True)
class Faithfulness:
    """The curves of one data set, scorer and number of low bits."""

    dataset: str
    scorer: str
    told: str  # what else tells these curves from others: units, settings, quantizer; empty for the usual ones
    bits: int  # of what is quantized
    n: int
    full: float  # m_full, m_0: nats a token
    nothing: float
    lost: dict  # m_full − m_0 with its interval; if that holds 0, a share of it means nothing
    nothing_bits: float
    curves: tuple[Curve, ...] = field(default=())

    @property
    def title(self) -> str:
        """In words: data set, scorer, low bits."""
        return f"{self.dataset}: {self.scorer}{self.told}, the rest at {self.bits} bits"


def is_kept(cell: Result) -> bool:
    """Whether a cell is of a curve: units kept over low bits."""
    return cell.ok and cell.method.allocator == ALLOCATOR


def faithfulness(results: Sequence[Result]) -> list[Faithfulness]:
    """All curves that the results hold whole: of cells that may be compared, with their m_0 and m_full."""
    families: dict[tuple, list[Result]] = {}
    for cell in _newest(results):
        families.setdefault((cell.conditions, cell.dataset, cell.asked), []).append(cell)
    return [curves for key, cells in sorted(families.items(), key=lambda item: (dataset_order(item[0][1]), item[0]))
            for bits in sorted({cell.method.options["bits"] for cell in cells})
            for scorer, form, told in sorted({(cell.method.scorer, _form(cell), _settings(cell)) for cell in cells})
            if scorer != RANDOM and (curves := _of(key, [
                c for c in cells if c.method.options["bits"] == bits and _form(c) == form
                and (c.method.scorer, _settings(c)) in ((scorer, told), (RANDOM, ""))],
                scorer, form + told, results))]


def _form(cell: Result) -> str:
    """What is kept and how the rest is quantized, in words; empty for heads and neurons, round-to-nearest."""
    method = cell.method
    rest = {name: value for name, value in method.options.items() if name not in ("bits", "first", "fp16_ratio")}
    words = [f"{name} {value}" for name, value in sorted(rest.items()) if value != "all"]
    return "".join(f", {word}" for word in [*words, *([method.quantizer] if method.quantizer != "rtn" else [])])


def _settings(cell: Result) -> str:
    """The row's own settings, in words."""
    return "".join(f", {name} {value}" for name, value in sorted(cell.method.settings.items()))


def without_curves(results: Sequence[Result]) -> list[Result]:
    """The results that are rows of tables: a curve's many cells would bury them, and uniform bits at each of a curve's
    budgets would make a table each.
    """
    along = {(cell.conditions, cell.dataset, cell.bits.average) for cell in results if is_kept(cell)}

    def of_a_curve(cell: Result) -> bool:
        return is_kept(cell) or (cell.name == "uniform" and (cell.conditions, cell.dataset, cell.avg_bits) in along)

    return [cell for cell in results if not of_a_curve(cell)] if along else list(results)


def _newest(results: Sequence[Result]) -> list[Result]:
    """The cells of curves; of cells that differ in what their names do not say, the newest."""
    newest: dict[tuple, Result] = {}
    for cell in sorted(filter(is_kept, results), key=lambda cell: cell.age):
        newest[cell.conditions, cell.dataset, cell.asked, cell.name, cell.seed] = cell
    return list(newest.values())


def _of(key: tuple, cells: list[Result], scorer: str, told: str, results: Sequence[Result]) -> Faithfulness | None:
    """The curves of one scorer and number of low bits; None without m_0, m_full or any point of the best first."""
    others = [r for r in results if r.ok and (r.conditions, r.dataset, r.asked) == key]
    full = next((r for r in others if r.name == "fp16"), None)
    empty = [c for c in cells if _share(c) == 0 and c.method.scorer == scorer]
    lines = {label: points for label, points in _lines(cells, others).items() if points}
    if full is None or not empty or "best first" not in lines:
        return None
    runs = [full, *empty, *(cell for points in lines.values() for of_share in points.values() for cell in of_share)]
    panel = Panel([load_samples(cell) for cell in runs])
    place = {id(cell): at for at, cell in enumerate(runs)}
    zero = list(range(1, 1 + len(empty)))  # m_0 of every seed
    ranked, curves = None, []
    for label, points in lines.items():
        shares = tuple(sorted(points))
        columns = [[place[id(cell)] for cell in points[share]] for share in shares]
        area = _area(shares, columns, zero)
        ahead = None if ranked is None or ranked[0] != shares else panel.statistic(
            METRIC, lambda means, area=area: ranked[1](means) - area(means))
        ranked = ranked or (shares, area)
        bits = tuple(float(np.mean([cell.bits.average for cell in points[share]])) for share in shares)
        seeds = {cell.seed for of_share in points.values() for cell in of_share}
        curves.append(Curve(label, shares, bits=bits, area=panel.statistic(METRIC, area), seeds=len(seeds), ahead=ahead,
                            points=tuple(panel.statistic(METRIC, _value(column, zero)) for column in columns)))
    means = panel.values[METRIC].mean(axis=0)
    return Faithfulness(dataset=full.dataset, scorer=scorer, told=told, bits=empty[0].method.options["bits"],
                        n=panel.n, full=float(means[0]), nothing=float(means[zero].mean()),
                        nothing_bits=empty[0].bits.average, lost=panel.difference(METRIC, zero, [0]),
                        curves=tuple(curves))


def _share(cell: Result) -> float:
    return cell.method.options["fp16_ratio"]


def _lines(cells: list[Result], others: Sequence[Result]) -> dict[str, dict[float, list[Result]]]:
    """The cells of each curve by share; of uniform, those at the bits of the best-first cell."""
    lines: dict[str, dict[float, list[Result]]] = {"best first": {}, "random": {}, "worst first": {}, "uniform": {}}
    for cell in cells:
        if _share(cell):
            worst = cell.method.options.get("first") == "worst"
            label = "random" if cell.method.scorer == RANDOM else "worst first" if worst else "best first"
            lines[label].setdefault(_share(cell), []).append(cell)
    for share, best in lines["best first"].items():
        bits = {cell.bits.average for cell in best}  # seeds may store more or less
        even = [r for r in others if r.name == "uniform" and any(abs(r.avg_bits - b) < SAME_BITS for b in bits)]
        if even:
            lines["uniform"][share] = even
    return lines


def _value(column: list[int], zero: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    """Faithfulness of the mean of some runs, from means [..., runs] of which the first is full precision; ``zero``: the
    runs with everything quantized.  Nothing where these lose nothing.
    """
    def value(means: np.ndarray) -> np.ndarray:
        lost = means[..., 0] - means[..., zero].mean(-1)
        return (means[..., column].mean(-1) - means[..., zero].mean(-1)) / np.where(lost == 0, np.nan, lost)
    return value


def _area(shares: tuple[float, ...], columns: list[list[int]], zero: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    """The area under a curve that begins at 0, divided by the largest share."""
    def area(means: np.ndarray) -> np.ndarray:
        values = np.stack([np.zeros(means.shape[:-1]), *(_value(column, zero)(means) for column in columns)], -1)
        return np.trapezoid(values, [0.0, *shares], axis=-1) / shares[-1]
    return area
