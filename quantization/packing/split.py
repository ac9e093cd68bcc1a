"""A quantized model as a folder: config, the linears in two branches, everything else as it was.

    config.json        as the model's own; generation_config.json too, if it has one
    circuit.json       how each linear is split, and what the caller wants to remember (model, scores, ratio)
    model.safetensors  {linear}.kept, .codes, .maxima, .places (quantization/inference.py); all other weights

It is read back either in two branches, or dense: plain linears of the same effective weights, whose answers are those
of the quantized model that was evaluated in place, byte for byte.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from core.architecture import find_linears
from core.errors import UserError, one_line
from core.plain import make_plain
from core.types import LayerPlan
from quantization.inference import CircuitAwareLinear

ABOUT, WEIGHTS = "circuit.json", "model.safetensors"


def save_split(folder: Path, model: nn.Module, layers: dict[str, LayerPlan], facts: dict) -> int:
    """Write a model whose linears hold the weights as loaded; returns the bytes of its weights' file.

    The folder must be empty or new; config and tokenizer are the caller's to write.
    """
    linears = find_linears(model)[0]
    split = {fqn: CircuitAwareLinear.of(linears[fqn], layer) for fqn, layer in layers.items()}
    tensors = {f"{fqn}.{name}": value for fqn, module in split.items() for name, value in module.state_dict().items()}
    tied = tied_names(model)
    tensors |= {name: value for name, value in model.state_dict().items()
                if name.rpartition(".")[0] not in split and name not in tied}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    told = {fqn: {"by_rows": module.by_rows, "in": module.in_features, "out": module.out_features,
                  "dtype": str(module.dtype).removeprefix("torch."), "bias": module.bias is not None}
            for fqn, module in split.items()}
    (folder / ABOUT).write_text(json.dumps(facts | {"linears": told}, indent=1))
    return (folder / WEIGHTS).stat().st_size


def is_split(folder: str | Path) -> bool:
    """Whether a folder holds such a checkpoint."""
    return (Path(folder) / ABOUT).is_file()


def about(folder: str | Path) -> dict:
    """What circuit.json says; UserError if it is damaged."""
    try:
        told = json.loads((Path(folder) / ABOUT).read_text())
        if not {"linears", "model", "dataset", "eval_size", "calibrated"} <= told.keys():
            raise ValueError("fields are missing")
        return told
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{ABOUT} of checkpoint {str(folder)!r} does not read ({one_line(error)}); make it again with "
                        "scripts/quantize.py") from None


def load_split(folder: Path, dense: bool = False) -> nn.Module:
    """The model of such a folder, in eval mode and without gradients; ``dense``: in plain linears.

    Raises UserError for a folder whose files do not belong together.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    told = about(folder)["linears"]
    try:
        tensors = load_file(folder / WEIGHTS)
        dtype = getattr(torch, next(iter(told.values()))["dtype"])
        model = make_plain(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype))
        for fqn, own_facts in told.items():
            own = {name.removeprefix(f"{fqn}."): tensors.pop(name) for name in list(tensors)
                   if name.rpartition(".")[0] == fqn}
            module = CircuitAwareLinear(own_facts["in"], own_facts["out"], own["places"],
                                        by_rows=own_facts["by_rows"], dtype=dtype, bias=own_facts["bias"])
            module.load_state_dict(own)
            parent, _, name = fqn.rpartition(".")
            setattr(model.get_submodule(parent), name, module.dense() if dense else module)
        if (folder / "generation_config.json").is_file():  # which tokens end an answer
            model.generation_config = GenerationConfig.from_pretrained(folder)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except (OSError, ValueError, KeyError, StopIteration, RuntimeError, AttributeError, SafetensorError) as error:
        raise UserError(f"checkpoint {str(folder)!r} does not load ({type(error).__name__}: {one_line(error)}); "
                        "make it again with scripts/quantize.py") from None
    model.tie_weights()
    lacking = [name for name in missing if name.rpartition(".")[0] not in told and name not in tied_names(model)]
    if lacking or unexpected:
        name = (lacking or unexpected)[0]
        raise UserError(f"checkpoint {str(folder)!r} does not fit its config.json (first: {name}); make it again with "
                        "scripts/quantize.py")
    return model.eval().requires_grad_(False)


def tied_names(model: nn.Module) -> set[str]:
    """The weights that are another's and so not stored: the head's, where it is the embeddings'."""
    head = model.get_output_embeddings()
    shared = head is not None and head.weight is model.get_input_embeddings().weight
    return set(getattr(model, "_tied_weights_keys", None) or ()) if shared else set()
