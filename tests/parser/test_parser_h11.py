"""hypothesis drives the parser; h11, an independent implementation, judges what it accepts.

``ALLOWED`` and ``REFUSED`` list every difference between the two, with the reason; a difference
that isn't listed is a failure. ``WORKERSERVER_HYPOTHESIS=long`` tries forty times as much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import h11
import pytest
from hypothesis import example, given
from support.requests.generated import (
    MUTATED,
    PIECES,
    PIPELINE,
    POINTS,
    RAW,
    SPECIAL,
    event,
    profile,
)
from support.requests.messages import CASES, Case

from workerserver._parser import RequestParser
from workerserver.types import ProtocolError

STATUSES = {400, 413, 414, 417, 431, 501, 505}


# Limits that are small enough for generated input to exceed them.
LIMITS = {"max_head": 400, "max_headers": 12, "max_body": 64, "max_chunks": 3}


@dataclass
class Message:
    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    version: bytes
    keep_alive: bool


@dataclass
class Seen:
    """One implementation's result for a stream."""

    messages: list[Message] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])  # of each message, and of the rest
    error: str | None = None
    status: int | None = None
    closed: bool = False


def ours(pieces: Iterable[bytes], **limits: int) -> Seen:
    parser = RequestParser(**limits)
    seen = Seen()
    received = 0
    try:
        for piece in pieces:
            parser.receive_data(piece)
            received += len(piece)
            while (request := parser.next_request()) is not None:
                version = request.http_version.encode()
                seen.messages.append(
                    Message(
                        request.method,
                        request.target,
                        list(request.headers),
                        request.body,
                        version,
                        request.keep_alive,
                    )
                )
                if request.keep_alive:
                    seen.starts.append(received - parser.buffered)
                else:
                    seen.closed = True
    except ProtocolError as error:
        seen.error, seen.status = str(error), error.status
    assert seen.status is None or (seen.status in STATUSES and not parser.held)
    return seen


def h11s(data: bytes) -> Seen:
    """h11 as a server that answers each request as soon as it is complete."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 30)
    if data:  # b"" means the end of the stream to h11
        connection.receive_data(data)
    seen = Seen()
    request = None
    body = b""
    try:
        while True:
            got = connection.next_event()
            if got is h11.NEED_DATA or got is h11.PAUSED:
                return seen
            if isinstance(got, h11.Request):
                request, body = got, b""
            elif isinstance(got, h11.Data):
                body += got.data
            elif isinstance(got, h11.EndOfMessage):
                assert request is not None
                # A 2xx would turn a CONNECT into a tunnel.
                connection.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                keep_alive = connection.our_state is h11.DONE
                seen.messages.append(
                    Message(
                        request.method,
                        request.target,
                        list(request.headers),
                        body,
                        request.http_version,
                        keep_alive,
                    )
                )
                if not keep_alive:
                    seen.closed = True
                    return seen
                seen.starts.append(len(data) - len(connection.trailing_data[0]))
                connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        seen.error = str(error)
    return seen


# --- the differences -----------------------------------------------------------------------------


def head_of(raw: bytes) -> bytes:
    return re.split(rb"\n\r?\n", raw.lstrip(b"\r\n"), maxsplit=1)[0] + b"\n"


def in_head(pattern: bytes) -> Callable[[bytes], bool]:
    compiled = re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    return lambda raw: compiled.search(head_of(raw)) is not None


def in_line(pattern: bytes) -> Callable[[bytes], bool]:
    compiled = re.compile(pattern)
    return lambda raw: compiled.search(raw.lstrip(b"\r\n").split(b"\n")[0]) is not None


def in_chunks(pattern: bytes) -> Callable[[bytes], bool]:
    """In the bytes after the head of a chunked message."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def found(raw: bytes) -> bool:
        head = head_of(raw)
        rest = raw[raw.index(head.rstrip(b"\n")) + len(head) :]
        return b"chunked" in head.lower() and compiled.search(rest) is not None

    return found


#: Without brackets.
AUTHORITY = rb"(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+(?::[0-9]*)?"

#: What ours accepts and h11 refuses.
ALLOWED: dict[str, Callable[[bytes], bool]] = {
    # RFC 9112, 2.2: a server SHOULD ignore at least one empty line before the request line.
    "empty line first": lambda raw: raw.startswith(b"\r\n"),
    # RFC 9110, 8.6: 1*DIGIT; h11 takes 20 digits, leading zeros included.
    "long Content-Length": in_head(rb"^content-length:[ \t]*0[0-9]{20,}"),
    # RFC 9112, 7.1: 1*HEXDIG; h11 takes 20 digits, leading zeros included.
    "long chunk size": in_chunks(rb"(^|\n)0[0-9a-f]{20,}"),
}

