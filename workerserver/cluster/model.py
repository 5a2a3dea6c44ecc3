"""What is known of a job's ranks: plain data that every part of the cluster side shares.

Nothing here does I/O. A text is as the worker sent it. Code that prints a text has to escape it
(``cli.text``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

if TYPE_CHECKING:
    from workerserver.job.identity import Identity

__all__ = [
    "EVERYTHING",
    "MAX_HOST_WORKERS",
    "Child",
    "Failure",
    "Frame",
    "Health",
    "Hold",
    "Own",
    "Part",
    "RankState",
    "RoundLike",
    "Thread",
    "WaitKind",
    "WaitsFor",
    "Worker",
    "cores_used",
]

#: Workers of one host. What claims to be more is a mistake or a lie.
MAX_HOST_WORKERS = 4096

FailureReason = Literal[
    "unreachable", "timeout", "too large", "malformed", "refused", "missing", "lied"
]
"""refused: the HTTP status is an error. missing: the worker has no such handler. lied: the worker
answered as another rank."""

FAILURE_REASONS: tuple[FailureReason, ...] = get_args(FailureReason)

Kind = Literal["workerserver", "torch", "dump", "unknown"]
"""dump: nobody was asked; torch has left a file with what its recorder held."""
Source = Literal[
    "argument", "glob", "template", "hosts file", "store", "torchrun", "slurm", "dns", "process"
]


@dataclass(frozen=True, slots=True)
class Worker:
    """Where one rank is asked. *address* is a Unix socket's path or ``host:port``. It is empty for
    a rank that has to exist but is registered nowhere.

    *rank* is the rank that discovery found, None if it found none. *assumed*: the rank was only
    counted (the lines of a hosts file), so the rank that the worker itself tells wins. *tls*: the
    worker is asked over TLS.

    *collector*: this is no rank but a collector, which answers for the ranks of its host: for
    *ranks*, where they are known. *via*: the collector through which this worker is asked; the
    *address* is then one on the collector's host.

    *downgraded*: its entry in the job's store says http, and others of the job say https.

    *known*: who the worker is, from its record or from what its process was started with.
    """

    address: str
    unix: bool
    rank: int | None = None
    host: str | None = None
    source: Source = "argument"
    assumed: bool = False
    tls: bool = False
    collector: bool = False
    ranks: tuple[int, ...] = ()
    via: Worker | None = None
    downgraded: bool = False
    known: Identity | None = field(default=None, compare=False, repr=False)

    def __hash__(self) -> int:
        # Workers are keys of the tables of answers. To hash all fields would add a twentieth to the
        # cost of an answer.
        return hash((self.address, self.rank))

    @property
    def from_store(self) -> bool:
        """Whether only the job's TCPStore says so, into which many can write."""
        return not self.unix and self.source in ("store", "torchrun")

    @property
    def name(self) -> str:
        if self.rank is None:
            return self.address
        return f"rank {self.rank} ({self.address})" if self.address else f"rank {self.rank}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a question to a worker has no answer. *text* is one line for people, not escaped."""

    reason: FailureReason
    text: str


#: How the file of a native frame begins, among the frames to show.
NATIVE = "native "


class Frame(NamedTuple):
    """One frame of a stack; *line* is None where the interpreter doesn't know it."""

    file: str
    line: int | None
    function: str


WaitKind = Literal[
    "lock",
    "rlock",
    "condition",
    "event",
    "semaphore",
    "barrier",
    "thread",
    "process",
    "queue",
    "future",
    "gil",
    "import_lock",
    "store",
    "operation",
    "rendezvous",
    "file_lock",
    "descriptor",
    "mutex",
]


@dataclass(frozen=True, slots=True)
class WaitsFor:
    """What a thread waits for, as its worker tells it (docs/protocol.md); None: not known.

    *frame*: the number of the thread's frame that tells it. *item*: the address of the lock or the
    like. *holder*: the native id of the thread that surely holds it. *joined*: that of the thread
    that is joined. *pid*: the process that is waited for, or that holds the file lock. *op*: the
    operation of torch.distributed, with *peer*, the rank on the other side, and *group*, the name
    of its process group for people.
    """

    kind: WaitKind
    source: str | None = None
    frame: int | None = None
    item: str | None = None
    holder: int | None = None
    joined: int | None = None
    name: str | None = None
    pid: int | None = None
    op: str | None = None
    peer: int | None = None
    group: str | None = None
    ranks: tuple[int, ...] = ()
    tag: int | None = None
    keys: tuple[str, ...] = ()
    path: str | None = None
    target: str | None = None
    descriptor: int | None = None
    syscall: str | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A lock that a thread surely holds. *frame*: the number of the frame that took it."""

    kind: str
    item: str
    frame: int | None = None


@dataclass(frozen=True, slots=True)
class NativeFrame:
    """One frame of C or C++. *file* and *build_id*: of the code; None if no file holds it.
    *offset*: the address in that file. *exact*: the thread is at this address; else a call returns
    there. *python*: the first Python frame of the thread that it stands for, and how many."""

    file: str | None
    build_id: str | None
    offset: int
    exact: bool
    python: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Native:
    """A thread's native frames, newest first. *end*: ``whole``, ``running``, or why there are no
    more. *matched*: their *python* says where the Python frames belong. *shown*: native and Python
    frames as one stack, once the functions have names. *function*: the innermost native one that
    says what the thread does, if it has a name."""

    frames: tuple[NativeFrame, ...]
    end: str
    matched: bool
    shown: tuple[Frame, ...] = ()
    function: str | None = None


@dataclass(frozen=True, slots=True)
class Thread:
    """One Python thread. *frames* are newest first. *holds_gil*: the thread held the GIL when its
    stack was read.

    From a worker that only gives text, *name*, *state* and *wchan* are None, and *main* is a guess:
    the oldest frame is a module's. *waits*, *holds* and *switches* (how often the kernel has
    stopped running it) are facts of one process: a rank whose stacks are another rank's has none.
    *beats*: it made the last heartbeat. *native*: its native frames, if they were asked for; a
    thread that Python doesn't know has only these.
    """

    frames: tuple[Frame, ...]
    name: str | None = None
    ident: int | None = None
    native_id: int | None = None
    state: str | None = None
    wchan: str | None = None
    main: bool = False
    holds_gil: bool = False
    truncated: bool = False
    unstable: bool = False
    waits: WaitsFor | None = None
    holds: tuple[Hold, ...] = ()
    switches: int | None = None
    beats: bool = False
    native: Native | None = field(default=None, compare=False)

    @property
    def shown(self) -> tuple[Frame, ...]:
        """What is shown of its stack: with native frames between Python's, if they are known."""
        return self.native.shown if self.native is not None else self.frames


