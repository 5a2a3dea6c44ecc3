"""torch's own server on a private socket, for its C++ handlers.

While the GIL is held, our I/O thread relays requests to this server (``relay.pyx``) that torch
answers without Python. While the GIL is free, this server answers for the C++ handlers that can't
be called from Python. docs/torch.md says how torch's server behaves, and why this module is as it
is.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from workerserver.handlers.torch_bridge import OwnServerFailed, answer_through, control_plane
from workerserver.native._bridge import RelayError, fetch, listens
from workerserver.process._pulse import immortalise, threads_can_start
from workerserver.process.loaded import imported
from workerserver.process.run_folder import fresh_folder
from workerserver.process.sockets import MAX_PATH_BYTES, close_accepted
from workerserver.process.threads import blocked_signals, named
from workerserver.types import Response

__all__ = ["SWITCH", "TorchFallback", "fallback"]

logger = logging.getLogger("workerserver")

SWITCH = "WORKERSERVER_TORCH_FALLBACK"
THREAD_NAME = "pt_workerserver"  # the kernel's name of every thread of torch's server
SPARE_THREADS = 16

ASK_SECONDS = 30.0  # for an answer while the GIL is free

# torch does not say whether a handler is C++. We assume that it is if the C++ library that defines
# the name is loaded: that library took the name, and no name can be registered twice. Each entry is
# an attribute by which the library shows (of torch._C._distributed_c10d, or of torch._C), and the
# names that it defines.
CPP = {
    "_dump_fr_trace_json": ("fr_trace_json", "wait_counter_values", "pyspy_dump"),
    "_dump_nccl_trace": ("dump_nccl_trace_pickle",),
    "_dump_nccl_trace_json": ("dump_nccl_trace_json",),
    "_dump_fr_trace_file": ("fr_dump_file",),  # torch 2.15
    "HealthCheckHook": ("c10d_health_check",),
    "_comms_init": ("torch_comms_fr_trace_json",),  # torch 2.16, from its public sources
}
TORCHCOMMS = ("torchcomms_fr_trace_json", "torchcomms_fr_dump_file", "torchcomms_health_check")


class TorchFallback:
    """torch's ``_WorkerServer`` in this process: started at most once, and never stopped.

    Nothing is left on disk: the socket's file is unlinked as soon as it is bound, and connections
    are made through a descriptor of the file. To stop the server can deadlock, so it ends with the
    process. A forked child has no such server, and closes the descriptors that it inherits.

    All of it is for any thread, and needs the GIL. ``reason`` says why there is no server, or is
    None.
    """

    def __init__(self) -> None:
        self.reason: str | None = "torch.distributed is not loaded"
        self._reset()

    def _reset(self) -> None:
        self._starting = threading.Lock()
        self._final = False  # started, or failed for good
        self._path = ""  # as bound: its sockets go by this name in a forked child too
        self._file = -1  # O_PATH descriptor of the socket's file
        self._listener = -1
        self._inode = 0  # of the listener
        self._others: frozenset[str] = frozenset()  # threads of other servers of torch's

    @property
    def running(self) -> bool:
        return self._inode != 0

    @property
    def threads(self) -> int:
        """How many threads torch's server has now; all but one idle."""
        return len(named(THREAD_NAME) - self._others) if self.running else 0

    def descriptors(self) -> tuple[int, ...]:
        """The listener and the file: a child that is forked behind Python's back closes them."""
        return tuple(fd for fd in (self._listener, self._file) if fd >= 0)

    def listener(self) -> tuple[int, int]:
        """Descriptor and inode of the listening socket, for ``relay_listens``; (-1, 0)."""
        return (self._listener, self._inode) if self.running else (-1, 0)

    def path_bytes(self) -> bytes | None:
        """The path to connect to, the same for life; None while there is no server."""
        return b"/proc/self/fd/%d" % self._file if self.running else None

    def names(self) -> tuple[str, ...]:
        """The C++ handlers that torch's registry has now, to which requests can be relayed.

        ``relay_needs_gil`` says which requests for them wait for the GIL all the same.
        """
        module = control_plane() if self.running else None
        if module is None:
            return ()
        names = [
            name
            for attribute, group in CPP.items()
            if hasattr(module, attribute) or hasattr(imported("torch._C"), attribute)
            for name in group
        ]
        if imported("torchcomms") is not None:
            names += TORCHCOMMS
        return tuple(name for name in names if _is_registered(module, name))

    def ask(self, name: str, params: Mapping[str, str]) -> Response | None:
        """What the server answers for torch's handler *name*; None if there is no server.

        Starts it if need be. Waits without the GIL, which the handler may want, for up to
        ASK_SECONDS. Raises OwnServerFailed.
        """
        from urllib.parse import quote, urlencode

        self.start_if_possible()
        path = self.path_bytes()
        # A connection to a socket that somebody has closed would end the process.
        if path is None or not listens(*self.listener()):
            return None
        target = f"/handler/{quote(name, safe='')}"
        if params:
            target += f"?{urlencode(params)}"
        try:
            found = fetch(path, target.encode("ascii"), ASK_SECONDS)
        except RelayError as error:
            raise OwnServerFailed(name, error.strerror or "") from None
        return Response(found.body, found.status, found.content_type.decode("latin-1"))

    def start_if_possible(self) -> bool:
        """Start the server if torch.distributed is loaded, and say whether it runs.

        Never raises, and is cheap to repeat. The first call that finds torch takes some
        milliseconds; torch holds the GIL for a part of them. A failure is final: its ``reason``
        stays, and is logged once, at level INFO. A second caller waits for the one that starts the
        server.
        """
        if self._final and not self._starting.locked():
            return self.running
        with self._starting:
            if self._final:
                return self.running
            try:
                self._start()
            except Exception as error:
                self._final = True
                self.reason = f"{type(error).__name__}: {error}"
                logger.info("torch's own server doesn't stand by: %s", self.reason)
            return self.running

    def _start(self) -> None:
        if os.environ.get(SWITCH, "1") == "0":
            raise RuntimeError(f"switched off by {SWITCH}=0")
        if imported("torch.distributed") is None:
            return  # it may be loaded later
        module = control_plane()
        if module is None:
            raise RuntimeError("this torch has no control plane")
        # If torch can't start a thread, the process ends (std::terminate): so try it before.
        wanted = max(8, os.sysconf("SC_NPROCESSORS_ONLN") - 1) + 1
        with blocked_signals():
            if not threads_can_start(wanted + SPARE_THREADS):
                raise RuntimeError(f"this process can't have {wanted} threads more")
        with _private_folder() as folder:
            self._listen(_server_class(module), os.path.join(folder, "s"))
        self.reason = None

    def _listen(self, server_class: Any, path: str) -> None:
        # Without /proc, or without permission to look into it, nothing could connect.
        spare = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.stat(f"/proc/self/fd/{spare}").st_mode):
                raise FileNotFoundError("/proc/self/fd is not what it is on Linux")
            self._others = named(THREAD_NAME)
            self._final = True
            self._path = path  # before there is a socket: a child forked from now on closes it
            with blocked_signals():
                immortalise(server_class(path, -1))
        finally:
            os.close(spare)  # a descriptor is free for the next line then
        try:
            self._file = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
        listener = _listener_of(path)
        flags = fcntl.fcntl(listener, fcntl.F_GETFD)
        fcntl.fcntl(listener, fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)  # set by torch 2.13 itself
        self._listener, self._inode = listener, os.fstat(listener).st_ino

    def after_fork(self) -> None:
        """In a forked child: close what the parent's server has open, and forget it.

        Without that the child would keep the parent's socket alive, and connections to it.
        """
        if self._path:
            if self._file >= 0:
                with contextlib.suppress(OSError):
                    os.close(self._file)
            close_accepted([self._path])  # the listener has the same name
        self._reset()
        self.reason = "this is a forked process"


