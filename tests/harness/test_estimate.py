"""What a cell needs, said before the grid starts: memory by parts, the limits that hold it, and seconds that are
counted once.
"""

import copy
import shutil
from dataclasses import fields, replace
from io import StringIO
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import harness.forecast.limits
import harness.forecast.probe
import harness.stages.model
from core.architecture import find_blocks
from core.errors import UserError
from core.model import empty_model
from core.registry import SCORERS
from core.types import LayerPlan, ModelRef
from harness.cli.main import main
from harness.forecast.disk import SMALL as REST
from harness.forecast.disk import disk_bytes
from harness.forecast.dry_run import dry_run, peaks
from harness.forecast.limits import DEVICE, HOST, cgroup_limit, check_fits, cpu_limit, limits, mend
from harness.forecast.memory import Parts, backward_bytes, batch_bytes, forward_bytes, memory
from harness.forecast.preflight import preflight
from harness.forecast.probe import Probe, one_block
from harness.forecast.sizes import asked, prompt_batches
from harness.forecast.time import Costs
from harness.stages.base_quantized import base_quantized_key
from harness.stages.case import Cases
from harness.stages.gradients import gradients_key
from harness.stages.scores import scores_key
from report.records import load_results
from tests.harness.bench import cases_of
from tests.tiny import CONFIGS

SMALL = dict(datasets=("mmlu_pro",), eval_size=12, calib_size=6, avg_bits=(4.75,), device="cpu", threads=1,
             max_new_tokens=4, batch_tokens=600, calib_tokens=400, quantizer="rtn")
# what a probe would say, made up
TIMES = {"token": 1e-3, "step": 1e-2, "head": 1e-4, "backward": 1.0, "solve": 1e-6, "flops": 1e12, "byte": 1e-6}


def opened(tiny: Path, root: Path, **changes) -> Cases:
    """The cells of a small grid."""
    names = dict(models=(str(tiny),), cache_dir=str(root / "cache"), results_dir=str(root / "results"))
    return cases_of(**names | SMALL | changes)


def stages(tiny: Path, root: Path, method: str, **changes) -> dict[str, Parts]:
    """The stages of a method's cell by name."""
    cases = opened(tiny, root, **{"methods": (method,)} | changes)
    return {stage.name: stage for case in cases if case.method.name == method for stage in memory(case)}


def flags(tiny: Path, root: Path, *more: str) -> list[str]:
    """SMALL as a command line."""
    named = [[f"--{'dataset' if k == 'datasets' else k}", *map(str, v if isinstance(v, tuple) else (v,))]
             for k, v in SMALL.items()]
    where = ["--cache_dir", str(root / "cache"), "--results_dir", str(root / "results")]
    return ["--run_type", "demo", "--model", str(tiny), *chain(*named), *where, *more]


def test_parts_add_up(tiny_folder, tmp_path):
    cases = opened(tiny_folder, tmp_path, methods=("TAQoS", "TaCQ", "SPQR", "SqueezeLLM-native", "GPTQ-native"))
    found = [stage for case in cases for stage in memory(case)]
    numbers = [f.name for f in fields(Parts) if f.name != "name"]
    assert {stage.name for stage in found} == {"weights are loaded", "prompts are scored", "gradients are taken",
                                               "linears are solved", "kept weights are chosen", "questions are asked"}
    assert set(HOST + DEVICE) == set(numbers) and not set(HOST) & set(DEVICE)
    for stage in found:
        assert stage.total == sum(getattr(stage, name) for name in numbers)
        assert stage.device == sum(getattr(stage, name) for name in DEVICE)
        assert stage.host == sum(getattr(stage, name) for name in HOST)


