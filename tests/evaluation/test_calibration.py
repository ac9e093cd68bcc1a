"""Calibration sequences: budgets, seeds, masks, windows, mixes, where the texts come from, and every complaint."""

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from core.calibration import CalibChoice, parse_calib
from core.errors import DataError, UserError
from evaluation.calibration.documents import Tokens, sample_task, worked_documents
from evaluation.calibration.mixture import build_solver_calib, calib_digest
from evaluation.calibration.windows import sample_windows
from evaluation.data.documents import Doc
from evaluation.data.general_text import load_texts
from evaluation.data.sources import load_rows
from evaluation.engine.prompts import EvalConfig, build_requests
from evaluation.tasks import get_task
from tests.tiny import byte_tokenizer

TRIVIA, PRO = get_task("trivia_qa"), get_task("mmlu_pro")
TEMPLATE = ("{% for m in messages %}<u>{{ m['content'] }}<e>\n{% endfor %}"
            "{% if add_generation_prompt %}<a>{{ date_string }}\n{% endif %}")
DOCS = [Doc(f"d{i}", f"what is number {i}{'?' * (i % 7)}", options=("one", "two"), gold=("B", "St. Louis")[i % 2],
            gold_index=1) for i in range(40)]
TEXTS = [chr(97 + i % 26) * (20 + 7 * (i % 13)) + f" {i}" for i in range(60)]  # 22 to 107 bytes


def open_doc(gold="Paris", question="q?"):
    return Doc("d", question, gold=gold)


