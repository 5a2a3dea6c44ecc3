"""The calls that reach httptools: a parser that counts takes the place of httptools' own.

Prints a JSON object: scenario -> [lengths of the fed pieces, number of requests].
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httptools

feeds: list[int] = []


class Counting(httptools.HttpRequestParser):
    def feed_data(self, data: Any) -> None:
        feeds.append(len(data))
        super().feed_data(data)


# Before the import of our parser, which looks the class up once.
setattr(httptools, "HttpRequestParser", Counting)  # noqa: B010

from workerserver._parser import RequestParser  # noqa: E402
from workerserver.types import ProtocolError  # noqa: E402

HEAD = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"
LAST = b"0\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


def scenarios() -> Iterator[tuple[str, list[bytes]]]:
    for name, data in (("LF", b"\n"), ("CRLF", b"\r\n"), ("end", b"0\r\n\r\n")):
        one = chunk(data * 50_000)
        yield f"one chunk of {name}", [HEAD + one + LAST + b"\r\n" + NEXT]
        yield f"many chunks of {name}", [HEAD + chunk(data) * 10_000 + LAST + b"\r\n" + NEXT]
        yield f"reads of {name}", [HEAD + one[:9], one[9:999], one[999:], LAST + b"\r\n" + NEXT]
    yield "trailers", [HEAD + chunk(b"x") + LAST + b"A: b\r\nAb: b\r\n\r\n" + NEXT]
    for size in ("", "g", "1 ", "-1", "f" * 17):
        yield f"bad size {size!r}", [HEAD + size.encode() + b"\r\n\r\n" + NEXT]


def main() -> None:
    seen: dict[str, tuple[list[int], int]] = {}
    for name, pieces in scenarios():
        feeds.clear()
        parser = RequestParser()
        requests = 0
        try:
            for piece in pieces:
                parser.receive_data(piece)
                while parser.next_request() is not None:
                    requests += 1
        except ProtocolError:
            pass
        seen[name] = (list(feeds), requests)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
