"""The screen of ``top``: a head, a table that fits the terminal, and keys.

The ranks that a verdict names are on the screen whatever the order, the filter and the place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workerserver.cli.rows import COLUMNS, ORDERS, Row, Shown, cells, folded, matches
from workerserver.cli.text import cells as width_of
from workerserver.cli.text import cut, wrap
from workerserver.job.printable import escape_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Picture", "View", "draw", "keys", "plain", "screen"]

#: Styles of a line, by its state.
STYLES: Mapping[str, str] = {
    "ok": "",
    "torch": "dim",
    "starting": "cyan",
    "ended": "dim",
    "no step": "yellow",
    "stalled": "yellow",
}
HELP = "q quit   s sort: {order}   / filter{filter}   f {fold}   up/down scroll"
#: Of a sentence, lines. Of a list of ranks, columns. What a target needs to be of use.
MAX_SENTENCE = 3
MAX_RANKS = 24
MIN_TARGET = 12
#: At least so many lines of the table are for rows that nobody has accused.
MIN_OTHERS = 3

Line = tuple[str, str]
"""Text and style."""


@dataclass
class View:
    """What the user wants to see. *typing*: the filter is being typed."""

    order: str = "trouble"
    words: str = ""
    typing: bool = False
    fold: bool | None = None
    """None: only if the rows don't fit."""
    offset: int = 0

    def key(self, key: str) -> bool:
        """Take one key; False if it ends the command."""
        if self.typing:
            self._type(key)
        elif key in ("q", "Q"):
            return False
        elif key == "s":
            names = list(ORDERS)
            self.order = names[(names.index(self.order) + 1) % len(names)]
        elif key == "f":
            self.fold = {None: True, True: False, False: None}[self.fold]
        elif key == "/":
            self.typing = True
        elif key == "escape":
            self.words, self.offset = "", 0
        else:
            self.offset = max(self.offset + _STEPS.get(key, 0), 0)
        return True

    def _type(self, key: str) -> None:
        self.offset = 0
        if key in ("\n", "\r"):
            self.typing = False
        elif key == "escape":
            self.typing, self.words = False, ""
        elif key in ("\x7f", "\b"):
            self.words = self.words[:-1]
        elif len(key) == 1 and key.isprintable():
            self.words += key


_STEPS = {"k": -1, "up": -1, "j": 1, "down": 1, "page up": -10, "page down": 10, " ": 10}
_SEQUENCES = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1bOA": "up", "\x1bOB": "down",
}  # fmt: skip


@dataclass
class Picture:
    """What there is to show: *head* is one line; *sentence* the verdict's, with its style."""

    head: str
    rows: Sequence[Row]
    sentence: str = ""
    style: str = ""
    suspects: Collection[int] = field(default_factory=frozenset)


