"""What the environments of this user's processes tell of jobs, beside their workers.

For messages only: nobody is asked anything because of it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping

from workerserver.cluster.addresses import host_port
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.failures import as_user, user_name
from workerserver.cluster.find.here import ancestors, serves
from workerserver.job import proc
from workerserver.job.identity import number, rank_in
from workerserver.ranks import fold, named

__all__ = ["others", "ranks_without_server", "servers_of_others", "store_among"]

MAX_USERS = 3


def store_among(addresses: Iterable[str]) -> tuple[str, int] | None:
    """The first of *addresses* (``host:port``) that is the TCPStore of a job on this machine, and
    a process of that job; None if no process tells so."""
    meeting: dict[tuple[str, int], int] = {}
    for pid, environment in _environments().items():
        port = number(environment.get("MASTER_PORT"))
        if port is not None and not proc.is_elsewhere("net", pid):  # a container's localhost
            meeting.setdefault((_host(environment.get("MASTER_ADDR", "")), port), pid)
    for address in addresses:
        try:
            host, port = host_port(address)
        except ClusterError:
            continue
        member = meeting.get((_host(host), port))
        if member is not None:
            return address, member
    return None


def ranks_without_server() -> dict[int, int]:
    """The rank of each process that a launcher has started as one of a job, by its pid. For
    whoever has found no worker: so none of them serves."""
    environments = {
        pid: environment
        for pid, environment in _environments().items()
        if rank_in(environment) is not None and environment.get("WORLD_SIZE")
    }
    ranks: dict[int, int] = {}
    for pid, environment in environments.items():
        stat = proc.stat_of(pid)
        rank = rank_in(environment)
        # What a rank starts has its environment: the workers of a DataLoader, say.
        above = {} if stat is None else environments.get(stat.parent, {})
        if stat is not None and rank is not None and rank != rank_in(above):
            ranks[pid] = rank
    return ranks


def without_server() -> str:
    """A sentence about them; empty if there are none."""
    ranks = ranks_without_server()
    if not ranks:
        return ""
    some = len(ranks) > 1
    which = f"process{'es' * some} {fold(ranks)} ({named(sorted(set(ranks.values())))})"
    return (
        f"{which} of a job {'have' if some else 'has'} no server: if the job is just starting, ask "
        "again; else it was started without one"
    )


def servers_of_others() -> str:
    """A sentence about processes of other users that have a server of ours; empty if there are
    none."""
    found: dict[int, list[int]] = {}
    mine = os.geteuid()
    for user, pid in proc.of_all():
        if user != mine and serves(pid):
            found.setdefault(user, []).append(pid)
    parts = []
    for user, pids in sorted(found.items())[:MAX_USERS]:
        some, name = len(pids) > 1, user_name(user)
        how = f": workerserver diagnose {min(pids)}" if mine == 0 else as_user(name)
        which = f"process{'es' * some} {fold(pids)} of {name} {'have' if some else 'has'} a server"
        parts.append(f"{which}{how}")
    return "; ".join(parts)


def others() -> list[str]:
    """What can be said to whoever has found no worker, a line each."""
    return [line for line in (without_server(), servers_of_others()) if line]


def _environments() -> Mapping[int, Mapping[str, str]]:
    """By pid, without the process that asks and those that have started it."""
    asking = {os.getpid(), *ancestors(os.getpid())}
    pids = [pid for pid in proc.of_user(os.geteuid()) if pid not in asking]
    return {pid: environment for pid in pids if (environment := proc.environment_of(pid))}


def _host(name: str) -> str:
    """One name for all by which a process may call this machine."""
    return "" if name in ("localhost", "127.0.0.1", "::1", socket.gethostname()) else name