#: What h11 accepts and ours refuses.
REFUSED: dict[str, Callable[[bytes], bool]] = {
    # RFC 9112, 5.2: a server MUST reject obs-fold or unfold it.
    "obs-fold": in_head(rb"\n[ \t]"),
    # RFC 9112, 2.2: a recipient MAY take a lone LF for a line end; a CR elsewhere is invalid.
    "bare LF": lambda raw: re.search(rb"[^\r]\n", raw) is not None,
    # RFC 9110, 5.5: CR, LF and NUL are dangerous, other controls invalid; h11 lets most pass.
    "control in a value": in_head(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)"),
    # RFC 9112, 2.3: this is a server for HTTP/1.0 and 1.1.
    "version": in_line(rb" HTTP/(?!1\.[01]\r?$)"),
    # RFC 9110, 9.1: unrecognized methods get 501; llhttp's RTSP methods and PRI get 400.
    "method": lambda raw: (
        not re.match(
            rb"(DELETE|GET|HEAD|POST|PUT|OPTIONS|TRACE|COPY|LOCK|MKCOL|MOVE|PROPFIND|PROPPATCH|SEARCH|"
            rb"UNLOCK|BIND|REBIND|UNBIND|ACL|REPORT|MKACTIVITY|CHECKOUT|MERGE|M-SEARCH|NOTIFY|"
            rb"SUBSCRIBE|UNSUBSCRIBE|PATCH|PURGE|MKCALENDAR|LINK|UNLINK|SOURCE|QUERY) ",
            raw,
        )
    ),
    # RFC 9112, 3.2: origin-form, absolute-form of http, or * for OPTIONS; h11 takes any text.
    "target form": in_line(rb"^[^ ]+ (?!/|(?i:https?)://[^/? ]|\* HTTP)|^(?!OPTIONS)[^ ]+ \* "),
    "fragment": in_line(rb"^[^ ]+ [^ ]*#"),
    # RFC 3986, 2.1.
    "percent-encoding": in_line(rb"^[^ ]+ [^ ]*%(?![0-9A-Fa-f]{2})"),
    # RFC 3986, 3.2.2: h11 takes any text. What is in brackets is test_authority.py's subject.
    "authority": in_line(rb"^[^ ]+ (?i:https?)://(?!" + AUTHORITY + rb"[/? ])"),
    "Host": in_head(rb"^host:(?![ \t]*" + AUTHORITY + rb"[ \t]*\r?$)"),
    # RFC 9110, 8.6: a list of equal lengths MAY be refused; the same goes for repeated fields.
    # RFC 9110, 7.2: an http URI has an authority, so no client may send an empty Host for one.
    "empty Host": in_head(rb"^host:[ \t]*\r?$"),
    # RFC 9110, 5.3: a field that is no list comes once.
    "Authorization twice": in_head(rb"^authorization:(.|\n)*\nauthorization:"),
    "Content-Length list": in_head(rb"^content-length:[^\r\n]*,"),
    "Content-Length twice": in_head(rb"^content-length:(.|\n)*\ncontent-length:"),
    # llhttp counts in 64 bits; h11 takes 20 digits.
    "Content-Length overflow": in_head(rb"^content-length:[ \t]*[0-9]{20}"),
    # RFC 9112, 6.1: a server MAY reject a request with both.
    "Content-Length and Transfer-Encoding": lambda raw: (
        in_head(rb"^content-length:")(raw) and in_head(rb"^transfer-encoding:")(raw)
    ),
    # RFC 9112, 6.1: a server MUST treat Transfer-Encoding in HTTP/1.0 as faulty framing.
    "Transfer-Encoding in HTTP/1.0": lambda raw: (
        in_line(rb"HTTP/1\.0\r?$")(raw) and in_head(rb"^transfer-encoding:")(raw)
    ),
    # llhttp refuses spaces after the coding, which RFC 9110, 5.5, excludes from the value.
    "space after chunked": in_head(rb"^transfer-encoding:[ \t]*chunked[ \t]"),
    # RFC 9110, 10.1.1: 417 for an expectation other than 100-continue.
    "Expect": in_head(rb"^expect:(?![ \t]*100-continue[ \t]*\r?$)"),
    # RFC 9112, 7.1.1: h11 takes anything for an extension, and spaces after the size.
    "chunk extension": in_chunks(rb"(^|\n)[0-9a-f]+([ \t]|;)"),
    # llhttp counts in 64 bits; h11 takes 20 digits.
    "chunk size overflow": in_chunks(rb"(^|\n)[1-9a-f][0-9a-f]{16,}"),
    # RFC 9110, 6.5.1: a sender MUST NOT put framing into trailers; h11 doesn't look at them.
    "framing in trailers": in_chunks(rb"\n(content-length|transfer-encoding):"),
    "control in a trailer": in_chunks(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)"),
    "folded trailer": in_chunks(rb"\n[ \t]"),
}


