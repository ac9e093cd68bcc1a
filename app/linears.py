"""Which linear the first two pages look at: one that was measured, and a form that measures another."""

import streamlit as st

from app import choice, show
from app.jobs import FAILED, RUNNING, STOPPED, Job, recent
from app.options import check_address, options
from report.measured import Linear, key_of, records

SCRIPT = ("-m", "scripts.linear")
START = {"model": "smollm2-135m", "dataset": "trivia_qa", "avg_bits": 3.25, "linear": "layers.15.mlp.down_proj",
         "calib_size": 32, "eval_size": 32}


def job(asked: dict, results_dir: str) -> Job:
    """The command that measures a linear."""
    return Job(results_dir, choice.script(SCRIPT[1], asked | {"data_dir": options().data_dir}, results_dir,
                                          options().cache_dir))


def chosen(results_dir: str) -> Linear | None:
    """The linear that the address names, else the newest; None, and what to do, where there is none."""
    measured, damaged = records(results_dir, Linear)
    with show.one_sentence():
        _form(results_dir, open_=not measured)
    for sentence in damaged:
        st.error(show.plain(sentence))
    if not measured:
        show.no_data("no linear of a model has been measured into this folder yet", job(START, results_dir).command)
        return None
    named = {_words(one): one for one in measured}
    check_address("linear", named)
    return named[st.selectbox("Measured linear", list(named), key="linear", bind="query-params")]


def _words(of: Linear) -> str:
    return (f"{of.linear} of {of.model}, {of.dataset}, {of.average:.2f} stored bits, {of.made[:10]} "
            f"({key_of(Linear, of.asked)[:6]})")


def _form(results_dir: str, open_: bool) -> None:
    with st.expander("Measure a linear", expanded=open_), st.form("linear", border=False):
        left, right = st.columns(2)
        asked = {"model": choice.model_of(left.text_input("Model", START["model"], help="alias, hub id or folder")),
                 "dataset": right.selectbox("Task", choice.tasks(options().data_dir)),
                 "avg_bits": float(left.select_slider("Stored bits a weight", choice.BITS, f"{START['avg_bits']:g}")),
                 "linear": right.text_input("Linear", START["linear"], help="its full name, or the end of it"),
                 "calib_size": int(left.select_slider("Calibration documents", choice.SIZES, str(START["calib_size"]))),
                 "eval_size": int(right.select_slider("Documents set apart", choice.SIZES, str(START["eval_size"])))}
        one = job(asked, results_dir)
        if st.form_submit_button("Measure", type="primary"):
            one.start()
            st.rerun()
    for last in recent(results_dir, SCRIPT)[:1]:
        _status(last)


def _status(last: Job) -> None:
    """The newest measurement: it runs, or how it ended badly."""
    state = last.state()
    if state == RUNNING:
        watch(last, last.command)
    elif state == FAILED:
        st.error(show.plain(last.why()))
    elif state == STOPPED:
        st.warning("The last measurement was stopped; the same command goes on from what it finished.")


def watch(job: Job, words: str) -> None:
    """Poll a job that runs; the page is drawn anew when it ends."""
    @st.fragment(run_every=1.0)
    def poll() -> None:
        if job.state() != RUNNING:
            st.rerun()
        st.status(show.plain(words), state="running")
        st.caption(show.plain(job.log(1) or "starting"))
        if st.button("Cancel", key=f"cancel-{job.folder.name}"):
            job.cancel()

    poll()
