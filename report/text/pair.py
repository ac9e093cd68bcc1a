"""Two cells side by side as sheets of text and the lines below them."""

from string import ascii_uppercase

from report.tables.comparison import LEVEL
from report.tables.pair import Story
from report.text.details import LEAST_DOCUMENTS, small_categories
from report.text.lines import detectable_text
from report.text.numbers import number, p_value, percent, points, signed, span
from report.text.sheets import Sheet, sheet

LONGEST = 40  # letters of an answer in a table
LONGEST_QUESTION = 300
SHOWN = 20  # questions, unless all are asked for


def sheets(story: Story, every: bool = False) -> list[Sheet]:
    """The story as sheets: metrics, flips, categories, the questions that flipped."""
    a, b = names_of(story)
    blocks = [_metrics_sheet(story, a, b), *_flips_sheets(story, a, b)]
    blocks += [*_categories(story, "groups", "group"), *_categories(story, "strata", "category")]
    shown = story.flipped if every else story.flipped[:SHOWN]
    if shown:
        count = f"{len(shown)} of {len(story.flipped)}" if len(shown) < len(story.flipped) else str(len(shown))
        blocks.append(sheet(f"questions that flipped: {count}",
                            [_called(story, q, number) | _answered(q, a, b) for number, q in enumerate(shown, 1)]))
    return blocks


def _categories(story: Story, kind: str, called: str) -> list[Sheet]:
    """Both accuracies by category or group of categories; nothing where there is only one."""
    a, b = names_of(story)
    rows = [row for row in story.compared[kind] if row["n"] >= LEAST_DOCUMENTS]
    if len(story.compared[kind]) < 2 or not rows:
        return []
    return [sheet(f"by {called}", [{
        called: row["category"] or "(none)", "n": str(row["n"]), f"{a} acc": percent(row["first"]),
        f"{b} acc": percent(row["second"]), "lost/gained": f"{row['right_to_wrong']}/{row['wrong_to_right']}",
        "p": p_value(row["p"])} for row in rows])]


def _called(story: Story, q: dict, place: int) -> dict:
    """A question in its words, numbered; by its id where the results do not hold them."""
    if all(other["question"] is None for other in story.flipped):
        return {"document": q["doc_id"]}
    words = q["doc_id"] if q["question"] is None else q["question"]
    return {"no.": str(place), "question": _short(words, LONGEST_QUESTION)}


def _answered(q: dict, a: str, b: str) -> dict:
    return {"category": q["category"] or "-", "flip": q["flip"], "gold": _answer(q["gold"], q),
            f"{a} answer": _answer(q["first"], q), f"{b} answer": _answer(q["second"], q),
            f"{a} LL": number(q["first_loglik"], 2), f"{b} LL": number(q["second_loglik"], 2)}


def names_of(story: Story) -> tuple[str, str]:
    """The shortest names that tell the two cells apart."""
    for name in (lambda s: f"{s['method']}@{s['seed']}", lambda s: f"{s['method']}@{s['seed']} ({s['bits']:.3f} bits)",
                 lambda s: f"{s['method']}@{s['seed']} ({s['cell'][:8]})"):
        if name(story.first) != name(story.second):
            break
    return name(story.first), name(story.second)


def _metrics_sheet(story: Story, a: str, b: str) -> Sheet:
    """Each metric of both cells, and the paired change with its test."""
    first, second = story.first["bits"], story.second["bits"]
    rows = [{"metric": "bits", a: f"{first:.3f}", b: f"{second:.3f}", "change [95 %]": signed(second - first),
             "p": "-"}]
    for name in dict.fromkeys(["accuracy", "gold_loglik", "f1", *story.metrics]):
        values = story.compared["metrics"][name]
        if name in story.compared and None not in values:
            title, own, change, test = _metric(name, story.metrics)
            rows.append({"metric": title, a: span(values[0], own), b: span(values[1], own),
                         "change [95 %]": span(story.compared[name], change),
                         "p": p_value(story.compared[test]) if test else "-"})
    return sheet(f"{story.first['model']}, {story.first['dataset']}, {story.compared['n']} documents: {a} → {b}", rows)


def _metric(name: str, labels: dict[str, str]) -> tuple:
    """How a metric is called and shown: title, its values, its changes, and the name of its test."""
    known = {"accuracy": ("accuracy, %", percent, points, "mcnemar_p"), "f1": ("F1, %", percent, points, None),
             "gold_loglik": ("gold LL, nats a token", lambda value: number(value, 3), signed, "permutation_p")}
    return known.get(name) or (labels[name], lambda value: number(value, 3), signed, None)


def _flips_sheets(story: Story, a: str, b: str) -> list[Sheet]:
    flips, both = story.compared["flips"], story.compared["both"]
    if flips is None:
        return []
    right, wrong = f"{b} right", f"{b} wrong"
    return [sheet("flips", [{"": f"{a} right", right: str(both["right"]), wrong: str(flips["right_to_wrong"])},
                            {"": f"{a} wrong", right: str(flips["wrong_to_right"]), wrong: str(both["wrong"])}])]


def lines(story: Story, every: bool = False) -> list[str]:
    """What stands below the sheets."""
    compared = story.compared
    said = [*story.warnings, f"same answer in {percent(compared['agreement'])} % of the documents"]
    if compared["kl"]:
        kl = span(compared["kl"], lambda value: number(value, 3))
        said.append(f"KL over the options, from the first to the second: {kl} nats")
    if test := compared.get("equivalence"):
        shown = test["p"] is not None and test["p"] < LEVEL
        said.append(f"Equivalence within ±{test['margin']:g} nats a token of gold LL, two one-sided t tests: p "
                    f"{p_value(test['p'])}, {'shown' if shown else 'not shown'}")
    count = len(compared["strata"])
    holm = f"; of categories, McNemar Holm-corrected over the {count} of them" if count > 1 else ""
    said += small_categories([row["n"] for row in compared["strata"]], story.first["dataset"])
    said.append(f"p: exact McNemar of accuracy, paired sign-flip test of gold LL{holm}. Intervals: Wilson, "
                "Agresti-Min, bootstrap of LL and F1.")
    if compared["power"]:
        power = detectable_text(compared["power"])
        said.append(f"Smallest true difference found with 80 % power at 5 %, two-sided: {power}")
    if not every and len(story.flipped) > SHOWN:
        said.append(f"{len(story.flipped) - SHOWN} more questions flipped; --all lists them")
    return said


def _answer(value: str | None, question: dict) -> str:
    """An answer; a letter with the option that it stands for."""
    if value is None:
        return "(unparsed)"
    options = question["options"] or ()
    at = ascii_uppercase.find(value) if len(value) == 1 else -1
    return _short(f"{value}. {options[at]}" if 0 <= at < len(options) else value, LONGEST)


def _short(value: str, longest: int) -> str:
    line = " ".join(str(value).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
