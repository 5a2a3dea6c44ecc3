"""Addresses of workers as people and stores write them: sockets, patterns, host:port, URLs."""

from __future__ import annotations

import glob
import os
import re
import stat
from functools import lru_cache

from workerserver.cluster.errors import ClusterError, NoJob, NotATarget, NotPermitted
from workerserver.cluster.failures import not_permitted
from workerserver.cluster.model import Source, Worker

__all__ = ["host_port", "is_address", "parse_address", "sockets", "tcp_worker"]

FORMS = (
    "a socket's path, a folder or pattern of sockets, host:port, [::1]:port, http://host:port or "
    "https://host:port"
)
_HOST_PORT = re.compile(r"(?:\[(?P<six>[^][/\s]+)\]|(?P<host>[^][:/\s]+)):(?P<port>[0-9]{1,5})\Z")


def parse_address(text: str) -> list[Worker]:
    """The workers that *text* stands for, at least one.

    NotATarget if *text* can't be an address; ClusterError for a folder or pattern without sockets.
    A path that exists is taken literally: so a socket can be reached whose name looks like a
    pattern.
    """
    if text.startswith("unix:") and text != "unix:":
        return sockets(text[len("unix:") :])
    if text.startswith(("http://", "https://")):
        return [tcp_worker(text)]
    if "/" in text or text.endswith(".sock") or os.path.lexists(text):
        return sockets(text)
    if _HOST_PORT.match(text):
        return [tcp_worker(text)]
    if glob.has_magic(text):
        return sockets(text)
    raise NotATarget(f"{text!r} is not a target: give {FORMS}")


def is_address(text: str) -> bool:
    """Whether *text* can be an address, even one of nobody."""
    try:
        parse_address(text)
    except NotATarget:
        return False
    except ClusterError:
        return True
    return True


def tcp_worker(text: str, *, rank: int | None = None, source: Source = "argument") -> Worker:
    """The worker at ``host:port`` or ``http[s]://host:port``; NotATarget for anything else."""
    rest, tls = text, False
    for scheme in ("http://", "https://"):
        if text.startswith(scheme):
            rest, tls = text[len(scheme) :].rstrip("/"), scheme == "https://"
    host, _ = host_port(rest, text)
    return Worker(rest, unix=False, rank=rank, host=host, source=source, tls=tls)


def host_port(address: str, shown: str | None = None) -> tuple[str, int]:
    """Host (IPv6 without its brackets) and port; NotATarget, which shows *shown*, if *address* is
    something else."""
    found = _host_port(address)
    if found is None:
        raise NotATarget(
            f"{address if shown is None else shown!r} is not a target: "
            "after the host give a colon and a port from 1 to 65535"
        )
    return found


@lru_cache(maxsize=1 << 15)
def _host_port(address: str) -> tuple[str, int] | None:
    """Kept, because the address of a worker is parsed in every round."""
    match = _HOST_PORT.match(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        return None
    return match["six"] or match["host"], int(match["port"])


def sockets(path: str, *, needed: bool = True) -> list[Worker]:
    """The Unix sockets in folder *path*, or that match pattern *path*; else *path* itself.

    Sorted as people count (rank2 before rank10). ClusterError for a folder or pattern without
    sockets, if one is *needed*.
    """
    if os.path.isdir(path):
        try:
            names = [os.path.join(path, name) for name in os.listdir(path)]
        except PermissionError:
            raise NotPermitted(f"{path}: {not_permitted(path)}") from None
        except OSError as error:
            raise ClusterError(f"{path}: {error.strerror}") from None
    elif glob.has_magic(path) and not os.path.lexists(path):
        names = glob.glob(path)
        if not names:
            _check_readable(path)
    else:
        return [Worker(path, unix=True)]
    workers = [
        Worker(name, unix=True, source="glob")
        for name in sorted(filter(_is_socket, names), key=_natural)
    ]
    if not workers and needed:
        raise NoJob(f"{path}: no socket there")
    return workers


def _check_readable(pattern: str) -> None:
    """NotPermitted if a folder on the way to *pattern* may not be read: glob then finds nothing."""
    folder = os.path.dirname(pattern) or "."
    while glob.has_magic(folder):
        folder = os.path.dirname(folder) or "."
    try:
        os.listdir(folder)
    except PermissionError:
        raise NotPermitted(f"{pattern}: {not_permitted(folder)}") from None
    except OSError:
        return


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _natural(path: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", path)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
