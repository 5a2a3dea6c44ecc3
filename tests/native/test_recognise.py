"""Recognition: what the I/O thread may answer by itself, and that the parser agrees with it."""

from __future__ import annotations

import contextlib
import random
import socket

import pytest
from support.requests.hosts import HOSTS
from support.requests.judged import asked, guarded, judge_age, judge_query, let_in, seen
from support.requests.messages import CASES, HOST, Case, get, head, post
from support.requests.recognised import TABLE, check, parse, same_request

from workerserver._parser import MAX_PARAMETERS, RequestParser, parse_query
from workerserver.http.access import NativeForm
from workerserver.http.limits import Limits
from workerserver.http.registry import Registry
from workerserver.http.routes import Router
from workerserver.native._bridge import Look, Table, verdicts
from workerserver.types import Forbidden, HeadTooLarge, ParameterError, Unauthorized

NATIVE_HEAD = 8192
NATIVE_FIELDS = 100


# --- the bytes ------------------------------------------------------------------------------------

TOKEN_CHARACTERS = b"!#$%&'*+-.^_`|~09AZaz"

GOOD = {
    "get": get(b""),
    "post": post(HOST),
    "length": post(HOST + b"Content-Length: 0\r\n"),
    "length, in any case": post(HOST + b"cOntEnt-lenGth:\t 0\r\n"),
    "length and type": post(HOST + b"Content-Length:0\r\nContent-Type: text/plain\r\n"),
    "query": head(b"GET /healthz?max_step_age=1.5 HTTP/1.1"),
    "empty query": head(b"GET /? HTTP/1.1"),
    "query of all characters": head(b"GET /a-b_c.d~e/9?=&,:._~/-Aa0 HTTP/1.1"),
    "dots": head(b"GET //a/../b/. HTTP/1.1"),
    "close": get(b"Connection: close\r\n"),
    "close, in any case": get(b"connection:ClOSE\r\n"),
    "keep-alive": get(b"CONNECTION: Keep-Alive\r\n"),
    "keep-alive says more": get(b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"),
    "empty values": get(b"A:\r\nB: \r\nC:\t\r\n"),
    "all values": get(b"A: \t" + bytes(range(0x20, 0x7F)) + b"\t.\t \r\n"),
    "all names": get(TOKEN_CHARACTERS + b": x\r\n"),
    "Host last": head(b"GET / HTTP/1.1", b"A: b\r\nhOST:\t [::1]:80 \t\r\n"),
    "Host in parts": head(b"GET / HTTP/1.1", b"Host: !$%2f&'()*+-.;=_~aZ09:80\r\n"),
    "authorization": get(b"AUTHORIZATION:  Bearer  x \t\r\n"),
    "empty authorization": get(b"Authorization:\r\n"),
    "nearly special": get(b"Hos: a\r\nHostt: b\r\nConnectio: x\r\nContent_Length: 5\r\nT: e\r\n"),
    "referer": get(b"Referer: http://evil.example/\r\nCookie: a=b\r\nVia: 1.1 x\r\n"),
}


@pytest.mark.parametrize("name", GOOD)
def test_recognised(name: str) -> None:
    data = GOOD[name]
    assert check(data) == "i" * len(data) + "r"
    assert seen(data + data) == seen(data)
    assert seen(data + b"\0\n") == seen(data)


def test_what_is_seen() -> None:
    fields = b"A: b\r\nAuthorization: \tBasic b c\t \r\nHost: \tNode:1 \r\nConnection: close\r\n"
    data = head(b"POST /handler/a?b=c HTTP/1.1", fields)
    assert seen(data) == Look(
        length=len(data),
        method="POST",
        path=b"/handler/a",
        query=b"b=c",
        host=b"Node:1",
        authorization=b"Basic b c",
        fields=4,
        keep_alive=False,
        allowed=True,
        refused=False,
        action=None,
        max_step_age=None,
        format="text",
        mode="auto",
    )
    plain = seen(get(b""))
    assert (plain.method, plain.path, plain.query, plain.host) == ("GET", b"/", b"", b"h")
    assert (plain.authorization, plain.fields, plain.keep_alive) == (None, 1, True)
    assert seen(get(b"Authorization:\r\n")).authorization == b""


BAD = {
    # --- the request line: its last byte decides
    "TLS hello": b"\x16",
    "empty line": b"\r",
    "bare LF": b"\n",
    "space": b" ",
    "lower case": b"g",
    "lower case later": b"Ge",
    "HEAD": b"H",
    "PUT": b"PU",
    "GETX": b"GETX",
    "HTTP/2": b"PR",
    "two spaces": b"GET  ",
    "tab": b"GET\t",
    "absolute": b"GET h",
    "asterisk": b"POST *",
    "percent": b"GET /%",
    "plus": b"GET /+",
    "equals in the path": b"GET /=",
    "fragment": b"GET /#",
    "percent in the query": b"GET /?%",
    "plus in the query": b"GET /?a+",
    "question mark in the query": b"GET /??",
    "quote": b'GET /"',
    "NUL": b"GET /\0",
    "non-ASCII": b"GET /\xc3",
    "HTTP/0.9": b"GET /\r",
    "HTTP/0.9, bare LF": b"GET /\n",
    "version 1.0": b"GET / HTTP/1.0",
    "version 1.10": b"GET / HTTP/1.10",
    "version 2": b"GET / HTTP/2",
    "lower-case http": b"GET / h",
    "space after the version": b"GET / HTTP/1.1 ",
    "LF after the version": b"GET / HTTP/1.1\n",
    "CR without LF": b"GET / HTTP/1.1\rH",
    "no Host": b"GET / HTTP/1.1\r\n\r",
}
#: Fields. The last byte of each field decides.
BAD_FIELDS = {
    "obs-fold at first": b" ",
    "obs-fold": b"A: b\r\n ",
    "obs-fold of a length": b"Content-Length:\r",
    "obs-fold, tab": b"A: b\r\n\t",
    "no name": b":",
    "space in a name": b"A ",
    "tab in a name": b"A\t",
    "no colon": b"A\r",
    "line that is LF": b"A: b\r\n\n",
    "bare LF": b"A: b\n",
    "bare CR": b"A: b\rc",
    "two CR": b"A: b\r\r",
    "NUL": b"A: b\0",
    "DEL": b"A: \x7f",
    "obs-text": b"A: \xff",
    "vertical tab": b"A: \x0b",
    "non-ASCII name": b"\xc3",
    "second Host": b"Host: h\r\nhOST:",
    "empty Host": b"Host: \r",
    "Host is a list": b"Host: a,",
    "Host of two words": b"Host: a b",
    "Host with userinfo": b"Host: u@",
    "Host with a path": b"Host: h/",
    "Host, quoted": b'Host: "',
    "Host with a port that is none": b"Host: h:x",
    "Host with two ports": b"Host: h:80:",
    "Host with an open bracket": b"Host: [::1\r",
    "Host with more behind the bracket": b"Host: [::1]x",
    "Host with two gaps": b"Host: [1::2::",
    "length": b"Content-Length: 5",
    "length 00": b"Content-Length: 00",
    "length +0": b"Content-Length: +",
    "length -0": b"Content-Length: -",
    "length 0x0": b"Content-Length: 0x",
    "length 0,": b"Content-Length: 0,",
    "length 0 and space": b"Content-Length: 0 ",
    "no length": b"Content-Length: \r",
    "second length": b"Content-Length: 0\r\ncontent-length:",
    "close and upgrade": b"Connection: close,",
    "close and space": b"Connection: close ",
    "closer": b"Connection: closer",
    "close in parts": b"Connection: clo\r",
    "keep alive": b"Connection: keep\r",
    "upgrade": b"Connection: u",
    "empty Connection": b"Connection: \r",
    "second Connection": b"Connection: close\r\nConnection:",
    "second Authorization": b"Authorization: a\r\nAuthorization:",
    **{
        name.decode(): name + b":"
        for name in (
            b"Transfer-Encoding",
            b"TRANSFER-ENCODING",
            b"TE",
            b"Trailer",
            b"Expect",
            b"Upgrade",
            b"HTTP2-Settings",
            b"Proxy-Connection",
            b"Content-Encoding",
            b"Origin",
            b"oRIGIN",
            b"Sec-Fetch-Site",
        )
    },
}
BAD |= {f"field: {name}": head(b"GET / HTTP/1.1", field)[:-2] for name, field in BAD_FIELDS.items()}


@pytest.mark.parametrize("name", BAD)
def test_forwarded_at_once(name: str) -> None:
    """At the byte that shows it, and whatever follows."""
    data = BAD[name]
    assert check(data) == "i" * len(data) + "f"
    for after in (b"", b"\r\n", b" 0\r\nHost: h\r\n\r\n", b"\r\n\r\n" + GOOD["get"]):
        assert TABLE.look(data + after) == "forward"


SMUGGLED = [
    post(HOST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    post(HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", b"0\r\n\r\n"),
    post(HOST + b"Content-Length: 0\r\nContent-Length: 5\r\n", b"12345"),
    post(HOST + b"Content-Length: 5\r\nContent-Length: 0\r\n", b"12345"),
    post(HOST + b"Content-Length : 5\r\n", b"12345"),
    post(HOST + b"Content-Length\t: 5\r\n", b"12345"),
    post(HOST + b"Content-Length:\r\n 5\r\n", b"12345"),
    post(HOST + b"X: y\nContent-Length: 5\r\n", b"12345"),
    post(HOST + b"X: y\rContent-Length: 5\r\n", b"12345"),
    post(HOST + b"X: y\0\r\nContent-Length: 5\r\n", b"12345"),
    post(HOST + b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    post(HOST + b"Transfer-Encoding: identity\r\n"),
    get(b"Connection: close, upgrade\r\n"),
    get(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"),
    get(b"Connection: keep-alive\r\nConnection: close\r\n"),
    head(b"GET / HTTP/1.1", b"Host: a\r\nHost: a\r\n"),
    head(b"GET http://a/ HTTP/1.1"),
    head(b"OPTIONS * HTTP/1.1"),
    head(b"CONNECT h:80 HTTP/1.1"),
    head(b"GET / HTTP/1.0"),
    b"GET /\r\n\r\n",
    b"\r\n" + get(b""),
    b"\n" + get(b""),
]


@pytest.mark.parametrize("data", SMUGGLED)
def test_smuggled(data: bytes) -> None:
    check(data)
    assert TABLE.look(data) == "forward"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parsers_own_cases(case: Case) -> None:
    check(case.data[:NATIVE_HEAD])


def test_mutated_byte_by_byte() -> None:
    """Every byte replaced by every other, left out, doubled."""
    fields = b"Host: h:1\r\nContent-Length: 0\r\nConnection: close\r\nAuthorization: a \r\n"
    request = head(b"POST /h?a=b HTTP/1.1", fields)
    recognised = 0
    for i in range(len(request)):
        changed = [request[:i] + bytes((c,)) + request[i + 1 :] for c in range(256)]
        for data in (
            *changed,
            request[:i] + request[i + 1 :],
            request[:i] + request[i : i + 1] * 2,
        ):
            look = TABLE.look(data)
            if not isinstance(look, str):
                recognised += 1
                same_request(look, data)
            elif look == "incomplete":
                assert parse(data) == ([], False, len(data))
    assert recognised > 3000, "values and names may be much"


def test_mutated_in_two_places() -> None:
    dice = random.Random(1)
    for _ in range(5000):
        data = bytearray(dice.choice(list(GOOD.values())))
        for _ in range(2):
            data[dice.randrange(len(data))] = dice.choice(b"\r\n \t\0:0/?,AahH\xff\x7f")
        look = TABLE.look(bytes(data))
        if not isinstance(look, str):
            same_request(look, bytes(data))


def padded(size: int, request: bytes) -> bytes:
    return request[:-2] + b"X: " + b"y" * (size - len(request) - 5) + b"\r\n\r\n"


@pytest.mark.parametrize("first", [get(b""), get(b"A: b\r\nC:\r\n")])
def test_size(first: bytes) -> None:
    fits = padded(NATIVE_HEAD, first)
    assert len(fits) == NATIVE_HEAD
    assert verdicts(fits) == "i" * NATIVE_HEAD + "r"
    same_request(seen(fits + b"more"), fits)
    large = padded(NATIVE_HEAD + 1, first)
    assert verdicts(large)[: NATIVE_HEAD + 1] == "i" * NATIVE_HEAD + "f"
    assert TABLE.look(large) == "forward"
    assert verdicts(b"GET /" + b"a" * NATIVE_HEAD)[NATIVE_HEAD - 1 :].startswith("if")


def test_number_of_fields() -> None:
    fits = get(b"A: b\r\n" * (NATIVE_FIELDS - 1))
    assert same_request(seen(fits), fits).headers[-1] == (b"a", b"b")
    many = fits[:-2] + b"A"
    assert verdicts(many) == "i" * len(many) + "f"
    assert parse(fits[:-2] + b"A: b\r\n\r\n")[1], "the parser's own limit"


def test_limits_of_the_server() -> None:
    """A server with a lower limit than the recogniser's answers 431 itself."""
    data = get(b"A: b\r\n")
    for max_head, max_headers, fits in (
        (len(data), 2, True),
        (len(data) - 1, 2, False),
        (len(data), 1, False),
    ):
        table = Table([], limits=Limits(max_head=max_head, max_headers=max_headers))
        assert seen(data, table).allowed == fits
        parser = RequestParser(max_head=max_head, max_headers=max_headers)
        parser.receive_data(data)
        with contextlib.nullcontext() if fits else pytest.raises(HeadTooLarge):
            assert parser.next_request() is not None


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "good"), HOSTS)
def test_host(host: str, good: bool) -> None:
    data = head(b"GET / HTTP/1.1", f"Host: {host}\r\n".encode())
    lenient = ("", "localhost.:1234", "[fe80::1%eth0]:80")
    assert let_in(*guarded(), data) == (good and host not in lenient)
    if host:
        assert seen(data).allowed, "a Unix socket has no name"


@pytest.mark.parametrize(
    "host",
    [
        "localhost:", "localhost:x", "localhost:123456", "localhost:1:2", "localhostx", "local",
        "[localhost]", "[::1", "[::1]x", "[::1]:", "[::1]:x", "[]", "[::1%25lo]", "[fe80::1%lo]",
        "::1", "[127.0.0.1]", "[1:2:3:4:5:6:7:8:9]", "[::1::2]", "[" + "0" * 70 + "]", "[:::]",
        "127.1", "127.0.0.01", "0x7f.0.0.1", "2130706433", "127.0.0.1.", "256.0.0.1", "1.2.3.4.5",
        "." , "-", "_", "localhost..", ".localhost", "[::ffff:1.2.3.400]", "1" * 64,
    ],
)  # fmt: skip
def test_host_that_is_not_plain(host: str) -> None:
    assert not let_in(*guarded(), head(b"GET / HTTP/1.1", f"Host: {host}\r\n".encode()))


@pytest.mark.parametrize(
    "host", ["[::]", "[1:2:3:4:5:6:7:8]", "[::ffff:1.2.3.4]:99999", "[A::f]:0"]
)
def test_address(host: str) -> None:
    assert let_in(*guarded(), head(b"GET / HTTP/1.1", f"Host: {host}\r\n".encode()))


def test_names_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Node7.cluster")
    rules = guarded(hosts=("Service.local", "*.Pods.x", "end.", "::1", "\xe4", "", "*.", "*.\xe4"))
    for host in (
        "node7.cluster", "NODE7", "nOde7.clusteR:9", "a.pods.x:80", "A.B.PODS.X", "service.LOCAL:1",
        "end", "localhost",
    ):  # fmt: skip
        assert let_in(*rules, head(b"GET / HTTP/1.1", f"Host: {host}\r\n".encode())), host
    for host in (
        "node70", "node7x.cluster", "cluster", "x.node7.cluster", "service", "end.",
        "node7.", "::1", "node7.x", "node7.!", "pods.x", ".pods.x", "apods.x", "a.pods.x.",
        "a!.pods.x", "a.pods.x.evil", "x.",
    ):  # fmt: skip
        assert not let_in(*rules, head(b"GET / HTTP/1.1", f"Host: {host}\r\n".encode())), host
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    evil = head(b"GET / HTTP/1.1", b"Host: localhost.evil.example\r\n")
    assert not let_in(*guarded(), evil)


@pytest.mark.parametrize("suffix", ["", ".", "..", "a b.", ".a b", ".\xe4", ".a."])
def test_suffix_that_is_none(suffix: str) -> None:
    table = Table([], rules=[(NativeForm("host", (b"host",), suffixes=(suffix,)), None)])
    for host in (b"xy", b"x.y", b".y", b"a.y", b"y", b"b", b"x.a.", b"x."):
        assert not seen(head(b"GET / HTTP/1.1", b"Host: " + host + b"\r\n"), table).allowed


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("Bearer s3cret", True),
        ("bEARER s3cret \t", True),
        ("Bearer  s3cret", False),  # right, but not plain
        ("Bearer\ts3cret", False),
        ("Bearer s3creT", False),
        ("Bearer S3cret", False),
        ("Bearer s3cre", False),
        ("Bearer s3cretx", False),
        ("Bearer s3cret x", False),
        ("Bearer", False),
        ("Bearer ", False),
        ("Basic s3cret", False),
        ("Bearers s3cret", False),
        ("s3cret", False),
        ("", False),
        (None, False),
    ],
)
def test_token(value: str | None, good: bool) -> None:
    field = b"" if value is None else f"Authorization: {value}\r\n".encode()
    data = head(b"GET / HTTP/1.1", b"Host: localhost\r\n" + field)
    assert let_in(*guarded("s3cret"), data) == good
    # The policy decides about every request that is not plain.
    assert seen(data, guarded("s3cret")[0]).refused == (not good and value != "Bearer  s3cret")
    assert let_in(*guarded(), data)
    wrong_host = head(b"GET / HTTP/1.1", b"Host: evil\r\n" + field)
    assert not let_in(*guarded("s3cret"), wrong_host)


@pytest.mark.parametrize("token", [" s3cret", "s3cret ", "", "t\u00f6ken"])
def test_odd_token(token: str) -> None:
    """The policy strips values before it compares them. Bytes beyond ASCII go to the parser."""
    for value in ("", " ", token.strip(), token, f" {token}"):
        fields = f"Host: localhost\r\nAuthorization: Bearer {value}\r\n"
        assert not let_in(*guarded(token), head(b"GET / HTTP/1.1", fields.encode()))


def test_the_policy_objects_to_what_is_not_let_in() -> None:
    """So that the tests above have a judge that can say no."""
    _, policy = guarded("s3cret")
    for fields, error in (
        (b"Host: evil\r\nAuthorization: Bearer s3cret\r\n", Forbidden),
        (b"Host: localhost\r\nAuthorization: Bearer x\r\n", Unauthorized),
    ):
        with pytest.raises(error):
            policy.check(parse(head(b"GET / HTTP/1.1", fields))[0][0])


# --- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("GET /", 1),
        ("GET /?a=b&c", 1),
        ("GET /handler/", 2),
        ("POST /handler/ping", 3),
        ("POST /handler/ping/", 3),
        ("POST /handler/ping?a=1&a=2&&", 3),
        ("POST /handler/ping/?a", 3),
        ("GET /healthz", 4),
        ("GET /healthz?", 4),
        ("POST /handler/dump_traceback/?mode=nogil", 5),
        ("POST /handler/fr_trace_json?onlyactive=true", 6),
        ("POST /handler/none", 7),
        ("POST /handler/none?a", None),
        ("POST /", None),
        ("GET /handler", None),
        ("GET /handler//", None),
        ("POST /handler/", None),
        ("GET /handler/ping", None),
        ("POST /handler/pinG", None),
        ("POST /handler/ping//", None),
        ("POST //handler/ping", None),
        ("POST /handler/pin", None),
        ("POST /handler/pingx", None),
        ("GET /healthz/", None),
        ("POST /healthz", None),
        ("GET /metrics", None),
    ],
)
def test_route(line: str, action: int | None) -> None:
    assert asked(line).action == action


