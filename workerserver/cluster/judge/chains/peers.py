"""Which rank waits for which, by what its acting thread waits for: a send or a receive that no
recorder holds, a file lock that another rank of the host has, a collective that no recorder holds
and to which only those have not come that want the file lock.

From the acting thread the chain is followed through the threads that it joins, or that hold its
lock, to the last one. What that one waits for counts. If nobody knows who ends that wait, the chain
ends there, and nobody is to blame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workerserver.cluster.judge.chains.together import MEETINGS, Call, calls_of
from workerserver.cluster.judge.chains.words import FILE_LOCK
from workerserver.cluster.judge.flight import Group, Wait
from workerserver.cluster.judge.sentences import send_or_receive
from workerserver.cluster.model import Thread, WaitsFor, Worker
from workerserver.cluster.read.acting import acting
from workerserver.cluster.read.recorder import Key
from workerserver.cluster.read.roles import busy
from workerserver.cluster.read.waits_for import DIRECTIONS, by_id, follow

if TYPE_CHECKING:
    from workerserver.cluster.judge.job import Job
    from workerserver.cluster.judge.looks import RoundByRank

__all__ = ["Chains", "Edge"]

Process = tuple[str, int, int]
"""A host, a namespace of process ids there, and a process id."""


@dataclass(frozen=True, slots=True)
class Edge:
    """*rank* waits for each of *peers* in *operation* of *group*. *path*: the threads from the
    acting one to the one that waits for them. *together*: *operation* is a collective, and each of
    *peers* wants a file lock; else there is one peer."""

    rank: int
    peers: tuple[int, ...]
    operation: str
    group: str
    path: tuple[Thread, ...]
    together: bool = False


class Chains:
    """The edges between the ranks of one job, and how long they have been seen."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._processes: dict[int, Mapping[Process, int]] = {}
        self.edges: dict[int, Edge] = {}
        for rank in job.ranks:
            thread = job.blocked[rank].thread
            edge = self._edge(job.now, rank, thread) if thread is not None else None
            if edge is not None:
                self.edges[rank] = edge
        self._add_collectives()
        self._told: dict[int, Wait] = {}

    def _add_collectives(self) -> None:
        """What those wait for that hold a wanted file lock, if they are in a collective."""
        wanting = [edge for edge in self.edges.values() if edge.operation == FILE_LOCK]
        if not wanting:
            return
        calls = calls_of(self.job)
        for holder in {edge.peers[0] for edge in wanting}:
            found = self._in_collective(holder, calls)
            if found is not None:
                self.edges[holder] = found

    def _in_collective(self, rank: int, calls: Mapping[int, Call]) -> Edge | None:
        """The edge of *rank*, if each other rank of its collective either stands in the same one or
        wants a file lock of one that does. Then it ends only after one of these has its lock: if
        all of them had come already, without waiting there, it would have ended."""
        call, thread = calls.get(rank), self.job.blocked[rank].thread
        if call is None or thread is None or not call.name.startswith(MEETINGS):
            return None
        if self.job.has_recorded(rank):
            return None
        wanting: list[int] = []
        for each in call.ranks:
            edge = self.edges.get(each)
            if calls.get(each) == call:
                continue
            if edge is None or edge.operation != FILE_LOCK or calls.get(edge.peers[0]) != call:
                return None
            wanting.append(each)
        peers = tuple(wanting)
        return Edge(rank, peers, call.name, call.group, (thread,), together=True) if peers else None

    def waits(self, groups: Sequence[Group], recorded: Sequence[Wait]) -> Iterator[Wait]:
        """The edges as waits. What a recorder holds is told by the recorder."""
        known = {rank for wait in recorded if wait.seq is None for rank in wait.waiting}
        for edge in self.edges.values():
            if edge.rank not in known:
                group = _group(edge, groups)
                wait = Wait(group, None, edge.operation, (edge.rank,), edge.peers, by_stack=True)
                self._told[edge.rank] = wait
                yield wait

    def may_be_held_elsewhere(self, rank: int) -> bool:
        """Another thread of *rank* than the one that stands for it does something, or may: so that
        one may have taken the file lock, and may give it back."""
        thread, threads = self.job.blocked[rank].thread, self.job.now.states[rank].threads
        if thread is None:
            return True
        path = follow(thread, by_id(threads))
        return any(each not in path for _, each in busy(threads))

    # --- one look

    def _edge(self, look: RoundByRank, rank: int, thread: Thread) -> Edge | None:
        state = look.states[rank]
        if state.own is None:
            return None
        path = tuple(follow(thread, by_id(state.threads)))
        waits = path[-1].waits
        if waits is None:
            return None
        if waits.kind == "operation":
            return self._by_operation(rank, waits, path)
        if waits.kind == "file_lock" and waits.pid is not None and state.own.namespace is not None:
            process = (_host(state.worker), state.own.namespace, waits.pid)
            peer = self._ranks_by_process(look).get(process, rank)
            if peer != rank:
                return Edge(rank, (peer,), FILE_LOCK, waits.path or "a file", path)
        return None

    def _by_operation(self, rank: int, waits: WaitsFor, path: tuple[Thread, ...]) -> Edge | None:
        direction, peer = DIRECTIONS.get(waits.op or ""), waits.peer
        if direction is None or peer is None or peer == rank or peer not in self.job.expected:
            return None
        if waits.ranks and not {rank, peer}.issubset(waits.ranks):
            return None
        operation = send_or_receive(direction == "from", peer)
        return Edge(rank, (peer,), operation, waits.group or "", path)

    def _ranks_by_process(self, look: RoundByRank) -> Mapping[Process, int]:
        """Which rank is which process. A process that two ranks claim to be is none of them."""
        known = self._processes.get(id(look))
        if known is not None:
            return known
        found: dict[Process, int] = {}
        twice: set[Process] = set()
        for rank, state in look.states.items():
            own = state.own
            if own is None or own.namespace is None or own.pid is None:
                continue
            process = (_host(state.worker), own.namespace, own.pid)
            if process in found:
                twice.add(process)
            found[process] = rank
        known = {process: rank for process, rank in found.items() if process not in twice}
        self._processes[id(look)] = known
        return known

    # --- several looks

    def _as_now(self, look: RoundByRank, edge: Edge) -> bool | None:
        """The edge was there in *look*. True: and the thread that waits for the peer has not run
        since. None: whether it has can't be told. False also if it has: then it is another wait."""
        state = look.states.get(edge.rank)
        thread = acting(state.threads, self.job.roots) if state is not None else None
        if thread is None:
            return False
        if edge.together:
            path: tuple[Thread, ...] = (thread,)
        else:
            then = self._edge(look, edge.rank, thread)
            if then is None or (then.peers, then.operation, then.group) != (
                edge.peers,
                edge.operation,
                edge.group,
            ):
                return False
            path = then.path
        if not same_places(path, edge.path):
            return False
        before, now = path[-1].switches, edge.path[-1].switches
        return None if before is None or now is None else before == now

    def hangs(self, wait: Wait) -> bool:
        """Two looks have seen it, the thread has not run in between (or, if that can't be told, the
        rank has not gone on), and it has lasted too long. A collective hangs if all that it waits
        for do."""
        job, edge = self.job, self.edges[wait.waiting[0]]
        if edge.together and not all(self.hangs(self._told[each]) for each in edge.peers):
            return False
        if job.before is None:
            return False
        went_on = job.progressed(edge.rank).went_on
        same = self._as_now(job.before, edge)
        if same is False or went_on or (same is None and went_on is None):
            return False
        age = self.age(wait)
        return age is not None and age >= job.limit(wait)

    def age(self, wait: Wait) -> float | None:
        """For so many seconds, at least, the rank has waited."""
        job, edge = self.job, self.edges[wait.waiting[0]]
        since = job.now.time
        for look in reversed(job.rounds[:-1]):
            if self._as_now(look, edge) is False:
                break
            since = look.time
        seen = job.now.time - since
        beat = job.step_age(edge.rank) if seen > 0 else None
        return max(seen, beat or 0.0)


def same_places(before: Sequence[Thread], now: Sequence[Thread]) -> bool:
    """The same threads in the same places, waiting for the same."""
    return len(before) == len(now) and all(
        (then.native_id, then.frames, then.waits) == (each.native_id, each.frames, each.waits)
        for then, each in zip(before, now, strict=True)
    )


def have_not_run(before: Sequence[Thread], now: Sequence[Thread]) -> bool:
    """The kernel has not stopped any of them since, so none of them has run."""
    return all(
        then.switches is not None and then.switches == each.switches
        for then, each in zip(before, now, strict=True)
    )


def _group(edge: Edge, groups: Sequence[Group]) -> Group:
    """The process group of that name to which all these ranks belong, else one of its own."""
    ends = {edge.rank, *edge.peers}
    for group in groups:
        if edge.group in (group.label, group.key.name) and ends.issubset(group.ranks):
            return group
    return Group(Key("", edge.group), tuple(sorted(ends)), False, {})


def _host(worker: Worker) -> str:
    """What processes of one host have in common: its name, or that it is this one."""
    if worker.via is not None:
        return _host(worker.via)
    if worker.host is not None:
        return worker.host
    return "" if worker.unix else worker.address.rpartition(":")[0]
