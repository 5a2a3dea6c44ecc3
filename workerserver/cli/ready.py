"""A command that is imported before anybody needs it, for the job's watchdog.

On a machine whose processors are all taken, to start Python and to import ``diagnose`` takes
longer than the diagnosis itself. So a process of the watchdog's imports the command at the job's
begin, and forks whenever a diagnosis is wanted (blackbox/watchdog/ready.py). A collector that the
job asks for is forked off, too: it has most of its memory in common with the others.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time

from workerserver import cli
from workerserver.cli.commands import load
from workerserver.process.sockets import close_from

__all__ = ["serve"]

#: What ``diagnose`` imports only where it needs it: on live ranks, and on black boxes.
NEEDED = ("blackbox", "boxes", "dumps", "together")
LOOK_SECONDS = 0.02


def serve(sock: socket.socket, collects: bool) -> None:
    """Run what is asked for, one command after the other, until the other end of *sock* is closed.

    blackbox/commands.py says what is sent. *collects*: a collector will be asked for."""
    load("diagnose")
    for name in ("asyncio", *(f"{__package__}.{name}" for name in NEEDED)):
        importlib.import_module(name)
    if collects:
        _load_collector()
    gc.collect()
    gc.freeze()  # what was imported stays shared with each process that is forked
    while True:
        message, files, _, _ = socket.recv_fds(sock, 1, 3)
        if not message or len(files) != 3:
            return
        with contextlib.suppress(OSError, ValueError, TypeError):
            with open(os.dup(files[0]), encoding="ascii") as asked:
                seconds, environment, words = json.load(asked)
            words = [str(word) for word in words]
            _run(words, environment, files[1], files[2], float(seconds))
        for descriptor in files:
            os.close(descriptor)
        sock.sendall(b".")


def _load_collector() -> None:
    """With what it imports only when it runs: what is imported once is in memory once."""
    load("collector")
    import workerserver.collector.service
    import workerserver.collector.watchdogs
    import workerserver.server  # noqa: F401


def _run(
    words: list[str], environment: dict[str, str] | None, stdin: int, stdout: int, seconds: float
) -> None:
    """In a process of its own, which is killed after *seconds*. Whoever gives it an *environment*
    gets its errors, too."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            if environment is not None:
                os.dup2(stdout, 2)
                os.environ.clear()
                os.environ.update(environment)
            # It may live on: nobody's end of a pipe or of a socket stays open because of it.
            close_from(3)
            with open(1, "w", encoding="utf-8", closefd=False) as sys.stdout:
                cli.main(words)
        finally:
            os._exit(0)
    give_up = time.monotonic() + seconds
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() >= give_up:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(LOOK_SECONDS)
