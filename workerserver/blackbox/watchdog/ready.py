"""The process that makes the watchdog's diagnoses: forked off before the watchdog has threads.

It has imported ``workerserver diagnose`` long before a diagnosis is needed, and forks for each one.
On a machine whose processors are all taken, to start Python and to import that command took 10 s
and more: longer than many a time-out that ends a job that hangs. Most of its memory is shared with
the watchdog. A job that has a collector on each host, too, gets it from this process: that is
another command that need not be imported twice.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import threading
from collections.abc import Sequence

from workerserver.blackbox.commands import hand_over
from workerserver.process.sockets import close_from, silence_standard_streams

__all__ = ["Ready"]

#: It ends a diagnosis that takes too long. If it doesn't say so, it is gone itself.
MORE_SECONDS = 10.0
#: Until a command has detached itself, as a collector does. Before, the process has to have
#: imported all: it is not given up because the machine is busy.
DETACH_SECONDS = 110.0
#: It is in none of our imports: the watchdog has no use for what an operator's command needs.
PROGRAM = "workerserver.__main__"


class Ready:
    """Made while this process has one thread; later several threads may use it. One command runs at
    a time. *collects*: it will be asked for a collector. OSError if no process can be had."""

    def __init__(self, collects: bool = False) -> None:
        self._lock = threading.Lock()
        gc.freeze()  # no collection writes to pages that both have
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._pid = os.fork()
        except OSError:
            self._sock.close()
            theirs.close()
            raise
        if self._pid == 0:
            _be(theirs, collects)
        theirs.close()

    def diagnosed(self, words: Sequence[str], given: bytes, seconds: float) -> bytes | None:
        """What ``workerserver diagnose`` writes that gets *words*, and *given* on its stdin; as
        far as it came in *seconds*. None if the process is gone."""
        with self._lock, contextlib.suppress(OSError):
            stdout = os.memfd_create("out", os.MFD_CLOEXEC)
            try:
                if self._pid:
                    hand_over(self._sock, ["diagnose", *words], seconds, given, stdout)
                if self._answers(seconds):
                    return os.pread(stdout, os.fstat(stdout).st_size, 0)
            finally:
                os.close(stdout)
        return None

    def serve(self, channel: socket.socket) -> None:
        """Hand on the one command that whoever has the other end of *channel* asks for, in a thread
        that waits for it. *channel* is closed then; at once if no thread can be had."""
        thread = threading.Thread(target=self._serve, args=(channel,), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            channel.close()

    def _serve(self, channel: socket.socket) -> None:
        files: list[int] = []
        with channel, contextlib.suppress(OSError):
            _, files, _, _ = socket.recv_fds(channel, 1, 3)
            with self._lock:
                if self._pid and len(files) == 3:
                    socket.send_fds(self._sock, [b"?"], files)
                    self._answers(DETACH_SECONDS)
        for descriptor in files:
            os.close(descriptor)

    def _answers(self, seconds: float) -> bool:
        """Whether the process says that its command has ended. If not, it is given up."""
        if self._pid == 0:
            return False
        with contextlib.suppress(OSError):
            self._sock.settimeout(seconds + MORE_SECONDS)
            if self._sock.recv(1):
                return True
        self.close()
        return False

    def close(self) -> None:
        """The process ends at once, and this thread does not wait for it."""
        pid, self._pid = self._pid, 0
        self._sock.close()
        if pid:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)


def _be(sock: socket.socket, collects: bool) -> None:
    """In the forked process. It must hold nothing of the watchdog's: neither the job's stderr nor a
    lock."""
    try:
        kept = os.dup2(sock.fileno(), 3) if sock.fileno() != 3 else 3
        close_from(4)
        silence_standard_streams()
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as name:
            name.write("ws-diagnose")
        importlib.import_module(PROGRAM).serve(socket.socket(fileno=kept), collects)
    finally:
        os._exit(0)
