"""The contract, asked of our server and of torch's C++ ``_WorkerServer`` over the wire.

Both run ``programs/server/serve.py`` in a process of their own. A test that calls ``better()``
names what torch does where ours is better on purpose; every other one holds for both to the letter.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pytest
from support.lifecycle import PROGRAMS
from support.wire import Address, Client, Reply, ask, message, post

SCRIPT = PROGRAMS / "server/serve.py"
FORM = ("Content-Type", "application/x-www-form-urlencoded")
T = TypeVar("T")

pytestmark = pytest.mark.torch

Kind = Literal["ours", "torch"]


class Refused(Exception):
    """The server could not be started; the text is its RuntimeError's."""


class Worker:
    """A process in which servers of one kind are started."""

    def __init__(self, kind: Kind, process: subprocess.Popen[str]) -> None:
        self.kind = kind
        self._process = process

    def start(self, *arguments: str | int) -> int:
        """Start a server with *arguments*; gives its port, raises Refused."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise Refused(answer["error"])
        return int(answer["port"])


class Target(NamedTuple):
    kind: Kind
    address: Address
    port: int  # as the server object gives it


def better(kind: Kind, *, ours: T, torch: T) -> T:
    """What is expected of *kind* where ours is deliberately better."""
    return ours if kind == "ours" else torch


@pytest.fixture(scope="module", params=["ours", "torch"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """A process for each kind of server in turn."""
    pytest.importorskip("torch")
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Worker(request.param, process)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
        finally:
            process.kill()


@pytest.fixture(scope="module")
def target(worker: Worker) -> Iterator[Target]:
    """A server on a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="ws-") as folder:
        path = f"{folder}/worker.sock"
        yield Target(worker.kind, path, worker.start(path))


def run(target: Target, name: str, *args: Any) -> Reply:
    return ask(target.address, post(name, *args))


# --- pages and paths ------------------------------------------------------------------------------


def test_index(target: Target) -> None:
    reply = ask(target.address, message("GET", "/"))
    assert (reply.status, reply.header("Content-Type")) == (200, "text/html")
    assert reply.body == (
        b'<h1>torch.distributed.WorkerServer</h1>\n<a href="/handler/">Handler names</a>\n'
    )


def test_handler_list(target: Target) -> None:
    reply = ask(target.address, message("GET", "/handler/"))
    assert (reply.status, reply.header("Content-Type")) == (200, "application/json")
    names = json.loads(reply.body)
    theirs = {"ping", "dump_traceback", "fr_trace_json", "wait_counter_values", "torch_profile"}
    assert theirs | {"pyspy_dump", "echo_body", "with space"} <= set(names)
    assert len(names) == len(set(names))
    own = {"dump_nccl_trace_pickle", "dump_nccl_trace_json", "fr_summary", "steps"}
    if target.kind == "ours":
        assert own <= set(names)
        assert names == sorted(names)


@pytest.mark.parametrize("path", ["ping", "ping/", "p%69ng", "%70%69%6e%67/", "ping?x=1", "ping?"])
def test_ping(target: Target, path: str) -> None:
    reply = run(target, path)
    assert (reply.status, reply.body) == (200, b"pong")
    assert reply.header("Content-Type") == "text/plain"


def test_name_with_a_space(target: Target) -> None:
    assert run(target, "with%20space").status == 200
    reply = run(target, "with+space")  # a plus is a space in a query only
    assert reply.text == "Handler with+space not found: Failed to find handler with+space"


@pytest.mark.parametrize("name", ["nope", "Ping", "ping%20", "pin"])
def test_unknown_handler(target: Target, name: str) -> None:
    reply = run(target, name)
    assert (reply.status, reply.header("Content-Type")) == (404, "text/plain")
    plain = name.replace("%20", " ")
    assert reply.text == f"Handler {plain} not found: Failed to find handler {plain}"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/", "GET, HEAD"),
        ("DELETE", "/handler/", "GET, HEAD"),
        ("GET", "/handler/ping", "POST"),
        ("HEAD", "/handler/ping", "POST"),
        ("PUT", "/handler/ping", "POST"),
        ("OPTIONS", "/handler/ping", "POST"),
    ],
)
def test_other_method(target: Target, method: str, path: str, allow: str) -> None:
    reply = ask(target.address, message(method, path, b""), head_only=method == "HEAD")
    assert reply.status == better(target.kind, ours=405, torch=404)
    assert reply.header("Allow") == better(target.kind, ours=allow, torch=None)


