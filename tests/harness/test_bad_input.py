"""Every kind of unusable input in one table: exit status 2, one sentence, no traceback, no file left behind.

A row is what is put in place first, the flags, and the words that the sentence must hold: the thing, the value, and
what is allowed or how to mend it.  A refused run leaves nothing, but for the cache entry "finite" where a row says so:
the weights
were checked, which any later run uses again.
"""

import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from core.registry import METHODS
from harness.cli.main import main
from harness.store.store import Store
from print_results import main as print_main
from report.records import load_results, load_samples
from tests.tiny import byte_tokenizer, tiny_model

REPO = Path(__file__).resolve().parents[2]
QUESTION = {"question_id": 1, "question": "q?", "options": ["a", "b"], "answer": "A", "answer_index": 0,
            "category": "c", "src": "", "cot_content": ""}
SECRET = "hf_a-secret-that-must-not-be-shown"


class Row(NamedTuple):
    """``ready(at, monkeypatch)`` prepares the folder ``at``; {at} and {tiny} in flags and words stand for it and for a
    good model.
    """

    ready: object
    flags: str
    words: tuple[str, ...]
    leaves: tuple[str, ...] = ()  # stages whose cache entries may stay
    lacks: tuple[str, ...] = ()  # words that the sentence must not hold


def asks(flags: str, *words: str, leaves: tuple[str, ...] = ()) -> Row:
    return Row(None, flags, words, leaves)


# ---- what is put in place -------------------------------------------------------------------------------------------

def file(name: str, text: str = "x"):
    return lambda at, _: (at / name).write_text(text)


def plugin(text: str) -> object:
    return file("plug.py", text)


def rows(*changes: dict, raw: bytes | None = None, name: str = "test.jsonl"):
    """MMLU-Pro in a folder: the good question with each of the changes, or these bytes."""
    def ready(at, _):
        path = at / "data" / "mmlu_pro" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(raw if raw is not None else "".join(json.dumps(QUESTION | c) + "\n" for c in changes).encode())
    return ready


def model(change):
    """A copy of the good model in ``at``/model, changed."""
    def ready(at, _):
        shutil.copytree(at.parent / "good", at / "model")
        change(at / "model")
    return ready


def config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return model(change)


def cut(name: str, size: int):
    return model(lambda folder: os.truncate(folder / name, size))


def weights(change):
    """The good model with its weights changed."""
    def rewrite(folder):
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path, {"format": "pt"})
    return model(rewrite)


def broken(name: str, value: float = float("nan")):
    return weights(lambda tensors: tensors[name].view(-1)[:1].fill_(value))


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def saved(make, **kwargs):
    """A fresh model of another kind."""
    def ready(at, _):
        make().save_pretrained(at / "model", **kwargs)
        byte_tokenizer().save_pretrained(at / "model")
    return ready


def no_special_tokens(folder):
    """The tokenizer as its tokenizer.json alone makes it."""
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in stated.items() if k not in ("bos_token", "eos_token", "pad_token")}))


def template(text: str):
    return model(lambda folder: (folder / "chat_template.jinja").write_text(text))


def data_folder(name: str):
    return lambda at, _: (at / "data" / name).mkdir(parents=True)


def bert():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                                      vocab_size=320))


def shard_lost(at, _):
    saved(lambda: tiny_model("llama"), max_shard_size="100KB")(at, _)
    sorted((at / "model").glob("*.safetensors"))[1].unlink()


def damaged_demo(at, _):
    shutil.copytree(at.parent / "good", at / "cache" / "base" / "SmolLM2-135M-Instruct")
    os.truncate(at / "cache" / "base" / "SmolLM2-135M-Instruct" / "model.safetensors", 20000)


def hub(status: int | None):
    """A hub that answers with this status, or cannot be reached."""
    def ready(at, patch):
        import httpx
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        def answer(*_, **__):
            if status is None:
                raise ConnectionError("no network")
            raise HfHubHTTPError("no", response=httpx.Response(status, request=httpx.Request("GET", "https://hub")))

        patch.setattr(HfApi, "model_info", answer)
        patch.setenv("HF_TOKEN", SECRET)
    return ready