def test_weights_and_scores_are_the_bytes_that_they_are(tiny_folder, tmp_path):
    """float32 weights once and the linears once more; a sum of gradients 4 bytes a weight; masks 1 byte a weight."""
    found = stages(tiny_folder, tmp_path, "TaCQ", dtype="fp32")
    model = empty_model(str(tiny_folder), ModelRef(str(tiny_folder), "x", "float32"))
    linears = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2)
    asking = found["questions are asked"]
    assert asking.weights == 4 * sum(p.numel() for p in model.parameters())
    assert (asking.originals, asking.scores) == (4 * linears, linears)
    # the sums, and the quantized model to compare with
    assert found["gradients are taken"].scores == 4 * linears + 4 * linears
    # masks, one linear's scores with what they are made of, and 60 bytes for each weight that 4.75 − 4.625 bits have
    # room for at 16
    case = next(case for case in opened(tiny_folder, tmp_path, methods=("TaCQ",)) if case.method.name == "TaCQ")
    largest = max(rows * columns for rows, columns in case.model.shapes.values())
    assert case.budget.group_size == 32
    assert found["kept weights are chosen"].scores == linears + 60 * (linears // 8 // 16) + 8 * largest


@pytest.mark.parametrize("stage, moved, before, after", [
    ("questions are asked", {"activations"}, {}, {"batch_tokens": 1200}),
    ("gradients are taken", {"scores"}, {}, {"methods": ("TaCQ", "SqueezeLLM")}),
    ("gradients are taken", {"weights", "activations"}, {"dtype": "bf16", "grad_dtype": "bf16"},
     {"dtype": "bf16", "grad_dtype": "fp32"}),
    ("gradients are taken", {"activations"}, {"max_length": 64}, {"max_length": 128}),
    ("linears are solved", {"solver", "activations"}, {"calib_tokens": 200}, {"calib_tokens": 400}),
    ("kept weights are chosen", {"weights", "originals"}, {"dtype": "bf16"}, {"dtype": "fp32"}),
])
def test_each_part_grows_with_what_it_depends_on_and_with_nothing_else(tiny_folder, tmp_path, stage, moved, before,
                                                                       after):
    one, two = (stages(tiny_folder, tmp_path, "TaCQ", **changes)[stage] for changes in (before, after))
    differ = {f.name for f in fields(Parts) if f.name != "name" and getattr(one, f.name) != getattr(two, f.name)}
    assert differ == moved
    assert all(getattr(two, name) > getattr(one, name) for name in moved)


def test_noise_on_every_block_keeps_every_block(tiny_folder, tmp_path):
    """TAQoS holds a prompt's hidden states disturbed at every block, TAQ only the current block's."""
    taq, taqos = (stages(tiny_folder, tmp_path, name)["prompts are scored"] for name in ("TAQ", "TAQoS"))
    case = opened(tiny_folder, tmp_path)[0]
    longest = max(width for _, width in prompt_batches(case, SCORERS.get("TAQoS")))
    size = case.model.sizes.itemsize
    # nine rows of the longest prompt, as many at once as a batch has tokens: what enters a block and what it gives
    together = max(taq.activations, forward_bytes(case.model.sizes, case.grid.batch_tokens, size))
    assert longest < case.grid.batch_tokens < 9 * longest
    assert taqos.activations == together + 2 * 9 * longest * 32 * size
    assert replace(taqos, activations=taq.activations) == taq


def test_logits_are_counted_where_they_are_read(tiny_folder, tmp_path):
    case = opened(tiny_folder, tmp_path)[0]
    small, batch = case.model.sizes, asked(case.data)[0]
    large = copy.copy(small)
    large.vocabulary = 1000 * small.vocabulary
    rows = batch.rows * (large.vocabulary - small.vocabulary)
    # float32 logits and log-probabilities of each context's end
    assert batch_bytes(large, batch) - batch_bytes(small, batch) >= rows * 4 * 2
    more = 2 * 4 * 50 * (large.vocabulary - small.vocabulary)
    assert backward_bytes(large, 50, 4) > backward_bytes(small, 50, 4) + more
    assert forward_bytes(large, 50, 4) == forward_bytes(small, 50, 4)


def test_a_cell_that_cannot_fit_is_refused_with_the_numbers(tiny_folder, tmp_path, monkeypatch, capsys):
    """The machine is one byte too small for TaCQ and large enough for all others."""
    tops = {case.method.name: max(memory(case), key=lambda stage: stage.total)
            for case in opened(tiny_folder, tmp_path, methods=("TaCQ",))}
    assert all(top.total < tops["TaCQ"].total for name, top in tops.items() if name != "TaCQ")
    monkeypatch.setattr(harness.forecast.limits, "cpu_limit",
                        lambda *_: (tops["TaCQ"].total - 1, "the memory of this machine"))
    assert main(flags(tiny_folder, tmp_path, "--method", "TaCQ")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    top = tops["TaCQ"]
    for piece in ("error: TaCQ on mmlu_pro needs about", f"{top.total / 1e9:.2f} GB while {top.name}",
                  f"weights {top.weights / 1e9:.2f}",
                  f"process {top.process / 1e9:.2f}", "the memory of this machine is", "1 of 4 cells cannot fit",
                  "use a smaller model"):
        assert piece in said, said
    assert not (tmp_path / "results").exists()
    assert main(flags(tiny_folder, tmp_path, "--method", "TaCQ", "--dry_run")) == 2
    assert main(flags(tiny_folder, tmp_path, "--method", "TAQ", "--dry_run")) == 0


def test_the_callers_limit_holds(tiny_folder, tmp_path):
    cells = opened(tiny_folder, tmp_path)
    every = f"{len(cells)} of {len(cells)} cells"
    with pytest.raises(UserError, match=rf"fp16 on mmlu_pro .*--mem, .* shared out\) is 0.10 GB, and {every}"):
        check_fits(cells, limit=10**8)
    check_fits(cells, limit=10**12)
    assert cpu_limit(10**8)[0] == 10**8 and cpu_limit(10**18)[0] < 10**18
    assert cpu_limit(None, 4)[0] == cpu_limit()[0] // 4 and "4 workers" in cpu_limit(None, 4)[1]


@pytest.mark.parametrize("stage, grid, said", [
    (Parts("gradients are taken", weights=9, process=0), {"grad_dtype": "fp32"}, "--grad_dtype bf16"),
    (Parts("gradients are taken", weights=9, process=0), {"grad_dtype": "bf16"}, "smaller model"),
    (Parts("gradients are taken", activations=9, process=0), {}, "--max_length"),
    (Parts("questions are asked", activations=9, weights=5, process=0), {}, "--batch_tokens"),
    (Parts("questions are asked", activations=9, process=0), {"batch_size": 4}, "--batch_size"),
    (Parts("kept weights are chosen", scores=9, process=0), {}, "--method"),
    (Parts("linears are solved", solver=9, process=0), {}, "--calib_tokens"),
    (Parts("gradients are taken", scores=9, process=0), {}, "--offload disk, the grid without"),
])
def test_the_mend_fits_the_largest_part(stage, grid, said):
    asked = {"grad_dtype": "fp32", "batch_size": None} | grid
    case = SimpleNamespace(value=asked.get, grid=SimpleNamespace(**asked),
                           model=SimpleNamespace(ref=SimpleNamespace(dtype="bfloat16"), offload="off", offloaded=False))
    assert said in mend(case, stage, harness.forecast.limits.Limit(1, HOST + DEVICE, "x"))


def test_a_gpu_and_the_cpu_are_two_budgets(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80))
    device, host = limits((torch.device("cuda:1"),), limit=70)
    assert (device.bytes, device.parts, device.whose) == (80, DEVICE, "the memory of cuda:1")
    assert (host.bytes, host.parts) == (70, HOST)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    shared, _ = limits((torch.device("cuda:1"),), limit=70, workers=3)  # two of three get the same one
    assert (shared.bytes, shared.whose) == (device.bytes // 2, "the memory of cuda:1, shared by 2 workers")
    assert limits((torch.device("cuda:1"),), limit=70, workers=2)[0] == device
    both, _ = limits((torch.device("cuda:0"), torch.device("cuda:1")), limit=70)
    assert (both.bytes, both.whose) == (160, "the memory of cuda:0 and cuda:1")


def test_a_job_with_a_gpu_is_held_to_what_stays_on_its_cpu(tiny_folder, tmp_path, monkeypatch):
    """--mem between the host's parts and the sum: too little for a CPU job, enough for one whose weights lie on its
    GPU.
    """
    cells = opened(tiny_folder, tmp_path, methods=("TaCQ",))
    found = [stage for case in cells for stage in memory(case)]
    host, whole = max(stage.host for stage in found), max(stage.total for stage in found)
    assert host < whole
    check_fits(cells, limit=host, workers=0, gpus=1)
    with pytest.raises(UserError,
                       match=r"TaCQ on mmlu_pro .*: originals \d.*, scores \d.*, process \d.*a job \(--mem\)") as error:
        check_fits(cells, limit=host - 1, workers=0, gpus=1)
    assert "activations" not in str(error.value) and ": weights" not in str(error.value)
    # without a GPU, and on this machine, whose model says what it has
    for where in (dict(workers=0), dict(workers=1, gpus=1)):
        with pytest.raises(UserError, match="cannot fit"):
            check_fits(cells, limit=host, **where)
    # the job's own estimate of its CPU is the same
    monkeypatch.setattr(cells[0].model, "device", torch.device("cuda:0"))
    assert max(stage.host for case in cells for stage in memory(case)) == host


def test_a_device_is_large_enough_by_a_byte_or_too_small_by_one(tiny_folder, tmp_path, monkeypatch):
    """A made-up GPU: its size is held against the peak of the stage that takes the most of it, and that is printed."""
    cells = opened(tiny_folder, tmp_path, methods=("TaCQ", "TAQoS", "SPQR"), quantizer="gptq")
    model = cells[0].model
    for name, device in (("device", torch.device("cuda:0")), ("eval_device", torch.device("cuda:0")),
                         ("grad_devices", (torch.device("cuda:0"),))):
        monkeypatch.setattr(model, name, device)
    top = max((stage for case in cells for stage in memory(case)), key=lambda stage: stage.device)
    size = SimpleNamespace(total_memory=top.device)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    check_fits(cells)
    size.total_memory -= 1
    with pytest.raises(UserError, match=rf"while {top.name} .*the memory of cuda:0 is .*cells cannot fit"):
        check_fits(cells)
    console = Console(file=StringIO(), width=500)
    console.print(peaks(cells))
    row = next(line for line in console.file.getvalue().splitlines() if top.name in line)
    assert f"{top.device / 1e9:.2f}" in row


def test_weights_are_loaded_to_the_cpu_which_without_a_gpu_copies_the_linears(tiny_folder, tmp_path):
    found = stages(tiny_folder, tmp_path, "fp16", dtype="fp32")
    model = empty_model(str(tiny_folder), ModelRef(str(tiny_folder), "x", "float32"))
    loading = found["weights are loaded"]
    every = sum(p.numel() for p in model.parameters())
    linears = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2)
    assert loading.host - loading.process == 4 * (every + linears) and loading.device == 0
    (case, *_) = opened(tiny_folder, tmp_path, methods=("fp16",), dtype="fp32")
    case.model.device = torch.device("cuda:0")
    assert memory(case)[0].host - loading.process == 4 * every
    assert loading.host > found["questions are asked"].host and loading.total < found["questions are asked"].total


def test_a_job_is_held_to_its_own_cells(tiny_folder, tmp_path, monkeypatch):
    """Neither TaCQ's memory and disk nor a budget out of reach stop the job of fp16; they stop TaCQ's own."""
    cases = opened(tiny_folder, tmp_path, methods=("TaCQ",), avg_bits=(4.75,))
    tops = {case.method.name: max(stage.total for stage in memory(case)) for case in cases}

    def named(cases: Cases, name: str) -> list:
        return [case for case in cases if case.method.name == name]

    said = []
    monkeypatch.setattr(cases.progress, "say", said.append)
    ask = dict(weights=False, limit=tops["TaCQ"] - 1)
    preflight(cases, **ask, only=named(cases, "fp16"))
    assert not any("asked: 4.75" in line or "solvers" in line for line in said)
    with pytest.raises(UserError, match=r"TaCQ on mmlu_pro .* 1 of 1 cells cannot fit"):
        preflight(cases, **ask, only=named(cases, "TaCQ"))
    with pytest.raises(UserError, match=r"TaCQ on mmlu_pro .* 1 of 4 cells cannot fit"):
        preflight(cases, **ask)
    disk = SimpleNamespace(free=disk_bytes(named(cases, "TaCQ")) - 1)
    monkeypatch.setattr("harness.forecast.disk.shutil.disk_usage", lambda root: disk)
    preflight(cases, weights=False, only=named(cases, "fp16"))
    with pytest.raises(UserError, match="GB free"):
        preflight(cases, weights=False, only=named(cases, "TaCQ"))
    far = opened(tiny_folder, tmp_path, methods=("TaCQ",), avg_bits=(1.5,))
    preflight(far, weights=False, only=named(far, "fp16"))
    with pytest.raises(UserError, match=r"--avg_bits 1\.5 cannot be met"):
        preflight(far, weights=False)


BEST = 0.625  # bytes a weight: one in eight with its score in float32, and which they are


# copies of the linears: scores of single weights, float32, in the model's dtype
@pytest.mark.parametrize("names, changes, workers, element, float32, own", [
    (("fp16",), {}, 1, 0, 0, 0),
    (("TAQ",), {"quantizer": "gptq"}, 1, 0, 0, 1),  # solved blocks of the cell in work
    (("TAQ",), {"quantizer": "gptq"}, 2, 0, 0, 2),
    (("TAQ",), {"quantizer": "gptq"}, 99, 0, 0, 3),  # uniform, random and TAQ: no more than there are
    (("TAQ",), {"quantizer": "gptq"}, 0, 0, 0, 1),  # a cluster's jobs ask again
    (("magnitude",), {}, 1, 1, 0, 0),
    (("TaCQ-absgrad",), {}, 1, 1, 1 + 2, 0),  # sums; two snapshots
    (("TaCQ-absgrad", "SqueezeLLM"), {}, 4, 2, 2 + 2 * 2, 0),  # one pass makes both kinds
    (("TaCQ-absgrad",), {"seeds": (1, 2)}, 1, 2, 2 + 2, 0),  # two passes, one at a time
    (("TaCQ-absgrad",), {"seeds": (1, 2)}, 2, 2, 2 + 4, 0),
    (("TaCQ",), {"corrupt": "gptq"}, 1, 1, 1 + 2, 2),  # the quantized model to compare with, and its pieces
    (("TaCQ",), {"corrupt": "rtn"}, 1, 1, 1 + 2, 1),  # made at once, without pieces
])
def test_disk_counts_what_is_stored_and_what_is_in_the_making(tiny_folder, tmp_path, names, changes, workers, element,
                                                              float32, own):
    # five documents a seed, so that two seeds read different ones
    cases = opened(tiny_folder, tmp_path, methods=names, **{"dtype": "bf16", "calib_tokens": 200} | changes)
    assert disk_bytes(cases, workers) == (BEST * element + 4 * float32 + 2 * own) * cases[0].model.weights + REST


def test_disk_does_not_count_what_is_there(tiny_folder, tmp_path):
    """Else a grid that is taken up again would want the room of its scores twice."""
    case = opened(tiny_folder, tmp_path, methods=("TaCQ",), dtype="bf16")[-1]
    for key, left in ((base_quantized_key(case)[0], BEST + 3 * 4), (gradients_key(case, "abs")[0], BEST),
                      (scores_key(case)[0], 0)):  # in the order in which they are made
        case.store.put(key, {"stage": "x"}, {}, lambda folder: None)
        assert disk_bytes([case]) == left * case.model.weights + REST


def cgroup(root: Path, own: str, **values: str) -> int | None:
    """The limit that fake files give; a path's / is written __ ."""
    (root / "own").write_text(own)
    for name, value in values.items():
        place = name.replace("__", "/").replace("max_", "memory.max").replace("v1_", "memory.limit_in_bytes")
        file = root / "fs" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value + "\n")
    return cgroup_limit(root / "own", root / "fs")


