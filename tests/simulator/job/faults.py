"""What may be wrong with a job: planted into a draft, with who is guilty of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from .program import FOREVER, Group, Op, Plant, Strand

if TYPE_CHECKING:
    from .generate import Draft

__all__ = ["ABSENT", "DEVIATIONS", "plant"]

#: Faults in which a rank does not come, and the class of each: see ``truth.REASONS``. "joined": a
#: thread waits for another one, which can be named instead.
ABSENT: dict[str, str] = {
    "sleep": "behind",
    "compute": "behind",
    "child": "behind",
    "open": "behind",
    "write": "behind",
    "raise": "behind",
    "data": "dataloader",
    "held lock": "joined",
    "crossed locks": "lock",
    "same lock": "lock",
    "get": "lock",
    "await": "lock",
    "condition": "lock",
    "acquire": "lock",
    "join": "joined",
    "result": "joined",
    "gil": "gil held",
    "stop": "unreachable",
    "die": "unreachable",
    "store": "behind",
    "flock": "behind",
}
#: Faults in which a rank does something else.
DEVIATIONS = (
    "skip", "skip", "swallow", "extra", "other", "shape", "dtype", "order", "crossed groups",
    "skip new_group", "key",
)  # fmt: skip

#: A pause lasts for so many usual steps, but for no longer than so many seconds...
PAUSE_STEPS = 30.0
PAUSE_MOST_S = 100.0
#: ... and may always last for so long; where nothing tells how long a step takes, for no longer:
#: test_twins shows that such a rank and one that never comes back give the same answers.
PAUSE_LEAST_S = 4.5
#: Steps after which the answers tell how long one takes.
PACED_STEPS = 4
#: A hang is settled after so many usual steps, and so many seconds. Both are more than any pause.
SETTLED_STEPS = 48.0
SETTLED_LEAST_S = 12.0
SETTLED_MOST_S = 150.0
#: A job begins so long before its first step, as its uptime tells.
STARTS_S = 3.5

#: A child process that is seen to work may do so for so many times as long.
CHILD_TIMES = 10.0
#: What such a child does; and one that never ends.
CHILDREN = ("busy", "copies", "")
BUSY_FOREVER = 0.25

#: Pauses that end.
PAUSES = ("sleep", "compute", "write", "data", "child", "beats")

_WORKS = ("call", "issue", "send", "recv", "isend", "irecv", "batch", "monitored")


def plant(draft: Draft) -> None:
    """Healthy, late, or hung; and then the threads that do it."""
    job = draft.job
    draw = draft.random.random
    fault = [list(step) for step in draft.steps]
    epochs = [list(epoch) for epoch in draft.epochs]
    kind = draw()
    job.gap = 2.0 if draw() < 0.7 else 0.5 + 4 * draw()
    if kind < 0.3:
        job.look, job.after = "running", job.usual * (0.2 + draw() * (draft.warm + 3))
    elif kind < 0.45:
        _pause(draft, fault)
    else:
        job.look = "settled" if draw() < 0.85 else "fresh"
        # As long as the answers make a step seem: an average has the job's start in it.
        step = job.usual + (STARTS_S / draft.warm if any(each.beats for each in job.ranks) else 0.0)
        longest = max(min(SETTLED_STEPS * step, SETTLED_MOST_S), SETTLED_LEAST_S)
        job.after = longest * (1 + draw() ** 2)
        if job.look == "fresh":
            job.after = draw() * longest
        if job.world == 1 or draw() < 0.6:
            _absent(draft, fault)
        else:
            _deviate(draft, fault, epochs)
        if draw() < 0.08 and job.world > 2:
            _absent(draft, fault)
    _assemble(draft, fault, epochs)


def _assemble(draft: Draft, fault: list[list[Op]], epochs: list[list[Op]]) -> None:
    """Warm steps, the one with the fault, an epoch's end, and so on for ever."""
    job = draft.job
    often = 1 + int(draft.random.random() * 3)
    before = draft.steps
    if draft.chance(0.05):
        again = _made_again(draft)
        fault, epochs = again(fault), again(epochs)
        draft.steps, draft.epochs = again(draft.steps), again(draft.epochs)
    for plan in job.ranks:
        rank = plan.rank
        beat = [Op("beat").at("train", 12)] if plan.beats else []
        usual = [*beat, *draft.steps[rank]]
        ops = [*draft.starts[rank]]
        ops += [*beat, *before[rank]] * draft.warm
        ops += [*beat, *fault[rank]]
        ops += usual * (often - 1)
        ops += epochs[rank]
        loop = len(ops)
        ops += usual * often
        ops += draft.epochs[rank]
        plan.strands.append(Strand(draft.trainer, ops, loop))
        plan.strands += draft.extras[rank]
        plan.strands.sort(key=lambda strand: strand.name != "main")


