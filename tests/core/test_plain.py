"""Matrices that a family keeps in other things than linears: the model computes what it did, and gives them back."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.tiny_families import tiny_config
from core.architecture import expert_of, find_blocks, find_linears, rest_of_blocks
from core.errors import UserError
from core.model import ready
from core.plain import is_plain, make_plain, stored_state
from core.types import Aid, LayerPlan
from quantization.apply import Originals
from quantization.solvers.gptq import gptq
from tests.tiny import calib_set

FUSED = {  # family: linears in its blocks that are made of fused parameters
    "gpt2": 8, "openai-gpt": 8, "mixtral": 16, "gpt_oss": 16, "aria_text": 16, "nemotron_h": 8, "jetmoe": 32,
    "llama4_text": 16, "dbrx": 24}


def random_model(family: str, **changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes)).eval()
    for p in model.parameters():
        p.data.normal_(std=0.1)
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("family", FUSED)
def test_the_function_stays_and_the_checkpoint_is_given_back(family):
    model = random_model(family)
    ids = torch.randint(3, 250, (2, 12))
    before, state = logits(model, ids), {name: value.clone() for name, value in model.state_dict().items()}
    make_plain(model)
    assert not is_plain(model)
    assert (logits(model, ids) - before).abs().max() <= 1e-6 * before.abs().max()
    back = stored_state(model)
    assert back.keys() == state.keys() and all(torch.equal(back[name], value) for name, value in state.items())
    made = {part for one in model.fused_parameters for part in one.parts}
    linears = find_linears(model)[0]
    assert sum(f"{fqn}.weight" in made for fqn in linears) == FUSED[family]
    with torch.device("meta"):
        empty = make_plain(AutoModelForCausalLM.from_config(tiny_config(family)))
    assert {fqn: lin.weight.shape for fqn, lin in find_linears(empty)[0].items()} == {
        fqn: lin.weight.shape for fqn, lin in linears.items()}


def test_a_written_expert_is_heard():
    """The linears are the model's own weights, not copies beside them; no weight is held twice."""
    model = random_model("mixtral")
    whole = model.model.layers[0].mlp.experts.down_proj
    make_plain(model)
    linear = find_linears(model)[0]["model.layers.0.mlp.experts.2.down_proj"]
    assert linear.weight.data_ptr() == whole[2].data_ptr()
    ids = torch.randint(3, 250, (1, 40))
    before = logits(model, ids)
    linear.weight.data.mul_(3)
    assert not torch.allclose(before, logits(model, ids))


def test_routers_stay_at_full_precision_and_are_counted():
    for family, left in (("mixtral", "mlp.gate.weight"), ("hunyuan_v1_moe", "mlp.gate.wg.weight"),
                         ("jetmoe", "mlp.router.layer.weight"), ("qwen2_moe", "mlp.shared_expert_gate.weight")):
        model = make_plain(random_model(family))
        linears, blocks = find_linears(model)[0], find_blocks(model)[1]
        share, names = rest_of_blocks(linears, blocks)
        assert left in names and 0 < share < 0.05, family
        inside = sum(lin.weight.numel() for lin in linears.values())
        assert share == pytest.approx(1 - inside / sum(p.numel() for block in blocks for p in block.parameters()))


def test_layers_in_several_lists_are_refused():
    with pytest.raises(UserError, match="several lists"):
        find_blocks(random_model("xlm"))


def test_experts_are_solved_from_the_tokens_routed_to_them():
    """One block of a mixture of experts against a loop over its experts that knows nothing of streams."""
    torch.manual_seed(0)
    model = ready(random_model("mixtral", num_hidden_layers=1, num_local_experts=8, num_experts=8))
    calib, layer = calib_set(5), LayerPlan(3, 16)
    linears, block_of = find_linears(model)
    experts = {fqn: lin for fqn, lin in linears.items() if expert_of(fqn) is not None}
    weights = {fqn: lin.weight.clone() for fqn, lin in experts.items()}
    moe = model.model.layers[0].mlp
    routed: dict[int, list[torch.Tensor]] = {expert: [] for expert in range(8)}
    for tokens in sorted(calib.tokens, key=len, reverse=True):
        seen = []
        hook = moe.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        logits(model, torch.tensor(tokens)[None])
        hook.remove()
        hidden = seen[0].reshape(-1, seen[0].shape[-1])
        _, _, chosen = moe.gate(hidden)
        for expert in routed:
            routed[expert].append(hidden[(chosen == expert).any(1)])
    originals = Originals(linears)
    solved = originals.solve(dict.fromkeys(experts, layer), "gptq", model=model, blocks=find_blocks(model)[1],
                             block_of=block_of, calib=calib)
    for expert, rows in routed.items():
        up, down = (f"model.layers.0.mlp.experts.{expert}.{name}" for name in ("gate_up_proj", "down_proj"))
        assert solved[up].notes["tokens"] == solved[down].notes["tokens"] == sum(map(len, rows))
        wanted = gptq(weights[up], layer, Aid(up, hessian=_hessian(rows))).values
        assert torch.equal(experts[up].weight, wanted)
        inner = []
        for one in rows:
            gate, up_part = torch.nn.functional.linear(one, wanted).chunk(2, dim=-1)
            inner.append(moe.experts.act_fn(gate) * up_part)
        wanted = gptq(weights[down], layer, Aid(down, hessian=_hessian(inner))).values
        assert torch.equal(experts[down].weight, wanted)


@torch.no_grad()
def _hessian(documents: list[torch.Tensor]) -> torch.Tensor:
    """Of all tokens that an expert reads, document by document; one that reads none is rounded to nearest."""
    matrix = torch.zeros(documents[0].shape[1], documents[0].shape[1])
    for x in documents:
        matrix.addmm_(x.T, x, alpha=2 / len(documents))
    return matrix if matrix.any() else torch.eye(len(matrix))