def name_difference(listed: dict[str, Callable[[bytes], bool]], raw: bytes) -> str | None:
    return next((name for name, applies in listed.items() if applies(raw)), None)


def compare(data: bytes) -> None:
    """Fails unless both agree on every message that both accept, and on where it ends."""
    a, b = ours([data]), h11s(data)
    for i, (x, y) in enumerate(zip(a.messages, b.messages, strict=False)):
        assert (x.method, x.target, x.body, x.version) == (y.method, y.target, y.body, y.version)
        # h11 lower-cases codings.
        assert [
            (name, value.lower() if name == b"transfer-encoding" else value)
            for name, value in x.headers
        ] == y.headers
        if x.keep_alive != y.keep_alive:
            if x.keep_alive:  # h11 doesn't keep HTTP/1.0 connections at all
                assert x.version == b"1.0"
                assert any(k == b"connection" and b"keep-alive" in v.lower() for k, v in x.headers)
            else:  # llhttp takes Proxy-Connection for Connection
                assert any(k == b"proxy-connection" for k, _ in x.headers)
            event("difference: keep-alive")
            return
        if x.keep_alive:
            assert a.starts[i + 1] == b.starts[i + 1]
    n = min(len(a.messages), len(b.messages))
    event(f"both accept {min(n, 3)}")
    if len(a.messages) > n:
        assert b.error is not None, "h11 waits for more where ours gave a request"
        name = name_difference(ALLOWED, data[a.starts[n] :])
        assert name, f"ours accepts what h11 refuses: {b.error}"
        event(f"ours accepts: {name}")
    elif len(b.messages) > n:
        assert a.error is not None, "ours waits for more where h11 gave a request"
        name = name_difference(REFUSED, data[a.starts[n] : [*b.starts, len(data)][n + 1]])
        assert name, f"ours refuses what h11 accepts: {a.error}"
        event(f"ours refuses: {name}")


def cut(data: bytes, points: Iterable[int]) -> list[bytes]:
    marks = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[i:j] for i, j in pairwise(marks)]


def same_in_pieces(data: bytes, points: list[int]) -> None:
    for limits in ({}, LIMITS):
        whole = ours([data], **limits)
        for pieces in (cut(data, points), [data[i : i + 1] for i in range(len(data))]):
            seen = ours(pieces, **limits)
            assert seen == whole


# --- well-formed requests ------------------------------------------------------------------------

SPECIAL |= {b"proxy-connection", b"upgrade"}


PIECES += [b"\r\n\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n"]
PIECES += [b"Transfer-Encoding: gzip\r\n", b"HTTP/1.0", b"CONNECT ", b"\r\n ", b"FFFFFFFFFFFFFFFFF"]
PIECES += [
    b"Connection: close\r\n",
    b"Upgrade: a\r\nConnection: upgrade\r\n",
    b"GET / HTTP/1.1\r\n",
]


@profile
@given(PIPELINE, POINTS)
def test_well_formed(requests: list[bytes], points: list[int]) -> None:
    """Each is understood, up to the first that ends the connection, as h11 understands it."""
    data = b"".join(requests)
    same_in_pieces(data, points)
    seen = ours([data])
    assert seen.error is None
    assert len(seen.messages) == len(requests) or seen.closed
    assert seen.starts == [sum(map(len, requests[:i])) for i in range(len(seen.starts))]
    alone = [ours([raw]).messages for raw in requests]
    assert seen.messages == [message for (message,) in alone[: len(seen.messages)]]
    compare(data)


@profile
@given(MUTATED, POINTS)
@example(b"HEAD http:// HTTP/1.0\r\n\r\n", [])
@example(b"GET HTTPS://Z::1]:8080/ HTTP/1.1\r\nHost: h\r\n\r\n", [])
@example(b"GET / HTTP/1.1\r\nHost: h:1:2\r\n\r\n", [])
def test_mutated(data: bytes, points: list[int]) -> None:
    same_in_pieces(data, points)
    compare(data)


@profile
@given(RAW, POINTS)
def test_raw(data: bytes, points: list[int]) -> None:
    same_in_pieces(data, points)
    compare(data)
    compare(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + data)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table_against_h11(case: Case) -> None:
    """The hand-written table of the other file: the listed differences cover it too."""
    compare(case.data)
