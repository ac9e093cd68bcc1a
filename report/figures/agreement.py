"""How far methods agree: on which linears matter, on which weights inside a linear, and on which weights to keep.

    linears   Spearman rank correlation of the linears' mean scores (mean of the sampled positions)
    weights   Spearman rank correlation inside a linear over the sampled positions, mean over the linears
    masks     Jaccard overlap |A ∩ B| / |A ∪ B| of the weights kept, over all sampled positions

A result holds the same 64 positions of a linear for every method that scores single weights, so these can be
paired; scores of blocks, columns or groups join by their linears' means only.  Fewer than LEAST kept
positions say nothing and show no number.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from report.figures.frames import of_first_seed

LEAST = 10
KINDS = {"linears": "rank correlation between linears", "weights": "rank correlation inside linears", "masks": "overlap of the weights kept"}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation with ties at their mean rank; NaN where one side is constant or fewer than three finite pairs are left."""
    fine = np.isfinite(a) & np.isfinite(b)
    ranks = [rankdata(x[fine]) for x in (a, b)]
    if fine.sum() < 3 or any(np.ptp(r) == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def means(cell: dict) -> pd.Series:
    """The mean sampled score of each linear."""
    return pd.Series({fqn: float(np.mean(p["scores"])) for fqn, p in (cell.get("probe") or {}).items()}, dtype=float)


def elements(cell: dict) -> dict[str, dict]:
    """The probes of a cell that scored single weights; empty for every other.

    A linear of which nothing was kept has no mask in its plan, so none in its probe: its positions are those of the other methods.
    """
    probe = cell.get("probe") or {}
    return probe if any("kept" in p for p in probe.values()) else {}


def pair(a: dict, b: dict) -> dict:
    """The three numbers of two cells, and how much each rests on."""
    left, right = means(a), means(b)
    both = left.index.intersection(right.index)
    row = {"linears": spearman(left[both].to_numpy(), right[both].to_numpy()), "n_linears": len(both)}
    one, two = elements(a), elements(b)
    shared = [f for f in one if f in two and len(one[f]["scores"]) == len(two[f]["scores"]) and _same_places(one[f], two[f])]
    inside = [spearman(np.array(one[f]["scores"]), np.array(two[f]["scores"])) for f in shared]
    inside = [v for v in inside if np.isfinite(v)]
    row |= {"weights": float(np.mean(inside)) if inside else float("nan"), "n_weights": sum(len(one[f]["scores"]) for f in shared)}
    return row | _overlap([(_kept(one[f]), _kept(two[f])) for f in shared])


def _same_places(a: dict, b: dict) -> bool:
    return "positions" not in a or "positions" not in b or a["positions"] == b["positions"]


def _kept(probe: dict) -> np.ndarray:
    return np.array(probe.get("kept", [0] * len(probe["scores"])), dtype=bool)


def _overlap(masks: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """Jaccard overlap, and what two random masks with as many weights would have."""
    a, b = (np.concatenate([m[i] for m in masks]) if masks else np.zeros(0, bool) for i in (0, 1))
    union = int((a | b).sum())
    if union < LEAST:
        return {"masks": float("nan"), "n_union": union, "by_chance": float("nan")}
    hit = a.mean() * b.mean()
    return {"masks": float((a & b).sum() / union), "n_union": union, "by_chance": float(hit / (a.mean() + b.mean() - hit))}


def agreement(cells, budget: float | None, dataset: str, order) -> pd.DataFrame:
    """One row a pair of methods of a data set and budget, in the given order."""
    found = {c["method"]["name"]: c for c in of_first_seed(cells, budget) if c["dataset"] == dataset}
    told = [m for m in order if m in found and len(scores := means(found[m])) and scores.nunique() > 1]
    return pd.DataFrame([{"dataset": dataset, "a": a, "b": b} | pair(found[a], found[b]) for a, b in combinations(told, 2)])


def matrix(pairs: pd.DataFrame, value: str) -> pd.DataFrame:
    """The pairs' numbers as a symmetric matrix, one on the diagonal; without methods that have no number at all."""
    names = list(dict.fromkeys([*pairs["a"], *pairs["b"]])) if len(pairs) else []
    out = pd.DataFrame(np.nan, index=names, columns=names)
    for row in pairs.to_dict("records") if len(pairs) else ():
        out.loc[row["a"], row["b"]] = out.loc[row["b"], row["a"]] = row[value]
    out = out.loc[out.notna().any(axis=1), out.notna().any(axis=0)]
    for name in out.index:
        out.loc[name, name] = 1.0
    return out