def test_cgroup_limits_of_version_2(tmp_path):
    assert cgroup_limit(tmp_path / "none", tmp_path) is None
    assert cgroup(tmp_path, "0::/a/b\n", a__b__max_="max") is None
    assert cgroup(tmp_path, "0::/a/b\n", a__b__max_="8000", a__max_="9000") == 8000
    assert cgroup(tmp_path, "0::/a/b\n", a__max_="7000") == 7000  # a parent holds its children
    assert cgroup(tmp_path, "0::/a/b\n", other__max_="10") == 7000
    # a container sees its own cgroup as the root
    assert cgroup(tmp_path, "0::/not/seen/from/inside\n", max_="6000") == 6000


def test_cgroup_limits_of_version_1(tmp_path):
    own = "12:cpu,cpuacct:/slurm/job_1\n5:memory:/slurm/job_1\n0::/init.scope\n"
    assert cgroup(tmp_path, own, memory__slurm__job_1__v1_="5000", memory__slurm__v1_="9223372036854771712") == 5000
    assert cgroup(tmp_path, own, cpu__slurm__job_1__v1_="1") == 5000


@pytest.fixture
def timed(monkeypatch):
    """Probes that say what TIMES says, whatever they are asked."""
    for name, value in TIMES.items():
        monkeypatch.setattr(Probe, name, lambda self, *_, value=value: value)


