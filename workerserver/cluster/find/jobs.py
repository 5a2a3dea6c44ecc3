"""What the looks at many workers say of each job by itself.

Workers of two jobs are never judged together, whatever pattern named them. A worker that serves no
more is one of two things. It is *gone*, if its rank belongs to a job that lives and no other worker
has that rank. Else it is a leftover, which counts nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from workerserver.cluster.failures import ENDED, nobody_listens
from workerserver.cluster.find.group import Group, Member, group, same_job
from workerserver.cluster.find.here import Ended
from workerserver.cluster.model import Failure, Health, RankState, RoundLike, Worker
from workerserver.job import proc
from workerserver.job.identity import PROCESS, Identity, of_process

__all__ = ["JobView", "identity_of", "split"]

R = TypeVar("R", bound=RoundLike)

#: What tells that a process is one of a job's.
_OF_JOB = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "MASTER_PORT", "SLURM_PROCID")
#: Sources that know all ranks of the job, or all that there can be.
_WHOLE = frozenset({"store", "torchrun"})
MAX_SHOWN = 4


@dataclass(slots=True)
class JobView(Generic[R]):
    """One job. *rounds*: the looks at it alone. *elsewhere*: its ranks that nobody looked for.
    *leftovers*: lines about what other jobs, or earlier starts of this one, have left. *notes*:
    lines about workers of another version than this one. *is_over*: nobody listens any more."""

    label: str | None
    rounds: list[R]
    name: str | None = None
    world_size: int | None = None
    elsewhere: frozenset[int] = frozenset()
    leftovers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_over: bool = False


def identity_of(health: Health | None, rank: int | None = None) -> Identity | None:
    """Who a worker says it is; None from torch's own servers, and from older ones of ours."""
    if health is None or health.job is None:
        return None
    return Identity(
        health.job,
        health.job_from or "",
        health.agent,
        health.restart,
        health.world_size,
        health.rank if health.rank is not None else rank,
        health.local_rank,
        health.local_world_size,
        health.group_rank,
        health.host,
        health.started,
    )


def split(
    rounds: Sequence[R],
    ended: Sequence[Ended] = (),
    world_size: int | None = None,
    likely_size: int | None = None,
) -> list[JobView[R]]:
    """The jobs of all *rounds*, each by itself; at least one. *world_size*: if the user says it.
    *likely_size*: counts where no worker tells it."""
    views = _Split(rounds, ended, world_size).views()
    for view in views:
        if view.world_size is None and len(views) == 1:
            view.world_size = likely_size
    return views


