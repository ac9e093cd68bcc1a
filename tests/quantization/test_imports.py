"""Quantizers and allocators are listed (--help, --list) without the libraries that compute."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
import quantization
from core.registry import ALLOCATORS, QUANTIZERS
assert "gptq" in QUANTIZERS and "topk_keep" in ALLOCATORS
for module in pkgutil.walk_packages(quantization.__path__, "quantization."):
    # modules of torch, imported where a model runs
    if module.name not in ("quantization.inference", "quantization.dynamic", "quantization.activations",
                           "quantization.packing.split", "quantization.packing.decode") and (
            "transforms." not in module.name and "packing.formats" not in module.name):
        importlib.import_module(module.name)
import streams.hessians
print(sorted({"torch", "transformers", "bitsandbytes", "scipy"} & set(sys.modules)))
"""


def test_naming_quantizers_and_allocators_imports_no_torch():
    shown = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert shown.stdout.strip() == "[]", shown.stdout + shown.stderr
