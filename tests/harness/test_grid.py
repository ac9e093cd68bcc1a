"""The whole chain on a tiny model: grid, cache, resume, failures, identity."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import harness.stages.documents
import harness.stages.model
import harness.stages.samples
import harness.store.store
from core.model import pick_device, pick_dtype
from core.registry import SCORERS, method, scorer
from core.settings import SETTINGS
from core.types import ModelRef
from evaluation.engine.prompts import EvalConfig
from harness.cli.main import main
from harness.grid import Grid
from harness.presets import build_grid
from harness.stages.case import Cases
from harness.stages.cell import cell_key
from harness.stages.options import reads_data
from harness.stages.plan import plan_digest, plan_key, read_plan
from harness.stages.samples import samples_key
from harness.stages.scores import scores_key
from harness.stages.weights import weights_key
from report.records import load_results, read_samples
from tests.harness.bench import case_of

REPO = Path(__file__).resolve().parents[2]


def run(tiny: Path, root: Path, *more: str, datasets=("mmlu_pro", "trivia_qa")) -> int:
    """Run a small grid in this process; returns the exit status."""
    flags = ["--run_type", "demo", "--model", str(tiny), "--dataset", *datasets, "--eval_size", "12", "--calib_size",
             "6", "--avg_bits", "4.75", "--quantizer", "rtn",
             "--device", "cpu", "--threads", "1", "--max_new_tokens", "4", "--batch_tokens", "600",
             "--cache_dir", str(root / "cache"), "--results_dir", str(root / "results")]
    return main([*flags, *more])


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob(pattern))}


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
    """A finished grid of all methods of issue A's table."""
    root = tmp_path_factory.mktemp("grid")
    assert run(tiny_folder, root, "--method", "TAQ", "TAQO", "TAQoS", "magnitude", "TAQ-native") == 0
    return root


def test_every_cell_has_a_result_with_its_true_bits(done):
    results = load_results(done / "results")
    assert len(results) == 2 * 8 and all(r.ok for r in results)
    assert {r.method.name for r in results} == {"fp16", "uniform", "random", "TAQ", "TAQO", "TAQoS", "magnitude",
                                                "TAQ-native"}
    for r in results:
        if r.avg_bits is not None:
            assert 4.74 < r.bits.average <= 4.75 and len(r.bits.per_linear) == 56
    native = next(r for r in results if r.method.name == "TAQ-native")
    # 8 blocks: two at 8 bits, six at 4; a group of 128 on 32 or 64 columns is one ragged group with 64 bits of scale
    # and zero
    assert native.avg_bits is None and native.bits.average > 5.0 + 64 / 64


def test_second_run_computes_nothing_and_changes_no_byte(done, tiny_folder, monkeypatch, capsys):
    before = files(done, "*.json*")

    def refuse(*_):
        raise AssertionError("a fully cached run must not load the model")

    monkeypatch.setattr(harness.stages.model, "load_model", refuse)
    assert run(tiny_folder, done, "--method", "TAQ", "TAQO", "TAQoS", "magnitude", "TAQ-native") == 0
    assert files(done, "*.json*") == before
    assert "TAQoS" in capsys.readouterr().out


def test_same_seed_gives_the_same_bytes_elsewhere(done, tiny_folder, tmp_path):
    assert run(tiny_folder, tmp_path, "--method", "TAQ", "TAQO", "TAQoS", "magnitude", "TAQ-native") == 0
    for pattern in ("*.jsonl", "plan.json", "keep.safetensors", "scores.safetensors", "best.safetensors"):
        first, second = files(done, pattern), files(tmp_path, pattern)
        assert first == second and first, pattern


def test_provenance_is_what_the_brief_lists(done):
    meta = next(json.loads(p.read_text()) for p in (done / "cache").glob("*/meta.json")
                if (p.parent / "plan.json").exists())
    found = meta["provenance"]
    for key in ("model", "method", "dataset", "run_type", "config_hash", "config", "layers", "versions", "data",
                "seed"):
        assert key in found
    assert meta["time"] and found["versions"]["torch"] and set(found["data"]) == {"calibration", "evaluation"}
    assert found["config"]["calib_size"] == 6 and len(found["layers"]) == 56


