"""The policy holds for every request on every transport, whatever a rule says of itself or not."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import pytest
from support import served as subjects
from support.served import Connect, Kind, Ours, Serve
from support.wire import Client, Reply, ask, message, post

from workerserver import server
from workerserver._parser import ParsedRequest, RequestParser
from workerserver.http.access import (
    AccessPolicy,
    BearerToken,
    NativeForm,
    NoWebPages,
    OwnUser,
    Rule,
    standard_rules,
)
from workerserver.types import Forbidden, Unauthorized

LINUX = sys.platform == "linux"
KINDS: tuple[Kind, ...] = ("unix", "tcp", "uvloop-unix", "asyncio-tcp", "tls")
SAFE_KINDS: tuple[Kind, ...] = KINDS if LINUX else KINDS[2:]
DUMPS = [post(f"dump_traceback?mode={mode}") for mode in ("auto", "gil", "nogil")]
REQUESTS = {
    "ping": post("ping"),
    "index": message("GET", "/"),
    "healthz": message("GET", "/healthz"),
    "handlers": message("GET", "/handler/"),
    "dump": post("dump_traceback"),
    "dump auto": DUMPS[0],
    "dump gil": DUMPS[1],
    "dump nogil": DUMPS[2],
    "custom": post("act"),
    "unknown handler": post("nope"),
    "unknown path": message("GET", "/nope"),
    "metrics": message("GET", "/metrics"),
    "ui": message("GET", "/ui"),
}


class Closed(Rule):
    """Refuses everything, and has nothing but a check()."""

    def check(self, request: ParsedRequest) -> None:
        raise Forbidden("closed today")


class NobodyComes(Rule):
    """Refuses every connection, and has nothing but an admit()."""

    def admit(self, sock: socket.socket | None) -> None:
        raise Forbidden("nobody comes in")


class ClosedPages(NoWebPages):
    """Replaces a rule that has all that saves time."""

    def check(self, request: ParsedRequest) -> None:
        raise Forbidden("closed today")


class _Check:
    def check(self, request: ParsedRequest) -> None:
        raise Forbidden("closed today")


class ClosedMixin(_Check, NoWebPages):
    """The same, by another order of bases."""


Add = Callable[[Rule], None]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """``add(rule)``: servers that start from now on have it, behind their own rules."""

    def add(rule: Rule) -> None:
        def rules(**options: object) -> tuple[Rule, ...]:
            return (*standard_rules(**options), rule)  # type: ignore[arg-type]

        for module in (server, subjects):
            monkeypatch.setattr(module, "standard_rules", rules)

    return add


def refused(reply: Reply, text: str) -> None:
    assert (reply.status, reply.text) == (403, f"Forbidden: {text}")


@pytest.mark.parametrize("rule", [Closed(), ClosedPages(), ClosedMixin()])
@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_a_rule_that_only_checks(
    serve: Serve, connect: Connect, add: Add, kind: Kind, rule: Rule
) -> None:
    """No transport answers anything but the refusal; GIL held: tests/native/test_gil_held.py."""
    add(rule)
    served = serve(kind)
    ran: list[int] = []
    served.registry.register("act", lambda: ran.append(1), inline=True)
    client = connect(served.address)
    for request in REQUESTS.values():
        refused(client.ask(request), "closed today")
    # The same bytes come again, alone and many at a time. The server may remember nothing of them.
    for request in REQUESTS.values():
        for _ in range(2):
            refused(client.ask(request), "closed today")
        client.send(request * 5)
        for _ in range(5):
            refused(client.reply(), "closed today")
    assert not ran
    assert set(served.state.requests) == {("", 403)}  # the loop has answered them all


@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_a_rule_that_only_admits(serve: Serve, add: Add, kind: Kind) -> None:
    add(NobodyComes())
    served = serve(kind)
    for request in REQUESTS.values():
        with Client(served.address) as client:
            client.send(request)
            refused(client.reply(), "nobody comes in")
            assert client.rest() == b""


@pytest.mark.parametrize("rule", [Closed(), ClosedPages(), ClosedMixin()])
@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_a_rule_holds_before_the_body(serve: Serve, add: Add, kind: Kind, rule: Rule) -> None:
    add(rule)
    served = serve(kind)
    fields = [("Content-Length", "1000000")]
    with Client(served.address) as client:
        refused(client.ask(message("POST", "/handler/act", None, fields)), "closed today")
        assert client.rest() == b""


@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_a_rule_that_fails(serve: Serve, add: Add, kind: Kind) -> None:
    """A rule with a mistake refuses every request."""

    class Wrong(Rule):
        def check(self, request: ParsedRequest) -> None:
            raise LookupError("a mistake")

    add(Wrong())
    served = serve(kind)
    for request in REQUESTS.values():
        assert ask(served.address, request).status == 500


@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_a_connection_rule_that_fails(serve: Serve, add: Add, kind: Kind) -> None:
    class Wrong(Rule):
        def admit(self, sock: socket.socket | None) -> None:
            raise LookupError("a mistake")

    add(Wrong())
    assert ask(serve(kind).address, post("ping")).status == 403


def test_what_a_rule_says_counts_for_its_own_methods_only() -> None:
    class Slower(NoWebPages):
        """Nothing of the rule is replaced, so all holds that is said of it."""

    assert not AccessPolicy([NoWebPages(), OwnUser(), Slower()]).plain_checks
    assert AccessPolicy([Slower()]).native == (NoWebPages().native(),)
    for rule in (Closed(), ClosedPages(), ClosedMixin(), NobodyComes()):
        policy = AccessPolicy([NoWebPages(), rule])
        assert policy.native is None
        assert policy.plain_checks == (rule.check,)


class NoMarked(Rule):
    """Refuses what carries X-Marked; its native form sees no such field."""

    def check(self, request: ParsedRequest) -> None:
        if any(name == b"x-marked" for name, _ in request.headers):
            raise Forbidden("marked")

    def native(self) -> NativeForm:
        return NativeForm("web_page", (b"x-marked",))


@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_a_form_for_a_field_that_is_passed_over_counts_for_nothing(
    serve: Serve, add: Add, kind: Kind
) -> None:
    """The I/O thread passes over X-Marked, so it may not answer by this form."""
    add(NoMarked())
    served = serve(kind)
    marked = [("X-Marked", "yes")]
    for request in (
        message("POST", "/handler/ping", None, marked),
        message("GET", "/", None, marked),
    ):
        assert ask(served.address, request).status == 403
    assert ask(served.address, post("ping")).status == 200


def test_the_first_rule_that_refuses_gives_the_reason() -> None:
    parser = RequestParser()
    parser.receive_data(message("GET", "/", None, [("Origin", "http://evil.example")]))
    request = parser.next_request()
    assert request is not None
    policy = AccessPolicy([NoWebPages(), BearerToken("x")])
    with pytest.raises(Forbidden):
        policy.check(request)
    with pytest.raises(Unauthorized):
        AccessPolicy(reversed(policy.rules)).check(request)


# --- what the I/O thread refuses by itself


def raw(kind: Kind, serve: Serve, fields: list[tuple[str, str]], close: bool) -> bytes:
    """The bytes of two refusals in a row."""
    served = serve(kind, token="s3cret")
    end = [("Connection", "close")]
    with Client(served.address) as client:
        if not close:
            client.send(post("ping", b"", fields))
        client.send(message("GET", "/nope", None, [*fields, *end]))
        return client.rest()


@pytest.mark.skipif(not LINUX, reason="the native I/O thread is Linux's")
@pytest.mark.parametrize("fields", [[], [("Authorization", "Bearer wrong")]])
@pytest.mark.parametrize("close", [False, True])
def test_refusals_are_the_same_to_the_byte(
    serve: Serve, fields: list[tuple[str, str]], close: bool
) -> None:
    native = raw("tcp", serve, fields, close)
    assert native == raw("uvloop-tcp", serve, fields, close)
    assert native.count(b"HTTP/1.1 401 ") == 2 - close


@pytest.mark.skipif(not LINUX, reason="the native I/O thread is Linux's")
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_missing_token_needs_no_loop(serve: Serve, connect: Connect, kind: Kind) -> None:
    served = serve(kind, token="s3cret")
    client = connect(served.address)
    for fields in ([], [("Authorization", "Bearer wrong")], [("Authorization", "Basic s3cret")]):
        for request in (post("ping", b"", fields), message("GET", "/nope", None, fields)):
            client.send(request * 3)
            for _ in range(3):
                assert client.reply().status == 401
    assert not served.state.requests  # of the loop
    assert isinstance(served, Ours)
    assert served.server.requests == {("", 401): 18}
    right = post("ping", b"", [("Authorization", "Bearer s3cret")])
    client.send(post("ping") + right + post("ping"))
    assert [client.reply().status for _ in range(3)] == [401, 200, 401]
