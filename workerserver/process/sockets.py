"""Listening sockets: how to bind and remove them as a guest in somebody else's process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

__all__ = [
    "BACKLOG",
    "Figures",
    "UnixListener",
    "bind_tcp",
    "close_accepted",
    "close_from",
    "descriptor_line",
    "fill_standard_descriptors",
    "is_listening",
    "reachable_name",
    "remove_stale",
    "silence_standard_streams",
]

BACKLOG = 1024
LOCK_SECONDS = 1.0
#: What the kernel keeps of a connection's replies: those on their way, and of these those that the
#: network has not even taken yet.
SEND_BUFFER_BYTES = 256 << 10
UNREAD_BYTES = 64 << 10
#: Descriptors that are left to training: a quarter of the soft limit, and at least so many.
SPARED = 64
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
# sockaddr_un.sun_path, without the final NUL: 108 bytes on Linux, 104 elsewhere.
MAX_PATH_BYTES = 107 if os.uname().sysname == "Linux" else 103


class Figures(NamedTuple):
    """Connections that have not shown the token yet, those of the peer that has most, and how many
    so far were closed for a newcomer, or were newcomers for whom there was no place."""

    unproven: int
    busiest_peer: int
    evicted: int
    refused: int


@contextlib.contextmanager
def reachable_name(path: str) -> Iterator[str]:
    """While the block runs, a name of *path* that is short enough for connect().

    The process that listens may know its socket by a shorter name: that of a container's file
    begins with /proc/PID/root here. The folder is then held open, and the name leads through its
    descriptor. OSError if the folder can't be opened, ENAMETOOLONG if that name is too long, too.
    """
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield path
        return
    folder, name = os.path.split(path)
    too_long = OSError(errno.ENAMETOOLONG, f"the path is too long: {MAX_PATH_BYTES} bytes at most")
    if not hasattr(os, "O_PATH"):  # Linux has it
        raise too_long
    opened = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{opened}/{name}"
        if len(os.fsencode(short)) > MAX_PATH_BYTES:
            raise too_long
        yield short
    finally:
        os.close(opened)


def descriptor_line() -> float:
    """The highest number that a connection's descriptor may have."""
    soft = os.sysconf("SC_OPEN_MAX")  # the soft limit; the module resource is 40 KiB
    if soft == -1:  # no limit
        return float("inf")
    return soft - max(SPARED, soft // 4)


def fill_standard_descriptors() -> None:
    """Open /dev/null for each of the descriptors 0, 1 and 2 that the launcher left closed.

    Otherwise a socket would get that number. Then a client would receive what the process prints,
    and libuv aborts a process in which it has to close a descriptor below 3.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def close_from(first: int) -> None:
    """Close the descriptors from *first* on, in a process that has just been forked."""
    os.closerange(first, max(map(int, os.listdir("/proc/self/fd"))) + 1)


def silence_standard_streams() -> None:
    """Put /dev/null in place of the descriptors 0, 1 and 2, in a process that outlives whoever has
    started it: who reads its output sees the end."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


class UnixListener:
    """A listening Unix socket and the file that names it.

    Raises RuntimeError with torch's texts. ``{path} already exists``: something is at the path, and
    it is not a stale socket of our own user. ``Error binding to {path}``: any other reason; the
    error's ``__cause__`` is that reason.
    """

    def __init__(self, path: str) -> None:
        try:
            self.path = os.path.abspath(path)  # chdir() must not make us remove another file
            size = len(os.fsencode(path))
            if not path or "\0" in path:
                raise OSError(errno.EINVAL, "a socket path can't be empty or hold a NUL byte")
            if size > MAX_PATH_BYTES:
                raise OSError(
                    errno.ENAMETOOLONG,
                    f"a socket path holds at most {MAX_PATH_BYTES} bytes; this one has {size}",
                )
            with _locked_folder(os.path.dirname(self.path)):
                self.socket = self._bind(path)
        except (OSError, UnicodeError) as error:
            raise RuntimeError(f"Error binding to {path}") from error

    def _bind(self, path: str) -> socket.socket:
        if os.path.lexists(path):
            if not _is_stale(path):
                raise RuntimeError(f"{path} already exists")
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before bind(), because the file gets its mode from the descriptor. So other users can
            # connect at no moment, and the umask of the whole process stays as it is.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(path)
            try:
                info = os.stat(path)
                self._identity = (info.st_dev, info.st_ino)
                sock.listen(BACKLOG)
                sock.setblocking(False)
            except BaseException:
                os.unlink(path)
                raise
        except BaseException:
            sock.close()
            raise
        return sock

    def remove(self) -> None:
        """Remove the socket file, if the path still names the socket that we bound."""
        with contextlib.suppress(OSError):
            info = os.lstat(self.path)
            if (info.st_dev, info.st_ino) == self._identity:
                os.unlink(self.path)


def remove_stale(path: str) -> bool:
    """Remove the socket file *path* if it is our own user's and no process listens on it any more.
    Whether it was removed."""
    try:
        with _locked_folder(os.path.dirname(path)):
            if _is_stale(path):
                os.unlink(path)
                return True
    except OSError:
        pass
    return False


def is_listening(path: str) -> bool:
    """Whether *path* is a socket of our own user on which a process listens."""
    try:
        info = os.lstat(path)
        return stat.S_ISSOCK(info.st_mode) and info.st_uid == os.geteuid() and not _is_stale(path)
    except OSError:
        return False


def _is_stale(path: str) -> bool:
    """Whether *path* is a socket of our own user and no process listens on it any more."""
    info = os.lstat(path)
    if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.geteuid():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener with a full backlog is alive: EAGAIN
        return probe.connect_ex(path) == errno.ECONNREFUSED


@contextlib.contextmanager
def _locked_folder(folder: str) -> Iterator[None]:
    """Hold the folder's lock, so that two starting servers can't both take the same stale socket.

    Best effort: if a folder can't be locked (on some network file systems), the block runs anyway.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # the folder may be writable and yet not readable
        yield
        return
    try:
        give_up = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    break
                time.sleep(0.005)
            except OSError:
                break
        yield
    finally:
        os.close(fd)


def close_accepted(names: Iterable[Any]) -> None:
    """In a forked child: close the connections made to listeners with these socket names.

    After accept(), only C code knows a connection's descriptor until the loop tells Python. Without
    this function the child would keep such a connection open after the parent has closed it.
    """
    wanted = {_connection_key(name) for name in names}
    with contextlib.suppress(OSError):
        for fd in map(int, os.listdir("/dev/fd")):
            with contextlib.suppress(OSError):
                if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                    continue
                sock = socket.socket(fileno=fd)
                try:
                    family, kind, name = sock.family, sock.type, sock.getsockname()
                finally:
                    sock.detach()
                if kind != socket.SOCK_STREAM or family not in FAMILIES:
                    continue
                keys = (name,) if family == socket.AF_UNIX else (name[:2], name[1])
                if wanted.intersection(keys):
                    os.close(fd)


def _connection_key(name: Any) -> Any:
    """The part that a listener's name shares with its connections' names: the path, or host and
    port, or only the port if the listener is on every interface."""
    if isinstance(name, str):
        return name
    return name[1] if name[0] in ("::", "0.0.0.0") else name[:2]


def bind_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Host ``""`` or ``"::"`` is every interface, IPv6 and IPv4.

    Raises RuntimeError ``Error binding to {host}:{port}``; the reason is its ``__cause__``.
    """
    try:
        if not 0 <= port <= 65535:
            raise OSError(errno.EINVAL, f"port {port} is not between 0 and 65535")
        if host in ("", "::"):
            if not socket.has_dualstack_ipv6():
                return _listen(socket.AF_INET, ("0.0.0.0", port))
            return _listen(socket.AF_INET6, ("::", port), dual=True)
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
        family, _, _, _, address = found[0]
        return _listen(family, address)
    except (OSError, UnicodeError) as error:
        raise RuntimeError(f"Error binding to {host}:{port}") from error


def _listen(family: int, address: tuple[object, ...], dual: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # After a restart the port may be in TIME_WAIT. Never SO_REUSEPORT: a taken port must fail.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        # The connections inherit these. A client that reads nothing then costs the host's kernel
        # some UNREAD_BYTES, and not the 4 MB to which the kernel would let a buffer grow.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNREAD_BYTES)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
