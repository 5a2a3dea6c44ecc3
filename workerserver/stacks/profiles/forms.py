"""The forms of text: folded stacks, speedscope's JSON, and Chrome's trace events for Perfetto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from workerserver.job.printable import escape_line
from workerserver.stacks.profiles.job import Job, Member, Times, label
from workerserver.stacks.profiles.recorded import Function
from workerserver.stacks.profiles.tree import Call, grow

__all__ = ["MAX_APART", "folded", "perfetto", "speedscope"]

#: Ranks that are also shown each by itself.
MAX_APART = 64


def stacks_of(job: Job) -> Iterator[tuple[list[str | Function], Times]]:
    """Each stack that was met, the oldest call first: labels of the group, then functions."""
    for (group, stack), times in job.times.items():
        calls = [job.stacks.functions[number] for number in job.stacks.path(stack)]
        yield [*group.labels, *calls], times


def _text(frame: str | Function) -> str:
    return frame if isinstance(frame, str) else label(frame)


def folded(job: Job, rank: int | None) -> bytes:
    """A line for each stack: calls with ``;`` between them, then microseconds. With *rank* two
    numbers, as difffolded.pl writes them: the median of the others, and the time of *rank*."""
    lines = []
    place = None if rank is None else job.place_of(rank)
    for frames, times in stacks_of(job):
        names = [_text(each).replace(";", ",") for each in frames]
        line = ";".join(escape_line(" ".join(name.split())) for name in names)
        if place is None:
            numbers = [round(times.total)]
        else:
            own, others = job.against(times, place)
            numbers = [round(others), round(own)]
        if any(numbers):
            lines.append(f"{line} {' '.join(map(str, numbers))}\n")
    return "".join(sorted(lines)).encode("utf-8", "backslashreplace")


def speedscope(job: Job, rank: int | None) -> bytes:
    """A file for speedscope.app: all ranks, then each rank by itself if there are few. With *rank*:
    that rank, and the median of the others."""
    frames: dict[str | Function, int] = {}
    stacks = [
        ([frames.setdefault(frame, len(frames)) for frame in path], times)
        for path, times in stacks_of(job)
    ]

    def profile(name: str, weights: list[float]) -> dict[str, Any]:
        kept = [(stack[0], w) for stack, w in zip(stacks, weights, strict=True) if w > 0]
        return {
            "type": "sampled",
            "name": name,
            "unit": "microseconds",
            "startValue": 0,
            "endValue": round(sum(weight for _, weight in kept), 3),
            "samples": [path for path, _ in kept],
            "weights": [round(weight, 3) for _, weight in kept],
        }

    place = None if rank is None else job.place_of(rank)
    if place is not None:
        both = [job.against(times, place) for _, times in stacks]
        profiles = [
            profile(job.members[place].name, [own for own, _ in both]),
            profile("median of the others", [others for _, others in both]),
        ]
    else:
        count = len(job.members)
        profiles = [profile(f"all {count} ranks", [times.total for _, times in stacks])]
        if 1 < count <= MAX_APART:
            own = [{who: on + off for who, on, off in times.each()} for _, times in stacks]
            profiles += [
                profile(member.name, [times.get(number, 0.0) for times in own])
                for number, member in enumerate(job.members)
            ]
    told = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "workerserver",
        "name": _title(job),
        "activeProfileIndex": 0,
        "shared": {"frames": [_frame(frame) for frame in frames]},
        "profiles": profiles,
    }
    return json.dumps(told, separators=(",", ":")).encode("ascii")


def _frame(frame: str | Function) -> dict[str, Any]:
    if isinstance(frame, str):
        return {"name": frame}
    file, name, line = frame
    told: dict[str, Any] = {"name": name or "???"}
    if file:
        told["file"] = file
    if line:
        told["line"] = line
    return told


def _title(job: Job) -> str:
    return f"{len(job.members)} ranks, {job.seconds:.3g} s, {job.mode} time"


def perfetto(job: Job, rank: int | None) -> bytes:
    """Chrome's trace events: each rank is a process, each group of threads a track. The samples say
    how long a call took in all, not when: equal calls stand together, the longest first."""
    events: list[dict[str, Any]] = []
    place = None if rank is None else job.place_of(rank)
    shown: list[tuple[str, Call]] = []
    if place is None:
        shown.append((f"all {len(job.members)} ranks", grow(job)))
    if place is not None or len(job.members) <= MAX_APART:
        for number, member in enumerate(job.members):
            if place in (None, number):
                alone = job.narrowed(member, partial(Times.of, place=number))
                shown.append((member.name, grow(alone)))
    if place is not None:
        median = Member(None, "median of the others")
        others = job.narrowed(median, lambda times: job.against(times, place)[1])
        shown.append((median.name, grow(others)))
    for pid, (name, root) in enumerate(shown, 1):
        events.append(_named("process_name", pid, 0, name))
        events.append({**_named("process_sort_index", pid, 0, ""), "args": {"sort_index": pid}})
        for tid, track in enumerate(_longest(root), 1):
            events.append(_named("thread_name", pid, tid, track.name))
            events += _slices(track, pid, tid)
    told = {"displayTimeUnit": "ms", "otherData": {"recording": _title(job)}, "traceEvents": events}
    return json.dumps(told, separators=(",", ":")).encode("ascii")


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _longest(call: Call) -> list[Call]:
    return sorted(call.children.values(), key=lambda each: each.total, reverse=True)


def _slices(track: Call, pid: int, tid: int) -> Iterator[dict[str, Any]]:
    """A slice for each call, below that of its caller."""
    waiting = [(track, 0.0)]
    while waiting:
        call, start = waiting.pop()
        if call.total <= 0:
            continue
        args: dict[str, Any] = {"own_us": round(call.own, 3), "ranks": call.ranks}
        if call.function is not None:
            args["file"], _, args["line"] = call.function
        yield {
            "ph": "X",
            "cat": "samples",
            "name": call.name if call.function is None else call.function[1] or "???",
            "pid": pid,
            "tid": tid,
            "ts": round(start, 3),
            "dur": round(call.total, 3),
            "args": args,
        }
        for child in _longest(call):
            waiting.append((child, start))
            start += child.total
