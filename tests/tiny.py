"""Tiny random models of several families and a tokenizer, for tests that need the real thing in small."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from core.architecture import find_blocks, find_linears
from core.settings import SETTINGS
from core.types import CalibSet, LayerPlan, ScoreContext
from quantization.apply import Originals
from streams.gradients import gradient_sums
from streams.hessians import pivots_of
from streams.outputs import PARAMS as OUTPUT_PARAMS
from streams.outputs import block_outputs

VOCAB = 320
COMMON = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=VOCAB,
              max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.3)
CONFIGS = {
    "falcon": lambda: FalconConfig(**COMMON, new_decoder_architecture=False, multi_query=True),
    "llama": lambda: LlamaConfig(**COMMON),
    "mistral": lambda: MistralConfig(**COMMON),
    "qwen2": lambda: Qwen2Config(**COMMON),
    "qwen3": lambda: Qwen3Config(**COMMON, head_dim=8),
    "gemma2": lambda: Gemma2Config(**COMMON, head_dim=8, sliding_window=64),
    "phi": lambda: PhiConfig(**{**COMMON, "num_key_value_heads": 4}),
    "phi3": lambda: Phi3Config(**COMMON),
    "opt": lambda: OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=VOCAB,
                             word_embed_proj_dim=32,
                             max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0, init_std=0.3),
}


def tiny_model(family: str, seed: int = 0, **changes):
    """A random float32 model of ``family`` in eval mode; the same weights every time."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    config.update(changes)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and three special ones: no vocabulary to download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                   padding_side="left")


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """Save an 8-block Llama whose smallest linear is small enough to meet a budget to 0.01 bits."""
    model = tiny_model("llama", seed, num_hidden_layers=8, num_key_value_heads=1)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def calib_set(count: int = 6, seed: int = 0, task: str = "trivia_qa") -> CalibSet:
    """Random prompts of 5 to 30 tokens."""
    rng = np.random.default_rng(seed)
    tokens = tuple(rng.integers(3, 250, rng.integers(5, 30)) for _ in range(count))
    return CalibSet(task, tuple(f"doc{i}" for i in range(count)), tokens, tuple(np.ones(len(t), bool) for t in tokens),
                    seed, "t")


PARAMS = dict(seed=0, oracle_docs=4, batch_tokens=4096, group_size=8, levels=(2, 3, 4, 16),
              base={"bits": 3, "group": 8}, corrupt={"quantizer": ["gptq", 1], "options": {}})


def context(model, spec, calib: CalibSet | None = None, tokenizer=None, metric=None, **params) -> ScoreContext:
    """What the harness would hand to a scorer."""
    linears, block_of = find_linears(model)
    calib, blocks = calib or calib_set(), find_blocks(model)[1]
    defaults = {name: SETTINGS[name].default for name in spec.params if name in SETTINGS}

    def corrupted():
        originals = Originals(linears)
        originals.solve({f: LayerPlan(3, 8) for f in linears}, "gptq", model=model, blocks=blocks, block_of=block_of,
                        calib=calib)
        out = {f: lin.weight.detach().clone() for f, lin in linears.items()}
        originals.restore()
        return out

    def outputs(chosen):
        return block_outputs(replace(ctx, allowed=OUTPUT_PARAMS, params={"published": False} | ctx.params), chosen)

    ctx = ScoreContext(
        model=model, tokenizer=tokenizer or byte_tokenizer(), linears=linears, blocks=blocks, block_of=block_of,
        calib=calib, params=defaults | PARAMS | params, allowed=spec.params, task_metric=metric, solver_calib=calib,
        answers=calib,
        gradients=lambda kind: gradient_sums(model, linears, calib, (kind,)).sums[kind],
        outputs=outputs, pivots=lambda: pivots_of(ctx), corrupted=corrupted, base=lambda shape: LayerPlan(3, 8))
    return ctx
