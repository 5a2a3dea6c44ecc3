"""Find a job's workers: at the named places, or else at the places in the environment."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from workerserver.cluster.addresses import parse_address, sockets
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.find.hosts import from_collectors, from_dns, from_hosts_file, from_slurm
from workerserver.cluster.find.store import workers_in_store
from workerserver.cluster.model import Worker
from workerserver.process.run_folder import run_folder, run_folders

__all__ = ["Options", "discover", "from_template"]

#: The wait for a store that only the environment names. A longer wait would delay the other places.
STORE_SECONDS = 3.0
_PLACEHOLDER = re.compile(r"\{(rank|local_rank|pid)\}")


@dataclass(frozen=True)
class Options:
    """Where to look. All given parts are searched; if no part is given, the environment decides.

    *targets*: sockets, their folders, patterns, templates with ``{rank}``, ``host:port``, URLs.
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
    environment: Mapping[str, str] | None = None


def discover(options: Options) -> list[Worker]:
    """All workers, each address once, in the order in which they are found.

    If *options* name no place, this function searches these places in order, and stops at the first
    one that has workers: the store at torchrun's MASTER_ADDR and MASTER_PORT; the nodes of a Slurm
    job, if the port is known; the sockets of TORCH_WORKER_SERVER_SOCKET; the sockets of
    ``workerserver run`` in the folder for temporary files. ClusterError if no worker is found.
    """
    environment = os.environ if options.environment is None else options.environment
    found: list[Worker] = []
    for target in options.targets:
        found += from_template(target) if _PLACEHOLDER.search(target) else parse_address(target)
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
    return _each_once(found or _from_environment(options, environment))


def from_template(template: str) -> list[Worker]:
    """The sockets that match a path with ``{rank}``, ``{local_rank}`` or ``{pid}``."""
    parts = _PLACEHOLDER.split(template.removeprefix("unix:"))
    pattern = "".join("*" if index % 2 else glob.escape(part) for index, part in enumerate(parts))
    expression = "".join(
        ("(?P<rank>[0-9]{1,9})" if part == "rank" and "rank" not in parts[1:index:2] else "[0-9]+")
        if index % 2
        else re.escape(part)
        for index, part in enumerate(parts)
    )
    by_name = re.compile(f"{expression}\\Z")
    workers = []
    for worker in sockets(pattern):
        match = by_name.match(worker.address)
        if match is not None:
            rank = int(match["rank"]) if "rank" in by_name.groupindex else None
            workers.append(replace(worker, rank=rank))
    if not workers:
        raise ClusterError(f"{template}: no socket there")
    return workers


def _from_environment(options: Options, environment: Mapping[str, str]) -> list[Worker]:
    tried: list[str] = []
    for look in _places(options, environment):
        try:
            return look()
        except ClusterError as error:
            tried.append(str(error))
    raise ClusterError(
        "no worker found. Name one: a socket, a folder of sockets or host:port. To start a program "
        f"with a worker server: workerserver run SCRIPT. Looked at: {'; '.join(tried)}"
    )


def _places(
    options: Options, environment: Mapping[str, str]
) -> Iterable[Callable[[], list[Worker]]]:
    host, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if host and port:
        size = environment.get("WORLD_SIZE", "")
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        yield lambda: _torchrun(address, int(size) if size.isdecimal() else None, options)
    if environment.get("SLURM_JOB_NODELIST") and (
        options.port is not None or environment.get("WORKERSERVER_TCP")
    ):
        yield lambda: from_slurm(environment, options.port)
    template = environment.get("TORCH_WORKER_SERVER_SOCKET", "")
    if template:
        yield lambda: [replace(worker, source="torchrun") for worker in from_template(template)]
    yield _own_folder


def _own_folder() -> list[Worker]:
    """The sockets of ``workerserver run``. Any user can make a folder with that name, so this
    function checks the owner: our token must not go to another user's sockets."""
    usual = run_folder()
    found: list[Worker] = []
    for folder in run_folders():
        with contextlib.suppress(ClusterError):  # no socket in it
            found += sockets(os.path.join(folder, "*"))
    if found:
        return found
    try:
        owner = os.lstat(usual).st_uid
    except OSError as error:
        raise ClusterError(f"{usual}: {error.strerror}") from None
    if owner != os.geteuid():
        raise ClusterError(f"{usual}: belongs to another user")
    return sockets(os.path.join(usual, "*"))


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
    """
    found: dict[tuple[str, int | None], Worker] = {}
    for worker in workers:
        key = (worker.address, None if worker.address else worker.rank)
        known = found.get(key)
        if known is None:
            found[key] = worker
        elif known.rank is None or (known.assumed and not worker.assumed):
            found[key] = replace(known, rank=worker.rank, assumed=worker.assumed)
    return list(found.values())