def test_number_of_parameters() -> None:
    """The parser's limit is the last that passes."""
    for path in ("ping", "fr_trace_json"):
        most = "&".join(["a=1"] * MAX_PARAMETERS)
        assert asked(f"POST /handler/{path}?{most}").action is not None
        assert asked(f"POST /handler/{path}?{most}&a=1").action is None


def test_table_is_checked() -> None:
    with pytest.raises(KeyError, match="PUT"):
        Table([("PUT", "/", "any", 1)])  # type: ignore[list-item]
    with pytest.raises(KeyError, match="some"):
        Table([("GET", "/", "some", 1)])  # type: ignore[list-item]


def test_path_that_no_request_holds() -> None:
    """A foreign registry may hold any name. The other names are still served."""
    odd = ["/handler/a/b", "/handler/a/", "/handler/\xe4", "/handler/a b"]
    table = Table([*(("POST", path, "any", 1) for path in odd), ("POST", "/handler/c", "any", 2)])
    assert asked("POST /handler/c", table).action == 2
    for path in odd[:2]:
        assert asked(f"POST {path}", table).action is None


@pytest.mark.parametrize("mode", [None, "auto", "gil", "nogil"])
@pytest.mark.parametrize("form", [None, "text", "json", "digest"])
def test_dump(registry: Registry, form: str | None, mode: str | None) -> None:
    pairs = [(name, value) for name, value in (("format", form), ("mode", mode)) if value]
    for order in (pairs, pairs[::-1]):
        query = "&".join(f"{name}={value}" for name, value in order)
        look = asked(f"POST /handler/dump_traceback?{query}")
        assert (look.action, look.format, look.mode) == (5, form or "text", mode or "auto")
        assert registry.find("dump_traceback").validator.validate(parse_query(look.query)) == dict(
            pairs
        )


