"""Calibration and evaluation documents: disjoint, deterministic, proportional.

Exact duplicates (question and options) count once, and a question that calibrates is not asked with other options or in
another order of them: such documents are passed over when the evaluation's are drawn.  Stratified:
T = n_calib + n_eval documents are dealt to the strata by largest remainder of T c_s / N, and each
stratum's share to calibration by largest remainder of n_calib T_s / T; both counts are within one of
the exact proportion.  Members are drawn by a seeded generator and come out in its order, so that any
first k of them are a fair sample as well.  Unstratified: the first rows calibrate, the next evaluate.

Where a data set has a split of its own to calibrate on, each side is drawn from its own in the same way, and a
question of both counts for the evaluation alone.

What is left, ``Split.rest``, has no question of either side: development rows (--part dev), on which settings may be
chosen.
"""

import re
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
    rest: tuple[Doc, ...] = ()  # drawn for neither, in the order in which they would be drawn


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
        calib, evaluation, rest = _stratified(unique, n_calib, n_eval, seed)
    else:
        calib = unique[:n_calib]
        others = _not_asked(unique[n_calib:], calib)
        evaluation, rest = others[:n_eval], others[n_eval:]
    if len(evaluation) < n_eval:
        notes.append(f"{n_eval - len(evaluation)} documents fewer evaluate, because their question calibrates")
    if not evaluation:
        raise DataError(f"every question of {getattr(docs, 'name', '') or 'the source'} that is left to evaluate "
                        "calibrates too; ask for fewer documents to calibrate (--calib_size)")
    return Split(tuple(calib), tuple(evaluation), "; ".join(notes), rest=tuple(_not_asked(rest, evaluation)))


def split_apart(calib_docs, docs, n_calib: int, n_eval: int, seed: int, stratified: bool) -> Split:
    """The same out of two sources, one a side; no question stands on both."""
    evaluation, notes = _distinct(docs)
    calib, more = _distinct(calib_docs)
    fresh = _not_asked(calib, evaluation)
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
    asked = set(d.doc_id for d in sides[1])
    rest = _not_asked([d for d in evaluation if d.doc_id not in asked], sides[1])
    return Split(tuple(sides[0]), tuple(sides[1]), "; ".join(notes), rest=tuple(rest))


def development(parts: Split, count: int, name: str) -> Split:
    """The same split with ``count`` documents of its rest in the place of those that evaluate (--part dev)."""
    if not parts.rest:
        raise DataError(f"{name} has no development documents: all of them calibrate or evaluate; lower --calib_size "
                        "or --eval_size")
    few = f"only {len(parts.rest)} development documents for {count}" if len(parts.rest) < count else ""
    said = "; ".join(filter(None, ("development documents, on which settings may be chosen", parts.note, few)))
    return replace(parts, eval=parts.rest[:count], rest=(), note=said)


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


def question_key(doc: Doc) -> tuple:
    """What is alike in a question asked twice: its words, whatever its options, capitals, spaces and marks."""
    words = " ".join(re.findall(r"\w+", doc.question.casefold()))
    return (words,) if words else (doc.question, doc.options)


def _not_asked(docs: list[Doc], others: list[Doc]) -> list[Doc]:
    """Those documents whose question is none of the others'."""
    taken = {question_key(doc) for doc in others}
    return [doc for doc in docs if question_key(doc) not in taken]


def _some(docs: list[Doc], count: int, seed: int, stratified: bool) -> list[Doc]:
    """``count`` of the documents: the first, or in proportion to the strata."""
    if not stratified or count == len(docs):
        return docs[:count]
    return _stratified(docs, count, 0, seed)[0]


def _stratified(docs: list[Doc], n_calib: int, n_eval: int, seed: int) -> tuple[list[Doc], list[Doc], list[Doc]]:
    """Documents that calibrate, that evaluate, and the rest that has no question of those that calibrate."""
    order = np.random.default_rng(seed).permutation(len(docs))
    members: dict[str, list[int]] = {}
    for index in order:
        members.setdefault(docs[index].stratum, []).append(int(index))
    strata = sorted(members)
    taken = largest_remainder([len(members[s]) for s in strata], n_calib + n_eval)
    to_calib = largest_remainder(taken, n_calib)
    calib = {i for stratum, first in zip(strata, to_calib, strict=True) for i in members[stratum][:first]}
    asked = {question_key(docs[i]) for i in calib}
    evaluation, rest = set(), set()
    for stratum, both, first in zip(strata, taken, to_calib, strict=True):
        others = [i for i in members[stratum][first:] if question_key(docs[i]) not in asked]
        evaluation.update(others[:both - first])
        rest.update(others[both - first:])
    return tuple([docs[i] for i in order if i in side] for side in (calib, evaluation, rest))


def largest_remainder(sizes: list[int], total: int) -> list[int]:
    """Deal ``total`` in proportion to ``sizes``: floors first, the rest to the largest remainders (ties: first)."""
    exact = [Fraction(total * size, sum(sizes)) for size in sizes]
    counts = [int(x) for x in exact]
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts
