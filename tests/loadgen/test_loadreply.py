"""How the load generator reads replies: whole, split at each byte, and with something behind."""

from __future__ import annotations

import pytest

from workerserver.loadgen._loadgen import read_reply

OK = b"HTTP/1.1 200 OK\r\n"
#: name: (bytes, status, whether the connection stays, bytes of body)
WHOLE = {
    "length": (OK + b"Content-Length: 4\r\n\r\npong", 200, True, 4),
    "empty": (OK + b"content-length:0\r\n\r\n", 200, True, 0),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, True, 0),
    "lone line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, True, 2),
    "twice the same": (OK + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 200, True, 1),
    "close": (OK + b"Connection: Close\r\nContent-Length: 1\r\n\r\nx", 200, False, 1),
    "close in a list": (OK + b"Connection: a ,close\r\nContent-Length: 0\r\n\r\n", 200, False, 0),
    "closely": (OK + b"Connection: closely\r\nContent-Length: 0\r\n\r\n", 200, True, 0),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, False, 1),
    "1.0 that stays": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
        200,
        True,
        1,
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, True, 0),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 304, True, 0),
    "503": (b"HTTP/1.1 503 Busy\r\nContent-Length: 1\r\n\r\nx", 503, True, 1),
    "interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\n\r\n"
        + OK
        + b"Content-Length: 2\r\n\r\nok",
        200,
        True,
        2,
    ),
    "chunked": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\npong\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        200,
        True,
        14,
    ),
    "chunked, with a trailer": (
        OK + b"Transfer-Encoding: gzip, Chunked\r\n\r\n1 \r\nx\r\n00\r\nA: b\r\nC: d\r\n\r\n",
        200,
        True,
        1,
    ),
    "chunked and a length": (
        OK + b"Content-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        200,
        True,
        1,
    ),
    "long field": (OK + b"X: " + b"x" * 3000 + b"\r\nContent-Length: 1\r\n\r\nx", 200, True, 1),
}
#: Bodies that only the end of the connection ends.
UNTIL_CLOSE = {
    "no length": OK + b"\r\nbody",
    "another coding": OK + b"Transfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\nbody",
    "empty": OK + b"\r\n",
}
MALFORMED = {
    "garbage": b"garbage garbage garbage\r\n\r\n",
    "empty line": b"\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "short": b"HTTP/1.1 20\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\n\r\n",
    "status 2000": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status x": b"HTTP/1.1 2xx OK\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "no colon": OK + b"Content-Length 5\r\n\r\n",
    "no name": OK + b": 5\r\n\r\n",
    "folded": OK + b"A: b\r\n c\r\n\r\n",
    "length x": OK + b"Content-Length: 1x\r\n\r\n",
    "length -1": OK + b"Content-Length: -1\r\n\r\n",
    "length of nothing": OK + b"Content-Length:\r\n\r\n",
    "endless length": OK + b"Content-Length: 1" + b"0" * 18 + b"\r\n\r\n",
    "length of 40 digits": OK + b"Content-Length: " + b"5" * 40 + b"\r\n\r\n",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "chunk of nothing": OK + b"Transfer-Encoding: chunked\r\n\r\n\r\n",
    "chunk of x": OK + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
    "chunk of 0x1": OK + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\n",
    "endless chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 16 + b"\r\n",
    # What only the end of such a line tells was read where the line came whole, and not in pieces.
    "endless name": OK + b"n" * 300 + b": x\r\nContent-Length: 0\r\n\r\n",
    "endless coding": OK + b"Transfer-Encoding:" + b" " * 300 + b"chunked\r\n\r\n0\r\n\r\n",
    "endless options": OK + b"Connection: " + b"x, " * 100 + b"close\r\nContent-Length: 0\r\n\r\n",
    "chunk too long": OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n",
}


def bytewise(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_reply(name: str) -> None:
    data, *right = WHOLE[name]
    assert read_reply([data]) == ("done", *right, 0)
    assert read_reply(bytewise(data)) == ("done", *right, 0)
    assert read_reply([data + b"more"]) == ("done", *right, 4)
    assert read_reply(bytewise(data + b"more")) == ("done", *right, 4)


@pytest.mark.parametrize("name", WHOLE)
def test_a_reply_in_two_pieces(name: str) -> None:
    data, *right = WHOLE[name]
    for at in range(1, len(data)):
        assert read_reply([data[:at], data[at:]]) == ("done", *right, 0), at
        assert read_reply([data[:at]])[0] == "more", at
        assert read_reply([data[:at]], closed=True)[0] == "more", at


@pytest.mark.parametrize("name", UNTIL_CLOSE)
def test_a_reply_that_the_close_ends(name: str) -> None:
    data = UNTIL_CLOSE[name]
    size = len(data.partition(b"\r\n\r\n")[2])
    for pieces in ([data], bytewise(data)):
        assert read_reply(pieces) == ("more", 200, False, size, 0)
        assert read_reply(pieces, closed=True) == ("done", 200, False, size, 0)


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_reply(name: str) -> None:
    data = MALFORMED[name]
    assert read_reply([data])[0] == "malformed"
    assert read_reply(bytewise(data))[0] == "malformed"
    assert read_reply([data], closed=True)[0] == "malformed"


def test_a_reply_to_head_has_no_body() -> None:
    data = OK + b"Content-Length: 4\r\n\r\n"
    assert read_reply([data], head_only=True) == ("done", 200, True, 0, 0)


@pytest.mark.parametrize("step", [1 << 20, 1000])
def test_a_head_has_an_end(step: int) -> None:
    data = OK + b"X: y\r\n" * 50_000
    assert read_reply(data[at : at + step] for at in range(0, len(data), step))[0] == "malformed"
    line = OK + b"X: " + b"y" * 300_000
    assert read_reply(line[at : at + step] for at in range(0, len(line), step))[0] == "malformed"


def test_the_size_of_a_head_does_not_depend_on_the_cut() -> None:
    data = OK + b"X: " + b"y" * 150_000 + b"\r\nContent-Length: 0\r\n\r\n"
    assert read_reply([data]) == read_reply(bytewise(data)) == ("done", 200, True, 0, 0)


def test_any_number_of_chunks() -> None:
    data = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"
    assert read_reply([data]) == ("done", 200, True, 100_000, 0)
