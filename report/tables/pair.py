"""Two cells side by side: the paired story, down to the questions that flipped.

A cell is named as METHOD, METHOD@SEED, the beginning of its digest, or its file's stem.  Two cells can be compared if
they hold the same model and were asked the same documents in the same way; where a name fits several cells, those of
equal seed and settings are preferred, and what is still ambiguous is an error that lists the candidates.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

from core.errors import UserError
from core.sample import Sample
from evaluation.statistics.formulas import equivalence_p
from evaluation.statistics.paired import Panel, strata
from report.records import Question, Result, load_questions, load_samples
from report.schema import equal_bits
from report.strata import groups_of

SCHEMA = 1  # of the JSON form
LEAST_PREFIX = 4  # hex digits of a digest that name a cell
LISTED = 12  # candidates in a message


@dataclass(frozen=True)
class Story:
    """All that two cells' documents say, as plain data."""

    first: dict
    second: dict
    compared: dict  # Panel.compare, with each cell's own values, categories and power
    flipped: list[dict]  # a question each
    metrics: dict[str, str]  # names and labels of what the task measures
    warnings: list[str]


def fits(result: Result, name: str) -> bool:
    """Whether a name means this cell."""
    return name in (result.name, f"{result.name}@{result.seed}", result.file.stem) or (
        len(name) >= LEAST_PREFIX and result.cell.startswith(name))


def label(result: Result) -> str:
    """A cell in words, by which it can be named."""
    bits = "own bits" if result.avg_bits is None else f"{result.avg_bits:g} bits"
    return f"{result.name}@{result.seed} on {result.dataset}, {bits} ({result.cell[:8]})"


def find_pair(results: Sequence[Result], names: Sequence[str]) -> tuple[Result, Result]:
    """The two cells that the names mean."""
    sides = [_side(results, name) for name in names]
    asked = f"--compare {names[0]!r} {names[1]!r}"
    pairs = [(a, b) for a, b in product(*sides) if _comparable(a, b)]
    if not pairs:
        raise UserError(f"{asked} fits no two cells of one model that were asked the same documents: "
                        f"{_list(sides[0] + sides[1])}; choose cells of one data set")
    best = max(_likeness(a, b) for a, b in pairs)
    pairs = list({(a.cell, b.cell): (a, b) for a, b in pairs if _likeness(a, b) == best}.values())
    if len(pairs) > 1:
        raise UserError(f"{asked} fits {len(pairs)} pairs of cells ({_list([r for pair in pairs for r in pair])}); "
                        "narrow it with --dataset, --avg_bits, METHOD@SEED or a digest")
    return pairs[0]


def full_precision(results: Sequence[Result], cell: Result) -> Result | None:
    """The cell of full precision that was asked what ``cell`` was, of the same model; of several the most alike."""
    mine = [r for r in results if r.ok and r.name == "fp16" and _comparable(r, cell)]
    return max(mine, key=lambda r: _likeness(r, cell), default=None)


def _side(results: Sequence[Result], name: str) -> list[Result]:
    """The good cells that a name may mean."""
    named = [r for r in results if fits(r, name)]
    if not named:
        raise UserError(f"--compare {name!r} fits no cell; give METHOD, METHOD@SEED, the beginning of a digest or a "
                        f"file's name, of these: {_list(results)}")
    good = [r for r in named if r.ok]
    if not good:
        raise UserError(f"--compare {name!r} fits only cells that failed ({named[0].error}); run them again")
    return good


def _comparable(a: Result, b: Result) -> bool:
    same_model = (a.model.revision, a.model.dtype) == (b.model.revision, b.model.dtype)
    return same_model and (a.dataset, a.asked) == (b.dataset, b.asked) and a.file != b.file


