"""Groups of a data set's categories, such as MMLU's STEM, out of a result's categories."""

from collections.abc import Sequence

from core.sample import Interval, Stratum
from evaluation.statistics.formulas import wilson_interval
from report.schema import Result


def groups_of(result: Result) -> dict[str, Stratum]:
    """The groups of categories as strata; none where there are not two."""
    named = result.task.groups if result.task else {}
    members = {group: [result.strata[name] for name in named if named[name] == group and name in result.strata]
               for group in sorted(set(named.values()))}
    return {group: pooled(strata) for group, strata in members.items() if strata} if len(members) > 1 else {}


def pooled(strata: Sequence[Stratum]) -> Stratum:
    """The documents of several strata as one."""
    judged = [of for of in strata if of.accuracy]
    right, asked = round(sum(of.n * of.accuracy.value for of in judged)), sum(of.n for of in judged)
    accuracy = Interval(right / asked, *wilson_interval(right, asked)) if asked else None
    return Stratum(sum(of.n for of in strata), accuracy)
