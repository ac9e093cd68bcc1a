"""Splits are disjoint, deterministic and proportional, whatever the strata."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError, UserError
from evaluation.data.documents import Doc, DocList
from evaluation.data.splits import largest_remainder, split


def make(sizes, copies=0):
    docs = [Doc(f"{s}-{i}", f"question {s} {i}", options=("x", "y"), gold="A", gold_index=0, stratum=f"stratum{s}")
            for s, n in enumerate(sizes) for i in range(n)]
    copied = docs[:copies]
    return docs + [replace(doc, doc_id=f"copy-{i}", gold="B", gold_index=1) for i, doc in enumerate(copied)]


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), copies=st.integers(0, 5),
       n_calib=st.integers(1, 120),
       n_eval=st.integers(1, 120), seed=st.integers(0, 3), stratified=st.booleans())
def test_split_properties(sizes, copies, n_calib, n_eval, seed, stratified):
    docs = make(sizes, copies)
    total = sum(sizes)
    if total < 2:
        with pytest.raises(DataError):
            split(docs, n_calib, n_eval, seed=seed, stratified=stratified)
        return
    result = split(docs, n_calib, n_eval, seed=seed, stratified=stratified)
    assert result == split(docs, n_calib, n_eval, seed=seed, stratified=stratified)
    keys = [(d.question, d.options) for d in (*result.calib, *result.eval)]
    assert len(set(keys)) == len(keys)  # disjoint by content, not only by id
    calib, evaluation = len(result.calib), len(result.eval)
    if n_calib + n_eval <= total:
        assert (calib, evaluation) == (n_calib, n_eval)
    else:
        assert calib + evaluation == total and "same ratio" in result.note
        assert calib == 1 or abs(calib - total * n_calib / (n_calib + n_eval)) < 1
    assert ("duplicates" in result.note) == (copies > 0)
    if stratified:
        for s, size in enumerate(sizes):
            taken = (calib + evaluation) * size / total
            mine = [sum(d.stratum == f"stratum{s}" for d in side) for side in (result.calib, result.eval)]
            assert abs(sum(mine) - taken) < 1
            assert abs(mine[0] - calib * sum(mine) / (calib + evaluation)) < 1
            assert abs(mine[1] - evaluation * sum(mine) / (calib + evaluation)) < 1


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(sum), data=st.data())
def test_largest_remainder(sizes, data):
    total = data.draw(st.integers(0, sum(sizes)))
    counts = largest_remainder(sizes, total)
    assert sum(counts) == total and all(0 <= c <= s for c, s in zip(counts, sizes, strict=True))


def test_short_source_keeps_the_ratio():
    result = split(make([240]), 512, 2048, seed=42, stratified=True)
    assert (len(result.calib), len(result.eval)) == (48, 192) and "240 documents for 512/2048" in result.note


def test_unstratified_takes_rows_in_order():
    docs = make([10])
    result = split(docs, 3, 4, seed=42, stratified=False)
    assert list(result.calib) == docs[:3] and list(result.eval) == docs[3:7] and result.note == ""


def test_first_k_of_a_stratified_split_is_mixed():
    result = split(make([100, 100, 100]), 60, 60, seed=0, stratified=True)
    assert len({d.stratum for d in result.calib[:12]}) == 3  # not sorted by stratum: scorers may take only the first k


def test_seed_matters_and_notes_travel():
    docs = DocList(make([30, 30]), ("3 rows dropped",))
    assert split(docs, 10, 10, seed=0, stratified=True).calib != split(docs, 10, 10, seed=1, stratified=True).calib
    assert split(docs, 10, 10, seed=0, stratified=True).note == "3 rows dropped"


def test_bad_sizes():
    with pytest.raises(UserError, match="at least 1"):
        split(make([5]), 0, 2, seed=0, stratified=True)
    with pytest.raises(DataError, match="at least 2"):
        split(make([1], copies=1), 1, 1, seed=0, stratified=False)
