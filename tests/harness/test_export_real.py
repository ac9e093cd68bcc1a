"""One plan of six bit widths on the demo's real model, in every format and the engines that load them."""

import json
import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import evaluation.tasks  # noqa: F401  (registered before the fixture looks)
import methods  # noqa: F401
from core.registry import REGISTRIES, allocator, method
from harness.cli.main import main
from quantization.bits import grid_plan
from quantization.packing.checkpoint import format_names
from quantization.packing.formats.packed import load_packed
from report.records import load_results, load_samples

pytestmark = [pytest.mark.slow, pytest.mark.real]
LEVELS = (2, 3, 4, 5, 6, 8)
ROW = "six-widths[symmetric=true]"
FLAGS = ["--run_type", "demo", "--dataset", "mmlu_pro", "--method", ROW, "--avg_bits", "5.55", "--tolerance", "0.05",
         "--quantizer", "rtn", "--calib_size", "16", "--eval_size", "8", "--device", "cpu", "--dtype", "fp32"]
FOURS = ["--run_type", "demo", "--dataset", "mmlu_pro", "--method", "uniform", "--levels", "4", "5",
         "--avg_bits", "4.6", *FLAGS[FLAGS.index("--quantizer"):]]
TOKENS, TEXT = 10_000, 250
SHORT = 16  # tokens that MLX itself reads: on a CPU it takes a fifth of a second for each


def six_widths(ctx):
    """A width for every kind of linear, and one linear at 2 bits: a model that still answers, so that rounding stays
    rounding.
    """
    of = {"q_proj": 4, "k_proj": 3, "v_proj": 6, "o_proj": 5, "gate_proj": 4, "up_proj": 5, "down_proj": 8}
    bits = {fqn: of[fqn.rpartition(".")[2]] for fqn in ctx.shapes}
    bits["model.layers.20.self_attn.k_proj"] = 2
    return {fqn: grid_plan(level, ctx.budget) for fqn, level in bits.items()}, {}


@pytest.fixture(scope="module")
def exports(real_model, tmp_path_factory):
    """The cell run once, and its exports, each a folder."""
    root = tmp_path_factory.mktemp("six")
    with pytest.MonkeyPatch.context() as patch:
        for registry in REGISTRIES:
            patch.setattr(registry, "_items", dict(registry._items))
            patch.setattr(registry, "contents", dict(registry.contents))
        allocator("six-widths")(six_widths)
        method("six-widths", allocator="six-widths")
        (root / "c" / "base").mkdir(parents=True)
        (root / "c" / "base" / real_model.name).symlink_to(real_model)
        flags = [*FLAGS, "--results_dir", str(root / "r"), "--cache_dir", str(root / "c")]
        assert main(flags) == 0
        for name in format_names():
            assert main([*flags, "--export", str(root / name), "--format", name]) == 0
        places = flags[flags.index("--results_dir"):]
        for name in ("hf", "gguf"):  # with zero points, and whole enough to be compared by its answers
            assert main([*FOURS, *places, "--export", str(root / f"{name}-4"), "--format", name]) == 0
    return root


@pytest.fixture(scope="module")
def texts(shared, exports) -> list[torch.Tensor]:
    """The first tokens of WikiText-2's test part, [1, TEXT] each."""
    pyarrow = pytest.importorskip("pyarrow.parquet")
    from transformers import AutoTokenizer

    path = shared / "datasets" / "wikitext2" / "wikitext-2-raw-v1" / "test.parquet"
    if not path.is_file():
        pytest.skip(f"needs {path.name} of WikiText-2 in the shared data sets")
    rows = pyarrow.read_table(path).column("text").to_pylist()
    ids = AutoTokenizer.from_pretrained(exports / "hf")("".join(rows[:200])).input_ids[:TOKENS]
    assert len(ids) == TOKENS
    return list(torch.tensor(ids).view(-1, 1, TEXT))


