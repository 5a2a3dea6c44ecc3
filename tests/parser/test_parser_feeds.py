"""How chunked bodies are fed to httptools: in few calls, and never past the end of a message."""

from __future__ import annotations

import json

import pytest
from support.lifecycle import run_isolated
from support.requests.messages import CHUNKED, NEXT, chunk, drive, post

from workerserver._parser import MAX_BODY, MAX_CHUNKS, MAX_EXTENSIONS, MAX_HEAD, RequestParser
from workerserver.types import BodyTooLarge, HeadTooLarge, MalformedRequest

HEAD = len(post(CHUNKED))
AFTER = len(NEXT)


@pytest.fixture(scope="module")
def feeds() -> dict[str, tuple[list[int], int]]:
    done = run_isolated("http/parser_feeds.py")
    assert done.returncode == 0, done.stderr
    return {
        name: (lengths, requests) for name, (lengths, requests) in json.loads(done.stdout).items()
    }


@pytest.mark.parametrize(
    ("name", "data"), [("LF", b"\n"), ("CRLF", b"\r\n"), ("end", b"0\r\n\r\n")]
)
def test_data_is_not_cut_at_its_line_ends(
    feeds: dict[str, tuple[list[int], int]], name: str, data: bytes
) -> None:
    """One call a read, one for the last line of the body, and the next request apart."""
    one = len(chunk(data * 50_000))
    assert feeds[f"one chunk of {name}"] == ([HEAD, one + 3, 2, AFTER], 2)
    many = 10_000 * len(chunk(data))
    assert feeds[f"many chunks of {name}"] == ([HEAD, many + 3, 2, AFTER], 2)
    assert feeds[f"reads of {name}"] == ([HEAD, 9, 990, one - 999, 3, 2, AFTER], 2)


def test_trailers_are_fed_line_by_line(feeds: dict[str, tuple[list[int], int]]) -> None:
    assert feeds["trailers"] == ([HEAD, 9, 6, 7, 2, AFTER], 2)


@pytest.mark.parametrize("size", ["", "g", "1 ", "-1", "f" * 17])
def test_a_bad_size_is_fed_to_its_line_end(
    feeds: dict[str, tuple[list[int], int]], size: str
) -> None:
    lengths, requests = feeds[f"bad size {size!r}"]
    assert requests == 0
    assert lengths == [HEAD, len(size) + 2]


# --- limits --------------------------------------------------------------------------------------


def test_default_number_of_chunks() -> None:
    data = post(CHUNKED, chunk(b"\n") * MAX_CHUNKS)
    (request,), error = drive(RequestParser(), [data + b"0\r\n\r\n"])
    assert error is None
    assert request.body == b"\n" * MAX_CHUNKS
    requests, error = drive(RequestParser(), [data + b"1\r\n"])
    assert (requests, type(error)) == ([], BodyTooLarge)


def test_the_count_begins_anew_with_each_message() -> None:
    parser = RequestParser(max_chunks=3)
    requests, error = drive(parser, [post(CHUNKED, chunk(b"1") * 3 + b"0\r\n\r\n") * 3])
    assert (len(requests), error) == (3, None)


def test_the_largest_body_fits_in_the_most_chunks() -> None:
    """The allowance for framing is enough for chunks of equal size, long sizes and trailers."""
    data = b"\n" * (MAX_BODY // MAX_CHUNKS)
    trailer = b"A: " + b"b" * (MAX_HEAD - 100) + b"\r\n"
    body = chunk(data, b"%09x") * MAX_CHUNKS + b"0\r\n" + trailer + b"\r\n"
    (request,), error = drive(RequestParser(), [post(CHUNKED, body)])
    assert error is None
    assert request.body == data * MAX_CHUNKS
    assert len(request.body) == MAX_BODY


@pytest.mark.parametrize(
    "body", [b"1;" + b"a" * (1 << 20), b"0" * (1 << 20), b"0\r\nA:" + b" " * (1 << 20)]
)
def test_framing_alone_is_bounded(body: bytes) -> None:
    parser = RequestParser(max_body=1 << 16)
    requests, error = drive(
        parser, [post(CHUNKED), *(body[i : i + 4096] for i in range(0, len(body), 4096))]
    )
    assert (requests, type(error)) == ([], BodyTooLarge)


@pytest.mark.parametrize("size", [b"7fffffffffffffff", b"f" * 16, b"1000000000000000"])
@pytest.mark.parametrize("zeros", [0, 20])
def test_a_size_that_nobody_can_send_is_refused_at_once(size: bytes, zeros: int) -> None:
    for parser in (RequestParser(), RequestParser(max_body=2**63 - 1)):
        requests, error = drive(parser, [post(CHUNKED, b"0" * zeros + size + b"\r\n")])
        assert (requests, type(error)) == ([], BodyTooLarge)


@pytest.mark.parametrize("parts", [1, 4, 64])
def test_extensions_are_bounded_in_all(parts: int) -> None:
    """That of the last chunk counts too."""
    extension = b";" + b"a" * (MAX_EXTENSIONS // parts - 3)  # the line's end counts with it
    body = (b"1" + extension + b"\r\n1\r\n") * (parts - 1) + b"0" + extension
    (request,), error = drive(RequestParser(), [post(CHUNKED, body + b"\r\n\r\n")])
    assert (request.body, error) == (b"1" * (parts - 1), None)
    requests, error = drive(RequestParser(), [post(CHUNKED, body + b"a\r\n\r\n")])
    assert (requests, type(error)) == ([], BodyTooLarge)


@pytest.mark.parametrize("size", [b"3" + b"f" * 14, b"1" + b"0" * 14])
def test_what_follows_an_endless_size_is_data(size: bytes) -> None:
    parser = RequestParser(max_body=2**58)
    data = b"0\r\n\r\n" + NEXT
    assert drive(parser, [post(CHUNKED, size + b"\r\n" + data), data]) == ([], None)
    assert (parser.held, parser.buffered, parser.in_body) == (2 * len(data), 0, True)


@pytest.mark.parametrize(
    ("fields", "last", "error"),
    [
        (11, b"A: b\r\n", None),
        (12, b"A: b\r\n", HeadTooLarge),
        (12, b"b ad: c\r\n", MalformedRequest),
        (13, b"b ad: c\r\n", HeadTooLarge),
    ],
)
def test_the_limit_of_trailers_does_not_depend_on_the_cut(
    fields: int, last: bytes, error: type | None
) -> None:
    """Host and Transfer-Encoding count too. A name that is cut once counted the field before it
    sooner, so that the same bytes got 431 or 400."""
    data = post(CHUNKED, b"0\r\n" + b"A: b\r\n" * (fields - 2) + last + b"\r\n")
    for cut in (*range(HEAD, len(data)), len(data)):
        requests, found = drive(RequestParser(max_headers=12), [data[:cut], data[cut:]])
        assert type(found) is (error or type(None)), cut
        assert len(requests) == (error is None)
