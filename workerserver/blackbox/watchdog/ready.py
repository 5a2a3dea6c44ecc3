"""The process that makes the watchdog's diagnoses: forked off before the watchdog has threads.

It has imported ``workerserver diagnose`` long before a diagnosis is needed, and forks for each one.
On a machine whose processors are all taken, to start Python and to import that command took 10 s
and more: longer than many a time-out that ends a job that hangs. Most of its memory is shared with
the watchdog.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
from collections.abc import Sequence

from workerserver.process.sockets import silence_standard_streams

__all__ = ["Ready"]

#: It ends a diagnosis that takes too long. If it doesn't say so, it is gone itself.
MORE_SECONDS = 10.0
#: It is in none of our imports: the watchdog has no use for what an operator's command needs.
PROGRAM = "workerserver.__main__"


class Ready:
    """Made while this process has one thread; later one thread uses it. OSError if no process can
    be had."""

    def __init__(self) -> None:
        gc.freeze()  # no collection writes to pages that both have
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._pid = os.fork()
        except OSError:
            self._sock.close()
            theirs.close()
            raise
        if self._pid == 0:
            _be(theirs)
        theirs.close()

    def diagnosed(self, words: Sequence[str], given: bytes, seconds: float) -> bytes | None:
        """What ``workerserver diagnose`` writes that gets *words*, and *given* on its stdin; as
        far as it came in *seconds*. None if the process is gone."""
        if self._pid == 0:
            return None
        asked = json.dumps([seconds, "diagnose", *words]).encode("ascii")
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("asked", "in", "out")]
            for descriptor in files:
                stack.callback(os.close, descriptor)
            for descriptor, data in zip(files, (asked, given), strict=False):
                os.pwrite(descriptor, data, 0)
            self._sock.settimeout(seconds + MORE_SECONDS)
            socket.send_fds(self._sock, [b"?"], files)
            if self._sock.recv(1):
                return os.pread(files[2], os.fstat(files[2]).st_size, 0)
        self.close()
        return None

    def close(self) -> None:
        """The process ends at once, and this thread does not wait for it."""
        pid, self._pid = self._pid, 0
        self._sock.close()
        if pid:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)


def _be(sock: socket.socket) -> None:
    """In the forked process. It must hold nothing of the watchdog's: neither the job's stderr nor a
    lock."""
    try:
        kept = os.dup2(sock.fileno(), 3) if sock.fileno() != 3 else 3
        os.closerange(4, max(map(int, os.listdir("/proc/self/fd"))) + 1)
        silence_standard_streams()
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as name:
            name.write("ws-diagnose")
        importlib.import_module(PROGRAM).serve(socket.socket(fileno=kept))
    finally:
        os._exit(0)