@pytest.mark.parametrize("path", ["/nope", "/handler", "/handler/ping/more", "//"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_anything_else(target: Target, method: str, path: str) -> None:
    reply = ask(target.address, message(method, path, b""))
    assert (reply.status, reply.body) == (404, b"")


def test_healthz_and_metrics_are_ours(target: Target) -> None:
    reply = ask(target.address, message("GET", "/healthz"))
    assert reply.status == better(target.kind, ours=200, torch=404)
    if target.kind == "ours":
        body = json.loads(reply.body)
        assert body["status"] == "ok"
        assert list(body)[:6] == ["status", "pid", "rank", "uptime_s", "step", "step_age_s"]
    stalled = ask(target.address, message("GET", "/healthz?max_step_age=5"))
    assert stalled.status == better(target.kind, ours=503, torch=404)
    assert (b'"status":"stalled"' in stalled.body) is better(target.kind, ours=True, torch=False)
    metrics = ask(target.address, message("GET", "/metrics"))
    assert metrics.status == better(target.kind, ours=200, torch=404)


# --- what a handler sees and says -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "body", "a", "b"),
    [
        ("", b"", "", ""),
        ("?a=1&b=x%2By+z", b"", "1", "x+y z"),
        ("?a=1&a=2", b"", "1", ""),
        ("?a&b=", b"", "", ""),
        ("?a=%C3%A9&&b=c=d", b"", "\u00e9", "c=d"),
        ("", b"a=1&b=f%20g+h", "1", "f g h"),
        ("?a=query", b"a=form&b=form", "query", "form"),
    ],
)
def test_parameters(target: Target, query: str, body: bytes, a: str, b: str) -> None:
    reply = run(target, "echo_params" + query, body, [FORM] if body else [])
    assert (reply.status, json.loads(reply.body)) == (200, {"a": a, "b": b, "missing": ""})


def test_body_of_another_type_holds_no_parameters(target: Target) -> None:
    reply = run(target, "echo_params", b"a=1", [("Content-Type", "text/plain")])
    assert json.loads(reply.body) == {"a": "", "b": "", "missing": ""}


def test_request_object(target: Target) -> None:
    reply = run(target, "describe?a=1", b"abc")
    expected = {"request": True, "response": True, "body": "str", "param": "str"}
    assert json.loads(reply.body) == expected
    assert run(target, "echo_body", "gr\u00fc\u00df".encode()).text == "gr\u00fc\u00df"
    assert run(target, "echo_body").body == b""


def test_body_that_is_no_text(target: Target) -> None:
    """torch's body() is str, so a handler that asks for it fails; the server goes on."""
    reply = run(target, "echo_body", b"\xff\xfe")
    assert reply.status == 500
    assert reply.text.startswith("Handler echo_body failed: UnicodeDecodeError: ")


def test_content(target: Target) -> None:
    reply = run(target, "content_bytes")
    assert (reply.status, reply.body) == (200, b"\x00\xff\xfe")
    assert reply.header("Content-Type") == "application/octet-stream"
    reply = run(target, "content_str")
    assert (reply.text, reply.header("Content-Type")) == ("gr\u00fc\u00df", "text/plain")
    reply = run(target, "nothing")
    assert (reply.status, reply.body) == (200, b"")


def test_any_status(target: Target) -> None:
    reply = run(target, "status_777")
    assert (reply.status, reply.body) == (777, b"odd")


@pytest.mark.parametrize(
    ("name", "text"), [("fail", "ValueError: the disk is on fire"), ("leave", "SystemExit: 3")]
)
def test_handler_that_raises(target: Target, name: str, text: str) -> None:
    reply = run(target, name)
    assert (reply.status, reply.header("Content-Type")) == (500, "text/plain")
    assert reply.text.startswith(f"Handler {name} failed: {text}")
    origin = re.search(r"\n  (\S+)\((\d+)\): (\w+)\n", reply.text)
    assert origin is not None
    assert (Path(origin[1]).name, origin[3]) == ("serve.py", name)
    assert "raise" in SCRIPT.read_text().splitlines()[int(origin[2]) - 1]
    assert run(target, "ping").body == b"pong"


# --- the built-in handlers ------------------------------------------------------------------------


def test_dump_traceback(target: Target) -> None:
    reply = run(target, "dump_traceback")
    assert (reply.status, reply.header("Content-Type")) == (200, "text/plain")
    threads = reply.text.rstrip("\n").split("\n\n")
    for thread in threads:
        first, *frames = thread.splitlines()
        assert re.fullmatch(
            r"(Thread|Current thread) 0x[0-9a-f]{16}( \[.+\])? \(most recent call first\):", first
        )
        assert frames
        for line in frames:
            assert re.fullmatch(r'  File ".+", line (\d+|\?\?\?) in .+|  <no Python frame>', line)
    main = next(thread for thread in threads if "in main\n" in thread)
    assert main.endswith("in <module>"), "newest frame first"


def test_dump_traceback_formats(target: Target) -> None:
    reply = run(target, "dump_traceback?format=json")
    assert reply.header("Content-Type") == better(
        target.kind, ours="application/json", torch="text/plain"
    )
    bad = run(target, "dump_traceback?format=xml")
    assert bad.status == better(target.kind, ours=400, torch=200)
    assert ("format" in bad.text) is better(target.kind, ours=True, torch=False)


def test_fr_trace_json(target: Target) -> None:
    for name in ("fr_trace_json", "fr_trace_json?includecollectives=maybe&x=1"):
        reply = run(target, name)
        assert (reply.status, reply.header("Content-Type")) == (200, "application/json")
        assert "version" in json.loads(reply.body)


def test_wait_counter_values(target: Target) -> None:
    reply = run(target, "wait_counter_values")
    assert (reply.status, reply.header("Content-Type")) == (200, "application/json")
    fields = {"active_count", "total_calls", "total_time_us", "max_time_us"}
    assert all(set(value) == fields for value in json.loads(reply.body).values())


def test_torch_profile(target: Target) -> None:
    for query in ("", "?duration=", "?duration=soon"):
        reply = run(target, "torch_profile" + query)
        assert reply.status == better(target.kind, ours=400, torch=500)
        assert "duration" in reply.text or target.kind == "torch"
    if target.kind == "ours":  # torch waits for as long as it is told, and raises below zero
        for query in ("?duration=-1", "?duration=1e9", "?duration=nan"):
            assert run(target, "torch_profile" + query).status == 400
    reply = run(target, "torch_profile?duration=0.01")
    assert (reply.status, reply.header("Content-Type")) == (200, "application/json")
    assert "traceEvents" in json.loads(reply.body)


def test_pyspy_dump(target: Target) -> None:
    """py-spy may be missing, or may not trace: a text says so; else it is a dump."""
    reply = run(target, "pyspy_dump")
    assert reply.header("Content-Type") == "text/plain"
    assert reply.status in (200, 500)
    assert ("MainThread" if reply.status == 200 else "py-spy") in reply.text


BAD_VALUE = "Invalid value for {} valid values are true or false"
UNKNOWN = "Invalid parameters - unexpected param passed in"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("onlyactive=1", BAD_VALUE.format("onlyactive")),
        ("includecollectives=True", BAD_VALUE.format("includecollectives")),
        ("onlyactive=", BAD_VALUE.format("onlyactive")),
        ("includeCollectives=true", UNKNOWN),
        ("x=1&onlyactive=no", BAD_VALUE.format("onlyactive")),
        ("onlyactive=no&x=1", BAD_VALUE.format("onlyactive")),
    ],
)
@pytest.mark.parametrize("name", ["dump_nccl_trace_pickle", "dump_nccl_trace_json"])
def test_nccl_parameters(target: Target, name: str, query: str, text: str) -> None:
    reply = run(target, f"{name}?{query}")
    if target.kind == "torch" and "Failed to find handler" in reply.text:
        assert reply.status == 404  # a torch without NCCL
        return
    assert (reply.status, reply.header("Content-Type")) == (400, "text/plain")
    assert reply.text == text


