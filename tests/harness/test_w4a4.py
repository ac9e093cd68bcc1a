"""The W4A4 command: the published setting against a plain loop, the curve, its files, and going on."""

import copy
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from core.architecture import find_linears
from core.forward import call, pad
from harness.api import evaluate, quantize
from quantization.transforms.fold import rotate
from report.records import load_results
from scripts.w4a4 import main
from tests.tiny import byte_tokenizer, tiny_model

KEPT = (".json", ".jsonl", ".safetensors")  # what the store holds
WORDS = "".join(f"The {a} cat sat on the {b} mat. " for a in ("red", "old", "big") for b in ("wet", "new", "odd")) * 8


def rounded(x: torch.Tensor, bits: int, group: int, keep: set[int]) -> torch.Tensor:
    """One vector, group by group and number by number."""
    out, top = x.clone(), 2**bits - 1
    for start in range(0, len(x), group):
        at = [i for i in range(start, min(start + group, len(x))) if i not in keep]
        low, high = min([0.0, *(float(x[i]) for i in at)]), max([0.0, *(float(x[i]) for i in at)])
        scale = (torch.tensor(high) - torch.tensor(low)) / top
        zero = (-torch.tensor(low) / scale).round() if high > low else 0
        for i in at if high > low else ():
            out[i] = (((x[i] / scale).round() + zero).clamp(0, top) - zero) * scale
    return out


def plain_logits(model, ids, documents, salient: float, share: float) -> torch.Tensor:
    """The published method, its activations quantized before their linear: means of |x|, both roundings, one pass."""
    linears, sums, tokens = find_linears(model)[0], {}, sum(map(len, documents))
    hooks = [lin.register_forward_pre_hook(lambda _m, args, fqn=fqn: sums.update(
        {fqn: sums.get(fqn, 0) + args[0].reshape(-1, args[0].shape[-1]).abs().double().sum(0)}))
        for fqn, lin in linears.items()]
    for document in documents:
        call(model, *pad([document], "cpu"))
    for hook in hooks:
        hook.remove()
    for fqn, linear in linears.items():
        order = sorted(range(linear.in_features), key=lambda i, fqn=fqn: (-float(sums[fqn][i] / tokens), i))
        weights, inputs = (set(order[:int(part * linear.in_features + 1e-9)]) for part in (salient, share))
        linear.weight.data = stored(linear.weight.data, weights)
        linear.register_forward_pre_hook(lambda _m, args, keep=inputs: (torch.stack(
            [rounded(x, 4, 128, keep) for x in args[0].reshape(-1, args[0].shape[-1])]).view_as(args[0]),))
    return call(model, *pad([ids], "cpu"), last_only=False).logits[0]


def stored(weight: torch.Tensor, keep: set[int]) -> torch.Tensor:
    """Rows rounded to 4 bits in groups of 128, scales at float16 rounded up; then the kept ones anew, at bfloat16."""
    out = weight.clone()
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], 128):
            part = weight[row, start:start + 128]
            low, high = part.min().clamp(max=0), part.max().clamp(min=0)
            half = ((high - low) / 15).numpy().astype(np.float16)
            up = half if np.float32(half) >= ((high - low) / 15).numpy() else np.nextafter(half, np.float16(np.inf))
            scale = torch.tensor(np.float32(up))
            zero = (-low / scale).round().clamp(0, 15)
            out[row, start:start + 128] = (((part / scale).round() + zero).clamp(0, 15) - zero) * scale
    for i in keep:
        out[:, i] = weight[:, i].bfloat16().float()
    return out


@pytest.mark.parametrize("family", ["llama", "opt"])
@torch.no_grad()
def test_the_published_setting_is_the_plain_loop(family, tmp_path):
    model = tiny_model(family, num_hidden_layers=1, **({"hidden_size": 160, "intermediate_size": 96}
                                                       if family == "llama" else {"hidden_size": 160, "ffn_dim": 96,
                                                                                  "word_embed_proj_dim": 160}))
    model.save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "a.txt").write_text(WORDS)
    small = quantize(str(tmp_path / "m"), "W4A4-native[act_bits=4,act_keep=0.1,salient=0.05]",
                     f"file:{tmp_path / 'a.txt'}", cache_dir=str(tmp_path / "c"), device="cpu", threads=1, dtype="fp32",
                     calib=f"file:{tmp_path / 'a.txt'}", calib_window=16, calib_tokens=64, score_docs=4, ppl_window=24,
                     eval_size=2)
    got = [sample.gold_loglik for sample in evaluate(small).samples]
    case, want = small.case, []
    documents = [list(map(int, tokens)) for tokens in case.prompts.tokens]
    for request in case.data.requests:
        ids = [*request.context, *request.gold]
        logits = plain_logits(copy.deepcopy(model), ids, documents, 0.05, 0.1).log_softmax(-1)
        want.append(float(logits[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean()))
    assert got == pytest.approx(want, abs=2e-4)


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("w4a4")
    (root / "a.txt").write_text(WORDS)
    argv = ["--plot_name", "tiny", "--model_path", str(tiny_folder), "--eval_ds_path", str(root / "a.txt"),
            "--calib_ds_path", str(root / "a.txt"), "--calib_docs", "2", "--eval_size", "6", "--ppl_window", "64",
            "--frac_salient_activations", "0", "0.5", "0.9", "1", "--frac_salient_weights", "0.1", "--plot_dir",
            str(root / "plots"), "--results_dir", str(root / "r"), "--cache_dir", str(root / "c"), "--threads", "1",
            "--device", "cpu", "--format", "json"]
    return root, argv


def test_it_prints_and_draws_the_curve_and_everything_kept_is_sixteen_bits(done, capsys):
    root, argv = done
    assert main(argv) == 0
    every = json.loads(capsys.readouterr().out)["points"]
    points = [p for p in every if p["metric"] == "perplexity"]
    curve = {p["act_keep"]: p["value"] for p in points if not p["level"]}
    levels = {p["row"]: p["value"] for p in points if p["level"]}
    assert sorted(curve) == [0.0, 0.5, 0.9, 1.0]
    assert set(levels) == {"fp16", "W4A4-native[salient=0.1]", "W4A4-native[act_bits=8,salient=0.1]"}
    assert curve[1.0] == levels["W4A4-native[salient=0.1]"]
    loss = {keep: abs(value - curve[1.0]) for keep, value in curve.items()}
    assert loss[0.0] > loss[0.9] > 0
    assert (root / "plots/tiny.png").read_bytes().startswith(b"\x89PNG")
    drawing = (root / "plots/tiny.svg").read_text()
    assert drawing.count('class="dash"') == 3 and drawing.count('class="mark"') == 4
    rows = list(csv.DictReader((root / "plots/tiny.csv").open()))
    assert len(rows) == 14 and {row["metric"] for row in rows} == {"perplexity", "loglik_change"}
    change = {p["act_keep"]: p for p in every if p["metric"] == "loglik_change" and not p["level"]}
    whole = next(p["value"] for p in points if p["row"] == "fp16")
    assert all(p["value"] == pytest.approx(math.log(whole / curve[keep])) for keep, p in change.items())
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)


