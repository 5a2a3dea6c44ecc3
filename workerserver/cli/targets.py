"""TARGET on the command line: what it may look like and what it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workerserver.cli.errors import UsageError
from workerserver.cluster.addresses import host_port, parse_address
from workerserver.cluster.errors import ClusterError

__all__ = ["Target", "parse_target", "parse_targets"]


@dataclass(frozen=True, slots=True)
class Target:
    """One server: a Unix socket's *path*, or *host* and *port*. *name* is how it is shown."""

    name: str
    path: str | None = None
    host: str = "localhost"
    port: int = 80


def parse_targets(texts: Iterable[str]) -> list[Target]:
    """All targets in the order given, each once. UsageError as :func:`parse_target`."""
    found = {target.name: target for text in texts for target in parse_target(text)}
    return list(found.values())


def parse_target(text: str) -> list[Target]:
    """The targets that *text* stands for, at least one; see ``cluster.addresses``.

    UsageError for what is no target, and for a folder or pattern without sockets.
    """
    if text.startswith("https://"):
        raise UsageError(f"{text}: only the commands on whole jobs speak TLS")
    try:
        return [
            Target(worker.address, worker.address)
            if worker.unix
            else Target(worker.address, None, *host_port(worker.address))
            for worker in parse_address(text)
        ]
    except ClusterError as error:
        raise UsageError(str(error)) from None
