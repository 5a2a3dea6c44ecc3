"""Find a job's workers: at the named places, or else at the places in the environment."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from workerserver.cluster.addresses import parse_address, sockets
from workerserver.cluster.errors import ClusterError, NoJob, NotPermitted
from workerserver.cluster.failures import as_user, user_name
from workerserver.cluster.find.group import Group, Member, group
from workerserver.cluster.find.here import Ended, Here, Living, look_here, of_process_or_launcher
from workerserver.cluster.find.hosts import from_collectors, from_dns, from_hosts_file, from_slurm
from workerserver.cluster.find.launched import others, servers_of_others, store_among
from workerserver.cluster.find.store import workers_in_store
from workerserver.cluster.model import Worker
from workerserver.job.proc import stat_of, user_of

__all__ = ["Found", "Options", "discover", "from_template", "look_around", "why_nobody"]

#: The wait for a store that only the environment names. A longer wait would delay the other places.
STORE_SECONDS = 3.0
_PLACEHOLDER = re.compile(r"\{(rank|local_rank|pid)\}")


@dataclass(frozen=True)
class Options:
    """Where to look. All given parts are searched; if no part is given, the environment decides.

    *targets*: sockets, their folders, patterns, templates with ``{rank}``, ``host:port``, URLs, the
    pids of workers and of launchers. *whole*: a pid stands for its whole job. *job*: the name of a
    job on this machine.
    *hosts_file*: see :func:`hosts.from_hosts_file`. *port*: the port for *slurm*, and for hosts in
    *hosts_file* and *collectors* that have none. *store*: ``host:port`` of a TCPStore.
    *world_size*: the number of ranks that the store must have. *dns*: ``NAME:PORT[-PORT]``.
    *collectors*: ``host:port``, also as a list or a range. *deadline*: seconds for each store and
    for each DNS name.
    """

    targets: Sequence[str] = ()
    hosts_file: str | None = None
    store: str | None = None
    dns: Sequence[str] = ()
    collectors: Sequence[str] = ()
    slurm: bool = False
    port: str | None = None
    world_size: int | None = None
    deadline: float = 10.0
    job: str | None = None
    whole: bool = False
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Found:
    """*ended*: what workers have left that serve no more."""

    workers: list[Worker]
    ended: Sequence[Ended] = ()

    @property
    def labels(self) -> list[str]:
        """The jobs of the workers, as far as they are known before anybody is asked."""
        return sorted(job.label for job in self._jobs())

    def of_job(self, name: str | None) -> Found:
        """Of several jobs that are known before anybody is asked: the newest one of that name, or
        else the newest one of all. Workers of no known job stay."""
        jobs = self._jobs()
        if len(jobs) < 2:
            return self
        named = [job for job in jobs if name in (job.name, job.label)]
        wanted = {id(key) for key in (named or jobs)[0].keys}
        return replace(
            self,
            workers=[each for each in self.workers if each.known is None or id(each) in wanted],
        )

    def _jobs(self) -> list[Group]:
        """The newest one first."""
        return group([Member(each, each.known) for each in self.workers if each.known is not None])


def discover(options: Options) -> list[Worker]:
    """All workers, each address once, in the order in which they are found: :func:`look_around`
    without what ended workers have left. ClusterError if no worker is found."""
    found = look_around(options)
    if not found.workers:
        raise NoJob(why_nobody(found))
    return found.workers


def look_around(options: Options) -> Found:
    """The workers at the places that *options* name.

    If they name no place, this function searches these places in order, and stops at the first one
    that has workers: the store at torchrun's MASTER_ADDR and MASTER_PORT; the nodes of a Slurm job,
    if the port is known; the sockets of TORCH_WORKER_SERVER_SOCKET; all workers of this user on
    this machine (:mod:`here`). With *job*, only the latter. ClusterError if nothing is found, not
    even what an ended worker has left.
    """
    environment = os.environ if options.environment is None else options.environment
    found: list[Worker] = []
    ended: list[Ended] = []
    for target in options.targets:
        if target.isdecimal() and target.isascii() and not os.path.lexists(target):
            of_pid = _of_pid(int(target), options.whole)
            found += of_pid.workers
            ended += of_pid.ended
        elif _PLACEHOLDER.search(target):
            found += from_template(target)
        else:
            found += parse_address(target)
    _no_store(found)
    if options.hosts_file is not None:
        found += from_hosts_file(options.hosts_file, options.port)
    if options.store is not None:
        found += workers_in_store(
            options.store, world_size=options.world_size, deadline=options.deadline
        )
    if options.slurm:
        found += from_slurm(environment, options.port)
    for name in options.dns:
        found += from_dns(name, options.deadline)
    for text in options.collectors:
        found += from_collectors(text, options.port)
    if found or ended:
        return Found(_each_once(found), ended)
    return _from_environment(options, environment)


def _no_store(workers: Sequence[Worker]) -> None:
    """ClusterError if one of them is where the ranks of a job on this machine meet. Nothing serves
    there, and torch's store answers no HTTP request, not even with an error."""
    named = [each.address for each in workers if not each.unix and each.known is None]
    found = store_among(named) if named else None
    if found is None or any(each.worker.address == found[0] for each in look_here().living):
        return
    address, pid = found
    raise ClusterError(
        f"{address} is no worker but the TCPStore of a job (MASTER_PORT of process {pid}): give "
        f"the pid {pid}, or --store {address}"
    )


