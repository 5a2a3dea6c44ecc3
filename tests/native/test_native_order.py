"""Requests answered by the I/O thread and by the loop, mixed and pipelined on one connection, get
their replies in the order in which they were sent."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from itertools import permutations

import pytest

if sys.platform != "linux":
    pytest.skip("the native I/O thread is for Linux", allow_module_level=True)

from support.served import OURS, Connect, Kind, Serve, Served
from support.wire import ask

from workerserver.http.registry import Registry
from workerserver.types import Request, Response

LARGE = 300_000  # bytes: more than one send takes


def _register(registry: Registry) -> None:
    def echo(request: Request) -> bytes:
        return request.body

    async def later(n: int = 0) -> str:
        await asyncio.sleep(0.001)
        return f"later {n}"

    def thread(n: int = 0) -> str:
        time.sleep(0.0005)
        return f"thread {n}"

    def large(n: int = 0) -> Response:
        return Response(b"%06d" % n * (LARGE // 6))

    for function in (echo, later, thread, large):
        registry.register(function.__name__, function)


def _request(kind: str, n: int) -> tuple[bytes, bytes]:
    """A request and its reply's body."""
    line = b"POST /handler/%s HTTP/1.1\r\nHost: localhost\r\n"
    if kind == "ping":
        return line % b"ping" + b"\r\n", b"pong"
    if kind == "body":  # bytes that look like a request if the count of the body is wrong
        body = line % b"ping" + b"X-Number: %d\r\n\r\n" % n
        return line % b"echo" + b"Content-Length: %d\r\n\r\n" % len(body) + body, body
    if kind == "chunked":
        body = line % b"ping" + b"\r\n"
        return (
            line % b"echo"
            + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
            body,
        )
    if kind == "missing":
        return line % b"none" + b"\r\n", b"Handler none not found: Failed to find handler none"
    name = b"%s?n=%d" % (kind.encode(), n)
    expected = {
        "later": b"later %d" % n,
        "thread": b"thread %d" % n,
        "large": b"%06d" % n * (LARGE // 6),
    }[kind]
    return line % name + b"\r\n", expected


SORTS = ("ping", "body", "chunked", "missing", "later", "thread", "large")


@pytest.fixture(params=OURS)
def served(request: pytest.FixtureRequest, serve: Serve, registry: Registry) -> Served:
    _register(registry)
    kind: Kind = request.param
    return serve(kind)


def test_every_order_of_three(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    for order in permutations(SORTS, 3):
        pairs = [_request(sort, n) for n, sort in enumerate(order)]
        client.send(b"".join(data for data, _ in pairs))
        for sort, (_, body) in zip(order, pairs, strict=True):
            assert client.reply().body == body, (order, sort)


@pytest.mark.parametrize("seed", range(4))
def test_random_orders_and_splits(served: Served, connect: Connect, seed: int) -> None:
    """Cut anywhere, with and without a pause, and read late or soon."""
    chance = random.Random(seed)
    client = connect(served.address)
    sorts = chance.choices(SORTS, (12, 4, 3, 2, 2, 2, 1), k=150)
    pairs = [_request(sort, n) for n, sort in enumerate(sorts)]
    data = b"".join(request for request, _ in pairs)

    def send() -> None:
        at = 0
        while at < len(data):
            size = chance.choice((1, 7, 40, 41, 200, 5000))
            client.send(data[at : at + size])
            at += size
            if chance.random() < 0.2:
                time.sleep(chance.random() * 0.001)

    sender = threading.Thread(target=send)
    sender.start()
    for n, (_, body) in enumerate(pairs):
        assert client.reply().body == body, (n, sorts[n])
    sender.join()


def test_a_ping_does_not_overtake_what_came_before_a_resume(
    served: Served, registry: Registry, connect: Connect
) -> None:
    """The loop learns at the same time that a reply is being drained and a new request has come."""
    free, busy, end = threading.Event(), threading.Event(), threading.Event()

    async def hog() -> str:
        busy.set()
        assert free.wait(20)
        return "hog"

    def huge() -> Response:
        return Response(bytes(16 << 20))

    async def slow() -> str:
        while not end.is_set():
            await asyncio.sleep(0.001)
        return "slow"

    def has_come() -> None:
        """The I/O thread answers this itself, behind all that it has been sent before."""
        assert ask(served.address, line % b"ping" + b"\r\n").body == b"pong"

    for function in (hog, huge, slow):
        registry.register(function.__name__, function)
    line = b"POST /handler/%s HTTP/1.1\r\nHost: localhost\r\n"
    for request, extra, late, expected in (
        (b"slow", b"", line % b"ping" + b"\r\n", [b"slow", b"pong"]),
        (b"echo", b"Content-Length: 41\r\n", line % b"ping" + b"\r\n\r\n", None),
    ):
        for event in (free, busy, end):
            event.clear()
        client, other = connect(served.address), connect(served.address)
        client.send(line % b"huge" + b"\r\n")
        got = len(client.socket.recv(1 << 20))
        other.send(line % b"hog" + b"\r\n")
        assert busy.wait(20)
        body = late[:41] if expected is None else late
        client.send(line % request + extra + b"\r\n")
        while got < 16 << 20:  # all but the length of the head. The rest is in the buffers
            got += len(client.socket.recv(min(1 << 20, (16 << 20) - got)))
        has_come()
        free.set()
        assert other.reply().body == b"hog"
        client.send(body)
        has_come()
        end.set()
        tail = b""
        while not tail.endswith(expected[-1] if expected else body):
            piece = client.socket.recv(1 << 16)
            assert piece, tail[-300:]
            tail += piece
        if expected:
            assert tail.index(b"slow") < tail.index(b"pong")
        else:
            assert b"pong" not in tail
