"""Offloaded blocks: the same numbers, one block at work at a time, nothing left behind."""

import errno
from pathlib import Path

import pytest
import torch

import core.offload
from benchmarks.tiny_families import tiny_model as family_model
from core.architecture import find_blocks, find_linears
from core.errors import UserError
from core.forward import call, device_of, pad, watch
from core.model import ready
from core.offload import Offload, Scratch, at_work, set_aside
from streams.blocks import BlockStream, walk
from streams.gradients import gradient_sums
from tests.tiny import calib_set, tiny_model

CPU = torch.device("cpu")
# kinds of block: fused experts, transposed linears, states beside attention, several streams, a state space alone
FAMILIES = ("llama", "gpt2", "mixtral", "qwen3_next", "gemma3n_text", "mamba", "gemma2", "dbrx")


class Absent(Offload):
    """What rests is not a number, so whatever reads it gives none."""

    def _brought(self, rest: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "true"):
            self.true = {}
        if rest.data_ptr() not in self.true:
            self.true[rest.data_ptr()] = rest.clone()
            rest.fill_(torch.nan)
        return self.true[rest.data_ptr()].clone()


def parts(model) -> tuple:
    return find_linears(model)[0], find_blocks(model)[1]


def places(offload: Offload) -> list[list]:
    """Of each block its parameters and where their values lie."""
    return [[(p, p.data_ptr()) for p in own] for own in offload.parameters]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return call(model, *pad([range(3, 20), range(5, 9)], device_of(model)), last_only=False).logits.clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_whole_model(family, tmp_path):
    model, calib = ready(family_model(family)), calib_set(3)
    linears, blocks = parts(model)
    plain, whole = logits(model), gradient_sums(model, linears, calib)
    Absent(model, blocks, CPU, Scratch(tmp_path))
    apart = gradient_sums(model, linears, calib)
    assert torch.equal(logits(model), plain) and whole.losses == apart.losses
    for kind, sums in whole.sums.items():
        assert any(value.any() for value in sums.values())
        assert all(torch.equal(value, apart.sums[kind][fqn]) for fqn, value in sums.items())
    assert not list(tmp_path.iterdir())  # files have no names


@pytest.mark.parametrize("dtype, grad_dtype", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_blocks_come_in_the_type_that_gradients_are_taken_in(dtype, grad_dtype, tmp_path):
    """A 16-bit model's are float32 while they run, and lie at rest in 16 bits meanwhile."""
    model, calib = tiny_model("llama").to(getattr(torch, dtype)), calib_set(3)
    linears, blocks = parts(model)
    whole = gradient_sums(model, linears, calib, ("abs",), grad_dtype=grad_dtype)
    offload, seen = Offload(model, blocks, CPU, Scratch(tmp_path)), set()
    for index, block in enumerate(blocks):
        block.mlp.register_forward_pre_hook(lambda mlp, _args, at=index: seen.update(
            [(mlp.up_proj.weight.dtype, blocks[at - 1].mlp.up_proj.weight.dtype)]))
    apart = gradient_sums(model, linears, calib, ("abs",), grad_dtype=grad_dtype)
    assert seen == {(getattr(torch, grad_dtype), getattr(torch, dtype))}
    assert all(torch.equal(value, apart.sums["abs"][fqn]) for fqn, value in whole.sums["abs"].items())
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)} and offload.computing is None


def test_one_block_is_at_work_at_a_time(copies):
    model = tiny_model("llama")
    linears, blocks = parts(model)
    offload, most = Offload(model, blocks, CPU), []
    at_rest = places(offload)
    for linear in linears.values():
        linear.register_forward_pre_hook(lambda _linear, _args: most.append(sum(
            p.data_ptr() != rest for own in at_rest for p, rest in own)))
    gradient_sums(model, linears, calib_set(2), ("sum",))
    assert set(most) == {len(list(blocks[0].parameters()))} and len(most) == 2 * 2 * len(linears)  # forward, and again
    assert offload.running == [0] * len(blocks)


