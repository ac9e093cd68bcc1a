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
FORMULA = r"""
\text{score}_{ij} \;=\;
\underbrace{\textstyle\sum_{s}\bigl|\tfrac{\partial L_s}{\partial W_{ij}}\bigr|}
_{G_{ij}\text{: how the task's loss depends on it}}
\cdot\underbrace{\bigl|W_{ij} - W^{q}_{ij}\bigr|}_{\text{how far rounding moves it}}
\cdot\underbrace{\bigl|W_{ij}\bigr|}_{\text{how large it is}}
"""
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
    st.markdown(f"**Measured**: `{of.linear}`, {rows} × {columns} weights, {of.bits}-bit codes in groups of "
                f"{of.group_size}, gradients of {of.documents} documents ({of.tokens:,} tokens) of {of.dataset}. The "
                "weights with the highest scores first, then some from further down.")
    names = {"row": "row", "column": "column", "weight": "W", "quantized": "Wq", "gradient": "G", "qal": "QAL",
             "msg": "MSG", "score": "score", "kept": "kept at 16 bits"}
    frame = pd.DataFrame(of.examples)[list(names)].rename(columns=names)
    shown = {name: st.column_config.NumberColumn(format="%.4g") for name in ("W", "Wq", "G", "QAL", "MSG", "score")}
    st.dataframe(frame, hide_index=True, width="stretch", column_config=shown)
    first = of.examples[0]
    st.latex(rf"{abs(first['gradient']):.4g} \cdot |{first['weight']:.4g} - ({first['quantized']:.4g})| \cdot "
             rf"|{first['weight']:.4g}| = {first['score']:.4g}")
    show.figure(concentration_figure(of), "concentration")
    st.caption(f"Measured {of.made} of revision {of.revision[:12]} in {of.dtype}.")


def _reported() -> None:
    st.header("What the paper reports", anchor=False)
    st.markdown(f":orange-badge[reported, not measured here] {reported.PAPER}")
    for title, rows in ((reported.TABLE_1, reported.ROWS_1), (reported.TABLE_5, reported.ROWS_5)):
        st.caption(title)
        st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")
    st.caption("The paper counts a kept weight as 32 bits and leaves scales, zero points and row pointers out; here "
               "all of them are counted, so equal bits mean equal storage.")
