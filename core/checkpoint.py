"""What a checkpoint must be before it is measured: whole files, every weight, a causal mask, embedded tokens.

``transformers`` fills a missing weight with random numbers and says so in a log line; a table of numbers would not show
it.  Weights are read from safetensors only: a pickle can run code, even though loaders have learnt to restrain it.
"""

import json
from pathlib import Path

from torch import nn

from core.errors import UserError, one_line

LARGEST = 2**40  # values of one weight; a config.json that states more is wrong


def unloadable(what: str, error: Exception, mend: str) -> UserError:
    """The one sentence for whatever a library raises while it reads a user's model."""
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return UserError(f"{what}, for it comes with code of its own, which is never run here; "
                         "use a model that transformers knows by itself")
    return UserError(f"{what} ({one_line(error)}); {mend}")


def check_files(folder: Path) -> None:
    """Refuse a folder without config or safetensors, without a shard that its index names, or with a damaged file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files and (pickled := sorted(folder.glob("*.bin"))):
        raise UserError(f"model folder {str(folder)!r} holds its weights as a pickle ({pickled[0].name}), "
                        "which is never loaded because it can run code; save it again with save_pretrained, "
                        "which writes .safetensors")
    if not files or not (folder / "config.json").is_file():
        raise UserError(f"model folder {str(folder)!r} holds no config.json with .safetensors weights; "
                        "save one with save_pretrained")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_index(index)
    for path in files:
        _check_file(path)


def _check_index(index: Path) -> None:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"weights' index {str(index)!r} does not read ({one_line(error)}); "
                        "copy or download it again") from None
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"weights' file {missing[0]!r}, which {str(index)!r} names, is missing "
                        f"({len(missing)} of {len(shards)} files); copy or download it again")


def _check_file(path: Path) -> None:
    """Read the header: it states the file's length, so a copy that broke off is found without reading the weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights' file {str(path)!r} is damaged ({one_line(error)}); "
                        "delete it and copy or download it again") from None


def check_loaded(name: str, info: dict) -> None:
    """Refuse a model of which ``transformers`` had to make up a weight; ``info`` is its loading report."""
    mismatched, missing = sorted(info["mismatched_keys"]), sorted(info["missing_keys"])
    if mismatched:
        key, stored, stated = mismatched[0]
        raise UserError(f"model {name!r} does not load: {key} has shape {list(stored)} in the weights "
                        f"and {list(stated)} by config.json ({len(mismatched)} such weights); "
                        "put the config.json beside the weights that it belongs to")
    if missing:
        raise UserError(f"model {name!r} does not load: its weights lack {missing[0]} ({len(missing)} missing), "
                        "which would be random numbers; copy or download the whole checkpoint")


def check_causal(name: str, model: nn.Module) -> None:
    """Refuse an encoder that loads as a causal LM but without a causal mask (BERT and its kin): it sees the answer."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = model.config.model_type
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(model.config, "is_decoder", False):
        raise UserError(f"model {name!r} is a {kind}, which reads in both directions; "
                        "use a causal LM such as a llama, qwen or gemma")


def check_sizes(name: str, model: nn.Module) -> None:
    """Refuse a config.json that states a weight of no values or of more than any model has."""
    for key, weight in model.named_parameters():
        if not 0 < weight.numel() <= LARGEST:
            raise UserError(f"the config.json of model {name!r} states the shape {list(weight.shape)} for {key}, "
                            "which no model has; put the config.json there that belongs to the weights")


def check_vocabulary(name: str, tokenizer, rows: int) -> None:
    """Refuse a tokenizer whose ids have no row in the embedding: on a GPU that error has no name.

    Added tokens count only where they are used by themselves (BOS, EOS, padding); some models list ones that they never
    see.  A tokenizer without any of the three lost its configuration: nothing would ever end an answer.
    """
    used = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None]
    if not used:
        raise UserError(f"the tokenizer of {name!r} has no token that begins, ends or pads a text (bos, eos, pad); "
                        "copy or download its tokenizer_config.json again")
    top = max([tokenizer.vocab_size - 1, *used])
    if top >= rows:
        raise UserError(f"the tokenizer of {name!r} has token ids up to {top}, "
                        f"but the model's embedding has {rows} rows; use the tokenizer that belongs to the model")