def test_it_says_what_the_linears_read(done, capsys):
    assert main([*done[1][:-1], "markdown"]) == 0
    said = capsys.readouterr().out
    # 8 blocks: 6 linears of 32 columns in one group, one of 64 in one
    width, groups = 8 * (6 * 32 + 64), 8 * 7
    assert f"| A16 | 0 % | {16 * width:,} | 16.000 |" in said
    assert f"| A4 | 50 % | {8 * (6 * 16 * 20 + 32 * 20) + groups * 36:,} |" in said
    assert f"| A8 | 0 % | {8 * width + groups * 40:,} |" in said and f"| A4 | 100 % | {16 * width:,} |" in said


def test_it_goes_on_where_it_was(done, capsys):
    root, argv = done
    assert main(argv) == 0
    before = {path: path.stat().st_mtime_ns for path in (root / "c").rglob("*") if path.suffix in KEPT}
    capsys.readouterr()
    assert main([*argv, "--transform", "none", "smooth"]) == 0
    said = capsys.readouterr()
    points = json.loads(said.out)["points"]
    assert {p["row"] for p in points if not p["level"]} == {"W4A4-native[act_bits=4,salient=0.1]",
                                                           "W4A4-native[act_bits=4,salient=0.1,transform=smooth]"}
    assert [str(path) for path, at in before.items() if path.stat().st_mtime_ns != at] == []
    assert len(load_results(root / "r")) == 2 * 7


@pytest.mark.parametrize("more, said", [
    (["--frac_salient_activations", "1.5"], "--frac_salient_activations is 1.5; it must be from 0 to 1"),
    (["--frac_salient_weights", "-1"], "--frac_salient_weights is -1; it must be from 0 to 1"),
    (["--plot_name", "a/b"], "--plot_name is 'a/b'; give a plain file name"),
    (["--eval_ds_path", "no.txt"], "unknown")])
def test_what_cannot_be_is_one_sentence(done, more, said, capsys):
    from core.commandline import exit_status

    assert exit_status(lambda: main([*done[1], *more])) == 2
    assert said in capsys.readouterr().err


@pytest.mark.real
def test_on_the_real_model_more_kept_is_better_and_everything_kept_is_sixteen_bits(real_model, tmp_path):
    """The quantized rows share all but the bits of activations, so their documents are paired."""
    text = Path(__file__).resolve().parents[2] / "docs" / "METHODS.md"
    (tmp_path / "a.txt").write_text(text.read_text())
    common = dict(cache_dir=str(tmp_path / "c"), device="cpu", threads=1, calib=f"file:{tmp_path / 'a.txt'}",
                  calib_window=128, calib_tokens=1024, score_docs=8, ppl_window=128, eval_size=12)
    dataset, values = f"file:{tmp_path / 'a.txt'}", {}
    for told in ("", "[act_bits=4]", "[act_bits=4,act_keep=0.1]", "[act_bits=4,act_keep=0.5]",
                 "[act_bits=4,act_keep=1]"):
        small = quantize(str(real_model), f"W4A4-native{told}", dataset, **common)
        values[told] = [sample.gold_loglik for sample in evaluate(small).samples]
    none, tenth, half = (np.array(values[told]) for told in list(values)[1:4])
    assert np.mean(none) < np.mean(tenth) < np.mean(half)
    assert values["[act_bits=4,act_keep=1]"] == values[""]


@pytest.mark.real
@torch.no_grad()
def test_the_real_model_rotated_computes_what_it_did(real_model):
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval().requires_grad_(False)
    ids, mask = pad([list(range(500, 548))], "cpu")
    before = call(model, ids, mask, last_only=False).logits
    rotate(model, 42)
    after = call(model, ids, mask, last_only=False).logits
    # logits reach 33, so float32 itself rounds at 4e-6 a number, 30 blocks deep
    assert float((after - before).abs().max()) < 3e-4 and float((after - before).norm() / before.norm()) < 2e-5
