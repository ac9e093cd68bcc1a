"""How far methods agree: on which linears matter, on which weights inside a linear, and on which weights to keep.

    linears   Spearman rank correlation of the linears' mean scores (mean of the sampled positions)
    weights   Spearman rank correlation inside a linear over the sampled positions, mean over the linears
    masks     Jaccard overlap |A ∩ B| / |A ∪ B| of the weights kept, over all sampled positions

A result holds the same 64 positions of a linear for every method that scores single weights, so these can be
paired; scores of blocks, columns or groups join by their linears' means only.  Fewer than LEAST kept
positions say nothing and show no number.  Each cell is ranked once; a pair is then one product of its ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from report.figures.frames import of_first_seed
from report.records import Result

LEAST = 10
KINDS = {"linears": "rank correlation between linears", "weights": "rank correlation inside linears",
         "masks": "overlap of the weights kept"}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation with ties at their mean rank; NaN where one side is constant or fewer than three finite pairs
    are left."""
    finite = np.isfinite(a) & np.isfinite(b)
    if finite.sum() < 3:
        return float("nan")
    one, two = unit_ranks(np.array([a[finite], b[finite]], dtype=float))
    return float(one @ two)


def unit_ranks(scores: np.ndarray) -> np.ndarray:
    """The ranks of each row, [rows, n], minus their mean and of length one: the product of two rows is their
    correlation.  NaN where constant."""
    ranks = rankdata(scores, axis=1) - (scores.shape[1] + 1) / 2
    length = np.sqrt((ranks**2).sum(axis=1, keepdims=True))
    return np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)


@dataclass(frozen=True)
class Sampled:
    """The sampled scores of a cell: F linears in an order that all cells of a comparison share, n positions at most."""

    there: np.ndarray  # [F] whether the cell has the linear at all
    means: np.ndarray  # [F] mean sampled score; NaN where it is not there
    scores: np.ndarray  # [F, n] of cells that scored single weights; NaN beyond a linear's own positions
    ranks: np.ndarray  # [F, n] unit ranks, 0 beyond a linear's own positions; NaN where constant or not finite
    kept: np.ndarray  # [F, n] whether the weight was kept
    counts: np.ndarray  # [F] positions; 0: none to be paired
    places: np.ndarray  # [F] number of the list of positions; 0: unknown


def sampled(cells: Sequence[Result]) -> list[Sampled]:
    """The cells' samples, aligned."""
    order = {fqn: i for i, fqn in enumerate(dict.fromkeys(fqn for cell in cells for fqn in cell.probe))}
    most = max((len(p["scores"]) for cell in cells for p in cell.probe.values()), default=0)
    known: dict[tuple, int] = {}
    return [_sampled(cell, order, most, known) for cell in cells]


def _sampled(cell: Result, order: dict[str, int], most: int, known: dict[tuple, int]) -> Sampled:
    """One cell.  A linear of which nothing was kept has no mask in its plan, so none in its probe: its positions are
    those of the others."""
    there, means = np.zeros(len(order), bool), np.full(len(order), np.nan)
    scores, kept = np.full((len(order), most), np.nan), np.zeros((len(order), most), bool)
    counts, places = np.zeros(len(order), int), np.zeros(len(order), int)
    single = any("kept" in p for p in cell.probe.values())
    for fqn, probe in cell.probe.items():
        row, values = order[fqn], np.asarray(probe["scores"], dtype=float)
        there[row], means[row] = True, values.mean() if len(values) else np.nan
        if single:
            scores[row, :len(values)], counts[row] = values, len(values)
            kept[row, :len(probe.get("kept", ()))] = probe.get("kept", ())
            places[row] = known.setdefault(tuple(probe["positions"]), len(known) + 1) if "positions" in probe else 0
    ranks = np.zeros_like(scores)
    for count in set(counts.tolist()) - {0}:
        rows = counts == count
        ranks[rows, :count] = unit_ranks(scores[rows, :count])
    ranks[(counts > 0) & ~(np.isfinite(scores) | (np.arange(most) >= counts[:, None])).all(axis=1)] = np.nan
    return Sampled(there=there, means=means, scores=scores, ranks=ranks, kept=kept, counts=counts, places=places)


def pair(a: Result, b: Result) -> dict:
    """The three numbers of two cells, and how much each rests on."""
    return compare(*sampled([a, b]))


def compare(a: Sampled, b: Sampled) -> dict:
    """The three numbers of two aligned cells, and how much each rests on."""
    both = a.there & b.there
    shared = (a.counts == b.counts) & (a.counts > 0) & ((a.places == b.places) | (a.places == 0) | (b.places == 0))
    inside = np.einsum("fn,fn->f", a.ranks[shared], b.ranks[shared])
    for i in np.flatnonzero(~np.isfinite(inside)):  # constant, or with scores that are not finite
        inside[i] = spearman(a.scores[shared][i], b.scores[shared][i])
    inside = inside[np.isfinite(inside)]
    row = {"linears": spearman(a.means[both], b.means[both]), "n_linears": int(both.sum())}
    count = int(a.counts[shared].sum())
    row |= {"weights": float(np.mean(inside)) if len(inside) else float("nan"), "n_weights": count}
    return row | _overlap(a.kept[shared], b.kept[shared], count)


def _overlap(a: np.ndarray, b: np.ndarray, count: int) -> dict:
    """Jaccard overlap of two masks of ``count`` positions, and that of two random masks with as many weights."""
    union = int((a | b).sum())
    if union < LEAST:
        return {"masks": float("nan"), "n_union": union, "by_chance": float("nan")}
    one, two = a.sum() / count, b.sum() / count
    chance = one * two / (one + two - one * two)
    return {"masks": float((a & b).sum() / union), "n_union": union, "by_chance": float(chance)}


def agreement(cells: Sequence[Result], budget: float | None, dataset: str, order: Sequence[str]) -> pd.DataFrame:
    """One row a pair of methods of a data set and budget, in the given order."""
    by_name = {c.method.name: c for c in of_first_seed(cells, budget) if c.dataset == dataset and c.probe}
    names = [m for m in order if m in by_name]
    samples = dict(zip(names, sampled([by_name[m] for m in names])))
    names = [m for m in names if len(np.unique(samples[m].means[np.isfinite(samples[m].means)])) > 1]
    return pd.DataFrame([{"dataset": dataset, "a": a, "b": b} | compare(samples[a], samples[b])
                         for a, b in combinations(names, 2)])


def matrix(pairs: pd.DataFrame, value: str) -> pd.DataFrame:
    """The pairs' numbers as a symmetric matrix, one on the diagonal; without methods that have no number at all."""
    names = list(dict.fromkeys([*pairs["a"], *pairs["b"]])) if len(pairs) else []
    place, values = {name: i for i, name in enumerate(names)}, np.full((len(names), len(names)), np.nan)
    for a, b, number in pairs[["a", "b", value]].itertuples(index=False) if len(pairs) else ():
        values[place[a], place[b]] = values[place[b], place[a]] = number
    known = np.isfinite(values).any(axis=1)
    np.fill_diagonal(values, 1.0)
    names = [name for name, of in zip(names, known) if of]
    return pd.DataFrame(values[known][:, known], index=names, columns=names)