class _Split(Generic[R]):
    def __init__(self, rounds: Sequence[R], ended: Sequence[Ended], asked: int | None) -> None:
        self.rounds = rounds
        self.ended = ended
        self.asked = asked
        self.states: dict[Worker, list[RankState]] = {}
        for look in rounds:
            for state in look.states:
                self.states.setdefault(state.worker, []).append(state)
        self.identities = {worker: self._identity(worker) for worker in self.states}
        self._remember_ranks()
        self.dead = [
            worker
            for worker, states in self.states.items()
            if nobody_listens(states[-1]) and not any(each.responded for each in states)
        ]

    # ---- who is who

    def _identity(self, worker: Worker) -> Identity | None:
        for state in reversed(self.states[worker]):
            told = identity_of(state.health, state.rank)
            if told is not None:
                return told
        if worker.known is not None:
            return worker.known
        pid = next((each.peer_pid for each in self.states[worker] if each.peer_pid), None)
        if pid is None or worker.via is not None:
            return None
        environment = proc.environment_of(pid)
        if not any(environment.get(name) for name in _OF_JOB):
            return None
        return of_process(pid, environment)

    def _remember_ranks(self) -> None:
        """A rank that a worker told in one look, or that its process was started with, is its rank
        in all looks."""
        for worker, states in self.states.items():
            told = next((state.rank for state in states if state.rank is not None), None)
            inferred = next((state.inferred for state in states if state.rank is not None), None)
            known = self.identities[worker]
            if known is not None and known.rank is not None and (told is None or inferred):
                told, inferred = known.rank, None
                if all(state.health is None for state in states):
                    inferred = "what its process was started with"
            for state in states:
                if (state.rank is None and worker.rank is None) or state.inferred:
                    state.rank, state.inferred = told, inferred

    def _rank(self, worker: Worker) -> int | None:
        rank = self.states[worker][-1].rank
        return worker.rank if rank is None else rank

    def _ranks(self, workers: Sequence[Worker], gone: Sequence[RankState]) -> set[int | None]:
        return {self._rank(worker) for worker in workers} | {state.rank for state in gone}

    # ---- the jobs

    def views(self) -> list[JobView[R]]:
        living = [worker for worker in self.states if worker not in set(self.dead)]
        members = [
            Member(worker, known, self._pid(worker))
            for worker in living
            if (known := self.identities[worker]) is not None
        ]
        jobs = group(members)
        nameless = [worker for worker in living if self.identities[worker] is None]
        owned: dict[int, list[Worker]] = {
            number: [key for key in job.keys if isinstance(key, Worker)]
            for number, job in enumerate(jobs)
        }
        rest: list[Worker] = []
        for worker in nameless:
            number = self._owner(worker, jobs)
            (owned[number] if number is not None else rest).append(worker)
        gone: dict[int, list[RankState]] = {number: [] for number in owned}
        lost: list[str] = []
        for worker in self.dead:
            number = self._owner_of_dead(
                self._rank(worker), self.identities[worker], jobs, owned, gone, not rest
            )
            if number is not None:
                owned[number].append(worker)
            elif jobs:
                lost.append(worker.address or f"rank {worker.rank}")
            else:
                rest.append(worker)
        for each in self.ended:
            number = self._owner_of_dead(each.rank, each.known, jobs, owned, gone, not rest)
            if number is not None and not self._is_asked(each.path):
                gone[number].append(_gone(each))
            elif not self._is_asked(each.path):
                lost.append(each.path)
        views = [self._view(job, owned[number], gone[number]) for number, job in enumerate(jobs)]
        if rest or not views:
            views.append(self._view(None, rest, []))
            views[-1].is_over = bool(rest or self.ended) and all(
                worker in self.dead for worker in rest
            )
        views[0].leftovers += _shown(lost) if not views[0].is_over else []
        return views

    def _pid(self, worker: Worker) -> int | None:
        health = next((each.health for each in self.states[worker] if each.health), None)
        return health.pid if health is not None else self.states[worker][-1].peer_pid

    def _is_asked(self, path: str) -> bool:
        return any(worker.address == path for worker in self.states)

    def _owner(self, worker: Worker, jobs: Sequence[Group]) -> int | None:
        """The job of a worker that doesn't tell it: the only one, if that can have its rank. Of
        several jobs none is guessed, because two jobs are never mixed."""
        return 0 if len(jobs) == 1 and _holds(jobs[0].world_size, self._rank(worker)) else None

    def _owner_of_dead(
        self,
        rank: int | None,
        known: Identity | None,
        jobs: Sequence[Group],
        owned: dict[int, list[Worker]],
        gone: dict[int, list[RankState]],
        only: bool,
    ) -> int | None:
        """The living job that lacks the rank of a worker that has ended; None for a leftover."""
        found = []
        for number, job in enumerate(jobs):
            if known is not None and not same_job(Member(None, known, _pid_of(known)), job):
                continue
            there = self._ranks(owned[number], gone[number])
            size = self.asked or job.world_size
            if rank is not None:
                if rank not in there and _holds(size, rank):
                    found.append(number)
            elif size is not None and only:
                missing = size - len(there - {None}) - sum(each is None for each in there)
                unknown = sum(self._rank(worker) is None for worker in self.dead)
                if missing == 1 and unknown == 1:
                    found.append(number)
        return found[0] if len(found) == 1 else None

    # ---- one job

    def _view(
        self, job: Group | None, workers: Sequence[Worker], gone: Sequence[RankState]
    ) -> JobView[R]:
        if len(workers) == 1 and not gone and self.asked in (None, 1):
            self._name_the_only_one(workers[0])
        mine = set(workers)
        rounds = []
        for look in self.rounds:
            states = [state for state in look.states if state.worker in mine]
            rounds.append(_with_states(look, [*states, *gone]))
        size = self.asked
        if size is None and job is not None:
            size = job.world_size
        view = JobView(job.label if job else None, rounds, job.name if job else None, size)
        view.notes = self._versions(workers)
        if size is not None:
            self._name_the_silent(size, workers, gone)
            if self.asked is None:
                view.elsewhere = self._elsewhere(size, workers, gone)
        return view

    def _versions(self, workers: Sequence[Worker]) -> list[str]:
        """Lines about the workers of ours that tell less than this version's do, or more."""
        last = [self.states[worker][-1].health for worker in workers]
        told = [health for health in last if health is not None]
        older = sum(health.job is None for health in told)
        newer = sum(health.newer for health in told)
        lines = []
        if older:
            lines.append(
                f"{_workers(older)} an older workerserver, which does not tell the job's name "
                "and size: ranks that nobody looked for are not known"
            )
        if newer:
            lines.append(
                f"{_workers(newer)} a newer workerserver than this command: what only that tells "
                "is not read"
            )
        return lines

    def _name_the_only_one(self, worker: Worker) -> None:
        """A process that no launcher has started, and that is in no process group, is rank 0."""
        known = self.identities[worker]
        if known is None or known.world_size is not None or self._rank(worker) is not None:
            return
        if known.agent is not None and known.agent.partition(":")[0] == str(self._pid(worker)):
            for state in self.states[worker]:
                state.rank = 0

    def _name_the_silent(
        self, size: int, workers: Sequence[Worker], gone: Sequence[RankState]
    ) -> None:
        """A rank that is missing and an address that does not answer are one thing, where there is
        one of each."""
        ranks = self._ranks(workers, gone)
        missing = [rank for rank in range(size) if rank not in ranks]
        nameless = [worker for worker in workers if self._rank(worker) is None]
        if len(missing) != 1 or len(nameless) != 1:
            return
        (worker,) = nameless
        for state in self.states[worker]:
            state.rank = missing[0]
            state.inferred = "the one rank that no other worker has"

    def _elsewhere(
        self, size: int, workers: Sequence[Worker], gone: Sequence[RankState]
    ) -> frozenset[int]:
        """The ranks below *size* that nobody has looked for: they run on other hosts, say."""
        if any(worker.source in _WHOLE and not worker.unix for worker in workers):
            return frozenset()
        looked = self._ranks(workers, gone)
        here = [known for worker in workers if (known := self.identities[worker]) is not None]
        for known in here:
            rank, local, count = known.rank, known.local_rank, known.local_world_size
            if rank is not None and local is not None and count is not None:
                looked.update(range(rank - local, min(rank - local + count, size)))
            elif known.local_world_size == size:
                looked.update(range(size))
        return frozenset(rank for rank in range(size) if rank not in looked)


def _workers(count: int) -> str:
    return f"{count} workers have" if count > 1 else "1 worker has"


def _holds(size: int | None, rank: int | None) -> bool:
    return size is None or rank is None or rank < size


def _pid_of(known: Identity) -> int | None:
    """The pid of a process that was its own agent: its name ends in it."""
    who = (known.agent or "").partition(":")[0]
    alone = known.job_from == PROCESS and known.job.endswith(f"-{who}")
    return int(who) if alone and who.isdecimal() else None


def _gone(ended: Ended) -> RankState:
    worker = Worker(ended.path, True, ended.rank, source="process", known=ended.known)
    text = ENDED if ended.pid is None else f"{ENDED} (pid {ended.pid})"
    return RankState(worker, ended.rank, failures={"healthz": Failure("unreachable", text)})


def _with_states(look: R, states: list[RankState]) -> R:
    return replace(look, states=states)  # type: ignore[type-var]


def _shown(paths: Iterable[str]) -> list[str]:
    """One line about leftovers, or none."""
    names = list(dict.fromkeys(paths))
    if not names:
        return []
    some = ", ".join(names[:MAX_SHOWN])
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return [f"left over from earlier workers, nobody listens: {some}{more}"]
