"""What sets one experiment apart from another: settings as flags, model, machine, versions and date of its results."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from report.figures.frames import Part, whole
from report.records import Result


@dataclass(frozen=True)
class SettingsBox:
    """One part's settings; the last item of each says whether another part of the page has another value."""

    flags: tuple[tuple[str, bool], ...]  # text
    rows: tuple[tuple[str, str, bool], ...]  # name, text


def settings_box(part: Part) -> SettingsBox:
    """The settings that all results of a part share, and what is known of how they were made."""
    head, results = part.members[0], part.members
    flags = [(_flag(name, value), name in part.differing) for name, value in sorted(head.settings.items())]
    failed = sum(not r.ok for r in results)
    rows = {
        "model": f"{head.model.name}, {head.model.dtype}, revision {head.model.revision}",
        "asked for as": _listed(r.model.given for r in results),
        "run type": _listed(r.run_type for r in results),
        "data sets": _listed(r.dataset for r in results),
        "methods": _listed(r.name for r in results),
        "bits a weight": _listed(f"{r.avg_bits:g}" for r in results if r.avg_bits is not None),
        "seeds": _listed(str(r.seed) for r in sorted(results, key=lambda r: r.seed)),
        "machine": head.machine,
        "samples made": _dates([r.made for r in results if r.ok]),
        "versions": _versions([r for r in results if r.ok] or results),
        "results": f"{len(results) - failed} finished, {failed} failed"}
    return SettingsBox(tuple((text, differs) for text, differs in flags if text),
                       tuple((name, whole(text), name in part.differing) for name, text in rows.items() if text))


def _flag(name: str, value) -> str:
    """A setting as it would be given on the command line; empty where it has no value."""
    if value is None or value is False:
        return ""
    values = value if isinstance(value, list | tuple) else [] if value is True else [value]
    return " ".join([f"--{whole(name)}", *(shlex.quote(whole(v)) for v in values)])


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(v for v in values if v))


def _dates(dates: Sequence[str]) -> str:
    """When the first and the last samples were made."""
    known = sorted(date for date in dates if date)
    if not known:
        return "not recorded (results of an older version)" if dates else ""
    text = known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
    return text + (f" ({len(dates) - len(known)} results without a date)" if len(known) < len(dates) else "")


def _versions(results: Sequence[Result]) -> str:
    """Libraries, Python and this project; several versions of one are all named, with how many results each made."""
    texts = []
    for name in sorted({name for r in results for name in r.versions}):
        counts: dict[str, int] = {}
        for version in (str(r.versions.get(name, "unknown")) for r in results):
            counts[version] = counts.get(version, 0) + 1
        several = len(counts) > 1
        texts.append(f"{name} " + " or ".join(f"{version} ({count} results)" if several else version
                                              for version, count in sorted(counts.items())))
    return ", ".join(texts)
