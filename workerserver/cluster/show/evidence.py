"""What stands below a verdict: the evidence, the groups of equal stacks, the process groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from workerserver.cluster.judge.flight import Group, Mismatch, Wait
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.verdict import place, where
from workerserver.cluster.model import Frame
from workerserver.cluster.read import groups
from workerserver.cluster.read.flight_records import Operation
from workerserver.cluster.read.roles import is_library
from workerserver.cluster.read.standing import Standing
from workerserver.ranks import fold

__all__ = ["evidence", "group_dicts", "location", "process_group_dicts"]

#: Bounds of what is told in full; a large job has as many groups as ranks.
FRAMES = 4
PROCESS_GROUPS = 100
POSITIONS = 64


def location(stands: Standing | None) -> str | None:
    return where(stands.location) if stands is not None and stands.location is not None else None


def evidence(job: Job, rank: int) -> Iterator[str]:
    """What is known of the rank itself, one short line each."""
    stands = job.standing.get(rank)
    state = job.now.states.get(rank)
    if state is None or stands is None:
        return
    if stands.thread is not None:
        yield "main thread: " + _chain(stands.thread.frames)
        if stands.thread.wchan and stands.thread.wchan != "0":
            yield f"in the kernel: {stands.thread.wchan}"
    same = job.same_stack(rank)
    if same is not None:
        words = "at the same line" if same else "moving: at another line"
        yield f"{words} in two rounds, {job.window:.1f} s apart"
    held = job.gil(rank)
    if held is not None:
        thread, seconds = held
        text = "the GIL is held"
        if seconds is not None:
            text += f", for {seconds:.1f} s"
        if thread is not None:
            text += f", by {thread.name or 'a thread'}"
            if thread.frames:
                text += f" in {place(thread.frames[0])}"
        yield text
    health = state.health
    if health is not None and health.step is not None:
        age = f", {health.step_age_s:.1f} s ago" if health.step_age_s is not None else ""
        text = f"last heartbeat: step {health.step}{age}"
        if job.step_range is not None and job.step_range[0] != job.step_range[1]:
            text += f"; the job is at steps {job.step_range[0]} to {job.step_range[1]}"
        yield text
    for question in sorted(state.failures):
        failure = state.failures[question]
        yield f"{question}: {failure.reason}: {failure.text}"


def _chain(frames: Sequence[Frame]) -> str:
    """The newest frames in user code, innermost first; what libraries add is counted."""
    own = [frame for frame in frames if not is_library(frame)]
    shown = " < ".join(place(frame) for frame in own[:FRAMES])
    if not own:
        return f"{place(frames[0])}, in library code" if frames else "no frames"
    more = len(own) - FRAMES
    return shown + (f" < {more} more" if more > 0 else "")


def group_dicts(job: Job) -> list[dict[str, Any]]:
    """Ranks that do the same, the odd ones out first. *stack*: the main thread's frames, newest
    first, then those of other threads that do something, each after a line with its role."""
    return [
        {"ranks": group.folded, "count": group.count, "stack": _stack(group)}
        for group in groups.groups(job.now.states.values())
    ]


def _stack(group: groups.Group) -> list[str]:
    lines: list[str] = []
    for thread, role in zip(group.threads, group.roles, strict=True):
        if role != "main":
            lines.append(f"[{role}]")
        lines += [where(frame) for frame in thread.frames]
    return lines


def process_group_dicts(job: Job, hanging: Sequence[Wait]) -> list[dict[str, Any]]:
    """Each process group: where its ranks are, who waits, what differs; those in trouble first."""
    analysis = job.analysis
    mismatches = {id(each.group): each for each in analysis.mismatches}
    trouble = {id(wait.group) for wait in hanging} | set(mismatches)
    ordered = sorted(analysis.groups, key=lambda group: id(group) not in trouble)
    return [
        _group_dict(
            group,
            [wait for wait in analysis.waits if wait.group is group],
            [wait for wait in hanging if wait.group is group],
            mismatches.get(id(group)),
        )
        for group in ordered[:PROCESS_GROUPS]
    ]


def _group_dict(
    group: Group, waits: Sequence[Wait], hanging: Sequence[Wait], mismatch: Mismatch | None
) -> dict[str, Any]:
    positions: dict[tuple[tuple[str, int] | None, ...], list[int]] = {}
    for rank in group.ranks:
        record = group.records.get(rank)
        position = (
            _brief(record.last_issued if record is not None else None),
            _brief(record.last_retired if record is not None else None),
        )
        positions.setdefault(position, []).append(rank)
    shown = sorted(positions.items(), key=lambda each: each[1])[:POSITIONS]
    return {
        "name": group.key.name,
        "desc": group.key.desc,
        "ranks": fold(group.ranks),
        "complete": group.complete,
        "positions": [
            {
                "ranks": fold(ranks),
                "last_issued": _operation(issued),
                "last_retired": _operation(retired),
            }
            for (issued, retired), ranks in shown
        ],
        "waits": [
            {
                "collective": wait.op,
                "seq": wait.seq,
                "waiting": fold(wait.waiting),
                "absent": fold(wait.absent),
                "silent": fold(wait.silent),
                "hangs": wait in hanging,
            }
            for wait in waits
        ],
        "mismatch": None
        if mismatch is None
        else {
            "seq": mismatch.seq,
            "kind": mismatch.kind,
            "parties": [
                {"ranks": fold(ranks), "operation": text} for ranks, text in mismatch.parties
            ],
        },
    }


def _brief(operation: Operation | None) -> tuple[str, int] | None:
    return None if operation is None else (operation.op, operation.seq)


def _operation(brief: tuple[str, int] | None) -> dict[str, Any] | None:
    return None if brief is None else {"collective": brief[0], "seq": brief[1]}
