"""What a rank's flight recorders hold: whole traces as torch 2.13 writes them, and ``fr_summary``.

gloo's recorder never says "started" or "completed": a finished operation is ``retired``. It holds
no point-to-point operation, and says nothing of the ranks of its groups. NCCL's has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any

from workerserver.ranks import pack

from ..job.machine import Entry, Machine, Rank
from ..job.program import Group

__all__ = ["EPOCH", "Recorded", "summary", "trace"]

#: The simulated time 0, in seconds since the epoch.
EPOCH = 1_795_000_000.0
#: Seconds until NCCL's watchdog sees that an operation has ended.
WATCHDOG_S = 0.1
TIMEOUT_MS = 600000

Json = dict[str, Any]

_packed = lru_cache(maxsize=4096)(pack)

#: What torch records under another name.
_NAMES = {
    "gloo": {
        "all_gather_into_tensor": "all_gather",
        "all_gather_object": "all_gather",
        "all_gather_object data": "all_gather",
        "reduce_scatter_tensor": "all_reduce",
    },
    "nccl": {
        "all_gather_into_tensor": "_all_gather_base",
        "reduce_scatter_tensor": "_reduce_scatter_base",
        "all_gather_object": "all_gather",
        "all_gather_object data": "all_gather",
        "barrier": "all_reduce_barrier",
    },
}


@dataclass(slots=True)
class Recorded:
    """The recorders of one rank at one time: what may change later is copied."""

    rank: Rank
    groups: Sequence[Group]
    rings: dict[str, tuple[Entry, ...]]
    ended: dict[int, tuple[Entry, ...]]
    issued: dict[int, Entry]
    many: bool
    """It has made another group than the default one."""
    now: float

    @classmethod
    def of(cls, machine: Machine, rank: Rank, now: float) -> Recorded:
        begun = machine.counts.get(("new", rank.number), 0)
        begun -= any(
            thread.op is not None and thread.op.kind == "new_group" and thread.state != "on"
            for thread in rank.threads
        )
        groups = machine.job.groups
        return cls(
            rank,
            groups,
            {backend: tuple(ring) for backend, ring in rank.rings.items()},
            {number: tuple(each) for number, each in rank.ended.items()},
            dict(rank.issued),
            begun > 0 or len(groups) > 1,
            now,
        )


def created_ns(entry: Entry) -> int:
    """Two operations are never issued at the same moment."""
    return ns(entry.created, entry.rank.plan.clock) + 1000 * entry.order


def ns(now: float, clock: float) -> int:
    """The rank's wall clock."""
    return int((EPOCH + now + clock) * 1e9)


def _times(entry: Entry) -> tuple[float, float]:
    """When the recorder saw it start and end. Of a batch it sees only the closing entry do so; its
    parts stay scheduled for ever."""
    if entry.inner:
        return inf, inf
    if entry.parts:
        return entry.parts[0].started, max(part.done for part in entry.parts)
    return entry.started, entry.done


def _p2p(entry: Entry) -> bool:
    return entry.op.peer >= 0 or bool(entry.parts)


def _name(entry: Entry) -> str:
    op, group = entry.op, entry.group
    if op.peer >= 0:
        me, peer = group.ranks.index(entry.rank.number), group.ranks.index(op.peer)
        arrow = "->" if op.kind in ("send", "isend") else "<-"
        return f"{group.backend}:{op.kind.removeprefix('i')} {me}{arrow}{peer}"
    return f"{group.backend}:{_NAMES[group.backend].get(op.name, op.name)}"


def _tensors(entry: Entry) -> tuple[list[list[int]], list[list[int]], list[str]]:
    """Sizes of the input and of the output, and types."""
    op = entry.op
    if entry.parts:
        return [], [], []
    if op.name == "barrier":
        # NCCL's barrier is an all_reduce of one element.
        return ([[1]], [[1]], ["Float"]) if entry.group.backend == "nccl" else ([], [], [])
    size = len(entry.group.ranks)
    shape = list(op.shape)
    dtypes = [op.dtype]
    if op.name.startswith("all_gather"):
        return [shape], [[size, *shape]], dtypes
    if op.name == "reduce_scatter_tensor":
        whole = [shape[0] * size, *shape[1:]]
        return [whole], [whole if entry.group.backend == "gloo" else shape], dtypes
    return [shape], [shape], dtypes


def _entry(entry: Entry, now: float) -> Json:
    nccl = entry.group.backend == "nccl"
    clock = entry.rank.plan.clock
    start, end = _times(entry)
    done, started = end <= now, start <= now and entry.rank.plan.timing
    inputs, outputs, dtypes = _tensors(entry)
    thread = entry.thread.number if entry.thread is not None else 0
    return {
        "collective_seq_id": entry.seq,
        "input_dtypes": dtypes,
        "input_sizes": inputs,
        "is_p2p": _p2p(entry),
        "op_id": entry.op_id,
        "output_dtypes": dtypes,
        "output_sizes": outputs,
        "p2p_seq_id": entry.p2p_seq,
        "pg_id": entry.rank.local[entry.group.number],
        "process_group": [entry.group.name, entry.group.desc],
        "profiling_name": _name(entry),
        "record_id": entry.number,
        "retired": end + (WATCHDOG_S if nccl else 0.0) <= now,
        "state": ("completed" if done else "started" if started else "scheduled")
        if nccl
        else "scheduled",
        "thread_id": str(140_000_000_000_000 + thread * 8_392_704),
        "thread_name": "python",
        "time_created_ns": created_ns(entry),
        "time_discovered_completed_ns": ns(end + 0.04, clock) if nccl and done else 0,
        "time_discovered_started_ns": ns(start + 0.04, clock) if nccl and started else 0,
        "timeout_ms": TIMEOUT_MS,
    }


