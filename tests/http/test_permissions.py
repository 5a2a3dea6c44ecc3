"""Tokens that permit less than everything, and lines about who was refused, on every transport."""

from __future__ import annotations

import logging
import re
import sys

import pytest
from support.requests.speaker import Speaker
from support.served import Kind, Ours, Serve
from support.waiting import wait_until
from support.wire import Address, Client, ask, message, post

from workerserver.cli import main
from workerserver.http import audit
from workerserver.http.audit import Audit
from workerserver.http.registry import Registry
from workerserver.process.credentials import Token, permits, tokens_from_environment
from workerserver.server import WorkerServer
from workerserver.types import Forbidden, NotFound, Unauthorized

LINUX = sys.platform == "linux"
KINDS: tuple[Kind, ...] = ("unix", "tcp", "uvloop-unix", "uvloop-tcp", "tls")
SECRETS = {"": "for-all", "READ": "to-read", "PROFILE": "to-profile", "ADMIN": "to-change"}
#: A request, and the tokens that permit it.
NEEDS = [
    (message("GET", "/"), {"", "READ", "PROFILE", "ADMIN"}),
    (message("GET", "/healthz"), {"", "READ", "PROFILE", "ADMIN"}),
    (message("GET", "/metrics"), {"", "READ", "PROFILE", "ADMIN"}),
    (message("GET", "/handler/"), {"", "READ", "PROFILE", "ADMIN"}),
    (post("ping"), {"", "READ", "PROFILE", "ADMIN"}),
    (post("ping/"), {"", "READ", "PROFILE", "ADMIN"}),
    (post("%70ing"), {"", "READ", "PROFILE", "ADMIN"}),
    (post("steps"), {"", "READ", "PROFILE", "ADMIN"}),
    (post("dump_traceback?mode=nogil"), {"", "READ", "PROFILE", "ADMIN"}),
    (post("sample"), {"", "PROFILE", "ADMIN"}),
    (post("sample", b"x=1"), {"", "PROFILE", "ADMIN"}),
    (post("sample_stacks?duration=0.01"), {"", "PROFILE", "ADMIN"}),
    (message("GET", "/debug/pprof/profile?seconds=0.01"), {"", "PROFILE", "ADMIN"}),
    (post("stop"), {"", "ADMIN"}),
    (post("unsaid"), {"", "ADMIN"}),
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


def tokens(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """The environment has the tokens *names*, and no others."""
    for name in SECRETS:
        variable = f"WORKERSERVER_TOKEN_{name}" if name else "WORKERSERVER_TOKEN"
        if name in names:
            monkeypatch.setenv(variable, SECRETS[name])
        else:
            monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def address(
    kind: Kind, serve: Serve, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> Address:
    """A server with all tokens."""
    tokens(monkeypatch, *SECRETS)
    registry.register("sample", lambda **more: "sampled", permission="profile")
    registry.register("stop", lambda: "stopped", permission="admin")
    registry.register("unsaid", lambda: "ran")
    return serve(kind).address


def with_token(request: bytes, secret: str) -> bytes:
    head, _, rest = request.partition(b"\r\n")
    return head + f"\r\nAuthorization: Bearer {secret}\r\n".encode() + rest


def test_what_each_token_permits(address: Address) -> None:
    for request, permitted in NEEDS:
        for name, secret in SECRETS.items():
            reply = ask(address, with_token(request, secret))
            expected = 200 if name in permitted else 403
            assert reply.status == expected, (request, name, reply)
            if expected == 403:
                assert f"not {name.lower()}" in reply.text
        assert ask(address, request).status == 401
    assert ask(address, with_token(post("nope"), SECRETS["READ"])).status == 404


def test_what_each_token_permits_by_proof(address: Address) -> None:
    for name, secret in SECRETS.items():
        with Client(address) as client:
            speaker = Speaker(client, secret, name.lower())
            assert speaker.greet() == "proven"
            for target, permitted in (
                ("ping", "READ PROFILE ADMIN"),
                ("sample", "PROFILE ADMIN"),
                ("unsaid", "ADMIN"),
                ("ping", "READ PROFILE ADMIN"),
            ):
                expected = 200 if not name or name in permitted.split() else 403
                assert speaker.ask("POST", f"/handler/{target}").status == expected


def test_a_greeting_for_another_token(address: Address) -> None:
    """A token is proven under its own name only."""
    for name in ("", "profile", "admin"):
        with Client(address) as client:
            assert Speaker(client, SECRETS["READ"], name).greet() == "other"
    with Client(address) as client:
        speaker = Speaker(client, SECRETS["READ"], "write")
        assert speaker.greet() == "other"


def test_a_token_that_the_worker_does_not_have(
    kind: Kind, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens(monkeypatch, "READ")
    address = serve(kind).address
    assert ask(address, with_token(post("ping"), SECRETS["READ"])).status == 200
    assert ask(address, with_token(post("ping"), "")).status == 401
    assert ask(address, post("ping", b"", [("Authorization", "Bearer")])).status == 401
    with Client(address) as client:
        assert Speaker(client, SECRETS[""]).greet() == "other"
        assert Speaker(client, SECRETS["READ"], "read").greet() == "proven"


def test_commands_take_the_token_that_permits_most(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens(monkeypatch, *SECRETS)
    served = serve("tcp")
    served.registry.register("unsaid", lambda: "ran")
    target = "{}:{}".format(*served.address)
    for name in SECRETS:
        tokens(monkeypatch, name, "READ")
        expected = 0 if name in ("", "ADMIN") else 2
        assert main(["call", "unsaid", target]) == expected
        assert ("needs a token that permits admin" in capsys.readouterr().err) == bool(expected)
        assert main(["ping", target]) == 0
        capsys.readouterr()


def test_tokens_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    tokens(monkeypatch, "READ", "")
    found = tokens_from_environment()
    assert [(each.name, each.permission) for each in found] == [("", "admin"), ("read", "read")]
    assert "for-all" not in repr(found)
    monkeypatch.setenv("WORKERSERVER_TOKEN_PROFILE", SECRETS["READ"])
    with pytest.raises(ValueError, match="WORKERSERVER_TOKEN_READ: the same token as in"):
        tokens_from_environment()
    monkeypatch.setenv("WORKERSERVER_TOKEN_PROFILE", "")
    monkeypatch.setenv("WORKERSERVER_TOKEN_PROFILE_FILE", "/nope")
    with pytest.raises(ValueError, match="WORKERSERVER_TOKEN_PROFILE_FILE /nope: no such file"):
        WorkerServer("127.0.0.1", 0)
    assert permits("admin", "read")
    assert not permits("read", "profile")


def test_a_decorator_tells_the_permission(registry: Registry) -> None:
    @registry.handler("y", permission="read")
    def read() -> str:
        return ""

    @registry.handler("z")
    def other() -> str:
        return ""

    assert [registry.find(name).permission for name in ("y", "z")] == ["read", "admin"]


def test_a_permission_that_is_none(registry: Registry) -> None:
    with pytest.raises(ValueError, match="permission of handler x is 'write'"):
        registry.register("x", lambda: "", permission="write")  # type: ignore[arg-type]


@pytest.mark.skipif(not LINUX, reason="the native I/O thread is Linux's")
def test_the_io_thread_answers_every_token(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens(monkeypatch, *SECRETS)
    served = serve("tcp")
    with Client(served.address) as client:
        for secret in SECRETS.values():
            assert client.ask(with_token(post("ping"), secret)).status == 200
        assert client.ask(with_token(post("ping"), "to-rea")).status == 401
    assert not served.state.requests


# --- lines in the log


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "workerserver.audit"]


def test_lines(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    """Who was refused, and who asked for what costs. No line has a secret."""
    caplog.set_level(logging.INFO, "workerserver.audit")
    with Client(address) as client:
        read = with_token(post("sample?token=hidden"), SECRETS["READ"])
        assert client.ask(read).status == 403
        assert client.ask(with_token(post("sample"), SECRETS["PROFILE"])).status == 200
        assert client.ask(with_token(post("ping"), SECRETS["READ"])).status == 200
        unsure = [("Authorization", "Bearer  wrong-token")]
        assert client.ask(post("sample", b"", unsure)).status == 401
    wait_until(lambda: len(lines(caplog)) >= 3)
    found = lines(caplog)
    assert found[0].startswith("refused with 403: POST /handler/sample, ")
    assert found[1].startswith("profile: handler sample, ")
    assert found[2].startswith("refused with 401: POST /handler/sample, ")
    who = ", on a Unix socket" if isinstance(address, str) else ", from 127.0.0.1:"
    assert all(who in each for each in found)
    text = "\n".join(found)
    for secret in (*SECRETS.values(), "wrong-token", "hidden"):
        assert secret not in text


@pytest.mark.skipif(not LINUX, reason="the native I/O thread is Linux's")
def test_a_line_about_what_the_io_thread_refuses(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "workerserver.audit")
    served = serve("tcp", token="s3cret")
    assert isinstance(served, Ours)
    with Client(served.address) as client:
        for _ in range(3):
            assert client.ask(post("ping")).status == 401
    publication = served.server._native
    assert publication is not None
    for _ in range(2):  # a turn of the loop may have told of some before
        served.call(publication._tell_refused)
    told = [
        re.fullmatch(r"refused with 401: ([0-9]) more requests", each) for each in lines(caplog)
    ]
    assert sum(int(each[1]) for each in told if each) == 3
    assert all(told)


def test_lines_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "workerserver.audit")
    now = [0.0]
    log = Audit(lambda: now[0])
    for _ in range(1000):
        log.failed(Forbidden("a\r\nfalse line"), None)
    assert len(lines(caplog)) == audit.MAX_LINES
    assert lines(caplog)[0] == r"refused with 403: Forbidden: a\r\nfalse line"
    now[0] += audit.SECONDS
    log.failed(Unauthorized(), None)
    log.failed(NotFound(), None)
    assert lines(caplog)[-2:] == [
        f"{1000 - audit.MAX_LINES} more lines were left out",
        "refused with 401: Unauthorized: a valid bearer token is required",
    ]


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Token("", "admin", "secret"))
    assert "secret" not in str([Token("", "admin", "secret")])
