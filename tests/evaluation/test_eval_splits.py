"""Splits are disjoint, deterministic and proportional, whatever the strata."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError, UserError
from evaluation.data.documents import Doc, DocList
from evaluation.data.splits import development, largest_remainder, question_key, split, split_apart


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


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(2, 30), min_size=1, max_size=5), again=st.integers(0, 12), n_calib=st.integers(1, 40),
       n_eval=st.integers(1, 40), seed=st.integers(0, 3), stratified=st.booleans())
def test_no_question_stands_on_two_sides(sizes, again, n_calib, n_eval, seed, stratified):
    """A question asked again with other options, in other capitals, in another category."""
    docs = make(sizes)
    docs += [replace(doc, doc_id=f"again-{i}", question=f" {doc.question.upper()}?", options=("y", "x"),
                     stratum="stratum9") for i, doc in enumerate(docs[:again])]
    try:
        parts = split(docs, n_calib, n_eval, seed=seed, stratified=stratified)
    except DataError as error:
        assert "calibrates too" in str(error) and again
        return
    sides = [{question_key(d) for d in side} for side in (parts.calib, parts.eval, parts.rest)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    ids = [d.doc_id for side in (parts.calib, parts.eval, parts.rest) for d in side]
    assert len(set(ids)) == len(ids)
    if not again and n_calib + n_eval <= len(docs):
        assert len(parts.eval) == n_eval and len(ids) == len(docs)
    missing = n_eval - len(parts.eval)
    assert "because their question calibrates" in parts.note or missing <= 0 or "same ratio" in parts.note


def test_a_question_of_both_sources_is_asked_and_does_not_calibrate():
    docs, own = make([10]), make([30])
    own = [replace(doc, doc_id=f"own-{doc.doc_id}", options=("p", "q")) for doc in own]
    parts = split_apart(own, docs, 30, 4, seed=0, stratified=False)
    assert len(parts.calib) == 20 and "10 documents left out" in parts.note
    assert [d.doc_id for d in parts.rest] == [d.doc_id for d in docs[4:]]


def test_development_documents_are_others_than_those_that_evaluate():
    parts = split(make([40, 40]), 10, 20, seed=1, stratified=True)
    dev = development(parts, 20, "set")
    assert dev.calib == parts.calib and len(dev.eval) == 20 and not set(dev.eval) & set(parts.eval + parts.calib)
    assert "development" in dev.note and len({d.stratum for d in dev.eval}) == 2
    assert "only 50 development documents for 60" in development(parts, 60, "set").note
    with pytest.raises(DataError, match="no development documents"):
        development(split(make([20]), 5, 15, seed=1, stratified=True), 15, "set")
