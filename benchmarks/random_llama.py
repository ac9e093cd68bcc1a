"""A folder with a Llama of random weights in Llama-3.1-8B's shape, or of another size, for speed and memory."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from core.demo_model import ensure_demo_model

SHAPE = "4096x14336x32"
HEAD, QUERIES = 128, 4  # dimensions of a head; heads of queries to one of keys and values
VOCABULARY, POSITIONS = 128256, 8192


def random_llama(shape: str, folder: Path) -> str:
    """Write bf16 weights and the demo's tokenizer into ``folder`` once; returns its name.

    shape: WIDTHxMLPxBLOCKS; a width below that of 4 heads has one of each.
    """
    if (folder / "config.json").is_file():
        return str(folder)
    width, mlp, blocks = map(int, shape.split("x"))
    heads = max(1, width // HEAD)
    config = LlamaConfig(hidden_size=width, intermediate_size=mlp, num_hidden_layers=blocks, num_attention_heads=heads,
                         num_key_value_heads=max(1, heads // QUERIES), vocab_size=VOCABULARY, rms_norm_eps=1e-5,
                         max_position_embeddings=POSITIONS, dtype=torch.bfloat16)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in float32 first, 8B would take 32 GB
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    AutoTokenizer.from_pretrained(ensure_demo_model(Path("saved_models/base"))).save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="5GB")
    return str(folder)
