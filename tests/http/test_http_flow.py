"""Flow control in both directions, and handlers and clients that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from typing import Any

import pytest
from support.served import Connect, Kind, Serve, Served
from support.waiting import wait_until
from support.wire import Client, ask, message, post

from workerserver import Request
from workerserver.server import Limits

MIB = 1024 * 1024


def send_until_full(client: Client, data: bytes, limit: int) -> int:
    """Send *data* over and over until the server stops reading; gives the bytes it took."""
    client.socket.settimeout(0.5)
    sent = 0
    try:
        while sent < limit:
            sent += client.socket.send(data[sent % len(data) :])
    except TimeoutError:
        pass
    finally:
        client.socket.settimeout(20)
    return sent


# --- flow control ---------------------------------------------------------------------------------


def test_reply_to_a_client_that_reads_late(served: Served, connect: Connect) -> None:
    body = os.urandom(MIB) * 64
    served.registry.register("large", lambda: body)
    client = connect(served.address)
    client.send(post("large") + post("ping"))
    wait_until(lambda: ("large", 200) in served.state.requests)
    assert ask(served.address, post("ping")).body == b"pong"
    assert client.reply().body == body
    assert client.reply().body == b"pong"


def test_endless_requests_without_reading(served: Served, connect: Connect) -> None:
    """The server stops reading from a client that takes no replies."""
    served.registry.register("answer", lambda: b"x" * 16_384, inline=True)
    request = post("answer", b"x" * 4000)
    client = connect(served.address)
    sent = send_until_full(client, request, 64 * MIB)
    assert sent < 32 * MIB, "the server has to stop reading"
    answered = served.state.requests["answer", 200]
    assert answered * 16_384 < 32 * MIB, "no heap of replies"
    assert ask(served.address, post("ping")).body == b"pong"
    for _ in range(sent // len(request)):
        assert len(client.reply().body) == 16_384


def test_requests_ahead_of_a_slow_handler(
    served: Served, connect: Connect, gate: threading.Event
) -> None:
    """Bytes that come while a handler runs are read only up to a bound."""
    served.registry.register("wait", lambda: str(gate.wait(20)))
    request = post("ping", b"x" * 1000)
    client = connect(served.address)
    client.send(post("wait"))
    sent = send_until_full(client, request, 64 * MIB)
    assert sent < 32 * MIB
    gate.set()
    assert client.reply().text == "True"
    for _ in range(sent // len(request)):
        assert client.reply().body == b"pong"


def test_stalled_client_is_dropped(served: Served, connect: Connect) -> None:
    """A client that takes no byte of its reply for so long is gone; one that takes some is not."""
    if served.kind == "tls":
        pytest.skip("TLS doesn't tell what waits below it; test_tls.py has what ends such a client")
    # This is many times the pause between two reads. Else a slow reader on a busy machine would
    # count as a reader that has stopped.
    served.state.stall_seconds = 2.0
    body = os.urandom(MIB) * 64
    served.registry.register("large", lambda: body)
    stalled, slow = connect(served.address), connect(served.address)
    stalled.send(post("large"))
    slow.send(post("large"))
    wait_until(lambda: served.state.requests.get(("large", 200)) == 2)
    taken = bytearray()
    while served.connections == 2:
        taken += slow.socket.recv(MIB)
        time.sleep(0.1)
    assert len(taken) < len(body), "the slow client has to be one all the time"
    size = taken.index(b"\r\n\r\n") + 4 + len(body)
    while len(taken) < size:
        piece = slow.socket.recv(MIB)
        assert piece, "the slow client was dropped too"
        taken += piece
    assert taken.endswith(body)
    with pytest.raises((EOFError, ConnectionError)):
        stalled.reply()


@pytest.mark.parametrize("kind", ["tcp", "asyncio-tcp"])
def test_reply_survives_what_the_client_still_sends(serve: Serve, kind: Kind) -> None:
    """The 400 is not lost to a reset, although the client was in the middle of sending."""
    served = serve(kind)
    for _ in range(20):
        with Client(served.address) as client:
            client.send(b"GET / HTTP/1.1\r\nbad field\r\n\r\n")
            wait_until(lambda: ("", 400) in served.state.requests)
            client.send(b"x" * MIB)
            reply = client.reply()
            assert (reply.status, reply.header("Connection")) == (400, "close")
            assert client.rest() == b""


def test_client_that_never_stops_sending(served: Served, connect: Connect) -> None:
    """After its last reply a client may go on for a while, not for ever."""
    client = connect(served.address)
    client.send(b"bad\r\n\r\n")
    # With TLS the connection ends after some seconds, whatever bytes have gone out.
    with contextlib.nullcontext() if served.kind == "tls" else pytest.raises(ConnectionError):
        client.send(b"x" * (64 * MIB))
    wait_until(lambda: not served.connections)


def test_client_that_never_closes(served: Served, connect: Connect) -> None:
    served.state.drain_seconds = 0.2
    client = connect(served.address)
    assert client.ask(b"bad\r\n\r\n").status == 400
    wait_until(lambda: not served.connections)


# --- handlers and clients that come and go --------------------------------------------------------


def test_async_handler_is_cancelled_when_its_client_goes(served: Served, connect: Connect) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def forever() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    served.registry.register("forever", forever, limit=1)
    client = connect(served.address)
    client.send(post("forever"))
    assert started.wait(10)
    assert ask(served.address, post("forever")).status == 503
    # On TCP the client resets. The end of its own side alone would not mean that it wants no
    # answer.
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert cancelled.wait(10)
    wait_until(lambda: served.registry.find("forever").running == 0)


def test_late_result_of_a_thread_is_dropped(
    served: Served, connect: Connect, gate: threading.Event
) -> None:
    started = threading.Event()

    def late() -> bytes:
        started.set()
        gate.wait(20)
        return b"x" * MIB

    served.registry.register("late", late)
    client = connect(served.address)
    client.send(post("late"))
    assert started.wait(10)
    for connection in list(served.state.connections):
        served.call(connection.abort)
    wait_until(lambda: not served.connections)
    gate.set()
    wait_until(lambda: served.registry.find("late").running == 0)
    assert len(ask(served.address, post("late")).body) == MIB


def test_task_cancelled_before_its_first_step(served: Served, connect: Connect) -> None:
    """Its handler's place is given back all the same."""

    async def quick() -> str:
        return "x"

    served.registry.register("quick", quick, limit=1)
    client = connect(served.address)
    assert client.ask(post("quick")).text == "x"
    (connection,) = served.state.connections

    def receive_and_end() -> None:
        connection.data_received(post("quick"))
        connection.shutdown()

    served.call(receive_and_end)
    assert client.reply().status == 500
    assert served.registry.find("quick").running == 0


