"""Every method of the registry through the real command on a tiny model, and its bits counted again from packed arrays.
"""

from pathlib import Path

import pytest

import harness.stages.gradients
import harness.stages.samples
from core.registry import METHODS, QUANTIZERS
from harness.cli.main import main
from harness.stages.gradients import gradients
from harness.stages.library import bought
from harness.stages.options import quantizer_options, reads_data
from harness.stages.plan import plan, plan_key
from harness.stages.samples import samples_key
from harness.stages.scores import scores_key
from harness.stages.weights import weights_key
from quantization.packing.forms import packed, packed_alone
from report.records import load_results
from report.tables.tables import tables
from tests.harness.bench import case_of, cases_of

NAMES = tuple(name for name in METHODS if not name.startswith("TAQO-oracle"))
FLAGS = dict(run_type="demo", methods=NAMES, datasets=("mmlu_pro",), eval_size=8, calib_size=40, calib_tokens=2000,
             avg_bits=(3.75,),
             quantizer="gptq", device="cpu", threads=1, batch_tokens=600, seeds=(0,), keep_ratio=(0.01, 0.02))


def flags(**changes) -> list[str]:
    out = []
    for name, value in (FLAGS | changes).items():
        name = {"methods": "method", "datasets": "dataset", "models": "model"}.get(name, name)
        out += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return out


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
    """The grid of every method, run once."""
    root = tmp_path_factory.mktemp("all")
    where = dict(models=(str(tiny_folder),), cache_dir=str(root / "cache"), results_dir=str(root / "results"))
    assert main(flags(**where)) == 0
    return where


@pytest.fixture(scope="module")
def cases(done):
    return cases_of(**(FLAGS | done))


def test_every_method_has_a_result_within_its_budget(done):
    results = load_results(Path(done["results_dir"]))
    assert {r.method.name.partition("@")[0] for r in results} == {*NAMES} and all(r.ok for r in results)
    for result in results:
        spec = result.method
        if not spec.native and spec.quantizer:
            assert 3.74 < result.bits.average <= 3.75, spec.name
    names = {r.method.name for r in results}
    assert {"TaCQ-native@0.01", "TaCQ-native@0.02"} <= names


def test_printed_bits_are_those_of_the_packed_arrays(done, cases):
    """Quantize again, pack, count bytes: the table's number to the bit, for every row."""
    results = {r.method.name: r for r in load_results(Path(done["results_dir"]))}
    for case in cases:
        spec, model = case.method, case.model
        if spec.quantizer is None:
            continue
        planned = plan(case).plan
        layers = planned.layers
        stored: dict[str, int] = {}

        def count(fqn, arrays, stored=stored):
            assert all(a.dtype == "uint8" for a in arrays.values())
            stored[fqn] = 8 * sum(a.nbytes for a in arrays.values())

        if reads_data(spec):
            needs = QUANTIZERS.get(spec.quantizer).needs
            found = model.originals.solve(
                layers, spec.quantizer, model=model.module, blocks=model.blocks, block_of=model.block_of,
                calib=case.solver_calib,
                options=quantizer_options(case, spec.quantizer),
                fisher=gradients(case, "square") if "fisher" in needs else None,
                library=bought(case, planned.notes["forms"]) if "library" in needs else None,
                see=lambda fqn, s: count(fqn, packed(s, model.originals.weights[fqn])))
            whole = {fqn for fqn, s in found.items() if s.layer.bits == 16}  # left as loaded, so no solver saw them
            stored |= {fqn: 16 * model.shapes[fqn][0] * model.shapes[fqn][1] for fqn in whole}
        else:
            for fqn, layer in layers.items():
                count(fqn, packed_alone(model.originals.weights[fqn], layer, spec.quantizer))
        assert set(stored) == set(model.shapes)
        assert sum(stored.values()) == results[spec.name].bits.stored, spec.name
        assert sum(stored.values()) / model.weights == pytest.approx(results[spec.name].bits.average, abs=1e-12)