def seconds(cases: Cases) -> dict[tuple, float]:
    costs = Costs(cases[0].model)
    return {(case.method.name, case.cell.avg_bits): costs.seconds(case) for case in cases}


def test_shared_work_is_counted_once(tiny_folder, tmp_path, timed):
    """Gradients at the first cell that reads them, whoever that is; scores once for all budgets."""
    both = opened(tiny_folder, tmp_path, methods=("TaCQ-absgrad", "SqueezeLLM"), avg_bits=(4.75, 5.75))
    found, documents = seconds(both), len(both[-1].solver_calib.tokens)
    backward = documents * 8 * TIMES["backward"]  # 8 blocks
    first = found["TaCQ-absgrad", 4.75] - found["TaCQ-absgrad", 5.75]
    assert backward < first < 1.5 * backward  # and the head beside
    assert found["SqueezeLLM", 4.75] == pytest.approx(found["SqueezeLLM", 5.75])
    alone = opened(tiny_folder, tmp_path, methods=("SqueezeLLM",), avg_bits=(4.75, 5.75))
    assert seconds(alone)["SqueezeLLM", 4.75] == pytest.approx(found["TaCQ-absgrad", 4.75])


def test_a_scorer_costs_what_it_declares(tiny_folder, tmp_path, timed):
    cases = opened(tiny_folder, tmp_path, methods=("TAQ", "TAQoS", "TAQO-oracle"), quantizer="rtn")
    found, case = seconds(cases), cases[0]
    costs, plain = Costs(case.model), found["TAQ", 4.75]
    asking = costs.evaluation(case, costs.probe)
    padded = sum(map(len, case.prompts.tokens))
    one_pass = plain - found["uniform", 4.75]
    assert 8 * TIMES["token"] * padded <= one_pass < 2 * 8 * TIMES["token"] * padded
    # the ranges are in TAQ's pass
    assert found["TAQoS", 4.75] - found["uniform", 4.75] == pytest.approx((1 + 7 / 2) * one_pass)
    # 6 labelled documents, 12 are evaluated
    assert found["TAQO-oracle", 4.75] - found["uniform", 4.75] == pytest.approx(9 * asking * 6 / 12)


