"""Two cells side by side as sheets of text and the lines below them."""

from report.tables.pair import Story
from report.text.numbers import nats, number, p_value, percent, points, span
from report.text.sheets import Sheet, detectable_text, sheet

LONGEST = 40  # letters of an answer in a table

SHOWN = 20


def sheets(of: Story, every: bool = False) -> list[Sheet]:
    """The story as sheets: metrics, flips, categories, the questions that flipped."""
    a, b = names_of(of)
    out = [_metrics_sheet(of, a, b), _flips_sheet(of, a, b)]
    if len(of.found["strata"]) > 1:
        out.append(sheet("by category", [{
            "category": row["category"] or "(none)", "n": str(row["n"]), f"{a} acc": percent(row["first"]), f"{b} acc": percent(row["second"]),
            "lost/gained": f"{row['right_to_wrong']}/{row['wrong_to_right']}", "p": p_value(row["p"])} for row in of.found["strata"]]))
    shown = of.flipped if every else of.flipped[:SHOWN]
    if shown:
        count = f"{len(shown)} of {len(of.flipped)}" if len(shown) < len(of.flipped) else str(len(shown))
        out.append(sheet(f"questions that flipped: {count}", [{
            "document": q["doc_id"], "category": q["category"] or "-", "flip": q["flip"], "gold": _short(q["gold"]),
            f"{a} answer": _short(q["first"]), f"{b} answer": _short(q["second"]),
            f"{a} LL": number(q["first_loglik"], 2), f"{b} LL": number(q["second_loglik"], 2)} for q in shown]))
    return out


def names_of(of: Story) -> tuple[str, str]:
    """The shortest names that tell the two cells apart."""
    for name in (lambda s: f"{s['method']}@{s['seed']}", lambda s: f"{s['method']}@{s['seed']} ({s['bits']:.3f} bits)",
                 lambda s: f"{s['method']}@{s['seed']} ({s['cell'][:8]})"):
        if name(of.first) != name(of.second):
            break
    return name(of.first), name(of.second)


def _metrics_sheet(of: Story, a: str, b: str) -> Sheet:
    """Each metric of both cells, and the paired change with its test."""
    bits = of.first["bits"], of.second["bits"]
    rows = [{"metric": "bits", a: f"{bits[0]:.3f}", b: f"{bits[1]:.3f}", "change [95 %]": f"{bits[1] - bits[0]:+.3f}", "p": "-"}]
    tests = {"accuracy": "mcnemar_p", "gold_loglik": "permutation_p", "f1": None}
    shown = {"accuracy": ("accuracy, %", percent, points), "gold_loglik": ("gold LL, nats a token", lambda v: number(v, 3), nats),
             "f1": ("F1, %", percent, points)}
    for name, (title, own, change) in shown.items():
        if name in of.found and of.found["metrics"][name][0] is not None:
            left, right = of.found["metrics"][name]
            rows.append({"metric": title, a: span(left, own), b: span(right, own), "change [95 %]": span(of.found[name], change),
                         "p": p_value(of.found[tests[name]]) if tests[name] else "-"})
    return sheet(f"{of.first['model']}, {of.first['dataset']}, {of.found['n']} documents: {a} → {b}", rows)


def _flips_sheet(of: Story, a: str, b: str) -> Sheet:
    flips, both = of.found["flips"], of.found["both"]
    return sheet("flips", [{"": f"{a} right", f"{b} right": str(both["right"]), f"{b} wrong": str(flips["right_to_wrong"])},
                           {"": f"{a} wrong", f"{b} right": str(flips["wrong_to_right"]), f"{b} wrong": str(both["wrong"])}])


def lines(of: Story, every: bool = False) -> list[str]:
    """What stands below the sheets."""
    found = of.found
    out = [*of.warnings, f"same answer in {percent(found['agreement'])} % of the documents"]
    if found["kl"]:
        out.append(f"KL over the options, from the first to the second: {span(found['kl'], lambda v: number(v, 3))} nats")
    holm = f"; of categories, McNemar Holm-corrected over the {len(found['strata'])} of them" if len(found["strata"]) > 1 else ""
    out.append(f"p: exact McNemar of accuracy, paired sign-flip test of gold LL{holm}. Intervals: Wilson, Agresti-Min, bootstrap of LL and F1.")
    if found["power"]:
        out.append(f"Smallest true difference found with 80 % power at 5 %, two-sided: {detectable_text(found['power'])}")
    if not every and len(of.flipped) > SHOWN:
        out.append(f"{len(of.flipped) - SHOWN} more questions flipped; --all lists them")
    return out


def _short(value: str | None) -> str:
    if value is None:
        return "(unparsed)"
    line = " ".join(str(value).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