@pytest.mark.parametrize(
    "query",
    [
        "format", "format=", "format=xml", "format=Text", "Format=text", "format=texts", "mode=",
        "mode=no", "mode=nogil,", "mode=gil&mode=gil", "format=text&format=json", "format=text&",
        "&format=text", "mode=gil&&format=text", "&", "x", "x=1", "format=text&x=1", "mode=gil=",
        "format=text&mode=gil&mode=gil", "format=json&mode=x", "=", "mode=gil/",
    ],
)  # fmt: skip
def test_dump_that_is_not_plain(query: str) -> None:
    assert asked(f"POST /handler/dump_traceback?{query}").action is None


@pytest.mark.parametrize(
    "text",
    ["0", "1", "60", "007", "1.5", "0.1", "0.30", "1000000000", "1000000000.0", "999999999.999999",
     "123456789.123456", "0.00000000000001", "00000000000000.1", "299792.458"],
)  # fmt: skip
def test_step_age(text: str) -> None:
    assert judge_age(f"max_step_age={text}") == float(text)


@pytest.mark.parametrize(
    "query",
    [
        "max_step_age", "max_step_age=", "max_step_age=.", "max_step_age=1.", "max_step_age=.5",
        "max_step_age=-1", "max_step_age=1e3", "max_step_age=1.2.3", "max_step_age=1000000000.1",
        "max_step_age=1000000001", "max_step_age=nan", "max_step_age=inf", "max_step_age=1_0",
        "max_step_age=0x1", "max_step_age=1&", "&max_step_age=1", "max_step_age=1&max_step_age=2",
        "Max_step_age=1", "max_step_age=1&x=2", "x=1", "&", "max_step_age==1",
        "max_step_age=0000000000000001", "max_step_age=0.000000000000001",
    ],
)  # fmt: skip
def test_step_age_that_is_not_plain(query: str) -> None:
    assert judge_age(query) is None


def test_handlers_take_what_is_recognised(registry: Registry) -> None:
    """Every short query from the pieces that queries are made of."""
    pieces = ["format=text", "format=json", "mode=gil", "mode=x", "max_step_age=1", "a=1", "a", ""]
    router = Router(registry)
    validate = registry.find("dump_traceback").validator.validate
    taken = 0
    for first in pieces:
        for joint in ("", "&", "&&"):
            for second in pieces:
                query = first + joint + second
                for method, path in (
                    ("GET", "/"),
                    ("GET", "/handler/"),
                    ("GET", "/healthz"),
                    ("POST", "/handler/ping"),
                ):
                    taken += judge_query(method, path, query, router).action is not None
                look = judge_query("POST", "/handler/dump_traceback", query, router)
                if look.action is None and "&&" not in f"&{query}&":  # wrong, not only odd
                    with pytest.raises(ParameterError):
                        validate(parse_query(query.encode()))
    assert taken > 500