@pytest.mark.parametrize("name", ["dump_nccl_trace_pickle", "dump_nccl_trace_json"])
def test_nccl_without_nccl(target: Target, name: str) -> None:
    torch = pytest.importorskip("torch")
    if hasattr(torch._C._distributed_c10d, "_dump_nccl_trace"):
        pytest.skip("this torch has NCCL")
    reply = run(target, f"{name}?includecollectives=false")
    assert reply.status == better(target.kind, ours=501, torch=404)
    if target.kind == "ours":
        assert "NCCL" in reply.text
        assert "fr_trace_json" in reply.text
        assert run(target, "dump_nccl_trace_json?includestacktraces=true").text == UNKNOWN


# --- HTTP -----------------------------------------------------------------------------------------


def test_keep_alive(target: Target) -> None:
    """torch ends a connection after 30 requests."""
    with Client(target.address) as client:
        served = 0
        while served < 100:
            reply = client.ask(post("ping"))
            served += 1
            assert reply.body == b"pong"
            if reply.header("Connection") == "close":
                break
    assert served == better(target.kind, ours=100, torch=30)


def test_connection_close(target: Target) -> None:
    with Client(target.address) as client:
        reply = client.ask(post("ping", b"", [("Connection", "close")]))
        assert (reply.body, reply.header("Connection")) == (b"pong", "close")
        assert client.rest() == b""


