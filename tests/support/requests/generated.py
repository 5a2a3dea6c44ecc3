"""Requests made by hypothesis: well-formed ones, mutations of them, and raw bytes."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, currently_in_test_context, settings
from hypothesis import event as hypothesis_event
from hypothesis import strategies as st

LONG = os.environ.get("WORKERSERVER_HYPOTHESIS") == "long"

profile = settings(
    deadline=None,
    print_blob=True,
    database=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],
    max_examples=20_000 if LONG else 500,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def event(text: str) -> None:
    """An event for the counts of ``pytest --hypothesis-show-statistics``."""
    if currently_in_test_context():
        hypothesis_event(text)


TOKEN = st.text("!#$%&'*+-.^_`|~09AZaz", min_size=1, max_size=8).map(str.encode)

METHOD = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"M-SEARCH"])

PATH = st.from_regex(rb"/([!$&-;=@A-Z_a-z~]|%[0-9A-Fa-f]{2}){0,12}", fullmatch=True)

TARGET = st.builds(
    lambda prefix, path, query: prefix + path + query,
    st.sampled_from([b"", b"", b"http://a", b"HTTPS://[::1]:8080"]),
    PATH,
    st.from_regex(rb"(\?([!$&-;=?@A-Z_a-z~]|%[0-9A-F]{2}){0,12})?", fullmatch=True),
)

SPACE = st.sampled_from([b"", b" ", b"\t", b" \t "])

VALUE = st.from_regex(rb"([!-~\x80-\xff]([ \t]?[!-~\x80-\xff]){0,12})?", fullmatch=True)

SPECIAL = {b"host", b"content-length", b"transfer-encoding", b"expect", b"connection"}

FIELD = st.tuples(TOKEN.filter(lambda name: name.lower() not in SPECIAL), SPACE, VALUE, SPACE)

OPTIONS = st.sampled_from(
    [
        b"Connection: keep-alive",
        b"Connection: x, Close",
        b"Connection: Upgrade\r\nUpgrade: websocket",
        b"Expect: 100-continue",
        b"Accept:*/*",
    ]
)


def field_line(parts: tuple[bytes, bytes, bytes, bytes]) -> bytes:
    name, before, value, after = parts
    return name + b":" + before + value + after + b"\r\n"


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    out = b""
    extension = st.from_regex(
        rb'(;[a-z]{1,3}(=([a-z0-9]{1,3}|"[ !#-\[\]-~]{0,3}"))?){0,2}', fullmatch=True
    )
    looks_like_framing = st.lists(
        st.sampled_from([b"\n", b"\r\n", b"0\r\n\r\n", b"1;a\r\n", b"GET / HTTP/1.1\r\n\r\n"]),
        min_size=1,
        max_size=4,
    ).map(b"".join)
    for data in draw(st.lists(st.binary(min_size=1, max_size=20) | looks_like_framing, max_size=4)):
        zeros = b"0" * draw(st.integers(0, 3))
        size = draw(st.sampled_from([b"%x", b"%X"])) % len(data)
        out += zeros + size + draw(extension) + b"\r\n" + data + b"\r\n"
    trailers = b"".join(map(field_line, draw(st.lists(FIELD, max_size=2))))
    return out + b"0" + draw(extension) + b"\r\n" + trailers + b"\r\n"


@st.composite
def request(draw: st.DrawFn) -> bytes:
    method = draw(METHOD)
    target = b"*" if method == b"OPTIONS" and draw(st.booleans()) else draw(TARGET)
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    lines = [field_line(parts) for parts in draw(st.lists(FIELD, max_size=4))]
    lines += [line + b"\r\n" for line in draw(st.lists(OPTIONS, max_size=1))]
    if version == b"1.1" or draw(st.booleans()):
        lines.append(draw(st.sampled_from([b"Host: a\r\n", b"hOST:[::1]:80 \r\n", b"Host:h\r\n"])))
    framing = draw(st.sampled_from(["none", "length", "chunked" if version == b"1.1" else "none"]))
    body = b""
    if framing == "length":
        body = draw(st.binary(max_size=40))
        lines.append(b"Content-Length: %0*d\r\n" % (draw(st.integers(1, 4)), len(body)))
    elif framing == "chunked":
        body = draw(chunked())
        lines.append(
            draw(
                st.sampled_from(
                    [b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:Chunked\r\n"]
                )
            )
        )
    head = method + b" " + target + b" HTTP/" + version + b"\r\n"
    return head + b"".join(draw(st.permutations(lines))) + b"\r\n" + body


PIPELINE = st.lists(request(), min_size=1, max_size=3)

POINTS = st.lists(st.integers(0, 1 << 16), max_size=6)

PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"%",
    b"#",
    b"0",
    b"-",
    b"+",
    b";",
    b"\x0b",
]

MUTATION = st.tuples(
    st.sampled_from(["flip", "insert", "delete", "truncate", "repeat"]),
    st.integers(0, 1 << 16),
    st.integers(1, 255),
    st.sampled_from(PIECES),
)


def mutate(data: bytes, mutations: list[tuple[str, int, int, bytes]]) -> bytes:
    for how, where, what, piece in mutations:
        i = where % (len(data) + 1)
        if how == "insert":
            data = data[:i] + piece + data[i:]
        elif how == "delete":
            data = data[:i] + data[i + what % 8 :]
        elif how == "truncate":
            data = data[: len(data) - where % 32]
        elif how == "repeat":
            data = data[: i + what % 40] + data[i:]
        elif i < len(data):
            data = data[:i] + bytes([data[i] ^ what]) + data[i + 1 :]
    return data


MUTATED = st.builds(mutate, PIPELINE.map(b"".join), st.lists(MUTATION, min_size=1, max_size=3))

RAW = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([*PIECES, b"GET", b"/", b"a", b"Host: h"]), max_size=20).map(b"".join),
)