def draw(picture: Picture, view: View, width: int, height: int, *, help: bool = True) -> list[Line]:
    """At most *height* lines of at most *width* columns."""
    lines: list[Line] = [(cut(escape_line(picture.head), width), "bold")]
    if picture.sentence:
        sentence = wrap(escape_line(picture.sentence), width, 2)
        most = min(max(height // 5, 1), MAX_SENTENCE)
        if len(sentence) > most:
            rest = f"{sentence[most - 1]} ..."
            sentence = [*sentence[: most - 1], cut(rest, width)]
        lines += [(line, picture.style) for line in sentence]
    room = height - len(lines) - 1 - int(help)
    lines += _table(picture, view, width, max(room, 1))
    if help:
        lines += [("", "")] * (height - len(lines) - 1)
        lines = [*lines[: height - 1], (cut(_help(view), width), "dim")]
    return lines[:height]


def _help(view: View) -> str:
    if view.typing:
        return f"filter: {escape_line(view.words)}_   (Enter: keep, Esc: drop)"
    fold = {None: "fold: as needed", True: "fold: on", False: "fold: off"}[view.fold]
    words = f": {escape_line(view.words)}" if view.words else ""
    return HELP.format(order=view.order, filter=words, fold=fold)


def _table(picture: Picture, view: View, width: int, room: int) -> list[Line]:
    """The header, *room* lines, and as the last of them what is not shown."""
    ordered = sorted(picture.rows, key=ORDERS[view.order])
    accused = [row for row in ordered if row["rank"] in picture.suspects]
    others = [row for row in ordered if row["rank"] not in picture.suspects]
    wanted = [row for row in others if matches(row, view.words)]
    fold = view.fold
    if fold is None:
        fold = len(accused) + len(wanted) > room
    first = folded(accused) if fold else [Shown([row]) for row in accused]
    rest = folded(wanted) if fold else [Shown([row]) for row in wanted]
    kept = first[: max(room - MIN_OTHERS, 1)]
    left = room - len(kept)
    if len(kept) < len(first) or len(rest) > left or len(wanted) < len(others):
        left -= 1  # for the line that says so
    view.offset = min(view.offset, max(len(rest) - left, 0))
    shown = [*kept, *rest[view.offset : view.offset + max(left, 0)]]
    lines = _columns(shown, width, len(kept))
    count = len(picture.rows) - sum(len(each.rows) for each in shown)
    if count:
        hidden = len(others) - len(wanted)
        why = f", {hidden} of them by the filter" if hidden else ""
        lines.append(
            (cut(f"... {count} of {len(picture.rows)} ranks not shown{why}", width), "dim")
        )
    return lines


def _columns(shown: Sequence[Shown], width: int, accused: int) -> list[Line]:
    """The table's lines. Columns that have no room, or nothing to tell, are left out."""
    table = [[escape_line(cell) for cell in cells(each)] for each in shown]
    for line in table:
        line[0] = cut(line[0], MAX_RANKS)
    titles = [title for title, _ in COLUMNS]
    columns = list(zip(titles, *table, strict=True))
    widths = [max(map(width_of, column)) for column in columns]
    target = len(titles) - 1
    use = [number for number in range(target) if any(cell != "-" for cell in columns[number][1:])]
    use = sorted({0, 1, *use})
    least = sum(widths[number] + 2 for number in use)
    while least - 2 > width and len(use) > 2:
        worst = max(use, key=lambda number: COLUMNS[number][1])
        use.remove(worst)
        least -= widths[worst] + 2
    room = width - least
    lines: list[Line] = []
    for index, line in enumerate([titles, *table]):
        text = "  ".join(_padded(line[number], widths[number], number) for number in use)
        if room >= MIN_TARGET:
            text += "  " + _end(line[target], room)
        style = "bold" if index == 0 else ""
        if index:
            style = STYLES.get(shown[index - 1].rows[0]["state"], "red")
            style = "bold red" if index <= accused else style
        lines.append((cut(text.rstrip(), width), style))
    return lines


def _padded(text: str, width: int, number: int) -> str:
    space = " " * (width - width_of(text))
    return text + space if number < 2 else space + text


def _end(text: str, width: int) -> str:
    """The end of a long target tells more than its beginning."""
    while width_of(text) > width:
        text = f"~{text[2 if text[0] == '~' else 1 :]}"
    return text


# ---- the terminal


@contextlib.contextmanager
def screen(console: Console) -> Iterator[Callable[[Sequence[Line]], None]]:
    """The other screen of the terminal while the block runs; gives the function that fills it."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:

        def show(lines: Sequence[Line]) -> None:
            texts = [Text(text, style, no_wrap=True, overflow="crop") for text, style in lines]
            live.update(Group(*texts), refresh=True)

        yield show


@contextlib.contextmanager
def keys(take: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, *take* gets each key at once. Without a terminal at stdin there are
    none."""
    fd = _own_terminal()
    if fd is None:
        yield
        return
    import termios
    import tty

    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(fd)

    def ready() -> None:
        try:
            data = os.read(fd, 256)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the terminal has gone
            loop.remove_reader(fd)
        for key in _keys(data.decode("utf-8", "ignore")):
            take(key)

    try:
        tty.setcbreak(fd, termios.TCSANOW)
        loop.add_reader(fd, ready)
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSANOW, before)
        os.close(fd)


def _own_terminal() -> int | None:
    """The terminal at stdin, opened once more; None if there is none.

    The loop makes the descriptor non-blocking. With stdin's own one, that would hold for stdout,
    and for the shell afterwards.
    """
    try:
        return os.open(os.ttyname(sys.stdin.fileno()), os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except (AttributeError, OSError, ValueError):
        return None


def _keys(text: str) -> Iterator[str]:
    while text:
        name = next((each for each in _SEQUENCES if text.startswith(each)), None)
        if name is not None:
            yield _SEQUENCES[name]
            text = text[len(name) :]
        else:
            yield "escape" if text[0] == "\x1b" else text[0]
            text = text[1:]


def plain(found: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Each row by itself, for a table on a pipe; the target is the second column."""
    lines = (cells(Shown([row])) for row in found)
    return [(line[0], line[-1], *line[1:-1]) for line in lines]
