"""Starts the collector of this host from one of its workers, as a detached process.

The keeper of a job with a watchdog starts it, because there its memory is shared. Whatever keeps
the keeper from that, the worker starts it itself.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from workerserver.process import threads
from workerserver.process.environment import with_absolute_paths
from workerserver.registration import StoreRegistration

__all__ = ["Through", "ranks_of_host", "started"]

logger = logging.getLogger("workerserver")

#: Variables that would make the collector serve as a worker, start another one, or claim a rank.
NOT_ITS = ("TORCH_WORKER_SERVER_SOCKET", "WORKERSERVER_TCP", "WORKERSERVER_COLLECTOR", "RANK")
#: The line that says where the collector serves.
SERVES = "workerserver: collector on "
MAX_LINE_BYTES = 4096
#: The same with warnings.
MAX_BYTES = 64 << 10
#: For the keeper's collector, until it has written that line: its port may have to become free.
LINE_SECONDS = 120.0

#: Has the command of these words and this environment started by somebody else, who gives it this
#: descriptor as stdout and stderr. Whether that was asked for.
Through = Callable[[Sequence[str], Mapping[str, str], int], bool]


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
def started(
    host: str, port: int, template: str, path: str, through: Through | None = None
) -> Iterator[None]:
    """Start a collector on *host* and *port* in the background, and register it in the job's
    TCPStore. It answers for the sockets that *template* stands for; *path* is our own socket. With
    *through* somebody else is asked first to start it.

    The collector ends by itself after this process and the workers have ended. The end of the block
    only gives up a registration that is still under way. Training never waits for the collector and
    never sees its errors.
    """
    follower = None
    try:
        follower = _Follower(host, port, template, path, through)
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

    def __init__(
        self, host: str, port: int, template: str, path: str, through: Through | None
    ) -> None:
        self._host = host
        self._through = through
        self._ranks = ranks_of_host(os.environ)
        name = f"[{host}]" if ":" in host else host
        self._words = [
            *("collector", "--listen", f"{name}:{port}"),
            *("--starter", str(os.getpid()), "--starter-socket", os.path.abspath(path)),
            *(("--ranks", self._ranks) if self._ranks else ()),
            *("--", os.path.abspath(template)),
        ]
        self._environment = _environment()  # now: training may leave its folder
        self._lock = threading.Lock()
        self._stopped = False
        self._registration: StoreRegistration | None = None

    def start(self) -> None:
        process = None if self._through is not None else self._start_ourselves()
        follow = threading.Thread(
            target=self._follow, args=(process,), name="workerserver-collector", daemon=True
        )
        try:
            threads.start(follow)
        except OSError:
            if process is not None:
                process.kill()
                process.communicate()
            raise

    def _start_ourselves(self) -> subprocess.Popen[bytes]:
        # In the root folder: -m looks for modules in the current folder first.
        return subprocess.Popen(
            [sys.executable, "-m", "workerserver", *self._words],
            cwd="/",
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._registration is not None:
                self._registration.stop()

    def _follow(self, process: subprocess.Popen[bytes] | None) -> None:
        line = "" if process is not None else self._asked()
        reason = line.removeprefix("workerserver: ") or "its reason is on stderr"
        if not line:
            try:
                if process is None and not self._stopped:
                    process = self._start_ourselves()
                if process is None:
                    return
                line = _line_of(process)
            except Exception as error:
                logger.warning("no collector was started: %s", error)
                return
        # "workerserver: collector on [https://]host:port"
        port = line.rpartition(":")[2] if line.startswith(SERVES) else ""
        if not port.isdecimal():
            logger.warning("this host's collector did not start; %s", reason)
            return
        logger.info("this host's collector serves on port %s", port)
        registration = StoreRegistration.of_collector(
            self._host, int(port), self._ranks, " https://" in line
        )
        with self._lock:
            if registration is not None and not self._stopped:
                self._registration = registration
                registration.start()

    def _asked(self) -> str:
        """The line of the collector that somebody else has started, or why it can't serve; "" if
        nobody has started one."""
        if self._through is None:
            return ""
        read, write = os.pipe()
        with open(read, "rb", buffering=0) as pipe:
            try:
                asked = self._through(self._words, self._environment, write)
            except Exception:
                asked = False
            finally:
                os.close(write)
            lines = _lines(pipe, LINE_SECONDS) if asked else []
        serves = next((line for line in lines if line.startswith(SERVES)), "")
        for line in lines if serves else ():
            if line != serves:
                logger.warning("this host's collector: %s", line)
        return serves or (lines[-1] if lines else "")


def _line_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    with process.stdout:
        # Our child forks as soon as Python runs in it, and then ends.
        process.wait()
        return process.stdout.readline(MAX_LINE_BYTES).decode("utf-8", "replace").strip()


def _lines(pipe: io.RawIOBase, seconds: float) -> list[str]:
    """What comes in time, up to the line that says where the collector serves. Before that one it
    may have warnings."""
    give_up = time.monotonic() + seconds
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLIN)
    data = b""
    while len(data) < MAX_BYTES:
        left = give_up - time.monotonic()
        more = pipe.read(MAX_BYTES) if left > 0 and poll.poll(left * 1000) else b""
        if not more:
            break
        data += more
        whole = data.decode("utf-8", "replace").splitlines(keepends=True)
        if any(line.startswith(SERVES) and line.endswith("\n") for line in whole):
            break
    return [line for each in data.decode("utf-8", "replace").splitlines() if (line := each.strip())]


def _environment() -> dict[str, str]:
    """Our environment, without NOT_ITS, and with absolute paths."""
    environment = {name: text for name, text in os.environ.items() if name not in NOT_ITS}
    return with_absolute_paths(environment)
