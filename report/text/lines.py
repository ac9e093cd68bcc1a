"""What is said below a table, one line each: legends, chance, families, the verdict, power, and what is missing."""

from core.registry import CONTROLS
from report.tables.comparison import falling
from report.tables.tables import TableData
from report.text.details import categories, small_categories
from report.text.numbers import interval, none, number, p_value, percent, signed, span

# scores that see neither task nor data
ALL_CONTROLS = (*CONTROLS, "equal", "magnitude", "TaCQ-weight", "rtn", "relative-error")
LEGEND = ("bits: stored bits a weight over the quantized linears, metadata included. EM/acc: percent right. LL: "
          "log-likelihood of the gold answer, nats a token. ΔLL: its paired change against full precision; ± of one "
          "seed: half its 95 % bootstrap interval over documents; sd: over several seeds, beside their mean. Higher is "
          "better.")
MARKS = {"terminal": "*: best at equal bits; ~: not told apart from it",
         "markdown": "Bold: best at equal bits; ~: not told apart from it",
         "latex": "Bold: best at equal bits; underlined: not told apart from it"}
MARK_TEST = " (paired sign-flip test over documents, 5 %, Holm-corrected; rows with bits of their own are not ranked)."
POWER = "Smallest true difference that one paired comparison shows with 80 % power at 5 %, two-sided:"
DETAIL_LEGEND = ("p: exact McNemar of accuracy; p LL: paired sign-flip test of gold log-likelihood; both "
                 "Holm-corrected over the data set's rows. Δ accuracy: Agresti-Min interval. lost/gained: answers that "
                 "turned wrong/right. same answer: percent answered as full precision does. KL: over the options, "
                 "nats. unparsed, cut: percent of documents. ≠: not at uniform's bits (both are shown), so no p.")


def footnotes(table: TableData, kind: str, detailed: bool) -> list[str]:
    """What must be read with a table: legends, verdict, power, notes."""
    lines = [LEGEND, MARKS[kind] + MARK_TEST]
    if detailed:
        lines.append(DETAIL_LEGEND)
        for dataset in table.datasets:
            lines += [family_line(table, dataset), *small_categories(categories(table, dataset).values(), dataset)]
    power = [line for dataset in table.datasets if (line := power_line(table, dataset))]
    lines += [*falling_line(table), *chance_line(table), *(option_line(table) if detailed else []),
              *verdict(table), *seeds_lines(table), *conditioning_lines(table),
              *([POWER] if power else []), *power]
    return [*lines, *table.notes]


def chance_line(table: TableData) -> list[str]:
    """What a guess gets right, of the data sets where one can guess."""
    shares = {dataset: facts["chance"] for dataset, facts in table.facts.items() if facts["chance"] is not None}
    if not shares:
        return []
    return ["A guess is right in " + ", ".join(f"{percent(share)} % of {dataset}" for dataset, share in shares.items())]


def option_line(table: TableData) -> list[str]:
    """What a guess gives the gold option."""
    nats = {dataset: facts["chance_option"] for dataset, facts in table.facts.items()
            if facts["chance_option"] is not None}
    return ["gold option: its log-probability among the options, nats; a guess: "
            + ", ".join(f"{number(value, 2)} in {dataset}" for dataset, value in nats.items())] if nats else []


def seeds_lines(table: TableData) -> list[str]:
    """Leads over uniform with intervals that hold seeds and documents."""
    lines = []
    for dataset, facts in table.facts.items():
        leads = sorted(facts["over_seeds"], key=lambda one: -one["value"])
        if leads:
            lines.append(f"{dataset}: lead over uniform of the same seed, with an interval over seeds and documents: "
                         + ", ".join(f"{one['method']} {span(one, signed)} ({one['seeds']} seeds)" for one in leads))
    return lines


def falling_line(table: TableData) -> list[str]:
    """Which columns are better the lower they are."""
    labels = dict.fromkeys(f"{dataset} {label}" for dataset, facts in table.facts.items()
                           for metric, label in facts["metrics"].items() if falling(metric))
    return [f"Lower is better: {', '.join(labels)} (a perplexity is exp of the mean nats a token)"] if labels else []


def conditioning_lines(table: TableData) -> list[str]:
    """What it is worth that a method was calibrated on one text rather than another, a line a data set and pair."""
    return [f"{dataset}: {row['method']} calibrated on {row['on']} rather than on {row['rather_than']} is worth "
            f"{span(row['gold_loglik'], signed)} nats/token (p {p_value(row['p'])}"
            + (f"; by seed {', '.join(map(signed, row['by_seed']))})" if len(row["by_seed"]) > 1 else ")")
            for dataset, facts in table.facts.items() for row in facts["conditioning"]]


def power_line(table: TableData, dataset: str) -> str:
    """The smallest differences that this data set can show, in words; empty where nothing is compared."""
    power = table.facts[dataset]["power"]
    return f"{dataset}: {detectable_text(power)}" if power else ""


def detectable_text(power: dict) -> str:
    """What Panel.detectable says, in words."""
    n, sd, loglik = power["n"], f"sd {power['sd']:.2f}", "none in log-likelihood"
    if power["gold_loglik"] is not None:
        loglik = f"{power['gold_loglik']:.2f} nats a token"
    if power["discordant"] is None:
        return f"{n} documents can show {loglik} ({sd})"
    accuracy = "no difference in accuracy, however large"
    if power["accuracy"] is not None:
        accuracy = f"{100 * power['accuracy']:.1f} points of accuracy"
    return f"{n} documents can show {accuracy}, {loglik} ({percent(power['discordant'])} % right in one row only, {sd})"


def family_line(table: TableData, dataset: str) -> str:
    """How many comparisons Holm's correction counts."""
    sizes = table.facts[dataset]["families"]
    pairs = sizes["best"] * (sizes["best"] + 1) // 2
    return (f"{dataset}: Holm over {sizes['fp16']} rows against fp16, {sizes['uniform']} against uniform, {pairs} "
            "pairs of rows at equal bits")


def verdict(table: TableData) -> list[str]:
    """Per data set, the rows of the budget that keep the most, and the best one's lead over uniform at equal bits."""
    lines = []
    for dataset in table.datasets:
        rows = table.of(dataset)
        best = [row for row in rows if row["best_loglik"] == "best"]
        if not best:  # one row alone keeps the most of nothing
            continue
        name = best[0]["method"]
        best = [row for row in best if row["method"] == name]
        tied = dict.fromkeys(row["method"] for row in rows if row["best_loglik"] == "tied")
        against = [row["d_loglik"] for row in best if not none(row["d_loglik"])]
        line = f"{dataset}: {name} keeps the most gold log-likelihood"
        line += f" ({signed(sum(against) / len(against))} nats/token against full precision)" if against else ""
        line += _against_uniform(best) + (f"; not told apart from it: {', '.join(tied)}" if tied else "")
        lines.append(line + ("; a control wins" if name in ALL_CONTROLS else ""))
    return lines


def _against_uniform(rows: list[dict]) -> str:
    """The lead over uniform at equal bits: the interval of a single seed, or every seed's."""
    rows = [row for row in rows if not none(row["u_loglik"]) and row["u_equal_bits"]]
    if not rows:
        return ""
    leads = [interval(row, "u_loglik", signed) for row in rows]
    seeds = f" (seeds {', '.join(str(row['seed']) for row in rows)})" if len(rows) > 1 else ""
    return f", {', '.join(leads)} against uniform at equal bits{seeds}"
