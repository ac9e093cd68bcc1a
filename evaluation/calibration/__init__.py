"""The token sequences that scorers, solvers and gradients read."""
