"""Two cells side by side: the paired story, down to the questions that flipped.

A cell is named as METHOD, METHOD@SEED, the beginning of its digest, or its file's stem.  Two cells can be compared if they
hold the same model and were asked the same documents in the same way; where a name fits several cells, those of equal seed
and settings are preferred, and what is still ambiguous is an error that lists the candidates.
"""

from dataclasses import asdict, dataclass
from itertools import product

from core.errors import UserError
from core.sample import Sample
from evaluation.statistics.paired import Panel, strata
from report.records import Result, load_samples
from report.tables.comparison import equal_bits

SCHEMA = 1  # of the JSON form

LEAST_PREFIX = 4  # hex digits of a digest that name a cell

LISTED = 12


@dataclass(frozen=True)
class Story:
    """All that two cells' documents say, as plain data."""

    first: dict
    second: dict
    found: dict  # Panel.compare, with each cell's own values, categories and power
    flipped: list[dict]
    warnings: list[str]


def fits(result: Result, name: str) -> bool:
    """Whether a name means this cell."""
    method, at, seed = name.rpartition("@")
    own = result.name
    return (name == own or (bool(at) and method == own and seed == str(result.seed)) or result.file.stem == name
            or (len(name) >= LEAST_PREFIX and result.cell.startswith(name)))


def label(result: Result) -> str:
    """A cell in words, by which it can be named."""
    bits = "own bits" if result.avg_bits is None else f"{result.avg_bits:g} bits"
    return f"{result.name}@{result.seed} on {result.dataset}, {bits} ({result.cell[:8]})"


def find_pair(results: list[Result], names: list[str]) -> tuple[Result, Result]:
    """The two cells that the names mean."""
    sides = [[r for r in results if fits(r, name)] for name in names]
    for name, side in zip(names, sides, strict=True):
        if not side:
            raise UserError(f"--compare {name!r} fits no cell; give METHOD, METHOD@SEED, the beginning of a digest or a file's name, of these: "
                            f"{_list(results)}")
        if not any(r.ok for r in side):
            raise UserError(f"--compare {name!r} fits only cells that failed ({side[0].error}); run them again")
    fine = [[r for r in side if r.ok] for side in sides]
    pairs = [(a, b) for a, b in product(*fine) if _comparable(a, b)]
    if not pairs:
        raise UserError(f"--compare {names[0]!r} {names[1]!r} fits no two cells of one model that were asked the same documents: "
                        f"{_list(fine[0] + fine[1])}; choose cells of one data set")
    best = max(_likeness(a, b) for a, b in pairs)
    pairs = list({(a.cell, b.cell): (a, b) for a, b in pairs if _likeness(a, b) == best}.values())
    if len(pairs) > 1:
        raise UserError(f"--compare {names[0]!r} {names[1]!r} fits {len(pairs)} pairs of cells ({_list([r for pair in pairs for r in pair])}); "
                        "narrow it with --dataset, --avg_bits, METHOD@SEED or a digest")
    return pairs[0]


def _comparable(a: Result, b: Result) -> bool:
    same = (a.model.revision, a.model.dtype, a.dataset, a.asked) == (b.model.revision, b.model.dtype, b.dataset, b.asked)
    return same and a.file != b.file


def _likeness(a: Result, b: Result) -> tuple[bool, bool, bool]:
    """Cells of one table go before others: same settings, same budget where both have one, same seed."""
    seedless = "fp16" in (a.name, b.name)
    return (a.settings == b.settings, None in (a.avg_bits, b.avg_bits) or a.avg_bits == b.avg_bits, seedless or a.seed == b.seed)


def _list(results: list[Result]) -> str:
    names = list(dict.fromkeys(label(r) for r in results))
    return "; ".join(names[:LISTED]) + (f"; and {len(names) - LISTED} more" if len(names) > LISTED else "")


def story(first: Result, second: Result) -> Story:
    """Compare two cells; differences are second minus first."""
    panel = Panel([load_samples(first), load_samples(second)], reference=0)
    left, right = panel.runs
    found = panel.compare(0, 1) | {"metrics": _own_metrics(first, second), "strata": strata(left, right), "power": panel.detectable([(0, 1)])}
    right_left, right_right = panel.values["accuracy"].T
    found["both"] = {"right": int(((right_left > 0) & (right_right > 0)).sum()), "wrong": int(((right_left <= 0) & (right_right <= 0)).sum())}
    flipped = [_question(a, b) for a, b in zip(left, right, strict=True) if a.correct != b.correct]
    return Story(_who(first), _who(second), found, flipped, _warnings(first, second))


def _own_metrics(first: Result, second: Result) -> dict:
    """Both cells' metrics with their intervals, as their results state them."""
    return {name: [r.metrics[name] and asdict(r.metrics[name]) for r in (first, second)] for name in ("accuracy", "gold_loglik", "f1", "parse_fail")}


def _who(result: Result) -> dict:
    return {"method": result.name, "seed": result.seed, "bits": result.bits.average, "model_bits": result.bits.whole_model,
            "avg_bits": result.avg_bits, "dataset": result.dataset, "model": result.model.name, "cell": result.cell, "file": result.file.name}


def _question(a: Sample, b: Sample) -> dict:
    return {"doc_id": a.doc_id, "category": a.stratum, "flip": "lost" if a.correct else "gained", "gold": a.gold, "first": a.answer,
            "second": b.answer, "first_loglik": a.gold_loglik, "second_loglik": b.gold_loglik}


def _warnings(first: Result, second: Result) -> list[str]:
    """What makes the two cells unlike besides their methods, in words."""
    out, bits = [], (first.bits.average, second.bits.average)
    if not equal_bits(*bits, min(first.tolerance, second.tolerance)):
        out.append(f"{bits[0]:.3f} and {bits[1]:.3f} bits: not at equal bits")
    other = sorted(k for k in first.settings.keys() | second.settings.keys() if first.settings.get(k) != second.settings.get(k))
    if other:
        out.append("other settings: " + ", ".join(f"{k} {first.settings.get(k)} and {second.settings.get(k)}" for k in other))
    if first.machine != second.machine:
        out.append(f"other machines: {first.machine} and {second.machine}")
    return out


def as_document(of: Story) -> dict:
    """The story as plain data, every number unrounded and every question."""
    return {"schema": SCHEMA, "first": of.first, "second": of.second, **of.found, "flipped": of.flipped, "warnings": of.warnings}
