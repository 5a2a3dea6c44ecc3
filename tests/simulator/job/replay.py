"""Finds the deadlocked threads of a job once more, by brute force and without time.

Each thread makes a move if it can, in turn, until none can; every question is answered from the
lists of what was begun, again and again. Slow, and unlike :mod:`machine` in everything: what both
say is the truth.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from .program import FOREVER, Job, Op, Strand

__all__ = ["stuck_ranks"]

#: Turns that a finite sleep takes: enough for the others to come to what they do meanwhile.
SLEEP_TURNS = 150
#: How often a loop is gone through; when it was, a thread counts as going on for ever.
LOOPS = 3
#: Turns in which only threads move that are there for noise, before nothing more will come.
QUIET = 2 * SLEEP_TURNS


class _Mover:
    def __init__(self, rank: int, strand: Strand) -> None:
        self.rank = rank
        self.strand = strand
        self.at = 0
        self.loops = 0
        self.begun = False
        self.waits: Any = None
        self.naps = 0
        self.works: dict[str, Any] = {}
        self.over = False
        self.done = False

    def next(self) -> None:
        self.begun, self.waits, self.naps = False, None, 0
        self.at += 1
        if self.at == len(self.strand.ops):
            if self.strand.loop is None:
                self.done = self.over = True
                return
            self.at = self.strand.loop
            self.loops += 1
            self.over = self.strand.acting and self.loops >= LOOPS

    @property
    def op(self) -> Op:
        return self.strand.ops[self.at]


class _Replay:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.movers = [_Mover(plan.rank, each) for plan in job.ranks for each in plan.strands]
        self.began: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
        self.streams: dict[int, list[list[tuple[Any, ...]]]] = defaultdict(list)
        self.heads: dict[int, int] = defaultdict(int)
        self.owners: dict[Any, _Mover] = {}
        self.stock: dict[Any, int] = defaultdict(int)
        self.halted: dict[int, _Mover] = {}

    def run(self) -> None:
        quiet = 0
        while quiet < QUIET:
            acted = False
            for mover in self.movers:
                halted = self.halted.get(mover.rank)
                if mover.over or mover.done or halted is not None:
                    continue
                if self._move(mover) and (mover.strand.acting or mover.strand.name == "saver"):
                    acted = True
            self._run_streams()
            quiet = 0 if acted else quiet + 1

    def _move(self, mover: _Mover) -> bool:
        op = mover.op
        if not mover.begun:
            mover.begun = True
            mover.waits = self._begin(mover, op)
        if not self._may_go_on(mover, op):
            return mover.naps > 0
        mover.next()
        return True

    # --- what has begun

    def _backend(self, op: Op) -> str:
        return self.job.groups[op.group].backend

    def _begin(self, mover: _Mover, op: Op) -> Any:
        me, kind = mover.rank, op.kind
        if kind in ("call", "issue"):
            mine = self.began["collective", op.group, me]
            mine.append((op.name, op.shape, op.dtype))
            found: Any = [("collective", op.group, len(mine) - 1)]
            if self._backend(op) == "nccl":
                self.streams[me].append(found)
            if kind == "issue":
                mover.works[op.key] = found
            return found
        if kind in ("send", "recv", "isend", "irecv", "batch"):
            found = [self._half(me, part) for part in (op.parts or (op,))]
            if self._backend(op.parts[0] if op.parts else op) == "nccl":
                self.streams[me].append(found)
            mover.works[op.key] = found
            return found
        if kind in ("monitored", "new_group"):
            group = op.group if kind == "monitored" else 0
            mine = self.began[kind, group, me]
            mine.append(None)
            return [(kind, group, len(mine) - 1)]
        if kind in ("wait", "poll"):
            return mover.works.pop(op.key, [])
        if kind == "sync":
            return len(self.streams[me])
        if kind in ("gil", "stop", "die"):
            self.halted[me] = mover
        if kind == "store_set":
            self.stock["store", op.key] += 1
        if kind == "put":
            self.stock["queue", me, op.key] += 1
        if kind == "notify":
            self.stock["event", me, op.key] += 1
        if kind in ("unlock", "unflock"):
            del self.owners[self._lock(mover, op)]
        return None

    def _half(self, me: int, op: Op) -> tuple[Any, ...]:
        sends = op.kind in ("send", "isend")
        way = (me, op.peer) if sends else (op.peer, me)
        mine = self.began["pair", op.group, way, sends]
        mine.append(None)
        return ("pair", op.group, way, len(mine) - 1)

    def _lock(self, mover: _Mover, op: Op) -> Any:
        if op.kind in ("flock", "unflock"):
            return ("file", self.job.ranks[mover.rank].host, op.key)
        return ("lock", mover.rank, op.key)

    # --- what may go on

    def _may_go_on(self, mover: _Mover, op: Op) -> bool:
        me, kind = mover.rank, op.kind
        if kind in ("call", "issue", "send", "recv", "isend", "irecv", "batch"):
            target = op.parts[0] if op.parts else op
            returns = kind in ("issue", "isend", "irecv", "batch")
            if self._backend(target) == "nccl" and op.name == "barrier":
                return self.heads[me] >= len(self.streams[me])
            return returns or self._backend(target) == "nccl" or self._all(mover.waits)
        if kind in ("monitored", "new_group"):
            return self._all(mover.waits)
        if kind == "wait":
            return self.job.backend == "nccl" or self._all(mover.waits)
        if kind == "poll":
            return all(self._ended(each) for each in mover.waits)
        if kind == "sync":
            return bool(self.heads[me] >= mover.waits)
        if kind in ("gil", "stop", "die"):
            return False
        if kind in ("lock", "acquire", "flock"):
            key = self._lock(mover, op)
            if key in self.owners:
                return False
            self.owners[key] = mover
            return True
        if kind == "get":
            key = ("queue", me, op.key)
            if not self.stock[key]:
                return False
            self.stock[key] -= 1
            return True
        if kind in ("await", "condition"):
            return self.stock["event", me, op.key] > 0
        if kind == "store_wait":
            return self.stock["store", op.key] > 0
        if kind in ("join", "result"):
            return any(
                each.done for each in self.movers if each.rank == me and each.strand.name == op.key
            )
        if op.seconds == FOREVER:
            return False
        if kind == "sleep":
            mover.naps += 1
            return mover.naps > SLEEP_TURNS
        return True

    def _all(self, things: list[tuple[Any, ...]]) -> bool:
        return all(self._met(each) for each in things)

    def _met(self, thing: tuple[Any, ...]) -> bool:
        """All who have to come have come, with the same."""
        kind, where = thing[:2]
        number: int = thing[-1]
        if kind == "pair":
            halves = [self.began[kind, where, thing[2], sends] for sends in (True, False)]
            return min(map(len, halves)) > number
        ranks = range(self.job.world) if kind == "new_group" else self.job.groups[where].ranks
        lists = [self.began[kind, where, rank] for rank in ranks]
        if any(len(each) <= number for each in lists):
            return False
        return len({each[number] for each in lists}) == 1

    def _ended(self, thing: tuple[Any, ...]) -> bool:
        """A work has ended: on NCCL when the streams have come to it."""
        kind, where = thing[:2]
        if self.job.groups[where].backend != "nccl":
            return self._met(thing)
        ranks = thing[2] if kind == "pair" else self.job.groups[where].ranks
        return all(
            any(thing in item for item in self.streams[rank][: self.heads[rank]]) for rank in ranks
        )

    def _run_streams(self) -> None:
        """The first item of a stream ends once each of its operations is first everywhere."""
        moved = True
        while moved:
            moved = False
            firsts = {
                rank: items[self.heads[rank]]
                for rank, items in self.streams.items()
                if self.heads[rank] < len(items)
            }
            for rank, item in firsts.items():
                if all(self._met(each) and self._everywhere(each, firsts) for each in item):
                    self.heads[rank] += 1
                    moved = True

    def _everywhere(self, thing: tuple[Any, ...], firsts: dict[int, Any]) -> bool:
        """On each stream that has it the operation has come to the front, or has ended."""
        kind, where = thing[:2]
        ranks = thing[2] if kind == "pair" else self.job.groups[where].ranks
        for rank in set(ranks):
            ended = self.streams[rank][: self.heads[rank]]
            if thing not in firsts.get(rank, ()) and not any(thing in item for item in ended):
                return False
        return True


def stuck_ranks(job: Job) -> set[int]:
    """The ranks of which an acting thread never goes on."""
    replay = _Replay(job)
    replay.run()
    return {mover.rank for mover in replay.movers if mover.strand.acting and not mover.over}
