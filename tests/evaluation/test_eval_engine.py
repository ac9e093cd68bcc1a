"""The engine against plain forwards and model.generate, on tiny random models of nine families, float32."""

import copy
from functools import partial

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks.tiny_families import tiny_model as tiny_family
from core.forward import behaviour
from core.model import ready
from core.sample import Sample
from evaluation.data.documents import Doc
from evaluation.engine import ask as engine
from evaluation.engine import kv_cache as forward
from evaluation.engine.ask import evaluate, make_prefix, run_batch
from evaluation.engine.batches import batch_plan
from evaluation.engine.generate import Stopping, greedy
from evaluation.engine.kv_cache import prefill, run_prefix, score_continuations
from evaluation.engine.prompts import EvalConfig, build_requests
from evaluation.grading import choose
from evaluation.tasks import get_task
from tests.evaluation.test_eval_requests import tiny_tokenizer
from tests.evaluation.test_tasks import Scripted

VOCAB = 330
BASE = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1,
        "initializer_range": 0.3}
ALONE = ("jamba", "qwen3_next", "mamba")  # states beside or in place of the cache
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**BASE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**BASE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**BASE, head_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**BASE, head_dim=8, sliding_window=16)),
    "gemma2_wide": lambda: Gemma2ForCausalLM(Gemma2Config(**BASE, head_dim=8, sliding_window=900)),
    "opt": lambda: OPTForCausalLM(OPTConfig(vocab_size=VOCAB, hidden_size=32, ffn_dim=64, num_hidden_layers=3,
                                            num_attention_heads=4, word_embed_proj_dim=32, bos_token_id=0,
                                            eos_token_id=1, pad_token_id=1, init_std=0.3)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**{**BASE, "num_key_value_heads": 4})),
    **{family: partial(tiny_family, family, vocab_size=VOCAB, bos_token_id=0, eos_token_id=1, pad_token_id=1)
       for family in ALONE},
}
TRIVIA, CHOICE = get_task("trivia_qa"), get_task("mmlu_pro")
QUESTIONS = ["q", "what is the name of the thing", "a much longer question " * 6, "Who?",
             "one two three four five six seven"]
OPTIONS = [("x", "yes it is", "no", "a considerably longer option"), ("A", "B"), ("up", "down here"),
           ("1", "22", "333"), ("no", "yes")]
CHOICES = [Doc(f"c{i}", q, options=o, gold="B", gold_index=1, stratum="s")
           for i, (q, o) in enumerate(zip(QUESTIONS, OPTIONS, strict=True))]
OPEN = [Doc(f"o{i}", q, gold=o[-1], aliases=(o[-1],)) for i, (q, o) in enumerate(zip(QUESTIONS, OPTIONS, strict=True))]
SHOTS = [Doc(f"e{i}", f"exemplar number {i}", options=("p", "q"), gold="A", gold_index=0, aliases=("p",), stratum="s")
         for i in range(3)]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request):
    torch.manual_seed(0)
    model = ready(FAMILIES[request.param]())
    model.rows_alone = behaviour(model)[1]
    assert model.rows_alone == (request.param in ALONE)
    return model


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return FAMILIES["llama"]().eval()


@pytest.fixture(scope="module")
def tok():
    return tiny_tokenizer()


@torch.no_grad()
def plain(model, context, tail):
    """Reference: one unpadded forward over context + tail, no cache."""
    logits = model(torch.tensor([[*context, *tail]]), use_cache=False).logits[0]
    logp = torch.log_softmax(logits.float(), -1)
    return logp[torch.arange(len(context) - 1, len(context) + len(tail) - 1), list(tail)]


@pytest.mark.parametrize("scoring", ["letter", "cloze"])
@pytest.mark.parametrize("shots", [0, 3])
def test_choice_logprobs_equal_full_sequences(model, tok, scoring, shots):
    cfg = EvalConfig(scoring, num_fewshot=shots)
    requests = build_requests(CHOICE, CHOICES, SHOTS, tok, cfg=cfg)
    samples = run_batch(model, tok, CHOICE, requests, cfg=cfg, prefix=make_prefix(model, requests, cfg))
    for r, s in zip(requests, samples, strict=True):
        expected = [plain(model, r.context, c) for c in r.continuations]
        assert s.choice_logprobs == pytest.approx([float(e.sum()) for e in expected], abs=1e-4)
        assert s.gold_loglik == pytest.approx(float(expected[1].mean()), abs=1e-4)
        chosen = choose(s.choice_logprobs, CHOICE.lengths(r.doc, scoring), scoring)
        assert s.n_prompt == len(r.context) and s.answer == "ABCD"[chosen]


