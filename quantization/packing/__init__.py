"""Quantized linears as the bytes that would be stored, and back."""
