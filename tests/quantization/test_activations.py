"""Activations at few bits: against a plain loop, alone and in a batch, kept channels, keys and values, integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.activations import Activations, activations_of, combinations
from core.architecture import find_heads, find_linears
from core.errors import UserError
from core.forward import call, pad
from core.types import LayerPlan
from quantization.activations import kept_channels, quantized, quantizing
from quantization.dynamic import choosing_heads
from tests.tiny import tiny_model


def loop(x: list[float], bits: int, group: int, keep: list[bool]) -> list[float]:
    """The formula, one number at a time."""
    top, out = 2**bits - 1, []
    for start in range(0, len(x), group):
        part, kept = x[start:start + group], keep[start:start + group]
        ranged = [v for v, k in zip(part, kept) if not k]
        low, high = min([0.0, *ranged]), max([0.0, *ranged])
        if low == high:
            low, high = -1.0, 1.0
        low, high = torch.tensor(low), torch.tensor(high)
        scale = (high - low) / top
        zero = (-low / scale).round()
        for value, k in zip(part, kept):
            code = ((torch.tensor(value) / scale).round() + zero).clamp(0, top)
            out.append(value if k else float((code - zero) * scale))
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from((4, 7, 16)), st.sampled_from((3, 4, 8)), st.integers(0, 2**20),
       st.booleans())
def test_it_is_the_formula_also_with_a_ragged_group(width, group, bits, seed, some_kept):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(width, generator=generator) * 10 ** torch.randint(-3, 4, (), generator=generator)
    keep = torch.rand(width, generator=generator) < (0.3 if some_kept else 0.0)
    want = loop(x.tolist(), bits, group, keep.tolist())
    got = quantized(x[None, None], bits, group, keep if some_kept else None)[0, 0]
    assert torch.equal(got, torch.tensor(want))


def test_a_group_has_at_most_so_many_values_and_the_error_is_at_most_half_a_step():
    x = torch.randn(5, 256)
    y = quantized(x, 4, 128)
    for row, back in zip(x.view(-1, 128), y.view(-1, 128)):
        step = (row.max() - row.min()) / 15
        assert len(back.unique()) <= 16 and (back - row).abs().max() <= step * 0.5001 + step * 0.5


@pytest.mark.parametrize("family", ["llama", "opt", "qwen2"])
@torch.no_grad()
def test_neither_batch_nor_padding_nor_order_changes_a_token(family):
    model, seen = tiny_model(family), {}
    linear = model.get_submodule(find_heads(model)[0].q)
    short, long = [5, 6, 7], [9, 10, 11, 12, 13, 14]

    def input_of(rows, at):
        with quantizing(model, Activations(bits=4, group=8), {}):
            hook = linear.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
            call(model, *pad(rows, "cpu"))
            hook.remove()
        return seen["x"].view(len(rows), -1, linear.in_features)[at, -len(rows[at]):]

    alone = input_of([short], 0)
    assert torch.equal(input_of([short, long], 0), alone) and torch.equal(input_of([long, short], 1), alone)
    assert all(len(group.unique()) <= 16 for group in alone.reshape(-1, 8))


@torch.no_grad()
def test_the_linear_itself_reads_the_quantized_input():
    model = tiny_model("llama")
    linear, seen = find_linears(model)[0][find_heads(model)[1].q], {}
    hook = linear.register_forward_hook(lambda m, args, out: seen.update(x=args[0], y=out))
    with quantizing(model, Activations(bits=3, group=16), {}):
        hook.remove()
        hook = linear.register_forward_hook(lambda m, args, out: seen.update(x=args[0], y=out))
        call(model, *pad([[5, 6, 7]], "cpu"))
    hook.remove()
    assert torch.equal(seen["y"], linear(seen["x"])) and all(len(g.unique()) <= 8 for g in seen["x"].reshape(-1, 16))


@torch.no_grad()
def test_everything_kept_is_sixteen_bits_exactly_and_more_kept_is_nearer():
    model, linears = tiny_model("llama"), find_linears(tiny_model("llama"))[0]
    ids, mask = pad([list(range(3, 40))], "cpu")
    whole = call(model, ids, mask, last=37).logits
    magnitude = {fqn: torch.rand(linear.in_features, generator=torch.Generator().manual_seed(1))
                 for fqn, linear in linears.items()}
    errors = []
    for keep in (0.0, 0.5, 0.9, 1.0):
        with quantizing(model, Activations(bits=4, keep=keep), kept_channels(magnitude, keep)):
            errors.append(float((call(model, ids, mask, last=37).logits - whole).norm()))
    assert errors[-1] == 0 and errors[0] > errors[1] > errors[2] > 0
    assert torch.equal(call(model, ids, mask, last=37).logits, whole)  # nothing is left behind


@torch.no_grad()
def test_keys_and_values_in_groups_of_a_head():
    model = tiny_model("llama")
    one, seen = find_heads(model)[0], {}
    with quantizing(model, Activations(kv_bits=3), {}):
        hook = model.get_submodule(one.v).register_forward_hook(lambda _m, _a, out: seen.update(v=out))
        q = model.get_submodule(one.q).register_forward_hook(lambda _m, _a, out: seen.update(q=out))
        call(model, *pad([[5, 6, 7]], "cpu"))
        hook.remove(), q.remove()
    assert all(len(head.unique()) <= 8 for head in seen["v"].reshape(-1, one.width))
    assert any(len(head.unique()) > 7 for head in seen["q"].reshape(-1, one.width))
    with pytest.raises(UserError, match="has queries, keys and values in one linear"):
        with quantizing(tiny_model("phi3"), Activations(kv_bits=4), {}):
            pass


def test_an_integer_kernel_computes_the_same():
    """One linear with 8-bit inputs and weights by torch's own integer product: its sums of codes, scaled afterwards."""
    torch.manual_seed(0)
    x, weight = torch.randn(20, 64), torch.randn(32, 64)
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round()
    codes = ((x / scale).round() + zero).clamp(0, 255)
    w_scale = weight.abs().amax(1, keepdim=True) / 127
    w_codes = (weight / w_scale).round()
    sums = torch._int_mm((codes - 128).to(torch.int8), w_codes.to(torch.int8).t().contiguous())
    integer = (sums.float() + (128 - zero) * w_codes.sum(1)) * scale * w_scale.t()
    fake = quantized(x, 8, 64) @ (w_codes * w_scale).t()
    torch.testing.assert_close(fake, integer, rtol=1e-5, atol=1e-4)


