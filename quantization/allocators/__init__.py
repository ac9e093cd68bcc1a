"""Allocators: scores and a budget in, bits of every linear out."""
