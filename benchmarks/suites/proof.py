"""What a token costs: none, sent as it is, and proven. TCP on loopback, a client in Python.

The client is the one that the commands have: its own hashes are in the figures. A connection with
proof has one round trip more than another one, the greeting.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence

from benchmarks.context import Context
from benchmarks.report.model import Report, Table
from benchmarks.report.stats import median, ratio, spread
from benchmarks.rounds import placed
from benchmarks.subjects.servers import Server, served
from workerserver.cluster.ask.token.proof import Proof, key_of

QUESTION = "What does the token cost, as it is and by proof?"

WAYS = ("no token", "bearer", "proof")
TOKEN = "a token of the benchmark"
VARIABLE = "WORKERSERVER_TOKEN"
LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)", re.IGNORECASE)
CHALLENGE = re.compile(rb"\r\nwww-authenticate: (WorkerServer [^\r]*)", re.IGNORECASE)
INFO = re.compile(rb"\r\nauthentication-info: ([^\r]*)", re.IGNORECASE)
#: What is measured: the handler, whether each request has a connection of its own, and how many
#: requests a round has.
CASES = {
    "fresh connection, ping": ("ping", True, 300),
    "kept connection, ping": ("ping", False, 1500),
    "kept connection, dump": ("dump_traceback?mode=gil", False, 300),
}


class Asker:
    """One connection that asks in one of the WAYS. RuntimeError if an answer is not as it should
    be."""

    def __init__(self, address: tuple[str, int], way: str, key: bytes) -> None:
        self._proof = Proof(key) if way == "proof" else None
        self._field = f"Authorization: Bearer {TOKEN}\r\n" if way == "bearer" else ""
        self._socket = socket.create_connection(address, 30.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._proof is not None:
            head = f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: {self._proof.greeting()}"
            reply = self._exchange(f"{head}\r\n\r\n".encode())[0]
            found = CHALLENGE.search(reply)
            if found is None or self._proof.meet(found[1].decode()) != "proven":
                raise RuntimeError(f"the worker has not proven itself: {reply!r}")

    def close(self) -> None:
        self._socket.close()

    def ask(self, handler: str) -> None:
        target, field = f"/handler/{handler}", self._field
        if self._proof is not None:
            field = f"Authorization: {self._proof.request('POST', target)}\r\n"
        text = f"POST {target} HTTP/1.1\r\nHost: localhost\r\n{field}Content-Length: 0\r\n\r\n"
        head, body = self._exchange(text.encode())
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{handler}: {head!r}")
        if self._proof is not None:
            info = INFO.search(head)
            if info is None or not self._proof.answered(200, body, info[1].decode()):
                raise RuntimeError(f"{handler}: no proof of the answer")

    def _exchange(self, request: bytes) -> tuple[bytes, bytes]:
        self._socket.sendall(request)
        data = self._socket.recv(1 << 16)
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        found = LENGTH.search(head)
        while found is not None and len(body) < int(found[1]):
            body += self._more()
        return head, body

    def _more(self) -> bytes:
        piece = self._socket.recv(1 << 16)
        if not piece:
            raise RuntimeError("the connection has ended")
        return piece


@contextlib.contextmanager
def with_token(token: str) -> Iterator[None]:
    """Servers that start inside have *token*; none if it is empty."""
    before = os.environ.pop(VARIABLE, None)
    if token:
        os.environ[VARIABLE] = token
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def one_round(server: Server, way: str, key: bytes, case: str, number: int) -> float:
    """The median time of a request, in microseconds."""
    handler, fresh, _ = CASES[case]
    address = server.address
    assert not isinstance(address, str)
    times = []
    asker = None
    with server.awake():
        for _ in range(number):
            if asker is not None and fresh:
                asker.close()
                asker = None
            began = time.perf_counter_ns()
            if asker is None:
                asker = Asker(address, way, key)
                if not fresh:
                    asker.ask(handler)  # the connection is not what is measured
                    began = time.perf_counter_ns()
            asker.ask(handler)
            times.append((time.perf_counter_ns() - began) / 1000)
    if asker is not None:
        asker.close()
    return median(times)


def run(context: Context) -> Report:
    key = key_of(TOKEN)
    found: dict[str, dict[str, list[float]]] = {case: {way: [] for way in WAYS} for case in CASES}
    with contextlib.ExitStack() as stack:
        servers = {}
        for way, token in (("no token", ""), ("bearer", TOKEN)):
            with with_token(token):
                servers[way] = stack.enter_context(served("ours", folder=context.folder, tcp=True))
        servers["proof"] = servers["bearer"]
        cpus = os.sched_getaffinity(0)
        for server in servers.values():
            server.place({min(cpus)})
        stack.enter_context(placed({min(cpus)}))
        for turn in range(context.rounds + 1):  # the first one warms up
            for case, (_, _, number) in CASES.items():
                for way in WAYS:
                    size = number // 5 if context.quick or not turn else number
                    middle = one_round(servers[way], way, key, case, size)
                    if turn:
                        found[case][way].append(middle)
    return Report("proof", QUESTION, (table(found),))


def table(found: dict[str, dict[str, list[float]]]) -> Table:
    rows: list[Sequence[str | float]] = []
    for case, ways in found.items():
        cells: list[str | float] = [case, *(round(median(ways[way]), 1) for way in WAYS)]
        for way in WAYS[1:]:
            middle, low, high = ratio(ways[way], ways["no token"])
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        rows.append(cells)
    spreads = [
        f"{case}, {way}: {spread(values)[1]:.1f} to {spread(values)[2]:.1f} µs over the rounds"
        for case, ways in found.items()
        for way, values in ways.items()
    ]
    notes = [
        "TCP on loopback, one core for client and server, one request at a time; medians of the "
        "rounds' medians; the time is that of a client in Python, its hashes included.",
        "A fresh connection with proof has one round trip more, the greeting.",
        *spreads,
    ]
    columns = ["request", *(f"{way} p50 µs" for way in WAYS), "bearer / no token"]
    return Table("The token", [*columns, "proof / no token"], rows, notes)