def test_numbers_that_are_none_are_one_sentence():
    with pytest.raises(UserError, match="activations hold NaN or infinity"):
        quantized(torch.tensor([[1.0, float("nan")]]), 4, 2)


def test_rows_and_words():
    axes = {"act_bits": (16, 4), "act_keep": (0.0, 0.1), "kv_bits": (16,)}
    assert combinations(axes) == [{}, {"act_bits": 4}, {"act_bits": 4, "act_keep": 0.1}]
    assert activations_of({"act_bits": 4, "act_keep": 0.1, "kv_bits": 8}).words == "A4 10 % kept KV8"
    assert activations_of({"act_keep": 0.5}) == Activations() and Activations().words == ""


@torch.no_grad()
def test_heads_chosen_at_run_time_read_quantized_inputs_too():
    model = tiny_model("llama")
    linears = find_linears(model)[0]
    layers = {fqn: LayerPlan(3, 8, dynamic_heads=4 if "self_attn" in fqn else 0) for fqn in linears}
    ids, mask = pad([[5, 6, 7, 8, 9]], "cpu")
    how = Activations(bits=4, keep=0.25)
    kept = kept_channels({fqn: torch.rand(lin.in_features) for fqn, lin in linears.items()}, 0.25)
    with quantizing(model, how, kept):
        want = call(model, ids, mask).logits  # all heads chosen: the weights as loaded
        with choosing_heads(model, layers, {fqn: lin.weight for fqn, lin in linears.items()}):
            torch.testing.assert_close(call(model, ids, mask).logits, want)
