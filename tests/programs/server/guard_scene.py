"""Hard moments of a process with a server. ``python guard_scene.py SCENE PATH``."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import time

from support.lifecycle import ask
from support.limits import no_threads

from workerserver import WorkerServer
from workerserver.handlers import default_registry
from workerserver.registration import StoreRegistration


def signals(path: str) -> None:
    """A signal handler shuts one server down while another is being started or ended."""
    other: WorkerServer | None = None

    def on_signal(number: int, frame: object) -> None:
        if other is not None:
            other.shutdown(0.5)

    signal.signal(signal.SIGALRM, on_signal)
    end = time.monotonic() + 4
    rounds = 0
    while time.monotonic() < end:
        other = WorkerServer(f"{path}.other")
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
        WorkerServer(path).shutdown()
        signal.setitimer(signal.ITIMER_REAL, 0)
        other.shutdown()
        rounds += 1
    print(json.dumps(rounds))


def descriptors(path: str) -> None:
    """Clients open as many connections as they can. The process can still open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    with WorkerServer(path):
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024), hard))
            clients = []
            for _ in range(400):
                client = socket.socket(socket.AF_UNIX)
                try:
                    client.connect(path)
                except OSError as error:
                    os._exit(2 if error.errno != errno.EAGAIN else 3)
                clients.append(client)
            time.sleep(1)
            os._exit(0)
        opened = 0
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            with contextlib.ExitStack() as files:
                for _ in range(20):
                    files.enter_context(tempfile.TemporaryFile())
                    opened += 1
            time.sleep(0.01)
        status, body = ask(path, "/handler/ping")
        print(json.dumps([opened > 0, status, body]))


def fork(path: str) -> None:
    """Handlers that are busy in the parent are free in the child, with and without a server."""
    handler = default_registry.find("pyspy_dump")
    assert handler.acquire()
    handler.lock.acquire()
    child = os.fork()
    if child == 0:
        os._exit(0 if handler.running == 0 and handler.acquire() else 1)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), handler.running]))


def registration(path: str) -> None:
    """No thread can start for the registration in the store. Training goes on."""
    one = StoreRegistration("127.0.0.1", 1, "rank0", "http://x:1")
    with no_threads():
        one.start()
    one.stop()
    print(json.dumps(one.done.is_set()))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