def test_killed_between_batches_goes_on_to_the_same_bytes(done, tiny_folder, tmp_path, monkeypatch):
    real, calls = harness.stages.samples.run_batch, []

    def stop_after_three(*args, **kwargs):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(harness.stages.samples, "run_batch", stop_after_three)
    assert run(tiny_folder, tmp_path, "--method", "TAQ") == 130
    assert len(list((tmp_path / "cache" / ".partial").rglob("*.jsonl"))) >= 1
    monkeypatch.setattr(harness.stages.samples, "run_batch", real)
    assert run(tiny_folder, tmp_path, "--method", "TAQ") == 0
    mine, whole = files(tmp_path / "results", "*.jsonl"), files(done / "results", "*.jsonl")
    assert mine and all(whole[name] == content for name, content in mine.items())
    assert not list((tmp_path / "cache" / ".partial").rglob("*.jsonl"))


def test_a_failed_cell_is_recorded_and_the_grid_goes_on(tiny_folder, tmp_path, capsys, registries):
    @scorer("broken_test", granularity="layer", needs=())
    def broken(ctx):
        raise RuntimeError("the scorer broke")

    method("broken_test", scorer="broken_test")
    assert run(tiny_folder, tmp_path, "--method", "broken_test", datasets=("mmlu_pro",)) == 1
    results = {r.method.name: r for r in load_results(tmp_path / "results")}
    assert results["broken_test"].status == "error" and "the scorer broke" in results["broken_test"].traceback
    assert results["random"].ok
    printed = capsys.readouterr()
    assert "failed: broken_test on mmlu_pro" in printed.err and "FAILED: broken_test on mmlu_pro" in printed.out


def test_eval_only_uses_stored_plans_and_fails_without(done, tiny_folder, tmp_path, capsys):
    assert run(tiny_folder, tmp_path, "--eval_only", datasets=("mmlu_pro",)) == 1
    assert "--eval_only: the plan of this cell" in capsys.readouterr().err
    assert run(tiny_folder, done, "--eval_only", "--max_new_tokens", "3", "--method", "TAQ",
               datasets=("trivia_qa",)) == 0


