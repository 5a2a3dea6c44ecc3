"""Helpers for tests of servers' lives. Isolated scripts use them too, so no pytest in here."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PROGRAMS = TESTS / "programs"

#: A path, or host and port.
Address = str | tuple[str, int]

# A launcher or a user may have set these variables for the test run.
_OURS = (
    "TORCH_WORKER_SERVER_SOCKET",
    "WORKERSERVER_",
    "TORCHELASTIC_",
    "MASTER_",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
)


class UnixConnection(http.client.HTTPConnection):
    """HTTP to the Unix socket at *path*."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def connect(address: Address, timeout: float = 30.0) -> http.client.HTTPConnection:
    if isinstance(address, str):
        return UnixConnection(address, timeout)
    return http.client.HTTPConnection(*address, timeout=timeout)


def ask(
    address: Address, target: str = "/handler/ping", method: str = "POST", timeout: float = 30.0
) -> tuple[int, str]:
    """Status and body of one request on a connection of its own."""
    with contextlib.closing(connect(address, timeout)) as connection:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.read().decode()


def send(address: Address, target: str, timeout: float = 30.0) -> socket.socket:
    """A connected socket with a sent request and an unread answer."""
    connection = connect(address, timeout)
    connection.request("POST", target)
    sock = connection.sock
    assert isinstance(sock, socket.socket)
    return sock


def alive(address: Address) -> bool:
    """Whether a server listens at *address*."""
    try:
        ask(address)
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


#: torch's own server prints a line and adds threads. So only the tests of that server switch it on.
FALLBACK = "WORKERSERVER_TORCH_FALLBACK"


def environment(**more: str) -> dict[str, str]:
    """This process's environment, without a launcher's variables, with our modules on the path."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
    path = os.pathsep.join(filter(None, (str(ROOT), str(TESTS), kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", FALLBACK: "0", **more}


def run_isolated(
    script: str, *arguments: str, seconds: float = 100.0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run tests/programs/*script* to its end. A script that hangs is killed (TimeoutExpired)."""
    return subprocess.run(
        [sys.executable, str(PROGRAMS / script), *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


class Talker:
    """A running isolated script that prints lines and may read some."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._rest = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self, seconds: float = 60.0) -> str:
        """The next line. AssertionError with the script's stderr if no line comes."""
        out = self._stream(self.process.stdout)
        give_up = time.monotonic() + seconds
        while "\n" not in self._rest:
            ready, _, _ = select.select([out], [], [], max(0.0, give_up - time.monotonic()))
            new = os.read(out.fileno(), 65536).decode() if ready else ""
            if not new:
                self.process.kill()
                raise AssertionError(f"no line; stderr: {self._stream(self.process.stderr).read()}")
            self._rest += new
        line, _, self._rest = self._rest.partition("\n")
        return line

    def say(self, line: str) -> None:
        stream = self._stream(self.process.stdin)
        stream.write(line + "\n")
        stream.flush()

    def end(self, seconds: float = 60.0) -> tuple[int, str]:
        """Exit status and stderr, once the process has ended by itself."""
        self._stream(self.process.stdin).close()
        code = self.process.wait(seconds)
        return code, self._stream(self.process.stderr).read()

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


@contextlib.contextmanager
def talking(script: str, *arguments: str, **more: str) -> Iterator[Talker]:
    """A Talker to tests/programs/*script*. Afterwards the process and its children are gone."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAMS / script), *arguments],
        env=environment(**more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield Talker(process)
        finally:
            # The group of the script's own session, so that its forked children end too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def state_of(thread: int) -> str | None:
    """R, S, ... of proc(5), for a thread of this process; None if the thread has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]
    return None


def sleeps(thread: int) -> bool:
    """Whether the thread has ended, or sleeps in the kernel each time one looks."""
    for _ in range(50):
        if state_of(thread) not in (None, "S"):
            return False
        time.sleep(0.002)
    return True


def socket_names() -> list[str]:
    """The local names of this process's sockets: a path, ``host:port``, or ``""`` for none."""
    names = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(entry))
        except OSError:
            continue  # the one that listdir used
        try:
            sock = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            continue
        with sock:
            name = sock.getsockname()
        names.append(name if isinstance(name, str) else f"{name[0]}:{name[1]}")
    return names