def test_what_is_scored_beside_a_row_is_counted_once(tiny_folder, tmp_path, timed):
    names = ("uniform", "uniform[act_bits=4]", "uniform[act_bits=4,act_keep=0.5]", "uniform[act_bits=8,act_keep=0.5]",
             "uniform[transform=smooth]", "uniform[act_bits=8,transform=smooth]")
    cases = opened(tiny_folder, tmp_path, methods=names, quantizer="rtn")
    found = {name: of for (name, bits), of in seconds(cases).items() if bits == 4.75}
    one_pass = 8 * TIMES["token"] * sum(map(len, cases[0].prompts.tokens))
    assert found["uniform"] == pytest.approx(found["uniform[act_bits=4]"])
    for first, again in (names[2:4], names[4:]):
        assert one_pass <= found[first] - found["uniform"] < 2 * one_pass
        assert found[again] == pytest.approx(found["uniform"])


@pytest.mark.parametrize("dataset, passes", [("mmlu_pro", 2), ("trivia_qa", 5)])  # options, or 4 tokens and an answer
def test_blocks_that_rest_elsewhere_are_brought_by_every_pass(dataset, passes, tiny_folder, tmp_path, timed):
    rows = dict(methods=("TAQ", "TaCQ"), quantizer="gptq", datasets=(dataset,))
    plain, apart = (opened(tiny_folder, tmp_path, **rows, offload=offload) for offload in ("off", "disk"))
    alone, moved, sizes = seconds(plain), seconds(apart), apart[0].model.sizes
    once = sizes.in_blocks * sizes.itemsize * TIMES["byte"]
    more = {name: (moved[name, bits] - seconds_) / once for (name, bits), seconds_ in alone.items()}
    asks, calib = passes * len(apart[0].data.batches), apart[-1].solver_calib
    assert more["fp16"] == pytest.approx(asks)
    assert more["uniform"] == pytest.approx(asks + 3)  # seen, solved, taken back
    assert more["TAQ"] >= more["uniform"] + 1 - 1e-9  # prompts are scored in one batch or more
    again = 8 * TIMES["token"] * sum(map(len, calib.tokens)) / once  # blocks run once more
    # a model to compare with is solved as well
    assert more["TaCQ"] == pytest.approx(asks + 2 * 3 + 2 * len(calib.tokens) + again, rel=0.02)


