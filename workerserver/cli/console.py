"""The output of commands: rich on a terminal, plain text everywhere else.

All text goes through ``text.escape_line`` here, so no text from a worker controls the terminal.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from workerserver.cli.text import escape_line, write_table, write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Output", "counting", "rich_table"]


class Output:
    """Writes lines and tables to *out*, in colour if *out* is a terminal and rich is installed."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.console = rich_console(out) if out.isatty() else None

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line. *style* is a style of rich ("bold red")."""
        if self.console is None:
            write_text(self._out, f"{escape_line(text)}\n")
            return
        from rich.text import Text

        self.console.print(Text(self._fitting(text), style), soft_wrap=True)

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        styles: Sequence[str] | None = None,
    ) -> None:
        """Write columns. *styles* has a style for each row."""
        if self.console is None:
            write_table(self._out, header, rows)
        else:
            fitting = [[self._fitting(cell) for cell in row] for row in rows]
            self.console.print(rich_table(header, fitting, styles))

    def _fitting(self, text: str) -> str:
        """*text*, with the characters spelled out that the stream's encoding can't hold."""
        encoding = self._out.encoding or "utf-8"
        return escape_line(text).encode(encoding, "backslashreplace").decode(encoding)


def rich_console(out: TextIO) -> Console | None:
    """A rich console for *out*; None without rich."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=out, highlight=False, markup=False, emoji=False)


def rich_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] | None = None
) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for index, row in enumerate(rows):
        style = styles[index] if styles is not None else ""
        table.add_row(*(Text(escape_line(cell)) for cell in row), style=style)
    return table


@contextlib.contextmanager
def counting(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on stderr while the block runs, if stderr is a terminal. Gives the
    function to call for each finished item."""
    err = sys.stderr
    console = rich_console(err) if err is not None and err.isatty() else None
    if console is None:
        yield _nothing
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def _nothing() -> None:
    """Called for each finished item if there is no progress bar."""
