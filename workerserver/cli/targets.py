"""TARGET on the command line: what it may look like and what it stands for."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from workerserver.cli.errors import UsageError

__all__ = ["Target", "parse_target", "parse_targets"]

FORMS = "a socket's path, a folder or pattern of sockets, host:port, [::1]:port or http://host:port"
_HOST_PORT = re.compile(r"(?:\[(?P<six>[^][/\s]+)\]|(?P<host>[^][:/\s]+)):(?P<port>[0-9]{1,5})\Z")


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
    """The targets that *text* stands for, at least one.

    A path that exists is taken literally, so a socket whose name looks like a pattern can be
    reached. UsageError for what is no target, and for a folder or pattern without sockets.
    """
    if text.startswith("unix:") and text != "unix:":
        return _sockets(text[len("unix:") :])
    if text.startswith("https://"):
        raise UsageError(f"{text}: workers speak plain HTTP")
    if text.startswith("http://"):
        return [_tcp(text, text[len("http://") :].rstrip("/"))]
    if "/" in text or os.path.lexists(text):
        return _sockets(text)
    if _HOST_PORT.match(text):
        return [_tcp(text, text)]
    if glob.has_magic(text):
        return _sockets(text)
    raise UsageError(f"{text!r} is not a target: give {FORMS}")


def _tcp(text: str, rest: str) -> Target:
    match = _HOST_PORT.match(rest)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise UsageError(f"{text!r} is not a target: a port from 1 to 65535 has to follow the host")
    return Target(rest, host=match["six"] or match["host"], port=int(match["port"]))


def _sockets(path: str) -> list[Target]:
    if os.path.isdir(path):
        names = [os.path.join(path, name) for name in os.listdir(path)]
    elif glob.has_magic(path) and not os.path.lexists(path):
        names = glob.glob(path)
    else:
        return [Target(path, path)]
    sockets = sorted(filter(_is_socket, names), key=_natural)
    if not sockets:
        raise UsageError(f"{path}: no socket there")
    return [Target(name, name) for name in sockets]


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts rank10 behind rank2."""
    parts = re.split(r"([0-9]+)", path)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