def _is_registered(module: Any, name: str) -> bool:
    try:
        module._get_handler(name)
    except ValueError:
        return False
    return True


def _server_class(module: Any) -> Any:
    """torch's own ``_WorkerServer``, also while ``install()`` has put ours in its place."""
    found = module._WorkerServer
    if found.__module__ == module.__name__:
        return found
    base = module._Response.__mro__[-2]  # pybind11's, of all bound classes
    for bound in base.__subclasses__():
        if bound.__name__ == "_WorkerServer" and bound.__module__ == module.__name__:
            return bound
    raise RuntimeError("torch's own _WorkerServer can't be found")


@contextlib.contextmanager
def _private_folder() -> Iterator[str]:
    """A new folder of mode 0700 whose path leaves room for a socket's name; removed afterwards."""
    error = OSError("no folder for temporary files has a path short enough for a socket")
    most = MAX_PATH_BYTES - len("/ws-12345678/s")
    for place in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", "/dev/shm"):
        if not os.path.isabs(place) or len(os.fsencode(place)) > most:
            continue
        try:
            folder = fresh_folder("ws-", place)
        except OSError as reason:
            error = reason
            continue
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return
    raise error


def _listener_of(path: str) -> int:
    """The descriptor that listens at *path*."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            sock = socket.socket(fileno=fd)
            try:
                if sock.family == socket.AF_UNIX and sock.getsockname() == path:
                    return fd
            finally:
                sock.detach()
    raise FileNotFoundError("the socket that torch's server listens on can't be found")


fallback = TorchFallback()
"""This process's."""

answer_through(fallback)

os.register_at_fork(after_in_child=fallback.after_fork)
