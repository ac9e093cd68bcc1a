"""Exports in the engines that load them: bytes on disk, resident bytes, tokens a second at batch 1 and 8.

    python run_taq_icml.py --method "TAQ[symmetric=true]" --dataset mmlu_pro --export OUT/hf --format hf
    (likewise packed, compressed-tensors, mlx, gguf)
    python -m benchmarks.exports OUT [--tokens 16] [--threads 2]

Each folder of OUT is loaded in a process of its own, named by what lies in it; beside them the model in bf16 and in
bitsandbytes NF4.  Resident bytes are the process's after it wrote, less those before the model was loaded; weights that
an engine maps from a file count as far as they were read.  Speed: greedy tokens after a prompt of 32, the prompt's own
time left out where the engine says it.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROMPT = 32
BATCHES = (1, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="its folders are exports")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.folder, args.tokens, args.threads)))
        return 0
    from tabulate import tabulate

    from core.demo_model import ensure_demo_model
    from quantization.packing.checkpoint import about_export, is_export

    whole = ensure_demo_model(Path("saved_models/base"))
    todo = [("bf16", whole), ("bnb-nf4", whole)]
    for folder in sorted(path for path in args.folder.iterdir() if is_export(path)):
        kind = about_export(folder)["format"]
        todo += [(kind, folder)] + ([("packed, dense", folder)] if kind == "packed" else [])
    rows = []
    for kind, folder in todo:
        command = [sys.executable, "-m", "benchmarks.exports", str(folder), "--one", kind, "--tokens", str(args.tokens),
                   "--threads", str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{kind}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        told = json.loads(done.stdout.strip().splitlines()[-1])
        disk = sum(path.stat().st_size for end in ("*.safetensors", "*.gguf") for path in folder.glob(end))
        rows.append([kind, disk / 1e6, told["load_s"], told["resident"] / 1e6, *told["tokens_s"]])
    print(tabulate(rows, ["format", "on disk, MB", "load, s", "resident, MB",
                          *(f"tokens/s, batch {batch}" for batch in BATCHES)], "github", floatfmt=".1f"))
    return 0


def resident() -> int:
    """Bytes of this process in memory."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmRSS"))


def measure(kind: str, folder: Path, tokens: int, threads: int) -> dict:
    """Load one export, write with it, and say what that took."""
    engine = {"mlx": _mlx, "gguf": _llama_cpp}.get(kind, _torch)
    return engine(kind, folder, tokens, threads)


def _timed(before: int, begun: float, write) -> dict:
    """Seconds of loading, resident bytes, and what ``write(batch)`` says: tokens a second."""
    load, told = time.perf_counter() - begun, []
    write(1)  # what an engine does once
    for batch in BATCHES:
        told.append(write(batch))
    return {"load_s": load, "resident": resident() - before, "tokens_s": told}


def _torch(kind: str, folder: Path, tokens: int, threads: int) -> dict:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from quantization.packing.formats.packed import load_packed

    torch.set_num_threads(threads)
    if kind == "bnb-nf4":
        import bitsandbytes  # noqa: F401  (its own bytes are not the model's)
    before, begun = resident(), time.perf_counter()
    if kind.startswith("packed"):
        model = load_packed(folder, dense="dense" in kind)
    else:
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        how = {"bf16": {"dtype": torch.bfloat16},
               "bnb-nf4": {"dtype": torch.float32, "quantization_config": four}}
        model = AutoModelForCausalLM.from_pretrained(folder, **how.get(kind, {})).eval()

    @torch.no_grad()
    def write(batch: int) -> float:
        ids = torch.arange(1000, 1000 + PROMPT).repeat(batch, 1)
        out = model(ids, use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(tokens):
            out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
        return batch * tokens / (time.perf_counter() - start)

    return _timed(before, begun, write)


def _mlx(kind: str, folder: Path, tokens: int, threads: int) -> dict:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    before, begun = resident(), time.perf_counter()
    model = load(str(folder))[0]

    def write(batch: int) -> float:
        cache = make_prompt_cache(model)
        out = model(mx.broadcast_to(mx.arange(1000, 1000 + PROMPT)[None], (batch, PROMPT)), cache=cache)
        mx.eval(out)
        start = time.perf_counter()
        for _ in range(tokens):
            out = model(out[:, -1:].argmax(-1), cache=cache)
            mx.eval(out)
        return batch * tokens / (time.perf_counter() - start)

    return _timed(before, begun, write)


def _llama_cpp(kind: str, folder: Path, tokens: int, threads: int) -> dict:
    import xllamacpp

    how = xllamacpp.CommonParams()
    how.model.path, how.n_ctx, how.warmup, how.n_parallel = str(folder / "model.gguf"), 1024, False, max(BATCHES)
    how.cpuparams.n_threads = threads
    before, begun = resident(), time.perf_counter()
    server = xllamacpp.Server(how)

    def write(batch: int) -> float:
        def ask(number: int) -> None:
            server.handle_completions({"prompt": list(range(1000 + number, 1000 + number + PROMPT)), "ignore_eos": True,
                                       "max_tokens": tokens, "n_predict": tokens, "temperature": 0.0})

        start = time.perf_counter()
        with ThreadPoolExecutor(batch) as pool:
            list(pool.map(ask, range(batch)))
        return batch * tokens / (time.perf_counter() - start)  # the prompts' time is inside

    return _timed(before, begun, write)


if __name__ == "__main__":
    sys.exit(main())
