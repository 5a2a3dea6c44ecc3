"""Which processes are one job: by what each of them says it is, and by nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from workerserver.job.identity import PROCESS, Identity

__all__ = ["Group", "Member", "base_name", "group", "same_job"]


@dataclass(frozen=True, slots=True)
class Member:
    """A process. *key*: whatever the caller knows it by."""

    key: object
    identity: Identity
    pid: int | None = None

    @property
    def is_alone(self) -> bool:
        """Whether nobody has started it but a user or a service: it is its own agent."""
        who = (self.identity.agent or "").partition(":")[0]
        return self.pid is not None and who == str(self.pid)


@dataclass(slots=True)
class Group:
    """The processes of one job. *label*: its name, and what tells it from another job of the name.
    *units*: one member of each launcher, by host."""

    name: str
    restart: int = 0
    members: list[Member] = field(default_factory=list)
    ranks: set[int] = field(default_factory=set)
    world_size: int | None = None
    started: float = 0.0
    units: dict[str | None, list[Member]] = field(default_factory=dict)
    label: str = ""

    @property
    def keys(self) -> list[object]:
        return [each.key for each in self.members]

    def add(self, member: Member) -> None:
        known = member.identity
        self.members.append(member)
        if known.rank is not None:
            self.ranks.add(known.rank)
        if known.world_size is not None:
            self.world_size = max(self.world_size or 0, known.world_size)
        self.started = max(self.started, known.started or 0.0)
        if len(self.members) == 1:
            self.units[known.host] = [member]

    def take(self, other: Group) -> None:
        """*other* is a part of this job."""
        self.members += other.members
        self.ranks |= other.ranks
        if other.world_size is not None:
            self.world_size = max(self.world_size or 0, other.world_size)
        for host, units in other.units.items():
            self.units.setdefault(host, []).extend(units)


def base_name(name: str) -> str:
    """The name of a Slurm job without its step: another step of it may ask."""
    return name.partition(".")[0] if name.startswith("slurm-") else name


def same_job(ended: Member, job: Group) -> bool:
    """Whether a process that has ended was one of *job*."""
    known = ended.identity
    if known.job != job.name or (known.restart or 0) != job.restart:
        return False
    if known.world_size is not None and job.world_size not in (None, known.world_size):
        return False
    units = job.units.get(known.host, [])
    return not units or any(_may_be_one(ended, each) for each in units)


def group(members: Sequence[Member]) -> list[Group]:
    """The jobs of *members*, the newest first.

    Processes that one launcher has started are one job, as long as they have one name, and are of
    one start (torchrun's restarts). Two launchers on one host are two jobs, unless torchrun has
    numbered them as nodes of one job. On several hosts, what has one name is one job, if no rank is
    there twice and the world sizes agree.
    """
    units: dict[tuple[object, ...], Group] = {}
    for member in _named(members):
        known = member.identity
        alone = member.key if known.agent is None else None
        key = (known.job, known.host, known.agent, alone, known.restart or 0)
        units.setdefault(key, Group(known.job, known.restart or 0)).add(member)
    found: list[Group] = []
    for unit in sorted(units.values(), key=lambda each: -each.started):
        for job in found:
            if _fit(job, unit):
                job.take(unit)
                break
        else:
            found.append(unit)
    _label(found)
    return found


def _named(members: Sequence[Member]) -> list[Member]:
    """*members*, where a process that has no name from its environment yet has the name of the
    others that its launcher has started."""
    firm: dict[tuple[str | None, str], set[tuple[str, str]]] = {}
    for each in members:
        known = each.identity
        if known.agent is not None and known.job_from != PROCESS:
            firm.setdefault((known.host, known.agent), set()).add((known.job, known.job_from))
    result = []
    for each in members:
        known = each.identity
        names = firm.get((known.host, known.agent)) if known.agent is not None else None
        if known.job_from == PROCESS and names is not None and len(names) == 1:
            ((job, job_from),) = names
            each = replace(each, identity=replace(known, job=job, job_from=job_from))
        result.append(each)
    return result


def _fit(one: Group, other: Group) -> bool:
    """Whether two units of processes are parts of one job."""
    if one.name != other.name or one.restart != other.restart:
        return False
    if None not in (one.world_size, other.world_size) and one.world_size != other.world_size:
        return False
    if not one.ranks.isdisjoint(other.ranks):
        return False
    for host, units in other.units.items():
        if host not in one.units and units[0].identity.job_from == PROCESS:
            return False
        if not all(_may_be_one(a, b) for a in one.units.get(host, ()) for b in units):
            return False
    return True


def _may_be_one(a: Member, b: Member) -> bool:
    """For two processes on one host."""
    one, other = a.identity, b.identity
    if one.agent is None or other.agent is None or one.agent == other.agent:
        return True
    if a.is_alone or b.is_alone:  # Ray, say: each worker has only its environment
        return None not in (one.rank, other.rank, one.world_size, other.world_size)
    nodes = (one.group_rank, other.group_rank)
    return None not in nodes and nodes[0] != nodes[1]


def _label(found: Sequence[Group]) -> None:
    names = [each.name for each in found]
    for each in found:
        each.label = each.name
        if names.count(each.name) > 1:
            agents = {member.identity.agent for member in each.members} - {None}
            who = ", ".join(sorted(str(agent).partition(":")[0] for agent in agents))
            alike = [other for other in found if other.name == each.name and other is not each]
            if all(other.restart != each.restart for other in alike):
                each.label += f" (restart {each.restart})"
            elif who:
                each.label += f" (started by process {who})"
