"""The live demonstration: one role states a job, the other runs it with the harness itself, and what came out is shown
beside the full model's answers, question by question.

All that is asked stands in the address.  The run is a process of its own (app/jobs.py): a reload or a second tab finds
it, and a server that was killed leaves it running.
"""

from pathlib import Path

import streamlit as st

from app import choice, folder, show
from app.choice import Choice
from app.jobs import DONE, FAILED, NONE, RUNNING, STOPPED, Job, recent
from app.options import check_address, options, results_dir
from app.progress import standing
from app.views import answers
from core.errors import UserError

COMMISSIONER, ENGINEER = ":material/assignment:", ":material/memory:"


def page() -> None:
    """Draw the page."""
    where = results_dir()
    with show.one_sentence():
        wanted = _form()
        _others(where, wanted)
        job = wanted.job(where, options().cache_dir)
        with st.chat_message("user", avatar=COMMISSIONER):
            st.markdown(f"**The job.** {_words(wanted)}")
        with st.chat_message("assistant", avatar=ENGINEER):
            _engineer(job, wanted, where)


def _form() -> Choice:
    """What is asked; every widget is a query parameter of the address."""
    left, middle, right = st.columns(3)
    given = left.text_input("Model", "smollm2-135m", key="live_model", max_chars=300, bind="query-params",
                            help="alias, hub id or local folder").strip()
    if not given:
        raise UserError("no model is named; give an alias such as smollm2-135m, a hub id or a local folder")
    task = _one_of(left.selectbox, "Task", "task", choice.tasks(options().data_dir))
    method = _one_of(middle.selectbox, "Method", "row", tuple(choice.methods()))
    bits = _one_of(middle.select_slider, "Target bits a weight", "bits", choice.BITS, "3.25",
                   help="stored bits, scales, zero points and kept weights included")
    reads = choice.reads_kept(method)
    kept = _one_of(right.select_slider, "Kept weights, %", "kept", choice.KEPT, "0.4", disabled=not reads,
                   help="a choice of methods whose bits are their own, such as TaCQ-native; the others keep what the "
                   "budget pays for")
    quantizer = _one_of(right.selectbox, "Quantizer", "quantizer", ("rtn", "gptq"),
                        help="rtn: round to nearest, seconds; gptq: solved against the task's inputs, minutes")
    with st.expander("How many documents"):
        calib = _one_of(st.select_slider, "Calibration documents", "calib", choice.SIZES, "32")
        questions = _one_of(st.select_slider, "Questions", "questions", choice.SIZES, "32")
    return Choice(choice.model_of(given), task, method, float(bits), float(kept) if reads else None, int(calib),
                  int(questions), quantizer, options().data_dir)


def _one_of(widget, label: str, name: str, known: tuple[str, ...], start: str | None = None, **more) -> str:
    """A choice that stands in the address."""
    check_address(name, known)
    first = {} if start is None else {"value": start}
    return widget(label, options=known, key=name, bind="query-params", **first, **more)


def _words(of: Choice) -> str:
    """The job in a sentence."""
    share = f", keep {of.kept:g} % of the weights at 16 bits" if of.kept is not None else ""
    where = (f"with {of.method}, whose bits are its own, beside rows of {of.avg_bits:g} bits a weight"
             if choice.methods()[of.method].native else f"in {of.avg_bits:g} bits a weight with {of.method}")
    return show.plain(f"Store {of.model} {where}{share}, lose as little of {of.dataset} as you can, and show it on "
                      f"{of.eval_size} questions that calibration did not see.")


def _others(where: str, wanted: Choice) -> None:
    """Runs that this page started with other choices and that still go on."""
    mine = wanted.job(where, options().cache_dir)
    for job in recent(where, ("run_taq_icml.py",)):
        if job.words != mine.words and job.state() == RUNNING:
            with st.expander("Another run goes on"):
                st.code(job.command, language="bash", wrap_lines=True)
                if st.button("Cancel it", key=f"cancel-{job.folder.name}"):
                    job.cancel()


def _engineer(job: Job, wanted: Choice, where: str) -> None:
    """Run it, or show what came out."""
    state = job.state()
    st.markdown("**The run** is this command of the harness:")
    st.code(job.command, language="bash", wrap_lines=True)
    if state == RUNNING:
        _watch(job)
        return
    every = []
    with show.one_sentence():  # a damaged file of the folder is named, and a run can still be started
        every = folder.results(where) if Path(where).exists() else []
    there = wanted.result(every)
    start, _ = st.columns([1, 3])
    again = "Run again" if there else "Go on" if state == STOPPED else "Run"
    if start.button(again, type="secondary" if there else "primary", width="stretch",
                    help="what is stored is found, not computed again"):
        job.start()
        st.rerun()
    if state == FAILED:
        st.error(show.plain(job.why()))
    if state == STOPPED and not there:
        st.warning("It was stopped; what it finished is kept, and it goes on from there.")
    if state != NONE:
        with st.expander("Log"):
            show.text(job.log(400) or "nothing was printed")
    if there:
        answers.show_answers(wanted, every, where)
    elif state == DONE:
        st.error(show.plain(f"the run ended, but no result of {wanted.row} is in {where!r}; see the log"))
    elif state == NONE:
        st.info("no data: this row has not been run into this folder yet")


def _watch(job: Job) -> None:
    """Poll the run's notice board; the page is drawn anew when it ends."""
    @st.fragment(run_every=1.0)
    def poll() -> None:
        if job.state() != RUNNING:
            st.rerun()
        now = standing(job)
        if now is None:
            seen = st.session_state.get("seen") == job.folder.name
            st.progress(float(seen), "Writing the table" if seen else "Loading the harness, the model and the data")
        else:
            st.session_state["seen"] = job.folder.name
            st.progress(now.done / max(1, len(now.cells)), show.plain(now.words))
            st.progress(now.share, show.plain(now.stage or "between two cells"))
        if st.button("Cancel", key="cancel"):
            job.cancel()
        with st.expander("Log", expanded=True):
            show.text(job.log(12) or "starting")

    poll()
