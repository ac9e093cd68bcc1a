"""Block by block: the inputs that solvers see, shared Hessians, and a model left whole."""

import numpy as np
import pytest
import torch

import quantization  # noqa: F401  (registers)
from benchmarks.tiny_families import tiny_model as tiny_family
from core.architecture import find_blocks, find_linears
from core.errors import UserError
from core.forward import call
from core.model import ready
from core.types import CalibSet, LayerPlan
from quantization.apply import Originals
from streams import settled
from streams.blocks import BlockStream, walk
from streams.hessians import add_gram, mirror
from streams.settled import Settled, tensors
from tests.tiny import CONFIGS, calib_set, tiny_model


def parts(family="llama"):
    model = tiny_model(family)
    linears, block_of = find_linears(model)
    return model, find_blocks(model)[1], linears, block_of, calib_set()


def inputs_by_hand(model, linears, calib):
    """Hessians from plain forward passes of the whole model."""
    sums = dict.fromkeys(linears, 0.0)

    def note(fqn, x):
        x = x.reshape(-1, x.shape[-1]).double()
        sums[fqn] = sums[fqn] + x.t() @ x

    hooks = [lin.register_forward_pre_hook(lambda _m, args, f=f: note(f, args[0])) for f, lin in linears.items()]
    with torch.no_grad():
        for row in calib.tokens:
            ids = torch.as_tensor(row)[None]
            call(model, ids, torch.ones_like(ids))
    for hook in hooks:
        hook.remove()
    return {f: 2 * h / len(calib.tokens) for f, h in sums.items()}


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_hessians_of_the_untouched_model(family):
    """Walked without quantizing, every linear's Hessian is that of plain forward passes; the model is as it was."""
    model, blocks, linears, block_of, calib = parts(family)
    want, found = inputs_by_hand(model, linears, calib), {}
    walk(BlockStream(model, blocks, calib.tokens), linears, block_of, lambda f, aid: found.__setitem__(f, aid.hessian),
         sequential=False)
    assert set(found) == set(linears)
    for fqn, hessian in found.items():
        torch.testing.assert_close(hessian.double(), want[fqn], rtol=1e-4, atol=1e-4)  # float32, other batch shapes
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())


def test_linears_with_one_input_share_one_hessian():
    model, blocks, linears, block_of, calib = parts()
    found: dict[str, dict] = {}
    walk(BlockStream(model, blocks, calib.tokens), linears, block_of, lambda f, aid: found.__setitem__(f, aid.shared))
    first = {f.rpartition(".")[2]: shared for f, shared in found.items() if block_of[f] == 0}
    assert first["q_proj"] is first["k_proj"] is first["v_proj"] and first["gate_proj"] is first["up_proj"]
    assert len({id(first[n]) for n in ("q_proj", "o_proj", "gate_proj", "down_proj")}) == 4


@pytest.mark.parametrize("sequential", (True, False))
def test_later_linears_see_what_earlier_ones_have_become(sequential):
    """Sequential: o_proj's input already reflects quantized q, k, v; otherwise only the blocks before."""
    model, blocks, linears, block_of, calib = parts()
    want, found = inputs_by_hand(model, linears, calib), {}

    def solve_one(fqn, aid):
        found[fqn] = aid.hessian.double()
        return linears[fqn].weight / 2 if fqn.endswith("v_proj") else None

    walk(BlockStream(model, blocks, calib.tokens), linears, block_of, solve_one, sequential=sequential)
    o = next(f for f in linears if f.endswith("o_proj"))
    assert torch.allclose(found[o], want[o] / 4, rtol=1e-3, atol=1e-5) == sequential
    assert torch.allclose(found[o], want[o], rtol=1e-3, atol=1e-5) != sequential
    second = next(f for f in linears if block_of[f] == 1)
    assert not torch.allclose(found[second], want[second], rtol=1e-3, atol=1e-5)


def test_replay_gives_the_inputs_again():
    model, blocks, linears, block_of, calib = parts()
    seen = {}

    def solve_one(fqn, aid):
        again = list(aid.replay())
        assert sorted(len(x) for x in again) == sorted(len(t) for t in calib.tokens)
        seen[fqn] = torch.allclose(aid.hessian, sum(2 * x.t() @ x for x in again) / len(again), rtol=1e-4, atol=1e-5)

    walk(BlockStream(model, blocks, calib.tokens), linears, block_of, solve_one)
    assert len(seen) == len(linears) and all(seen.values())


def test_only_one_blocks_inputs_are_alive():
    model, blocks, linears, block_of, calib = parts()
    stream, alive = BlockStream(model, blocks, calib.tokens), []
    walk(stream, linears, block_of, lambda f, aid: alive.append(sum(h.shape[0] for h in stream.hidden)) or None)
    assert set(alive) == {len(calib.tokens)} and not any(stream.calls)


def test_solving_starts_from_the_weights_as_loaded():
    """Two plans one after the other give what each gives alone; restore brings everything back."""
    model, blocks, linears, block_of, calib = parts()
    originals, before = Originals(linears), {f: lin.weight.detach().clone() for f, lin in linears.items()}
    kept = {"model": model, "blocks": blocks, "block_of": block_of, "calib": calib}

    def solved(bits):
        originals.solve({f: LayerPlan(bits, 8) for f in linears}, "gptq", **kept)
        return {f: lin.weight.detach().clone() for f, lin in linears.items()}

    first = solved(3)
    solved(2)
    again = solved(3)
    assert all(torch.equal(first[f], again[f]) for f in first)
    assert not any(torch.equal(first[f], before[f]) for f in first)
    originals.restore()
    assert all(torch.equal(lin.weight, before[f]) for f, lin in linears.items())


