"""Load any causal LM that ``transformers`` knows, on one device; core/architecture.py finds what can be quantized."""

import hashlib
import os
from pathlib import Path

import torch
from torch import nn

from core.checkpoint import check_causal, check_files, check_loaded, check_sizes, check_vocabulary, unloadable
from core.digest import file_sha256
from core.errors import UserError, did_you_mean, one_line
from core.plain import make_plain
from core.types import ModelRef

# what reading a user's model raises: families check their own fields, libraries have errors of their own, some bare
LOAD_ERRORS = Exception

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEADER = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # types by their names in a safetensors file


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" takes CUDA, else the CPU.

    MPS has no float64, which the statistics need.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    try:
        return torch.empty(1, device=name).device  # "cuda" has a number then
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here ({one_line(error)}); "
                        "use auto, cpu, cuda or cuda:N") from None


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype; "auto" is bf16 where the hardware computes in it, else fp16 (CUDA) or fp32 (CPU)."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def model_ref(name: str, dtype: torch.dtype, token: str | None = None, known=()) -> ModelRef:
    """Identify the weights by content: folder -> sha256 over config and weight files, hub -> commit.

    ``known`` names are suggested for one that cannot be reached, unless it is one of them.
    """
    folder = Path(name)
    text = str(dtype).removeprefix("torch.")
    if folder.is_dir():
        return ModelRef(folder.name, _folder_sha(folder), text)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hint = "" if name in known else did_you_mean(name, known)
    try:
        return ModelRef(name, HfApi(token=token).model_info(name).sha, text)
    except HfHubHTTPError as error:
        raise UserError(f"model {name!r} is not to be had from the hub ({error.response.status_code}){hint}; "
                        "check the name, or pass --hf_token or HF_TOKEN for a gated model") from None
    except Exception as error:  # no network: fall back to what the hub client has cached
        commit = _cached_commit(name)
        if commit:
            return ModelRef(name, commit, text)
        raise UserError(f"model {name!r} is neither a folder nor reachable on the hub ({type(error).__name__}){hint}; "
                        "pass a local folder or go online") from None


def _cached_commit(name: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    ref = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def _folder_sha(folder: Path) -> str:
    """sha256 over the names and contents of config, weight and tokenizer files; the folder's name does not count."""
    check_files(folder)
    kinds = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.bin")
    files = sorted({f for kind in kinds for f in folder.glob(kind) if not f.name.startswith(".")})
    lines = [f"{f.name}:{file_sha256(f)}" for f in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_tokenizer(name: str, ref: ModelRef, token: str | None = None):
    """Load the tokenizer at the pinned revision, padding on the left."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **_revision(name, ref, token))
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **_revision(name, ref, token))
    except LOAD_ERRORS as error:
        raise unloadable(f"the tokenizer of {name!r} does not load", error,
                         "copy or download its tokenizer files again") from None
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_vocabulary(name, tokenizer, config.get_text_config().vocab_size)
    return tokenizer


def load_model(name: str, ref: ModelRef, device: torch.device, token: str | None = None) -> nn.Module:
    """Load the model at the pinned revision, in eval mode, without gradients, remote code and pickles off."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=getattr(torch, ref.dtype), trust_remote_code=False, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True, **_revision(name, ref, token))
        check_loaded(name, info)  # the library's own complaint about sizes names neither weight nor shape
        model.to(device)
    except UserError:
        raise
    except torch.OutOfMemoryError:
        raise UserError(f"model {name!r} does not fit on {device}; "
                        "use a smaller model, --dtype bf16 or --device cpu") from None
    except LOAD_ERRORS as error:
        raise unloadable(f"model {name!r} does not load", error,
                         "copy or download the whole checkpoint again") from None
    return ready(model)


def ready(model: nn.Module) -> nn.Module:
    """A loaded model as everything here expects it: in eval mode, without gradients, its matrices in linears, its head
    given whole inputs.
    """
    make_plain(model)
    model.eval().requires_grad_(False)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        # logits_to_keep hands the head a strided slice, which torch's CPU matmul turns into a batched product on a
        # copy of the whole head per row (450 MB at 8 rows of SmolLM2); a contiguous input keeps it one plain product
        head.register_forward_pre_hook(lambda _module, args: (args[0].contiguous(), *args[1:]))
    return model


def empty_model(name: str, ref: ModelRef, token: str | None = None) -> nn.Module:
    """The model's modules without weights (on the meta device), to count and name them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **_revision(name, ref, token))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, ref.dtype), trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise unloadable(f"model {name!r} is not a causal LM that transformers knows", error,
                         "use a causal LM with the config.json that belongs to it") from None
    check_causal(name, model)
    check_sizes(name, model)
    return make_plain(model)


def file_dtypes(path: Path) -> set[str]:
    """The types of a safetensors file's tensors, as its header names them."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}


def stored_dtype(name: str, ref: ModelRef, token: str | None = None) -> str | None:
    """The type of a checkpoint's weights, such as "bfloat16": of a folder by its files (None if there are several), of
    one on the hub as its config.json says.
    """
    if Path(name).is_dir():
        stored = {types for path in Path(name).glob("*.safetensors") for types in file_dtypes(path)}
        return HEADER.get(stored.pop()) if len(stored) == 1 else None
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **_revision(name, ref, token))
    told = getattr(config, "dtype", None)
    return None if told is None else str(told).removeprefix("torch.")


def _revision(name: str, ref: ModelRef, token: str | None) -> dict:
    return {} if Path(name).is_dir() else {"revision": ref.revision, "token": token}


def resolve_model(name: str, presets) -> str:
    """Check a model name early: a folder, a hub id, or an error that suggests the nearest preset."""
    if name and Path(name).is_dir():  # Path("") is the current folder
        return os.path.abspath(name)
    is_path = name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
    if is_path and not Path(name).exists():
        raise UserError(f"model folder {name!r} does not exist; check the path")
    if is_path or name.count("/") != 1:
        hint = did_you_mean(name, list(presets))
        raise UserError(f"unknown model {name!r}{hint}; pass a hub id (owner/name), a local folder, "
                        f"or one of: {', '.join(presets)}")
    return name