def test_busy_handler(served: Served, connect: Connect, gate: threading.Event) -> None:
    served.registry.register("one", lambda: str(gate.wait(20)), limit=1)
    first, second = connect(served.address), connect(served.address)
    first.send(post("one"))
    wait_until(lambda: served.registry.find("one").running == 1)
    reply = second.ask(post("one"))
    assert (reply.status, reply.header("Retry-After")) == (503, "1")
    assert "one is busy" in reply.text
    assert reply.header("Connection") is None
    assert second.ask(post("ping")).body == b"pong"
    gate.set()
    assert first.reply().text == "True"
    assert second.ask(post("one")).text == "True"


def test_no_thread_left(serve: Serve, kind: Kind, connect: Connect, gate: threading.Event) -> None:
    """More blocking requests than the pool takes: 503, and the server goes on."""
    # 120 TLS handshakes may take long, and the loop may be late for each of them.
    served = serve(kind, limits=Limits(head_timeout=100.0, idle_timeout=100.0, gil_timeout=100.0))
    served.registry.register("wait", lambda: str(gate.wait()), limit=1000)
    clients = []
    for _ in range(120):
        clients.append(connect(served.address))
        clients[-1].send(post("wait"))
    handler = served.registry.find("wait")

    def refused() -> int:
        return served.state.requests.get(("wait", 503), 0) + served.state.requests.get(("", 503), 0)

    wait_until(lambda: refused() + handler.running == 120, 90)
    assert refused() >= 120 - 96, "32 threads and a backlog of 64"
    assert ask(served.address, post("ping")).body == b"pong"
    gate.set()
    replies = [client.reply() for client in clients]
    assert {reply.status: reply.header("Retry-After") for reply in replies} == {200: None, 503: "1"}
    assert handler.running == 0


def test_registration_while_serving(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    for turn in range(3):
        assert client.ask(post("fresh")).status == 404
        served.registry.register("fresh", lambda turn=turn: str(turn), inline=True)
        assert client.ask(post("fresh")).text == str(turn)
        assert b'"fresh"' in client.ask(message("GET", "/handler/")).body
        served.registry.unregister("fresh")
    assert client.ask(post("fresh")).status == 404


def test_request_of_a_handler(ours_tcp: Served, connect: Connect) -> None:
    def seen(request: Request) -> dict[str, Any]:
        return {
            "method": request.method,
            "path": request.path,
            "params": dict(request.params),
            "header": request.header("X-THING"),
            "missing": request.header("X-Missing"),
            "version": request.http_version,
            "peer": request.peer,
        }

    ours_tcp.registry.register("seen", seen)
    client = connect(ours_tcp.address)
    request = message("POST", "/handler/%73een?a=1", b"", [("X-Thing", "v")], version="1.0")
    host, port = client.socket.getsockname()
    assert client.ask(request).body == (
        b'{"method":"POST","path":"/handler/seen","params":{"a":"1"},"header":"v",'
        b'"missing":null,"version":"1.0","peer":"%s:%d"}' % (host.encode(), port)
    )
