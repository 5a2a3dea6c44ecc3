"""``workerserver collector``: answer for all workers of this host, in one answer."""

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
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.find.discovery import Options, discover
from workerserver.cluster.find.host_lists import unfold
from workerserver.cluster.model import Worker

if TYPE_CHECKING:
    from workerserver.http.registry import Registry
    from workerserver.server import WorkerServer

__all__ = ["main"]

ENDING = (signal.SIGINT, signal.SIGTERM)
#: Seconds between two looks at whether anybody needs it any more, and of one knock at a socket.
LOOK_EVERY = 5.0
KNOCK = 1.0
#: How far a collector stands back behind training.
NICE = 10


def main(argv: Sequence[str]) -> int:
    """Serves until it is told to end; exit status 0."""
    options = _parser().parse_intermixed_args(list(argv))
    for target in options.targets:
        _check(target)
    starter = _Starter(options.starter, options.starter_socket) if options.starter else None
    if starter is not None:
        _leave()
    # Before there are threads: none of them is to get one.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    from workerserver.collector.service import Collector
    from workerserver.process.credentials import token_from_environment

    try:
        collector = Collector(options.targets, options.ranks, token_from_environment())
        server = _serve(options.listen, collector.registry, patient=starter is not None)
    except (RuntimeError, ValueError) as error:
        reason = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise CommandError(f"can't serve: {error}{reason}") from None
    with server:
        scheme = "https://" if server.tls else ""
        print(f"workerserver: collector on {scheme}{server.address}", flush=True)
        if starter is None:
            signal.sigwait(ENDING)
            return 0
        _be_silent()
        while signal.sigtimedwait(ENDING, LOOK_EVERY) is None:
            if starter.has_ended() and (
                starter.came_again() or not any(map(_listens, collector.workers()))
            ):
                break
    return 0


def _serve(address: tuple[str, int], registry: Registry, patient: bool) -> WorkerServer:
    """*patient*: the collector of a worker that this job has restarted since may still be there,
    and is about to end."""
    from workerserver.server import WorkerServer

    give_up = time.monotonic() + (3 * LOOK_EVERY if patient else 0.0)
    while True:
        try:
            return WorkerServer(*address, registry=registry)
        except RuntimeError as error:
            taken = getattr(error.__cause__, "errno", None) == errno.EADDRINUSE
            if not taken or time.monotonic() >= give_up:
                raise
        time.sleep(0.5)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "workerserver collector",
        description="Answer for all workers of this host: diagnose, stacks and the like then ask "
        "one collector for each host (--collectors, or the job's TCPStore) instead of each worker. "
        "Ends with SIGTERM or Ctrl-C.",
        epilog="WORKERSERVER_COLLECTOR=HOST:PORT in a job's environment has the worker of "
        "LOCAL_RANK 0 start one. A token is taken from WORKERSERVER_TOKEN or "
        "WORKERSERVER_TOKEN_FILE.",
        allow_abbrev=False,
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
    # How a worker starts one, see workerserver.collector.process: its pid and its socket.
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
    """UsageError for what is no target; one that stands for nobody yet is one."""
    try:
        discover(Options([target], environment={}))
    except ClusterError as error:
        if target in str(error) and "not a target" in str(error):
            raise UsageError(str(error)) from None


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
        """Whether another one has its place: that has a collector of its own."""
        return bool(self._path) and _listens(Worker(self._path, unix=True))


def _birth(pid: int) -> str | None:
    """When process *pid* began, in the kernel's words (proc(5)): pids are used again."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _leave() -> None:
    """Go on as nobody's child and in nobody's group: from now on the starter can't meet us in a
    wait() of its own, and what ends its group doesn't end us: a rank that died is when we are
    needed."""
    if os.fork():
        os._exit(0)
    os.setsid()
    with contextlib.suppress(OSError):
        os.nice(NICE)


def _be_silent() -> None:
    """Nobody reads what it would say from now on."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _listens(worker: Worker) -> bool:
    """Whether somebody listens on its socket."""
    if not worker.unix:
        return False
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(KNOCK)
        try:
            sock.connect(worker.address)
        except (TimeoutError, BlockingIOError):
            return True  # its backlog is full
        except OSError:
            return False
        return True
