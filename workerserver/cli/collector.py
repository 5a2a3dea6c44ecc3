"""``workerserver collector``: answer for all workers of this host at once."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workerserver.cli.errors import CommandError, UsageError
from workerserver.cli.parser import CommandParser
from workerserver.cluster.errors import ClusterError, NotATarget
from workerserver.cluster.find.discovery import Options, discover
from workerserver.cluster.find.host_lists import unfold
from workerserver.cluster.model import Worker
from workerserver.process.sockets import silence_standard_streams

if TYPE_CHECKING:
    from workerserver.http.registry import Registry
    from workerserver.server import WorkerServer

__all__ = ["main"]

ENDING = (signal.SIGINT, signal.SIGTERM)
#: Time between two checks whether the collector is still needed, and for one try of a socket.
CHECK_EVERY_SECONDS = 1.0
KNOCK_SECONDS = 1.0
#: A collector of the job's last attempt ends within a second or two, but the machine may be busy.
PORT_SECONDS = 15.0
#: A collector must not take the processor from training.
NICE = 10
#: As ps and top show it: what has forked it may have been another program.
NAME = "ws-collector"


def main(argv: Sequence[str]) -> int:
    """Serve until a signal ends it; exit status 0."""
    options = make_parser().parse_intermixed_args(list(argv))
    for target in options.targets:
        _check(target)
    starter = _Starter(options.starter, options.starter_socket) if options.starter else None
    if starter is not None:
        _leave()
    # Before there are threads, so that none of them gets these signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    from workerserver.collector.service import Collector
    from workerserver.collector.watchdogs import publish
    from workerserver.job import presence
    from workerserver.process.credentials import token_from_environment

    presence.keep_no_record()  # a collector is no rank of a job

    try:
        collector = Collector(options.targets, options.ranks, token_from_environment())
        server = _serve(options.listen, collector.registry, patient=starter is not None)
    except (RuntimeError, ValueError) as error:
        reason = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise CommandError(f"can't serve: {error}{reason}") from None
    with server:
        scheme = "https://" if server.tls else ""
        print(f"workerserver: collector on {scheme}{server.address}", flush=True)
        if starter is not None:
            silence_standard_streams()
        while signal.sigtimedwait(ENDING, CHECK_EVERY_SECONDS) is None:
            with contextlib.suppress(Exception):  # whatever lies there, the ranks are answered for
                publish()
            if (
                starter is not None
                and starter.has_ended()
                and (starter.came_again() or not any(map(_listens, collector.workers())))
            ):
                break
    return 0


def _serve(address: tuple[str, int], registry: Registry, patient: bool) -> WorkerServer:
    """*patient*: wait for the port. After a restart of the job, the collector of the former workers
    may not have ended yet."""
    from workerserver.server import WorkerServer

    give_up = time.monotonic() + (PORT_SECONDS if patient else 0.0)
    while True:
        try:
            return WorkerServer(*address, registry=registry)
        except RuntimeError as error:
            taken = getattr(error.__cause__, "errno", None) == errno.EADDRINUSE
            if not taken or time.monotonic() >= give_up:
                raise
        time.sleep(0.5)


def make_parser() -> CommandParser:
    parser = CommandParser(
        "collector",
        description="Answer for all workers of this host. The commands on whole jobs then ask one "
        "collector for each host (--collectors, or the job's TCPStore) instead of each worker. "
        "SIGTERM or Ctrl-C ends the collector.",
        epilog="With WORKERSERVER_COLLECTOR=HOST:PORT in a job's environment, the worker of "
        "LOCAL_RANK 0 starts a collector. The token comes from WORKERSERVER_TOKEN or "
        "WORKERSERVER_TOKEN_FILE.",
        examples=(
            (
                "workerserver collector --listen 0.0.0.0:25998 '/tmp/job/rank{rank}.sock'",
                "answer on port 25998 for the workers behind these sockets",
            ),
            ("workerserver diagnose --collectors node[001-128]:25998", "ask the collectors"),
        ),
    )
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="a Unix socket, a folder, pattern or template ({rank}) of them, host:port",
    )
    parser.add_argument(
        "--listen", type=_address, required=True, metavar="HOST:PORT", help="port 0: any free one"
    )
    parser.add_argument(
        "--ranks", type=_ranks, default=(), metavar="LIST", help="ranks of this host, as 8-15"
    )
    # For workerserver.collector.process: the pid and the socket of the worker that starts us.
    parser.add_argument("--starter", type=int, metavar="PID", help=argparse.SUPPRESS)
    parser.add_argument("--starter-socket", metavar="PATH", default="", help=argparse.SUPPRESS)
    return parser


def _address(text: str) -> tuple[str, int]:
    from workerserver.control_plane import parse_host_port

    try:
        return parse_host_port(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _ranks(text: str) -> tuple[int, ...]:
    try:
        return tuple(unfold(text))
    except ClusterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _check(target: str) -> None:
    """UsageError if *target* can't be one. It may stand for no socket yet."""
    try:
        discover(Options([target], environment={}))
    except NotATarget as error:
        raise UsageError(str(error)) from None
    except ClusterError:
        pass


class _Starter:
    """The worker that started this collector."""

    def __init__(self, pid: int, path: str) -> None:
        self._pid = pid
        self._path = path
        self._born = _birth(pid)
        if self._born is None:
            raise UsageError(f"--starter {pid}: no such process")

    def has_ended(self) -> bool:
        return _birth(self._pid) != self._born

    def came_again(self) -> bool:
        """Whether another worker serves on its socket, which then has a collector of its own."""
        return bool(self._path) and _listens(Worker(self._path, unix=True))


def _birth(pid: int) -> str | None:
    """When process *pid* began, as the kernel tells it (proc(5)), because pids are used again."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _leave() -> None:
    """Detach from the worker that started us. Its wait() must not find us, and a signal that ends
    its process group must not end us: a collector is needed most when a rank has died."""
    if os.fork():
        os._exit(0)
    os.setsid()
    with contextlib.suppress(OSError):
        os.nice(max(0, NICE - os.nice(0)))
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as name:
        name.write(NAME)


def _listens(worker: Worker) -> bool:
    """Whether a process listens on the worker's socket."""
    if not worker.unix:
        return False
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(KNOCK_SECONDS)
        try:
            sock.connect(worker.address)
        except (TimeoutError, BlockingIOError):
            return True  # its backlog is full
        except OSError:
            return False
        return True
