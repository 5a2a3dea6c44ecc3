"""A verdict as plain dictionaries, for JSON (docs/diagnose.md)."""

from __future__ import annotations

from typing import Any

from workerserver.cluster.judge.chains.facts import Circle
from workerserver.cluster.judge.facts import Gone, known_rank
from workerserver.cluster.judge.flight import Group, Mismatch, Wait
from workerserver.cluster.judge.verdict import GroupState, Suspect, Verdict
from workerserver.cluster.read.recorder import Operation
from workerserver.cluster.show.groups import stack_lines
from workerserver.cluster.show.tree import where
from workerserver.ranks import fold

__all__ = ["verdict_dict"]

#: Of one process group.
MAX_POSITIONS = 64


def verdict_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.sentence,
        "status": verdict.status,
        "ranks": verdict.ranks,
        "responded": verdict.responded,
        "unreachable": list(map(_gone, verdict.unreachable)),
        "suspects": list(map(_suspect, verdict.suspects)),
        "stragglers": [each._asdict() for each in verdict.stragglers],
        "groups": [
            {"ranks": group.folded, "count": group.count, "stack": stack_lines(group)}
            for group in verdict.groups
        ],
        "process_groups": list(map(_process_group, verdict.process_groups)),
        "problems": list(verdict.problems),
        "progress": [{"kind": each.sign, "ranks": fold(each.ranks)} for each in verdict.progress],
        "again_s": verdict.again_s,
        "not_looked_at": list(verdict.not_looked_at),
    }


def _gone(gone: Gone) -> dict[str, Any]:
    return {
        "rank": known_rank(gone.rank),
        "host": gone.host,
        "address": gone.address,
        "reason": gone.reason,
        "text": gone.text,
    }


def _suspect(suspect: Suspect) -> dict[str, Any]:
    return {
        "rank": suspect.rank,
        "host": suspect.host,
        "address": suspect.address,
        "reason": suspect.reason,
        "process_group": suspect.process_group,
        "collective": suspect.collective,
        "seq": suspect.seq,
        "location": where(suspect.location) if suspect.location is not None else None,
        "call": suspect.call,
        "gil_holder": suspect.gil_holder,
        "step": suspect.step,
        "step_age_s": suspect.step_age_s,
        "evidence": list(suspect.evidence),
        "waits_for": suspect.waits_for,
        "deadlock": list(map(_circle, suspect.deadlock)),
    }


def _circle(circle: Circle) -> dict[str, Any]:
    return {
        "thread": circle.thread,
        "waits_for": circle.waits_for,
        "holds": circle.held,
        "took": where(circle.took) if circle.took is not None else None,
        "stands": where(circle.stands) if circle.stands is not None else None,
    }


def _process_group(state: GroupState) -> dict[str, Any]:
    group = state.group
    return {
        "name": group.key.name,
        "desc": group.key.desc,
        "backend": group.key.backend or None,
        "ranks": fold(group.ranks),
        "complete": group.complete,
        "positions": _positions(group),
        "waits": [_wait(wait, wait in state.hanging) for wait in state.waits],
        "mismatch": _mismatch(state.mismatch) if state.mismatch is not None else None,
    }


def _positions(group: Group) -> list[dict[str, Any]]:
    """Which ranks have come how far."""
    alike: dict[tuple[tuple[str, int] | None, ...], list[int]] = {}
    members = set(group.ranks)
    for part in group.parts:
        position = (_brief(part.record.last_issued), _brief(part.record.last_retired))
        inside = members.intersection(part.ranks)
        if inside:
            alike.setdefault(position, []).extend(inside)
            members -= inside
    if members:
        alike.setdefault((None, None), []).extend(members)
    for ranks in alike.values():
        ranks.sort()
    return [
        {
            "ranks": fold(ranks),
            "last_issued": _operation(issued),
            "last_retired": _operation(retired),
        }
        for (issued, retired), ranks in sorted(alike.items(), key=lambda each: each[1])[
            :MAX_POSITIONS
        ]
    ]


def _brief(operation: Operation | None) -> tuple[str, int] | None:
    return None if operation is None else (operation.op, operation.seq)


def _operation(brief: tuple[str, int] | None) -> dict[str, Any] | None:
    return None if brief is None else {"collective": brief[0], "seq": brief[1]}


def _wait(wait: Wait, hangs: bool) -> dict[str, Any]:
    return {
        "collective": wait.op,
        "seq": wait.seq,
        "waiting": fold(wait.waiting),
        "absent": fold(wait.absent),
        "silent": fold(wait.silent),
        "hangs": hangs,
    }


def _mismatch(mismatch: Mismatch) -> dict[str, Any]:
    parties = [{"ranks": fold(ranks), "operation": text} for ranks, text in mismatch.parties]
    return {"seq": mismatch.seq, "kind": mismatch.kind, "parties": parties}
