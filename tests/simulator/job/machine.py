"""Runs a job in simulated time.

Events are (time, number, thread): the thread goes on at that time, until it blocks or an operation
takes time. Nothing is random here. Blocked threads wait in a list of what they wait for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any

from .program import Group, Job, Op, RankPlan, Strand

__all__ = [
    "LATENCY",
    "MAX_EVENTS",
    "EndlessError",
    "Entry",
    "Machine",
    "Meeting",
    "Rank",
    "Thread",
]

#: Seconds that an operation takes after the last rank has come.
LATENCY = 0.002
#: Heartbeats that are remembered.
BEATS = 65
#: A job that goes on in so many events, or whose loop takes no time, is none that anybody made.
MAX_EVENTS = 150_000
#: What NCCL records at the end of a batch.
COALESCED = Op("coalesced", name="coalesced")
#: Operations that take time, by a clock or for ever.
_TIMED = ("compute", "sleep", "data", "write", "child", "open")


class EndlessError(ValueError):
    """The job makes more than its share of events."""


class Meeting:
    """Something for which several ranks have to come: a collective, a send with its recv, a
    new_group. It ends once *need* have come and all bring the same *sign*."""

    __slots__ = ("came", "done", "entries", "need", "ranks", "waiters", "what")

    def __init__(self, what: tuple[Any, ...], ranks: tuple[int, ...], need: int) -> None:
        self.what = what
        self.ranks = ranks
        self.need = need
        self.came: dict[int, Any] = {}
        self.done = inf
        self.entries: list[Entry] = []
        self.waiters: list[Thread] = []

    @property
    def clash(self) -> bool:
        """All have come, with different things."""
        return len(self.came) == self.need and self.done == inf

    def missing(self) -> list[int]:
        return [rank for rank in self.ranks if rank not in self.came]


class Entry:
    """One operation in a rank's recorder, or on its stream.

    *parts*: of what closes a batch of NCCL's. *inner*: a part of one; NCCL's recorder never hears
    that it has started or ended.
    """

    __slots__ = (
        "created", "done", "group", "inner", "meeting", "number", "op", "op_id", "order",
        "p2p_seq", "parts", "rank", "seq", "started", "thread",
    )  # fmt: skip

    def __init__(self, rank: Rank, group: Group, op: Op, seq: int, p2p_seq: int, now: float):
        self.rank = rank
        self.group = group
        self.op = op
        self.seq = seq
        self.p2p_seq = p2p_seq
        self.created = now
        self.started = inf
        self.done = inf
        self.number = -1
        self.op_id = 0
        self.order = 0
        self.thread: Thread | None = None
        self.meeting: Meeting | None = None
        self.inner = False
        self.parts: list[Entry] = []


class Thread:
    """*state*: "on" (an event will come), "blocked", "forever", "ended", "frozen" (its process was
    stopped or is dead, or another thread has the GIL)."""

    __slots__ = (
        "entry", "moved", "number", "op", "pc", "rank", "since", "state", "strand", "turned",
        "turns", "until", "wants", "works",
    )  # fmt: skip

    def __init__(self, rank: Rank, strand: Strand, number: int) -> None:
        self.rank = rank
        self.strand = strand
        self.number = number
        self.pc = 0
        self.turns = 0
        self.turned = -1.0
        self.op: Op | None = None
        self.state = "on"
        self.since = 0.0
        self.until = 0.0
        self.moved = 0.0
        self.wants: list[Meeting] = []
        self.works: dict[str, list[Meeting]] = {}
        self.entry: Entry | None = None

    @property
    def in_stream(self) -> bool:
        """It waits for its rank's stream: in a synchronise, or in NCCL's barrier."""
        op = self.op
        if op is None or self.state != "blocked":
            return False
        return op.kind == "sync" or (op.kind == "call" and not self.wants)


class Rank:
    """A process."""

    __slots__ = (
        "alive", "beat", "beats", "cpu", "drained", "ended", "events", "frozen", "gil", "io_s",
        "issued", "local", "locks", "number", "plan", "queues", "rings", "seqs", "step", "stopped",
        "stream", "threads", "totals", "trainer",
    )  # fmt: skip

    def __init__(self, plan: RankPlan, groups: list[Group]) -> None:
        self.plan = plan
        #: torch numbers the groups of a process; so a group has another number on another rank.
        self.local = {
            group.number: index
            for index, group in enumerate(each for each in groups if plan.rank in each.ranks)
        }
        self.number = plan.rank
        self.threads = [Thread(self, strand, n) for n, strand in enumerate(plan.strands)]
        self.alive = True
        self.stopped = False
        self.frozen = inf
        self.gil: Thread | None = None
        self.step = -plan.stride
        self.beat = -inf
        self.beats: deque[float] = deque(maxlen=BEATS)
        self.trainer: Thread | None = None
        self.cpu = 0.0
        self.io_s = 0.0
        self.drained = 0.0
        #: torch has a recorder for NCCL, and one for the other backends.
        self.rings: dict[str, deque[Entry]] = {}
        self.totals: dict[str, int] = {}
        #: Of each group: the last recorded operations that ended, and the last one.
        self.ended: dict[int, deque[Entry]] = {}
        self.issued: dict[int, Entry] = {}
        self.seqs: dict[int, list[int]] = {}  # collectives, point-to-point, all
        self.stream: deque[list[Entry]] = deque()
        self.locks: dict[str, tuple[Thread, list[Thread]]] = {}
        self.queues: dict[str, int] = {}
        self.events: dict[str, list[Thread]] = {}


class Machine:
    """*planted_at*: when the (last) fault began."""

    def __init__(self, job: Job, most: int = MAX_EVENTS) -> None:
        self.job = job
        self.most = most
        self.now = 0.0
        self.events: list[tuple[float, int, Thread]] = []
        self.count = 0
        self.planted_at = inf
        self.meetings: dict[tuple[Any, ...], Meeting] = {}
        self.counts: dict[tuple[Any, ...], int] = {}
        self.keys: dict[str, list[Thread]] = {}
        self.files: dict[tuple[int, str], tuple[Thread, list[Thread]]] = {}
        self.ranks = [Rank(plan, job.groups) for plan in job.ranks]
        self.streams: deque[Rank] = deque()
        self.everybody = tuple(range(job.world))
        self.do: dict[str, Callable[[Thread, Op], float | None]] = {
            "beat": self._beat, "call": self._call, "issue": self._issue, "wait": self._wait,
            "poll": self._wait, "sync": self._sync, "send": self._peer, "recv": self._peer,
            "isend": self._peer, "irecv": self._peer, "batch": self._batch,
            "monitored": self._monitored, "new_group": self._new_group,
            "store_set": self._store_set, "store_wait": self._store_wait, "lock": self._lock,
            "acquire": self._lock, "unlock": self._unlock, "get": self._get, "put": self._put,
            "condition": self._await, "await": self._await, "notify": self._notify,
            "join": self._join, "result": self._join, "flock": self._flock,
            "unflock": self._unflock, "gil": self._gil, "stop": self._stop, "die": self._die,
        }  # fmt: skip
        for rank in self.ranks:
            for thread in rank.threads:
                self._at(0.001 * rank.number, thread)

    # --- time

    def _at(self, when: float, thread: Thread) -> None:
        self.count += 1
        thread.state = "on"
        thread.until = when
        heappush(self.events, (when, self.count, thread))

    def run(self, until: float) -> None:
        """To the time *until*, or until nothing will happen any more."""
        events = self.events
        while events and events[0][0] <= until:
            self.now, _, thread = heappop(events)
            rank = thread.rank
            if self.now >= rank.frozen and thread is not rank.gil:
                thread.state = "frozen"
                continue
            self._go(thread)
        if self.now < until < inf:
            self.now = until

    def run_to_fault(self, limit: float) -> None:
        """Until the fault has begun."""
        events = self.events
        while events and self.planted_at == inf and events[0][0] <= limit:
            self.run(events[0][0])

    def _go(self, thread: Thread) -> None:
        strand = thread.strand
        ops = strand.ops
        size = len(ops)
        do = self.do
        jitter = thread.rank.plan.jitter
        while True:
            if thread.pc >= size:
                if strand.loop is None:
                    thread.state = "ended"
                    thread.op = None
                    thread.moved = self.now
                    self._wake_event(thread.rank, strand.name)
                    return
                thread.pc = strand.loop
                thread.turns += 1
                if thread.turns % 64 == 0:
                    if self.count > self.most or thread.turned == self.now:
                        raise EndlessError("the job goes on for too long, or takes no time")
                    thread.turned = self.now
            op = thread.op = ops[thread.pc]
            thread.pc += 1
            thread.since = thread.moved = self.now
            if op.planted and self.planted_at == inf:
                self.planted_at = self.now
            kind = op.kind
            takes: float | None
            if kind in _TIMED:
                takes = op.seconds
                if takes != inf and not op.planted:
                    takes *= jitter[(thread.pc * 7 + thread.turns) % len(jitter)]
                if takes != inf:
                    # Counted whole at its start: who asks meanwhile takes off what is to come.
                    if kind == "compute" or op.key == "cpu":
                        thread.rank.cpu += takes
                    elif op.key == "io":
                        thread.rank.io_s += takes
            else:
                takes = do[kind](thread, op)
            if takes is None:
                thread.state = "blocked"
                return
            if takes:
                if takes == inf:
                    thread.state = "forever"
                else:
                    self._at(self.now + takes, thread)
                return

    # --- what takes no time

    def _beat(self, thread: Thread, op: Op) -> float:
        rank = thread.rank
        rank.step += rank.plan.stride
        rank.beat = self.now
        rank.beats.append(self.now)
        rank.trainer = thread
        return 0.0

    # --- meetings

    def _meeting(self, what: tuple[Any, ...], ranks: tuple[int, ...]) -> Meeting:
        found = self.meetings.get(what)
        if found is None:
            found = self.meetings[what] = Meeting(what, ranks, len(ranks))
        return found

    def _come(self, meeting: Meeting, rank: int, sign: Any, now: float) -> None:
        came = meeting.came
        came[rank] = sign
        if len(came) < meeting.need:
            return
        if meeting.need > 1 and len(set(came.values())) > 1:
            return  # for ever
        for entry in meeting.entries:
            if entry.started > now:
                now = entry.started
        done = meeting.done = now + LATENCY
        for entry in meeting.entries:
            entry.done = done
            if entry.number >= 0:
                entry.rank.ended.setdefault(entry.group.number, deque(maxlen=8)).append(entry)
            if entry.group.backend == "nccl":
                self._advance(entry.rank, done)
        for thread in meeting.waiters:
            if thread.state == "blocked" and all(each.done < inf for each in thread.wants):
                thread.wants = []
                self._at(done, thread)
        del self.meetings[meeting.what]

    def _next(self, rank: Rank, group: Group, column: int) -> int:
        counts = rank.seqs.get(group.number)
        if counts is None:
            counts = rank.seqs[group.number] = [0, 0, 0]
        counts[column] += 1
        counts[2] += 1
        return counts[column]

    def _record(self, thread: Thread, group: Group, op: Op, p2p: bool) -> Entry:
        """A line in the recorder, if there is one: gloo records no point-to-point."""
        rank = thread.rank
        number = self._next(rank, group, 1 if p2p else 0)
        counts = rank.seqs[group.number]
        entry = Entry(rank, group, op, counts[0], number if p2p else 0, self.now)
        entry.thread = thread
        entry.op_id = counts[2]
        if rank.plan.ring and not (p2p and group.backend == "gloo"):
            ring = rank.rings.get(group.backend)
            if ring is None:
                ring = rank.rings[group.backend] = deque(maxlen=rank.plan.ring)
            number = rank.totals.get(group.backend, 0)
            rank.totals[group.backend] = number + 1
            entry.number = number
            entry.order = sum(rank.totals.values())
            ring.append(entry)
            rank.issued[group.number] = entry
        return entry

    def _enter(self, thread: Thread, op: Op) -> Meeting:
        group = self.job.groups[op.group]
        entry = self._record(thread, group, op, False)
        meeting = self._meeting(("c", op.group, entry.seq), group.ranks)
        entry.meeting = meeting
        thread.entry = entry
        meeting.entries.append(entry)
        if group.backend == "nccl":
            self._enqueue(thread.rank, [entry])
        else:
            entry.started = self.now
            self._come(meeting, thread.rank.number, (op.name, op.shape, op.dtype), self.now)
        return meeting

    def _call(self, thread: Thread, op: Op) -> float | None:
        meeting = self._enter(thread, op)
        if self.job.groups[op.group].backend == "nccl":
            return self._sync(thread, op) if op.name == "barrier" else 0.0
        return self._until(thread, [meeting])

    def _until(self, thread: Thread, meetings: list[Meeting]) -> float | None:
        """Seconds until all of *meetings* have ended; None: it blocks."""
        last = 0.0
        for meeting in meetings:
            last = max(last, meeting.done)
        if last < inf:
            return max(last - self.now, 0.0)
        thread.wants = meetings
        for meeting in meetings:
            if meeting.done == inf:
                meeting.waiters.append(thread)
        return None

    def _issue(self, thread: Thread, op: Op) -> float:
        thread.works[op.key] = [self._enter(thread, op)]
        return 0.0

    def _wait(self, thread: Thread, op: Op) -> float | None:
        meetings = thread.works.pop(op.key, [])
        if op.kind == "wait" and self.job.backend == "nccl":
            return 0.0  # only the stream waits
        return self._until(thread, meetings)

    # --- streams

    def _enqueue(self, rank: Rank, entries: list[Entry]) -> None:
        rank.stream.append(entries)
        if len(rank.stream) == 1:
            self._start(rank, max(self.now, rank.drained))

    def _start(self, rank: Rank, now: float) -> None:
        for entry in rank.stream[0]:
            entry.started = now
            meeting = entry.meeting
            assert meeting is not None
            op = entry.op
            sign = None if op.peer >= 0 else (op.name, op.shape, op.dtype)
            self._come(meeting, rank.number, sign, now)

    def _advance(self, rank: Rank, now: float) -> None:
        """The head of the stream may have ended. In turn, or a chain of streams would recurse."""
        busy = bool(self.streams)
        self.streams.append(rank)
        if busy:
            return
        while self.streams:
            each = self.streams[0]
            while each.stream and all(entry.done < inf for entry in each.stream[0]):
                each.stream.popleft()
                if each.stream:
                    self._start(each, now)
            if not each.stream:
                each.drained = now
                for thread in each.events.pop("stream", ()):
                    if thread.state == "blocked":
                        self._at(now, thread)
                        if thread.op is not None and thread.op.name != "event":
                            each.cpu += now - thread.since  # CUDA waits by spinning
            self.streams.popleft()

    def _sync(self, thread: Thread, op: Op) -> float | None:
        rank = thread.rank
        if not rank.stream:
            return max(rank.drained - self.now, 0.0)
        rank.events.setdefault("stream", []).append(thread)
        return None

    # --- point to point

    def _pair(self, thread: Thread, op: Op) -> tuple[Entry, Meeting]:
        group, me = self.job.groups[op.group], thread.rank.number
        sends = op.kind in ("send", "isend")
        way = (me, op.peer) if sends else (op.peer, me)
        counted = (op.group, *way, sends)
        number = self.counts[counted] = self.counts.get(counted, 0) + 1
        meeting = self._meeting(("p", op.group, *way, number), (min(way), max(way)))
        entry = self._record(thread, group, op, True)
        entry.meeting = meeting
        meeting.entries.append(entry)
        return entry, meeting

    def _peer(self, thread: Thread, op: Op) -> float | None:
        entry, meeting = self._pair(thread, op)
        thread.entry = entry
        if entry.group.backend == "nccl":
            self._enqueue(thread.rank, [entry])
            thread.works[op.key] = [meeting]
            return 0.0
        entry.started = self.now
        self._come(meeting, thread.rank.number, None, self.now)
        if op.kind in ("isend", "irecv"):
            thread.works[op.key] = [meeting]
            return 0.0
        return self._until(thread, [meeting])

    def _batch(self, thread: Thread, op: Op) -> float | None:
        pairs = [self._pair(thread, part) for part in op.parts]
        thread.works[op.key] = [meeting for _, meeting in pairs]
        if pairs[0][0].group.backend == "nccl":
            parts = [entry for entry, _ in pairs]
            closing = self._record(thread, parts[0].group, COALESCED, True)
            closing.parts = parts
            for entry in parts:
                entry.inner = True
                entry.p2p_seq = parts[0].p2p_seq
            closing.p2p_seq = parts[0].p2p_seq
            # The whole batch counts once.
            thread.rank.seqs[parts[0].group.number][1] = closing.p2p_seq
            self._enqueue(thread.rank, parts)
        else:
            for entry, _ in pairs:
                entry.started = self.now
            for _, meeting in pairs:
                self._come(meeting, thread.rank.number, None, self.now)
        return 0.0

    # --- what no recorder holds

    def _monitored(self, thread: Thread, op: Op) -> float | None:
        """It counts as two collectives, and on the first rank as two for each of the others."""
        group, rank = self.job.groups[op.group], thread.rank
        number = self._next(rank, group, 0)
        self._next(rank, group, 0)
        if rank.number == group.ranks[0]:
            rank.seqs[group.number][2] += 2 * (len(group.ranks) - 2)
        meeting = self._meeting(("m", op.group, number), group.ranks)
        self._come(meeting, rank.number, None, self.now)
        return self._until(thread, [meeting])

    def _new_group(self, thread: Thread, op: Op) -> float | None:
        counted = ("new", thread.rank.number)
        number = self.counts[counted] = self.counts.get(counted, 0) + 1
        meeting = self._meeting(("n", number), self.everybody)
        self._come(meeting, thread.rank.number, None, self.now)
        return self._until(thread, [meeting])

    def _store_set(self, thread: Thread, op: Op) -> float:
        for other in self.keys.get(op.key, ()):
            self._at(self.now + LATENCY, other)
        self.keys[op.key] = []
        self.counts["set", op.key] = 1
        return 0.0

    def _store_wait(self, thread: Thread, op: Op) -> float | None:
        if ("set", op.key) in self.counts:
            return LATENCY
        self.keys.setdefault(op.key, []).append(thread)
        return None

    # --- between the threads of a rank

    def _lock(self, thread: Thread, op: Op) -> float | None:
        return self._take(thread.rank.locks, op.key, thread)

    def _unlock(self, thread: Thread, op: Op) -> float:
        self._release(thread.rank.locks, op.key)
        return 0.0

    def _take(self, locks: dict[Any, Any], key: Any, thread: Thread) -> float | None:
        taken = locks.get(key)
        if taken is None:
            locks[key] = (thread, [])
            return 0.0
        taken[1].append(thread)
        return None

    def _release(self, locks: dict[Any, Any], key: Any) -> None:
        _, waiters = locks.pop(key)
        if waiters:
            locks[key] = (waiters[0], waiters[1:])
            self._at(self.now, waiters[0])

    def _flock(self, thread: Thread, op: Op) -> float | None:
        return self._take(self.files, (thread.rank.plan.host, op.key), thread)

    def _unflock(self, thread: Thread, op: Op) -> float:
        self._release(self.files, (thread.rank.plan.host, op.key))
        return 0.0

    def _put(self, thread: Thread, op: Op) -> float:
        rank = thread.rank
        waiters = rank.events.get(f"get {op.key}")
        if waiters:
            self._at(self.now, waiters.pop(0))
        else:
            rank.queues[op.key] = rank.queues.get(op.key, 0) + 1
        return 0.0

    def _get(self, thread: Thread, op: Op) -> float | None:
        rank = thread.rank
        if rank.queues.get(op.key):
            rank.queues[op.key] -= 1
            return 0.0
        rank.events.setdefault(f"get {op.key}", []).append(thread)
        return None

    def _await(self, thread: Thread, op: Op) -> float | None:
        if thread.rank.queues.get(f"event {op.key}"):
            return 0.0
        thread.rank.events.setdefault(f"event {op.key}", []).append(thread)
        return None

    def _notify(self, thread: Thread, op: Op) -> float:
        thread.rank.queues[f"event {op.key}"] = 1
        self._wake_event(thread.rank, f"event {op.key}")
        return 0.0

    def _join(self, thread: Thread, op: Op) -> float | None:
        rank = thread.rank
        target = next(each for each in rank.threads if each.strand.name == op.key)
        if target.state == "ended":
            return 0.0
        rank.events.setdefault(op.key, []).append(thread)
        return None

    def _wake_event(self, rank: Rank, key: str) -> None:
        for thread in rank.events.pop(key, ()):
            self._at(self.now, thread)

    # --- the process itself

    def _gil(self, thread: Thread, op: Op) -> float:
        thread.rank.gil = thread
        thread.rank.frozen = self.now
        return inf

    def _stop(self, thread: Thread, op: Op) -> float:
        thread.rank.stopped = True
        thread.rank.frozen = self.now
        return inf

    def _die(self, thread: Thread, op: Op) -> float:
        thread.rank.alive = False
        thread.rank.frozen = self.now
        return inf
