"""The stages of a cell, in the order of the pipeline; each stage's key stands beside its computation."""
