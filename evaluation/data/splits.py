"""Calibration and evaluation documents: disjoint, deterministic, proportional.

Exact duplicates (question and options) count once, so no document is on both sides.  Stratified:
T = n_calib + n_eval documents are dealt to the strata by largest remainder of T c_s / N, and each
stratum's share to calibration by largest remainder of n_calib T_s / T; both counts are within one of
the exact proportion.  Members are drawn by a seeded generator and come out in its order, so that any
first k of them are a fair sample as well.  Unstratified: the first rows calibrate, the next evaluate.

Where a data set has a split of its own to calibrate on, each side is drawn from its own in the same way, and a
document of both counts for the evaluation alone.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from core.errors import DataError, UserError
from evaluation.data.documents import Doc


@dataclass(frozen=True)
class Split:
    """Two disjoint sets of documents; ``note`` says what differs from what was asked."""

    calib: tuple[Doc, ...]
    eval: tuple[Doc, ...]
    note: str = ""
    examples: tuple[Doc, ...] | None = None  # what worked examples are taken from; None: from those that calibrate


def split(docs, n_calib: int, n_eval: int, seed: int, stratified: bool) -> Split:
    """Split ``docs``; a source that is too short keeps the ratio n_calib : n_eval and says so in ``note``."""
    if n_calib < 1 or n_eval < 1:
        raise UserError(f"a split of {n_calib} calibration and {n_eval} evaluation documents has an empty side; "
                        "ask for at least 1 of each")
    unique, notes = _distinct(docs)
    if len(unique) < 2:
        of = f" of {docs.name}" if getattr(docs, "name", "") else ""
        why = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(f"{len(unique)} distinct documents{of} cannot be split{why}; "
                        "at least 2 are needed, one to calibrate and one to evaluate")
    if n_calib + n_eval > len(unique):
        asked = f"{n_calib}/{n_eval}"
        n_calib = max(1, len(unique) * n_calib // (n_calib + n_eval))
        n_eval = len(unique) - n_calib
        notes.append(f"only {len(unique)} documents for {asked}: {n_calib} calibrate, {n_eval} evaluate (same ratio)")
    if stratified:
        calib, evaluation = _stratified(unique, n_calib, n_eval, seed)
    else:
        calib, evaluation = unique[:n_calib], unique[n_calib:n_calib + n_eval]
    return Split(tuple(calib), tuple(evaluation), "; ".join(notes))


def split_apart(calib_docs, docs, n_calib: int, n_eval: int, seed: int, stratified: bool) -> Split:
    """The same out of two sources, one a side; no question stands on both."""
    evaluation, notes = _distinct(docs)
    taken = {(d.question, d.options) for d in evaluation}
    calib, more = _distinct(calib_docs)
    fresh = [d for d in calib if (d.question, d.options) not in taken]
    notes += [f"of those that calibrate: {note}" for note in more]
    if len(fresh) < len(calib):
        notes.append(f"{len(calib) - len(fresh)} documents left out of those that calibrate, because they evaluate")
    if not fresh or not evaluation:
        raise DataError(f"{getattr(docs, 'name', '')} has {len(fresh)} documents to calibrate and {len(evaluation)} to "
                        "evaluate; at least 1 of each is needed")
    for side, n, what in ((fresh, n_calib, "calibrate"), (evaluation, n_eval, "evaluate")):
        if n > len(side):
            notes.append(f"only {len(side)} documents for {n} that {what}")
    sides = [_some(side, min(n, len(side)), seed, stratified) for side, n in ((fresh, n_calib), (evaluation, n_eval))]
    return Split(tuple(sides[0]), tuple(sides[1]), "; ".join(notes))


def marked(docs: list[Doc], split_name: str) -> list[Doc]:
    """The documents with ids that say which split they come from, so that no two splits share one."""
    return [replace(doc, doc_id=f"{split_name}/{doc.doc_id}") for doc in docs]


def _distinct(docs) -> tuple[list[Doc], list[str]]:
    """The documents without exact duplicates, the first of each; what was left out so far."""
    notes = list(getattr(docs, "notes", ()))
    unique = list({(d.question, d.options): d for d in reversed(docs)}.values())[::-1]
    if len(unique) < len(docs):
        notes.append(f"{len(docs) - len(unique)} exact duplicates dropped")
    return unique, notes


def _some(docs: list[Doc], count: int, seed: int, stratified: bool) -> list[Doc]:
    """``count`` of the documents: the first, or in proportion to the strata."""
    if not stratified or count == len(docs):
        return docs[:count]
    return _stratified(docs, count, 0, seed)[0]


def _stratified(docs: list[Doc], n_calib: int, n_eval: int, seed: int) -> tuple[list[Doc], list[Doc]]:
    order = np.random.default_rng(seed).permutation(len(docs))
    members: dict[str, list[int]] = {}
    for index in order:
        members.setdefault(docs[index].stratum, []).append(int(index))
    strata = sorted(members)
    taken = largest_remainder([len(members[s]) for s in strata], n_calib + n_eval)
    to_calib = largest_remainder(taken, n_calib)
    calib, evaluation = set(), set()
    for stratum, both, first in zip(strata, taken, to_calib, strict=True):
        calib.update(members[stratum][:first])
        evaluation.update(members[stratum][first:both])
    return [docs[i] for i in order if i in calib], [docs[i] for i in order if i in evaluation]


def largest_remainder(sizes: list[int], total: int) -> list[int]:
    """Deal ``total`` in proportion to ``sizes``: floors first, the rest to the largest remainders (ties: first)."""
    exact = [Fraction(total * size, sum(sizes)) for size in sizes]
    counts = [int(x) for x in exact]
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts
