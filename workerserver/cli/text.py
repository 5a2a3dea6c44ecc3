"""Text for people, and the values of options. What a worker sent is spelled out before it is
printed (``workerserver.job.printable``)."""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Sequence
from typing import TextIO

from workerserver.job.printable import escape_line

__all__ = [
    "backend_name",
    "cells",
    "count",
    "cut",
    "positive_seconds",
    "seconds",
    "wrap",
    "write_table",
    "write_text",
]


def cells(text: str) -> int:
    """How many columns of a terminal *text* takes, which has no control characters."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """*text* in *width* columns at most: what is left out is a "~" at the end."""
    if cells(text) <= width:
        return text
    return _split(text, max(width - 1, 0))[0] + "~"[:width]


def wrap(text: str, width: int, hang: int = 0) -> list[str]:
    """*text* in lines of *width* columns at most, broken between words where that is possible. All
    lines but the first one begin with *hang* spaces. *width*: 4 or more."""
    if cells(text) <= width:
        return [text]
    hang = min(hang, width // 2)
    begun = line = " " * min(len(text) - len(text.lstrip(" ")), width // 2)
    lines: list[str] = []
    for word in text.split():
        if line != begun and cells(line) + 1 + cells(word) > width:
            lines.append(line)
            begun = line = " " * hang
        elif line != begun:
            line += " "
        while cells(line) + cells(word) > width:
            part, word = _split(word, width - cells(line))
            lines.append(line + part)
            begun = line = " " * hang
        line += word
    return [*lines, line]


def _split(text: str, width: int) -> tuple[str, str]:
    """The beginning of *text* that takes *width* columns at most, and the rest."""
    taken = 0
    for index, character in enumerate(text):
        taken += _columns(character)
        if taken > width:
            return text[:index], text[index:]
    return text, ""


def write_text(out: TextIO, text: str) -> None:
    """Write *text*. Characters that the stream's encoding can't hold are spelled out."""
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "backslashreplace").decode(encoding))


def backend_name(text: str) -> str:
    """The name of a torch backend, for argparse."""
    if not (0 < len(text) <= 64 and text.isascii() and text.replace("-", "_").isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a backend")
    return text


def count(text: str) -> int:
    """A positive number, for argparse."""
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def positive_seconds(text: str) -> float:
    """An option's value in seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def seconds(value: float | None) -> str:
    """A duration in one or two units: ``0.4s``, ``12s``, ``5m12s``, ``3h02m``, ``2d05h``."""
    if value is None:
        return "-"
    if value < 10:
        return f"{value:.1f}s"
    whole = int(value)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def write_table(out: TextIO, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write columns as wide as their widest cell, two spaces apart. Each cell becomes one line."""
    lines = [header, *([escape_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        write_text(out, "  ".join(cells).rstrip() + "\n")