def test_dry_run_computes_nothing(tiny_folder, tmp_path, capsys):
    assert run(tiny_folder, tmp_path, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "nothing was computed" in out and "to do" in out and not (tmp_path / "results").exists()


def test_damaged_entry_is_put_aside_and_computed_again(tiny_folder, tmp_path):
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    before = files(tmp_path / "results", "*.jsonl")
    entry = next((tmp_path / "cache").glob("*/samples.jsonl"))
    entry.write_text(entry.read_text().replace("0.", "1.", 1))
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    assert files(tmp_path / "results", "*.jsonl") == before and list((tmp_path / "cache").glob(".damaged-*"))


def test_out_of_memory_halves_the_batches_under_a_new_digest(tiny_folder, tmp_path, monkeypatch, caplog):
    real = harness.stages.samples.run_batch

    def small_machine(model, tokenizer, task, requests, cfg, prefix):
        if cfg.batch_tokens > 300:
            raise MemoryError
        return real(model, tokenizer, task, requests, cfg, prefix)

    monkeypatch.setattr(harness.stages.samples, "run_batch", small_machine)
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    result = load_results(tmp_path / "results")[0]
    assert result.evaluation["batch_tokens"] == 300 and "new batch plan" in caplog.text
    before = files(tmp_path / "results", "*.json*")
    # the results carry the key that they have now, so no twins come
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    assert files(tmp_path / "results", "*.json*") == before
    assert result.cell == cell_key(case_of(result.method.name, **small(tiny_folder, tmp_path)))


def test_out_of_memory_in_a_scorer_is_one_sentence(tiny_folder, tmp_path, monkeypatch):
    """Smaller batches of questions would not help it; the other rows go on."""
    def full(ctx):
        raise RuntimeError("CUDA out of memory. Tried to allocate 8.00 GiB")

    monkeypatch.setitem(SCORERS._items, "TAQ", replace(SCORERS.get("TAQ"), fn=full))
    assert run(tiny_folder, tmp_path, "--method", "TAQ", datasets=("mmlu_pro",)) == 1
    errors = {r.name: r.error for r in load_results(tmp_path / "results")}
    assert errors["TAQ"].startswith("out of memory on cpu while TAQ scores; lower --batch_tokens, --score_docs")
    assert not errors["uniform"] and not list((tmp_path / "cache").glob("*/batch_tokens.json"))


def small(tiny: Path, root: Path) -> dict:
    """The grid of ``run`` for one data set, without its command line."""
    return dict(models=(str(tiny),), datasets=("mmlu_pro",), eval_size=12, calib_size=6, avg_bits=(4.75,), device="cpu",
                threads=1,
                max_new_tokens=4, batch_tokens=600, cache_dir=str(root / "cache"), results_dir=str(root / "results"))


def test_a_result_carries_the_versions_and_the_time_of_its_samples(tiny_folder, tmp_path, monkeypatch):
    """Read from the cache by a later version of the project, it still says which one made it."""
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    before = {r.method.name: (r.versions, r.made) for r in load_results(tmp_path / "results")}
    shutil.rmtree(tmp_path / "results")
    for module in ("plan", "result"):
        monkeypatch.setattr(f"harness.stages.{module}.versions", lambda: {"commit": "later"})
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    assert {r.method.name: (r.versions, r.made) for r in load_results(tmp_path / "results")} == before
    assert all(made.startswith("20") and versions["torch"] for versions, made in before.values())


def test_seconds_are_each_stages_own(tiny_folder, tmp_path):
    """The shared backward pass is billed to itself, the solve to the weights, and neither to the samples."""
    assert run(tiny_folder, tmp_path, "--method", "TaCQ", "SqueezeLLM", "--quantizer", "gptq", "--calib_tokens", "600",
               datasets=("mmlu_pro",)) == 0
    seconds = {r.method.name: r.seconds for r in load_results(tmp_path / "results")}
    assert set(seconds["TaCQ"]) == {"gradients", "base_quantized", "scores", "plan", "weights", "samples"}
    assert seconds["TaCQ"]["gradients"] == seconds["SqueezeLLM"]["gradients"] > 0
    assert set(seconds["fp16"]) == {"samples"}
    entries = [json.loads(p.read_text()) for p in (tmp_path / "cache").glob("*/meta.json")]
    whole = sum(e["provenance"].get("seconds", 0) for e in entries
                if e["identity"]["stage"] in ("gradients", "samples", "weights"))
    solved = seconds["uniform"]["weights"]
    assert seconds["uniform"]["samples"] < whole and solved > 0


def test_categories_are_those_of_the_documents_now(tiny_folder, tmp_path, monkeypatch):
    """A category is no answer: samples in the cache keep none of their own, so other categories cost no evaluation."""
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    real = harness.stages.documents.build_requests
    monkeypatch.setattr(harness.stages.documents, "build_requests", lambda *a, **k: [
        replace(r, doc=replace(r.doc, stratum="all")) for r in real(*a, **k)])
    monkeypatch.setattr(harness.stages.model, "load_model", lambda *a: pytest.fail("the model was loaded"))
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    assert {name for r in load_results(tmp_path / "results") for name in r.strata} == {"all"}


def test_a_cached_grid_reads_no_scores(tiny_folder, tmp_path, monkeypatch):
    """They are gigabytes for a large model; only what is used is read and checked."""
    real, read = harness.store.store.judge, set()

    def judge(folder):
        judged = real(folder)
        if judged.state == "whole":
            read.add(json.loads(judged.meta)["identity"]["stage"])
        return judged

    asked = dict(datasets=("mmlu_pro",))
    assert run(tiny_folder, tmp_path, "--method", "magnitude", **asked) == 0
    monkeypatch.setattr(harness.store.store, "judge", judge)
    assert run(tiny_folder, tmp_path, "--method", "magnitude", **asked) == 0 and read == {"samples"}
    shutil.rmtree(tmp_path / "results")
    assert run(tiny_folder, tmp_path, "--method", "magnitude", **asked) == 0 and "scores" not in read


def test_what_a_killed_process_left_among_the_results_is_swept(tiny_folder, tmp_path):
    (tmp_path / "results").mkdir()
    for name, age in (("old", 0), ("young", None)):
        (tmp_path / "results" / f".tmp-{name}").write_text("half")
        if age is not None:
            os.utime(tmp_path / "results" / f".tmp-{name}", (age, age))
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    assert [p.name for p in (tmp_path / "results").glob(".tmp-*")] == [".tmp-young"]


def test_samples_hold_what_metrics_need(done):
    for result in load_results(done / "results"):
        lines = read_samples(result.file.with_name(result.samples))
        assert len(lines) == 12 and all(s.gold_loglik < 0 for s in lines)
        assert (lines[0].choice_logprobs is None) == (result.dataset == "trivia_qa")


def test_plan_survives_the_store(done):
    for entry in (done / "cache").glob("*/plan.json"):
        plan = read_plan(entry.parent)
        assert len(plan.layers) == 56 and plan_digest(plan) == plan_digest(read_plan(entry.parent))
    assert any((p.parent / "keep.safetensors").exists() for p in (done / "cache").glob("*/plan.json"))


def test_a_plan_stored_before_there_were_forms_is_the_same_plan(done, tmp_path):
    """A cache outlives the version that wrote it; nothing may be computed twice for a field that was not there yet."""
    entry = next((done / "cache").glob("*/plan.json")).parent
    shutil.copytree(entry, tmp_path / "old")
    plain = json.loads((tmp_path / "old" / "plan.json").read_text())
    for layer in plain["layers"].values():
        del layer["form"], layer["ordered"]
    (tmp_path / "old" / "plan.json").write_text(json.dumps(plain))
    assert plan_digest(read_plan(tmp_path / "old")) == plan_digest(read_plan(entry))


def keys(tiny: Path, root: Path, method_name="TAQoS", **changes) -> dict[str, str]:
    """Every digest of a cell under a changed grid."""
    base = dict(models=(str(tiny),), methods=(method_name,), datasets=("mmlu_pro",), calib_size=6, eval_size=12,
                device="cpu", threads=1,
                cache_dir=str(root / "cache"), results_dir=str(root / "results"), avg_bits=(4.75,))
    case = case_of(method_name, **(base | changes))
    return {"cell": cell_key(case), "scores": scores_key(case)[0], "plan": plan_key(case)[0],
            "samples": samples_key(case, "p")[0]}


SCORED, PLANNED, ASKED = {"cell", "scores", "plan"}, {"cell", "plan"}, {"cell", "samples"}
AUTO = pick_dtype("auto", torch.device("cpu"))  # bf16 where the machine computes in it
CHANGES = {  # field of the grid -> another value, and exactly which digests of the TAQoS cell it moves
    "seeds": ((1,), SCORED), "kl_docs": (3, SCORED), "published": (True, SCORED), "levels": ((2, 4, 8), PLANNED),
    "group_size": (16, PLANNED),
    "avg_bits": ((5.0,), PLANNED), "tolerance": (0.02, PLANNED), "scoring": ("letter", ASKED),
    "num_fewshot": (1, ASKED), "batch_size": (2, ASKED),
    "batch_tokens": (500, SCORED | ASKED), "max_length": (40, SCORED | ASKED), "calib_size": (5, SCORED | ASKED),
    "split_seed": (1, SCORED | ASKED),
    "eval_size": (10, ASKED), "part": ("dev", ASKED), "threads": (2, SCORED | ASKED),
    "dtype": ("bf16" if AUTO == torch.float32 else "fp32", SCORED | ASKED),
    "score_docs": (3, set()), "oracle_docs": (3, set()), "oracle_metric": ("loglik", set()),
    "max_new_tokens": (9, set()), "eval_only": (True, set()),
    "results_dir": ("elsewhere", set()), "run_type": (None, None), "device": ("auto", set()),
    # devices of another kind: tests/harness/test_devices.py; an offload: tests/harness/test_offload.py
    "offload": ("disk", set()),
    "grad_device": ("cpu", set()), "eval_device": ("cpu", set()),
    # what only solvers and gradients read moves nothing here (tests/harness/test_all_methods.py has the rows that read
    # it)
    "calib_tokens": (100, set()), "loss_mask": ("answer", set()), "quantizer": ("gptq", ASKED),
    "score_prompts": ("asked", SCORED),
    "calib_window": (100, set()), "grad_dtype": ("bf16", set()), "corrupt": ("rtn", set()),
    "keep_ratio": ((0.01,), set()), "dynamic_heads": ((3,), set()),
    "act_bits": ((4,), ASKED), "act_keep": ((0.5,), set()), "kv_bits": ((8,), ASKED),
    "transform": (("smooth",), SCORED | ASKED),
    "calib": (None, None), "ppl_window": (64, set()),
    "circuit_docs": (3, set()), "ablation": ("zero", set()), "baseline": ("pad", set()), "ig_steps": (3, set()),
    "lig_docs": (2, set()), "calib_dataset": ("trivia_qa", {"cell", "scores", "plan"}),
    "lm_eval_path": (".", set()), "lm_eval_max_length": (64, set()),  # of lm_eval:NAME data sets alone
    # axes of the grid, and fields that a tiny model or the embedded data cannot vary
    "models": (None, None), "methods": (None, None), "datasets": (None, None), "data_source": (None, None),
    "data_dir": (None, None), "chat_template": (None, None), "cache_dir": (None, None)}


def test_identity_changes_with_what_counts_and_with_nothing_else(done, tiny_folder):
    known = {f.name for f in fields(Grid)} - {"settings"} | {setting.name for setting in SETTINGS if setting.flag}
    assert set(CHANGES) == known, "a new field or setting needs a line in CHANGES"
    base = keys(tiny_folder, done)
    assert keys(tiny_folder, done) == base
    for name, (value, which) in CHANGES.items():
        if value is None or (name == "device" and pick_device("auto").type != "cpu"):
            continue
        found = keys(tiny_folder, done, **{name: value})
        assert {k for k in base if found[k] != base[k]} == which, name


def test_an_oracle_is_keyed_by_its_labels_and_others_are_not(done, tiny_folder):
    def key(name: str, **labels) -> str:
        case = case_of(name, models=(str(tiny_folder),), methods=(name,), datasets=("mmlu_pro",), calib_size=6,
                       eval_size=12, device="cpu", threads=1, cache_dir=str(done / "cache"))
        vars(case.data).update(labels)
        return scores_key(case)[0]

    assert key("TAQO-oracle") != key("TAQO-oracle", labels_digest="another gold")
    assert key("TAQO") == key("TAQO", labels_digest="another gold")


def test_golden_keys():
    """What a scores, plan and samples key is made of; a change here makes every stored result another one, so say why.
    """
    grid = build_grid("demo", methods=tuple(GOLDEN_KEYS), datasets=("mmlu_pro",), avg_bits=(4.25,), calib_tokens=8192,
                      score_docs=256)
    grid = replace(grid, methods=tuple(GOLDEN_KEYS))
    model = SimpleNamespace(ref=ModelRef("m", "r", "bfloat16"), machine="cpu:TEST/1t", eval_machine="cpu:TEST/1t",
                            grad_machine="cpu:TEST/1t", shapes={"a": (96, 96)}, weights=96 * 96)
    data = SimpleNamespace(task=SimpleNamespace(general_text=None), labels_digest="labels", eval_digest="eval",
                           cfg=EvalConfig("letter"),
                           solver_calib=lambda *_, **__: SimpleNamespace(loss_mask=(np.ones(3, bool),)))
    cases = Cases(grid, None, {grid.models[0]: model}, None)
    cases._data[grid.models[0], "mmlu_pro"] = data
    keys = {}
    for case in cases:
        vars(case).update(prompts_digest="calib", solver_calib_digest="solver calib", group_size=96)
        solved = weights_key(case, "plan")[0] if reads_data(case.method) else None
        keys[case.method.name.partition("@")[0]] = [scores_key(case)[0] if case.method.scorer else None,
                                                    plan_key(case)[0], solved,
                                                    samples_key(case, "plan")[0], cell_key(case)]
    assert keys == GOLDEN_KEYS


# scores, plan, weights, samples, cell; made by the version before stages took a Case, but for the plans and cells of
# topk_keep and global_topk, which are version 2 since equal scores are spread over the model, and of all rows that
# round to nearest or weigh its errors, version 2 since kept weights stretch no range; SPQR and SliM-LLM score anew;
# scores, weights and samples are version 2 since batches are cut by what padding and further passes cost
GOLDEN_KEYS = {
    "uniform": [None, "b6ca7fef7faf5668", "912c57a1a3bc0a44", "a27d308eb3bb7cd8", "cf3eaaab181a549b"],
    "TAQ": ["bc957f089c533a88", "70362dcfea8d58b9", "912c57a1a3bc0a44", "a27d308eb3bb7cd8", "11520e789e7f564c"],
    "TAQ-native": ["bc957f089c533a88", "d65e93dab0ac1b18", None, "a2655e23031cf3f5", "f302aefc40eaa747"],
    "TAQO-oracle": ["614cb42824009951", "584c0ace8106f43e", "912c57a1a3bc0a44", "a27d308eb3bb7cd8", "cd473549414291f0"],
    "TAQoS": ["6f82bc790cf7eef3", "220252b8f665d55d", "912c57a1a3bc0a44", "a27d308eb3bb7cd8", "a71d2e84895cfda3"],
    "TaCQ": ["eaba41b531fa98fc", "e7f6a7dabb6d9648", "912c57a1a3bc0a44", "a27d308eb3bb7cd8", "959c22a7769cc452"],
    "TaCQ-native": ["81ca0a4e4db59477", "192b61dd110f83e6", "476ef97f107bbcea", "af1ce2f4f9384ac1", "b39aede5b4444349"],
    "SPQR": ["30b31e0f08d23a34", "c6c64ec1f2d209da", "912c57a1a3bc0a44", "a27d308eb3bb7cd8", "ba190d9f91a909fb"],
    "SliM-LLM": ["dd3447519aa250df", "7e2bd592d899946f", "912c57a1a3bc0a44", "a27d308eb3bb7cd8", "f3b5a303f202c6ac"],
    "SqueezeLLM-native": [None, "9060af3248045a8b", "f35311f4cbd73724", "81d8356648236017", "ae4b69003c937d85"],
    "GPTQ-native": [None, "8e8eed0e64403460", "476ef97f107bbcea", "af1ce2f4f9384ac1", "74b482809489a3e6"],
    "random": ["ace4c371ada8e624", "d397d43dae90df0e", "912c57a1a3bc0a44", "a27d308eb3bb7cd8", "9f48136079c28fe4"],
    "bnb-nf4": [None, "5dd9656f8e70eba5", None, "042d03bae1ac42e9", "51e4cc7c264a2dff"],
}


def test_the_folders_name_does_not_count(done, tiny_folder, tmp_path):
    """The same weights in a folder of another name are the same model: nothing is computed again."""
    twin = tmp_path / "another-name"
    shutil.copytree(tiny_folder, twin)
    assert keys(twin, done) == keys(tiny_folder, done)


@pytest.mark.parametrize("metric", ("task", "loglik"))
def test_the_oracle_runs_on_the_tasks_own_metric(tiny_folder, tmp_path, metric):
    """Labelled calibration documents, the harness's engine, one block at a time; weights as loaded afterwards."""
    assert run(tiny_folder, tmp_path, "--method", "TAQO-oracle", "TAQO-oracle-native", "--oracle_metric", metric,
               "--oracle_docs", "4") == 0
    for result in load_results(tmp_path / "results"):
        if result.method.name.startswith("TAQO-oracle"):
            notes = result.score_notes
            assert len(notes["drops"]) == 8 and min(notes["drops"]) >= 0 and notes["zero"] <= 8
            assert (notes["full"] < 0) == (metric == "loglik")


def test_two_models_make_two_tables(tiny_folder, tmp_path):
    from report.tables.tables import tables
    from tests.tiny import save_tiny

    other = save_tiny(tmp_path / "tiny-other", seed=1)
    assert run(tiny_folder, tmp_path, "--model", str(tiny_folder), str(other), datasets=("mmlu_pro",)) == 0
    titles = [t.title for t in tables(tmp_path / "results")]
    assert len(titles) == 2 and {t.split(" ")[0] for t in titles} == {"tiny-llama", "tiny-other"}


def test_a_failed_rerun_does_not_destroy_a_good_result(tiny_folder, tmp_path):
    assert run(tiny_folder, tmp_path, datasets=("mmlu_pro",)) == 0
    before = files(tmp_path / "results", "tiny*")
    shutil.rmtree(tmp_path / "cache")
    assert run(tiny_folder, tmp_path, "--eval_only", datasets=("mmlu_pro",)) == 1
    assert before and files(tmp_path / "results", "tiny*") == before


def test_scores_do_not_depend_on_the_budget(done, tiny_folder):
    """A new budget costs no new scores."""
    before = set((done / "cache").glob("*/scores.json"))
    assert run(tiny_folder, done, "--method", "TAQ", "TAQoS", "--avg_bits", "5.5") == 0
    assert set((done / "cache").glob("*/scores.json")) == before


def test_the_token_is_never_written(tiny_folder, tmp_path):
    env = os.environ | {"PYTHONPATH": str(REPO)}
    secret = "hf_neverwritethisdown"
    command = [sys.executable, "run_taq_icml.py", "--model", str(tiny_folder), "--dataset", "mmlu_pro", "--eval_size",
               "4", "--calib_size", "2", "--quantizer", "rtn",
               "--avg_bits", "4.75", "--threads", "1", "--cache_dir", str(tmp_path / "c"), "--results_dir",
               str(tmp_path / "r"), "--hf_token", secret]
    ran = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert secret not in ran.stdout + ran.stderr
    everything = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert everything and not any(secret.encode() in p.read_bytes() for p in everything)