def _status(recorded: Recorded, number: int, ring: Sequence[Entry]) -> Json:
    """torch's counters, which outlive the ring: NCCL's count collectives, gloo's all operations."""
    now, last = recorded.now, recorded.issued[number]
    nccl = last.group.backend == "nccl"
    done = [each for each in recorded.ended.get(number, ()) if each.done <= now]
    started = -1
    if nccl and recorded.rank.plan.timing:
        begun = [each.seq for each in (*done, *ring) if each.started <= now]
        started = max(begun, default=-1)
    return {
        "enqueued": last.seq if nccl else last.op_id,
        "started": started,
        "completed": max((each.seq if nccl else each.op_id for each in done), default=-1),
    }


def trace(recorded: Recorded, backend: str) -> Json:
    """``fr_trace_json``, or ``dump_nccl_trace_json``, of the recorder of *backend*: all entries."""
    ring = recorded.rings.get(backend, ())
    now = recorded.now
    nccl = backend == "nccl"
    config: Json = {}
    if nccl:
        config = {
            group.name: {
                "desc": group.desc,
                "name": group.name,
                "ranks": str(list(group.ranks)),
            }
            for group in recorded.groups
            if group.backend == "nccl" and recorded.rank.number in group.ranks
        }
    elif recorded.rank.plan.ring:
        # Of all groups it keeps the last one made, without its name, and ranks of the default one.
        ranks = [] if recorded.many else list(recorded.groups[0].ranks)
        config = {"": {"desc": "", "name": "", "ranks": str(ranks)}}
    status = {}
    for number, last in recorded.issued.items():
        if last.group.backend != backend:
            continue
        own = [entry for entry in ring if entry.group.number == number]
        counters = _status(recorded, number, own)
        status[str(recorded.rank.local[number])] = {
            f"last_{word}_collective": str(value) for word, value in counters.items()
        }
    found: Json = {
        "comm_lib_version": "2.27.3" if nccl else "",
        "nccl_comm_state": {},
        "pg_config": config,
        "pg_status": status,
        "version": "2.10",
    }
    entries = [_entry(entry, now) for entry in ring]
    if entries:
        found["entries"] = entries
    return found


# --- fr_summary


def summary(recorded: Recorded) -> Json:
    """As ``workerserver.handlers.flight_recorder`` makes it of the whole recorders."""
    rank, now = recorded.rank, recorded.now
    groups: list[Json] = []
    seen: set[int] = set()
    by_group: dict[int, list[Entry]] = {}
    for ring in recorded.rings.values():
        for entry in ring:
            by_group.setdefault(entry.group.number, []).append(entry)
    for number, entries in by_group.items():
        group = recorded.groups[number]
        seen.add(number)
        nccl = group.backend == "nccl"
        closed = {id(part) for entry in entries for part in entry.parts if _times(entry)[1] <= now}
        pending = [e for e in entries if _times(e)[1] > now and id(e) not in closed]
        ended = [entry for entry in entries if _times(entry)[1] <= now]
        made: dict[int, Json] = {}
        groups.append(
            {
                "recorder": "nccl" if nccl else "fr",
                "id": rank.local[number],
                "name": group.name,
                "desc": group.desc,
                "ranks": _packed(group.ranks),
                "status": _status(recorded, number, entries),
                "pending": len(pending),
                "last_issued": _operation(entries[-1], now, made),
                "last_retired": _operation(ended[-1], now, made) if ended else None,
                "first_pending": _operation(pending[0], now, made) if pending else None,
                "backend": group.backend,
            }
        )
    for group in recorded.groups:
        if group.number not in seen and rank.number in group.ranks:
            groups.append(
                {
                    "recorder": None,
                    "id": None,
                    "name": group.name,
                    "desc": group.desc,
                    "ranks": _packed(group.ranks),
                    "status": None,
                    "pending": 0,
                    "last_issued": None,
                    "last_retired": None,
                    "first_pending": None,
                    "backend": None,
                }
            )
    groups.sort(key=lambda group: (group["id"] is None, group["id"] or 0, group["name"]))
    return {"rank": rank.number, "version": "2.10", "groups": groups}


def _operation(entry: Entry, now: float, made: dict[int, Json]) -> Json:
    """Equal ones are made once, as three names may stand for one operation."""
    found = made.get(id(entry))
    if found is None:
        nccl = entry.group.backend == "nccl"
        clock = entry.rank.plan.clock
        start, end = _times(entry)
        done, started = end <= now, start <= now and entry.rank.plan.timing
        inputs, outputs, dtypes = _tensors(entry)
        found = made[id(entry)] = {
            "seq": entry.seq,
            "p2p_seq": entry.p2p_seq,
            "p2p": _p2p(entry),
            "op": _name(entry),
            "state": ("completed" if done else "started" if started else "scheduled")
            if nccl
            else "scheduled",
            "retired": end + (WATCHDOG_S if nccl else 0.0) <= now,
            "input_sizes": inputs,
            "input_dtypes": dtypes,
            "output_sizes": outputs,
            "created_ns": created_ns(entry),
            "started_ns": ns(start + 0.04, clock) if nccl and started else None,
            "completed_ns": ns(end + 0.04, clock) if nccl and done else None,
            "duration_ms": None,
        }
    return found