def test_what_lies_on_the_cpu_need_not_come_there():
    assert Probe(SimpleNamespace(sizes=None), torch.device("cpu")).byte() == 0


def test_generated_tokens_and_solvers_cost_more(tiny_folder, tmp_path, timed):
    case = opened(tiny_folder, tmp_path, datasets=("trivia_qa",), batch_size=12)[0]  # all in one batch
    costs = Costs(case.model)
    once = costs.evaluation(case, costs.probe)
    wanted = 8 * TIMES["step"] * 3  # the first of 4 tokens comes from the context
    assert len(case.data.batches) == 1 and once > wanted
    vars(case.data)["batches"] = case.data.batches * 2
    assert costs.evaluation(case, costs.probe) == pytest.approx(2 * once)
    rounded, solved = (seconds(opened(tiny_folder, tmp_path, quantizer=name))["uniform", 4.75]
                       for name in ("rtn", "gptq"))
    assert solved > rounded + 2 * 8 * TIMES["token"] * 400 * 0.5


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
    """A finished grid."""
    root = tmp_path_factory.mktemp("done")
    assert main(flags(tiny_folder, root, "--method", "TAQ")) == 0
    return root


def test_what_is_stored_costs_nothing(done, tiny_folder, tmp_path, timed, monkeypatch):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    cases = opened(tiny_folder, tmp_path, methods=("TAQ",))
    assert set(seconds(cases).values()) == {0.0}
    with monkeypatch.context() as patch:  # what needs no memory is not refused for want of it
        patch.setattr(harness.forecast.limits, "cpu_limit", lambda *_: (1, "the memory of this machine"))
        assert main(flags(tiny_folder, tmp_path, "--method", "TAQ")) == 0
    found = seconds(opened(tiny_folder, tmp_path, methods=("TAQ",), avg_bits=(5.75,)))
    # the scores are there; random's were counted with the table of errors
    assert found["TAQ", 5.75] == pytest.approx(found["uniform", 5.75])
    result = next(r for r in load_results(tmp_path / "results") if r.method.name == "TAQ")
    shutil.rmtree(tmp_path / "cache" / result.stages["samples"])
    assert seconds(cases)["TAQ", 4.75] > 0 == seconds(cases)["uniform", 4.75]