@pytest.mark.parametrize("shots", [0, 3])
def test_mixed_batch_equals_batch_one(model, tok, shots):
    for task, docs, scoring in ((CHOICE, CHOICES, "cloze"), (TRIVIA, OPEN, "generate")):
        cfg = EvalConfig(scoring, num_fewshot=shots, max_new_tokens=8)
        requests = build_requests(task, docs, SHOTS, tok, cfg=cfg)
        mixed = run_batch(model, tok, task, requests, cfg=cfg, prefix=make_prefix(model, requests, cfg))
        for request, sample in zip(requests, mixed, strict=True):
            (alone,) = run_batch(model, tok, task, [request], cfg=cfg)
            assert sample.gold_loglik == pytest.approx(alone.gold_loglik, abs=1e-4)
            assert (sample.text, sample.n_new, sample.correct) == (alone.text, alone.n_new, alone.correct)
            if scoring == "cloze":
                assert sample.choice_logprobs == pytest.approx(alone.choice_logprobs, abs=1e-4)


@pytest.mark.parametrize("shots", [0, 3])
def test_greedy_equals_generate_and_gold_equals_full_sequence(model, tok, shots):
    cfg = EvalConfig("generate", num_fewshot=shots, max_new_tokens=10)
    requests = build_requests(TRIVIA, OPEN, SHOTS, tok, cfg=cfg)
    prefix = make_prefix(model, requests, cfg)
    assert (prefix is not None) == bool(shots)
    samples = run_batch(model, tok, TRIVIA, requests, cfg=cfg, prefix=prefix)
    for r, s in zip(requests, samples, strict=True):
        ids = torch.tensor([r.context])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
        assert s.text == tok.decode(whole[0, len(r.context):], skip_special_tokens=True).split("\n")[0]
        assert s.gold_loglik == pytest.approx(float(plain(model, r.context, r.gold).mean()), abs=1e-4)


def test_cache_and_prefix_survive_a_batch(model, tok):
    """Scoring must not touch the state it shares, and the prefix serves every batch alike."""
    cfg = EvalConfig("generate", num_fewshot=3, max_new_tokens=6)
    requests = build_requests(TRIVIA, OPEN, SHOTS, tok, cfg=cfg)
    prefix = make_prefix(model, requests, cfg)
    before = [layer.keys.clone() for layer in prefix.cache.layers]
    first = run_batch(model, tok, TRIVIA, requests, cfg=cfg, prefix=prefix)
    assert first == run_batch(model, tok, TRIVIA, requests, cfg=cfg, prefix=prefix)
    assert all(torch.equal(a, layer.keys) for a, layer in zip(before, prefix.cache.layers, strict=True))
    with torch.inference_mode():
        state = prefill(model, [r.context for r in requests])
        jobs = [(row, r.gold) for row, r in enumerate(requests)]
        once = score_continuations(model, state, jobs)
        again = score_continuations(model, state, jobs)
        assert all(torch.equal(a, b) for one, two in zip(once, again, strict=True)
                   for a, b in zip(one, two, strict=True))


def test_prefix_beyond_a_sliding_window_is_not_used(tok):
    torch.manual_seed(0)
    model = FAMILIES["gemma2"]().eval()
    contexts = [tuple(range(2, 42)), tuple(range(2, 45))]
    with torch.inference_mode():
        prefix = run_prefix(model, contexts[0][:34])
    assert not forward.prefix_fits(prefix, contexts, 4)
    wide = FAMILIES["gemma2_wide"]().eval()
    with torch.inference_mode():
        prefix = run_prefix(wide, contexts[0][:34])
    assert forward.prefix_fits(prefix, contexts, 4) and not forward.prefix_fits(prefix, [(1, 2, 3)], 4)


def test_truncated_requests_run_without_the_prefix(llama, tok):
    long = Doc("long", "word " * 300, options=("p", "q"), gold="A", gold_index=0, stratum="s")
    cfg = EvalConfig("cloze", num_fewshot=3, max_length=200)
    requests = build_requests(CHOICE, [*CHOICES, long], SHOTS, tok, cfg=cfg)
    assert [r.truncated for r in requests] == [False] * 5 + [True]
    samples = evaluate(llama, tok, CHOICE, requests, cfg=cfg)
    for r, s in zip(requests, samples, strict=True):
        assert s.choice_logprobs == pytest.approx([float(plain(llama, r.context, c).sum()) for c in r.continuations],
                                                  abs=1e-4)
        assert s.truncated == r.truncated


def test_evaluate_keeps_order_and_reports_progress(llama, tok):
    cfg, seen = EvalConfig("cloze", batch_tokens=150), []
    requests = build_requests(CHOICE, CHOICES, [], tok, cfg=cfg)
    samples = evaluate(llama, tok, CHOICE, requests, cfg=cfg, progress=lambda done, total: seen.append((done, total)))
    assert len(batch_plan(requests, cfg)) > 1 and [s.doc_id for s in samples] == [d.doc_id for d in CHOICES]
    assert seen[-1] == (5, 5) and len(seen) == len(batch_plan(requests, cfg))
    assert all(isinstance(s, Sample) for s in samples)
    assert run_batch(llama, tok, CHOICE, [], cfg=cfg) == []


