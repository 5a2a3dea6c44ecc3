"""WorkerProtocol on the wire: uvloop's and asyncio's own transports, Unix sockets and TCP."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.served import Connect, Kind, Serve, Served
from support.waiting import wait_until
from support.wire import Client, Reply, ask, message, post

from workerserver import Limits, Request, Response
from workerserver.http._protocol import date_field
from workerserver.types import WorkerServerError

MIB = 1024 * 1024
EXPECT = ("Expect", "100-continue")


def echo(request: Request) -> Response:
    return Response(request.body)


# --- the date -------------------------------------------------------------------------------------


#: Seconds by which the clock of time(2) may be behind that of time.time().
TICK = 0.1


def seconds_of(reply: Reply) -> int:
    date = reply.header("Date")
    assert date is not None
    moment = parsedate_to_datetime(date)
    assert date == format_datetime(moment, usegmt=True)
    return int(moment.timestamp())


@pytest.mark.parametrize(
    "seconds",
    [
        0, 59, 3600, 86399, 86400, 951782399, 951782400, 951868799, 951868800, 1078099199,
        4107542399, 4107542400, 13574606400, 253402300799,
    ],
)  # fmt: skip
def test_the_text_of_a_date(seconds: int) -> None:
    """Around the ends of years, of centuries and of leap days."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    assert date_field(seconds).decode() == f"Date: {format_datetime(moment, usegmt=True)}\r\n"


@given(st.integers(0, 253402300799))
def test_the_text_of_any_date(seconds: int) -> None:
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    assert date_field(seconds).decode() == f"Date: {format_datetime(moment, usegmt=True)}\r\n"


def test_a_clock_that_was_never_set() -> None:
    assert date_field(-1) == date_field(0)
    assert date_field(2**62) == date_field(253402300799)


def test_every_reply_has_a_date(served: Served, connect: Connect) -> None:
    """Answers at once, by the loop, of a handler, to mistakes, and those that end a connection."""
    served.registry.register("empty", lambda: Response(status=204))
    client = connect(served.address)
    requests = [
        post("ping"), message("GET", "/"), message("GET", "/healthz"), message("GET", "/handler/"),
        post("dump_traceback?mode=nogil"), post("dump_traceback"), post("nope"), post("empty"),
        message("PUT", "/"),
        message("GET", "/", version="1.0", headers=[("Connection", "keep-alive")]),
        b"GET / HTTP/3.7\r\n\r\n",
    ]  # fmt: skip
    for request in requests:
        for _ in range(2):
            before = int(time.time() - TICK)
            reply = client.ask(request)
            assert before <= seconds_of(reply) <= int(time.time()), request
            if reply.status == 505:
                return


def test_a_date_is_made_anew(served: Served, connect: Connect) -> None:
    """Not only when something else asks for it: a static answer is the same bytes but for it."""
    client = connect(served.address)
    for request in (post("ping"), message("GET", "/handler/"), message("GET", "/healthz")):
        first = seconds_of(client.ask(request))
        wait_until(lambda: time.time() > first + 1 + TICK)  # noqa: B023
        assert seconds_of(client.ask(request)) > first
        assert len({seconds_of(reply) for reply in many(client, request)} - {first}) in (1, 2)


def many(client: Client, request: bytes) -> list[Reply]:
    client.send(request * 20)
    return [client.reply() for _ in range(20)]


def test_a_date_of_the_handlers_own(served: Served, connect: Connect) -> None:
    own = "Sun, 06 Nov 1994 08:49:37 GMT"
    served.registry.register("dated", lambda: Response(headers={"date": own}))
    assert connect(served.address).ask(post("dated")).header("Date") == own


# --- connections ----------------------------------------------------------------------------------