def spaced_tokenizer(merges=(), bos=False):
    """Bytes as in tests.tiny, but spaces may merge with what stands before them; optionally a BOS in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<s>", "</s>", *alphabet, *("".join(m) for m in merges)])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, inner):
        self.inner, self.seen = inner, 0

    def __call__(self, texts, **kwargs):
        self.seen += len(texts)
        return self.inner(texts, **kwargs)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.fixture(scope="module")
def tok():
    fast = byte_tokenizer()
    fast.chat_template = TEMPLATE
    return fast


def sequences(sizes):
    return [Tokens(f"p{i}", np.arange(n), np.ones(n, bool), False) for i, n in enumerate(sizes)]


def build(tok, text="task", docs=DOCS, task=TRIVIA, seed=0, **changes):
    options = dict(scoring=task.scorings[0], max_length=512, chat=False, loss="all", budget_tokens=400, window=32,
                   texts=lambda name: TEXTS)
    return build_solver_calib(parse_calib(text), task, docs, tok, seed=seed, **(options | changes))


def same(a, b):
    tokens = all((x == y).all() for x, y in zip(a.tokens, b.tokens))
    return tokens and a.doc_ids == b.doc_ids and calib_digest(a) == calib_digest(b)


# ---- the choice

@pytest.mark.parametrize("text,expected,needs", [
    ("task", ("task", 1.0), None), ("c4", ("c4", 0.0), "c4"), ("wikitext2", ("wikitext2", 0.0), "wikitext2"),
    ("mix:0.25", ("mix", 0.25), "c4"),
    ("mix:.5", ("mix", 0.5), "c4"),
])
def test_choices(text, expected, needs):
    assert parse_calib(text) == CalibChoice(*expected) and parse_calib(text).text == needs


@pytest.mark.parametrize("text,part", [
    ("wikitext", "did you mean 'wikitext2'"), ("c5", "did you mean 'c4'"), ("mx:0.5", "did you mean 'mix'"),
    ("", "unknown --calib ''"),
    ("mix", "above 0 and below 1"), ("mix:", "above 0 and below 1"), ("mix:half", "above 0 and below 1"),
    ("mix:0", "above 0 and below 1"), ("mix:1", "above 0 and below 1"), ("mix:-0.5", "above 0 and below 1"),
    ("mix:nan", "above 0 and below 1"), ("c4:0.5", "which only a mix has"),
])
def test_bad_choices(text, part):
    with pytest.raises(UserError, match=part) as caught:
        parse_calib(text)
    assert "mix:0.5" in str(caught.value) and "\n" not in str(caught.value)


# ---- worked documents

@pytest.mark.parametrize("task,scoring,tail", [(TRIVIA, "generate", " St. Louis"), (PRO, "letter", " B"),
                                               (PRO, "cloze", " two")])
def test_a_worked_document_is_prompt_space_answer_and_the_mask_the_answer(tok, task, scoring, tail):
    doc = Doc("d", "q?", options=("one", "two"), gold="St. Louis" if task is TRIVIA else "B", gold_index=1)
    (answer,) = worked_documents(task, [doc], tok, scoring=scoring, max_length=512, chat=False, loss="answer")
    assert tok.decode(answer.tokens) == task.prompt(doc, scoring) + tail and answer.tokens.dtype == np.int64
    assert tok.decode(answer.tokens[answer.loss_mask]) == tail and not answer.truncated
    (whole,) = worked_documents(task, [doc], tok, scoring=scoring, max_length=512, chat=False, loss="all")
    assert whole.loss_mask.all() and whole.loss_mask.dtype == bool and (whole.tokens == answer.tokens).all()


def test_in_a_chat_the_answer_follows_at_once(tok):
    (answered,) = worked_documents(TRIVIA, [open_doc()], tok, scoring="generate", max_length=512, chat=True,
                                   loss="answer")
    assert tok.decode(answered.tokens) == "<u>Question: q?\nAnswer:<e>\n<a>26 Jul 2024\nParis"
    assert tok.decode(answered.tokens[answered.loss_mask]) == "Paris"
    with pytest.raises(UserError, match="no chat template"):
        worked_documents(TRIVIA, [open_doc()], spaced_tokenizer(), scoring="generate", max_length=512, chat=True)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("task,scoring", [(TRIVIA, "generate"), (PRO, "letter"), (PRO, "cloze")])
def test_tokens_are_the_context_and_gold_that_the_evaluation_asks(tok, task, scoring, chat):
    docs = DOCS if task is TRIVIA else [replace(doc, gold="B") for doc in DOCS]
    worked = worked_documents(task, docs, tok, scoring=scoring, max_length=512, chat=chat, loss="answer")
    for request, answered in zip(build_requests(task, docs, (), tok, cfg=EvalConfig(scoring, chat_template=chat)),
                                 worked, strict=True):
        assert tuple(answered.tokens) == request.context + request.gold and answered.doc_id == request.doc.doc_id
        assert tuple(answered.tokens[answered.loss_mask]) == request.gold


@pytest.mark.parametrize("chat", [False, True])
def test_a_bos_stands_in_front_without_a_template_only(chat):
    tok = spaced_tokenizer(bos=True)
    tok.chat_template = TEMPLATE
    (answered,) = worked_documents(TRIVIA, [open_doc()], tok, scoring="generate", max_length=512, chat=chat,
                                   loss="answer")
    (request,) = build_requests(TRIVIA, [open_doc()], (), tok, cfg=EvalConfig("generate", chat_template=chat))
    assert tuple(answered.tokens) == request.context + request.gold
    assert (answered.tokens == tok.bos_token_id).sum() == (not chat)
    assert answered.loss_mask.sum() == len(request.gold)


@pytest.mark.parametrize("bos", [False, True])
def test_long_documents_lose_tokens_on_the_left(bos):
    tok = spaced_tokenizer(bos=bos)
    (answered,) = worked_documents(TRIVIA, [open_doc()], tok, scoring="generate", max_length=12, chat=False,
                                   loss="answer")
    assert len(answered.tokens) == 12 and answered.truncated and (answered.tokens[0] == tok.bos_token_id) == bos
    assert tok.decode(answered.tokens[answered.loss_mask]) == " Paris" and answered.loss_mask.sum() == 6
    (short,) = worked_documents(TRIVIA, [open_doc()], tok, scoring="generate", max_length=4, chat=False, loss="answer")
    assert short.loss_mask.tolist() == [not bos, True, True, True]  # shorter than the answer
    (whole,) = worked_documents(TRIVIA, [open_doc()], tok, scoring="generate", max_length=512, chat=False)
    (exact,) = worked_documents(TRIVIA, [open_doc()], tok, scoring="generate", max_length=len(whole.tokens), chat=False)
    assert not exact.truncated


def test_an_answer_that_melts_into_the_prompt_keeps_its_own_tokens():
    tok = spaced_tokenizer(merges=[(":", "Ġ"), (":Ġ", "B")])
    doc = open_doc("B")
    (answered,) = worked_documents(TRIVIA, [doc], tok, scoring="generate", max_length=512, chat=False, loss="answer")
    (request,) = build_requests(TRIVIA, [doc], (), tok, cfg=EvalConfig("generate"))
    assert tuple(answered.tokens) == request.context + request.gold
    assert tok.decode(answered.tokens) == "Question: q?\nAnswer: B"
    assert tok.decode(answered.tokens[answered.loss_mask]) == " B"


def test_an_empty_answer_is_named(tok):
    with pytest.raises(DataError, match="document 'd' of trivia_qa has an empty answer"):
        worked_documents(TRIVIA, [open_doc("")], tok, scoring="generate", max_length=512, chat=True)
    with pytest.raises(UserError, match="trivia_qa has no calibration documents"):
        worked_documents(TRIVIA, [], tok, scoring="generate", max_length=512, chat=False)
    with pytest.raises(UserError, match=r"unknown calibration loss 'answers' \(did you mean 'answer'"):
        worked_documents(TRIVIA, DOCS, tok, scoring="generate", max_length=512, chat=False, loss="answers")


# ---- the task's sample

def test_published_order_take_until_the_next_would_pass():
    """Not a knapsack: the first document that does not fit ends the sample, even if a later one would fit."""
    worked = sequences([5, 40, 3, 3, 30, 2])
    order = np.random.default_rng(3).permutation(6)
    sizes = np.array([5, 40, 3, 3, 30, 2])[order]
    for budget in range(1, 90):
        taken = sample_task(worked, budget, 3)
        assert [p.doc_id for p in taken] == [f"p{i}" for i in order[:len(taken)]]
        fits = int((np.cumsum(sizes) <= budget).sum())
        assert len(taken) == max(1, fits)


def test_task_sample_keeps_the_last_of_the_pool_and_is_whole():
    worked = sequences([4, 5, 6])
    assert sorted(p.doc_id for p in sample_task(worked, 10**6, 0)) == ["p0", "p1", "p2"]
    assert sum(len(p.tokens) for p in sample_task(worked, 15, 0)) == 15  # met exactly
    assert len(sample_task(sequences([50, 50]), 1, 0)) == 1  # at least one, though it passes the budget


def test_task_sample_seeds():
    worked = sequences([5] * 50)
    a, b, c = (tuple(p.doc_id for p in sample_task(worked, 100, seed)) for seed in (1, 1, 2))
    assert a == b and a != c and len(a) == len(set(a)) == 20
    assert a == tuple(p.doc_id for p in sample_task(worked, 200, 1))[:20]  # a larger budget contains the smaller one


@pytest.mark.parametrize("worked,budget,part", [
    ([], 10, "no calibration documents to sample"), (sequences([5]), 0, "budget is 0 tokens"),
    (sequences([5]), -3, "budget is -3 tokens"),
    (sequences([1, 1, 0]), 10, "all 3 calibration documents have at most 1 token"),
])
def test_task_sample_complaints(worked, budget, part):
    with pytest.raises(UserError, match=part):
        sample_task(worked, budget, 0)


# ---- windows

def test_document_windows_are_exact_verbatim_and_from_different_documents(tok):
    found = sample_windows(TEXTS, tok, window=32, budget_tokens=32 * 12 + 31, seed=5, style="c4")
    assert len(found) == 12 and all(len(p.tokens) == 32 and p.loss_mask.all() and p.tokens.dtype == np.int64
                                    for p in found)
    places = [p.doc_id.removeprefix("c4:").split("@") for p in found]
    assert len({document for document, _ in places}) == 12
    for answered, (document, start) in zip(found, places):
        text = TEXTS[int(document)]
        assert len(text) >= 32 and tok.decode(answered.tokens) == text[int(start):int(start) + 32]


def test_documents_come_again_only_when_no_other_is_left(tok):
    texts = ["short", "x" * 40 + "y" * 40, "", "z" * 80 + "w" * 30]
    found = sample_windows(texts, tok, window=64, budget_tokens=64 * 7, seed=0, style="c4")
    drawn = [p.doc_id.split("@")[0] for p in found]
    assert set(drawn) == {"c4:1", "c4:3"} and all(drawn[i] != drawn[i + 1] for i in range(6))
    assert len({p.doc_id for p in found}) > 2  # another window, not the same one


def test_documents_are_tokenised_only_as_far_as_needed(tok):
    counting = Counting(tok)
    few = sample_windows(["a" * 50] * 5000, counting, window=32, budget_tokens=64, seed=0, style="c4")
    assert len(few) == 2 and counting.seen <= 100
    assert len({p.doc_id for p in few}) == 2


def test_windows_reach_both_ends(tok):
    starts = {int(p.doc_id.split("@")[1]) for seed in range(60)
              for p in sample_windows(["abcde"], tok, window=3, budget_tokens=3, seed=seed, style="c4")}
    assert starts == {0, 1, 2}
    assert sample_windows(["abc"], tok, window=3, budget_tokens=3, seed=0, style="c4")[0].doc_id == "c4:0@0"


def test_joined_windows(tok):
    texts = ["", " = One = \n", "", "first paragraph of it", "second"]
    joined = "\n\n".join(texts)
    counting = Counting(tok)
    found = sample_windows(texts, counting, window=16, budget_tokens=16 * 9, seed=2, style="wikitext2")
    assert counting.seen == 1 and len(found) == 9 and len({p.doc_id for p in found}) > 4
    for answered in found:
        start = int(answered.doc_id.removeprefix("wikitext2@"))
        assert tok.decode(answered.tokens) == joined[start:start + 16] and answered.loss_mask.all()
        assert answered.tokens.base is None


@pytest.mark.parametrize("style", ["c4", "wikitext2"])
def test_windows_seeds_and_budgets(tok, style):
    def ids(budget, seed):
        return [p.doc_id for p in sample_windows(TEXTS, tok, window=20, budget_tokens=budget, seed=seed, style=style)]

    assert ids(200, 1) == ids(200, 1) != ids(200, 2) and len(ids(200, 1)) == 10 and len(ids(219, 1)) == 10
    assert ids(100, 1) == ids(200, 1)[:5]
    (only,) = sample_windows(TEXTS, tok, window=2048, budget_tokens=17, seed=0, style=style)
    assert len(only.tokens) == 17  # a budget below one window: one window of that length


@pytest.mark.parametrize("texts,window,budget,style,part", [
    (["abc", "abcde"], 8, 80, "c4",
     "longest of 2 documents of c4 has 5 tokens.*window of 8; lower --calib_window to at most 5"),
    (["abc", "abcde"], 80, 80, "wikitext2",
     "joined text of wikitext2 has 10 tokens.*window of 80; lower --calib_window to at most 10"),
    (["a", ""], 8, 80, "c4", "has 1 tokens.*no --calib_window fits"), ([], 8, 80, "c4", "longest of 0 documents"),
    ([], 8, 80, "wikitext2", "has 0 tokens"), (["abc"], 2, 0, "c4", "budget is 0 tokens"),
    (["abc"], 1, 10, "c4", "window of 1 token has no loss; raise --calib_window"),
    (["abc"], 8, 1, "wikitext2", "window of 1 token has no loss.*--calib_tokens"),
    (["abc"], 2, 8, "c5", "did you mean 'c4'"),
])
def test_window_complaints(tok, texts, window, budget, style, part):
    with pytest.raises(UserError, match=part) as caught:
        sample_windows(texts, tok, window=window, budget_tokens=budget, seed=0, style=style)
    assert "\n" not in str(caught.value)


# ---- whole sets

@pytest.mark.parametrize("text,name", [("task", "trivia_qa"), ("c4", "c4"), ("wikitext2", "wikitext2"),
                                       ("mix:0.5", "trivia_qa+c4")])
def test_sets_are_deterministic_and_differ_by_seed(tok, text, name):
    a, again, other = build(tok, text), build(tok, text), build(tok, text, seed=1)
    assert same(a, again) and a.template == again.template
    assert a.doc_ids != other.doc_ids and calib_digest(a) != calib_digest(other)
    assert (a.task, a.seed, a.truncated) == (name, 0, 0)
    assert sum(map(len, a.tokens)) <= 400 and all(len(t) == len(m) for t, m in zip(a.tokens, a.loss_mask))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_a_mix_keeps_its_share_within_one_document(tok, share):
    budget, window = 1000, 20
    mix = build(tok, f"mix:{share}", budget_tokens=budget, window=window)
    own = sum(len(t) for i, t in zip(mix.doc_ids, mix.tokens) if not i.startswith("c4:"))
    general = sum(len(t) for i, t in zip(mix.doc_ids, mix.tokens) if i.startswith("c4:"))
    worked = worked_documents(TRIVIA, DOCS, tok, scoring="generate", max_length=512, chat=False)
    longest = max(len(document.tokens) for document in worked)
    asked = round(share * budget)
    assert asked - longest < own <= asked and budget - asked - window < general <= budget - asked
    alone = build(tok, "c4", budget_tokens=budget, window=window)
    assert [i for i in mix.doc_ids if i.startswith("c4:")] == list(alone.doc_ids[:general // window])


def test_texts_are_loaded_only_when_needed(tok):
    asked = []

    def texts(name):
        asked.append(name)
        return TEXTS

    build(tok, "task", texts=texts)
    assert asked == []
    build(tok, "mix:0.5", texts=texts), build(tok, "wikitext2", texts=texts), build(tok, "c4", docs=(), texts=texts)
    assert asked == ["c4", "wikitext2", "c4"]


def test_digest_and_template_see_what_changed(tok):
    base, masked = build(tok), build(tok, loss="answer")
    assert base.doc_ids == masked.doc_ids and calib_digest(base) != calib_digest(masked)
    assert base.template != masked.template
    moved = [build(tok), build(tok, chat=True), build(tok, task=PRO), build(tok, task=PRO, scoring="cloze"),
             build(tok, "mix:0.5"), build(tok, "c4")]
    assert len({calib_digest(c) for c in moved}) == len({c.template for c in moved}) == len(moved)
    assert build(tok, "c4").template == build(tok, "c4", loss="answer").template  # general text has no answer
    assert build(tok, "c4").template == build(tok, "c4", task=PRO).template


def test_cut_documents_are_counted(tok):
    cut = build(tok, max_length=24, budget_tokens=24 * 40)
    assert cut.truncated == len(cut.tokens) == 40 and {len(t) for t in cut.tokens} == {24}


@pytest.mark.parametrize("text,changes,part", [
    ("task", {"docs": ()}, "no calibration documents"), ("mix:0.5", {"docs": ()}, "no calibration documents"),
    ("task", {"budget_tokens": 0}, "budget is 0"), ("mix:0.5", {"budget_tokens": 0}, "budget is 0"),
    ("c4", {"budget_tokens": -1}, "budget is -1"),
    ("task", {"max_length": 1}, "at most 1 token"), ("mix:0.5", {"budget_tokens": 1}, "window of 1 token"),
    ("c4", {"window": 4096, "budget_tokens": 8192}, "lower --calib_window to at most"),
    ("task", {"loss": "none"}, "unknown calibration loss"),
])
def test_set_complaints(tok, text, changes, part):
    with pytest.raises(UserError, match=part):
        build(tok, text, **changes)


# ---- where general text comes from

def put(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("name,place", [
    ("c4", "c4/train"), ("c4", "c4_sample/train"), ("wikitext2", "wikitext2/wikitext-2-raw-v1/train"),
    ("wikitext2", "wikitext2/train"),
])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_folders(tmp_path, name, place, suffix):
    put(tmp_path / (place + suffix), [{"text": "", "url": "u"}, {"text": "a\u2028b", "url": "v"}])
    # blank rows count, and a line separator is no row end
    assert load_texts(name, "folder", tmp_path) == ["", "a\u2028b"]


def test_a_whole_c4_goes_before_the_sample(tmp_path):
    put(tmp_path / "c4_sample/train.parquet", [{"text": "sample"}])
    put(tmp_path / "c4/train.jsonl", [{"text": "whole"}])
    assert load_texts("c4", "folder", tmp_path) == ["whole"]


@pytest.mark.parametrize("rows,suffix,part", [
    ([{"page": "x"}], ".parquet", "field 'text': expected this column, but it has only: page"),
    ([{"page": "x"}], ".jsonl", "row 1, field 'text'"),
    ([{"text": "x"}, {"text": None}], ".parquet", "row 2, field 'text': expected a text"),
    ([{"text": "x"}, {"text": 3}], ".jsonl", "row 2, field 'text'"),
    ([{"text": " "}, {"text": "\n"}], ".parquet", "is empty .2 rows, none with text"),
    ([], ".jsonl", "is empty .0 rows"),
])
def test_bad_files(tmp_path, rows, suffix, part):
    path = put(tmp_path / f"c4/train{suffix}", rows)
    with pytest.raises(DataError, match=part) as caught:
        load_texts("c4", "folder", tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_places(tmp_path):
    put(tmp_path / "wikitext2/wikitext-2-raw-v1/test.parquet", [{"text": "never calibrate on it"}])
    places = r"no wikitext2/wikitext-2-raw-v1/train.parquet or wikitext2/train.parquet \(or .jsonl\) and no other split"
    with pytest.raises(DataError, match=places):
        load_texts("wikitext2", "folder", tmp_path)
    with pytest.raises(DataError, match=r"data folder .* does not exist; pass --data_dir"):
        load_texts("c4", "folder", tmp_path / "nowhere")
    with pytest.raises(UserError, match="needs a folder; pass --data_dir"):
        load_texts("c4", "folder")
    with pytest.raises(UserError, match="no embedded set; pass --data_source hub, or --data_dir"):
        load_texts("c4", "embedded")
    with pytest.raises(UserError, match=r"unknown data source 'hup' \(did you mean 'hub'"):
        load_texts("c4", "hup")
    with pytest.raises(UserError, match=r"unknown general text 'wikitext' \(did you mean 'wikitext2'"):
        load_texts("wikitext", "hub")
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4/train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable parquet"):
        load_texts("c4", "folder", tmp_path)


def test_hub(monkeypatch):
    import datasets

    calls, tables = [], [datasets.Dataset.from_dict({"text": ["", "one"], "url": ["u", "v"]})]

    def load(name, config=None, **options):
        calls.append((name, config, options))
        return tables[0]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_texts("c4", "hub", token="t") == load_texts("wikitext2", "hub") == ["", "one"]
    c4, wiki = calls
    assert c4[:2] == ("allenai/c4", None) and c4[2]["data_files"] == {"train": "en/c4-train.00000-of-01024.json.gz"}
    assert (c4[2]["split"], c4[2]["token"]) == ("train", "t")
    assert wiki == ("Salesforce/wikitext", "wikitext-2-raw-v1", {"split": "train", "token": None})
    tables[0] = datasets.Dataset.from_dict({"page": ["x"]})
    with pytest.raises(DataError, match=r"hub:allenai/c4, row 1, field 'text': expected this column, .* only: page"):
        load_texts("c4", "hub")

    def fail(*args, **options):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    said = r"'c4' could not be loaded from the hub as 'allenai/c4' \(ConnectionError: no network\); go online"
    with pytest.raises(DataError, match=said):
        load_texts("c4", "hub")


def test_the_hub_client_is_imported_for_the_hub_only():
    """It takes seconds; evaluation.data.sources, which is read here, has a test of its own."""
    for name in ("data/general_text", "calibration/mixture"):
        tree = ast.parse((Path(__file__).resolve().parents[2] / f"evaluation/{name}.py").read_text())
        top = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert top and not [line for line in top if line.split()[1].startswith("datasets")]


# ---- real rows

@pytest.mark.real
def test_real_texts(shared, tok, tmp_path):
    c4 = load_texts("c4", "folder", shared / "datasets")
    assert len(c4) == 1024
    found = sample_windows(c4, tok, window=512, budget_tokens=512 * 40, seed=0, style="c4")
    assert len({p.doc_id.split("@")[0] for p in found}) == 40 and all(len(p.tokens) == 512 for p in found)
    with pytest.raises(UserError, match=r"longest of 1024 documents of c4 has .* window of 8192; lower --calib_window"):
        sample_windows(c4, tok, window=8192, budget_tokens=16384, seed=0, style="c4")
    (tmp_path / "wikitext2").mkdir()  # only its test split is at hand
    shutil.copy(shared / "datasets/wikitext2/wikitext-2-raw-v1/test.parquet", tmp_path / "wikitext2/train.parquet")
    wiki = load_texts("wikitext2", "folder", tmp_path)[:400]
    assert wiki[:2] == ["", " = Robert Boulter = \n"]
    windows = sample_windows(wiki, tok, window=2048, budget_tokens=8 * 2048, seed=0, style="wikitext2")
    assert [len(window.tokens) for window in windows] == [2048] * 8


@pytest.mark.real
@pytest.mark.parametrize("task,scoring", [(TRIVIA, "generate"), (PRO, "letter"), (PRO, "cloze")])
def test_real_documents_with_a_real_tokenizer(shared, real_model, task, scoring):
    real = AutoTokenizer.from_pretrained(real_model)
    docs = task.docs(load_rows(task.source, "folder", shared / "datasets"))[:200]
    worked = worked_documents(task, docs, real, scoring=scoring, max_length=4096, chat=False, loss="answer")
    for request, answered in zip(build_requests(task, docs, (), real, cfg=EvalConfig(scoring, max_length=4096)),
                                 worked, strict=True):
        assert tuple(answered.tokens[answered.loss_mask]) == request.gold
        assert tuple(answered.tokens) == request.context + request.gold
    calib = build_solver_calib(parse_calib("mix:0.5"), task, docs, real, scoring=scoring, max_length=512, chat=False,
                               loss="all", budget_tokens=8192, window=128, seed=0,
                               texts=lambda name: load_texts(name, "folder", shared / "datasets"))
    general = [len(t) for i, t in zip(calib.doc_ids, calib.tokens) if i.startswith("c4:")]
    assert general == [128] * 32 and 4096 - 512 < sum(map(len, calib.tokens)) - sum(general) <= 4096


def test_fetched_text_is_read_back(tmp_path, monkeypatch):
    """fetch_hub.py writes general text where --data_dir reads it."""
    import datasets_local.fetch_hub as fetching

    monkeypatch.setattr(fetching, "load_texts", lambda name, source: [f"{name} one", "two"])
    for name in ("c4", "wikitext2"):
        assert "2 documents" in fetching.fetch_text(name, tmp_path)
        assert load_texts(name, "folder", tmp_path) == [f"{name} one", "two"]
