"""The paper's claim on one screen, its formula taken apart on a linear that was measured, its numbers as reported."""

import pandas as pd
import streamlit as st

from app import linears, reported, show
from app.options import results_dir
from report.figures.linear import concentration_figure
from report.measured import Linear

CLAIM = """
A model is quantized once and then does **one task**. Task-Circuit Quantization asks which single weights that task
cannot do without: it rounds all weights to two or three bits and keeps well under one percent of them at 16 bits,
those whose rounding would move the task's loss most.
"""
FORMULA = r"\text{score} = G \cdot |W - W^q| \cdot |W|"
FACTORS = (r"$G=\sum_s \left|\partial L_s/\partial W\right|$: how much the task's loss depends on the weight, summed "
           "over documents", r"$|W-W^q|$: how far rounding moves it", r"$|W|$: how large it is")
PARTS = {
    "QAL": ("quantization-aware localization", r"G\,|W - W^q|", "The first-order estimate of how much the loss moves "
            "when this weight is rounded. Unit: nats."),
    "MSG": ("magnitude-sharpened gradient", r"|W|\,G", "How much the loss would move if the weight were set to zero. "
            "Unit: nats."),
}


def page() -> None:
    """Draw the page."""
    st.markdown(CLAIM)
    st.latex(FORMULA)
    st.markdown("\n".join(f"- {factor}" for factor in FACTORS))
    for place, (name, (words, formula, meaning)) in zip(st.columns(2), PARTS.items()):
        with place.container(border=True):
            st.markdown(f"**{name}**, {words}")
            st.latex(formula)
            st.caption(meaning)
    st.header("Taken apart on a real linear", anchor=False)
    if (of := linears.chosen(results_dir())) is not None:
        _taken_apart(of)
    _reported()


def _taken_apart(of: Linear) -> None:
    rows, columns = of.shape
    st.markdown(f"**Measured**: {show.plain(of.linear)}, {rows} × {columns} weights, {of.bits}-bit codes in groups of "
                f"{of.group_size}, gradients of {of.documents} documents ({of.tokens:,} tokens) of "
                f"{show.plain(of.dataset)}. The weights with the highest scores first, then some from further down.")
    names = {"row": "row", "column": "column", "weight": "W", "quantized": "Wq", "gradient": "G", "qal": "QAL",
             "msg": "MSG", "score": "score", "kept": "kept at 16 bits"}
    frame = pd.DataFrame(of.examples)[list(names)].rename(columns=names)
    shown = {name: st.column_config.NumberColumn(format="%.4g") for name in ("W", "Wq", "G", "QAL", "MSG", "score")}
    st.dataframe(frame, hide_index=True, width="stretch", height="content", column_config=shown)
    first = of.examples[0]
    st.markdown(f"The first of them: G · |W − Wq| · |W| = {first['gradient']:.4g} · "
                f"{abs(first['weight'] - first['quantized']):.4g} · {abs(first['weight']):.4g} = "
                f"**{first['score']:.4g}**")
    show.figure(concentration_figure(of), "concentration")
    st.caption(show.plain(f"Measured {of.made} of revision {of.revision[:12]} in {of.dtype}."))


def _reported() -> None:
    st.header("What the paper reports", anchor=False)
    st.markdown(f":orange-badge[reported, not measured here] {reported.PAPER}")
    for title, rows in ((reported.TABLE_1, reported.ROWS_1), (reported.TABLE_5, reported.ROWS_5)):
        st.caption(title)
        frame = pd.DataFrame(rows)
        numbers = {name: st.column_config.NumberColumn(format="%.2f") for name in frame.select_dtypes("number")}
        st.dataframe(frame, hide_index=True, width="stretch", height="content", column_config=numbers)
    st.caption("The paper counts a kept weight as 32 bits and leaves scales, zero points and row pointers out; here "
               "all of them are counted, so equal bits mean equal storage.")
