"""Families of causal LMs: none crashes, and what no generic table covers works from a folder to a result."""

import pytest

from benchmarks.families import CRASHED, REFUSED, UNBUILT, WORKS, Row, run, table
from benchmarks.tiny_families import FAMILIES, tiny_model
from core.architecture import find_blocks, find_linears, rest_of_blocks
from core.errors import UserError
from core.forward import behaviour
from core.model import ready


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt_oss", "qwen3_next", "gemma4_text"])
def test_transposed_experts_states_and_heads_a_layer(tmp_path, family):
    row = run(family, tmp_path)
    assert row.state == WORKS, row.why
    assert (row.experts > 0) == (family in ("gpt_oss", "qwen3_next")) and row.alone == (family == "qwen3_next")


@pytest.mark.slow
def test_no_family_crashes_before_its_first_cell():
    """Every family that can be built small: its blocks, its linears and how it reads, or one sentence."""
    known = 0
    for family in FAMILIES:
        try:
            module = tiny_model(family)
        except Exception:  # its configuration needs parts; the matrix says so
            continue
        try:
            model = ready(module)
            linears, blocks = find_linears(model)[0], find_blocks(model)[1]
            rest_of_blocks(linears, blocks)
            behaviour(model)
            known += 1
        except UserError as error:
            assert "\n" not in str(error), family
    assert known > 150


def test_an_encoder_is_refused_and_the_table_counts(tmp_path):
    row = run("bert", tmp_path)
    assert row.state == REFUSED and "both directions" in row.why
    text = table([row, Row("a", WORKS, linears=8, experts=4, rest=0.01, alone=True), Row("b", CRASHED, "|"),
                  Row("c", UNBUILT)])
    assert text.startswith("1 works, 1 refused, 1 not built, 1 crashed of 4 families")
    assert "| a | works | 8 | 1.0% | 4 linears are experts'; rows run alone |" in text
