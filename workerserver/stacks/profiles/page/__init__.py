"""One HTML page with a job's flame graph. It loads nothing, and runs nothing but its own script.

The page's policy allows its own script and style by their hashes, and no request at all. The data
is JSON in a block that browsers don't run; ``<`` is escaped in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import json
from typing import Any

from workerserver.stacks.profiles.job import IDLE, Job
from workerserver.stacks.profiles.tree import Call, grow

__all__ = ["MAX_CALLS", "page"]

#: Calls in the page; of more, the shortest are left out.
MAX_CALLS = 20_000


def page(job: Job, rank: int | None) -> bytes:
    """The page. With *rank*: that rank against the median of the others."""
    root = grow(job, rank)
    calls = sorted((_weight(call) for _, call in root.walk()), reverse=True)
    least = calls[MAX_CALLS - 1] if len(calls) > MAX_CALLS else 0.0
    nodes, left_out = _nodes(root, least)
    count = len(job.members)
    title = f"{count} rank{'s' * (count != 1)}, {job.seconds:.3g} s, {job.mode} time"
    if rank is not None:
        title = f"rank {rank} against the median of {count - 1} others, {job.seconds:.3g} s"
    told = {
        "title": title,
        "members": count,
        "compared": None if rank is None else f"rank {rank}",
        "cpuOnly": job.mode == "cpu",
        "leftOut": left_out,
        "idle": next((n for n, each in enumerate(nodes) if each[:2] == [0, IDLE]), -1),
        "nodes": nodes,
    }
    data = json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")
    files = importlib.resources.files(__package__)
    style = (files / "page.css").read_text("utf-8")
    script = (files / "page.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    text = (files / "page.html").read_text("utf-8")
    for mark, value in (
        ("<!--policy-->", html.escape(policy)),
        ("<!--title-->", html.escape(title)),
        ("/*style*/", style),
        ("/*script*/", script),
        ("/*data*/", data),  # the last one: it may hold the other marks
    ):
        text = text.replace(mark, value, 1)
    return text.encode("utf-8")


def _weight(call: Call) -> float:
    return max(call.total, call.here, call.others)


def _nodes(root: Call, least: float) -> tuple[list[list[Any]], int]:
    """A list for each call: place of its caller, name, file, total, own and processor time, ranks,
    median, most, whose that is, the compared rank's time, the others' median. Microseconds."""
    nodes: list[list[Any]] = []
    above: list[int] = []  # places of the callers; -1: left out
    left_out = 0
    for depth, call in root.walk():
        del above[depth:]
        if _weight(call) < least or (depth and above[-1] < 0):
            left_out += 1
            above.append(-1)
            continue
        file, line = (call.function[0], call.function[2]) if call.function else ("", 0)
        times = (call.total, call.own, call.on)
        own = [call.median, call.most, call.here, call.others]
        median, most, here, others = (round(value) for value in own)
        nodes.append(
            [
                above[-1] if depth else -1,
                call.name,
                f"{file}:{line}" if line else file,
                *(round(value) for value in times),
                call.ranks,
                median,
                most,
                call.most_of,
                here,
                others,
            ]
        )
        above.append(len(nodes) - 1)
    return nodes, left_out


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
