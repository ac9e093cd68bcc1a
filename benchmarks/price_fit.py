"""Predicted against measured loss of random plans of TALK's menu: Spearman's rank correlation, price by price.

    python -m benchmarks.price_fit --dataset mmlu_pro --avg_bits 2.25 --data_dir DATA

Plans are bought at the budget with random prices, so they differ everywhere and store the same.  Measured is the KL
divergence from the full model, nats a token, on documents that neither solvers nor gradients read, of the plan as it is
put together from the library.  Predicted: Σ over linears of each price (additive), and ½ · mean of (Σ over linears of
a_dl)², which has the interactions of linears (streams/dots.py).
"""

import numpy as np
from scipy.stats import bootstrap, spearmanr
from tabulate import tabulate

from benchmarks.rows import grid_of, row_parser
from harness.api import one_case
from harness.stages.library import library
from harness.stages.prices import DRAWS, dots, fisher, quadratic
from harness.stages.search import Measured
from quantization.allocators.knapsack import lagrangian


def random_plans(cost: np.ndarray, capacity: int, count: int, seed: int) -> list[np.ndarray]:
    """Choices of forms [linears] that fill the capacity, bought at random prices that fall with what a form stores."""
    rng = np.random.default_rng(seed)
    plans = []
    for _ in range(count):
        steep = rng.uniform(0.5, 2.0)
        price = (cost / cost.min(1, keepdims=True)) ** -steep * rng.gamma(2.0, size=cost.shape)
        plans.append(lagrangian(price * rng.gamma(1.0, size=(len(cost), 1)), cost, capacity)[0])
    return plans


def with_interactions(along: np.ndarray, choice: np.ndarray, tokens: int) -> float:
    """½ · mean over draws of (Σ_l a_dl)², nats a token."""
    return 0.5 * float(np.square(along[:, np.arange(along.shape[1]), choice].sum(1, dtype=np.float64)).sum()) / (
        DRAWS * tokens)


def main() -> None:
    parser = row_parser(__doc__)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--method", default="TALK", help="a row that buys forms, such as TALK[mask=tacq]")
    args = parser.parse_args()
    case = one_case(args.model, args.method, args.dataset, grid_of(args))
    offered = library(case)
    along, tokens = dots(case, offered), sum(map(len, case.solver_calib.tokens))
    capacity = int(args.avg_bits * case.model.weights)
    plans = random_plans(offered.cost, capacity, args.plans, args.seed)
    work, measured = Measured(case, offered), []
    for done, plan in enumerate(plans):
        case.progress.update("plans measured", done, len(plans))
        measured.append(work.kl(plan))
    prices = {"quadratic": quadratic(along, tokens), "fisher": fisher(case, offered), "error": offered.error}
    every = np.arange(len(offered.names))
    predicted = {f"{name}, additive": [price[every, plan].sum() for plan in plans] for name, price in prices.items()}
    predicted["quadratic, with interactions"] = [with_interactions(along, plan, tokens) for plan in plans]
    rows = []
    for name, values in predicted.items():
        interval = bootstrap((np.array(values), np.array(measured)), lambda a, b: spearmanr(a, b).statistic,
                             paired=True, vectorized=False, n_resamples=1000,
                             rng=np.random.default_rng(0)).confidence_interval
        rows.append([name, f"{spearmanr(values, measured).statistic:.2f}", f"[{interval.low:.2f}, {interval.high:.2f}]",
                     f"{np.mean(values):.3g}", f"{np.std(values):.3g}"])
    print(tabulate(rows, ["price", "Spearman", "95 %", "mean", "sd"], tablefmt="github", disable_numparse=True))
    print(f"\n{len(plans)} plans of {args.avg_bits:g} stored bits, {args.dataset}, seed {args.seed}; measured KL "
          f"{np.mean(measured):.3f} ± {np.std(measured):.3f} nats a token (mean ± sd), {min(measured):.3f} to "
          f"{max(measured):.3f}")


if __name__ == "__main__":
    main()