def _likeness(a: Result, b: Result) -> tuple[bool, bool, bool]:
    """Cells of one table go before others: same settings, same budget where both have one, same seed."""
    seedless = "fp16" in (a.name, b.name)
    budgets = None in (a.avg_bits, b.avg_bits) or a.avg_bits == b.avg_bits
    return a.settings == b.settings, budgets, seedless or a.seed == b.seed


def _list(results: Sequence[Result]) -> str:
    names = list(dict.fromkeys(label(r) for r in results))
    return "; ".join(names[:LISTED]) + (f"; and {len(names) - LISTED} more" if len(names) > LISTED else "")


def story(first: Result, second: Result, margin: float | None = None) -> Story:
    """Compare two cells; differences are second minus first.  margin: nats a token, for a test of equivalence."""
    panel = Panel([load_samples(first), load_samples(second)], reference=0)
    left, right = panel.runs
    compared = panel.compare(0, 1) | {"metrics": _own_metrics(first, second), "strata": strata(left, right),
                                      "groups": strata(left, right, first.task.groups) if groups_of(first) else [],
                                      "power": panel.detectable([(0, 1)]), "both": _both(panel)}
    if margin is not None:
        p = equivalence_p(panel.differences("gold_loglik", 0, 1), margin)
        compared["equivalence"] = {"margin": margin, "p": None if p != p else p}
    questions = load_questions(first)
    flipped = [_question(a, b, questions.get(a.doc_id)) for a, b in zip(left, right, strict=True)
               if a.correct != b.correct]
    return Story(first=_who(first), second=_who(second), compared=compared, flipped=flipped, metrics=first.task.metrics,
                 warnings=_warnings(first, second))


def _both(panel: Panel) -> dict | None:
    """How many documents both cells answer right, and how many wrong; None where the task has no right and wrong."""
    if "accuracy" not in panel.values:
        return None
    right = panel.values["accuracy"] > 0
    return {"right": int(right.all(axis=1).sum()), "wrong": int((~right).all(axis=1).sum())}


def _own_metrics(first: Result, second: Result) -> dict:
    """Both cells' metrics with their intervals, as their results state them."""
    names = dict.fromkeys(["accuracy", "gold_loglik", "f1", "parse_fail", *first.task.metrics])
    return {name: [asdict(r.metrics[name]) if r.metrics.get(name) else None for r in (first, second)] for name in names}


def _who(result: Result) -> dict:
    return {"method": result.name, "seed": result.seed, "bits": result.bits.average,
            "model_bits": result.bits.whole_model, "avg_bits": result.avg_bits, "dataset": result.dataset,
            "model": result.model.name, "cell": result.cell, "file": result.file.name}


def _question(a: Sample, b: Sample, question: Question | None) -> dict:
    return {"doc_id": a.doc_id, "question": question and question.question,
            "options": question and list(question.options), "category": a.stratum,
            "flip": "lost" if a.correct else "gained", "gold": a.gold, "first": a.answer, "second": b.answer,
            "first_loglik": a.gold_loglik, "second_loglik": b.gold_loglik}


def _warnings(first: Result, second: Result) -> list[str]:
    """What makes the two cells unlike besides their methods, in words."""
    warnings, bits = [], (first.bits.average, second.bits.average)
    if not equal_bits(*bits, min(first.tolerance, second.tolerance)):
        warnings.append(f"{bits[0]:.3f} and {bits[1]:.3f} bits: not at equal bits")
    machines = {"machine": first.machine}, {"machine": second.machine}
    for what, mine, other in (("settings", first.settings, second.settings), ("machines", *machines),
                              ("versions", first.versions, second.versions)):
        names = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
        if names:
            differences = (f"{name} {mine.get(name)} and {other.get(name)}" for name in names)
            warnings.append(f"other {what}: {', '.join(differences)}")
    return warnings


def as_document(story: Story) -> dict:
    """The story as plain data, every number unrounded and every question."""
    return {"schema": SCHEMA, "first": story.first, "second": story.second, **story.compared, "flipped": story.flipped,
            "warnings": story.warnings}
