"""A job as data: its groups, its ranks, and what each of their threads does.

An operation is one line of the user's code. All times are seconds. Kinds of operations:

beat                heartbeat()
compute sleep data write child open
                    takes ``seconds``; ``inf``: for good. ``data``: a DataLoader's next batch.
                    ``write``: a checkpoint (``key``: "io" bytes grow, "cpu" processor time grows,
                    "still" neither does). ``child``: a subprocess (``key``: "busy" it computes,
                    "copies" it reads and writes, "" neither). ``open``: of a pipe
gil stop die        the GIL is kept; SIGSTOP; SIGKILL
call                a collective. Blocks on gloo; on NCCL it is put on the stream
issue               the same with async_op=True; ``key`` names the work
wait poll           for the work ``key``: work.wait(), or a loop around is_completed()
sync                waits for the rank's stream; ``name``: synchronize, item, event
send recv isend irecv batch
                    with ``peer``, a global rank; ``batch`` has ``parts``
monitored new_group store_set store_wait
                    ``monitored_barrier``; ``new_group`` (all ranks come, through the store)
lock unlock acquire get put await notify condition join result
                    between the threads of a rank; ``key`` names the lock, queue, event or thread
flock unflock       between the ranks of a host
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

__all__ = [
    "FOREVER",
    "Group",
    "Job",
    "Op",
    "Plant",
    "RankPlan",
    "Strand",
    "from_dict",
    "text",
    "to_dict",
]

FOREVER = inf

Place = tuple[str, int]
"""The user's function and line."""


@dataclass(slots=True, eq=False)
class Op:
    kind: str
    group: int = -1
    name: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = "Float"
    seconds: float = 0.0
    peer: int = -1
    key: str = ""
    parts: tuple[Op, ...] = ()
    place: Place = ("step", 0)
    planted: bool = False
    """It is, or follows from, the job's fault: the fault begins where it is reached."""

    def at(self, function: str, line: int) -> Op:
        self.place = (function, line)
        return self

    def changed(self, **changes: object) -> Op:
        return replace(self, **changes)  # type: ignore[arg-type]

    def text(self) -> str:
        words = [self.name or self.kind]
        if self.kind in ("issue", "sync"):
            words.insert(0, self.kind)
        if self.group >= 0:
            words.append(f"g{self.group}")
        if self.shape and self.kind in ("call", "issue"):
            words.append(f"{self.dtype}{list(self.shape)}")
        if self.peer >= 0:
            words.append(f"with {self.peer}")
        if self.key:
            words.append(repr(self.key))
        if self.seconds:
            words.append("for ever" if self.seconds == FOREVER else f"{self.seconds:.3g}s")
        if self.parts:
            words.append("(" + ", ".join(part.text() for part in self.parts) + ")")
        return " ".join(words) + (" <== PLANTED" if self.planted else "")


@dataclass(slots=True)
class Group:
    """*number*: torch's own of this group. *name*: what torch calls it; a group that was destroyed
    and made again has the name and the description of the one before."""

    number: int
    desc: str
    ranks: tuple[int, ...]
    backend: str = "gloo"
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or str(self.number)


@dataclass(slots=True)
class Strand:
    """A thread. *loop*: the operation to go on with after the last one; None: it ends.

    *acting*: the job's work is done here, so a hang of it is a hang of the job. Others are there
    for noise: idle consumers, loggers.
    """

    name: str
    ops: list[Op]
    loop: int | None = None
    acting: bool = True
    root: str = "main"
    """The user's function that the thread runs."""


@dataclass(slots=True)
class RankPlan:
    """*stock*: torch's own server. *served*: it has a server at all. *named*: its environment has
    its rank. *beats*: it calls heartbeat(). *ring*: entries of the flight recorder, 0 for
    none. *clock*: by how much its wall clock is wrong. *jitter*: of its steps. *stride*: what a
    step adds to the number that it tells heartbeat(): ranks may count samples of their own.
    *facts*: its server tells what threads wait for, and which locks they hold. *timing*:
    TORCH_NCCL_ENABLE_TIMING; without it NCCL's recorder never says "started"."""

    rank: int
    strands: list[Strand] = field(default_factory=list)
    stock: bool = False
    served: bool = True
    ring: int = 2000
    clock: float = 0.0
    host: int = 0
    named: bool = True
    beats: bool = True
    stride: int = 1
    timing: bool = False
    facts: bool = False
    jitter: tuple[float, ...] = (1.0,)


