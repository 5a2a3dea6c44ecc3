"""What judges have found, as plain data. :mod:`sentences` says it in words.

Ranks are numbers of :class:`~workerserver.cluster.judge.job.Job`: workers whose rank nobody knows
have numbers from :data:`NAMELESS` on. Lists of ranks are the same objects wherever they are the
same lists, because each of them is put into words only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from workerserver.cluster.judge.chains.facts import Deadlock, Knot, Told
from workerserver.cluster.judge.reasons import Reason
from workerserver.cluster.model import Child, Frame
from workerserver.cluster.read.progress import Sign

__all__ = [
    "NAMELESS",
    "Absent",
    "Accusation",
    "ActingThread",
    "Apart",
    "AtSteps",
    "Awaited",
    "Claim",
    "Crossed",
    "Crowd",
    "Differs",
    "Doubt",
    "Endless",
    "Entered",
    "Everywhere",
    "Evidence",
    "FailedQuestion",
    "GilHeld",
    "GoesOn",
    "Gone",
    "IdleChild",
    "InCall",
    "InKernel",
    "Issued",
    "KeepsGil",
    "LastHeartbeat",
    "LastOperation",
    "Made",
    "Meeting",
    "Moved",
    "NoEvidence",
    "NoMajority",
    "NoSign",
    "NoStep",
    "NobodyAnswered",
    "NothingIssued",
    "Outside",
    "Overdue",
    "Owed",
    "Parties",
    "Process",
    "Remark",
    "Ring",
    "Silent",
    "SilentButMoving",
    "Slow",
    "StacksAlone",
    "Standing",
    "Tangled",
    "Undecided",
    "Unproven",
    "Unseen",
    "UsualWait",
    "WaitsIn",
    "known_rank",
]

#: Workers whose rank nobody knows are numbered from here on.
NAMELESS = 1 << 20

Ranks = Sequence[int]


def known_rank(number: int) -> int | None:
    return number if number < NAMELESS else None


@dataclass(frozen=True, slots=True)
class Gone:
    """A rank without a usable answer."""

    rank: int
    reason: str
    text: str
    address: str | None = None
    host: str | None = None
    pid: int | None = None
    state: str | None = None
    """The kernel's letter for what process *pid* does, if that is told."""


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """*ranks* have entered *operation* of *group* and wait there, for *age* seconds if that is
    known."""

    operation: str
    """With its number: ``all_reduce #6``."""
    group: str
    ranks: Ranks
    age: float | None = None
    numbered: bool = True
    """It is a collective; else a send or a receive."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """*ranks*, most of the job, that are in the same place: in *call*, or in different collectives
    if that is None. *together*: they share a stack, which is at *location*."""

    ranks: Ranks
    call: str | None = None
    together: bool = False
    location: Frame | None = None


# --- claims: what a rank is accused of ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Issued:
    """It issued *own* as number *seq* of *group*, and *others* issued *theirs*. *steps*: its own
    step and the others', if its own is ahead."""

    group: str
    seq: int
    own: str
    others: Ranks
    theirs: str
    steps: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Ring:
    """It is one of the ranks that wait for each other, point-to-point, in *waits*."""

    waits: Sequence[Entered]


@dataclass(frozen=True, slots=True)
class Crossed:
    """It waits in *own*, and the ranks of *other* wait for it there: two groups were taken in
    different orders."""

    own: Entered
    other: Entered


@dataclass(frozen=True, slots=True)
class Meeting:
    """*inside* wait for all ranks in *call*, and *outside* wait in *operation*. *is_inside*: the
    accused rank is one of *inside*."""

    call: str | None
    inside: Ranks
    outside: Ranks
    operation: Entered
    is_inside: bool


@dataclass(frozen=True, slots=True)
class Made:
    """It made the process group *name* of *own*, and the ranks *others* made it of *theirs*."""

    name: str
    own: Ranks
    others: Ranks
    theirs: Ranks


@dataclass(frozen=True, slots=True)
class Differs:
    """It waits in *own*, and the ranks of *other* wait in that: calls that take the same ranks."""

    own: Entered
    other: Entered


@dataclass(frozen=True, slots=True)
class Owed:
    """It waits in *own*, and owes the ranks of *wait* the other side of a send or a receive."""

    wait: Entered
    own: Entered


