"""All that is known of one data set as sheets narrow enough for a terminal: answers, likelihood, uniform, kinds."""

from collections.abc import Collection

from report.tables.comparison import STEMS, stem
from report.tables.tables import TableData
from report.text.numbers import interval, mean_sd, none, number, p_value, percent, points, signed, with_activations
from report.text.sheets import Sheet, closed_by, sheet

UNEQUAL = "≠"
LEAST_DOCUMENTS = 10  # a category of fewer is not printed: its accuracy says next to nothing


def details(table: TableData, dataset: str) -> list[Sheet]:
    """The sheets of a data set."""
    rows, metrics = table.of(dataset), table.facts[dataset]["metrics"]
    seeds: dict[str, set[int]] = {}
    for row in table.rows:
        seeds.setdefault(row["method"], set()).add(row["seed"])
    named = [(row["method"] + (f" (seed {row['seed']})" if len(seeds[row["method"]]) > 1 else ""), row) for row in rows]
    own = {metric: label for metric, label in metrics.items() if metric not in STEMS}
    rivals = [(name, row) for name, row in named if not none(row["u_loglik"])]
    return [_answers(dataset, named), *([_own(dataset, named, own)] if own else []), _likelihood(dataset, named),
            *([_against_uniform(dataset, rivals)] if rivals else []),
            *_categories(table, dataset, "groups", "group"),
            *_categories(table, dataset, "strata", "category")]


def _answers(dataset: str, named: list[tuple[str, dict]]) -> Sheet:
    return sheet(f"{dataset}: answers", [{
        "method": name, "bits": with_activations(f"{row['bits']:.3f}", row), "whole model": f"{row['model_bits']:.2f}",
        "n": str(row["n"]),
        "accuracy [95 %]": (interval(row, "accuracy", percent), row["best_accuracy"]), "F1": number(row["f1"], 3),
        "Δ accuracy [95 %]": interval(row, "d_accuracy", points), "p": p_value(row["p"]),
        "lost/gained": _flips(row, ""), "same answer": percent(row["agreement"])}
        for name, row in named], closed_by("n", "p"))


def _own(dataset: str, named: list[tuple[str, dict]], metrics: dict[str, str]) -> Sheet:
    """The metrics that are the task's own."""
    def cells(row: dict, metric: str, label: str) -> dict:
        value = interval(row, stem(metric), lambda value: number(value, 3))
        return {f"{label} [95 %]": (value, row.get(f"best_{stem(metric)}", "")),
                f"Δ {label} [95 %]": interval(row, f"d_{stem(metric)}", signed)}

    return sheet(f"{dataset}: the task's own metrics", [
        {"method": name} | {head: cell for one in metrics.items() for head, cell in cells(row, *one).items()}
        for name, row in named])


def _likelihood(dataset: str, named: list[tuple[str, dict]]) -> Sheet:
    return sheet(f"{dataset}: likelihood and format", [{
        "method": name, "gold LL": (number(row["loglik"], 3), row["best_loglik"]), "ΔLL [95 %]": change(row),
        "p LL": p_value(row["p_loglik"]), "gold option [95 %]": interval(row, "option", lambda value: number(value, 3)),
        "KL": number(row["kl"], 3), "unparsed": percent(row["parse_fail"]),
        "cut": percent(row["truncated"])} for name, row in named], closed_by("p LL"))


def _against_uniform(dataset: str, named: list[tuple[str, dict]]) -> Sheet:
    def bits(row: dict) -> str:
        return f"{row['bits']:.3f}" + ("" if row["u_equal_bits"] else f" {UNEQUAL} {row['u_bits']:.3f}")

    return sheet(f"{dataset}: against uniform", [{
        "method": name, "bits": bits(row), "Δ accuracy [95 %]": interval(row, "u_accuracy", points),
        "lost/gained": _flips(row, "u_"), "p": p_value(row["u_p"]),
        "LL against uniform [95 %]": interval(row, "u_loglik", signed), "p LL": p_value(row["u_p_loglik"])}
        for name, row in named], closed_by("bits", "p", "p LL"))


def _flips(row: dict, prefix: str) -> str:
    lost, gained = row[f"{prefix}lost"], row[f"{prefix}gained"]
    return "-" if none(lost) else f"{int(lost)}/{int(gained)}"


def change(row: dict) -> str:
    """The paired change of the gold log-likelihood with its interval."""
    return interval(row, "d_loglik", signed)


def _categories(table: TableData, dataset: str, kind: str, called: str) -> list[Sheet]:
    """Accuracy by category or group of categories, with the methods side by side; nothing where there is only one."""
    sizes, rows = categories(table, dataset, kind), table.of(dataset)
    if len(sizes) < 2:
        return []
    shown = {(row["method"], row["seed"]) for row in rows}
    accuracies: dict[tuple[str, str], list] = {}
    for one in table.facts[dataset][kind]:
        if (one["method"], one["seed"]) in shown:
            accuracies.setdefault((one["category"], one["method"]), []).append(one["accuracy"])
    methods = dict.fromkeys(row["method"] for row in rows)
    large = [{called: category or "(none)", "n": str(n)}
             | {method: mean_sd(accuracies.get((category, method), ()), percent) for method in methods}
             for category, n in sorted(sizes.items()) if n >= LEAST_DOCUMENTS]
    return [sheet(f"{dataset}: accuracy by {called}", large)] if large else []


def categories(table: TableData, dataset: str, kind: str = "strata") -> dict[str, int]:
    """The documents of each category, or of each group of them."""
    return {one["category"]: one["n"] for one in table.facts[dataset][kind]}


def small_categories(sizes: Collection[int], what: str) -> list[str]:
    """The line that says how many categories are too small to be shown."""
    small = sum(n < LEAST_DOCUMENTS for n in sizes)
    if len(sizes) < 2 or not small:
        return []
    return [f"{what}: {small} of {len(sizes)} categories have fewer than {LEAST_DOCUMENTS} documents and are not shown"]