@dataclass(frozen=True, slots=True)
class Child:
    """A process that a worker has started. *state*: the kernel's letter. *processes*: how many it
    is, with its own children and theirs; *states*: the letters of all of these. *cpu_s*: their
    processor time, in seconds. *io_bytes*: what they have read and written; None if the kernel
    doesn't tell the worker."""

    pid: int
    name: str
    state: str
    processes: int = 1
    states: str = ""
    cpu_s: float = 0.0
    io_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Own:
    """What a rank's own dump tells beside its stacks. *mode*: how it was taken. *namespace*: the
    one of its process ids, a number that means something only on its host. *children*: the
    processes that it has started; empty also if its worker does not tell them."""

    mode: str | None = None
    pid: int | None = None
    namespace: int | None = None
    children: tuple[Child, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """``GET /healthz``; a field is None if the worker didn't tell it. Ages and waits are in
    seconds, and so is *cpu_s*, the processor time of the process. *step_thread*: the ident of the
    thread that called heartbeat(). From *job* to *started*, it is the process's Identity
    (:mod:`workerserver.job.identity`)."""

    status: str
    pid: int | None = None
    rank: int | None = None
    uptime_s: float | None = None
    step: int | None = None
    step_age_s: float | None = None
    gil_wait_s: float | None = None
    gil_wait_max_s: float | None = None
    gil_unavailable_s: float | None = None
    cpu_s: float | None = None
    rss_bytes: int | None = None
    step_median_s: float | None = None
    job: str | None = None
    job_from: str | None = None
    agent: str | None = None
    restart: int | None = None
    world_size: int | None = None
    local_rank: int | None = None
    local_world_size: int | None = None
    group_rank: int | None = None
    host: str | None = None
    started: float | None = None
    step_thread: int | None = None
    #: It tells more than this client reads: the worker's version is newer.
    newer: bool = False


def cores_used(now: Health | None, before: Health | None) -> float | None:
    """How many cores a process kept busy between two rounds, by its own clocks. None if its clocks
    don't tell, or if it isn't the same process."""
    if now is None or before is None or now.pid != before.pid:
        return None
    if now.cpu_s is None or before.cpu_s is None or now.uptime_s is None or before.uptime_s is None:
        return None
    passed, used = now.uptime_s - before.uptime_s, now.cpu_s - before.cpu_s
    return used / passed if passed > 0 and used >= 0 else None


Part = Literal["health", "stacks", "flight"]
"""What workers are asked for."""
EVERYTHING: Collection[Part] = ("health", "stacks", "flight")


@dataclass(slots=True)
class RankState:
    """All that was learned of one rank in one round.

    *rank* is the rank that discovery found, else the rank that the worker tells; None if neither is
    known. *failures* has the reason for each question without an answer, by the question's name
    (``healthz``, ``digest``, ``stacks``, ``fr_summary``, ``flight``). A rank that answered nothing
    at all has failures only, and *responded* is False.
    """

    worker: Worker
    rank: int | None = None
    kind: Kind = "unknown"
    health: Health | None = None
    digest: str | None = None
    main_digest: str | None = None
    mode: str | None = None
    """How the stacks were taken: gil, nogil, kernel; None from a stock torch worker."""
    threads: Sequence[Thread] = ()
    own: Own | None = None
    """*threads* are the rank's own, of this round. Else they may be those of another rank, or of
    another round, with the same stacks."""
    flight_summary: Mapping[str, Any] | None = None
    flight: Mapping[str, Any] | None = None
    """``fr_trace_json``, parsed: of the first recorder that was asked for."""
    more_flights: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same of the process's other recorders, by backend."""
    clock_ahead_s: float | None = None
    """By how much the worker's clock is ahead of this machine's, as far as whole seconds tell. None
    if the worker told no time, or if a collector answered for it."""
    recorders: frozenset[str] | None = None
    """Which handlers of recorders the worker has; None if it was not asked."""
    failures: dict[str, Failure] = field(default_factory=dict)
    responded: bool = False
    bytes_received: int = 0
    inferred: str | None = None
    """From what the rank was inferred, if nobody told it."""
    peer_pid: int | None = None
    """Who listens on its Unix socket, as the kernel tells it."""
    peer_state: str | None = None
    """The kernel's letter for what that process does, if it does not answer."""

    @property
    def recorded(self) -> bool:
        """Some recorder has answered."""
        answers = (self.flight, self.flight_summary)
        return bool(self.more_flights) or any(each is not None for each in answers)


class RoundLike(Protocol):
    """What readers and judges need of one look at all ranks; ``ask.rounds.Round`` is one."""

    @property
    def states(self) -> Sequence[RankState]: ...
    @property
    def started(self) -> float:
        """Seconds since the epoch."""
