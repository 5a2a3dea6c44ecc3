"""Limits over the wire: time, size, counts, and any bytes at all."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import pytest
from support.served import Connect, Kind, Serve, Served
from support.waiting import wait_until
from support.wire import Client, Reply, ask, message, parse_reply, post

from workerserver import Limits

KINDS: tuple[Kind, ...] = ("unix", "tcp")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    value: Kind = request.param
    return value


def closes(client: Client, status: int) -> Reply:
    """The one reply *status* with which the server ends the connection."""
    reply = client.reply()
    assert (reply.status, reply.header("Connection")) == (status, "close")
    assert client.rest() == b""
    return reply


# --- time -----------------------------------------------------------------------------------------


def test_head_that_never_ends(kind: Kind, serve: Serve, connect: Connect) -> None:
    served = serve(kind, limits=Limits(head_timeout=0.3))
    client = connect(served.address)
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
    assert "head" in closes(client, 408).text
    client = connect(served.address)
    assert client.ask(post("ping")).body == b"pong"
    client.send(b"G")  # a later request has its deadline, too
    closes(client, 408)


def test_trickle_does_not_extend_the_head(kind: Kind, serve: Serve, connect: Connect) -> None:
    """One more byte now and then: 408 all the same, long before the head could be complete."""
    served = serve(kind, limits=Limits(head_timeout=0.3))
    client = connect(served.address)
    done = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            for _ in range(2000):
                client.send(b"x")
                if done.wait(0.01):
                    return

    sender = threading.Thread(target=trickle)
    sender.start()
    try:
        assert client.reply().status == 408
    finally:
        done.set()
        sender.join()


def test_body_that_never_ends(kind: Kind, serve: Serve, connect: Connect) -> None:
    served = serve(kind, limits=Limits(body_timeout=0.3))
    for start in (
        post("ping", b"12345")[:-1],
        message("POST", "/handler/ping", None, [("Transfer-Encoding", "chunked")]) + b"5\r\nab",
    ):
        client = connect(served.address)
        client.send(start)
        assert "body" in closes(client, 408).text


def test_idle_connection_is_closed_silently(kind: Kind, serve: Serve, connect: Connect) -> None:
    served = serve(kind, limits=Limits(idle_timeout=0.3))
    served.state.drain_seconds = 0.1
    client = connect(served.address)
    assert client.ask(post("ping")).body == b"pong"
    assert client.rest() == b""
    wait_until(lambda: not served.connections)


def test_silent_client(kind: Kind, serve: Serve, connect: Connect) -> None:
    """Nothing was asked, so nothing is answered."""
    served = serve(kind, limits=Limits(head_timeout=0.3))
    assert connect(served.address).rest() == b""


def test_handler_has_all_the_time_it_wants(kind: Kind, serve: Serve, connect: Connect) -> None:
    limits = Limits(head_timeout=0.3, body_timeout=0.3, idle_timeout=0.3)
    served = serve(kind, limits=limits)
    gate = threading.Event()
    served.registry.register("wait", lambda: str(gate.wait(20)))
    client = connect(served.address)
    client.send(post("wait"))
    assert client.silent(1.0)
    gate.set()
    assert client.reply().text == "True"


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (message("GET", "/" + "a" * 70_000), 414),
        (b"GET /" + b"a" * 70_000, 414),
        (message("GET", "/", None, [("X-Large", "x" * 70_000)]), 431),
        (b"GET / HTTP/1.1\r\nX-Large: " + b"x" * 70_000, 431),
        (message("GET", "/", None, [("X-Field", "x")] * 100), 431),
        (message("POST", "/", None, [("Content-Length", "10485761")]), 413),
        (message("POST", "/", None, [("Content-Length", "9" * 30)]), 400),
        (message("POST", "/", None, [("Content-Length", "-1")]), 400),
        (message("POST", "/", None, [("Transfer-Encoding", "gzip, chunked")]), 501),
        (message("GET", "/", host=None), 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
    ids=[
        "target",
        "target without end",
        "head",
        "head without end",
        "fields",
        "length",
        "length past all numbers",
        "negative length",
        "coding",
        "no host",
        "version",
        "method",
        "escape",
        "tls",
    ],
)
def test_refused(server: Served, connect: Connect, raw: bytes, status: int) -> None:
    client = connect(server.address)
    client.send(raw)
    closes(client, status)


def test_chunks_past_the_limit(kind: Kind, serve: Serve, connect: Connect) -> None:
    served = serve(kind, limits=Limits(max_body=1000))
    client = connect(served.address)
    client.send(message("POST", "/handler/ping", None, [("Transfer-Encoding", "chunked")]))
    with contextlib.suppress(ConnectionError):
        for _ in range(11):
            client.send(b"64\r\n" + b"x" * 100 + b"\r\n")
    closes(client, 413)


def test_bodies_in_memory(kind: Kind, serve: Serve, connect: Connect) -> None:
    """Unfinished bodies of all connections share one bound. A body's end gives its share back."""
    limits = Limits(max_body=1000, max_bodies=2500)
    served = serve(kind, limits=limits)
    request = post("ping", b"x" * 1000)
    clients = [connect(served.address) for _ in range(4)]
    for client in clients[:2]:
        client.send(request[:-1])
        assert client.silent(0.1)
    clients[2].send(request[:-1])
    reply = closes(clients[2], 503)
    assert reply.header("Retry-After") == "1"
    assert clients[0].ask(b"x").body == b"pong"
    clients[1].close()
    wait_until(lambda: served.connections <= 3)
    for client in (clients[0], clients[3]):
        client.send(request[:-1])
        assert client.silent(0.1)
        assert client.ask(b"x").body == b"pong"


