"""A folder with a Llama of random weights in Llama-3.1-8B's shape, or of another size, for speed and memory."""

import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from core.demo_model import ensure_demo_model

SHAPE = "4096x14336x32"
HEAD, QUERIES = 128, 4  # dimensions of a head; heads of queries to one of keys and values
VOCABULARY, POSITIONS = 128256, 8192


def llama_config(shape: str) -> LlamaConfig:
    """Of WIDTHxMLPxBLOCKS, the rest as in Llama-3.1-8B; where heads of queries do not come in fours, one of keys."""
    width, mlp, blocks = map(int, shape.split("x"))
    heads = max(1, width // HEAD)
    return LlamaConfig(hidden_size=width, intermediate_size=mlp, num_hidden_layers=blocks, num_attention_heads=heads,
                       num_key_value_heads=heads // QUERIES if heads % QUERIES == 0 else 1, vocab_size=VOCABULARY,
                       rms_norm_eps=1e-5, max_position_embeddings=POSITIONS, tie_word_embeddings=False,
                       architectures=["LlamaForCausalLM"], dtype=torch.bfloat16)


def save_tokenizer(folder: Path) -> None:
    """The demo's."""
    AutoTokenizer.from_pretrained(ensure_demo_model(Path("saved_models/base"))).save_pretrained(folder)


def random_llama(shape: str, folder: Path) -> str:
    """Write bf16 weights and the demo's tokenizer into ``folder``, if it is not there; returns its name."""
    if folder.is_dir():
        return str(folder)
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in float32 first, 8B would take 32 GB
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(llama_config(shape))
    finally:
        torch.set_default_dtype(before)
    save_tokenizer(unfinished)
    model.save_pretrained(unfinished, max_shard_size="5GB")
    unfinished.rename(folder)
    del model
    torch.cuda.empty_cache()  # the GPU is for what is measured
    return str(folder)
