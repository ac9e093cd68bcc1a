"""The live demonstration: one role states a job, the other runs it with the harness itself, and what came out is shown
beside the full model's answers, question by question.

All that is asked stands in the address.  The run is a process of its own (app/jobs.py): a reload or a second tab finds
it, and a server that was killed leaves it running.
"""

from pathlib import Path

import streamlit as st

from app import choice, folder, show
from app.choice import Choice
from app.jobs import DONE, FAILED, NONE, RUNNING, STOPPED, Job
from app.options import options, results_dir
from app.progress import standing
from app.views import answers
from core.errors import UserError

DEFAULTS = {"model": "smollm2-135m", "task": "trivia_qa", "method": "TaCQ", "bits": "3.25", "kept": "0.4",
            "calib": "32", "questions": "32", "quantizer": "rtn"}
COMMISSIONER, ENGINEER = ":material/assignment:", ":material/memory:"


def page() -> None:
    """Draw the page."""
    where = results_dir()
    with show.one_sentence():
        wanted = _form()
        job = wanted.job(where, options().cache_dir, options().data_dir)
        with st.chat_message("user", avatar=COMMISSIONER):
            st.markdown(f"**The job.** {_words(wanted)}")
        with st.chat_message("assistant", avatar=ENGINEER):
            _engineer(job, wanted, where)


def _form() -> Choice:
    """What is asked, from the address and the widgets."""
    given = {name: st.query_params.get(name, value) for name, value in DEFAULTS.items()}
    known, tasks = list(choice.methods()), choice.tasks(options().data_dir)
    left, middle, right = st.columns(3)
    model = left.text_input("Model", given["model"], max_chars=300, help="alias, hub id or local folder").strip()
    task = left.selectbox("Task", tasks, _at(tasks, given["task"], "task"))
    method = middle.selectbox("Method", known, _at(known, given["method"], "method"))
    bits = middle.select_slider("Target bits a weight", choice.BITS, _number(given["bits"], choice.BITS, "bits"),
                                help="stored bits, scales, zero points and kept weights included")
    reads = choice.reads_kept(method)
    kept = right.select_slider("Kept weights, %", choice.KEPT, _number(given["kept"], choice.KEPT, "kept"),
                               disabled=not reads, help="a choice of methods whose bits are their own, such as "
                               "TaCQ-native; the others keep what the budget pays for")
    quantizers = ["rtn", "gptq"]
    quantizer = right.segmented_control("Quantizer", quantizers, default=given["quantizer"] if given["quantizer"] in
                                        quantizers else "rtn", help="rtn: round to nearest, seconds; gptq: solved "
                                        "against the task's inputs, minutes") or "rtn"
    with st.expander("How many documents"):
        calib = st.number_input("Calibration documents", 1, 100_000, _whole(given["calib"], "calib"))
        questions = st.number_input("Questions", 1, 100_000, _whole(given["questions"], "questions"))
    wanted = Choice(model, task, method, bits, kept if reads else None, calib, questions, quantizer)
    shown = {"model": model, "task": task, "method": method, "bits": f"{bits:g}", "kept": f"{kept:g}",
             "calib": str(calib), "questions": str(questions), "quantizer": quantizer}
    st.query_params.update({name: value for name, value in shown.items() if value != st.query_params.get(name)})
    if not model:
        raise UserError("no model is named; give an alias such as smollm2-135m, a hub id or a local folder")
    return wanted


def _at(known: list, value: str, name: str) -> int:
    """The place of a value of the address; one that there is not is said, and the first stands in."""
    if value not in known:
        st.warning(f"{name} {value!r} of the address is none of: {', '.join(known)}".replace("$", "\\$"))
        return 0
    return known.index(value)


def _number(text: str, known: tuple, name: str) -> float:
    try:
        if (value := float(text)) in known:
            return value
    except ValueError:
        pass
    st.warning(show.plain(f"{name} {text!r} of the address is none of {known[0]:g} to {known[-1]:g} in steps of "
                          f"{known[1] - known[0]:g}"))
    return float(DEFAULTS[name])


def _whole(text: str, name: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= 100_000:
        return int(text)
    st.warning(show.plain(f"{name} {text!r} of the address is no number from 1 to 100,000"))
    return int(DEFAULTS[name])


def _words(of: Choice) -> str:
    """The job in a sentence."""
    share = f", keep {of.kept:g} % of the weights at 16 bits" if of.kept is not None else ""
    return show.plain(f"Store {of.model} in {of.avg_bits:g} bits a weight with {of.method}{share}, lose as little of "
                      f"{of.dataset} as you can, and show it on {of.eval_size} questions that calibration did not see.")


def _engineer(job: Job, wanted: Choice, where: str) -> None:
    """Run it, or show what came out."""
    state = job.state()
    st.markdown("**The run** is this command of the harness:")
    st.code(job.command, language="bash", wrap_lines=True)
    if state == RUNNING:
        _watch(job)
        return
    there = wanted.result(_there(where), wanted.method)
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
        answers.show_answers(wanted, _there(where), where)
    elif state == DONE:
        st.error(show.plain(f"the run ended, but no result of {wanted.method} is in {where!r}; see the log"))
    elif state == NONE:
        st.info("no data: this row has not been run into this folder yet")


def _there(where: str) -> list:
    """The folder's results; none where it is not there yet, since the run makes it."""
    return folder.results(where) if Path(where).exists() else []


def _watch(job: Job) -> None:
    """Poll the run's notice board; the page is drawn anew when it ends."""
    @st.fragment(run_every=1.0)
    def poll() -> None:
        if job.state() != RUNNING:
            st.rerun()
        now = standing(job)
        if now is None:
            st.progress(0.0, "Loading the harness, the model and the data")
        else:
            st.progress(now.done / max(1, len(now.cells)), show.plain(now.words))
            st.progress(now.share, show.plain(now.stage or "between two cells"))
        if st.button("Cancel", key="cancel"):
            job.cancel()
        with st.expander("Log", expanded=True):
            show.text(job.log(12) or "starting")

    poll()