def offline(at, patch):
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def no_hub_data(at, patch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("no network")

    patch.setattr(datasets, "load_dataset", refuse)


def refusing(number: int, name: str):
    """A disk that answers every write below a folder with this error: permissions do not bind root, so tests cannot
    take them away.
    """
    def ready(at, patch):
        import tempfile

        real = tempfile.mkdtemp

        def mkdtemp(*args, **kwargs):
            if str(kwargs.get("dir", "")).startswith(str(at / name)):
                raise OSError(number, os.strerror(number), str(kwargs["dir"]))
            return real(*args, **kwargs)

        patch.setattr(tempfile, "mkdtemp", mkdtemp)
    return ready


def no_results_folder(at, patch):
    """A disk on which the results folder cannot be made; the cache, which is made first, can."""
    real = os.mkdir

    def mkdir(path, *args, **kwargs):
        if str(path) == str(at / "results"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *args, **kwargs)

    patch.setattr(os, "mkdir", mkdir)


def file_limit(size: int):
    """A limit on the size of a file, as ``ulimit -f`` sets it; the fixture lifts it again."""
    return lambda at, _: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# ---- the table ------------------------------------------------------------------------------------------------------

KNOWN = ()
PLUG, DATA, MODEL = "--plugin {at}/plug.py", "--data_dir {at}/data", "--model {at}/model"
BAD_PLUGIN = "plugin '{at}/plug.py'"
TEST = "{at}/data/mmlu_pro/test.jsonl, row 2"

FLAGS = {
    "misspelt flag": asks("--modle x", "unknown flag '--modle'", "did you mean '--model'?", "--help lists every flag"),
    "no number": asks("--avg_bits four", "--avg_bits", "'four'", "give a number"),
    "no whole number": asks("--seeds 1.5", "--seeds", "'1.5'", "give a whole number"),
    "no value": asks("--method", "--method has no value"),
    "not a choice": asks("--dtype fp8", "--dtype", "'fp8'", "use one of: auto, bf16, fp16, fp32"),
    "run type": asks("--run_type tset", "unknown run type 'tset'", "did you mean 'test'?",
                     "use one of: demo, test, full"),
    "method": asks("--method TAQos_", "unknown method 'TAQos_'", "did you mean 'TAQoS'?", "known: AWQ-channel"),
    "combination": asks("--method TAQ+knapsak", "unknown allocator 'knapsak'", "did you mean 'knapsack'?",
                        "known: balanced"),
    "data set": asks("--dataset triviaqa", "unknown dataset 'triviaqa'", "did you mean 'trivia_qa'?",
                     "known: arc_challenge"),
    "bits out of range": asks("--avg_bits 0.5", "--avg_bits 0.5 is out of range", "between 2 and 16"),
    "bits of this model": asks("--avg_bits 2.1", "--avg_bits 2.1", "on tiny", "with levels", "give 2.56", leaves=KNOWN),
    "one model twice": asks("--model {tiny} {tiny}", "--model names '{tiny}' twice", "name each once"),
    "negative seed": asks("--seeds -1", "--seeds -1 is out of range", "from 0 to"),
    "huge seed": asks(f"--seeds 0 {2**63}", f"--seeds {2**63} is out of range", f"from 0 to {2**63 - 1}"),
    "levels": asks("--levels 4 7", "--levels (4, 7)", "at least two of 2 3 4 5 6 8 16"),
    "group size": asks("--group_size 48", "group size 48 does not divide", "down_proj (64)",
                       "that fit this model: 32, 16, 8", leaves=KNOWN),
    "tolerance": asks("--tolerance nan", "--tolerance is nan", "above 0 and below 1"),
    "dynamic heads": asks("--dynamic_heads 0", "--dynamic_heads is 0", "give 1 or more heads of a block"),
    "kept ratio": asks("--keep_ratio 0.7", "--keep_ratio (0.7,)", "above 0 and below 0.5"),
    "no documents": asks("--eval_size 0", "--eval_size is 0", "at least 1"),
    "prompt length": asks("--max_length 4", "--max_length is 4", "at least 8"),
    "answer length": asks("--max_new_tokens 0", "--max_new_tokens is 0", "at least 1"),
    "batch size": asks("--batch_size 0", "--batch_size is 0", "at least 1"),
    "threads": asks("--threads 100000", "--threads is 100000", "0 (all cores) to 1024"),
    "calibration text": asks("--calib c5", "unknown --calib 'c5'", "did you mean 'c4'?",
                             "use task, c4, wikitext2, file:PATH, mix:0.5 or auto"),
    "share of a mix": asks("--calib mix:1.0", "--calib 'mix:1.0'", "above 0 and below 1", "mix:0.5"),
    "tokens to calibrate": asks("--calib_tokens 1", "--calib_tokens is 1", "at least 2"),
    "folder of nothing": asks("--data_source folder", "--data_source folder needs --data_dir"),
    "folder and hub": asks("--data_source hub --data_dir {at}", "--data_dir '{at}' is not read with --data_source hub",
                           "leave one of the two out"),
}
FILES = {
    "plugin that is not there": asks("--plugin nowhere.py", "plugin 'nowhere.py' is not a file", "a Python file"),
    "plugin of another kind": Row(file("plug.txt"), "--plugin {at}/plug.txt",
                                  ("plugin '{at}/plug.txt' is not a .py file", "a Python file")),
    "plugin that is no Python": Row(plugin("def prose(\n"), PLUG, (BAD_PLUGIN, "SyntaxError", "correct the file")),
    "plugin that raises": Row(plugin("raise RuntimeError('two\\nlines')\n"), PLUG,
                              (BAD_PLUGIN, "RuntimeError: two lines", "correct the file")),
    "plugin that leaves": Row(plugin("raise SystemExit(0)\n"), PLUG, (BAD_PLUGIN, "SystemExit: 0", "correct the file")),
    "plugin that takes a name": Row(plugin("from core.registry import method\nmethod('TAQ', scorer='TAQ')\n"), PLUG,
                                    (BAD_PLUGIN, "method 'TAQ' is registered twice: by TAQ+knapsack+common",
                                     "rename one")),
    "plugin that does nothing": Row(plugin("x = 1\n"), PLUG,
                                    (BAD_PLUGIN, "registers nothing", "it must call scorer, method")),
    "results folder is a file": Row(file("r"), "--results_dir {at}/r",
                                    ("--results_dir '{at}/r'", "is a file", "give another folder")),
    "results folder in a file": Row(file("r"), "--results_dir {at}/r/x",
                                    ("--results_dir '{at}/r/x'", "'{at}/r' is a file", "give another folder")),
    "cache folder is a file": Row(file("c"), "--cache_dir {at}/c",
                                  ("--cache_dir '{at}/c'", "is a file", "give another folder")),
    "cache folder in /proc": asks("--cache_dir /proc/nowhere", "cache folder '/proc/nowhere' cannot be made",
                                  "--cache_dir"),
    "data folder is a file": Row(file("d"), "--data_dir {at}/d", ("data folder '{at}/d' is a file", "--data_dir"),
                                 KNOWN),
    "data folder is not there": asks("--data_dir {at}/d", "data folder '{at}/d' does not exist", "--data_dir",
                                     leaves=KNOWN),
    "model is a file": Row(file("m"), "--model {at}/m", ("unknown model '{at}/m'",
                                                         "a local folder, or one of: smollm2-135m")),
}
MODELS = {
    "empty name": Row(None, "--model=", ("unknown model ''", "a hub id (owner/name), a local folder")),
    "folder that is not there": Row(
        None, "--model ./missing", ("model folder './missing' does not exist", "check the path"),
        lacks=("hub", "did you mean")),
    "path that is not there": Row(
        None, "--model {at}/a/missing", ("model folder '{at}/a/missing' does not exist",),
        lacks=("hub", "did you mean")),
    "misspelt preset": asks("--model smollm2-135", "unknown model 'smollm2-135'", "did you mean 'smollm2-135m'?",
                            "a local folder"),
    "no config": Row(model(lambda f: (f / "config.json").unlink()), MODEL,
                     ("'{at}/model' holds no config.json", "save_pretrained")),
    "config is no JSON": Row(cut("config.json", 20), MODEL, ("'{at}/model'", "not a valid JSON",
                                                             "use a causal LM with the config.json")),
    "config with a wrong value": Row(config(num_attention_heads="four"), MODEL,
                                     ("'{at}/model'", "num_attention_heads", "'four'", "expected int")),
    "heads that do not divide": Row(config(num_attention_heads=5), MODEL,
                                    ("'{at}/model'", "attention heads (5)", "use a causal LM")),
    "unknown architecture": Row(config(model_type="my_own"), MODEL, ("'{at}/model'", "`my_own`", "use a causal LM")),
    "code of its own": Row(config(model_type="my_own", auto_map={"AutoConfig": "a.B"}), MODEL,
                           ("'{at}/model'", "code of its own, which is never run",
                            "use a model that transformers knows")),
    "encoder": Row(saved(bert), MODEL, ("'{at}/model' is a bert", "both directions", "use a causal LM")),
    "pickled weights": Row(model(pickled), MODEL, ("'{at}/model'", "pickle (pytorch_model.bin)", "never loaded",
                                                   "save_pretrained")),
    "weights cut short": Row(cut("model.safetensors", 20000), MODEL,
                             ("'{at}/model/model.safetensors' is damaged", "copy or download it again")),
    "empty weights": Row(cut("model.safetensors", 0), MODEL,
                         ("'{at}/model/model.safetensors' is damaged", "copy or download it again")),
    "lost shard": Row(shard_lost, MODEL, ("'model-00002-of-0000", "model.safetensors.index.json' names, is missing",
                                          "copy or download it again")),
    "damaged demo model": Row(damaged_demo, "--model smollm2-135m",
                              ("SmolLM2-135M-Instruct/model.safetensors' is damaged", "delete it")),
    "weights of another shape": Row(config(intermediate_size=96), MODEL,
                                    ("'{at}/model'", "down_proj.weight has shape [32, 64]", "[32, 96] by config.json"),
                                    KNOWN),
    "missing weight": Row(weights(lambda w: w.pop("model.layers.3.mlp.up_proj.weight")), MODEL,
                          ("'{at}/model'", "lack model.layers.3.mlp.up_proj.weight (1 missing)",
                           "the whole checkpoint"), KNOWN),
    "NaN in a linear": Row(broken("model.layers.3.mlp.up_proj.weight"), MODEL,
                           ("weights of model.layers.3.mlp.up_proj in model hold NaN", "repair the checkpoint")),
    "NaN in a norm": Row(broken("model.layers.2.input_layernorm.weight"), MODEL,
                         ("weights of model.layers.2.input_layernorm in model hold NaN", "repair the checkpoint")),
    "infinity in the embedding": Row(broken("model.embed_tokens.weight", float("inf")), MODEL,
                                     ("weights of model.embed_tokens in model hold NaN or infinity (1 tensors)",)),
    "too few positions": Row(config(max_position_embeddings=64), MODEL,
                             ("the longest question of mmlu_pro with its answer is", "model has 64 positions",
                              "lower --max_length")),
    "quantized already": Row(config(quantization_config={"quant_method": "gptq", "bits": 4}), MODEL,
                             ("model is quantized already (gptq)", "use the checkpoint in full precision")),
    "no tokenizer": Row(model(lambda f: [p.unlink() for p in f.glob("token*")]), MODEL,
                        ("the tokenizer of '{at}/model'", "copy or download its tokenizer files"), KNOWN),
    "tokenizer cut short": Row(cut("tokenizer.json", 200), MODEL,
                               ("the tokenizer of '{at}/model'", "its tokenizer files again"), KNOWN),
    "tokenizer of another model": Row(saved(lambda: tiny_model("llama", vocab_size=64)), MODEL,
                                      ("the tokenizer of '{at}/model' has token ids up to 258", "64 rows",
                                       "use the tokenizer that belongs"), KNOWN),
    "tokenizer without special tokens": Row(
        model(no_special_tokens), MODEL,
        ("the tokenizer of '{at}/model' has no token that begins, ends or pads a text", "tokenizer_config.json again"),
        KNOWN),
    "chat template that raises": Row(
        template("{{ raise_exception('system role first') }}"), f"{MODEL} --chat_template on",
        ("chat template of tokenizer '{at}/model' fails (system role first)", "run without --chat_template"), KNOWN),
    "chat template that is none": Row(
        template("{% for"), f"{MODEL} --chat_template on",
        ("chat template of tokenizer '{at}/model' fails (unexpected", "mend it, or run without --chat_template"),
        KNOWN),
    "chat template without the message": Row(
        template("Hello! "), f"{MODEL} --chat_template on",
        ("template of tokenizer '{at}/model' leaves the message out", "run without --chat_template"), KNOWN),
    "no width": Row(config(hidden_size=0), MODEL,
                    ("config.json of model '{at}/model' states the shape [320, 0]", "model.embed_tokens.weight")),
    "a width of 10^12": Row(config(hidden_size=10**12), MODEL,
                            ("the shape [320, 1000000000000]", "which no model has")),
    "a negative width": Row(config(hidden_size=-32), MODEL,
                            ("'{at}/model'", "-32", "use a causal LM with the config.json")),
    "no layers": Row(config(num_hidden_layers=0), MODEL, ("no list of decoder blocks", "only such causal LMs")),
    "no chat template": asks("--chat_template on", "tokenizer '{tiny}' has no chat template",
                             "run without --chat_template", leaves=KNOWN),
}
SAMPLE = {
    "no file": Row(lambda at, _: (at / "data").mkdir(), DATA,
                   ("{at}/data/mmlu_pro/test.parquet (or .jsonl) does not exist", "--data_dir"), KNOWN),
    "no subsets": Row(lambda at, _: (at / "data").mkdir(), f"{DATA} --dataset code_mmlu",
                      ("{at}/data/code_mmlu' has no subset", "expected"), KNOWN),
    "empty file": Row(rows(), DATA, ("'mmlu_pro' from folder '{at}/data' has no rows", "expected at least one"), KNOWN),
    "no JSON": Row(rows(raw=json.dumps(QUESTION).encode() + b"\n{\n"), DATA,
                   (TEST, "expected a JSON object", "correct the row"), KNOWN),
    "missing field": Row(rows({}, {"question_id": 2, "options": None}), DATA,
                         (f"{TEST}, field 'options'", "expected a list of texts", "None"), KNOWN),
    "one id twice": Row(rows({}, {"question": "r?"}), DATA, (f"{TEST}, field 'question_id'", "unique id",
                                                             "it is int 1"), KNOWN),
    "gold beyond the options": Row(rows({}, {"question_id": 2, "answer": "C"}), DATA,
                                   (f"{TEST}, field 'answer'", "a letter from A to B", "it is str 'C'"), KNOWN),
    "gold that disagrees": Row(rows({}, {"question_id": 2, "answer_index": 1}), DATA,
                               (f"{TEST}, field 'answer_index'", "expected 0 to agree with answer 'A'", "it is int 1"),
                               KNOWN),
    "empty question": Row(rows({}, {"question_id": 2, "question": " "}), DATA,
                          (f"{TEST}, field 'question'", "non-empty text", "' '"), KNOWN),
    "right option twice": Row(
        rows({}, {"question_id": 2, "options": ["a", "b", "a"]}), DATA,
        (f"{TEST}, field 'options'", "the text of the right option (A) only once", "it is list ['a', 'b', 'a']"),
        KNOWN),
    "blank option": Row(rows({}, {"question_id": 2, "options": ["a", " "]}), DATA,
                        (f"{TEST}, field 'options'", "options that all hold text", "it is list ['a', ' ']"), KNOWN),
    "JSON too deep": Row(
        rows(raw=json.dumps(QUESTION).encode() + b'\n{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n"), DATA,
        (TEST, "lists or objects inside one another by the hundred", "correct the row"), KNOWN),
    "a number too long": Row(rows(raw=json.dumps(QUESTION).encode() + b'\n{"a": ' + b"7" * 5000 + b"}\n"), DATA,
                             (TEST, "does not parse (Exceeds the limit", "correct the row"), KNOWN),
    "a folder for a file": Row(
        data_folder("mmlu_pro/test.parquet"), DATA,
        ("data file '{at}/data/mmlu_pro/test.parquet' is a folder", "put one .parquet file there"), KNOWN),
    "half a character": Row(rows({}, {"question_id": 2, "question": "\ud800?"}), DATA,
                            (TEST, "half of a pair", "correct the row"), KNOWN),
    "one row": Row(rows({}), DATA, ("1 distinct documents of mmlu_pro", "at least 2 are needed"), KNOWN),
    "not UTF-8": Row(rows(raw=b"\xff\xfe{}"), DATA, ("{at}/data/mmlu_pro/test.jsonl is not UTF-8", "byte 0",
                                                     "write it again as UTF-8"), KNOWN),
    "damaged parquet": Row(rows(raw=b"PAR1 no", name="test.parquet"), DATA,
                           ("{at}/data/mmlu_pro/test.parquet", "parquet", "write it again"), KNOWN),
    "more examples than documents": asks("--num_fewshot 500", "num_fewshot is 500", "only 6 calibration documents",
                                         "lower it", leaves=KNOWN),
    "text that is not embedded": asks("--calib wikitext2 --method TAQ", "general text 'wikitext2' has no embedded set",
                                      "--data_source hub", leaves=KNOWN),
}
CACHES = {
    "full disk": Row(refusing(errno.ENOSPC, "cache"), "", ("cannot write '{at}/cache'", "the disk is full",
                                                           "free some space")),
    "read-only disk": Row(refusing(errno.EROFS, "cache"), "",
                          ("cannot write '{at}/cache'", "read-only", "--cache_dir")),
    "no permission": Row(refusing(errno.EACCES, "cache"), "",
                         ("cannot write '{at}/cache'", "permission is denied", "--cache_dir")),
    "size limit at once": Row(file_limit(1000), "", ("cannot write '{at}/results/", "file size limit", "ulimit -f",
                                                     "raise it"), ("finite",)),
    "full disk for results": Row(no_results_folder, "", ("'{at}/results' cannot be made", "No space left",
                                                         "--results_dir"), (*KNOWN, "finite")),
}
ENVIRONMENT = {
    "no such GPU": asks("--device cuda:99", "device 'cuda:99' cannot be used here", "use auto, cpu, cuda or cuda:N"),
    "no such GPU for gradients": asks("--grad_device cpu,99", "device 'cuda:99' cannot be used here", "use auto, cpu"),
    "one device for gradients twice": asks("--grad_device cpu,cpu", "device 'cpu' stands twice in 'cpu,cpu'",
                                           "name each once"),
    "two devices for questions": asks("--eval_device cpu,cuda", "device 'cpu,cuda'", "use auto, cpu, cuda or cuda:N"),
    "no such device": asks("--device gpu", "device 'gpu' is not supported", "use auto, cpu, cuda or cuda:N"),
    "no bitsandbytes": Row(lambda at, patch: patch.setitem(sys.modules, "bitsandbytes", None), "--method bnb-nf4",
                           ("need bitsandbytes, which does not import", "pip install bitsandbytes",
                            "leave the bnb methods out")),
    "gated model": Row(hub(403), "--model meta-llama/Llama-3.1-8B-Instruct",
                       ("'meta-llama/Llama-3.1-8B-Instruct'", "(403)", "HF_TOKEN")),
    "bad token": Row(hub(401), "--model own/model", ("model 'own/model'", "(401)", "--hf_token or HF_TOKEN")),
    "no such model on the hub": Row(hub(404), "--model Qwen/Qwen2.5-3B-Instuct",
                                    ("'Qwen/Qwen2.5-3B-Instuct'", "(404)", "did you mean 'Qwen/Qwen2.5-3B-Instruct'?",
                                     "check the name")),
    "no network": Row(hub(None), "--model Qwen/Qwen2.5-3B-Instuct",
                      ("'Qwen/Qwen2.5-3B-Instuct'", "ConnectionError", "did you mean 'Qwen/Qwen2.5-3B-Instruct'?",
                       "local folder or go online")),
    "no network for a known model": Row(
        hub(None), "--model Qwen/Qwen2.5-3B-Instruct",
        ("'Qwen/Qwen2.5-3B-Instruct' is neither a folder nor reachable", "go online"), lacks=("did you mean",)),
    "known model that the hub lost": Row(
        hub(404), "--model Qwen/Qwen2.5-3B-Instruct", ("(404); check the name",), lacks=("did you mean",)),
    "HF_HUB_OFFLINE": Row(offline, "--model own/model", ("model 'own/model'", "OfflineModeIsEnabled",
                                                         "pass a local folder or go online")),
    "no network for data": Row(no_hub_data, "--data_source hub",
                               ("'mmlu_pro' could not be loaded from the hub", "ConnectionError", "go online"), KNOWN),
}
TABLE = {"flags": FLAGS, "files": FILES, "models": MODELS, "data": SAMPLE, "caches": CACHES, "environment": ENVIRONMENT}
CASES = [pytest.param(row, id=f"{group}: {name}") for group, members in TABLE.items() for name, row in members.items()]


# ---- the tests ------------------------------------------------------------------------------------------------------

@pytest.fixture
def place(tmp_path, tiny_folder, monkeypatch):
    """An empty folder to work in, beside a link to the good model; nothing set by a row outlives it."""
    (tmp_path / "good").symlink_to(tiny_folder)
    (tmp_path / "at").mkdir()
    monkeypatch.chdir(tmp_path / "at")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield tmp_path / "at"
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def left_behind(at: Path, before: set[Path], leaves: tuple[str, ...]) -> list[str]:
    """Files that were not there before, but for whole cache entries of the stages named, and the journal that lists
    them.
    """
    entries = [p.parent for p in at.glob("cache/*/meta.json")
               if json.loads(p.read_text())["identity"]["stage"] in leaves]
    entries += [at / "cache" / "journal"] if entries else []
    return [str(p.relative_to(at)) for p in at.rglob("*") if p.is_file() and p not in before
            and not any(e in p.parents for e in entries)]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("row", CASES)
def test_bad_input_is_one_sentence_and_leaves_nothing(row, place, tiny_folder, capsys, monkeypatch):
    if row.ready:
        row.ready(place, monkeypatch)
    before, names = set(place.rglob("*")), {"at": place, "tiny": tiny_folder}
    usual = ("--model {tiny} --dataset mmlu_pro --method uniform --avg_bits 4.75 --device cpu --threads 1 --eval_size "
             "12 --calib_size 6 --cache_dir {at}/cache --results_dir {at}/results")
    capsys.readouterr()
    assert main([word.format(**names) for word in f"{usual} {row.flags}".split()]) == 2
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and err.splitlines()[-1] == said[0], err
    for word in row.words:
        assert word.format(**names) in said[0], said[0]
    assert not [word for word in row.lacks if word in said[0]], said[0]
    assert "Traceback" not in out + err and SECRET not in out + err
    assert not left_behind(place, before, row.leaves)


def test_a_plugin_is_loaded_once_in_a_process_and_not_changed_under_it(place, monkeypatch, capsys):
    """A notebook, or a run whose parts follow one another in one process, loads it again and again; by whatever path.
    """
    text = "from core.registry import method\nprint('plug.py is read')\nmethod('twice', allocator='uniform')\n"
    (place / "plug.py").write_text(text)
    (place / "link").symlink_to(place)
    monkeypatch.setattr(METHODS, "_items", dict(METHODS._items))
    for path in ("plug.py", "plug.py", str(place / "link" / "plug.py")):
        assert main(["--plugin", path, "--list"]) == 0
    said = capsys.readouterr().out
    assert said.count("plug.py is read") == 1 and "twice" in said and not list(place.rglob("__pycache__"))
    (place / "plug.py").write_text(text + "method('thrice', allocator='uniform')\n")
    assert main(["--plugin", "plug.py", "--list"]) == 2
    out, err = capsys.readouterr()
    assert err == ("error: plugin 'plug.py' has changed since this process loaded it; start the program (or the "
                   "notebook's kernel) again to use it\n")
    assert not out and "thrice" not in METHODS
    (place / "plug.py").write_text(text)
    assert main(["--plugin", "plug.py", "--list"]) == 0


def test_a_plugin_that_failed_counts_as_not_loaded(place, monkeypatch, capsys):
    monkeypatch.setattr(METHODS, "_items", dict(METHODS._items))
    for text, status in (("def prose(\n", 2), ("x = 1\n", 2),
                         ("from core.registry import method\nmethod('late', allocator='uniform')\n", 0)):
        (place / "plug.py").write_text(text)
        assert main(["--plugin", "plug.py", "--list"]) == status
    assert "late" in capsys.readouterr().out


def test_the_table_is_wide():
    assert len(CASES) >= 80 and min(map(len, TABLE.values())) >= 5
    assert all(row.words for members in TABLE.values() for row in members.values())


# ---- results on disk ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
    """The flags of a small finished grid; its cache and results lie below ``done[0]``."""
    root = tmp_path_factory.mktemp("done")
    flags = ["--model", str(tiny_folder), "--dataset", "mmlu_pro", "--method", "uniform", "--avg_bits", "4.75",
             "--quantizer", "rtn", "--device", "cpu", "--threads", "1",
             "--eval_size", "12", "--calib_size", "6", "--cache_dir", str(root / "cache"), "--results_dir",
             str(root / "results")]
    assert main(flags) == 0
    return root, flags


def one(folder: Path, suffix: str) -> Path:
    return next(folder.glob(f"*__uniform__*{suffix}"))


def put(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def changed(suffix: str, change):
    def ready(folder):
        path = one(folder, suffix)
        path.write_bytes(change(path.read_bytes()))
    return ready


RESULTS = {  # what is done to a good results folder, and what print_results.py says of it
    "foreign JSON": (put("a.json", "[1, 2]"), ("{at}/a.json is not a result", "move it out of the results folder")),
    "foreign JSON with a schema": (put("a.json", '{"schema": 1, "status": "ok"}'),
                                   ("{at}/a.json lacks 'avg_bits'", "move it out")),
    "another schema": (put("a.json", '{"schema": 99}'), ("{at}/a.json has schema 99", "this version reads 1",
                                                         "run the cell again")),
    "summary cut short": (changed(".json", lambda b: b[:500]),
                          ("__uniform__", ".json does not read as JSON", "run the cell again")),
    "empty file": (put("a.json", ""), ("{at}/a.json does not read as JSON", "move it out")),
    "documents lost": (lambda f: one(f, ".jsonl").unlink(), ("__uniform__", ".jsonl is missing", "run the cell again")),
    "documents changed": (changed(".jsonl", lambda b: b + b"\n"),
                          (".jsonl does not match its summary", "run the cell again")),
    "documents not UTF-8": (changed(".jsonl", lambda b: b"\xff" + b),
                            (".jsonl does not match its summary", "run the cell again")),
    "no results": (lambda f: [p.unlink() for p in f.glob("*.json*")],
                   ("no data: '{at}' holds no results", "--results_dir")),
    "no folder": (shutil.rmtree, ("results folder '{at}' does not exist", "--results_dir")),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("x")), ("results folder '{at}' is a file", "--results_dir")),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_damaged_results_are_one_sentence(kind, done, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(done[0] / "results", folder)
    ready, words = RESULTS[kind]
    ready(folder)
    before = set(tmp_path.rglob("*"))
    assert print_main(["--results_dir", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and err.startswith("error: "), err
    for word in words:
        assert word.format(at=folder) in err, err
    assert set(tmp_path.rglob("*")) == before


def test_a_size_limit_within_a_cell_stops_the_grid_and_leaves_only_whole_things(place, done, tiny_folder, capsys):
    flags = [*done[1], "--method", "magnitude", "--cache_dir", str(place / "cache"), "--results_dir",
             str(place / "results")]
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (50000, hard))  # fits every file but the element scores
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert len([x for x in err.splitlines()
                if x.startswith("error: ")]) == 1 and "file size limit" in err.splitlines()[-1], err
    entries = [p for p in (place / "cache").iterdir() if len(p.name) == 16 and not p.name.startswith(".")]
    assert entries and all(Store(place / "cache").get(p.name) for p in entries) and not list(place.rglob(".tmp-*"))
    found = load_results(place / "results")
    assert found and all(r.ok and load_samples(r) for r in found) and "magnitude" not in {r.method.name for r in found}
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert main(flags) == 0 and len(load_results(place / "results")) == len(found) + 1


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_damaged_result_is_written_again_by_the_same_command(suffix, done, capsys):
    path = one(done[0] / "results", suffix)
    good = path.read_bytes()
    path.write_bytes(good[:100] + b"\xff")
    assert main(done[1]) == 0
    assert main(["--list"]) == 0 and print_main(["--results_dir", str(done[0] / "results")]) == 0
    if suffix == ".jsonl":
        assert path.read_bytes() == good
    else:
        assert json.loads(path.read_bytes())["metrics"] == json.loads(good)["metrics"]


@pytest.mark.parametrize("command", ["run", "terminal", "markdown"])
def test_a_terminal_without_greek_letters_still_shows_the_table(command, done, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    show = ["--results_dir", str(done[0] / "results"), "--format", command]
    assert (main(done[1]) if command == "run" else print_main(show)) == 0
    assert "uniform" in raw.getvalue().decode("ascii") and "?LL" in raw.getvalue().decode("ascii")


@pytest.mark.parametrize(("command", "says"), [
    ("{python} run_taq_icml.py --modle x", "error: unknown flag '--modle' (did you mean '--model'?)"),
    ("{python} print_results.py --format word", "error: --format is 'word'"),
    ("ulimit -f 1; {python} run_taq_icml.py --model {tiny} --dataset mmlu_pro --threads 1 --avg_bits 4.75 --cache_dir "
     "{at}/c --results_dir {at}/r",
     "file size limit"),
])
def test_from_a_real_shell(command, says, tiny_folder, tmp_path):
    line = command.format(python=sys.executable, tiny=tiny_folder, at=tmp_path)
    done = subprocess.run(["bash", "-c", line], cwd=REPO, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "usage" not in done.stderr, done.stderr
    assert len([x for x in done.stderr.splitlines()
                if x.startswith("error: ")]) == 1 and says in done.stderr.splitlines()[-1], done.stderr
    assert not [p for p in (tmp_path / "r").rglob("*") if p.is_file()]
    assert not list((tmp_path / "c").glob(".tmp-*"))