def _of_pid(pid: int, whole: bool) -> Found:
    """The worker that process *pid* is, or the workers that it has started. *whole*: with all
    others of its job."""
    here = look_here()
    own = of_process_or_launcher(here, pid)
    owner = user_of(pid)
    if not own and owner not in (None, os.geteuid()):
        assert owner is not None
        if os.geteuid() != 0:
            name = user_name(owner)
            raise NotPermitted(f"process {pid} belongs to {name}{as_user(name)}")
        here = look_here(owner)
        own = of_process_or_launcher(here, pid)
    if not own:
        if stat_of(pid) is None:
            raise NoJob(f"there is no process {pid}")
        raise NoJob(f"process {pid} is no worker with a server, and has started none")
    if not whole:
        return Found([each.worker for each in own])
    jobs = _jobs(here.living)
    wanted = [job for job in jobs if any(each in job.keys for each in own)]
    return _of_jobs(here, wanted, jobs)


def _jobs(living: Sequence[Living]) -> list[Group]:
    return group(
        [
            Member(each, each.worker.known, each.pid)
            for each in living
            if each.worker.known is not None
        ]
    )


def _of_jobs(here: Here, wanted: Sequence[Group], jobs: Sequence[Group]) -> Found:
    """The *wanted* ones of *jobs*, and the ended workers that may have been theirs."""
    keys = {id(key) for job in wanted for key in job.keys}
    workers = [each.worker for each in here.living if id(each) in keys]
    names = {job.name for job in wanted}
    others = {job.name for job in jobs} - names
    ended = [each for each in here.ended if each.known is not None and each.known.job not in others]
    return Found(workers, [each for each in ended if each.known and each.known.job in names])


def from_template(template: str) -> list[Worker]:
    """The sockets that match a path with ``{rank}``, ``{local_rank}`` or ``{pid}``.

    Where no launcher had told the rank, all but one of the siblings have their pid before the
    suffix (``rank0.4711.sock``), and only the workers themselves know their ranks.
    """
    parts = _PLACEHOLDER.split(template.removeprefix("unix:"))
    pattern = "".join("*" if index % 2 else glob.escape(part) for index, part in enumerate(parts))
    expression = "".join(
        ("(?P<rank>[0-9]{1,9})" if part == "rank" and "rank" not in parts[1:index:2] else "[0-9]+")
        if index % 2
        else re.escape(part)
        for index, part in enumerate(parts)
    )
    by_name = re.compile(f"{expression}\\Z")
    base, dot, suffix = pattern.rpartition(".")
    if "/" in suffix or not dot:
        base, suffix = pattern, ""
    before, dot, after = expression.rpartition(re.escape("."))
    siblings = re.compile(f"{before}\\.[0-9]+{re.escape('.')}{after}\\Z" if dot else "(?!)")
    found = sockets(pattern, needed=False)
    found += sockets(f"{base}.*.{suffix}" if suffix else f"{base}.*", needed=False)
    workers = []
    guessed = False
    for worker in {each.address: each for each in found}.values():
        match = by_name.match(worker.address)
        if match is not None:
            rank = int(match["rank"]) if "rank" in by_name.groupindex else None
            workers.append(replace(worker, rank=rank, source="template"))
        elif siblings.match(worker.address):
            guessed = True
            workers.append(replace(worker, source="template"))
    if not workers:
        raise NoJob(f"{template}: no socket there")
    if guessed:  # so the name of the first one tells nothing either
        workers = [replace(each, assumed=each.rank is not None) for each in workers]
    return workers