@torch.no_grad()
def test_hf_packed_and_compressed_tensors_are_equal_to_the_bit(exports, texts):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors (requirements-export.txt)")
    models = [AutoModelForCausalLM.from_pretrained(exports / "hf"), load_packed(exports / "packed"),
              AutoModelForCausalLM.from_pretrained(exports / "compressed-tensors")]
    assert all(model.dtype == torch.float32 for model in models)
    first, *others = [model(texts[0]).logits for model in models]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", ("hf", "packed", "compressed-tensors"))
def test_the_folder_answers_as_the_cell(exports, name, tmp_path):
    cell = next(r for r in load_results(exports / "r") if r.name == ROW)
    assert set(cell.bits.per_linear.values()) == set(LEVELS)
    flags = [flag for flag in FLAGS if flag not in ("--method", ROW)]
    assert main([*flags, "--model", str(exports / name), "--results_dir", str(tmp_path / "r"), "--cache_dir",
                 str(tmp_path / "c")]) == 0
    asked, = load_results(tmp_path / "r")
    assert [s.as_plain() for s in load_samples(asked)] == [s.as_plain() for s in load_samples(cell)]


@torch.no_grad()
def test_mlx_gives_the_same_logits(exports, texts):
    """MLX itself on a short text; on all of them its weights, as it dequantizes them, in torch."""
    mx = pytest.importorskip("mlx.core", reason="needs mlx (requirements-export.txt)")
    from mlx_lm import load

    wanted, model = AutoModelForCausalLM.from_pretrained(exports / "hf"), load(str(exports / "mlx"))[0]
    begun = time.process_time()
    own = np.array(model(mx.array(texts[0][:, :SHORT].numpy())))
    theirs = AutoModelForCausalLM.from_pretrained(exports / "hf")
    for name, part in model.named_modules():
        if hasattr(part, "scales"):
            values = mx.dequantize(part.weight, part.scales, part.biases, group_size=part.group_size, bits=part.bits)
            theirs.get_submodule(name).weight.copy_(torch.from_numpy(np.array(values)))
    seconds = time.process_time() - begun
    assert np.abs(own - theirs(texts[0][:, :SHORT]).logits.numpy()).max() < 1e-3
    widest, alike = 0.0, 0
    for ids in texts:
        one, other = theirs(ids).logits, wanted(ids).logits
        widest = max(widest, float((one - other).abs().max()))
        alike += int((one.argmax(-1) == other.argmax(-1)).sum())
    print(f"{TOKENS} tokens, largest difference {widest:.2g}, same argmax {alike}; {seconds:.0f} CPU s in MLX")
    assert alike == TOKENS and widest < 1e-3 and seconds < 60


@torch.no_grad()
def test_llama_cpp_answers_nearly_so(exports, texts):
    engine = pytest.importorskip("xllamacpp", reason="needs xllamacpp (requirements-export.txt)")
    wanted = AutoModelForCausalLM.from_pretrained(exports / "hf-4")
    how = engine.CommonParams()
    how.model.path, how.n_ctx, how.warmup, how.n_parallel, how.cpuparams.n_threads = (
        str(exports / "gguf-4" / "model.gguf"), 512, False, 1, 1)
    server, count, divergence = engine.Server(how), wanted.config.vocab_size, []
    for ids in texts[:8]:
        answer = server.handle_completions({"prompt": ids[0].tolist(), "n_predict": 1, "n_probs": count,
                                            "temperature": 0.0, "cache_prompt": False})
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        theirs = torch.full((count,), -30.0)
        for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            theirs[one["id"]] = max(one["logprob"], -30.0)
        ours = wanted(ids).logits[0, -1].log_softmax(-1)
        divergence.append(float((ours.exp() * (ours - theirs)).sum()))
    print("KL at the last token, nats:", [round(one, 4) for one in divergence])
    assert np.mean(divergence) < 0.05  # it rounds activations to 8 bits


def test_container_bytes_are_those_counted_and_what_is_said(exports):
    for name in format_names():
        told = json.loads((exports / name / "export.json").read_text())["bytes"]
        assert told["linears"] == told["counted"] + sum(told["more"].values())
        size = sum(path.stat().st_size for kind in ("*.safetensors", "*.gguf") for path in (exports / name).glob(kind))
        assert size == told["linears"] + told["others"]
        assert name != "packed" or not told["more"]
