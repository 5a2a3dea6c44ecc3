"""Tables for a terminal, or in Markdown for docs/."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from benchmarks.report.model import Cell, Report, Table, Target

__all__ = ["Printer", "cell", "last_line", "number", "summary"]

#: Columns of a file or a pipe, which have no width of their own.
WIDTH = 140
NOTHING = "\N{EN DASH}"
#: A cell of text that belongs with the numbers: "12.0 µs", "1.1 (1.0 to 1.3)", "-3", "< 0.1".
NUMERIC = re.compile(r"[<>≤≥±+-]?\s?\d")


def number(value: float) -> str:
    """Three significant digits, whole numbers in full, no exponent: ``12,345``, ``0.58``."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    return f"{value:.{min(2 - math.floor(math.log10(abs(value))), 9)}f}"


def cell(value: Cell) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else number(value)


def to_the_right(values: Iterable[Cell]) -> bool:
    """Whether the values of a column are numbers."""
    cells = [value for value in values if value is not None and value != NOTHING]
    return bool(cells) and all(
        not isinstance(value, str) or NUMERIC.match(value) is not None for value in cells
    )


def last_line(reason: str) -> str:
    """The last line of a traceback, which names the error. The JSON has the whole traceback."""
    return reason.strip().rpartition("\n")[2]


class Printer:
    """Writes to *file*: boxes for a terminal, or Markdown that can be pasted."""

    def __init__(self, file: TextIO, *, markdown: bool = False) -> None:
        self.file = file
        self.markdown = markdown
        width = None if file.isatty() else WIDTH
        self.console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)

    def report(self, report: Report) -> None:
        self.heading(f"{report.name}: {report.question}")
        for table in report.tables:
            self.table(table)
        for subject, reason in report.missing.items():
            self.line(f"missing: {subject}: {last_line(reason)}")
        self.line(f"({report.seconds:.0f} s)")

    def heading(self, text: str) -> None:
        if self.markdown:
            self.line(f"\n## {text}\n")
        else:
            self.console.print()
            self.console.print(Text(text, style="bold"))

    def line(self, text: str) -> None:
        if self.markdown:
            print(text, file=self.file)
        else:
            self.console.print(Text(text))

    def table(self, table: Table) -> None:
        if self.markdown:
            print(markdown(table), file=self.file)
            return
        grid = Grid(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD)
        for index, column in enumerate(table.columns):
            right = to_the_right(row[index] for row in table.rows)
            grid.add_column(Text(column), justify="right" if right else "left")
        for row in table.rows:
            grid.add_row(*(Text(cell(value)) for value in row))
        self.console.print(grid)
        for note in table.notes:
            self.line(f"  {note}")


def markdown(table: Table) -> str:
    """*table* in Markdown, with paragraphs for the title above and the notes below."""
    rights = [to_the_right(row[index] for row in table.rows) for index in range(len(table.columns))]
    lines = [
        f"**{table.title}**",
        "",
        row_of(table.columns),
        f"|{'|'.join('---:' if right else '---' for right in rights)}|",
        *(row_of([cell(value) for value in row]) for row in table.rows),
        "",
        *(line for note in table.notes for line in (note, "")),
    ]
    return "\n".join(lines)


def row_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"


def summary(reports: Sequence[Report]) -> Table | None:
    """A row for each target; None without targets."""
    rows = [
        (report.name, target.what, figure(target), limit(target), verdict(target), target.note)
        for report in reports
        for target in report.targets
    ]
    if not rows:
        return None
    met = sum(row[4] == "met" for row in rows)
    return Table(
        f"Targets: {met} of {len(rows)} met",
        ("suite", "what", "figure", "limit", "", "note"),
        rows,
    )


def figure(target: Target) -> str | None:
    if target.figure is None:
        return None
    text = number(target.figure)
    if target.lowest is not None and target.highest is not None:
        text += f" ({number(target.lowest)} to {number(target.highest)})"
    return f"{text} {target.unit}".rstrip()


def limit(target: Target) -> str:
    return f"{number(target.limit)} {target.unit}".rstrip()


def verdict(target: Target) -> str:
    if target.figure is None:
        return "not measured"
    return "met" if target.met else "MISSED"