def test_dry_run_prints_the_parts_and_computes_nothing(tiny_folder, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("a dry run must not load the model")

    monkeypatch.setattr(harness.stages.model, "load_model", refuse)
    assert main(flags(tiny_folder, tmp_path, "--method", "TaCQ", "SqueezeLLM-native", "--quantizer", "gptq",
                      "--dry_run")) == 0
    out = capsys.readouterr().out
    for column in ("time", "weights", "activations", "scores", "solver", "memory", "GB", "to do"):
        assert column in out
    assert "~" in out and "nothing was computed" in out and not (tmp_path / "results").exists()
    assert not list((tmp_path / "cache").glob("*/*.safetensors")) and not list((tmp_path / "cache").glob("*/*.jsonl"))


@pytest.mark.parametrize("ask, said", [
    (dict(), "GB are the memory of this machine; nothing"),
    (dict(workers=4, sharing=4), "not counted; 16.0 GB are the memory of this machine, shared by 4 workers; nothing"),
    (dict(workers=64, sharing=0), "shared by 64 workers, models to be loaded not counted; nothing was computed"),
    (dict(workers=64, sharing=0, limit=8 * 10**9), "8.0 GB are the limit for a job (--mem); nothing"),
])
def test_the_dry_runs_last_line_says_what_one_worker_may_use(tiny_folder, tmp_path, monkeypatch, ask, said):
    monkeypatch.setattr(harness.forecast.limits.os, "sysconf",
                        lambda name: 64 * 10**9 if name == "SC_PHYS_PAGES" else 1)
    monkeypatch.setattr(harness.forecast.limits, "cgroup_limit", lambda: None)
    console = Console(file=StringIO(), width=500)
    dry_run(opened(tiny_folder, tmp_path, methods=("fp16",)), console, **ask)
    assert said in console.file.getvalue()


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_one_block_of_every_family_runs(family, tmp_path):
    CONFIGS[family]().save_pretrained(tmp_path)
    ref = ModelRef("tiny", "x", "float32")
    model = SimpleNamespace(skeleton=empty_model(str(tmp_path), ref), ref=ref, device=torch.device("cpu"), sizes=None)
    block = find_blocks(one_block(model, model.device))[1]
    whole = find_blocks(model.skeleton)[1]
    assert len(block) == 1
    assert sum(p.numel() for p in block[0].parameters()) == sum(p.numel() for p in whole[0].parameters())
    probe = Probe(model, model.device)
    assert 0 < probe.token(2, 9) < 1 and 0 < probe.step(2, 9) < 1


def test_timings_are_a_unit_of_load_and_bounded(monkeypatch):
    """A made-up clock: a run of n takes 0.02 n seconds, the very first a second more."""
    clock, runs = [0.0], []

    def run(n):
        clock[0] += 0.02 * n + (not runs)
        runs.append(n)

    monkeypatch.setattr(harness.forecast.probe.time, "perf_counter", lambda: clock[0])
    probe = Probe(SimpleNamespace(sizes=None), torch.device("cpu"))
    assert probe.seconds(run, load=1000) == pytest.approx(0.02)
    assert max(runs) == 7 and clock[0] < 2  # 0.15 s hold seven


def test_a_family_that_cannot_be_cut_is_estimated_from_its_size(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.forecast.probe, "one_block", lambda model, device: None)
    found = seconds(opened(tiny_folder, tmp_path, methods=("SqueezeLLM",)))
    assert 0 < found["fp16", None] < found["SqueezeLLM", 4.75]


@pytest.mark.parametrize("target", (2.25, 3.25))  # less than the form alone, and more
def test_a_piece_of_a_linear_holds_what_the_whole_would(target):
    model = SimpleNamespace(shapes={"proj": (576, 576)}, ref=ModelRef("tiny", "x", "float32"), sizes=None)
    probe = Probe(model, torch.device("cpu"))
    assert 0 < probe.solve("squeezellm", LayerPlan(3, 576, form="codebook"), {"target": target}) < 1
