"""Groups of ranks that do the same, as text."""

from __future__ import annotations

from workerserver.cluster.model import Thread
from workerserver.cluster.read.groups import Group
from workerserver.cluster.read.roles import Role
from workerserver.cluster.show.tree import short_fold, short_frames, where

__all__ = ["render_group", "stack_lines"]


def stack_lines(group: Group) -> list[str]:
    """As JSON has it: the main thread's frames, newest first. Then come the other threads that do
    something, each after a line with its role."""
    lines: list[str] = []
    for thread, role in zip(group.threads, group.roles, strict=True):
        if role != "main":
            lines.append(f"[{role}]")
        lines += [where(frame) for frame in thread.shown]
    return lines


def render_group(group: Group) -> list[str]:
    """The group's line, then its threads, newest frame first. A run of library frames is one line.
    The text is as the workers sent it: escape it before you print it."""
    names = short_fold(group.ranks)
    if group.unranked:
        names = ", ".join(filter(None, (names, f"{len(group.unranked)} of unknown rank")))
    lines = [f"{group.count} x {names}"]
    for its_role, thread in zip(group.roles, group.threads, strict=True):
        lines.append(f"  {_title(its_role, thread)}")
        lines += [f"    {line}" for line in short_frames(thread.shown)]
        if not thread.frames:
            kernel = [f"state {thread.state}" if thread.state else "", thread.wchan or ""]
            lines.append("    " + (" ".join(filter(None, kernel)) or "no Python frame"))
    if group.idle:
        idle = [
            f"{name} {low}" if low == high else f"{name} {low}-{high}"
            for name, (low, high) in group.idle.items()
        ]
        lines.append(f"  idle: {', '.join(idle)}")
    return lines


def _title(its_role: Role, thread: Thread) -> str:
    words: list[str] = [its_role]
    if thread.name and its_role not in ("main", "workerserver"):
        words.append(f"({thread.name})")
    if thread.holds_gil:
        words.append("current")
    if thread.unstable:
        words.append("unstable")
    if thread.truncated:
        words.append("cut off")
    return " ".join(words)