@dataclass(frozen=True, slots=True)
class Absent:
    """It has not entered what others wait in. *silent*: its recorder gave no answer. *steps*: its
    own step and the others', if its own is ahead."""

    wait: Entered
    silent: bool = False
    steps: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Silent:
    """It does not answer, for the reason of a failure. *wait*: where others wait for it. *state*:
    the kernel's letter for what its process does, if that is told."""

    failure: str
    wait: Entered | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True)
class KeepsGil:
    """One of its threads keeps the GIL."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Apart:
    """It is in another place than the crowd."""

    crowd: Crowd


@dataclass(frozen=True, slots=True)
class NoStep:
    """It has made no step for *age* seconds. *usual*: how long a step takes, if that is known."""

    age: float
    step: int | None
    usual: float | None = None


Claim = (
    Issued
    | Ring
    | Crossed
    | Meeting
    | Made
    | Differs
    | Owed
    | Absent
    | Silent
    | KeepsGil
    | Apart
    | NoStep
    | Deadlock
    | Knot
)  # fmt: skip


# --- evidence: what a claim rests on ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parties:
    """Who issued what as number *seq* of *group*."""

    group: str
    seq: int
    parties: Sequence[tuple[Ranks, str]]


@dataclass(frozen=True, slots=True)
class NoMajority:
    """Of two sides neither is the larger one."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """Ranks that wait for the accused one."""

    wait: Entered


@dataclass(frozen=True, slots=True)
class WaitsIn:
    """*absent*: the ranks that its ranks wait for, if that matters."""

    wait: Entered
    absent: Ranks = ()


@dataclass(frozen=True, slots=True)
class InCall:
    """*ranks* are in *call*, which takes all ranks."""

    ranks: Ranks
    call: str | None


@dataclass(frozen=True, slots=True)
class LastOperation:
    """The last operation of *group* that it has issued. *ended* is None if no recorder tells."""

    group: str
    operation: str
    ended: bool | None


@dataclass(frozen=True, slots=True)
class NothingIssued:
    """It has issued no operation of *group*."""

    group: str


@dataclass(frozen=True, slots=True)
class FailedQuestion:
    """*question* None: no question has an answer."""

    question: str | None
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Process:
    """Its process *pid* does what the kernel's letter *state* says."""

    pid: int
    state: str


@dataclass(frozen=True, slots=True)
class StacksAlone:
    """No recorder tells who waits."""


@dataclass(frozen=True, slots=True)
class ActingThread:
    """*own*: the newest frames in the user's code, newest first; *more* were left out. *newest*: of
    all frames, None without any. *name*: of the thread, None of the main thread."""

    own: Sequence[Frame]
    more: int
    newest: Frame | None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class InKernel:
    """Where in the kernel its main thread is."""

    wchan: str


@dataclass(frozen=True, slots=True)
class IdleChild:
    """The process of its own that it waits for doesn't work, for *seconds* at least; None: one look
    alone tells that."""

    child: Child
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Moved:
    """*still*: at the same line in two rounds that are *seconds* apart."""

    still: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class GilHeld:
    """*thread*: its name; *holds*: whether it is known which thread holds the GIL."""

    seconds: float | None
    holds: bool
    thread: str | None
    location: Frame | None


@dataclass(frozen=True, slots=True)
class LastHeartbeat:
    """*job*: the lowest and the highest step of the job, if they differ."""

    step: int
    age: float | None
    job: tuple[int, int] | None


Evidence = (
    Parties
    | NoMajority
    | Awaited
    | WaitsIn
    | InCall
    | LastOperation
    | NothingIssued
    | FailedQuestion
    | Process
    | StacksAlone
    | ActingThread
    | InKernel
    | IdleChild
    | Moved
    | GilHeld
    | LastHeartbeat
    | Told
)


@dataclass(slots=True)
class Accusation:
    """*rank* is accused for *reason*; *claim* has the facts of it, *evidence* what they rest on."""

    rank: int
    reason: Reason
    claim: Claim
    process_group: str | None = None
    collective: str | None = None
    seq: int | None = None
    evidence: list[Evidence] = field(default_factory=list)


# --- doubts: why there may be more than the accusations, or nothing at all ----------------------


@dataclass(frozen=True, slots=True)
class NobodyAnswered:
    """No rank gave a usable answer."""


@dataclass(frozen=True, slots=True)
class Endless:
    """All ranks but *absent* have entered *operation*, which does not end. *whole*: these are all
    ranks of the operation, not only all that are known."""

    operation: Entered
    whole: bool
    absent: Ranks = ()


