"""Find a job's workers: where they are named, or else where the environment says."""

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

#: A store that only the environment names must not delay the other places for long.
STORE_SECONDS = 3.0
_PLACEHOLDER = re.compile(r"\{(rank|local_rank|pid)\}")


@dataclass(frozen=True)
class Options:
    """Where to look. Every part that is given counts; without any, the environment decides.

    *targets*: sockets, folders or patterns of them, templates with ``{rank}``, ``host:port``, URLs.
    *hosts_file*: see :func:`hosts.from_hosts_file`. *port* is for *slurm*, and for hosts of
    *hosts_file* and *collectors* without a port. *store*: ``host:port`` of a TCPStore.
    *world_size*: how many ranks must be in it. *dns*: ``NAME:PORT[-PORT]``. *collectors*:
    ``host:port``, lists and ranges of them. *deadline* (seconds) is for each store and each name.
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
    """All workers, each address once, in the order found. ClusterError if there are none.

    If nothing is named, the first of these places that has workers counts: the store that
    torchrun's MASTER_ADDR and MASTER_PORT name; the nodes of a Slurm job, if the port is known; the
    sockets of TORCH_WORKER_SERVER_SOCKET; the sockets of ``workerserver run`` in the folder for
    temporary files.
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
    """The sockets that a path with ``{rank}``, ``{local_rank}``, ``{pid}`` stands for."""
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
    """The sockets of ``workerserver run``. Any user can make a folder of that name, and a token
    must not go to that user's sockets."""
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
    """*workers*, each address once; of ranks without an address, each rank once. The first one
    stays, but gets the rank of a later one if it has none."""
    found: dict[tuple[str, int | None], Worker] = {}
    for worker in workers:
        key = (worker.address, None if worker.address else worker.rank)
        known = found.get(key)
        if known is None:
            found[key] = worker
        elif known.rank is None or (known.assumed and not worker.assumed):
            found[key] = replace(known, rank=worker.rank, assumed=worker.assumed)
    return list(found.values())