def test_connections(kind: Kind, serve: Serve, connect: Connect) -> None:
    served = serve(kind, limits=Limits(max_connections=5))
    clients = [connect(served.address) for _ in range(5)]
    assert all(client.ask(post("ping")).body == b"pong" for client in clients)
    late = connect(served.address)
    assert closes(late, 503).header("Retry-After") == "1"
    late.close()
    assert all(client.ask(post("ping")).body == b"pong" for client in clients)
    clients.pop().close()
    wait_until(lambda: served.connections == 4)
    assert ask(served.address, post("ping")).body == b"pong"


# --- any bytes at all -----------------------------------------------------------------------------

SAMPLES = (
    post("ping"),
    post("ping", b"0123456789"),
    message("GET", "/handler/?a=%20b", None, [("X-A", "b")]),
    message("POST", "/handler/ping", None, [("Transfer-Encoding", "chunked")])
    + b"3\r\nabc\r\n0\r\n\r\n",
    message("HEAD", "/", version="1.0", host=None),
)
PIECES = (b"\r\n", b"\n", b"\x00", b" ", b":", b"HTTP/1.1", b"%", b"\xff", b"Host: y\r\n", b"0")


def garbage(random: random.Random) -> bytes:
    """Random bytes, or a request with a few bytes replaced, cut out or put in."""
    if random.random() < 0.4:
        return random.randbytes(random.randrange(1, 200))
    data = bytearray(random.choice(SAMPLES))
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(len(data) + 1)
        data[at : at + random.randrange(3)] = random.choice(
            (*PIECES, random.randbytes(1), b"A" * 50)
        )
    return bytes(data)


def replies(data: bytes) -> Iterator[Reply]:
    """Each reply in *data*; AssertionError for what is none. HEAD's are told by what follows."""
    while data:
        found = parse_reply(data)
        if found is None or (found[1] and not found[1].startswith(b"HTTP/1.1 ")):
            found = parse_reply(data, head_only=True)
        assert found is not None, data
        reply, data = found
        yield reply


@pytest.mark.parametrize("seed", range(4))
def test_garbage(server: Served, connect: Connect, seed: int) -> None:
    """2,500 strings a test: well-formed replies or a clean end, and the next client is served."""
    source = random.Random(seed)
    patient = connect(server.address)
    for turn in range(2500):
        data = garbage(source)
        with Client(server.address) as client:
            client.send(data)
            client.half_close()
            answers = list(replies(client.rest()))
            final = [reply for reply in answers if reply.status >= 200]
            assert len(final) <= 3, data
            errors = [reply.status >= 400 and reply.header("Connection") for reply in final]
            assert "close" not in errors[:-1], data
        if turn % 50 == 0:
            assert patient.ask(post("ping")).body == b"pong"
            assert ask(server.address, post("ping")).body == b"pong"
    wait_until(lambda: server.connections == 1)


def test_half_open_connections(kind: Kind, serve: Serve, connect: Connect) -> None:
    """500 clients that never finish a request don't delay other clients."""
    server = serve(kind, limits=Limits(max_peer=1000))
    for number in range(500):
        client = connect(server.address)
        if number % 3:
            client.send(b"POST /handler/ping HTTP/1.1\r\nHost: x"[: number % 40])
    assert ask(server.address, post("ping")).body == b"pong"
    wait_until(lambda: server.connections == 500)
    late = connect(server.address)
    for _ in range(100):
        assert late.ask(post("ping")).body == b"pong"


def test_burst_of_connections(kind: Kind, serve: Serve, connect: Connect) -> None:
    """While the loop is busy, as many clients may knock as the kernel lets wait."""
    server = serve(kind, limits=Limits(max_peer=1000))
    entered, gate = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        gate.wait(20)

    server.registry.register("hold", hold, inline=True)
    first = connect(server.address)
    first.send(post("hold"))
    assert entered.wait(10)
    try:
        clients = [connect(server.address) for _ in range(500)]
    finally:
        gate.set()
    for client in clients:
        client.send(post("ping"))
    assert all(client.reply().body == b"pong" for client in clients)