def test_keep_alive(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    for _ in range(500):
        reply = client.ask(post("ping"))
        assert (reply.status, reply.body) == (200, b"pong")
        assert reply.header("Connection") is None


def test_connection_close(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    reply = client.ask(post("ping", b"", [("Connection", "close")]))
    assert (reply.body, reply.header("Connection")) == (b"pong", "close")
    assert client.rest() == b""


def test_what_follows_the_last_request_is_not_answered(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    reply = client.ask(post("ping", b"", [("Connection", "close")]) + post("ping") * 10)
    assert reply.header("Connection") == "close"
    assert client.rest() == b""


def test_http_1_0(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    for _ in range(3):
        request = message("GET", "/", version="1.0", headers=[("Connection", "keep-alive")])
        reply = client.ask(request)
        assert (reply.status, reply.header("Connection")) == (200, "keep-alive")
    reply = client.ask(message("GET", "/", version="1.0", host=None))
    assert (reply.status, reply.header("Connection")) == (200, "close")
    assert client.rest() == b""


def test_byte_by_byte(served: Served, connect: Connect) -> None:
    served.registry.register("echo", echo)
    client = connect(served.address)
    for byte in post("echo", b"hello") + post("ping"):
        client.send(bytes((byte,)))
    assert client.reply().body == b"hello"
    assert client.reply().body == b"pong"


def test_half_close(served: Served, connect: Connect, gate: threading.Event) -> None:
    """A client that ends its side gets every answer it asked for, also the late ones."""

    def late(size: int) -> bytes:
        gate.wait(20)
        return b"x" * size

    served.registry.register("late", late)
    client = connect(served.address)
    client.send(post("ping") + post(f"late?size={MIB}") + post("ping"))
    client.half_close()
    assert client.reply().body == b"pong"
    assert client.silent()
    gate.set()
    assert len(client.reply().body) == MIB
    assert client.reply().body == b"pong"
    assert client.rest() == b""


@pytest.mark.parametrize("part", [b"POST /hand", post("ping", b"12345")[:-2]])
def test_half_close_inside_a_request(served: Served, connect: Connect, part: bytes) -> None:
    client = connect(served.address)
    client.send(post("ping") + part)
    client.half_close()
    assert client.reply().body == b"pong"
    assert client.rest() == b""


def test_half_close_while_the_reply_waits(served: Served, connect: Connect) -> None:
    body = os.urandom(MIB) * 8
    served.registry.register("large", lambda: body, inline=True)
    client = connect(served.address)
    client.send(post("large"))
    client.half_close()
    wait_until(lambda: ("large", 200) in served.state.requests)
    # The request behind the end is answered. So the server has noticed the end.
    assert ask(served.address, post("ping")).body == b"pong"
    assert client.reply().body == body
    assert client.rest() == b""


# --- pipelining -----------------------------------------------------------------------------------


def test_a_thousand_pipelined_requests(served: Served, connect: Connect) -> None:
    if served.kind == "tls":
        pytest.skip("two threads can't share Python's end of a TLS connection")
    served.registry.register("number", lambda n="": str(n), inline=True)
    client = connect(served.address)
    requests = b"".join(post(f"number?n={n}") for n in range(1000))
    sender = threading.Thread(target=client.send, args=(requests,))
    sender.start()
    assert [client.reply().text for _ in range(1000)] == [str(n) for n in range(1000)]
    sender.join()


def test_kinds_of_handlers_are_answered_in_order(served: Served, connect: Connect) -> None:
    async def later(n: int) -> str:
        await asyncio.sleep(0.001 * (n % 3))
        return f"async {n}"

    def blocking(n: int) -> str:
        time.sleep(0.001 * (n % 2))
        return f"thread {n}"

    served.registry.register("async", later)
    served.registry.register("thread", blocking)
    served.registry.register("inline", lambda n="": f"inline {n}", inline=True)
    kinds = ("async", "inline", "thread", "thread", "inline", "nope")
    expected = []
    requests = b""
    for n in range(120):
        name = kinds[n % len(kinds)]
        requests += post(f"{name}?n={n}", b"body" if n % 5 == 0 else b"")
        missing = "Handler nope not found: Failed to find handler nope"
        expected.append(missing if name == "nope" else f"{name} {n}")
    client = connect(served.address)
    client.send(requests)
    assert [client.reply().text for _ in expected] == expected


def test_error_ends_a_pipeline_after_the_earlier_replies(served: Served, connect: Connect) -> None:
    served.registry.register("slow", lambda: time.sleep(0.05))
    client = connect(served.address)
    client.send(post("slow") + post("ping") + b"\x00garbage\r\n\r\n" + post("ping"))
    assert [client.reply().status for _ in range(3)] == [200, 200, 400]
    assert client.rest() == b""


# --- bodies ---------------------------------------------------------------------------------------


def test_chunked(served: Served, connect: Connect) -> None:
    served.registry.register("echo", echo)
    head = message("POST", "/handler/echo", None, [("Transfer-Encoding", "chunked")])
    client = connect(served.address)
    body = b"5\r\nhello\r\n1;name=value\r\n \r\n5\r\n\r\n\r\n\n\r\n0\r\nTrailer: x\r\n\r\n"
    client.send((head + body) * 3)
    assert [client.reply().body for _ in range(3)] == [b"hello \r\n\r\n\n"] * 3


def test_large_body(served: Served, connect: Connect) -> None:
    served.registry.register("echo", echo)
    body = os.urandom(MIB) * 9
    client = connect(served.address)
    assert client.ask(post("echo", body)).body == body
    assert client.ask(post("ping")).body == b"pong"


def test_body_of_a_get(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    assert client.ask(message("GET", "/handler/", b"POST / HTTP/1.1\r\n\r\n")).status == 200
    assert client.ask(post("ping")).body == b"pong"


def test_continue_is_sent_when_the_body_is_awaited(served: Served, connect: Connect) -> None:
    served.registry.register("echo", echo)
    request = post("echo", b"hello", [EXPECT])
    client = connect(served.address)
    for _ in range(2):
        assert client.ask(request[:-5]) == Reply(100, "Continue", [], b"")
        assert client.silent(0.05)
        assert client.ask(b"hello").body == b"hello"


def test_continue_is_not_sent_when_the_body_is_there(served: Served, connect: Connect) -> None:
    served.registry.register("echo", echo)
    client = connect(served.address)
    reply = client.ask(post("echo", b"hello", [EXPECT]))
    assert (reply.status, reply.body) == (200, b"hello")


def test_continue_waits_for_its_turn(
    served: Served, connect: Connect, gate: threading.Event
) -> None:
    """The 100 belongs to the second request, so it comes after the answer to the first."""
    served.registry.register("echo", echo)
    served.registry.register("wait", lambda: str(gate.wait(20)))
    client = connect(served.address)
    client.send(post("wait") + post("echo", b"hello", [EXPECT])[:-5])
    assert client.silent(0.1)
    gate.set()
    assert client.reply().text == "True"
    assert client.reply().status == 100
    assert client.ask(b"hello").body == b"hello"


@pytest.mark.parametrize(
    ("field", "status"),
    [(("Content-Length", "101"), 413), (("X-Large", "x" * 70_000), 431), (("Expect", "x"), 417)],
)
def test_final_status_instead_of_continue(
    kind: Kind, serve: Serve, connect: Connect, field: tuple[str, str], status: int
) -> None:
    served = serve(kind, limits=Limits(max_body=100))
    client = connect(served.address)
    reply = client.ask(message("POST", "/handler/ping", None, [EXPECT, field]))
    assert (reply.status, reply.header("Connection")) == (status, "close")
    assert client.rest() == b""


# --- replies --------------------------------------------------------------------------------------


def undated(reply: Reply) -> list[tuple[str, str]]:
    """The header without Date: a second may end between two replies."""
    return [(name, value) for name, value in reply.headers if name != "date"]


def test_head(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    for path in ("/", "/handler/", "/handler/nope", "/nope"):
        full = client.ask(message("GET", path))
        reply = client.ask(message("HEAD", path), head_only=True)
        assert reply.status == full.status
        assert undated(reply) == undated(full)


@pytest.mark.parametrize("status", [204, 304])
def test_replies_without_a_body(served: Served, connect: Connect, status: int) -> None:
    served.registry.register("empty", lambda: Response(b"not sent", status, headers=[("X-A", "b")]))
    client = connect(served.address)
    reply = client.ask(post("empty"))
    assert (reply.status, reply.header("X-A"), reply.header("Content-Type")) == (status, "b", None)
    assert client.ask(post("ping")).body == b"pong"


@pytest.mark.parametrize(
    ("value", "body", "content_type"),
    [
        ("gr\u00fc\u00df", "gr\u00fc\u00df".encode(), "text/plain"),
        (b"\x00", b"\x00", "application/octet-stream"),
        (bytearray(b"ab"), b"ab", "application/octet-stream"),
        ({"a": [1, None]}, b'{"a":[1,null]}', "application/json"),
        (None, b"null", "application/json"),
        (Response("x", 418, "text/x; charset=utf-8"), b"x", "text/x; charset=utf-8"),
        (Response(bytearray(b"ab")), b"ab", "text/plain"),
        ("lone \ud800", b"lone \\ud800", "text/plain"),
    ],
)
@pytest.mark.parametrize("inline", [True, False])
def test_values(
    ours_unix: Served,
    connect: Connect,
    value: Any,
    body: bytes,
    content_type: str,
    inline: bool,
) -> None:
    ours_unix.registry.register("value", lambda: value, inline=inline)
    client = connect(ours_unix.address)
    reply = client.ask(post("value"))
    assert (reply.body, reply.header("Content-Type")) == (body, content_type)
    assert client.ask(post("ping")).body == b"pong"


def _altered(**attributes: Any) -> Response:
    response = Response("x")
    for name, value in attributes.items():
        setattr(response, name, value)
    return response


class OddError(WorkerServerError):
    status = 99

    def __init__(self) -> None:
        super().__init__("an odd status")


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def _raise(error: BaseException) -> Any:
    raise error


MISTAKES: dict[str, Callable[[], Any]] = {
    "injection": lambda: Response("x", headers=[("X-A", "b\r\nX-Evil: c")]),
    "injected type": lambda: Response("x", content_type="text/plain\r\nX-Evil: c"),
    "late injection": lambda: _altered(headers=[("X-A", "b\r\nX-Evil: c")]),
    "late type": lambda: _altered(content_type="text/plain\nX-Evil: c"),
    "late status": lambda: _altered(status=99),
    "status of another type": lambda: _altered(status="200"),
    "body of another type": lambda: _altered(body=17),
    "headers of another type": lambda: _altered(headers=[("X-A", 1)]),
    "no status": lambda: Response("x", 99),
    "nan": lambda: {"a": float("nan")},
    "set": lambda: {1, 2},
    "no text": lambda: _raise(Mute()),
    "odd error": lambda: _raise(OddError()),
    "exit": lambda: _raise(SystemExit(1)),
    "interrupt": lambda: _raise(KeyboardInterrupt()),
    "cancelled": lambda: _raise(asyncio.CancelledError()),
    "stop": lambda: _raise(StopIteration()),
}


@pytest.mark.parametrize("how", ["inline", "thread", "async"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_handlers_mistake_is_a_500(
    ours_unix: Served, connect: Connect, mistake: str, how: str
) -> None:
    function = MISTAKES[mistake]

    async def run() -> Any:
        return function()

    if how == "async":
        ours_unix.registry.register("mistake", run)
    else:
        ours_unix.registry.register("mistake", lambda: function(), inline=how == "inline")
    client = connect(ours_unix.address)
    for _ in range(2):
        reply = client.ask(post("mistake"))
        assert (reply.status, reply.header("X-Evil")) == (500, None)
        assert reply.text.startswith("Handler mistake failed: ")
    assert client.ask(post("ping")).body == b"pong"
    assert ours_unix.registry.find("mistake").running == 0


def test_one_answer_however_the_handler_fails(served: Served, connect: Connect) -> None:
    def deep(n: int = 0) -> int:
        return deep(n + 1)

    served.registry.register("deep", deep)
    client = connect(served.address)
    reply = client.ask(post("deep"))
    assert reply.status == 500
    assert reply.text.startswith("Handler deep failed: RecursionError: ")
    assert len(reply.body) < 20_000
    assert client.ask(post("ping")).body == b"pong"


def test_wrong_parameter_is_named(served: Served, connect: Connect) -> None:
    served.registry.register("typed", lambda: "x")
    client = connect(served.address)
    reply = client.ask(post("typed?colour=red"))
    assert reply.status == 400
    assert "colour" in reply.text
    assert client.ask(post("typed")).text == "x"


def test_targets(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    assert client.ask(message("GET", "http://localhost/handler/")).status == 200
    assert client.ask(message("OPTIONS", "*")).status == 404
    upgrade = [("Connection", "Upgrade"), ("Upgrade", "h2c")]
    assert client.ask(post("ping", b"", upgrade)).body == b"pong"
    assert client.ask(message("CONNECT", "example.org:443")).status == 501
    assert client.rest() == b""