def test_http_1_0(target: Target) -> None:
    with Client(target.address) as client:
        reply = client.ask(message("GET", "/", version="1.0", host=None))
        assert reply.status == 200
        assert reply.header("Connection") == better(target.kind, ours="close", torch=None)
        assert client.rest() == b""


def test_http_1_0_keep_alive(target: Target) -> None:
    """torch promises to keep the connection of such a client, then closes it."""
    request = message("GET", "/", version="1.0", headers=[("Connection", "keep-alive")])
    with Client(target.address) as client:
        assert client.ask(request).status == 200
        if target.kind == "ours":
            reply = client.ask(request)
            assert (reply.status, reply.header("Connection")) == (200, "keep-alive")
        else:
            assert client.rest() == b""


def test_head(target: Target) -> None:
    with Client(target.address) as client:
        for path in ("/", "/handler/"):
            length = client.ask(message("GET", path)).header("Content-Length")
            reply = client.ask(message("HEAD", path), head_only=True)
            assert (reply.status, reply.header("Content-Length")) == (200, length)


def test_chunked_body(target: Target) -> None:
    head = message("POST", "/handler/echo_body", None, [("Transfer-Encoding", "chunked")])
    with Client(target.address) as client:
        for _ in range(2):
            assert client.ask(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").body == b"abcde"


def test_expect_100_continue(target: Target) -> None:
    head = message(
        "POST", "/handler/echo_body", None, [("Content-Length", "5"), ("Expect", "100-continue")]
    )
    with Client(target.address) as client:
        assert client.ask(head) == Reply(100, "Continue", [], b"")
        assert client.ask(b"hello").body == b"hello"


def test_pipelining(target: Target) -> None:
    """torch drops requests that were read together with another; torch 2.10 drops them all once
    the client has ended its side."""
    version = pytest.importorskip("torch").__version__
    theirs = [] if version.startswith("2.10.") else [200]
    names = ["ping", "echo_body", "nope", "ping"]
    with Client(target.address) as client:
        client.send(b"".join(post(name, name.encode()) for name in names))
        client.half_close()
        data = client.rest()
    statuses = [int(code) for code in re.findall(rb"HTTP/1.1 (\d+) ", data)]
    assert statuses == better(target.kind, ours=[200, 200, 404, 200], torch=theirs)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Field: 1\r\n" * 5000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["tls", "http-0.9", "no-colon", "many-fields", "long-target"],
)
def test_malformed_gets_one_answer(target: Target, raw: bytes) -> None:
    """One well-formed reply and a closed connection; torch may send many, or stay silent."""
    with Client(target.address) as client, contextlib.suppress(ConnectionError):
        client.send(raw)
        if target.kind == "ours":
            reply = client.reply()
            assert reply.status in (400, 414, 431)
            assert reply.header("Connection") == "close"
            assert client.rest() == b""
    assert run(target, "ping").body == b"pong"


def test_exactly_one_host(target: Target) -> None:
    for host in ("", "Host: a\r\nHost: b\r\n"):
        reply = ask(target.address, f"GET / HTTP/1.1\r\n{host}\r\n".encode())
        assert reply.status == better(target.kind, ours=400, torch=200)


# --- addresses ------------------------------------------------------------------------------------


def test_port_of_a_unix_socket(target: Target) -> None:
    if target.kind == "ours":  # garbage in torch
        assert target.port == -1


@pytest.mark.parametrize("host", ["", "::", "127.0.0.1"])
def test_tcp(worker: Worker, host: str) -> None:
    """Port 0 is a free one; no host, or "::", is every interface, IPv6 and IPv4."""
    port = worker.start(host, 0)
    assert port > 0
    reached = {}
    for address in ("127.0.0.1", "::1"):
        try:
            reached[address] = ask((address, port), post("ping")).body == b"pong"
        except OSError:
            reached[address] = False
    if not socket.has_dualstack_ipv6():
        assert reached["127.0.0.1"]
    elif host == "":  # torch leaves it to getaddrinfo(), which may answer with ::1 alone
        both = {"127.0.0.1": True, "::1": True}
        assert reached == better(worker.kind, ours=both, torch=reached)
    else:
        assert reached == {"127.0.0.1": True, "::1": host == "::"}


def test_addresses_that_fail(worker: Worker, short_path: Path) -> None:
    taken = short_path / "taken"
    taken.write_text("not a socket")
    with pytest.raises(Refused, match=f"^{re.escape(str(taken))} already exists$"):
        worker.start(str(taken))
    missing = short_path / "missing" / "x.sock"
    with pytest.raises(Refused, match=f"^Error binding to {re.escape(str(missing))}$"):
        worker.start(str(missing))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Refused, match=f"^Error binding to 127.0.0.1:{port}$"):
            worker.start("127.0.0.1", port)
