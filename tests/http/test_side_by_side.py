"""The same requests to our server and to torch's: status, body and content type are equal, but for
a table of deliberate differences.

Both servers run ``programs/server/serve.py``. A request that stands in no row of DIFFERENT must be
answered alike to the byte; one that does must be answered differently, so that the table holds
nothing that is no longer true.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from support.lifecycle import PROGRAMS
from support.wire import Client, Reply, message, post

pytestmark = pytest.mark.torch

FORM = ("Content-Type", "application/x-www-form-urlencoded")


@dataclass(frozen=True)
class Case:
    """One request; *why*: the reason where ours is different on purpose."""

    name: str
    data: bytes
    why: str = ""
    head_only: bool = False

    @property
    def nccl(self) -> bool:
        return b"/handler/dump_nccl_trace_" in self.data


def to(target: str, body: bytes = b"", *headers: tuple[str, str], why: str = "") -> Case:
    """``POST /handler/TARGET``."""
    name = target if not body else f"{target} < {body[:40]!r} {[v for _, v in headers]}"
    return Case(name, post(target, body, headers), why)


def form(target: str, fields: str, why: str = "") -> Case:
    return to(target, fields.encode(), FORM, why=why)


def plain(method: str, path: str, why: str = "") -> Case:
    data = message(method, path, None if method in ("GET", "HEAD") else b"")
    return Case(f"{method} {path}", data, why, method == "HEAD")


# --- reasons


METHOD = "405 with Allow says that the path is right; torch answers an empty 404"
TWICE = "a parameter that is given twice is ambiguous; torch takes the last or the first"
FRAGMENT = "a target has no fragment (RFC 9112, 3.2): refused; torch cuts it off"
PERCENT = "a broken escape or what isn't UTF-8 is refused; torch passes it on as it is"
NUL = "the name as it was asked for; torch's text ends at the zero byte"
NAMED = "the text says which handler is missing; torch answers an empty 404 to all but POST"
OWN = "a route, a name or a parameter that only ours has"
STATUS = "a bad duration is the client's mistake: 400; torch answers 500"
HOST = "HTTP/1.1 needs exactly one Host field (RFC 9112, 3.2)"


# --- requests


def pages() -> Iterator[Case]:
    for path in ("/", "/?", "/?a=1", "/?%20", "//", "/nope", "/handler", "/handler/ping/more"):
        yield plain("GET", path)
    for path in ("/", "//", "/nope", "/handler", "/handler/ping/more", "/handler//ping", "/x/y/z"):
        if path == "/":
            yield plain("POST", path, METHOD)
        else:
            yield plain("POST", path)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        yield plain(method, "/nope")
        yield plain(method, "/handler/ping", METHOD)
    for path in ("/", "/nope"):
        yield plain("HEAD", path)
    yield plain("HEAD", "/handler/ping", METHOD)
    yield plain("GET", "/handler/ping", METHOD)
    yield plain("GET", "/handler/nope", NAMED)
    yield plain("PUT", "/handler/nope", NAMED)
    yield plain("POST", "/handler//")
    yield plain("GET", "/healthz", OWN)
    yield plain("GET", "/metrics", OWN)
    yield plain("POST", "/handler/", METHOD)


def names() -> Iterator[Case]:
    for path in ("ping", "ping/", "p%69ng", "%70%69%6e%67", "ping?", "ping?x=1", "ping/?x=1&&"):
        yield to(path)
    for name in ("nope", "Ping", "ping%20", "pin", "ping.", "%20", "nope/", "a%2Bb", "a+b", "ü"):
        yield to(quote(name, safe="%+/") if name == "ü" else name)
    for name in ("with%20space", "with%20space/", "with+space", "x" * 200, "%C3%A9", "a;b", "~-._"):
        yield to(name)
    yield to("%2F")
    yield to("ping%2F")
    yield to("ping%00", why=NUL)
    yield to("ping#x", why=FRAGMENT)
    yield to("ping?x#y", why=FRAGMENT)
    yield to("%ff", why=PERCENT)
    yield to("%zz", why=PERCENT)


ENCODED = (
    "a=1",
    "a=1&b=2",
    "a=&b=",
    "a&b",
    "a",
    "=",
    "=x&a=1",
    "==",
    "&&a=1&&",
    "a==",
    "a=b=c",
    "a=1%202",
    "a=1+2",
    "a=%2B+%20",
    "a=%C3%A9&b=%E2%82%AC",
    "a=%26%3D&b=%25",
    "%61=x",
    "a%20=x",
    "+a=x",
    "A=1",
    "a=1;b=2",
    "a=1&missing=x",
    "a=" + "x" * 4000,
    "a=1?b=2",
    "a=/&b=:@",
    "a='&b=(!)*",
    "a=%0A&b=%09",
    "b=2&a=1",
    "a[0]=1",
)


def parameters() -> Iterator[Case]:
    for query in ENCODED:
        yield to(f"echo_params?{query}")
        yield form("echo_params", query)
        yield form("echo_params?a=query", query)
        yield form("echo_params?b=query", query)
    yield form("echo_params?a=1", "a=2")
    yield to("echo_params?a=1&a=2")
    yield form("echo_params", "a=1&a=2")
    for media_type in (
        "text/plain",
        "application/json",
        "application/x-www-form-urlencoded; charset=utf-8",
        "application/x-www-form-urlencoded ",
    ):
        yield to("echo_params", b"a=1", ("Content-Type", media_type))
    yield to("echo_params", b"a=1")
    for broken in ("a=%", "a=%z1", "a=%C3", "a=%FF"):
        yield to(f"echo_params?{broken}", why=PERCENT)


def bodies() -> Iterator[Case]:
    for body in (b"", b"x", "grüß".encode(), b"\0", b"a=1", b"x" * 100_000, b"\r\n\r\n", b"{}"):
        yield to("echo_body", body)
        yield to("echo_body", body, ("Content-Type", "application/json"))
    yield form("echo_body", "a=1&b=2")
    yield to("describe?a=1", b"abc")


def results() -> Iterator[Case]:
    for name in ("content_bytes", "content_str", "status_777", "nothing", "describe"):
        yield to(name)
        yield to(f"{name}?whatever=1", b"body")


NCCL = ("dump_nccl_trace_pickle", "dump_nccl_trace_json")
QUERIES = (
    "onlyactive=1",
    "onlyactive=True",
    "onlyactive=",
    "onlyactive",
    "onlyactive=true&x=1",
    "x=1&onlyactive=no",
    "onlyactive=no&x=1",
    "includecollectives=TRUE",
    "includecollectives=false&includeCollectives=false",
    "includeCollectives=true",
    "x",
    "x=",
    "true",
    "onlyactive=no&includecollectives=no",
    "includecollectives=no&onlyactive=no",
    "includecollectives=%74rue&onlyactive=tru%65x",
    "onlyactive=true+",
    "backend=nccl",
)


def recorders() -> Iterator[Case]:
    for name in NCCL:
        for query in QUERIES:
            yield to(f"{name}?{query}")
            yield form(name, query)
        # Both values are looked at, whichever of them counts.
        yield form(f"{name}?onlyactive=true", "onlyactive=maybe")
        yield form(f"{name}?onlyactive=maybe", "onlyactive=true")
        yield form(f"{name}?onlyactive=true", "x=1")
        yield to(f"{name}?onlyactive=true&onlyactive=no")
        yield to(f"{name}?onlyactive=true&onlyactive=false", why=TWICE)
    for query in ("", "?", "?onlyactive=perhaps", "?x=1&x=2", "?backend=gloo", "?backend="):
        yield to(f"fr_trace_json{query}")
    for query in ("?backend=none-such", "?backend=a%20b&backend=gloo", "?Backend=x"):
        yield to(f"fr_trace_json{query}")
    yield form("fr_trace_json", "backend=other")
    yield form("fr_trace_json?backend=gloo", "backend=other")
    for query in ("", "?backend=gloo", "?backend=", "?x=1"):
        yield to(f"fr_dump_file{query}")
    yield form("fr_dump_file", "backend=other")
    yield to("c10d_health_check")
    yield to("c10d_health_check?x=1")
    yield to("torch_comms_fr_trace_json?onlyactive=maybe")
    yield to("fr_summary", why=OWN)
    yield to("dump_traceback?format=xml", why=OWN)


def profiles() -> Iterator[Case]:
    for query in ("", "?duration=", "?duration=soon"):
        yield to(f"torch_profile{query}", why=STATUS)


def heads() -> Iterator[Case]:
    """Requests whose heads are written differently."""
    ping = "POST /handler/ping HTTP/1.1\r\n"
    rest = "Content-Length: 0\r\n\r\n"
    for fields in (
        "Host: x\r\n",
        "host: x:1\r\n",
        "HOST:x\r\n",
        "Host: [::1]:80\r\n",
        "Host: x\r\nX-Empty:\r\n",
        "Host: x\r\nAccept: */*\r\nUser-Agent: curl/8\r\n",
        "Host: x\r\nX-A: 1\r\nX-A: 2\r\n",
        "Host: x\r\nCookie: a=b; c=d\r\n",
        "Host: x\r\nConnection: close\r\n",
        "Host: x\r\nConnection: keep-alive\r\n",
        "Host: x\r\nAccept-Encoding: gzip, br\r\n",
        "Host: x\r\nX-Long: " + "y" * 4000 + "\r\n",
        "Host: x\r\nRange: bytes=0-1\r\n",
    ):
        yield Case(f"fields {fields[:40]!r}", (ping + fields + rest).encode())
    yield Case("no Host", (ping + rest).encode(), HOST)
    chunked = "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for body in ("0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"):
        data = f"POST /handler/echo_body HTTP/1.1\r\n{chunked}{body}"
        yield Case(f"chunked {body!r}", data.encode())


def cases() -> list[Case]:
    groups = (pages, names, parameters, bodies, results, recorders, profiles, heads)
    return [case for group in groups for case in group()]


CASES = cases()


@pytest.fixture(scope="module")
def addresses() -> Iterator[tuple[str, str]]:
    """The sockets of our server and of torch's, each in a process of its own."""
    pytest.importorskip("torch")
    import json
    import tempfile

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ws-")))
        paths = []
        for kind in ("ours", "torch"):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(PROGRAMS / "server/serve.py"), kind],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdin is not None
            assert process.stdout is not None
            paths.append(str(folder / kind))
            process.stdin.write(json.dumps([paths[-1]]) + "\n")
            process.stdin.flush()
            assert "port" in process.stdout.readline()
        yield paths[0], paths[1]


def answer(address: str, case: Case) -> tuple[int, str | None, bytes]:
    with Client(address) as client:
        reply: Reply = client.ask(case.data, case.head_only)
    return reply.status, reply.header("Content-Type"), reply.body


def test_there_are_enough() -> None:
    assert len(CASES) >= 200
    assert len({case.data for case in CASES}) == len(CASES), "one request stands here twice"


@pytest.mark.parametrize("case", CASES, ids=[case.name[:80] for case in CASES])
def test_equal_but_for_the_table(addresses: tuple[str, str], case: Case) -> None:
    ours, theirs = (answer(address, case) for address in addresses)
    if theirs[0] == 404 and case.nccl:
        assert ours[0] in (400, 501)  # a torch without NCCL has no such handler
    elif case.why:
        assert ours != theirs, "no longer different: take it out of the table"
    else:
        assert ours == theirs
