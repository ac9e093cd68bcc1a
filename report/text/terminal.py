"""Tables and comparisons printed for a person: colours, and sheets that are wider than the terminal in several."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from report.tables.faithfulness import Faithfulness
from report.tables.pair import Story
from report.tables.tables import TableData
from report.text import faithfulness, pair
from report.text.lines import DETAIL_LEGEND, LEGEND, MARK_TEST, POWER, footnotes
from report.text.render import NOTHING, sheets_of
from report.text.sheets import Sheet

COLOURS = {"best": "bold green", "tied": "green"}
SIGNS = {"best": "*", "tied": "~"}
WARNINGS = ("incomplete", "no result", "rows come from different versions")
NOT_EQUAL = "not at equal bits"


def show(tables: Sequence[TableData], console: Console, details: bool = False) -> None:
    """Print tables for a person."""
    for table in tables:
        for one in sheets_of(table, details):
            show_sheet(one, console)
        show_lines(footnotes(table, "terminal", details), console)


def show_curves(families: Sequence[Faithfulness], console: Console) -> None:
    """Print faithfulness curves, and how to read them; nothing where there are none."""
    for one in faithfulness.sheets(families):
        show_sheet(one, console)
    show_lines(faithfulness.lines(families), console)


def show_story(story: Story, console: Console, every: bool) -> None:
    """Print the comparison of two cells for a person."""
    for one in pair.sheets(story, every):
        show_sheet(one, console)
    show_lines(pair.lines(story, every), console)


def show_lines(lines: Sequence[str], console: Console) -> None:
    """Print what stands below a table; failures and gaps in colour, legends dim."""
    for line in lines:
        legend = line in (LEGEND, DETAIL_LEGEND, POWER) or line.endswith(MARK_TEST)
        warning = line.startswith(WARNINGS) or NOT_EQUAL in line
        style = "dim" if legend else "red" if line.startswith("FAILED") else "yellow" if warning else ""
        console.print(line, markup=False, style=style)
    console.print()


def show_sheet(sheet: Sheet, console: Console) -> None:
    """Print a sheet; one that is wider than the console in several, each with the first name."""
    if not sheet.names:
        console.print(Text(sheet.title, style="bold"))
        console.print(NOTHING)
    for number, names in enumerate(_split(sheet, console.width)):
        console.print(Text(sheet.title + (" (continued)" if number else ""), style="bold"))
        printed = Table()
        for name in names:
            justify = "right" if printed.columns and name != "question" else "left"
            printed.add_column(Text(name.replace(" ", "\n", 1)), justify=justify, overflow="fold",
                               max_width=_width(sheet, name, console.width))
        text = {name: _signed(sheet, name) for name in names}
        for i, signs in enumerate(sheet.signs):
            printed.add_row(*(Text(text[name][i], style=COLOURS.get(signs[name], "")) for name in names))
        console.print(printed)


def _signed(sheet: Sheet, name: str) -> list[str]:
    """The text under a name with its signs; where there are any, all rows have room for one, so digits align."""
    room = " " if any(signs[name] for signs in sheet.signs) else ""
    return [f"{row[name]}{SIGNS.get(signs[name], room)}" for row, signs in zip(sheet.rows, sheet.signs, strict=True)]


def _width(sheet: Sheet, name: str, console: int) -> int:
    """Letters that the text under a name takes without the frame; what needs more than half the console is folded."""
    return min(max(map(cell_len, (*_signed(sheet, name), *name.split(" ", 1)))), max(console // 2, 24))


def _split(sheet: Sheet, width: int) -> list[list[str]]:
    """The names of a sheet in runs of whole groups that fit the width, as few and as even as can be."""
    if not sheet.names:
        return []
    first, taken = sheet.names[0], {name: 3 + _width(sheet, name, width) for name in sheet.names}

    def runs(room: int) -> list[list[str]]:
        lines, left = [[first]], room
        for group in sheet.groups:
            need = sum(taken[name] for name in group)
            if need > left and len(lines[-1]) > 1:
                lines.append([first])
                left = room
            lines[-1] += group
            left -= need
        return lines

    room = width - 1 - taken[first]
    count = len(runs(room))
    while count > 1 and room > 1 and len(runs(room - 1)) == count:
        room -= 1
    return runs(room)
