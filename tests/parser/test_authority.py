"""Which Host fields are an authority, for the parser and the recogniser: RFC 3986 as a pattern.

The two agree at each byte.
"""

from __future__ import annotations

import random
import re
import sys

import pytest
from support.requests.messages import head
from support.requests.recognised import check, parse

from workerserver.types import MalformedRequest

if sys.platform == "linux":
    from support.requests.judged import seen

#: RFC 3986, appendix A, with the three differences that authority.pxd names.
NUMBER = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
IPV4 = rf"{NUMBER}(?:\.{NUMBER}){{3}}"
GROUP = "[0-9a-fA-F]{1,4}"
LAST = f"(?:{GROUP}:{GROUP}|{IPV4})"
IPV6 = "|".join(
    [
        f"(?:{GROUP}:){{6}}{LAST}",
        f"::(?:{GROUP}:){{5}}{LAST}",
        *(
            f"(?:(?:{GROUP}:){{0,{before}}}{GROUP})?::(?:{GROUP}:){{{4 - before}}}{LAST}"
            for before in range(5)
        ),
        f"(?:(?:{GROUP}:){{0,5}}{GROUP})?::{GROUP}",
        f"(?:(?:{GROUP}:){{0,6}}{GROUP})?::",
    ]
)
NAME = r"[-A-Za-z0-9._~!$&'()*+;=]"
FUTURE = rf"[vV][0-9a-fA-F]+\.(?:{NAME}|:)+"
AUTHORITY = re.compile(
    rf"(?:\[(?:(?:{IPV6})(?:%{NAME}+)?|{FUTURE})\]|(?:{NAME}|%[0-9a-fA-F]{{2}})+)(?::[0-9]*)?"
)
#: What is mutated.
GIVEN = [
    "localhost", "localhost:80", "localhost:", "a.b-c_d~:65536", "10.0.0.1:1", "%41b%2f:1",
    "[::]", "[::1]:80", "[1::]", "[1:2:3:4:5:6:7:8]", "[1:2:3:4:5:6:7::]", "[::2:3:4:5:6:7:8]",
    "[1:2:3::5:6:7:8]", "[::ffff:10.0.0.255]:1", "[1:2:3:4:5:6:1.2.3.4]", "[1::2:1.2.3.4]",
    "[1:2:3:4:5::9.9.9.9]", "[fe80::1%lo]", "[fe80::1%25eth0]:1", "[v1.a:b]", "[vFF.::]:2",
    "[ABCD:ef01::0]",
]  # fmt: skip
BAD = [
    "", ":", ":80", "localhost:x", "localhost:-1", "localhost:80:80", "localhost: 80", "a:80a",
    "[", "[]", "[::1", "::1", "[::1]x", "[::1]:x", "[::1]]", "[[::1]]", "a[::1]", "[::1]80",
    "[:::]", "[::1::]", "[1::2::3]", "[:1]", "[1:]", "[1:2:3:4:5:6:7]", "[1:2:3:4:5:6:7:8:9]",
    "[1:2:3:4:5:6:7:8::]", "[1:2:3:4::5:6:7:8]", "[12345::]", "[g::]", "[localhost]",
    "[127.0.0.1]", "[::1.2.3]", "[::1.2.3.4.5]", "[::256.1.1.1]", "[::01.1.1.1]", "[::1.2.3.]",
    "[1:2:3:4:5:6:7:1.2.3.4]", "[1::2:3:4:5:6:1.2.3.4]", "[1:2:3:4:5:1.2.3.4]", "[::1%]",
    "[::1%lo", "[%lo]", "[v.a]", "[v1]", "[v1.]", "[vg.a]", "[v1.a%]", "%", "a%4", "a%4g", "%:80",
    "a,b", "u@a", "a]", "a[",
]  # fmt: skip
CHARACTERS = "[]:.%01259afgvVx-,"


def taken(host: str) -> bool:
    """Whether the parser takes *host*, which the recogniser agrees to at each byte."""
    data = head(b"GET / HTTP/1.1", f"Host: {host}\r\n".encode())
    requests, refused, _ = parse(data)
    assert refused == (not requests)
    assert [request.host for request in requests] in ([], [host.encode()])
    if sys.platform == "linux":
        assert check(data).endswith("r") == bool(requests), host
        if requests:
            assert seen(data).host == host.encode()
    broken = re.search("%(?![0-9A-Fa-f]{2})", host)  # a zone, which no target may have like this
    absolute = head(f"GET http://{host}/ HTTP/1.1".encode())
    assert parse(absolute)[1] == (refused or broken is not None), host
    return bool(requests)


def test_authorities() -> None:
    assert [host for host in GIVEN if not taken(host)] == []
    assert [host for host in BAD if taken(host)] == []


def test_mutated() -> None:
    """The pattern of the RFC says the same of authorities with one to three changes."""
    dice = random.Random(3)
    good = 0
    for _ in range(10_000):
        host = list(dice.choice(GIVEN))
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(len(host) + 1)
            host[place : place + dice.randint(0, 1)] = dice.choice([*CHARACTERS, ""])
        text = "".join(host)
        good += (is_taken := taken(text))
        assert is_taken == bool(AUTHORITY.fullmatch(text)), text
    assert 2000 < good < 8000


def test_ports_are_not_read() -> None:
    for port in ("0", "00080", "65535", "65536", "9" * 40):
        assert taken(f"localhost:{port}")


@pytest.mark.parametrize("host", ["localhost:x", "[::1"])
def test_the_error(host: str) -> None:
    from workerserver._parser import RequestParser

    parser = RequestParser()
    parser.receive_data(head(b"GET / HTTP/1.1", f"Host: {host}\r\n".encode()))
    with pytest.raises(MalformedRequest, match="bad Host field"):
        parser.next_request()