def test_a_linear_at_16_bits_is_rounded_to_16_and_no_further():
    model, blocks, linears, block_of, calib = parts()
    names, originals = list(linears), Originals(linears)
    plan = {f: LayerPlan(16 if i == 0 else 3, 8) for i, f in enumerate(names)}
    before = linears[names[0]].weight.detach().clone()
    found = originals.solve(plan, "gptq", model=model, blocks=blocks, block_of=block_of, calib=calib)
    assert torch.equal(linears[names[0]].weight,
                       before.bfloat16().float()) and list(found) == names and found[names[0]].layer.bits == 16


@pytest.mark.parametrize(("tokens", "message"), (((), "calibration set is empty"),
                                                 ((np.array([5]), np.array([6])), "a single token")))
def test_calibration_that_cannot_serve_is_one_clear_error(tokens, message):
    model, blocks, linears, block_of, _ = parts()
    with pytest.raises(UserError, match=message):
        Originals(linears).solve({f: LayerPlan(3, 8) for f in linears}, "gptq", model=model, blocks=blocks,
                                 block_of=block_of, calib=CalibSet("x", (), tokens, (), 0, ""))


def solved(family: str, monkeypatch, *, remember: bool) -> tuple[dict, int]:
    """Weights that GPTQ gives every linear, and how often any linear ran."""
    model, blocks, linears, block_of, calib = parts(family)
    runs = []
    if not remember:
        monkeypatch.setattr(Settled, "solved", lambda self, names: None)
    for kind in {type(lin) for lin in linears.values()}:
        monkeypatch.setattr(kind, "forward", lambda self, x, plain=kind.forward: runs.append(1) or plain(self, x))
    originals = Originals(linears)
    values: dict = {}
    originals.solve({f: LayerPlan(3, 8) for f in linears}, "gptq", model=model, blocks=blocks, block_of=block_of,
                    calib=calib, see=lambda f, stored: values.__setitem__(f, stored.values))
    monkeypatch.undo()
    assert not any("forward" in m.__dict__ for m in model.modules())
    return values, len(runs)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_what_is_remembered_changes_no_bit(family, monkeypatch):
    fast, few = solved(family, monkeypatch, remember=True)
    slow, many = solved(family, monkeypatch, remember=False)
    assert fast.keys() == slow.keys() and all(torch.equal(fast[f], slow[f]) for f in fast)
    assert 0 < few < many


def test_solved_linears_are_remembered_as_far_as_their_memory_goes(monkeypatch):
    """Inside a part that is at work; all is forgotten where the part's own output is known."""
    whole, few = solved("llama", monkeypatch, remember=True)
    held, plain = [], Settled._remember
    for limit in (2**14, 0):
        monkeypatch.setattr(settled, "LINEARS", limit)
        monkeypatch.setattr(Settled, "_remember", lambda self, *given: plain(self, *given) or held.append((
            self.held, sum(output.nbytes for child, by_batch in self.outputs.items()
                           if isinstance(child, torch.nn.Linear) for output in by_batch.values()))))
        part, more = solved("llama", monkeypatch, remember=True)
        assert all(torch.equal(whole[f], part[f]) for f in whole)
        assert max(said for said, _ in held) <= limit and all(said == true for said, true in held)
        assert few < more and bool(limit) == any(said for said, _ in held)
        few = more
        held.clear()


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "bloom"])
def test_experts_and_eager_attention_change_no_bit_either(family, monkeypatch):
    """Eager attention also returns its weights, [T, T] a head: such a part is not remembered."""
    weights = []
    for remember in (True, False):
        with monkeypatch.context() as patch:
            if not remember:
                patch.setattr(Settled, "solved", lambda self, names: None)
            torch.manual_seed(0)
            model = ready(tiny_family(family))
            linears, block_of = find_linears(model)
            held = []
            plain = Settled.remembered
            patch.setattr(Settled, "remembered", lambda self, batch: held.append(self.outputs) or plain(self, batch))
            values: dict = {}
            Originals(linears).solve({f: LayerPlan(3, 8) for f in linears}, "gptq", model=model,
                                     blocks=find_blocks(model)[1], block_of=block_of, calib=calib_set(),
                                     see=lambda f, stored: values.__setitem__(f, stored.values))
            weights.append(values)
            kept = [output for outputs in held for child, by_batch in outputs.items()
                    if not isinstance(child, torch.nn.Linear) for output in by_batch.values()]
            assert all(sum(t.numel() for t in tensors(output)[1:]) <= tensors(output)[0].numel() for output in kept)
            assert bool(kept) == (remember and family == "qwen3_moe")
    assert all(torch.equal(weights[0][f], weights[1][f]) for f in weights[0])


class InPlace(torch.nn.Module):
    """A block that writes into what its first part gave."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2))

    def forward(self, x):
        h = self.first(x)
        h += x
        return self.second(h)


@torch.no_grad()
def test_a_part_whose_output_is_written_to_is_not_remembered():
    torch.manual_seed(0)
    block, x = InPlace(), torch.randn(3, 4)
    linears = {"first": block.first[0], "second": block.second[0]}
    parts, want = Settled(block, linears, ["first", "second"]), block(x)
    parts.solved(["first"])
    for _ in range(3):
        with parts.remembered(0):
            assert torch.equal(block(x), want)
    assert not parts.outputs and "forward" not in block.first.__dict__


def test_the_upper_panels_are_the_whole_gram():
    rows = torch.randn(50, 700)
    total = torch.zeros(700, 700)
    for part in rows.split(20):
        add_gram(total, part, 0.5)
    torch.testing.assert_close(mirror(total), 0.5 * rows.t() @ rows, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(total, total.t(), rtol=1e-6, atol=1e-5)