@dataclass(slots=True)
class Plant:
    """A fault. *reason*: its class, in the simulator's words. *late*: it ends by itself."""

    kind: str
    rank: int
    reason: str = ""
    late: bool = False


@dataclass(slots=True)
class Job:
    """*usual*: how long a step takes. *look*: "settled" (long after the hang), "fresh" (just after
    the fault), "running". *gap*: seconds between the two looks. *evidence*: what can be seen
    of it, in words."""

    seed: int
    world: int
    backend: str
    layout: str
    groups: list[Group]
    ranks: list[RankPlan]
    plants: list[Plant] = field(default_factory=list)
    usual: float = 1.0
    look: str = "running"
    after: float = 10.0
    gap: float = 2.0
    evidence: str = ""


def to_dict(job: Job) -> dict[str, Any]:
    """As JSON can hold it."""
    return asdict(job)


def from_dict(value: dict[str, Any]) -> Job:
    """What :func:`to_dict` made, after a way through JSON."""

    def op(fields: dict[str, Any]) -> Op:
        fields = {**fields, "shape": tuple(fields["shape"]), "place": tuple(fields["place"])}
        return Op(**{**fields, "parts": tuple(map(op, fields["parts"]))})

    def strand(fields: dict[str, Any]) -> Strand:
        return Strand(**{**fields, "ops": list(map(op, fields["ops"]))})

    def plan(fields: dict[str, Any]) -> RankPlan:
        strands = list(map(strand, fields["strands"]))
        return RankPlan(**{**fields, "strands": strands, "jitter": tuple(fields["jitter"])})

    return Job(
        **{
            **value,
            "groups": [
                Group(**{**each, "ranks": tuple(each["ranks"])}) for each in value["groups"]
            ],
            "ranks": list(map(plan, value["ranks"])),
            "plants": [Plant(**each) for each in value["plants"]],
        }
    )


def text(job: Job) -> str:
    """The job as a short program. Ranks that do the same are listed once."""
    lines = [
        f"seed {job.seed}: {job.world} ranks, {job.backend}, {job.layout}; usual step"
        f" {job.usual:.3g}s; {job.evidence}",
        f"looks: {job.look}, {job.after:.3g}s, then {job.gap:.3g}s later",
    ]
    for plant in job.plants:
        late = ", ends by itself" if plant.late else ""
        lines.append(f"fault: {plant.kind} in rank {plant.rank} ({plant.reason}{late})")
    lines += [f"g{g.number} {g.desc} {g.backend} {list(g.ranks)}" for g in job.groups]
    alike: dict[tuple[str, ...], list[int]] = {}
    for plan in job.ranks:
        told = f"{'stock' if plan.stock else 'ours' if plan.served else 'no server'}"
        told += "" if plan.named else " that doesn't know its rank"
        mine = [f"  {told}, recorder {plan.ring}, clock {plan.clock:+.3g}s, host {plan.host}"]
        for strand in plan.strands:
            mine.append(f"  {strand.name}{'' if strand.acting else ' (idle)'}:")
            mine += _folded(strand)
        alike.setdefault(tuple(mine), []).append(plan.rank)
    for body, ranks in alike.items():
        lines += [f"ranks {ranks}:", *body]
    return "\n".join(lines)


def _folded(strand: Strand) -> Iterable[str]:
    """Runs of equal lines as one, with their number; and so runs of equal steps."""
    steps: list[tuple[str, ...]] = [()]
    for index, op in enumerate(strand.ops):
        if index == strand.loop:
            steps += [("(again from here, for ever)",), ()]
        if op.kind == "beat" or (strand.loop and op is strand.ops[strand.loop]):
            steps.append(())
        steps[-1] = (*steps[-1], op.text())
    before: tuple[str, ...] | None = None
    times = 0
    for step in [*filter(None, steps), ()]:
        if step == before:
            times += 1
            continue
        if before:
            yield f"    {f'{times} x ' if times > 1 else ''}{'; '.join(before)}"
        before, times = step, 1