@dataclass(frozen=True, slots=True)
class SilentButMoving:
    """*rank* does not answer, but the job goes on."""

    rank: int
    failure: str


@dataclass(frozen=True, slots=True)
class Outside:
    """*ranks* may keep *crowd* waiting, or only be slow."""

    ranks: Ranks
    crowd: Crowd


@dataclass(frozen=True, slots=True)
class Everywhere:
    """Every rank is in the crowd."""

    crowd: Crowd


@dataclass(frozen=True, slots=True)
class NoEvidence:
    """Nothing tells whether the job goes on. *rounds*: how many looks there were; 0 if nobody was
    asked, and only dumps were read."""

    rounds: int


Hindrance = Literal[
    "undated",
    "moves",
    "changes",
    "computes",
    "writes",
    "child",
    "threads",
    "early",
    "late",
    "asleep",
    "waits",
    "holder",
    "majority",
    "unseen",
    "missing",
]
"""Why a rank that has not come isn't accused. moves: it counts on. changes: its stack does. child:
it waits for a process of its own that works, or may work. threads: so it does for threads of its
own. early: its step is no older than usual. late: it pauses, for no longer than a pause may last.
asleep: so it does, and another one does, too, and nothing tells how long a step takes. waits: it
may wait for another rank itself. holder: one of its other threads may have the file lock, and may
give it back.
majority: most ranks are where it is. unseen: where it is can't be told. missing: no
worker of it is known, so nobody has seen it stand still: it may have ended, or hang, or work."""


@dataclass(frozen=True, slots=True)
class Unproven:
    """*ranks* have not come to *wait* (None: to where others stand), but that proves no fault of
    theirs, for the reason *why*. *place*: where they are, in *call*. *child*: the process that
    works for the one rank."""

    ranks: Ranks
    why: Hindrance
    wait: Entered | None
    place: Frame | None = None
    call: str = ""
    child: Child | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Nothing has moved for *seconds*. *places*: who is where, and in which call."""

    seconds: float
    places: Sequence[tuple[Ranks, str, Frame | None]]


@dataclass(frozen=True, slots=True)
class Overdue:
    """*ranks* have made no step for *age* seconds, and a step usually takes *usual*."""

    ranks: Ranks
    age: float
    usual: float | None


@dataclass(frozen=True, slots=True)
class NoSign:
    """Nothing shows that *ranks*, which belong together, go on; of other ranks something does."""

    ranks: Ranks


@dataclass(frozen=True, slots=True)
class Undecided:
    """Ranks issued different operations, and it isn't known what the other ranks issued."""

    parties: Parties


@dataclass(frozen=True, slots=True)
class Tangled:
    """Ranks wait for each other in *waits*, collectives and point-to-point operations."""

    waits: Sequence[Entered]


Doubt = (
    NobodyAnswered
    | Endless
    | SilentButMoving
    | Outside
    | Everywhere
    | NoEvidence
    | Unproven
    | Standing
    | Overdue
    | NoSign
    | Undecided
    | Tangled
)


# --- what shows that the job goes on ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GoesOn:
    """*ranks* go on, as *sign* shows."""

    sign: Sign
    ranks: Ranks


# --- what was not looked at ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unseen:
    """What *ranks* don't tell. *seconds*: by how much their clocks differ."""

    kind: str
    """A key of ``sentences.UNSEEN``."""
    ranks: Ranks
    seconds: float = 0.0


# --- remarks: what is said of a healthy job -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slow:
    """*rank* came last on *share* of *occasions*, *late* seconds after the others. An occasion is
    an *operation* of *group*, or a step with several. *waits*: only those count on which a rank
    kept others waiting. *basis*: whose clock says so, as in :mod:`slow.arrivals`; "queue": when the
    operation was given to a GPU."""

    rank: int
    group: str
    late: float
    occasions: int
    operations: int
    operation: str
    share: float
    basis: Literal["clock", "gpu", "heartbeat", "steps", "queue"] = "clock"
    waits: bool = False


@dataclass(frozen=True, slots=True)
class AtSteps:
    """The lowest and the highest step of the job."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class UsualWait:
    """A wait that lasts no longer than usual."""

    wait: Entered
    age: float


Remark = Slow | AtSteps | UsualWait
