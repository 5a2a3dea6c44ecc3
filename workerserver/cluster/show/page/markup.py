"""Pieces of HTML. Whatever comes from a worker passes through :func:`text`."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable
from typing import Any

from workerserver.job.printable import escape

__all__ = [
    "clock",
    "count",
    "cut",
    "duration",
    "is_number",
    "lines",
    "number",
    "short",
    "size",
    "text",
]

#: Of one text.
MAX_TEXT = 4000


def text(value: Any, most: int = MAX_TEXT) -> str:
    """*value* as text of an element or of an attribute in double quotes, cut to *most* characters.
    What can't be seen, or turns the direction of writing, is spelled out (``\\u202e``)."""
    return html.escape(escape(cut(str(value), most)))


def cut(value: str, most: int) -> str:
    return value if len(value) <= most else f"{value[: most - 3]}..."


def lines(values: Iterable[Any]) -> str:
    """A list of them; "" if there are none."""
    items = "".join(f"<li>{text(each)}</li>" for each in values)
    return f"<ul>{items}</ul>" if items else ""


def count(many: int, one: str, more: str | None = None) -> str:
    """``1 rank``, ``4,096 ranks``."""
    return f"{many:,} {one if many == 1 else more or one + 's'}"


def short(frame: str) -> str:
    """``all_reduce distributed_c10d.py:3252`` of ``/.../distributed_c10d.py:3252 all_reduce``."""
    place, _, function = frame.rpartition(" ")
    return f"{function} {place.rpartition('/')[2]}"


def number(value: float) -> str:
    """A coordinate, with a tenth at most."""
    return f"{value:.1f}".removesuffix(".0")


def clock(seconds: Any) -> str:
    """``2026-11-29 03:12:07 +0100``, in this machine's zone, as a verdict tells times; "" if
    *seconds* since the epoch are not known."""
    if not is_number(seconds) or not 0 < seconds < 1e11:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))


def duration(seconds: Any) -> str:
    if not is_number(seconds):
        return "-"
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(amount: Any) -> str:
    if not is_number(amount):
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}".replace(".0 ", " ")
        amount /= 1024
    return f"{amount:.1f} TiB".replace(".0 ", " ")


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e18
