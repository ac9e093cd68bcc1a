"""KL divergence of rows from the full model on calibration documents that neither solvers nor gradients read.

    python -m benchmarks.kl_of_rows --method TaCQ "TaCQ[kept=8,scales=log]" --avg_bits 2.25 --data_dir DATA

A row costs its solve and one pass over as many tokens as calibrate: choices that need many rows are made by this before
they are made on development documents.  nats a token; Δ is paired with the first row, document by document, with a 95 %
bootstrap interval.  Beside the divergence, what became of: loss, of the documents' own tokens; entropy, of the
predictions; answer, the log-likelihood of the gold answers, mean over documents, as tables of results have it.
"""

from dataclasses import dataclass

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
                full = [log_chances(case.model.module, ids).bfloat16() for ids in unseen(case, "answer").tokens]
            whole = read(case, full)
        true = put_weights(case, plan(case))
        kept = sum(int(layer.keep.sum()) for layer in true.layers.values() if layer.keep is not None)
        now = read(case, full)
        case.model.originals.restore()
        case.model.release()
        first = now if first is None else first
        change = now.sums - whole.sums
        over = np.array([(now.tokens - 1).sum(), now.tokens.sum()])  # a document's first token is not predicted
        means = (*change[:, 1:].sum(0) / over, np.nanmean(now.answers - whole.answers))
        rows.append([case.method.name, f"{true.avg_bits:.3f}", f"{100 * kept / case.model.weights:.2f}",
                     f"{now.sums[:, 0].sum() / now.tokens.sum():.3f}",
                     difference(now.sums[:, 0] - first.sums[:, 0], now.tokens) if now is not first else "",
                     *(f"{value:+.3f}" for value in means)])
        print(" ".join(rows[-1]), flush=True)
    heads = ["row", "bits", "kept, %", "KL", "Δ", "loss", "entropy", "answer"]
    print(tabulate(rows, heads, "github", disable_numparse=True))
    print(f"\n{len(now.tokens)} documents, {now.tokens.sum():.0f} tokens of {args.dataset}, seed {args.seed}; answers "
          f"of {np.isfinite(now.answers).sum()}")


@dataclass(frozen=True)
class Read:
    """What a model makes of the documents."""

    tokens: np.ndarray  # float64 [documents]
    sums: np.ndarray  # float64 [documents, 3] over its tokens: KL from the full model, loss, entropy
    answers: np.ndarray  # float64 [documents]: log-likelihood of its answer, nats a token; NaN where it has none


@torch.no_grad()
def read(case: Case, full: list[torch.Tensor]) -> Read:
    """One pass over the documents that neither solvers nor gradients read; full: the full model's log-probabilities."""
    documents, sums, answers = unseen(case, "answer"), [], []
    for ids, mask, whole in zip(documents.tokens, documents.loss_mask, full, strict=True):
        now = log_chances(case.model.module, ids)
        following = torch.as_tensor(np.asarray(ids[1:], np.int64), device=now.device)
        gold = now[:-1].gather(1, following[:, None])[:, 0]
        inside = torch.as_tensor(mask[1:])
        sums.append([float(divergence(whole, now)), -float(gold.sum()), -float((now.exp() * now).sum())])
        answers.append(float(gold.cpu()[inside].mean()) if inside.any() else np.nan)
    return Read(np.array([float(len(ids)) for ids in documents.tokens]), np.array(sums), np.array(answers))


def difference(change: np.ndarray, sizes: np.ndarray) -> str:
    """Σ change / Σ size with its interval over documents."""
    interval = bootstrap((change, sizes), lambda a, b: a.sum() / b.sum(), paired=True, vectorized=False,
                         rng=np.random.default_rng(0)).confidence_interval
    return f"{change.sum() / sizes.sum():+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


if __name__ == "__main__":
    main()
