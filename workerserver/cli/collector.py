"""``workerserver collector``: answer for all workers of this host, in one answer."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
from collections.abc import Sequence

from workerserver.cli.client import read_token
from workerserver.cli.errors import CommandError, UsageError
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.model import Worker
from workerserver.cluster.ranges import unfold

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
    starter: int | None = None
    if options.starter is not None:
        starter = _open(options.starter)
        _leave()
    # Before there are threads: none of them is to get one.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    from workerserver.collector import Collector
    from workerserver.server import WorkerServer

    collector = Collector(options.targets, options.ranks, read_token())
    host, port = options.listen
    try:
        server = WorkerServer(host, port, registry=collector.registry)
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
            if _ended(starter) and not any(map(_alive, collector.workers())):
                break
    return 0


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
    # How a worker starts one: see workerserver.collector_process.
    parser.add_argument("--starter", type=int, metavar="PID", help=argparse.SUPPRESS)
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


def _open(pid: int) -> int:
    """A descriptor that tells when process *pid* ends."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:  # ended already, or no Linux of 5.3 or newer
        raise UsageError(f"--starter {pid}: {error.strerror}") from None


def _ended(process: int) -> bool:
    return bool(select.select([process], [], [], 0)[0])


def _leave() -> None:
    """Go on as nobody's child and in nobody's group: the starter must not meet us in a wait() of
    its own, and what ends its group must not end us: a rank that died is when we are needed."""
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


def _alive(worker: Worker) -> bool:
    """Whether somebody listens on its socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(KNOCK)
        try:
            sock.connect(worker.address if worker.unix else "")
        except OSError as error:
            return isinstance(error, TimeoutError | BlockingIOError)  # its backlog is full
        return True