def test_one_scoring_serves_several_ratios_and_one_backward_pass_every_kind(tiny_folder, tmp_path, monkeypatch):
    passes, real = [], harness.stages.gradients.gradient_sums
    monkeypatch.setattr(harness.stages.gradients, "gradient_sums", lambda *a, **k: passes.append(a[3]) or real(*a, **k))
    where = dict(models=(str(tiny_folder),), cache_dir=str(tmp_path / "cache"), results_dir=str(tmp_path / "results"))
    some = ("TaCQ-native", "TaCQ", "SqueezeLLM", "SqueezeLLM-native")
    assert main(flags(**where, methods=some, keep_ratio=(0.002, 0.0035, 0.005))) == 0
    assert passes == [("abs", "square")]
    kept = [r.bits.notes["kept"] for r in load_results(tmp_path / "results")
            if r.method.name.startswith("TaCQ-native@")]
    weights = cases_of(**(FLAGS | where))[0].model.weights
    assert sorted(kept) == [int(r * weights) for r in (0.002, 0.0035, 0.005)]
    # random, SqueezeLLM, TaCQ common, TaCQ native (another base)
    assert len(list((tmp_path / "cache").glob("*/scores.json"))) == 4


def test_general_text_gives_every_data_set_the_same_weights(tiny_folder, tmp_path):
    """--calib c4: one solving a row, whatever data sets it is asked about; a seed draws other windows."""
    text = tmp_path / "data" / "c4"
    text.mkdir(parents=True)
    import json
    told = (f"Document {i} tells of {i * 37} ships and the harbour of town {i}. " * 6 for i in range(60))
    (text / "train.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in told))
    embedded = Path(__file__).resolve().parents[2] / "datasets_local" / "embedded"
    for name, where in (("trivia_qa", "trivia_qa/rc.nocontext/validation"), ("mmlu_pro", "mmlu_pro/test")):
        target = tmp_path / "data" / f"{where}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(next(embedded.glob(f"{name}*.jsonl")).read_bytes())
    root = dict(models=(str(tiny_folder),), cache_dir=str(tmp_path / "cache"), results_dir=str(tmp_path / "results"))
    given = flags(**root, methods=("TaCQ",), datasets=("trivia_qa", "mmlu_pro"), seeds=(0, 1), calib="c4",
                  calib_window=64, data_dir=str(tmp_path / "data"), max_new_tokens=3)
    assert main(given) == 0
    cells = [r for r in load_results(tmp_path / "results") if r.method.name == "TaCQ"]
    found = {(r.dataset, r.seed): r.stages["weights"] for r in cells}
    assert found["trivia_qa", 0] == found["mmlu_pro", 0] != found["mmlu_pro", 1] == found["trivia_qa", 1]


def digests(done, name: str, **changes) -> dict[str, str]:
    """Scores, weights and samples of one method's first cell under a changed grid."""
    case = case_of(name, **(FLAGS | done | {"methods": (name,), "keep_ratio": (0.01,)} | changes))
    return {"scores": scores_key(case)[0] if case.method.scorer else "", "plan": plan_key(case)[0],
            "weights": weights_key(case, "plan")[0], "samples": samples_key(case, "plan")[0]}


EVERY, SOLVED = {"scores", "plan", "weights", "samples"}, {"weights", "samples"}
MOVES = {  # method -> field -> (another value, exactly which digests it moves)
    "TaCQ": {"grad_dtype": ("bf16", {"scores", "plan"}), "loss_mask": ("answer", {"scores", "plan"}),
             "corrupt": ("rtn", {"scores", "plan"}),
             "seeds": ((7,), EVERY), "calib_tokens": (900, EVERY), "avg_bits": ((3.76,), {"plan"}),
             "published": (True, {"scores", "plan"})},
    "TaCQ-native": {"avg_bits": ((3.9,), set()), "keep_ratio": ((0.02,), {"plan"}),
                    "corrupt": ("rtn", {"scores", "plan"})},
    "SqueezeLLM-native": {"grad_dtype": ("bf16", SOLVED), "avg_bits": ((4.5,), {"plan"}), "seeds": ((7,), SOLVED)},
    "GPTQ-native": {"avg_bits": ((3.9,), set()), "seeds": ((7,), SOLVED), "published": (True, SOLVED),
                    "grad_dtype": ("bf16", set())},
    "SPQR": {"corrupt": ("rtn", set()), "loss_mask": ("answer", set()), "calib_tokens": (900, EVERY),
             "avg_bits": ((4.75,), {"scores", "plan"})},
    "SliM-LLM": {"avg_bits": ((4.75,), {"plan"}), "corrupt": ("rtn", set()), "seeds": ((7,), EVERY)},
    "SPQR-budget-native": {"avg_bits": ((3.9,), SOLVED)},
}


@pytest.mark.parametrize("name", MOVES)
def test_identity_holds_exactly_what_a_stage_reads(name, done):
    base = digests(done, name)
    for field, (value, which) in MOVES[name].items():
        found = digests(done, name, **{field: value})
        assert {k for k in base if found[k] != base[k]} == which, field


def test_base_level_and_not_the_budget_keys_tacq(done):
    """3.75 and 3.60 bits stand on the same 3-bit base, 4.75 on another: gradients are never computed again, the
    comparison only then.
    """
    scores = {bits: digests(done, "TaCQ", avg_bits=(bits,))["scores"] for bits in (3.60, 3.75, 4.75)}
    assert scores[3.60] == scores[3.75] != scores[4.75]


@pytest.mark.slow
@pytest.mark.parametrize("given", (dict(grad_dtype="bf16"), dict(grad_dtype="fp16"), dict(loss_mask="answer"),
                                   dict(corrupt="rtn"), dict(published=True)))
def test_the_switches_run(given, tiny_folder, tmp_path):
    where = dict(models=(str(tiny_folder),), cache_dir=str(tmp_path / "cache"), results_dir=str(tmp_path / "results"))
    names = ("TaCQ", "SqueezeLLM-native", *(("TaCQ-native", "SPQR-native") if "published" in given else ()))
    line = flags(**where, methods=names, keep_ratio=(0.01,), **{k: v for k, v in given.items() if k != "published"})
    assert main(line + (["--published"] if "published" in given else [])) == 0
    assert all(r.ok for r in load_results(tmp_path / "results"))


def where_of(tiny_folder, root: Path) -> dict:
    return dict(models=(str(tiny_folder),), cache_dir=str(root / "cache"), results_dir=str(root / "results"))


def contents(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((root / "results").glob("*.jsonl"))}


@pytest.mark.slow
def test_a_solved_row_killed_between_batches_goes_on_to_the_same_bytes(tiny_folder, tmp_path, monkeypatch):
    """ŵ is solved again from the same documents, so the batches that were missing come out the same."""
    some = dict(methods=("TaCQ", "SliM-LLM-native"), batch_tokens=200, keep_ratio=(0.01,))
    assert main(flags(**where_of(tiny_folder, tmp_path / "whole"), **some)) == 0
    real, calls = harness.stages.samples.run_batch, []

    def stop_later(*args, **kwargs):
        calls.append(1)
        if len(calls) in (9, 22):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(harness.stages.samples, "run_batch", stop_later)
    line = flags(**where_of(tiny_folder, tmp_path / "killed"), **some)
    assert main(line) == 130 and main(line) == 130 and main(line) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") and len(contents(tmp_path / "whole")) == 5


def test_a_finished_solved_grid_loads_no_model_and_eval_only_says_what_is_missing(tiny_folder, tmp_path, monkeypatch,
                                                                                  capsys):
    import harness.stages.model

    some = dict(methods=("TaCQ-native", "SPQR-native"), keep_ratio=(0.01,))
    assert main(flags(**where_of(tiny_folder, tmp_path), **some)) == 0
    before = contents(tmp_path)
    monkeypatch.setattr(harness.stages.model, "load_model", lambda *a: pytest.fail("the model was loaded"))
    assert main(flags(**where_of(tiny_folder, tmp_path), **some)) == 0 and contents(tmp_path) == before
    monkeypatch.undo()
    fresh = where_of(tiny_folder, tmp_path / "fresh")
    assert main([*flags(**fresh, **some), "--eval_only"]) == 1
    assert "--eval_only" in capsys.readouterr().err


def test_out_of_memory_in_a_solver_is_not_mended_by_smaller_questions(tiny_folder, tmp_path, monkeypatch):
    calls = []

    def full(*args, **kwargs):
        calls.append(1)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    from quantization.apply import Originals
    monkeypatch.setattr(Originals, "solve", full)
    assert main(flags(**where_of(tiny_folder, tmp_path), methods=("GPTQ-native",))) == 1
    failed = [r for r in load_results(tmp_path / "results") if r.method.name == "GPTQ-native"]
    assert "lower --calib_tokens" in failed[0].error and len(calls) == 3  # uniform, random, GPTQ-native: once each
    assert not list((tmp_path / "cache").glob("*/batch_tokens.json"))


def test_other_settings_and_ratios_make_rows_of_their_own(tiny_folder, tmp_path):
    """A second run under another setting neither steals fp16 from the first table nor is averaged with its rows."""
    from report.tables.tables import tables
    from report.text.sheets import overview

    where = where_of(tiny_folder, tmp_path)
    for ratio, mask in ((0.01, "all"), (0.05, "all"), (0.01, "answer")):
        assert main(flags(**where, methods=("TaCQ-native",), keep_ratio=(ratio,), loss_mask=mask)) == 0
    found = tables(tmp_path / "results")
    assert len(found) == 2
    for table in found:
        names = overview(table)["method"].tolist()
        assert names.count("fp16") == 1 and "TaCQ-native@0.01" in names
        assert table.frame["d_loglik"].notna().sum() == len(table.frame) - 1
    assert sorted(len(t.frame) for t in found) == [4, 5]


def test_seeds_that_read_the_same_documents_are_told(tiny_folder, tmp_path, capsys):
    assert main(flags(**where_of(tiny_folder, tmp_path), methods=("GPTQ-native",), seeds=(0, 1),
                      calib_tokens=60000)) == 0
    printed = capsys.readouterr()
    assert "every seed reads the same" in printed.err
    assert "all seeds read the same ones" in " ".join(printed.out.split())
    assert all(r.solver_calibration["whole_pool"] for r in load_results(tmp_path / "results") if r.method.name
               == "uniform")


@pytest.mark.parametrize("name", ("magnitude+flat+gptq", "TaCQ+global_topk", "SPQR+topk_keep+rtn", "SliM-LLM+balanced"))
def test_combinations_take_their_options_from_the_grid(name, tiny_folder, tmp_path):
    assert main(flags(**where_of(tiny_folder, tmp_path), methods=(name,), keep_ratio=(0.01,))) == 0


@pytest.mark.slow
def test_high_budgets_keep_native_rows_within_their_bits(tiny_folder, tmp_path):
    names = ("GPTQ-native", "SliM-LLM-native", "SPQR-native", "SqueezeLLM-native", "TaCQ-native", "SPQR-budget-native")
    assert main(flags(**where_of(tiny_folder, tmp_path), methods=names, avg_bits=(9.5,), keep_ratio=(0.01,))) == 0
    bits = {r.method.name: r.method.options["bits"] for r in load_results(tmp_path / "results") if r.method.native}
    assert bits["GPTQ-native"] == 8 and bits["SliM-LLM-native"] == 7


def test_the_printed_minimum_can_be_asked_for(tiny_folder, tmp_path, capsys):
    """From the achievable minimum on: every linear at the lowest level, nothing left for kept weights."""
    import re

    where = where_of(tiny_folder, tmp_path)
    assert main([*flags(**where, methods=("TaCQ", "SliM-LLM", "GPTQ-native")), "--dry_run"]) == 0
    least = re.search(r"stored bits a weight can be ([0-9.]+) to", capsys.readouterr().err)[1]
    assert main(flags(**where, methods=("TaCQ", "SliM-LLM", "GPTQ-native"), avg_bits=(float(least),))) == 0
    for result in load_results(tmp_path / "results"):
        if not result.method.native and result.method.quantizer:
            assert float(least) - 0.01 < result.bits.average <= float(least)


def test_published_forms_filled_to_the_budget_are_ranked(tiny_folder, tmp_path):
    """They store the budget, so they are tested against uniform and ranked with the common rows."""
    names = ("TaCQ-budget-native", "GPTQ-budget-native", "SqueezeLLM-budget-native", "SliM-LLM-budget-native")
    where = where_of(tiny_folder, tmp_path) | {"tolerance": 0.25}
    assert main(flags(**where, methods=names, avg_bits=(6.5,))) == 0
    found = {r.name: r for r in load_results(tmp_path / "results") if r.method.native}
    assert set(found) == set(names)
    assert all(6.2 < r.bits.average <= 6.5 for r in found.values()), {n: r.bits.average for n, r in found.items()}
    table = tables(tmp_path / "results")[0]
    assert {row["method"] for row in table.rows if row["budgeted"]} >= set(names)
