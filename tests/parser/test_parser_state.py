"""The request parser's accounting: what it holds, when a connection ends, 100 Continue."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from support.requests.messages import CHUNKED, FIRST, HOST, NEXT, drive, get, head, post

from workerserver._parser import (
    MAX_BODY,
    MAX_CHUNKS,
    MAX_HEAD,
    MAX_HEADERS,
    ParsedRequest,
    RequestParser,
)
from workerserver.types import BodyTooLarge, MalformedRequest

# --- what the connection asks ------------------------------------------------------------------


def test_accounting_of_a_body_by_length() -> None:
    parser = RequestParser()
    assert (parser.at_boundary, parser.in_body, parser.closed) == (True, False, False)
    parser.receive_data(b"\r\nGET")
    assert parser.next_request() is None
    assert not parser.at_boundary
    assert (parser.held, parser.buffered) == (3, 3)
    parser = RequestParser()
    parser.receive_data(post(HOST + b"Content-Length: 10\r\n", b"123"))
    assert parser.next_request() is None
    assert (parser.at_boundary, parser.in_body) == (False, True)
    assert (parser.held, parser.buffered) == (3, 0)
    parser.receive_data(b"4567890" + NEXT)
    assert (parser.held, parser.buffered) == (10 + len(NEXT), 7 + len(NEXT))
    assert parser.next_request() is not None
    assert (parser.held, parser.buffered) == (len(NEXT), len(NEXT))
    assert (parser.at_boundary, parser.in_body) == (False, False)
    assert parser.next_request() is not None
    assert (parser.held, parser.buffered, parser.at_boundary) == (0, 0, True)
    assert parser.next_request() is None


def test_accounting_of_a_chunked_body() -> None:
    parser = RequestParser()
    parser.receive_data(post(CHUNKED, b"3;ext\r\nabc\r\n5\r\nde"))
    assert parser.next_request() is None
    assert (parser.held, parser.buffered, parser.in_body) == (5, 0, True)
    parser.receive_data(b"fgh\r\n0\r\n\r\n\r\n")
    request = parser.next_request()
    assert request is not None
    assert request.body == b"abcdefgh"
    assert parser.next_request() is None
    assert (parser.held, parser.at_boundary) == (0, True)  # an empty line is no request


def test_tiny_chunks_cost_no_more_than_they_hold() -> None:
    size = 6 * MAX_CHUNKS
    data = post(CHUNKED)
    chunks = b"6\r\nabcdef\r\n" * MAX_CHUNKS
    parser = RequestParser()
    tracemalloc.start()
    try:
        parser.receive_data(data + chunks)
        assert parser.next_request() is None
        assert parser.held == size
        parser.receive_data(b"2")
        assert parser.next_request() is None
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 2 * size


def test_requests_after_close_are_dropped() -> None:
    parser = RequestParser()
    last = get(b"Connection: close\r\n")
    parser.receive_data(FIRST + last + NEXT)
    assert parser.next_request() is not None
    assert not parser.closed
    request = parser.next_request()
    assert request is not None
    assert not request.keep_alive
    assert (parser.closed, parser.held, parser.at_boundary) == (True, 0, False)
    parser.receive_data(NEXT * 100)
    assert parser.next_request() is None
    assert (parser.held, parser.buffered) == (0, 0)


@pytest.mark.parametrize(
    "data",
    [
        post(CHUNKED, b"8\r\n12345678\r\n5\r\nabcde"),
        post(HOST + b"Content-Length: 11\r\n") + NEXT,
        post(CHUNKED, b"8\r\n12345678\r\nx") + NEXT,
        NEXT + b"GET / HTTP/3.0\r\n" + NEXT,
    ],
)
def test_error_again_on_each_call_and_nothing_kept(data: bytes) -> None:
    parser = RequestParser(max_body=10)
    _, error = drive(parser, [data])
    assert error is not None
    depths = set()
    for _ in range(3):
        parser.receive_data(NEXT)
        with pytest.raises(type(error)) as caught:
            parser.next_request()
        assert caught.value is error
        assert (parser.held, parser.buffered) == (0, 0)
        assert (parser.in_body, parser.at_boundary, parser.closed) == (False, False, True)
        assert not parser.take_continue()
        depths.add(len(caught.traceback))
    assert len(depths) == 1  # a traceback that grew with each call would keep its frames


def test_empty_lines_between_requests_do_not_add_up() -> None:
    parser = RequestParser(max_head=64)
    for _ in range(50):
        requests, error = drive(parser, [b"\r\n", NEXT, b"\r\n", FIRST])
        assert (len(requests), error) == (2, None)
    for _ in range(50):
        requests, error = drive(parser, [b"\r\n", NEXT])
        assert (len(requests), error) == (1, None)


def test_too_large_is_known_before_any_body_byte() -> None:
    parser = RequestParser(max_body=4)
    data = post(HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n")
    assert drive(parser, [data[:-1]]) == ([], None)
    requests, error = drive(parser, [data[-1:]])
    assert isinstance(error, BodyTooLarge)
    assert not requests
    assert not parser.take_continue()


def test_default_limits() -> None:
    fits = b"GET /" + b"a" * (MAX_HEAD - 5 - 9 - 10 - 3) + b" HTTP/1.1\r\n" + HOST + b"\r\n"
    assert len(fits) <= MAX_HEAD
    assert drive(RequestParser(), [fits])[1] is None
    for data, status in (
        (b"GET /" + b"a" * MAX_HEAD, 414),
        (get(b"A: " + b"b" * MAX_HEAD + b"\r\n"), 431),
        (get(b"A: b\r\n" * MAX_HEADERS), 431),
        (post(HOST + b"Content-Length: %d\r\n" % (MAX_BODY + 1)), 413),
        (post(CHUNKED, b"1\r\nx\r\n" * (MAX_CHUNKS + 1)), 413),
    ):
        _, error = drive(RequestParser(), [data])
        assert error is not None
        assert error.status == status


# --- 100 Continue ------------------------------------------------------------------------------

EXPECTS = HOST + b"Expect: 100-continue\r\n"


@pytest.mark.parametrize("framing", [b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_continue_is_wanted_once(framing: bytes) -> None:
    parser = RequestParser()
    for _ in range(2):
        assert drive(parser, [post(EXPECTS + framing)]) == ([], None)
        assert parser.take_continue()
        assert not parser.take_continue()
        body = b"ab" if b"Length" in framing else b"2\r\nab\r\n0\r\n\r\n"
        requests, error = drive(parser, [body])
        assert (len(requests), error) == (1, None)
        assert not parser.take_continue()


@pytest.mark.parametrize(
    "data",
    [
        post(EXPECTS + b"Content-Length: 2\r\n", b"a"),
        post(EXPECTS + b"Transfer-Encoding: chunked\r\n", b"2"),
        post(EXPECTS + b"Content-Length: 0\r\n"),
        post(EXPECTS),
        head(b"POST / HTTP/1.0", EXPECTS + b"Content-Length: 2\r\n"),
        post(EXPECTS + b"Content-Length: 2\r\n", b"ab" + head(b"PUT / HTTP/1.1", CHUNKED)),
    ],
)
def test_no_continue(data: bytes) -> None:
    parser = RequestParser()
    drive(parser, [data])
    assert not parser.take_continue()


# --- the request that comes out ----------------------------------------------------------------


def one(data: bytes) -> ParsedRequest:
    (request,), error = drive(RequestParser(), [data])
    assert error is None
    return request


def test_fields_that_the_server_reads() -> None:
    request = one(get(b"authorization: Bearer x \r\nORIGIN: null\r\n"))
    assert (request.authorization, request.cross_site) == (b"Bearer x", True)
    request = one(get(b"Sec-Fetch-Site: Cross-Site \r\n"))
    assert (request.authorization, request.cross_site) == (None, True)
    assert not one(get(b"Sec-Fetch-Site: same-origin\r\n")).cross_site
    assert repr(request) == "<ParsedRequest b'GET' b'/'>"


def test_form_parameters() -> None:
    form = b"Content-Type: Application/X-WWW-Form-Urlencoded ;charset=utf-8\r\n"
    fields = HOST + b"Content-Length: 7\r\n"
    request = one(head(b"POST /?b=0 HTTP/1.1", fields + form) + b"a=1&b=2")
    assert request.parameters() == ([("b", "0")], [("a", "1"), ("b", "2")])
    assert request.to_request("/", None).params == {"b": "0", "a": "1"}
    assert one(post(fields, b"a=1&b=2")).parameters() == ([], [])
    with pytest.raises(MalformedRequest, match="percent"):
        one(post(fields + form, b"a=%zz&b")).parameters()


def test_a_handler_cannot_change_what_the_memo_gives_out() -> None:
    parser = RequestParser()
    for _ in range(3):
        (request,), _ = drive(parser, [NEXT])
        for_handler: Any = request.to_request("/next", "peer")
        assert for_handler.headers == [(b"host", b"next")]
        assert (for_handler.method, for_handler.http_version, for_handler.peer) == (
            "GET", "1.1", "peer",
        )  # fmt: skip
        for_handler.headers.append((b"authorization", b"x"))
