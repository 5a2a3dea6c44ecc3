"""The answer of the handler ``fr_summary``. Only this module of the operator's side knows its
fields.

``workerserver.handlers.flight_recorder.summarize`` describes the format.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from workerserver.cluster.read.columns.summaries import Summary
from workerserver.cluster.read.recorder import (
    MAX_GROUPS,
    MAX_NAME,
    MAX_RANKS,
    Key,
    Operation,
    RankRecord,
    Shared,
    counters_of,
    integer,
    key_of,
    operation_of,
)

__all__ = ["GLOO", "NCCL", "positions", "rank_of", "read_groups", "recorders", "share"]

#: The recorders that have handlers of their own: every backend's but NCCL's before torch 2.15, from
#: then on gloo's; and the old NCCL's.
GLOO, NCCL = "gloo", "nccl"
#: A backend's name may be asked for.
_BACKEND = re.compile(r"[A-Za-z0-9_.+-]{1,64}\Z")
#: The operations that a summary has of each group; the last one counts if two are the same.
_OPERATIONS = ("last_retired", "first_pending", "last_issued")
#: What says where a rank is; times differ on every rank.
_SIGNATURE = ("seq", "p2p_seq", "p2p", "op", "input_sizes", "input_dtypes", "output_sizes")


def read_groups(
    summary: Any, record: RankRecord, shared: Shared
) -> Iterator[tuple[Key, int | None, tuple[int, ...] | None, list[Operation]]]:
    """Each group with torch's number of it, its ranks and its operations."""
    groups = summary.get("groups") if isinstance(summary, Mapping) else None
    if not isinstance(groups, list):
        record.complain("the summary has no list of groups")
        return
    if len(groups) > MAX_GROUPS:
        record.complain(f"more than {MAX_GROUPS} process groups")
    left = MAX_RANKS
    for group in groups[:MAX_GROUPS]:
        key = key_of([group.get("name"), group.get("desc")]) if isinstance(group, Mapping) else None
        if key is None:
            record.complain("a group of the summary without a name")
            continue
        operations = list(_operations(group, record))
        if operations:
            key = key._replace(backend=operations[-1].backend)
        counters = counters_of(group.get("status"), "{}")
        if counters is not None:
            record.counters[key.backend, str(group.get("id"))[:MAX_NAME]] = counters
            record.unrecorded |= key.backend == "gloo" and _skipped(operations, counters)
        members = group.get("ranks")
        if isinstance(members, str):
            ranks = shared.packed(members, left)
            if ranks is None:
                record.complain("the ranks of a group can't be read, or are too many")
            else:
                left -= len(ranks)
        else:
            ranks = shared.ranks(members)
        yield key, integer(group.get("id")), ranks, operations


def rank_of(summary: Mapping[str, Any] | None) -> int | None:
    """The rank that torch.distributed has told the process; its environment may not tell it."""
    told = summary.rank if isinstance(summary, Summary) else (summary or {}).get("rank")
    rank = integer(told)
    return rank if rank is not None and rank < MAX_RANKS else None


def _skipped(operations: list[Operation], counters: tuple[int, ...]) -> bool:
    """gloo's recorder leaves out point-to-point operations, but its counters count them."""
    issued = max((each.seq for each in operations), default=-1)
    return 0 <= issued < counters[0]


def _operations(group: Mapping[str, Any], record: RankRecord) -> Iterator[Operation]:
    seen: list[Any] = []
    for word in _OPERATIONS:
        facts = group.get(word)
        if facts is None or facts in seen:
            continue
        seen.append(facts)
        operation = None
        if isinstance(facts, Mapping):
            operation = operation_of(
                facts,
                seq=facts.get("seq"),
                p2p_seq=facts.get("p2p_seq"),
                name=facts.get("op"),
                p2p=facts.get("p2p"),
                created=facts.get("created_ns"),
                number=-1,
            )
        if operation is None:
            record.complain(f"{word} of a group is no operation")
        else:
            yield operation


# --- what decides which full traces to fetch ----------------------------------------------------


def _groups(summary: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    groups = (summary or {}).get("groups")
    some = itertools.islice(groups, MAX_GROUPS) if isinstance(groups, list) else ()
    return [group for group in some if isinstance(group, dict)]


def recorders(summary: Mapping[str, Any] | None) -> set[str]:
    """The backends whose recorders hold something. A worker from before torch 2.15 knows of two."""
    if isinstance(summary, Summary):
        known = summary.shape.known
        if "recorders" not in known:
            known["recorders"] = recorders(summary.shape.fields())
        found: set[str] = known["recorders"]
        return found
    return {name for group in _groups(summary) if (name := _recorder(group)) is not None}


def _recorder(group: Mapping[str, Any]) -> str | None:
    recorder, backend = group.get("recorder"), group.get("backend")
    if recorder == "nccl":
        return NCCL
    if not isinstance(recorder, str):
        return None
    return backend if isinstance(backend, str) and _BACKEND.match(backend) else GLOO


def positions(
    summary: Mapping[str, Any] | None,
) -> Iterator[tuple[str, str | None, str, bool]]:
    """For each group and recorder of it: which group it is, which recorder, where this rank is in
    it, whether something is pending. Two ranks with equal texts are at the same place of the same
    group. The recorder is None if none holds anything of the group."""
    if isinstance(summary, Summary):
        known = summary.shape.known
        if "positions" not in known:
            known["positions"] = [*positions(summary.shape.fields())]
        yield from known["positions"]
        return
    for group in _groups(summary):
        place = []
        for word in ("last_issued", "last_retired", "first_pending"):
            operation = group.get(word)
            if isinstance(operation, dict):
                place.append([operation.get(key) for key in _SIGNATURE])
            else:
                place.append([])
        identity = [group.get(key) for key in ("name", "desc", "ranks")]
        yield json.dumps(identity), _recorder(group), json.dumps(place), bool(place[2])


def share(summary: Mapping[str, Any]) -> None:
    """Let each group's equal operations be one object: summaries are kept for long."""
    for group in _groups(summary):
        last = group.get("last_issued")
        if last is not None and group.get("first_pending") == last:
            group["first_pending"] = last