def _made_again(draft: Draft) -> Callable[[list[list[Op]]], list[list[Op]]]:
    """After the warm steps a group is destroyed and made again: as another one of the same name."""
    groups = draft.job.groups
    old = groups[int(draft.random.random() * len(groups))]
    new = Group(len(groups), old.desc, old.ranks, old.backend, old.name)
    groups.append(new)
    known: dict[int, Op] = {}

    def moved(op: Op) -> Op:
        if op.group != old.number and not any(part.group == old.number for part in op.parts):
            return op
        found = known.get(id(op))
        if found is None:
            parts = tuple(part.changed(group=new.number) for part in op.parts)
            number = new.number if op.group == old.number else op.group
            found = known[id(op)] = op.changed(group=number, parts=parts)
        return found

    return lambda plans: [[moved(op) for op in ops] for ops in plans]


def _spot(draft: Draft, ops: list[Op]) -> int:
    """Before one of the operations with others; at the beginning if there is none."""
    spots = [index for index, op in enumerate(ops) if op.kind in _WORKS]
    return spots[int(draft.random.random() * len(spots))] if spots else len(ops) - 1


def _accuse(draft: Draft, kind: str, rank: int, reason: str, late: bool = False) -> None:
    draft.job.plants.append(Plant(kind, rank, reason, late))


def _victim(draft: Draft) -> int:
    taken = {plant.rank for plant in draft.job.plants}
    free = [rank for rank in range(draft.job.world) if rank not in taken]
    return free[int(draft.random.random() * len(free))]


# --- late


def _pause(draft: Draft, fault: list[list[Op]]) -> None:
    """Seen while it lasts, or just after."""
    job, draw = draft.job, draft.random.random
    kind = PAUSES[int(draw() * len(PAUSES))]
    longest = PAUSE_LEAST_S
    if _paced(draft):
        # The stages of a pipeline work at the same time.
        step = job.usual / 3 if job.layout == "pipeline" else job.usual
        longest = max(min(PAUSE_STEPS * step, PAUSE_MOST_S), longest)
    seconds = longest * (0.1 + 0.9 * draw())
    rank = _victim(draft)
    key = ("io", "cpu", "still")[int(draw() * 3)] if kind == "write" else ""
    if kind == "child" and job.ranks[rank].facts:
        key = CHILDREN[int(draw() * len(CHILDREN))]
        seconds *= CHILD_TIMES if key else 1.0
    line = draft.next_line()
    spot = _spot(draft, fault[rank])
    if kind == "beats":
        # Its validation has more batches than the others', and each of them is a heartbeat.
        part = Op("compute", seconds=seconds / 10, planted=True).at("validate", line)
        beats = [Op("beat").at("validate", line + 1)] if job.ranks[rank].beats else []
        fault[rank][spot:spot] = [part, *beats] * 10
    else:
        op = Op(kind, seconds=seconds, key=key, planted=True).at("pause", line)
        fault[rank].insert(spot, op)
    _accuse(draft, f"late {kind} {key}".rstrip(), rank, "late", True)
    job.look = "fresh"
    job.after = seconds * draw() * 1.1


def _paced(draft: Draft) -> bool:
    """The answers tell how long a step usually takes: by heartbeats, or by what is recorded."""
    ranks = draft.job.ranks
    if draft.warm < PACED_STEPS:
        return False
    return all(plan.beats and plan.stride == 1 and not plan.stock for plan in ranks)


# --- absent


