"""KL divergence of rows from the full model on calibration documents that neither solvers nor gradients read.

    python -m benchmarks.kl_of_rows --method TaCQ "TaCQ[kept=8,scales=log]" --avg_bits 2.25 --data_dir DATA

A row costs its solve and one pass over as many tokens as calibrate: choices that need many rows are made by this before
they are made on development documents.  nats a token; Δ is paired with the first row, document by document, with a 95 %
bootstrap interval.
"""

import numpy as np
import torch
from scipy.stats import bootstrap
from tabulate import tabulate

from benchmarks.rows import grid_of, row_parser
from harness.api import one_case, put_weights
from harness.stages.case import Case
from harness.stages.plan import plan
from harness.stages.search import unseen
from streams.divergence import divergence, log_chances


def main() -> None:
    parser = row_parser(__doc__)
    parser.add_argument("--method", nargs="+", required=True)
    args = parser.parse_args()
    full, rows, first = None, [], None
    for name in args.method:
        case = one_case(args.model, name, args.dataset, grid_of(args))
        if full is None:
            with torch.no_grad():
                full = [log_chances(case.model.module, ids).bfloat16() for ids in unseen(case).tokens]
        true = put_weights(case, plan(case))
        kept = sum(int(layer.keep.sum()) for layer in true.layers.values() if layer.keep is not None)
        sums, sizes = divergences(case, full)
        case.model.originals.restore()
        case.model.release()
        first = sums if first is None else first
        rows.append([case.method.name, f"{true.avg_bits:.3f}", f"{100 * kept / case.model.weights:.2f}",
                     f"{sums.sum() / sizes.sum():.3f}", difference(sums - first, sizes) if sums is not first else ""])
        print(" ".join(rows[-1]), flush=True)
    print(tabulate(rows, ["row", "bits", "kept, %", "KL", "Δ"], "github", disable_numparse=True))
    print(f"\n{len(sizes)} documents, {sizes.sum():.0f} tokens of {args.dataset}, seed {args.seed}")


@torch.no_grad()
def divergences(case: Case, full: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Σ over a document's tokens of the KL divergence, and the number of tokens: float64 [documents] each."""
    documents, module = unseen(case).tokens, case.model.module
    sums = [float(divergence(whole, log_chances(module, ids))) for ids, whole in zip(documents, full, strict=True)]
    return np.array(sums), np.array([float(len(ids)) for ids in documents])


def difference(change: np.ndarray, sizes: np.ndarray) -> str:
    """Σ change / Σ size with its interval over documents."""
    interval = bootstrap((change, sizes), lambda a, b: a.sum() / b.sum(), paired=True, vectorized=False,
                         rng=np.random.default_rng(0)).confidence_interval
    return f"{change.sum() / sizes.sum():+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


if __name__ == "__main__":
    main()
