"""Tiny random models of every causal-LM family that ``transformers`` knows, for the matrix of families and its test.

A family's own configuration class with small numbers in the fields it has (``SMALL``), and what it needs besides
(``OWN``): widths that must fit together, a pattern of layers in which every kind of layer occurs.
"""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 320  # of the tests' byte tokenizer
FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 1_000_000  # values; a model beyond is not tiny
SMALL = dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim"), 32) | dict.fromkeys(
    ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "decoder_layers"), 2) | dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
    ) | dict.fromkeys(
    ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_inner"), 64) | dict.fromkeys(
    ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 2048) | dict.fromkeys(
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4) | dict.fromkeys(
    ("state_size", "mamba_d_state", "ssm_state_size", "rotary_dim"), 8) | dict(
    encoder_layers=1, num_key_value_heads=2, head_dim=8, word_embed_proj_dim=32, embedding_size=32,
    moe_intermediate_size=32, shared_expert_intermediate_size=32, vocab_size=VOCABULARY, num_experts_per_tok=2,
    n_group=1, topk_group=1, n_shared_experts=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8,
    qk_nope_head_dim=8, v_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
    linear_value_head_dim=8, time_step_rank=16, mamba_dt_rank=16, mamba_n_heads=8, mamba_d_head=8, mamba_num_heads=8,
    mamba_head_dim=8, mamba_n_groups=1, n_groups=1, mamba_d_ssm=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
OPTIONAL = ("q_lora_rank",)  # None says that there is none
BOTH_KINDS = ["linear_attention", "full_attention"]
INDEXED = dict(index_head_dim=16, index_n_heads=4, num_key_value_heads=4)
OWN: dict[str, dict] = {  # None: SMALL's value is left out
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1),
    "axk2": INDEXED, "deepseek_v32": INDEXED | dict(first_k_dense_replace=1), "glm_moe_dsa": INDEXED,
    "dots3_note_text": INDEXED | dict(per_layer_config={}, layer_types=["indexed_attention", "sliding_attention"],
                                      shared_experts_intermediate_size=32, head_dim=16),
    "bailing_hybrid": dict(layer_types=BOTH_KINDS, mlp_layer_types=["dense", "sparse"]),
    "bamba": dict(attn_layer_indices=[1]),
    "cohere_compass_text": dict(layer_types=["sliding_attention", "full_attention"], rope_parameters={
        kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")}),
    "granitemoehybrid": dict(layer_types=["linear_attention", "full_attention"], shared_intermediate_size=32),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"], num_dense_layers=1),
    "lfm3": dict(layer_types=["conv", "full_attention"]),
    "recurrent_gemma": dict(block_types=["recurrent", "attention"], num_attention_heads=8, num_key_value_heads=1,
                            head_dim=4, intermediate_size=256),
    "gemma3n_text": dict(vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8, num_kv_shared_layers=0,
                         laurel_rank=8, layer_types=["sliding_attention", "full_attention"]),
    "gemma4_text": dict(vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8,
                        per_layer_config={"1": {"head_dim": 16}}),
    "inkling_text": dict(swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, d_rel=8, rel_extent=64),
    "inkling2_text": dict(swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, d_rel=8, rel_extent=64,
                          unpadded_vocab_size=VOCABULARY),
    "kimi_linear": dict(layer_types=BOTH_KINDS, linear_head_dim=8, linear_num_heads=4, q_lora_rank=None,
                        num_key_value_heads=4),
    "longcat_flash": dict(zero_expert_num=2),
    "zamba": dict(layers_block_type=["linear_attention", "hybrid"], attention_hidden_size=64, attention_head_dim=16,
                  num_key_value_heads=4, intermediate_size=64),
    "zamba2": dict(layers_block_type=["linear_attention", "hybrid"], attention_hidden_size=64, attention_head_dim=16,
                   num_key_value_heads=4, num_query_groups=4, kv_channels=8, mamba_headdim=8, mamba_d_state=8,
                   adapter_rank=8, n_mamba_heads=8),
    "zaya": dict(num_experts_per_tok=1, layer_types=["hybrid", "hybrid"], router_hidden_size=16),
    "xlstm": dict(embedding_dim=32, num_blocks=2, v_head_dim=None, ffn_round_up_to_multiple_of=16),
    "falcon": dict(head_dim=None), "gpt_neo": dict(attention_types=[[["global", "local"], 1]]),
    "cpmant": dict(dim_head=8, dim_ff=64, prompt_types=32, segment_types=32, position_bias_num_buckets=32),
    "ctrl": dict(dff=64), "rembert": dict(input_embedding_size=32, output_embedding_size=32),
    "roc_bert": dict(pronunciation_embed_dim=8, shape_embed_dim=8, shape_vocab_size=32, pronunciation_vocab_size=32),
    "dbrx": dict(ffn_config=dict(ffn_hidden_size=32, moe_num_experts=4, moe_top_k=2, hidden_size=32),
                 attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0)),
    "reformer": dict(is_decoder=True, axial_pos_embds=False, feed_forward_size=64, attention_head_size=8,
                     attn_layers=["local", "local"]),
    "qwen4_exp_text": dict(layer_types=BOTH_KINDS, hc_lowrank=8, indexer_n_heads=2, indexer_kv_heads=1,
                           indexer_head_dim=8, indexer_budget=64, indexer_compress_ratio=4),
    "ernie4_5_moe": dict(moe_k=2),
    "mamba": dict(hidden_size=64, state_size=4), "falcon_mamba": dict(hidden_size=64, state_size=4),
    "mamba2": dict(hidden_size=64, num_heads=8, head_dim=16, conv_kernel=2),
}
OWN |= {family: dict(layer_types=BOTH_KINDS)
        for family in ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next")}
OWN |= {"qwen4_exp": OWN["qwen4_exp_text"], "dots3_note": OWN["dots3_note_text"], "gemma3n": OWN["gemma3n_text"],
        "gemma4": OWN["gemma4_text"]}


def tiny_config(family: str, **changes):
    """The configuration of a family's tiny model."""
    whole = CONFIG_MAPPING[family]
    own = OWN.get(family, {})
    try:
        kind = type(whole().get_text_config(decoder=True))
    except TypeError:  # a configuration that needs parts
        kind = whole
    has = {**vars(kind), **getattr(kind, "__annotations__", {}), **getattr(kind, "attribute_map", {})}
    asked = {name: value for name, value in SMALL.items() if name in has} | own | changes
    if "kv_lora_rank" in asked and "num_key_value_heads" not in own:  # latent attention has as many as query heads
        asked["num_key_value_heads"] = asked["num_attention_heads"]
    return kind(**{name: value for name, value in asked.items() if value is not None or name in OPTIONAL})


def tiny_model(family: str, **changes) -> torch.nn.Module:
    """The same weights every time: those that the family draws, and random ones for what it leaves at zero."""
    config = tiny_config(family, **changes)
    with torch.device("meta"):
        values = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if values > LARGEST:
        raise ValueError(f"the tiny {family} has {values:,} values; add what makes it smaller to OWN")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for p in model.parameters():
        if not torch.isfinite(p).all() or not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return model.requires_grad_(False)
