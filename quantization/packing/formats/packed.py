"""packed: our own safetensors form, for every method.  Linears hold the arrays that are counted, and decode on the fly.

    model.safetensors   {linear}.{array} uint8 as in quantization/packing/forms.py, {linear}.bias; all other weights, in
                        bf16 where that loses nothing
    packed.json         the plan of every linear, the dtype of the arithmetic, what is done to activations
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from core.activations import Activations
from core.digest import write_json
from core.errors import UserError, one_line
from core.model import ready
from core.plain import make_plain
from core.types import LayerPlan
from quantization.activations import quantizing
from quantization.packing.checkpoint import Contents, Rules, Sizes, check_export, is_export
from quantization.packing.decode import PackedLinear, bits_of_groups
from quantization.packing.formats.common import WEIGHTS, narrowest, other_weights, save_config, save_weights
from quantization.packing.split import tied_names
from quantization.solvers.kept import sixteen_bit

RULES = Rules(keeps=True, mixes_groups=True, activations=True, fused=True)
WORDS = "the stored bits themselves: linears hold packed codes and decode them when they are used"
LOAD = 'from quantization.packing.formats.packed import load_packed; load_packed("DIR")'
PLAN = "packed.json"
OF_PLAN = [f.name for f in fields(LayerPlan) if f.name not in ("keep", "group_bits", "dynamic_heads")]


def write(folder: Path, contents: Contents) -> Sizes:
    """Config, packed.json and model.safetensors."""
    module, dtype = contents.module, contents.module.dtype
    tensors = {f"{fqn}.{name}": torch.from_numpy(array) for fqn, packed in contents.linears.items()
               for name, array in packed.arrays.items()}
    linears = sum(tensor.nbytes for tensor in tensors.values())
    tensors |= {name: narrowest(value) for name, value in other_weights(contents).items()}
    tensors |= {f"{fqn}.kept_channels": mask for fqn, mask in contents.kept_channels.items()}
    size = save_weights(folder, tensors)
    layers = {fqn: {name: getattr(packed.layer, name) for name in OF_PLAN} | {
        "shape": list(module.get_submodule(fqn).weight.shape), "arrays": sorted(packed.arrays)}
        for fqn, packed in contents.linears.items()}
    write_json(folder / PLAN, {"dtype": str(dtype).removeprefix("torch."), "quantizer": contents.quantizer,
                               "activations": asdict(contents.activations), "linears": layers})
    save_config(folder, module)
    return Sizes(linears=linears, others=size - linears)


def is_packed(folder: str | Path) -> bool:
    """Whether a folder holds such a checkpoint."""
    return (Path(folder) / PLAN).is_file()


def load_packed(folder: str | Path, device: str | torch.device = "cpu", *, dense: bool = False) -> nn.Module:
    """The model of such a folder, in eval mode and without gradients, in the dtype that quantized it.

    Its linears hold packed codes and decode them when they are used; ``dense``: plain linears of the same weights.
    Activations are quantized as they were in the run.  Raises UserError that names the file for a folder that was cut,
    edited or put together from others.
    """
    folder = Path(folder)
    if not is_export(folder) or not is_packed(folder):
        raise UserError(f"{str(folder)!r} is no packed export; make one with run_taq_icml.py --export DIR "
                        "--format packed")
    check_export(folder)
    return load_checked(folder, device, dense=dense)


def load_checked(folder: Path, device: str | torch.device = "cpu", *, dense: bool = False) -> nn.Module:
    """The same of a folder whose files were checked already."""
    try:
        told = json.loads((folder / PLAN).read_text())
        model = _filled(folder, told, load_file(folder / WEIGHTS), torch.device(device), dense=dense)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
        raise UserError(f"packed export {str(folder)!r} does not load ({type(error).__name__}: {one_line(error)}); "
                        "export the model again") from None
    return model


def _filled(folder: Path, told: dict, tensors: dict[str, torch.Tensor], device: torch.device, dense: bool) -> nn.Module:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    dtype = getattr(torch, told["dtype"])
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    make_plain(model)
    kept = {name.removesuffix(".kept_channels"): tensors.pop(name) for name in list(tensors)
            if name.endswith(".kept_channels")}
    for fqn, facts in told["linears"].items():
        arrays = {name: tensors.pop(f"{fqn}.{name}") for name in facts["arrays"]}
        shape, layer = tuple(facts["shape"]), LayerPlan(**{name: facts[name] for name in OF_PLAN})
        if "map" in arrays:
            layer = replace(layer, group_bits=bits_of_groups(arrays["map"], -(-shape[1] // layer.group_size)))
        bias = tensors.pop(f"{fqn}.bias", None)
        module = PackedLinear(layer, shape, {name: array.to(device) for name, array in arrays.items()}, dtype=dtype,
                              kept_dtype=sixteen_bit(dtype), quantizer=told["quantizer"],
                              bias=None if bias is None else bias.to(device, dtype))
        parent, _, name = fqn.rpartition(".")
        setattr(model.get_submodule(parent), name, module.dense() if dense else module)
    state = {name: value.to(device, dtype if value.is_floating_point() else value.dtype)
             for name, value in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    lacking = [name for name in missing if name.rpartition(".")[0] not in told["linears"]
               and name not in tied_names(model)]
    if lacking or unexpected:
        raise ValueError(f"{WEIGHTS} does not fit config.json, first at {(lacking or unexpected)[0]}")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model = ready(model.to(device))
    how = Activations(**told["activations"])
    if not how.plain:
        model.quantized_activations = ExitStack()  # its hooks stay with the model
        model.quantized_activations.enter_context(quantizing(model, how, kept))
    return model
