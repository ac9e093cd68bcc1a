"""Any causal LM by walking its module tree: families, linears, blocks, identity by content."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.tiny_families import tiny_model as tiny_family
from core.architecture import find_blocks, find_linears, other_bits, rest_of_blocks
from core.batching import length_batches
from core.errors import UserError
from core.forward import behaviour, call, pad, skip_to, watch
from core.model import load_model, load_tokenizer, model_ref, resolve_model
from tests.tiny import COMMON, CONFIGS, tiny_model


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_linear_of_every_block(family):
    model = tiny_model(family)
    linears, block_of = find_linears(model)
    everywhere = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    outside = set(everywhere) - set(linears)
    assert len(find_blocks(model)[1]) == 3 and sorted(set(block_of.values())) == [0, 1, 2]
    assert not rest_of_blocks(linears, find_blocks(model)[1])[1]
    assert outside <= {"lm_head", "model.decoder.project_in", "model.decoder.project_out"}, outside
    assert all(everywhere[name] is linears[name] for name in linears)
    assert len(linears) == {"phi3": 12, "opt": 18, "phi": 18, "falcon": 12}.get(family, 21)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_padding_and_skipping_change_nothing(family):
    model = tiny_model(family)
    blocks, seen = find_blocks(model)[1], {}
    rows = [np.arange(3, 20), np.arange(5, 12)]
    with torch.inference_mode():
        with watch(blocks, seen.__setitem__) as widths:
            both = call(model, *pad(rows, "cpu")).logits[:, -1]
        alone = call(model, *pad(rows[1:], "cpu")).logits[:, -1]
        with skip_to(blocks, 1, seen[1], widths[1]):
            skipped = call(model, *pad(rows, "cpu")).logits[:, -1]
        again = call(model, *pad(rows, "cpu")).logits[:, -1]
    torch.testing.assert_close(both[1], alone[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(both, skipped) and torch.equal(both, again)
    assert not blocks[0]._forward_hooks and "forward" not in blocks[0].__dict__


def test_matrices_outside_nn_linear_are_seen():
    """Matrices that nothing makes linears of would otherwise stay unquantized without a word."""
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(**COMMON, num_local_experts=4)
    model = AutoModelForCausalLM.from_config(config)
    share, names = rest_of_blocks(find_linears(model)[0], find_blocks(model)[1])
    assert share > 0.5 and "mlp.experts.gate_up_proj" in names


def test_what_tokens_do_to_each_other_is_seen():
    """An encoder that loads as a causal LM, a state space that reads padding, families without a cache, and one that
    goes on from its state one token at a time only.
    """
    seen = {family: behaviour(tiny_family(family)) for family in ("llama", "bert", "mamba", "openai-gpt", "jamba")}
    assert seen == {"llama": (True, False), "bert": (False, True), "mamba": (True, True), "openai-gpt": (True, True),
                    "jamba": (True, True)}


def test_tied_head_counts_once():
    model = tiny_model("llama", tie_word_embeddings=True)
    bits, values = other_bits(model, find_linears(model)[0])
    norms = 7 * 32
    assert values == 320 * 32 + norms and bits == 32 * values


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="has no list of decoder blocks"):
        find_blocks(nn.Sequential(nn.Linear(4, 4)))


def test_identity_is_content_not_name(tiny_folder, tmp_path):
    twin = tmp_path / "other-name"
    shutil.copytree(tiny_folder, twin)
    ref, copy = model_ref(str(tiny_folder), torch.float32), model_ref(str(twin), torch.float32)
    assert ref.revision == copy.revision
    config = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert model_ref(str(twin), torch.float32).revision != ref.revision


def test_loading_from_a_folder(tiny_folder):
    ref = model_ref(str(tiny_folder), torch.bfloat16)
    model, tokenizer = load_model(str(tiny_folder), ref, torch.device("cpu")), load_tokenizer(str(tiny_folder), ref)
    assert not model.training and next(model.parameters()).dtype == torch.bfloat16 and tokenizer.padding_side == "left"
    hidden = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    assert torch.equal(model.lm_head(hidden[:, -1:]), model.lm_head(hidden[:, -1:].contiguous()))


def test_names_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="did you mean 'smollm2-135m'"):
        resolve_model("smolm2-135m", ("smollm2-135m",))
    with pytest.raises(UserError, match=r"holds no config\.json with \.safetensors"):
        model_ref(str(tmp_path), torch.float32)


def test_length_batches_cover_once_within_budget():
    lengths = [5, 30, 7, 7, 100, 1]
    batches = length_batches(lengths, 60)
    assert sorted(i for b in batches for i in b) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 60 for b in batches)