def test_letters_of_several_tokens_fall_through(llama):
    """A tokenizer without the merge " A" makes two tokens of it; the general path scores both."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {c: i for i, c in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    chars = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    cfg = EvalConfig("letter")
    requests = build_requests(CHOICE, CHOICES, [], chars, cfg=cfg)
    assert all(len(c) == 2 for c in requests[0].continuations)
    for r, s in zip(requests, run_batch(llama, chars, CHOICE, requests, cfg=cfg), strict=True):
        assert s.choice_logprobs == pytest.approx([float(plain(llama, r.context, c).sum()) for c in r.continuations],
                                                  abs=1e-4)


def test_rows_stop_at_newline_eos_and_limit(tok):
    """What ends a row, and that ended rows leave the batch."""
    newline, eos, a = tok.encode("\n")[0], tok.eos_token_id, tok.encode("A")[0]
    model = Scripted([[a, a, newline, a], [eos, a, a, a], [a, a, a, a, a], [newline, a, a, a]], VOCAB)
    state, stopping = model.state(), Stopping(model, tok, ("\n",))
    assert greedy(model, state, 4, stopping) == [[a, a, newline], [eos], [a, a, a, a], [newline]]
    assert model.batches == [2, 2, 1] and state.cache.layers[0].rows == [0, 1, 2, 3]


def test_long_and_short_options_run_apart(llama, tok, monkeypatch):
    """Splitting by length saves padding and changes nothing but rounding."""
    assert forward._groups([], []) == [] and forward._groups([4], [0, 0, 0, 0, 9]) == [[4]]
    lengths = [3, 200, 5, 2, 190, 4, 3]
    assert forward._groups(list(range(7)), lengths) == [[0, 2, 3, 5, 6], [1, 4]]
    assert forward._groups([0, 1, 2], [3, 4, 5]) == [[0, 1, 2]]
    monkeypatch.setattr(forward, "LAUNCH", 0)
    cfg = EvalConfig("cloze")
    requests = build_requests(CHOICE, CHOICES, [], tok, cfg=cfg)
    for r, s in zip(requests, run_batch(llama, tok, CHOICE, requests, cfg=cfg), strict=True):
        assert s.choice_logprobs == pytest.approx([float(plain(llama, r.context, c).sum()) for c in r.continuations],
                                                  abs=1e-4)


def test_choose():
    assert choose((-1.0, -1.0), (1, 1), "letter") == 0  # ties: the first
    assert choose((-4.0, -5.0), (2, 10), "cloze") == 1 and choose((-4.0, -5.0), (2, 10), "letter") == 0
    assert choose((-1.0, -9.0), (0, 10), "cloze") == 1  # an empty option is divided by 1


def test_open_sample_scores(llama, tok, monkeypatch):
    monkeypatch.setattr(engine, "greedy", lambda *_: [tok.encode(" St. Louis\nQuestion")])
    doc = Doc("o", "where", gold="St. Louis", aliases=("St. Louis", "st louis"))
    cfg = EvalConfig("generate")
    (s,) = run_batch(llama, tok, TRIVIA, build_requests(TRIVIA, [doc], [], tok, cfg=cfg), cfg=cfg)
    assert (s.text, s.answer, s.correct, s.f1) == (" St. Louis", "St. Louis", 1.0, 1.0)
    monkeypatch.setattr(engine, "greedy", lambda *_: [tok.encode("\n")])
    (s,) = run_batch(llama, tok, TRIVIA, build_requests(TRIVIA, [doc], [], tok, cfg=cfg), cfg=cfg)
    assert (s.text, s.answer, s.correct, s.f1, s.n_new) == ("", None, 0.0, 0.0, 1)


def test_trap_2_a_collapsed_model_is_not_paid(tok):
    """All logits equal: letters tie, the first is taken, and no document is right by an empty answer."""
    model = FAMILIES["llama"]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    cfg = EvalConfig("letter")
    samples = run_batch(model, tok, CHOICE, build_requests(CHOICE, CHOICES, [], tok, cfg=cfg), cfg=cfg)
    assert {s.answer for s in samples} == {"A"} and all(s.correct == 0 for s in samples)


def test_model_is_left_as_found(llama, tok):
    before = copy.deepcopy(llama.state_dict())
    cfg = EvalConfig("generate", max_new_tokens=3)
    evaluate(llama, tok, TRIVIA, build_requests(TRIVIA, OPEN, [], tok, cfg=cfg), cfg=cfg)
    assert all(torch.equal(v, before[k]) for k, v in llama.state_dict().items())
    assert llama.config.use_cache and not llama.training
