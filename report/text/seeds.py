"""Two rows over seeds as a sheet, and what its numbers are."""

from collections.abc import Sequence

from core.types import Budget
from report.schema import equal_bits
from report.text.numbers import number, p_value, signed, span
from report.text.sheets import Sheet, sheet

WORDS = {"gold_loglik": "gold log-likelihood, nats a token",
         "gold_option": "log-probability of the gold option among the options, nats",
         "kl": "divergence of the options' probabilities from full precision, nats (lower is nearer)"}


def leads_sheet(lines: Sequence[dict], names: Sequence[str]) -> Sheet:
    """A row a data set and seed, and one for a data set's seeds together."""
    metric = lines[0]["metric"]
    lead = "difference" if metric == "kl" else "lead"
    return sheet(f"{names[1]} against {names[0]}: {WORDS.get(metric, metric)}", [
        {"data set": line["dataset"], "seed": f"all {line['seeds']}" if line["seed"] is None else str(line["seed"]),
         names[0]: number(line["first"], 3), names[1]: number(line["second"], 3), lead: span(line, signed),
         "p": p_value(line["p"]), "p Holm": p_value(line.get("p_holm"))} for line in lines])


def notes(lines: Sequence[dict], names: Sequence[str]) -> list[str]:
    """How the numbers came about."""
    apart = {f"{names[0]} {line['first_bits']:.3f} stored bits a weight, {names[1]} {line['second_bits']:.3f}": None
             for line in lines if not equal_bits(line["first_bits"], line["second_bits"], Budget.tolerance)}
    documents = dict.fromkeys(f"{line['n']} of {line['dataset']}" for line in lines)
    what = "Difference" if lines[0]["metric"] == "kl" else "Lead"
    return [*(f"Not at equal bits: {bits}" for bits in apart),
            f"Documents: {', '.join(documents)}. {what}: mean of the paired differences; of one seed with a bootstrap "
            "interval over documents, of all with one that holds seeds (t) and documents, 95 %",
            "p: paired sign-flip test over documents, of all seeds on each document's mean; Holm: corrected over the "
            "data sets. It holds for these seeds; the interval says whether it would for others"]
