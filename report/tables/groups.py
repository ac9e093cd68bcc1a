"""Which cells stand in one table, what sets a table apart from others, which version of a cell counts, what is missing.

Cells may be compared that share weights, dtype, machine and settings (``Result.conditions``).  Newer and older are told
by the time in the results (``Result.made``), never by that of files; where it is equal or unknown, by digests.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from core.method_names import without_settings
from report.records import Result

DATASET_ORDER = ("trivia_qa", "mmlu_pro", "code_mmlu")
SAID = ("data_source", "quantizer")  # settings that every heading says
UNSTATED = "not stated"


def dataset_order(name: str) -> tuple[int, str]:
    """The brief's data sets first, others by name."""
    return (DATASET_ORDER.index(name) if name in DATASET_ORDER else len(DATASET_ORDER), name)


def comparable(results: Iterable[Result]) -> list[list[Result]]:
    """Cells in groups of one model, machine, settings and bits of activations, the newest group first.

    Where activations are quantized, full precision with its own stands at the end of the group: all rows are compared
    with it, and a group of nothing else is none.  What a heading says of activations, names there do not.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.conditions, []).append(result)
    whole = [result for group in groups.values() for result in group if result.name == "fp16"]
    together, served = [], set()
    for group in groups.values():
        if not group[0].activations.plain:
            full = [r for r in whole if r.conditions_but_activations == group[0].conditions_but_activations]
            served |= {r.file for r in full}
            group = [_named(r) for r in group] + full
        together.append(group)
    together = [group for group in together if not all(r.name == "fp16" and r.file in served for r in group)]
    return sorted(together, key=lambda group: max(result.age for result in group), reverse=True)


def _named(result: Result) -> Result:
    """A row under its name without activations; full precision keeps it, beside the model as it is."""
    name = without_settings(result.name)
    return result if name == "fp16" else replace(result, method=replace(result.method, name=name))


def apart(groups: Sequence[Sequence[Result]]) -> list[dict]:
    """Of each group, the settings, seeds and machine in which it differs from another, without what headings say."""
    known = [_facts(group) for group in groups]
    names = [name for name in sorted({name for facts in known for name in facts})
             if any(facts.get(name, UNSTATED) != known[0].get(name, UNSTATED) for facts in known)]
    return [{name: facts.get(name, UNSTATED) for name in names} for facts in known]


def _facts(group: Sequence[Result]) -> dict:
    """Seeds are those of ``random``, which each seed draws anew; rows that no seed changes stand under 0 always."""
    seeds = {r.seed for r in group if r.name == "random"} or {r.seed for r in group if r.name != "fp16"}
    settings = {name: value for name, value in group[0].settings.items() if name not in SAID}
    told = {} if group[0].activations.plain else {"activations": group[0].activations.words}
    return settings | {"machine": group[0].machine, "seeds": sorted(seeds)} | told


def headings(groups: Sequence[Sequence[Result]]) -> list[str]:
    """Of each group, in words: model, run, data, quantizer, and what sets it apart; no two are the same."""
    models = {group[0].model.revision: max(group, key=lambda r: r.age).model for group in groups}
    words = []
    for group, facts in zip(groups, apart(groups), strict=True):
        model, settings = models[group[0].model.revision], group[0].settings
        others = [other for other in models.values() if other.revision != model.revision]
        name = next(name for name in (model.name, model.given, f"{model.name} {model.revision[:12]}")
                    if name and name not in {n for other in others for n in (other.name, other.given)})
        runs = " and ".join(sorted({r.run_type for r in group}))
        said = [f"{name} ({model.dtype})", f"{runs} run", f"{settings.get('data_source', 'unknown')} data",
                settings.get("quantizer")]
        words.append(", ".join([*filter(None, said), *(f"{name} {_word(value)}" for name, value in facts.items())]))
    return words


def _word(value) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "auto" if value is None else str(value)


def newest_documents(cells: Sequence[Result]) -> list[Result]:
    """Of one data set's cells, those that were asked the newest documents.

    Of versions of equal or unknown age, those that most cells were asked.
    """
    versions: dict[str, list[Result]] = {}
    for cell in cells:
        versions.setdefault(cell.asked, []).append(cell)
    return max(versions.values(), default=[], key=lambda one: (max(r.made for r in one), len(one), one[0].asked))


def newest_twins(cells: Sequence[Result]) -> list[Result]:
    """One cell for each method and seed, the newest."""
    newest: dict[tuple[str, int], Result] = {}
    for cell in sorted(cells, key=lambda r: r.age):
        newest[cell.name, cell.seed] = cell
    return [cell for cell in cells if cell is newest[cell.name, cell.seed]]


def missing(members: Sequence[Result]) -> list[dict]:
    """The cells of a table without a result: every (method, seed) that it knows on every data set that it knows.

    Failed ones say why; a failed record counts only where no good one stands beside it.
    """
    there = {(r.name, r.seed, r.dataset): r for r in sorted(members, key=lambda r: (r.ok, r.age))}
    absent = []
    for method, seed in dict.fromkeys((r.name, r.seed) for r in members):
        for dataset in sorted({r.dataset for r in members}, key=dataset_order):
            cell = there.get((method, seed, dataset))
            if cell is None or not cell.ok:
                error = cell.error if cell else None
                absent.append({"method": method, "seed": seed, "dataset": dataset, "error": error})
    return absent
