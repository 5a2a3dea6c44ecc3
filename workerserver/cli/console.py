"""The output of commands: rich on a terminal, plain text everywhere else.

All text goes through ``escape_line`` here, so no text from a worker controls the terminal.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from workerserver.cli.text import wrap, write_table
from workerserver.job.printable import escape_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["STYLES", "Output", "counting", "lasting", "rich_table"]

#: Of a verdict, by exit status.
STYLES = ("bold green", "bold red", "bold yellow", "bold")
#: A terminal that says it has fewer columns can't be meant.
MIN_WIDTH = 20


class Output:
    """Writes lines and tables to *out*, in colour if *out* is a terminal and rich is installed.

    On a terminal, long lines are broken between words. ``size`` is its columns and lines, None if
    *out* is no terminal. ``lines`` counts what was written by :meth:`line`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.lines = 0
        self.console = rich_console(out) if out.isatty() else None

    @property
    def size(self) -> tuple[int, int] | None:
        if self.console is not None:
            return max(self.console.width, MIN_WIDTH), self.console.height
        if not self._out.isatty():
            return None
        columns, lines = shutil.get_terminal_size()
        return max(columns, MIN_WIDTH), lines

    def fitted(self, text: str, hang: int = 0) -> list[str]:
        """The lines that *text* takes."""
        size = self.size
        fitting = self._fitting(text)
        return [fitting] if size is None else wrap(fitting, size[0], hang)

    def line(self, text: str = "", style: str = "", hang: int = 0) -> None:
        """Write one line. *style* is a style of rich ("bold red"). *hang*: by how much the rest of
        a long line is indented."""
        for line in self.fitted(text, hang):
            self.lines += 1
            if self.console is None:
                self._out.write(f"{line}\n")
                continue
            from rich.text import Text

            self.console.print(Text(line, style), soft_wrap=True)

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
def counting(title: str, total: int, then: str = "") -> Iterator[Callable[[], None]]:
    """Show a progress bar on stderr while the block runs, if stderr is a terminal. Gives the
    function to call for each finished item. *then*: what is said when all are finished, until the
    first one of the next *total*."""
    err = sys.stderr
    console = rich_console(err) if err is not None and err.isatty() else None
    if console is None:
        yield _nothing
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        count = 0

        def done() -> None:
            nonlocal count
            count = count % total + 1 if total else 0
            progress.update(
                task, completed=count, description=then if then and count == total else title
            )

        yield done


@contextlib.contextmanager
def lasting(title: str, seconds: float) -> Iterator[Callable[[float, str], None]]:
    """Show a progress bar of *seconds* on stderr while the block runs, if stderr is a terminal.
    Gives the function to call with the seconds that have passed, and what is said meanwhile."""
    err = sys.stderr
    console = rich_console(err) if err is not None and err.isatty() else None
    if console is None:
        yield lambda passed, said: None
        return
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task(title, total=seconds)

        def update(passed: float, said: str) -> None:
            progress.update(task, completed=min(passed, seconds), description=f"{title}: {said}")

        yield update


def _nothing() -> None:
    """Called for each finished item if there is no progress bar."""
