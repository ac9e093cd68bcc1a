"""hf: plain safetensors that hold ŵ in the model's dtype.  Loads anywhere, saves no memory."""

from __future__ import annotations

from pathlib import Path

from core.plain import stored_state
from quantization.packing.checkpoint import Contents, Rules, Sizes

RULES = Rules(keeps=True, mixes_groups=True, fused=True)
WORDS = "plain safetensors of the dequantized weights: loads wherever the model did, and takes as much memory"
LOAD = 'AutoModelForCausalLM.from_pretrained("DIR")'


def write(folder: Path, contents: Contents) -> Sizes:
    """Config and weights, by transformers."""
    module = contents.module
    module.save_pretrained(folder, state_dict=stored_state(module))
    state = {fqn: module.get_submodule(fqn).weight for fqn in contents.linears}
    linears = sum(weight.nbytes for weight in state.values())
    whole = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    reason = f"weights written out in {str(module.dtype).removeprefix('torch.')}"
    return Sizes(linears=linears, others=whole - linears, extra={reason: linears - contents.counted})
