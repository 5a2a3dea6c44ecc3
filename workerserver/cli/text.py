"""Text for people, and the values of options. Text from a worker must not control the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TextIO

__all__ = [
    "backend_name",
    "count",
    "escape",
    "escape_line",
    "positive_seconds",
    "seconds",
    "write_table",
    "write_text",
]


def escape(text: str) -> str:
    """*text* with unprintable characters spelled out (``\\x1b``). Newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else _spell(c) for c in text)


def escape_line(text: str) -> str:
    """As :func:`escape`, with newlines and tabs spelled out too. So the result is one line."""
    return "".join(c if c.isprintable() else _spell(c) for c in text)


def _spell(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


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
