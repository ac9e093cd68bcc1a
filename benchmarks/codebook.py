"""Time SqueezeLLM's weighted k-means against scikit-learn's, a row at a time, and compare what they reach.

Prints, per shape and bit width, milliseconds of processor time a row, the ratio of times, the mean and the largest
ratio of inertia (ours over theirs; below 1 = ours is better) and the seconds that a whole model of ``--weights``
weights would take.
Weights are normal, the Fisher information is a squared normal with log-normal columns and elements.
Run: python -m benchmarks.codebook [--rows 24 --weights 106e6]
"""

import argparse
import sys
import time

import numpy as np
import pandas as pd
import torch

from core.types import LayerPlan
from quantization.solvers.codebook import solve_codebook
from quantization.solvers.kmeans import weighted_kmeans

SHAPES = ((1536, 576), (576, 1536))


def made_up(shape: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight rounded to bf16, so that it has ties, and a heavy-tailed Fisher information, both float32 [out, in]."""
    rng = np.random.default_rng(seed)
    fisher = rng.normal(size=shape) ** 2 * np.exp(2 * rng.normal(size=(1, shape[1])) + 1.5 * rng.normal(size=shape))
    weight = torch.tensor(rng.normal(size=shape) * 0.05).bfloat16().float()
    return weight, torch.tensor(fisher * 1e-8, dtype=torch.float32)


def inertia(values: np.ndarray, weights: np.ndarray, centers: np.ndarray) -> float:
    """Σ w (x − nearest center)², float64."""
    return float((weights * np.square(values[:, None] - centers).min(1)).sum())


def timed(work) -> tuple[float, object]:
    """Seconds of processor time, and what ``work`` returned."""
    start = time.process_time()
    out = work()
    return time.process_time() - start, out


def compare(shape: tuple[int, int], bits: int, rows: int, model_weights: float) -> dict[str, str]:
    """One line of the table."""
    from sklearn.cluster import KMeans

    weight, fisher = made_up(shape)
    plan = LayerPlan(bits, shape[1], form="codebook")
    whole = timed(lambda: solve_codebook(weight, fisher, plan))[0]
    ours = timed(lambda: weighted_kmeans(weight, fisher, 2**bits))
    fits = [timed(lambda: KMeans(2**bits, n_init=10, random_state=0).fit(w[:, None], sample_weight=f))
            for w, f in zip(weight[:rows].double().numpy(), fisher[:rows].double().numpy() / float(fisher.max()))]
    theirs = sum(f[0] for f in fits) / rows
    ratio = [inertia(w, f, c) / inertia(w, f, fit.cluster_centers_.ravel()) for w, f, c, (_, fit) in
             zip(weight.double().numpy(), fisher.double().numpy(), ours[1].double().numpy(), fits)]
    each = ours[0] / shape[0]
    return {"shape": f"{shape[0]}×{shape[1]}", "bits": bits, "ours ms/row": f"{1e3 * each:.2f}",
            "scikit-learn ms/row": f"{1e3 * theirs:.1f}",
            "times faster": f"{theirs / each:.0f}", "inertia ratio": f"{np.mean(ratio):.5f} (at most {max(ratio):.5f})",
            "whole model s": f"{whole / weight.numel() * model_weights:.0f}"}


def main(argv: list[str] | None = None) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=24, help="rows given to scikit-learn")
    parser.add_argument("--weights", type=float, default=106e6, help="quantized weights of the model to estimate for")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    compare((8, 64), 2, 1, args.weights)  # imports and first calls
    table = [compare(shape, bits, args.rows, args.weights) for shape in SHAPES for bits in (2, 3, 4)]
    print(pd.DataFrame(table).to_markdown(index=False, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
