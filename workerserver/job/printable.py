"""Texts from a job's processes, safe to print: names of threads, functions, hosts and jobs are
chosen by strangers.

What can't be seen is spelled out as Python would (``\\x1b``), and so is what turns the direction of
writing (``\\u202e``). So no such text controls a terminal, reorders a line of a ticket, or looks
like another line. A text that is spelled out stays the same when it is spelled out again.

Whoever writes a sentence or a text for people calls this. Data for programs stays as it was sent:
JSON escapes it.
"""

from __future__ import annotations

__all__ = ["escape", "escape_line"]


def escape(text: str) -> str:
    """*text* with unprintable characters spelled out (``\\x1b``). Newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else _spell(c) for c in text)


def escape_line(text: str) -> str:
    """As :func:`escape`, with newlines and tabs spelled out too. So the result is one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _spell(c) for c in text)


def _spell(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
