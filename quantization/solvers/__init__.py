"""Quantizers: a weight, a plan and, for those that read data, inputs or gradients in; quantized weights out."""
