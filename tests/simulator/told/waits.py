"""What a thread waits for and which locks it holds, as docs/protocol.md has it: from the frames of
known functions, from with blocks, and from the kernel.
"""

from __future__ import annotations

from typing import Any

from ..job.machine import Machine, Rank, Thread

__all__ = ["PID", "children", "holds", "native_id", "waits_for"]

#: The kernel's number of the first process.
PID = 4000

Json = dict[str, Any]

#: What frames of Python's own library tell, without the other side.
_LIBRARY = {"get": "queue", "await": "event", "condition": "condition", "result": "future"}
#: Taken without a with block: nothing shows it.
_HIDDEN = frozenset({"pool"})


def native_id(thread: Thread) -> int:
    pid = PID + thread.rank.number
    return pid if thread.strand.name == "main" else pid + 10_000 + thread.number


def waits_for(machine: Machine, thread: Thread) -> Json | None:
    op = thread.op
    if op is None or (thread.state not in ("blocked", "forever") and op.kind != "child"):
        return None
    kind = op.kind
    if kind in ("send", "recv", "call", "monitored"):
        group = machine.job.groups[op.group]
        told: Json = {"name": group.name, "description": group.desc}
        told["ranks"] = [*group.ranks]
        found = {"kind": "operation", "source": "locals", "frame": 0, "group": told}
        if kind in ("send", "recv"):
            return {**found, "op": kind, "peer": op.peer, "tag": 0}
        return {**found, "op": "monitored_barrier" if kind == "monitored" else op.name}
    if kind == "lock":
        owner = thread.rank.locks[op.key][0]
        item = _address(thread, op.key)
        return {"kind": "lock", "source": "with", "object": item, "holder": native_id(owner)}
    if kind == "join":
        joined = next(each for each in thread.rank.threads if each.strand.name == op.key)
        its = {"native_id": native_id(joined), "name": op.key}
        return {"kind": "thread", "source": "locals", "frame": 0, "thread": its}
    if kind in _LIBRARY:
        return {"kind": _LIBRARY[kind], "source": "locals", "frame": 0}
    if kind == "child":
        return {"kind": "process", "source": "locals", "pid": _child(thread)}
    if kind == "flock":
        owner = machine.files[thread.rank.plan.host, op.key][0]
        path = f"/data/{op.key}"
        return {
            "kind": "file_lock", "source": "kernel", "pid": PID + owner.rank.number, "path": path,
        }  # fmt: skip
    return None


def _child(thread: Thread) -> int:
    return 90_000 + 100 * thread.rank.number + thread.number


#: What a child takes for its start: of the processor, and bytes that it reads.
START_S, START_BYTES = 0.001, 7000


def children(rank: Rank, now: float) -> list[Json]:
    """The processes that a rank's threads wait for."""
    found = []
    for thread in rank.threads:
        op = thread.op
        if op is None or op.kind != "child":
            continue
        since = now - thread.since
        told = {"pid": _child(thread), "name": "gzip", "state": "S", "processes": 1, "states": "S"}
        spent = since * {"busy": 0.9, "copies": 0.001}.get(op.key, 0.0)
        told |= {"cpu_s": round(START_S + spent, 6), "io_bytes": START_BYTES}
        if op.key == "busy":
            told |= {"state": "R", "states": "R"}
        elif op.key == "copies":
            told["io_bytes"] = START_BYTES + int(since * 1e6)
        found.append(told)
    return found


def holds(thread: Thread) -> list[Json]:
    return [
        {"kind": "lock", "object": _address(thread, key), "frame": 0}
        for key, (owner, _) in thread.rank.locks.items()
        if owner is thread and key not in _HIDDEN
    ]


def _address(thread: Thread, key: str) -> str:
    """Of a lock of the process."""
    return f"0x7f00{sum(key.encode()):08x}"
