"""Starts the collector of this host from one of its workers, as a detached process."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping

from workerserver.process import threads
from workerserver.registration import StoreRegistration

__all__ = ["ranks_of_host", "started"]

logger = logging.getLogger("workerserver")

#: Variables that would make the collector serve as a worker, start another one, or claim a rank.
NOT_ITS = ("TORCH_WORKER_SERVER_SOCKET", "WORKERSERVER_TCP", "WORKERSERVER_COLLECTOR", "RANK")
#: Files and folders, which may be relative to the current folder.
PATHS = (
    "WORKERSERVER_TOKEN_FILE",
    "WORKERSERVER_TOKEN_READ_FILE",
    "WORKERSERVER_TOKEN_PROFILE_FILE",
    "WORKERSERVER_TOKEN_ADMIN_FILE",
    "WORKERSERVER_TLS_CERT",
    "WORKERSERVER_TLS_KEY",
    "WORKERSERVER_TLS_CLIENT_CA",
    "PYTHONPATH",
)
#: The line that says where the collector serves.
MAX_LINE_BYTES = 4096


def ranks_of_host(environment: Mapping[str, str]) -> str:
    """The ranks of this host as torchrun numbers them (``8-15``); "" if they aren't known."""
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = [environment.get(name, "") for name in names]
    if not all(value.isascii() and value.isdecimal() and len(value) < 8 for value in values):
        return ""
    rank, local_rank, size = map(int, values)
    first = rank - local_rank
    return f"{first}-{first + size - 1}" if first >= 0 and size > 0 else ""


@contextlib.contextmanager
def started(host: str, port: int, template: str, path: str) -> Iterator[None]:
    """Start a collector on *host* and *port* in the background, and register it in the job's
    TCPStore. It answers for the sockets that *template* stands for; *path* is our own socket.

    The collector ends by itself after this process and the workers have ended. The end of the block
    only gives up a registration that is still under way. Training never waits for the collector and
    never sees its errors.
    """
    follower = None
    try:
        follower = _Follower(host, port, template, path)
        follower.start()
    except Exception as error:  # no process or thread can be had, or Python can't be started
        logger.warning("no collector was started: %s", error)
    try:
        yield
    finally:
        if follower is not None:
            follower.stop()


class _Follower:
    """Starts the process, reads where the collector serves, and registers that. Then its thread
    ends."""

    def __init__(self, host: str, port: int, template: str, path: str) -> None:
        self._host = host
        self._ranks = ranks_of_host(os.environ)
        name = f"[{host}]" if ":" in host else host
        self._command = [
            *(sys.executable, "-m", "workerserver", "collector", "--listen", f"{name}:{port}"),
            *("--starter", str(os.getpid()), "--starter-socket", os.path.abspath(path)),
            *(("--ranks", self._ranks) if self._ranks else ()),
            *("--", os.path.abspath(template)),
        ]
        self._lock = threading.Lock()
        self._stopped = False
        self._registration: StoreRegistration | None = None

    def start(self) -> None:
        # In the root folder: -m looks for modules in the current folder first.
        process = subprocess.Popen(
            self._command,
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        follow = threading.Thread(
            target=self._follow, args=(process,), name="workerserver-collector", daemon=True
        )
        try:
            threads.start(follow)
        except OSError:
            process.kill()
            process.communicate()
            raise

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._registration is not None:
                self._registration.stop()

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            # Our child forks as soon as Python runs in it, and then ends.
            process.wait()
            line = process.stdout.readline(MAX_LINE_BYTES).decode("utf-8", "replace")
        # "workerserver: collector on [https://]host:port"
        port = line.strip().rpartition(":")[2]
        if not port.isdecimal():
            logger.warning("this host's collector did not start; its reason is on stderr")
            return
        logger.info("this host's collector serves on port %s", port)
        registration = StoreRegistration.of_collector(
            self._host, int(port), self._ranks, " https://" in line
        )
        with self._lock:
            if registration is not None and not self._stopped:
                self._registration = registration
                registration.start()


def _environment() -> dict[str, str]:
    """Our environment, without NOT_ITS, and with absolute paths."""
    environment = {name: text for name, text in os.environ.items() if name not in NOT_ITS}
    for name in PATHS:
        parts = environment.get(name, "").split(os.pathsep)
        if any(parts):
            environment[name] = os.pathsep.join(os.path.abspath(part) for part in parts if part)
    return environment