def _absent(draft: Draft, fault: list[list[Op]]) -> None:
    kinds = list(ABSENT)
    kind = kinds[int(draft.random.random() * len(kinds))]
    if kind == "die" and draft.job.backend == "gloo":
        kind = "stop"  # gloo tells the others, who then stand in what the user does about it
    rank = _victim(draft)
    if kind in ("store", "flock") and draft.job.world == 1:
        kind = "sleep"
    ops = fault[rank]
    spot = _spot(draft, ops)
    ops[spot:spot] = _MAKERS.get(kind, _forever)(draft, kind, rank, fault)
    if kind == "child" and ops[spot].key:
        _accuse(draft, f"{ops[spot].key} child", rank, ABSENT[kind])
    else:
        _accuse(draft, kind, rank, ABSENT[kind])


def _forever(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    key = "still" if kind == "write" else ""
    place = "prepare"
    if kind == "child" and draft.job.ranks[rank].facts and draft.chance(BUSY_FOREVER):
        key = "busy"
    if kind == "raise":
        kind, place = "sleep", "wait_for_the_end"
    op = Op(kind, seconds=FOREVER, key=key, planted=True)
    return [op.at(place, draft.next_line())]


def _process(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    return [Op(kind, planted=True).at("prepare", draft.next_line())]


def _helper(draft: Draft, rank: int, *ops: Op) -> None:
    draft.extras[rank].append(Strand("helper", list(ops), None, False, root="help"))


def _held_lock(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    line = draft.next_line()
    _helper(
        draft,
        rank,
        Op("lock", key="table").at("help", line),
        Op(("sleep", "open", "child")[int(draft.random.random() * 3)], seconds=FOREVER).at(
            "help", line + 1
        ),
    )
    return [Op("lock", key="table", planted=True).at("prepare", line + 6)]


def _crossed_locks(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    line = draft.next_line()
    _helper(
        draft,
        rank,
        Op("lock", key="log").at("flush", line),
        Op("notify", key="held").at("flush", line + 1),
        Op("await", key="go").at("flush", line + 2),
        Op("lock", key="table").at("flush", line + 3),
    )
    return [
        Op("lock", key="table").at("prepare", line + 6),
        Op("await", key="held").at("prepare", line + 7),
        Op("notify", key="go").at("prepare", line + 8),
        Op("lock", key="log", planted=True).at("prepare", line + 9),
    ]


def _same_lock(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    line = draft.next_line()
    return [
        Op("lock", key="table").at("prepare", line),
        Op("lock", key="table", planted=True).at("prepare", line + 1),
    ]


def _acquire(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    """As the same lock, without with."""
    line = draft.next_line()
    return [
        Op("acquire", key="pool").at("prepare", line),
        Op("acquire", key="pool", planted=True).at("prepare", line + 1),
    ]


def _local(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    line = draft.next_line()
    return [Op(kind, key="nobody", planted=True).at("prepare", line)]


def _joins(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    line = draft.next_line()
    _helper(draft, rank, Op("sleep", seconds=FOREVER).at("help", line))
    return [Op(kind, key="helper", planted=True).at("prepare", line + 4)]


def _store(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    """It waits for a key that nobody sets."""
    return [Op("store_wait", key="never", planted=True).at("prepare", draft.next_line())]


def _flock(draft: Draft, kind: str, rank: int, fault: list[list[Op]]) -> list[Op]:
    """It sleeps with a file's lock, for which another rank of its host waits."""
    job = draft.job
    line = draft.next_line()
    host = job.ranks[rank].host
    others = [plan.rank for plan in job.ranks if plan.host == host and plan.rank != rank]
    if others:
        other = others[int(draft.random.random() * len(others))]
        waits = Op("flock", key="cache.lock").at("load_cache", line)
        free = Op("unflock", key="cache.lock").at("load_cache", line + 1)
        # Late enough for the other rank to have it first.
        fault[other][:0] = [Op("sleep", seconds=3 * job.usual).at("load_cache", line - 1)]
        fault[other][1:1] = [waits, free]
    fault[rank][:0] = [
        Op("flock", key="cache.lock").at("load_cache", line),
        Op("sleep", seconds=FOREVER, planted=True).at("load_cache", line + 2),
    ]
    return []


_Maker = Callable[["Draft", str, int, list[list[Op]]], list[Op]]
_MAKERS: dict[str, _Maker] = {
    "gil": _process,
    "stop": _process,
    "die": _process,
    "held lock": _held_lock,
    "crossed locks": _crossed_locks,
    "same lock": _same_lock,
    "get": _local,
    "await": _local,
    "condition": _local,
    "acquire": _acquire,
    "join": _joins,
    "result": _joins,
    "store": _store,
    "flock": _flock,
}

# --- something else


def _deviate(draft: Draft, fault: list[list[Op]], epochs: list[list[Op]]) -> None:
    draw = draft.random.random
    kind = DEVIATIONS[int(draw() * len(DEVIATIONS))]
    rank = _victim(draft)
    ops = fault[rank]
    spots = [index for index, op in enumerate(ops) if op.kind in ("call", "issue")]
    if kind in ("other", "shape", "dtype", "order", "crossed groups", "extra") and not spots:
        kind = "skip"
    if kind == "order":
        pairs = [
            (one, other)
            for one, other in pairwise(spots)
            if ops[one].group == ops[other].group and not _alike(ops[one], ops[other])
        ]
        if pairs:
            one, other = pairs[int(draw() * len(pairs))]
            ops[one], ops[other] = _planted(ops[other]), _planted(ops[one])
        else:
            kind = "other"
    elif kind == "crossed groups":
        pairs = [
            (one, other)
            for one, other in pairwise(spots)
            if ops[one].group != ops[other].group and ops[one].kind == ops[other].kind == "call"
        ]
        if pairs:
            one, other = pairs[int(draw() * len(pairs))]
            ops[one], ops[other] = _planted(ops[other]), _planted(ops[one])
        else:
            kind = "shape"
    if kind in ("other", "shape", "dtype", "extra"):
        spot = spots[int(draw() * len(spots))]
        op = ops[spot]
        if kind == "other":
            name = "broadcast" if op.name != "broadcast" else "all_reduce"
            ops[spot] = op.changed(name=name, shape=op.shape or (4,), dtype="Float", planted=True)
        elif kind == "shape":
            ops[spot] = op.changed(shape=(*op.shape, 3), planted=True)
        elif kind == "dtype":
            dtype = "Int" if op.dtype != "Int" else "Half"
            ops[spot] = op.changed(dtype=dtype, planted=True)
        else:
            loss = Op("call", op.group, "all_reduce", (7,), "Float", planted=True)
            ops.insert(spot, loss.at("log_loss", draft.next_line()))
    elif kind in ("skip", "swallow"):
        _skip(draft, kind, ops)
    elif kind == "skip new_group":
        line = draft.next_line()
        for other, each in enumerate(fault):
            op = Op("new_group", planted=True).at("setup", line)
            if other != rank:
                each.insert(0, op)
            elif draw() < 0.5:
                each.insert(0, Op("compute", planted=True, seconds=0.01).at("setup", line))
    elif kind == "key":
        # The others wait for a key that this rank should set; it goes on without.
        line = draft.next_line()
        for other, each in enumerate(fault):
            if other != rank:
                each.insert(0, Op("store_wait", key="ready", planted=True).at("setup", line))
    _accuse(draft, kind, rank, "deviates")


def _planted(op: Op) -> Op:
    return op.changed(planted=True)


def _alike(one: Op, other: Op) -> bool:
    return (one.name, one.shape, one.dtype) == (other.name, other.shape, other.dtype)


def _skip(draft: Draft, kind: str, ops: list[Op]) -> None:
    """Leave out one operation (with its wait), or all that is left of the step."""
    spot = _spot(draft, ops)
    marker = Op("compute", seconds=draft.job.usual / 20, planted=True)
    marker.at("skip", draft.next_line())
    if kind == "swallow":
        ops[spot:] = [marker]
        return
    op = ops[spot]
    ops[spot] = marker
    if op.key and op.kind != "call":
        for index in range(spot + 1, len(ops)):
            if ops[index].kind in ("wait", "poll") and ops[index].key == op.key:
                del ops[index]
                break
