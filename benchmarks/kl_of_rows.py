"""KL divergence of rows from the full model on calibration documents that neither solvers nor gradients read.

    python -m benchmarks.kl_of_rows --method TaCQ "TaCQ[kept=8,scales=log]" --avg_bits 2.25 --data_dir DATA

A row costs its solve and one pass over as many tokens as calibrate: choices that need many rows are made by this before
they are made on development documents.  nats a token; Δ is paired with the first row, document by document, with a 95 %
bootstrap interval.
"""

import argparse

import numpy as np
import torch
from scipy.stats import bootstrap
from tabulate import tabulate

from core.forward import call, device_of, pad
from harness.api import one_case, put_weights
from harness.stages.case import Case
from harness.stages.plan import plan
from harness.stages.search import unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dataset", default="mmlu_pro")
    parser.add_argument("--data_dir", help="data sets in the hub's layout (default: the embedded ones)")
    parser.add_argument("--avg_bits", type=float, default=2.25)
    parser.add_argument("--calib_tokens", type=int, default=4096)
    parser.add_argument("--calib_size", type=int, default=512)
    parser.add_argument("--quantizer", default="gptq")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache_dir", default="saved_models")
    args = parser.parse_args()
    told = dict(data_dir=args.data_dir, avg_bits=args.avg_bits, calib_tokens=args.calib_tokens, threads=args.threads,
                calib_size=args.calib_size, seeds=(args.seed,), quantizer=args.quantizer, cache_dir=args.cache_dir)
    full, rows, first = None, [], None
    for name in args.method:
        case = one_case(args.model, name, args.dataset, told)
        if full is None:
            full = [logp(case, ids).bfloat16() for ids in unseen(case).tokens]
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
    print(f"\n{len(sizes)} documents, {sizes.sum()} tokens of {args.dataset}, seed {args.seed}")


def logp(case: Case, ids: np.ndarray) -> torch.Tensor:
    """Log-probabilities [T, vocabulary] of what the model holds."""
    tokens, mask = pad([ids], device_of(case.model.module))
    with torch.no_grad():
        return call(case.model.module, tokens, mask, last_only=False).logits[0].float().log_softmax(-1)


def divergences(case: Case, full: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Σ over a document's tokens of the KL divergence, and the number of tokens: float64 [documents] each."""
    sums = []
    for ids, whole in zip(unseen(case).tokens, full, strict=True):
        whole = whole.float()
        sums.append(float((whole.exp() * (whole - logp(case, ids))).sum()))
    return np.array(sums), np.array([float(len(ids)) for ids in unseen(case).tokens])


def difference(change: np.ndarray, sizes: np.ndarray) -> str:
    """Σ change / Σ size with its interval over documents."""
    interval = bootstrap((change, sizes), lambda a, b: a.sum() / b.sum(), paired=True, vectorized=False,
                         rng=np.random.default_rng(0)).confidence_interval
    return f"{change.sum() / sizes.sum():+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


if __name__ == "__main__":
    main()
