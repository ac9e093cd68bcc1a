"""What a finished run shows: metrics, memory, the questions side by side, and a question of one's own."""

import streamlit as st

from app import choice, show
from app.choice import Choice
from app.jobs import FAILED, RUNNING, STOPPED, Job, recent
from app.linears import watch
from app.options import options
from core.sample import Sample
from report.figures import cards
from report.figures.frames import parts_of
from report.figures.style import looks
from report.measured import LONGEST_QUESTION, Asked, asked_of, checked_question, path_of, read_record
from report.records import Result, load_questions, load_samples
from report.text.render import sheets_of

SCRIPT = ("-m", "scripts.ask")
SHOWN = {"all": lambda a, b: True, "flipped": lambda a, b: a != b, "lost": lambda a, b: a > b,
         "gained": lambda a, b: a < b}  # by how right both answers are


def show_answers(wanted: Choice, every: list[Result], where: str) -> None:
    """Everything that is known of a choice that has been run."""
    row = wanted.result(every)
    part = next(part for part in parts_of(wanted.results(every)) if any(cell.file == row.file for cell in part.members))
    full = next((cell for cell in part.cells if cell.name == "fp16"), None)
    _memory(row, full)
    for number, table in enumerate(part.tables):
        show.sheet(sheets_of(table, False)[0], f"live-table-{number}")
        show.cards(cards.cards(table, looks(part.methods)), f"live-cards-{number}")
    if full is None or full.asked != row.asked:
        st.info("no data: full precision was not asked the same documents; run the command again")
    else:
        _side_by_side(full, row)
    _own_question(wanted, where)


def _memory(row: Result, full: Result | None) -> None:
    """What is really stored."""
    stored, whole = row.bits.stored, full.bits.stored if full else None
    values = [("Stored bits a weight", f"{row.bits.average:.3f}", None),
              ("Quantized linears", "no data" if stored is None else f"{stored / 8e6:.1f} MB",
               None if not (stored and whole) else f"{100 * (stored / whole - 1):.0f} % against {whole / 8e6:.1f} MB"),
              ("Whole model", f"{row.bits.whole_model:.3f} bits", None)]
    for place, (label, value, change) in zip(st.columns(3), values):
        place.metric(label, value, change, delta_color="off")
    st.caption("Codes, scales, zero points, kept weights and their places are counted; the whole model has its "
               "embeddings, head and norms at their own dtype.")


def _side_by_side(full: Result, row: Result) -> None:
    """One question with both answers."""
    st.markdown("**Question by question**: the full model and the quantized one, on documents that calibration did not "
                "see")
    pairs = list(zip(load_samples(full), load_samples(row), strict=True))
    which = st.segmented_control("Show", list(SHOWN), default="all", key="which") or "all"
    pairs = [(a, b) for a, b in pairs if SHOWN[which](a.correct or 0, b.correct or 0)]
    if not pairs:
        st.info(f"No question of this kind: {which}.")
        return
    at = st.number_input(f"Question, 1 to {len(pairs)}", 1, len(pairs), 1)
    first, second = pairs[at - 1]
    question = load_questions(row).get(first.doc_id)
    show.text(question.question if question else first.doc_id)
    if question and question.options:
        show.text("\n".join(f"{letter}. {option}" for letter, option in
                            zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", question.options)))
    st.markdown("Gold answer")
    show.text(first.gold)
    names = "Full precision", f"{row.name}, {row.bits.average:.2f} bits"
    for place, name, sample in zip(st.columns(2), names, (first, second)):
        with place.container(border=True):
            _answer(name, sample)


def _answer(name: str, sample: Sample) -> None:
    mark = {None: "", 1.0: " :green-badge[right]", 0.0: " :orange-badge[wrong]"}.get(sample.correct, "")
    st.markdown(f"**{show.plain(name)}**{mark}")
    show.text(sample.text.strip() or sample.answer or "(nothing)")
    st.caption(f"gold answer's log-likelihood: {sample.gold_loglik:.3f} nats a token")


def _own_question(wanted: Choice, where: str) -> None:
    """A question of one's own, to both."""
    with st.form("own", border=True):
        question = st.text_area("Ask both a question of your own", key="own-question",
                                help=f"up to {LONGEST_QUESTION:,} characters")
        asked = st.form_submit_button("Ask", type="primary")
    words = choice.script(SCRIPT[1], wanted.asked, where, options().cache_dir)
    if asked:
        job = Job(where, (*words, f"--question={checked_question(question)}"))
        job.start()
    else:  # the last that was asked of this row, in this tab or another
        job = next((one for one in recent(where, SCRIPT) if one.words[:-1] == words), None)
    if job is not None:
        _asked(job, asked_of(wanted.asked | {"question": job.words[-1].partition("=")[2].strip()}), where)


def _asked(job: Job, asked: dict, where: str) -> None:
    """How a question of one's own was answered, or what became of it."""
    state = job.state()
    if state == RUNNING:
        watch(job, "Both models are loaded and answer")
    elif state == FAILED:
        st.error(show.plain(job.why()))
    elif state == STOPPED:
        st.warning("The question was stopped before both answered; ask it again.")
    elif told := read_record(path_of(where, Asked, asked), Asked):
        show.text(told.question)
        for place, (name, text) in zip(st.columns(2), (("Full precision", told.loaded),
                                                       (f"{told.method}, {told.average:.2f} bits", told.quantized))):
            with place.container(border=True):
                st.markdown(f"**{show.plain(name)}**")
                show.text(text or "(nothing)")
        st.caption(f"Greedy, at most {told.longest} tokens, from the same prompt of {told.tokens} tokens.")
    else:
        st.error(show.plain(f"the command ended, but its answers are not in {where!r}; ask again"))
