"""hypothesis drives recognition; the parser, the access policy and the handlers judge it.

``WORKERSERVER_HYPOTHESIS=long`` tries forty times as much.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.requests.generated import (
    LONG,
    MUTATED,
    MUTATION,
    PIPELINE,
    RAW,
    event,
    mutate,
    profile,
)
from support.requests.judged import guarded, judge_age, judge_query, let_in
from support.requests.recognised import check

from workerserver.handlers import register_builtins
from workerserver.http.registry import Registry
from workerserver.http.routes import Router

REGISTRY = Registry()
register_builtins(REGISTRY)
ROUTER = Router(REGISTRY)

NAME = st.text("ABCxyz019!#$%&'*+-.^_`|~", min_size=1, max_size=8)
SPACE = st.text(" \t", max_size=2)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.just("\t"), max_size=12)
SPECIAL = st.sampled_from(
    ["Content-Length: 0", "content-length:0", "Connection: close", "CONNECTION:\tKeep-Alive",
     "Content-Type: text/plain", "Authorization: Bearer s3cret", "User-Agent: curl/8"]
)  # fmt: skip
SEGMENT = st.text("abzAZ09._~-", max_size=6)


@st.composite
def plain(draw: st.DrawFn) -> bytes:
    """A request that has to be recognised."""
    path = "/" + "/".join(draw(st.lists(SEGMENT, max_size=3)))
    query = draw(st.just("") | st.text("abAZ09._~/-=&,:", max_size=12).map("?".__add__))
    fields = [
        f"{name}:{before}{value}{after}"
        for name, before, value, after in draw(
            st.lists(st.tuples(NAME, SPACE, VALUE, SPACE), max_size=3)
        )
        if name.lower() != "te"
    ]
    special = draw(st.lists(SPECIAL, max_size=3, unique_by=lambda line: line.lower()[:10]))
    host = draw(st.sampled_from(["Host: h", "hOST:[::1]:80", "HOST: \t10.0.0.1:8080 \t"]))
    lines = [f"{draw(st.sampled_from(['GET', 'POST']))} {path}{query} HTTP/1.1"]
    lines += draw(st.permutations([*fields, *special, host]))
    return "\r\n".join([*lines, "", ""]).encode()


PLAIN = plain()


@profile
@given(PLAIN, st.binary(max_size=8))
def test_plain_requests(data: bytes, after: bytes) -> None:
    assert check(data + after) == "i" * len(data) + "r"


@profile
@given(PLAIN, st.lists(MUTATION, min_size=1, max_size=2))
def test_mutated(data: bytes, mutations: list[tuple[str, int, int, bytes]]) -> None:
    event(check(mutate(data, mutations)).strip("i")[:1] or "i")


# Such requests take long to make, and few of them are plain.
@settings(profile, max_examples=8000 if LONG else 200)
@given(PIPELINE.map(b"".join) | MUTATED | RAW)
def test_what_the_parser_is_tried_with(data: bytes) -> None:
    event(check(data).strip("i")[:1] or "i")


HOST = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.ip_addresses(v=6).map(lambda address: f"[{address.exploded}]"),
    st.text("0123456789abcdf:.", max_size=16).map(lambda text: f"[{text}]"),
    st.text("0123.", max_size=12),
    st.text("01x.:[]%-aLl", max_size=12),
    st.sampled_from(["localhost", "Localhost", "name.example", "NAME.EXAMPLE.", "name.exampl"]),
)
PORT = st.sampled_from(["", ":80", ":", ":65536", ":x", "."])
GUARDED = guarded("s3cret", ("name.example",))


@profile
@given(
    HOST,
    PORT,
    st.sampled_from(["Bearer", "bearer", "Basic", "Bearer "]),
    st.sampled_from([" ", "  ", "\t", ""]),
    st.just("s3cret") | st.text("s3cret ", max_size=7),
)
def test_whom_it_lets_in(host: str, port: str, scheme: str, space: str, token: str) -> None:
    fields = f"Host: {host}{port}\r\nAuthorization: {scheme}{space}{token}\r\n"
    event(str(let_in(*GUARDED, f"GET / HTTP/1.1\r\n{fields}\r\n".encode())))


@profile
@given(st.text("0123456789.", max_size=18) | st.floats(0, 2e9).map(lambda age: f"{age:f}"))
def test_seconds(text: str) -> None:
    event(str(judge_age(f"max_step_age={text}") is not None))


PAIR = st.sampled_from(
    ["format", "mode", "max_step_age", "a", "text", "json", "digest", "auto", "gil", "nogil", "=",
     "=", "=", "&", "&", "1", "mode=gil", "format=json", "max_step_age=2.5"]
)  # fmt: skip
WHERE = st.sampled_from(
    [("GET", "/"), ("GET", "/handler/"), ("GET", "/healthz"), ("POST", "/handler/ping"),
     ("POST", "/handler/dump_traceback")]
)  # fmt: skip


@profile
@given(WHERE, st.lists(PAIR, max_size=7).map("".join))
def test_queries(where: tuple[str, str], query: str) -> None:
    method, path = where
    look = judge_query(method, path, query, ROUTER)
    event(f"{path} {look.action is not None}")
