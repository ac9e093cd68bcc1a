"""gguf: one file that llama.cpp runs, for Llama and Qwen2 models.

A linear's codes lie in the smallest type that can hold them, in blocks of 32 columns with fp16 numbers:

    type   ŵ              holds
    Q4_0   d (q − 8)      2 to 4 bits around zero
    Q4_1   d q + m        2 to 4 bits; m = −scale · zero point, rounded to fp16
    Q5_0   d (q − 16)     5 bits around zero
    Q5_1   d q + m        5 bits
    Q8_0   d q            6 bits; 7 and 8 bits around zero

So container bytes exceed the counted ones, and llama.cpp quantizes activations to 8 bits while it runs: its answers are
near the cell's and not equal.  k-quants are a quantizer of their own and never written.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from core.errors import UserError
from quantization.packing.checkpoint import Contents, Packed, Rules, Sizes
from quantization.packing.formats.common import grid_parts, other_weights, repeated, save_config
from quantization.solvers.grid import middle

BLOCK = 32
RULES = Rules(forms=frozenset({"grid"}), bits=frozenset({2, 3, 4, 5, 6}), around_zero=frozenset({7, 8}),
              group=lambda size: size % BLOCK == 0, groups="GGUF has blocks of 32 columns",
              families=("llama", "qwen2"))
WORDS = "one GGUF file for llama.cpp, which also rounds activations to 8 bits while it runs"
LOAD = "llama-cli -m DIR/model.gguf"
PERMUTED = {"llama": ("q_proj", "k_proj")}  # whose rows llama.cpp has in pairs of one rotation


def write(folder: Path, contents: Contents) -> Sizes:
    """model.gguf; config.json beside it says what the model was."""
    import gguf

    module, config = contents.module, contents.module.config
    if getattr(config, "rope_parameters", {}).get("rope_type", "default") != "default":
        raise UserError("this model stretches its positions (rope_type), which the gguf export does not write; use "
                        "another format")
    path, sizes = folder / "model.gguf", Sizes()
    writer = gguf.GGUFWriter(path, config.model_type)
    _write_config(writer, config)
    _write_tokenizer(writer, contents.tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def turned(fqn: str, rows: torch.Tensor) -> torch.Tensor:
        last = fqn.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        return in_pairs(rows, heads[last]) if last in PERMUTED.get(config.model_type, ()) else rows

    for fqn, packed in contents.linears.items():
        blocks, kind = blocks_of(module, fqn, packed, lambda rows, fqn=fqn: turned(fqn, rows))
        writer.add_tensor(names.get_name(f"{fqn}.weight", (".weight",)), blocks,
                          raw_dtype=gguf.GGMLQuantizationType[kind])
        sizes.linears += blocks.nbytes
    sizes.extra = {"codes in types of 4, 5 and 8 bits, numbers for every 32 columns": sizes.linears - contents.counted}
    for name, value in other_weights(contents).items():
        wanted = names.get_name(name, (".weight", ".bias"))
        if wanted is None:
            raise UserError(f"{name} has no place in a GGUF file of a {config.model_type}; use another format")
        value = turned(name, value)
        if value.ndim < 2:  # norms and biases
            writer.add_tensor(wanted, value.float().numpy())
        else:
            half = value.bfloat16().contiguous().view(torch.uint8).numpy()
            writer.add_tensor(wanted, half, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_config(folder, module)
    sizes.others = path.stat().st_size - sizes.linears
    return sizes


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [out, ...] of queries or keys in llama.cpp's order: the two halves of a head interleaved."""
    return rows.view(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def type_of(bits: int, symmetric: bool) -> str:
    """The smallest type that holds codes of so many bits."""
    if bits <= 5:
        return f"Q{max(4, bits)}_{0 if symmetric else 1}"
    return "Q8_0"


def blocks_of(module: torch.nn.Module, fqn: str, packed: Packed, turned) -> tuple[np.ndarray, str]:
    """A linear as GGUF blocks, uint8 [out, bytes a row], and their type."""
    codes, scale, zero = (turned(part) for part in grid_parts(module, fqn, packed))
    bits, group = packed.layer.bits, min(packed.layer.group_size, codes.shape[1])
    scale, zero = repeated(scale, group, BLOCK), repeated(zero, group, BLOCK)
    symmetric = bool((zero == middle(bits)).all())
    kind = type_of(bits, symmetric)
    blocked = codes.view(len(codes), -1, BLOCK).short()
    numbers = [scale.half()]
    if kind == "Q8_0":
        blocked = blocked - zero.short()[..., None]
        if int(blocked.min()) < -128 or int(blocked.max()) > 127:
            raise UserError(f"{fqn} at {bits} bits has zero points that Q8_0 cannot hold; quantize it with "
                            "symmetric=true, or at 6 bits at most")
        return _joined(numbers, [blocked.to(torch.int8)]), kind
    if symmetric:
        blocked = blocked + (middle(int(kind[1])) - middle(bits))
    else:
        numbers.append((-scale * zero).half())
    blocked = blocked.to(torch.uint8)
    low, parts = blocked & 15, []
    if kind[1] == "5":
        fifth = np.packbits((blocked >> 4).numpy(), axis=-1, bitorder="little")
        parts.append(torch.from_numpy(fifth))
    parts.append(low[..., :16] | (low[..., 16:] << 4))
    return _joined(numbers, parts), kind


def _joined(numbers: list[torch.Tensor], parts: list[torch.Tensor]) -> np.ndarray:
    """Each block's fp16 numbers, then its bytes: uint8 [out, bytes a row]."""
    pieces = [number[..., None].contiguous().view(torch.uint8) for number in numbers]
    pieces += [part.contiguous().view(torch.uint8) for part in parts]
    return torch.cat(pieces, dim=-1).flatten(1).numpy()


def _write_config(writer, config) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _write_tokenizer(writer, tokenizer, count: int) -> None:
    """A byte-level BPE; UserError for any other, and for one whose way to split a text llama.cpp has no name for."""
    import gguf

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    if told["model"]["type"] != "BPE":
        raise UserError(f"the gguf export writes byte-level BPE tokenizers; this one is {told['model']['type']}")
    words, added = {number: word for word, number in tokenizer.get_vocab().items()}, tokenizer.added_tokens_decoder
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(told["pre_tokenizer"]))
    writer.add_token_list([words.get(number, f"[PAD{number}]") for number in range(count)])
    writer.add_token_types([kinds.UNUSED if number not in words else kinds.NORMAL if number not in added
                            else kinds.CONTROL if added[number].special else kinds.USER_DEFINED
                            for number in range(count)])
    merges = told["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    for add, number in ((writer.add_bos_token_id, tokenizer.bos_token_id),
                        (writer.add_eos_token_id, tokenizer.eos_token_id),
                        (writer.add_pad_token_id, tokenizer.pad_token_id)):
        if number is not None:
            add(number)
    writer.add_add_bos_token(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def split_name(told: dict | None) -> str:
    """llama.cpp's name for how a tokenizer.json splits a text before it merges."""
    parts = told["pretokenizers"] if told and told["type"] == "Sequence" else [told or {}]
    kinds = [part.get("type") for part in parts]
    patterns = [part["pattern"].get("Regex", "") for part in parts if part.get("type") == "Split"]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and r"\p{N}{1,3}" in patterns[0]:
        return "llama-bpe"
    if kinds == ["Split", "ByteLevel"] and r"|\p{N}|" in patterns[0]:
        return "qwen2"
    raise UserError("the gguf export knows no name for how this tokenizer splits a text "
                    f"({', '.join(map(str, kinds))}); use another format")
