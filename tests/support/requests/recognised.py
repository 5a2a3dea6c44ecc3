"""Rules that hold for every verdict of the recogniser, checked on any bytes."""

from __future__ import annotations

import re

from workerserver._parser import ParsedRequest, RequestParser
from workerserver.native._bridge import Look, Table, verdicts
from workerserver.types import ProtocolError

TABLE = Table([])

#: Ends of requests. If a verdict calls some bytes incomplete, one of these ends completes them.
_ENDS = [
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"x: 0\r\nHost: h\r\n\r\n",
    b":0\r\n\r\n",  # of a second field like Host: called incomplete before its name is whole
    b"x:\r\n\r\n",
    b"close\r\nHost: h\r\n\r\n",
    b"close\r\n\r\n",
    b"keep-alive\r\nHost: h\r\n\r\n",
    b"keep-alive\r\n\r\n",
    *(
        end + b"\r\n\r\n"  # of a Host
        for end in (
            b"2F",
            b"1:1:1:1:1:1:1:1]",
            b"::",
            b"::]",
            b"::1]",
            b"1.1.1.1]",
            b"%a]",
            b"v1.a]",
        )
    ),
]
ENDS = list(dict.fromkeys(end[i:] for end in _ENDS for i in range(len(end))))


def parse(data: bytes) -> tuple[list[ParsedRequest], bool, int]:
    """The parser's requests, whether it refused, and the bytes it has not consumed."""
    parser = RequestParser()
    parser.receive_data(data)
    requests = []
    try:
        while (request := parser.next_request()) is not None:
            requests.append(request)
    except ProtocolError:
        return requests, True, 0
    return requests, False, parser.buffered


def same_request(look: Look, data: bytes) -> ParsedRequest:
    """The parser agrees on the first request in *data*, and finds no request in fewer bytes."""
    requests, refused, left = parse(data[: look.length])
    assert (len(requests), refused, left) == (1, False, 0)
    assert parse(data[: look.length - 1]) == ([], False, look.length - 1)
    (request,) = requests
    target = look.path + b"?" + look.query if look.query else look.path
    assert request.target in (target, look.path + b"?")
    assert (request.method, request.path, request.query) == (
        look.method.encode(),
        look.path,
        look.query,
    )
    assert (request.http_version, request.body) == ("1.1", b"")
    assert (request.keep_alive, request.cross_site) == (look.keep_alive, False)
    assert (request.host, request.authorization) == (look.host, look.authorization)
    assert len(request.headers) == look.fields
    return request


def check(data: bytes) -> str:
    """``verdicts(data)``, after a check of all rules."""
    seen = verdicts(data)
    assert re.fullmatch("i+(r|f*)", seen)
    names = {"i": "incomplete", "f": "forward"}
    for size, verdict in enumerate(seen):  # at every byte the same as from the start
        look = TABLE.look(data[:size])
        assert look == names[verdict] if isinstance(look, str) else verdict == "r"
    complete = seen.endswith("r")
    look = TABLE.look(data)
    assert (not isinstance(look, str)) == complete
    if not isinstance(look, str):
        assert look.length == len(seen) - 1
        same_request(look, data)
    # The parser must wait for more too after incomplete bytes. Else its refusal would come late.
    waiting = data[: seen.count("i") - 1]
    assert parse(waiting) == ([], False, len(waiting))
    assert any(not isinstance(TABLE.look(waiting + end), str) for end in ENDS), waiting
    return seen
