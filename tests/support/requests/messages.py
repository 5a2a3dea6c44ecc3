"""Requests by the byte, and the parser's expected result for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from workerserver._parser import ParsedRequest, RequestParser
from workerserver.types import (
    BodyTooLarge,
    HeadTooLarge,
    MalformedRequest,
    ProtocolError,
    TargetTooLong,
    UnsupportedExpectation,
    UnsupportedMethod,
    UnsupportedTransferCoding,
    UnsupportedVersion,
)

HOST = b"Host: h\r\n"

CHUNKED = HOST + b"Transfer-Encoding: chunked\r\n"

UPGRADE = HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


def head(line: bytes, fields: bytes = HOST) -> bytes:
    return line + b"\r\n" + fields + b"\r\n"


def get(fields: bytes) -> bytes:
    return head(b"GET / HTTP/1.1", HOST + fields)


def post(fields: bytes, body: bytes = b"") -> bytes:
    return head(b"POST / HTTP/1.1", fields) + body


def chunk(data: bytes, size: bytes = b"%x") -> bytes:
    return size % len(data) + b"\r\n" + data + b"\r\n"


@dataclass(frozen=True)
class Good:
    method: bytes = b"GET"
    path: bytes = b"/"
    query: bytes = b""
    host: bytes = b"h"
    body: bytes = b""
    version: str = "1.1"
    keep_alive: bool = True
    headers: tuple[tuple[bytes, bytes], ...] | None = None  # None: not looked at

    def check(self, request: ParsedRequest) -> None:
        headers = None if self.headers is None else tuple(request.headers)
        assert self == Good(
            request.method, request.path, request.query, request.host, request.body,
            request.http_version, request.keep_alive, headers,
        )  # fmt: skip


@dataclass(frozen=True)
class Bad:
    error: type[ProtocolError] = MalformedRequest
    text: str = ""


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    expected: Good | Bad
    limits: dict[str, int] = field(default_factory=dict)


POSTED = Good(b"POST", body=b"12345")

CASES = [
    # --- request lines
    Case("get", head(b"GET / HTTP/1.1"), Good(headers=((b"host", b"h"),))),
    Case("query", head(b"GET /%20b?x=%C3%A9&y HTTP/1.1"), Good(path=b"/%20b", query=b"x=%C3%A9&y")),
    Case("two question marks", head(b"GET /a?b?c HTTP/1.1"), Good(path=b"/a", query=b"b?c")),
    Case("double slash", head(b"GET //a/../b HTTP/1.1"), Good(path=b"//a/../b")),
    Case("head", head(b"HEAD / HTTP/1.1"), Good(b"HEAD")),
    Case("query method", head(b"QUERY / HTTP/1.1"), Good(b"QUERY")),
    Case("empty lines first", b"\r\n\r\n" + head(b"GET / HTTP/1.1"), Good()),
    Case("absolute", head(b"GET HTTP://a:1/x?y HTTP/1.1"), Good(b"GET", b"/x", b"y", b"a:1")),
    Case("absolute, no path", head(b"GET http://a HTTP/1.1"), Good(host=b"a")),
    Case("absolute, query only", head(b"GET http://a?y=/ HTTP/1.1"), Good(query=b"y=/", host=b"a")),
    Case("absolute, no Host", head(b"GET http://a/ HTTP/1.1", b""), Bad()),
    Case("absolute, no authority", head(b"GET http:///x HTTP/1.1"), Bad(text="no valid host")),
    Case("absolute, userinfo", head(b"GET http://u@a/ HTTP/1.1"), Bad(text="no valid host")),
    Case("absolute, ftp", head(b"GET ftp://a/ HTTP/1.1"), Bad(text="request target")),
    Case("asterisk", head(b"OPTIONS * HTTP/1.1"), Good(b"OPTIONS", b"*")),
    Case("asterisk for GET", head(b"GET * HTTP/1.1"), Bad(text="OPTIONS only")),
    Case("authority form", head(b"GET h:80 HTTP/1.1"), Bad(text="request target")),
    Case("relative target", head(b"GET x HTTP/1.1"), Bad(text="request target")),
    Case("fragment", head(b"GET /a#b HTTP/1.1"), Bad(text="fragment")),
    Case("percent alone", head(b"GET /% HTTP/1.1"), Bad(text="percent")),
    Case("percent cut", head(b"GET /%4 HTTP/1.1"), Bad(text="percent")),
    Case("percent, not hex", head(b"GET /%4g HTTP/1.1"), Bad(text="percent")),
    Case("percent in the query", head(b"GET /?a=%zz HTTP/1.1"), Bad(text="percent")),
    Case("percent cut in the query", head(b"GET /?a=%1 HTTP/1.1"), Bad(text="percent")),
    Case("non-ascii target", head(b"GET /\xc3\xa9 HTTP/1.1"), Bad(text="request target")),
    Case("NUL in the target", head(b"GET /\0 HTTP/1.1"), Bad(text="request target")),
    Case("two spaces before the target", head(b"GET  / HTTP/1.1"), Bad()),
    Case("two spaces after the target", head(b"GET /  HTTP/1.1"), Bad()),
    Case("space after the version", head(b"GET / HTTP/1.1 "), Bad()),
    Case("space before the method", head(b" GET / HTTP/1.1"), Bad()),
    Case("tab", head(b"GET\t/ HTTP/1.1"), Bad()),
    Case("no target", head(b"GET HTTP/1.1"), Bad()),
    Case("HTTP/0.9", b"GET /\r\n", Bad()),
    Case("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Bad()),
    Case("empty line, bare LF", b"\n" + head(b"GET / HTTP/1.1"), Bad()),
    Case("bare CR first", b"\rGET / HTTP/1.1\r\n\r\n", Bad(text="bare CR")),
    Case("lower-case http", head(b"GET / http/1.1"), Bad()),
    Case("HTTP/1.10", head(b"GET / HTTP/1.10"), Bad()),
    Case("HTTP/11", head(b"GET / HTTP/11"), Bad()),
    Case("HTTP/1.2", head(b"GET / HTTP/1.2"), Bad(UnsupportedVersion, "HTTP/1.2")),
    Case("HTTP/2.0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Bad(UnsupportedVersion)),
    Case("HTTP/0.9 spelt out", head(b"GET / HTTP/0.9"), Bad(UnsupportedVersion)),
    Case("RTSP", head(b"OPTIONS rtsp://x/ RTSP/1.0"), Bad()),
    Case("RTSP method", head(b"SETUP / HTTP/1.1"), Bad()),
    Case("ICE", head(b"SOURCE / ICE/1.0"), Bad()),
    Case("CONNECT", head(b"CONNECT h:80 HTTP/1.1"), Bad(UnsupportedMethod, "CONNECT")),
    Case("unknown method", head(b"BREW / HTTP/1.1"), Bad(UnsupportedMethod, "BREW")),
    Case("method in lower case", head(b"get / HTTP/1.1"), Bad(UnsupportedMethod, "get")),
    Case("method begins like GET", head(b"GETX / HTTP/1.1"), Bad(UnsupportedMethod, "GETX")),
    Case("method too long", head(b"M" * 65 + b" / HTTP/1.1"), Bad()),
    # --- heads
    Case("spaces around a value", get(b"A: \t b c \t \r\nB:\r\nC:  \r\n"),
         Good(headers=((b"host", b"h"), (b"a", b"b c"), (b"b", b""), (b"c", b"")))),
    Case("obs-text", get(b"A: \xff\r\n"),
         Good(headers=((b"host", b"h"), (b"a", b"\xff")))),
    Case("no Host", head(b"GET / HTTP/1.1", b"A: b\r\n"), Bad(text="Host")),
    Case("two Hosts", get(b"hOST: h\r\n"), Bad(text="Host")),
    Case("empty Host", head(b"GET / HTTP/1.1", b"Host:\r\n"), Bad(text="Host")),
    Case("Host of spaces", head(b"GET / HTTP/1.1", b"Host: \t \r\n"), Bad(text="Host")),
    Case("HTTP/1.0, empty Host", head(b"GET / HTTP/1.0", b"Host:\r\n"), Bad(text="Host")),
    Case("absolute, empty Host", head(b"GET http://a/ HTTP/1.1", b"Host:\r\n"), Bad(text="Host")),
    Case("two Authorizations", get(b"Authorization: Bearer a\r\n" * 2), Bad(text="Authorization")),
    Case("two Authorizations, one empty", get(b"AUTHORIZATION:\r\nAuthorization: Bearer a\r\n"),
         Bad(text="Authorization")),
    Case("Host is a list", head(b"GET / HTTP/1.1", b"Host: a, b\r\n"), Bad(text="Host")),
    Case("Host with userinfo", head(b"GET / HTTP/1.1", b"Host: u@a\r\n"), Bad(text="Host")),
    Case("Host with obs-text", head(b"GET / HTTP/1.1", b"Host: a\xff\r\n"), Bad(text="Host")),
    Case("IPv6 Host", head(b"GET / HTTP/1.1", b"Host: [::1]:80 \r\n"), Good(host=b"[::1]:80")),
    Case("HTTP/1.0", head(b"GET / HTTP/1.0", b""), Good(host=b"", version="1.0", keep_alive=False)),
    Case("HTTP/1.0, two Hosts", head(b"GET / HTTP/1.0", HOST + HOST), Bad(text="Host")),
    Case("HTTP/1.0 keep-alive", head(b"GET / HTTP/1.0", HOST + b"Connection: Keep-Alive\r\n"),
         Good(version="1.0")),
    Case("HTTP/1.0 both", head(b"GET / HTTP/1.0", HOST + b"Connection: keep-alive, Close\r\n"),
         Good(version="1.0", keep_alive=False)),
    Case("close", get(b"Connection: x, CLOSE\r\n"), Good(keep_alive=False)),
    Case("closer", get(b"Connection: closer\r\n"), Good()),
    Case("obs-fold", get(b"A: b\r\n c\r\n"), Bad()),
    Case("space before the first field", head(b"GET / HTTP/1.1", b" A: b\r\n" + HOST), Bad()),
    Case("space before the colon", head(b"GET / HTTP/1.1", b"Host : h\r\n"), Bad()),
    Case("no colon", get(b"abc\r\n"), Bad()),
    Case("no name", get(b": b\r\n"), Bad()),
    Case("NUL in a value", get(b"A: b\0c\r\n"), Bad()),
    Case("control in a value", get(b"A: b\x01c\r\n"), Bad()),
    Case("CR in a value", get(b"A: b\rc\r\n"), Bad()),
    Case("LF ends a field", head(b"GET / HTTP/1.1", b"A: b\n" + HOST), Bad()),
    Case("LF ends the line", b"GET / HTTP/1.1\nHost: h\n\n", Bad()),
    Case("LF ends the head", b"GET / HTTP/1.1\r\nHost: h\r\n\n", Bad()),
    Case("LF LF ends the head", b"GET / HTTP/1.1\r\nHost: h\n\n", Bad()),
    # --- bodies
    Case("length", post(HOST + b"Content-Length: 5\r\n", b"12345"), POSTED),
    Case("length of a GET", get(b"Content-Length: 5\r\n") + b"12345",
         Good(body=b"12345")),
    Case("length 0", post(HOST + b"Content-Length: 0\r\n"), Good(b"POST")),
    Case("length, zeros", post(HOST + b"Content-Length: 0005 \r\n", b"12345"), POSTED),
    Case("length, body like a head", post(HOST + b"Content-Length: 9\r\n", b"\r\n\r\nGET /"),
         Good(b"POST", body=b"\r\n\r\nGET /")),
    Case("no length", post(HOST), Good(b"POST")),
    *(
        Case(f"length {bad!r}", post(HOST + b"Content-Length: " + bad + b"\r\n", b"12345"), Bad())
        for bad in (b"-5", b"+5", b"5, 5", b"5,6", b"", b"1 5", b"0x5", b"5.0", b"five", b"5_0",
                    b"18446744073709551616", b"99999999999999999999999")
    ),
    Case("length twice", post(HOST + b"Content-Length: 5\r\n" * 2, b"12345"), Bad()),
    Case("length 2^63", post(HOST + b"Content-Length: 9223372036854775808\r\n"), Bad(BodyTooLarge)),
    Case("length 2^64-1", post(HOST + b"Content-Length: 18446744073709551615\r\n"),
         Bad(BodyTooLarge)),
    Case("chunked", post(CHUNKED, b"3\r\n123\r\n2\r\n45\r\n0\r\n\r\n"), POSTED),
    Case("CHUNKED", post(CHUNKED.upper(), b"5\r\n12345\r\n0\r\n\r\n"),
         Good(b"POST", host=b"H", body=b"12345")),
    Case("chunked, empty", post(CHUNKED, b"0\r\n\r\n"), Good(b"POST")),
    Case("chunked, zeros", post(CHUNKED, b"0" * 30 + b"5\r\n12345\r\n000\r\n\r\n"), POSTED),
    Case("chunk extensions", post(CHUNKED, b'5;a=b;c="\\";"\r\n12345\r\n0;z\r\n\r\n'), POSTED),
    Case("trailers", post(CHUNKED, b"5\r\n12345\r\n0\r\nHost: evil\r\nA: b\r\n\r\n"),
         Good(b"POST", body=b"12345",
              headers=((b"host", b"h"), (b"transfer-encoding", b"chunked")))),
    Case("trailers that ask to close",
         post(CHUNKED, b"5\r\n12345\r\n0\r\nConnection: close\r\nExpect: x\r\n\r\n"), POSTED),
    Case("trailers that ask for an upgrade",
         post(CHUNKED, b"5\r\n12345\r\n0\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n"), POSTED),
    Case("empty lines in a chunk", post(CHUNKED, b"a\r\n\r\n\r\n0\r\n\r\n\n\r\n0\r\n\r\n"),
         Good(b"POST", body=b"\r\n\r\n0\r\n\r\n\n")),
    *(
        Case(f"chunks full of {data!r}", post(CHUNKED, chunk(data) + chunk(data) + b"0\r\n\r\n"),
             Good(b"POST", body=data * 2))
        for data in (b"\n" * 9, b"\r\n" * 9, b"\r" * 9, b"\r\n\r\n" * 4, b"0\r\n\r\n" * 4, b"\n",
                     b"0\r\n\r\nGET / HTTP/1.1\r\nHost: evil\r\n\r\n", b"5\r\n", b"\r\n0;")
    ),
    *(
        Case(f"size as {size!r}", post(CHUNKED, chunk(b"\n" * 171, size) + b"0\r\n\r\n"),
             Good(b"POST", body=b"\n" * 171))
        for size in (b"%x", b"%X", b"0%X", b"%019x", b"%x;a", b'0%X;a="b;c";d=5')
    ),
    *(
        Case(f"size {size!r}", post(CHUNKED, size + b"\r\n\n\r\n0\r\n\r\n"), Bad(BodyTooLarge),
             {"max_body": 4})
        for size in (b"5", b"ffffffff", b"7fffffffffffffff", b"8000000000000003", b"f" * 16,
                     b"1000000000000000", b"0fffffffffffffffd;a")
    ),
    *(
        Case(f"size {size!r} too much", post(CHUNKED, size + b"\r\n1\r\n0\r\n\r\n"), Bad())
        for size in (b"10000000000000000", b"10000000000000001", b"f" * 40, b"1" + b"0" * 40 + b";")
    ),
    *(
        Case(f"chunk {bad!r}", post(CHUNKED, bad + b"\r\n0\r\n\r\n"), Bad())
        for bad in (b"5 \r\n12345", b" 5\r\n12345", b"5\n12345", b"-5\r\n12345", b"0x5\r\n12345",
                    b"+5\r\n12345", b"\r\n12345", b"g\r\n12345", b"5\r\n123456", b"5\r\n12345\n",
                    b"f" * 17 + b"\r\n1", b"5;\x00\r\n12345", b"5;a\nb\r\n12345")
    ),
    Case("chunk ends in LF", post(CHUNKED, b"5\r\n12345\n0\r\n\r\n"), Bad()),
    Case("LF after the last chunk", post(CHUNKED, b"0\n\r\n"), Bad()),
    Case("LF ends the trailers", post(CHUNKED, b"0\r\n\n"), Bad()),
    Case("LF ends a trailer", post(CHUNKED, b"0\r\nA: b\n\r\n"), Bad()),
    Case("folded trailer", post(CHUNKED, b"0\r\nA: b\r\n c\r\n\r\n"), Bad()),
    Case("length in the trailers", post(CHUNKED, b"0\r\nContent-Length: 5\r\n\r\n"), Bad()),
    Case("length and chunked", post(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n"), Bad()),
    Case("length, then chunked", post(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n"), Bad()),
    Case("HTTP/1.0 chunked", head(b"POST / HTTP/1.0", CHUNKED) + b"0\r\n\r\n", Bad()),
    *(
        Case(f"coding {bad!r}", post(HOST + b"Transfer-Encoding: " + bad + b"\r\n", b"0\r\n\r\n"),
             Bad())
        for bad in (b"", b"gzip", b"identity", b"xchunked", b"x chunked", b"chunked, gzip",
                    b"chunked, chunked", b"chunked,", b"chunked;a=b", b"\x0bchunked", b'"chunked"')
    ),
    *(
        Case(f"coding {value!r}", post(HOST + b"Transfer-Encoding:" + value + b"\r\n",
                                       b"5\r\n12345\r\n0\r\n\r\n"),
             Good(b"POST", body=b"12345",
                  headers=((b"host", b"h"), (b"transfer-encoding", b"chunked"))))
        for value in (b"chunked\t", b"\tchunked \t \t", b" chunked\t ", b"chunked ")
    ),
    *(
        Case(f"bad coding {value!r}",
             post(HOST + b"Transfer-Encoding:" + value + b"\r\n", b"0\r\n\r\n"), Bad())
        for value in (b"chunked\t,", b"x\tchunked\t", b"\t", b"chunked\t\r", b"chunked\t\r\n\t")
    ),
    Case("coding gzip, chunked and a tab",
         post(HOST + b"Transfer-Encoding: gzip, chunked\t\r\n", b"0\r\n\r\n"),
         Bad(UnsupportedTransferCoding, "gzip, chunked")),
    Case("a tab behind a value that names a coding",
         post(HOST + b"A: transfer-encoding: x\t\r\nContent-Length: 5\t\r\n", b"12345"),
         Good(b"POST", body=b"12345")),
    Case("coding gzip, chunked", post(HOST + b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
         Bad(UnsupportedTransferCoding, "gzip, chunked")),
    Case("coding in two fields",
         post(HOST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
         Bad(UnsupportedTransferCoding, "gzip")),
    Case("chunked in two fields", post(CHUNKED + CHUNKED.removeprefix(HOST), b"0\r\n\r\n"), Bad()),
    # --- Expect and Upgrade
    Case("expect", post(HOST + b"Expect: 100-Continue\r\nContent-Length: 5\r\n", b"12345"), POSTED),
    Case("expect, no body", get(b"Expect: 100-continue\r\n"), Good()),
    Case("expect more", post(HOST + b"Expect: tea\r\n"), Bad(UnsupportedExpectation, "tea")),
    Case("expect two", post(HOST + b"Expect: 100-continue, tea\r\n"), Bad(UnsupportedExpectation)),
    Case("HTTP/1.0 expects", head(b"POST / HTTP/1.0", HOST + b"Expect: tea\r\n"),
         Good(b"POST", version="1.0", keep_alive=False)),
    Case("upgrade", head(b"GET / HTTP/1.1", UPGRADE), Good()),
    Case("upgrade and close", head(b"GET / HTTP/1.1", UPGRADE + b"Connection: close\r\n"),
         Good(keep_alive=False)),
    Case("upgrade with a length",
         post(UPGRADE + b"Content-Length: 18\r\n", b"GET / HTTP/1.1\r\n\r\n"),
         Good(b"POST", body=b"GET / HTTP/1.1\r\n\r\n")),
    Case("upgrade, chunked", post(UPGRADE + b"Transfer-Encoding: chunked\r\n",
                                  b"9\r\nGET / \r\n\r\r\n0\r\nA: b\r\n\r\n"),
         Good(b"POST", body=b"GET / \r\n\r")),
    Case("upgrade, bad chunk", post(UPGRADE + CHUNKED.removeprefix(HOST), b"GET / \r\n"), Bad()),
    # --- limits
    Case("target fits", head(b"GET /" + b"a" * 85 + b" HTTP/1.1"), Good(path=b"/" + b"a" * 85),
         {"max_head": 112}),
    Case("target too long", b"GET /" + b"a" * 100, Bad(TargetTooLong), {"max_head": 104}),
    Case("method without end", b"G" * 65, Bad(), {"max_head": 64}),
    Case("line without a space", b"G" * 65 + b"\r\n", Bad(text="method"), {"max_head": 64}),
    Case("empty lines without end", b"\r\n" * 33, Bad(text="empty lines"), {"max_head": 64}),
    Case("head too large", get(b"A: " + b"b" * 80), Bad(HeadTooLarge, "bytes"),
         {"max_head": 100}),
    Case("fields fit", get(b"A: b\r\n" * 4), Good(), {"max_headers": 5}),
    Case("too many fields", get(b"A: b\r\n" * 5), Bad(HeadTooLarge, "fields"),
         {"max_headers": 5}),
    Case("too many trailers", post(CHUNKED, b"0\r\n" + b"A: b\r\n" * 5 + b"\r\n"),
         Bad(HeadTooLarge, "fields"), {"max_headers": 5}),
    Case("length fits", post(HOST + b"Content-Length: 5\r\n", b"12345"), POSTED, {"max_body": 5}),
    Case("length too large", post(HOST + b"Content-Length: 5\r\n"), Bad(BodyTooLarge),
         {"max_body": 4}),
    Case("chunks fit", post(CHUNKED, b"3\r\n123\r\n2\r\n45\r\n0\r\n\r\n"), POSTED, {"max_body": 5}),
    Case("chunks too large", post(CHUNKED, b"3\r\n123\r\n1\r\n4"), Bad(BodyTooLarge),
         {"max_body": 3}),
    Case("chunks announce too much", post(CHUNKED, b"3\r\n123\r\n1\r\n"), Bad(BodyTooLarge),
         {"max_body": 3}),
    Case("chunk extension of 4 KiB without end", post(CHUNKED, b"1;" + b"a" * 4096),
         Bad(BodyTooLarge, "chunk extensions")),
    Case("chunk extensions of 4 KiB", post(CHUNKED, (b"1;" + b"a" * 98 + b"\r\n1\r\n") * 41),
         Bad(BodyTooLarge, "chunk extensions")),
    Case("last chunk with a long extension", post(CHUNKED, b"0;" + b"a" * 4096),
         Bad(BodyTooLarge, "chunk extensions")),
    Case("size of many zeros", post(CHUNKED, b"0" * 4113),
         Bad(BodyTooLarge, "chunk extensions")),
    Case("chunk extension without end", post(CHUNKED, b"1;" + b"a" * 200), Bad(BodyTooLarge),
         {"max_body": 4, "max_head": 100}),
    Case("bad chunk before the limit", post(CHUNKED, b"x;" + b"a" * 200), Bad(),
         {"max_body": 4, "max_head": 100}),
    Case("number of chunks fits", post(CHUNKED, chunk(b"1") * 3 + b"0\r\nA: b\r\n\r\n"),
         Good(b"POST", body=b"111"), {"max_chunks": 3}),
    Case("too many chunks", post(CHUNKED, chunk(b"1") * 3 + b"1\r\n"), Bad(BodyTooLarge),
         {"max_chunks": 3}),
    Case("too many chunks, the last is bad", post(CHUNKED, chunk(b"1") * 3 + b"1\r\n111"),
         Bad(BodyTooLarge), {"max_chunks": 3}),
    Case("bad chunk before there are too many", post(CHUNKED, chunk(b"1") * 3 + b"1 \r\n1"), Bad(),
         {"max_chunks": 3}),
]  # fmt: skip

FIRST = head(b"GET /first HTTP/1.1", b"Host: first\r\n")

NEXT = head(b"GET /next HTTP/1.1", b"Host: next\r\n")

Outcome = tuple[list[ParsedRequest], ProtocolError | None]


def drive(parser: RequestParser, pieces: Iterable[bytes]) -> Outcome:
    requests = []
    try:
        for piece in pieces:
            parser.receive_data(piece)
            while (request := parser.next_request()) is not None:
                requests.append(request)
    except ProtocolError as error:
        return requests, error
    return requests, None