def test_a_block_that_fails_goes_back_to_rest(copies):
    model = tiny_model("llama")
    _, blocks = parts(model)
    offload = Offload(model, blocks, CPU)
    at_rest = places(offload)

    def fail(_module, _args):
        raise RuntimeError("out of memory")

    hook = blocks[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        logits(model)
    hook.remove()
    assert offload.running == [0] * len(blocks)
    assert places(offload) == at_rest and not any(offload.at_rest)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("to_disk", (False, True))
def test_on_a_gpu_blocks_rest_on_the_cpu_and_run_on_the_device(to_disk, tmp_path):
    """The same logits and gradients as of a model that is there whole, and the same weights from a solver."""
    calib, there, seen = calib_set(3), tiny_model("llama").cuda(), []
    linears, blocks = parts(there)
    whole, plain = gradient_sums(there, linears, calib), logits(there)
    model = tiny_model("llama")
    linears, blocks = parts(model)
    gpu = torch.device("cuda:0")
    Offload(model, blocks, gpu, Scratch(tmp_path) if to_disk else None)
    with watch(blocks, lambda block, hidden: seen.append((hidden.device, blocks[block].mlp.up_proj.weight.device))):
        torch.testing.assert_close(logits(model), plain, rtol=1e-3, atol=1e-4)
    assert seen == [(gpu, CPU)] * len(blocks) and model.lm_head.weight.device == gpu
    apart = gradient_sums(model, linears, calib)
    for fqn, value in whole.sums["abs"].items():
        torch.testing.assert_close(apart.sums["abs"][fqn], value, rtol=1e-3, atol=1e-4)
    with at_work(model, 1):
        assert [{p.device for p in block.parameters()} for block in blocks[:2]] == [{CPU}, {gpu}]
        blocks[1].mlp.up_proj.weight.data.zero_()
    assert not blocks[1].mlp.up_proj.weight.any() and blocks[1].mlp.up_proj.weight.device == CPU


def test_a_block_that_does_not_fit_goes_back_to_rest(monkeypatch):
    model = tiny_model("llama")
    offload, brought = Offload(model, find_blocks(model)[1], CPU), []
    at_rest = places(offload)

    def bring(_self, rest):
        brought.append(rest)
        if len(brought) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rest.clone()

    monkeypatch.setattr(Offload, "_brought", bring)
    with pytest.raises(torch.OutOfMemoryError):
        logits(model)
    assert places(offload) == at_rest and offload.running == [0] * 3 and not any(offload.at_rest)


def test_what_a_solver_writes_rests_afterwards(copies, tmp_path):
    """The solver sees what it wrote in the blocks before, and the weights it returned are those that rest."""
    def solved(model) -> tuple[dict, list]:
        linears, blocks = parts(model)
        hessians = []

        def solve(fqn, aid):
            hessians.append(aid.hessian.clone())
            return linears[fqn].weight.detach() * 0.5

        walk(BlockStream(model, blocks, calib_set(3).tokens), linears, find_linears(model)[1], solve)
        return {fqn: linear.weight.clone() for fqn, linear in linears.items()}, hessians

    whole, model = solved(tiny_model("llama")), tiny_model("llama")
    Offload(model, find_blocks(model)[1], CPU, Scratch(tmp_path))
    apart = solved(model)
    assert all(torch.equal(value, apart[0][fqn]) for fqn, value in whole[0].items())
    assert all(torch.equal(a, b) for a, b in zip(whole[1], apart[1], strict=True))


def test_blocks_that_share_weights_and_outputs_of_their_own_class_are_refused():
    model = tiny_model("llama")
    blocks = find_blocks(model)[1]

    class Named(dict):
        pass

    with pytest.raises(UserError, match="tensors in a Named, so they cannot be offloaded where gradients"):
        core.offload._hollow(Named(a=torch.ones(1)))
    blocks[2].mlp = blocks[0].mlp
    with pytest.raises(UserError, match="share weights, so they cannot be offloaded; leave out --offload"):
        Offload(model, blocks, CPU)


def test_a_full_disk_is_one_sentence_and_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    scratch = Scratch(tmp_path / "offload")
    kept = scratch.copy(torch.arange(6.0).reshape(2, 3))
    assert torch.equal(kept, torch.arange(6.0).reshape(2, 3)) and scratch.zeros((0, 3), torch.float32).shape == (0, 3)
    assert torch.equal(scratch.zeros((), torch.int16), torch.zeros((), dtype=torch.int16))
    monkeypatch.setattr(core.offload.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"offload has no room for 4\.00 GB more \(.*No space left.*use --cache_dir"):
        scratch.zeros((1000, 1000, 1000), torch.float32)
    assert not list(Path(scratch.folder).iterdir())


def test_many_small_tensors_share_few_files(tmp_path):
    """A process may map 65,530 files; experts have more weights than that."""
    scratch, files = Scratch(tmp_path), []
    file = scratch._file
    scratch._file = lambda size: files.append(size) or file(size)
    held = [scratch.copy(torch.full((3, 5), float(i))) for i in range(3000)]
    assert len(files) < 20 and all(bool((one == i).all()) for i, one in enumerate(held))
    wide = scratch.zeros((7,), torch.int64)
    assert wide.data_ptr() % 8 == 0 and not wide.any()
    from safetensors.torch import load_file, save_file

    save_file({str(i): one for i, one in enumerate(held[:9])}, tmp_path / "held.safetensors")  # they share no memory
    assert torch.equal(load_file(tmp_path / "held.safetensors")["8"], held[8])


def test_what_is_as_large_as_the_model_lies_where_its_blocks_rest(tmp_path):
    model, value = tiny_model("llama"), torch.ones(2, 2)
    assert set_aside(model, value) is value
    Offload(model, find_blocks(model)[1], CPU, Scratch(tmp_path))
    assert set_aside(model, value).data_ptr() != value.data_ptr() and torch.equal(set_aside(model, value), value)
