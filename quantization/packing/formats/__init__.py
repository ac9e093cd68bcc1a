"""Checkpoint formats in which a quantized model leaves the house, a file each (quantization/packing/checkpoint.py)."""