def _from_environment(options: Options, environment: Mapping[str, str]) -> Found:
    tried: list[str] = []
    if options.job is None:
        for look in _places(options, environment):
            try:
                return Found(look())
            except ClusterError as error:
                tried.append(str(error))
    here = look_here()
    jobs = _jobs(here.living)
    wanted = jobs
    if options.job is not None:
        wanted = [job for job in jobs if options.job in (job.name, job.label)]
        if not wanted:
            return _no_such_job(options.job, here, jobs)
        return _of_jobs(here, wanted, jobs)
    if not here.living and not here.ended:
        looked = f" (looked at: {'; '.join(tried)})" if tried else ""
        raise NoJob(
            f"no worker found: no process of this user has a worker server on this machine{looked}",
            *(f"{line[0].upper()}{line[1:]}" for line in others()),
            "To name one: workerserver diagnose SOCKET, FOLDER, HOST:PORT or --store HOST:PORT",
            "To start a job with a server: torchrun ... -m workerserver run train.py",
        )
    return Found([each.worker for each in here.living], here.ended)


def _no_such_job(name: str, here: Here, jobs: Sequence[Group]) -> Found:
    """The job may have ended."""
    ended = [each for each in here.ended if each.known is not None and each.known.job == name]
    if ended:
        return Found([], ended)
    there = ", ".join(sorted(job.label for job in jobs)) or "none"
    no_job = f"no job {name} of this user on this machine; there are: {there}"
    raise NoJob("; ".join(filter(None, (no_job, servers_of_others()))))


def why_nobody(found: Found) -> str:
    """Why nobody can be asked: the job has ended."""
    names = sorted({each.known.job for each in found.ended if each.known is not None})
    which = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    count = len(found.ended)
    left = f"{count} worker{'s have' if count > 1 else ' has'} left something"
    return "; ".join([f"the job has ended{which}: {left}, nobody listens", *others()])


def _places(
    options: Options, environment: Mapping[str, str]
) -> Iterable[Callable[[], list[Worker]]]:
    host, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if host and port:
        size = environment.get("WORLD_SIZE", "")
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        yield lambda: _torchrun(address, int(size) if size.isdecimal() else None, options)
    if environment.get("SLURM_JOB_NODELIST") and (
        options.port is not None
        or environment.get("WORKERSERVER_TCP")
        or environment.get("WORKERSERVER_COLLECTOR")
    ):
        yield lambda: from_slurm(environment, options.port)
    template = environment.get("TORCH_WORKER_SERVER_SOCKET", "")
    if template:
        yield lambda: [replace(worker, source="torchrun") for worker in from_template(template)]


def _torchrun(address: str, world_size: int | None, options: Options) -> list[Worker]:
    workers = workers_in_store(
        address,
        world_size=options.world_size or world_size,
        deadline=min(options.deadline, STORE_SECONDS),
    )
    return [replace(worker, source="torchrun") for worker in workers]


def _each_once(workers: Iterable[Worker]) -> list[Worker]:
    """*workers* without doubles: each address once, and each rank without an address once.

    The first of equal addresses stays. If that worker has no rank, it gets a later worker's rank.
    A collector is no double of a worker: the job's store may name a worker's address as one.
    """
    found: dict[tuple[str, int | None, bool], Worker] = {}
    for worker in workers:
        rank = None if worker.address else worker.rank
        key = (worker.address, rank, worker.collector)
        known = found.get(key)
        if known is None:
            found[key] = worker
        elif known.rank is None or (known.assumed and not worker.assumed):
            found[key] = replace(known, rank=worker.rank, assumed=worker.assumed)
    return list(found.values())
